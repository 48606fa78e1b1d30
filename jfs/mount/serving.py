"""Composition root of one mount: check, build, mount, serve, end.

Everything that can be wrong is found before anything is mounted. The order at the end matters:
connections are cut first, so that no worker thread waits for the network; then handlers are
cancelled, which answers the kernel; then the mount is taken away. Each step is bounded, with the
server dead too.
"""

import contextlib
import ctypes
import functools
import logging
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import replace

import trio

from jfs import descriptors, fusectl, logs, memory, native, threads
from jfs.artifactory import Access, ArtifactoryClient, Breakers, HttpRangeSource, log_changes
from jfs.cache import DiskBlockStore, Notes
from jfs.cgroup import memory_limit
from jfs.config import Credentials, MountSettings, fit_to_memory
from jfs.errors import CacheError, ConfigError, Interrupted, JfsError
from jfs.extents import MiB
from jfs.fuse import Operations
from jfs.memory import Budget
from jfs.metrics import Metrics
from jfs.mount import reports, session, signals, starting
from jfs.mount.faults import Faults
from jfs.mount.mountpoint import claim
from jfs.mount.offline import OfflineSource, OfflineStore
from jfs.mount.passthrough import Passthrough
from jfs.mount.session import Session
from jfs.mount.signals import Ending
from jfs.mount.survivor import Survivor
from jfs.mount.watchdog import Watchdog
from jfs.notifier import KernelNotifier
from jfs.protocols import ArtifactStore, RangeSource
from jfs.vfs.filesystem import Filesystem
from jfs.vfs.kept.keeper import Keeper
from jfs.vfs.reading.following import Following
from jfs.vfs.reading.reader import DataPlane
from jfs.vfs.reading.recall import Recall
from jfs.vfs.writing import recovery
from jfs.vfs.writing.area import StagingArea

log = logging.getLogger(__name__)

END_S = 20.0  # unmounting, notifications and what is on the disk: each far below that
_SETTLE_S = 15.0
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h


def serve(
    settings: MountSettings,
    ready: Callable[[], None],
    *,
    reload: Callable[[], Credentials | None],
) -> None:
    """Mount and serve until the mount is taken away or a signal ends it. Main thread only.

    Args:
        ready: called once, when the mount answers; in a thread.
        reload: called at SIGHUP, in a thread: opens logs anew, and returns what to authenticate
            with from now on, None for no change. May raise JfsError.
    Raises:
        ConfigError: nothing is mounted; the text says what to do.
        Interrupted: a signal came before it was mounted.
    """
    _keep_memory()
    native.turn_off(not settings.native)
    native.library()  # what it says belongs to the start
    signals.hold()
    try:
        trio.run(_run, settings, ready, reload)
    except BaseExceptionGroup as group:
        known, rest = group.split((ConfigError, Interrupted))
        if known is None or rest is not None:
            raise
        first: BaseException = known
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        raise first from None


def _keep_memory() -> None:
    """Let malloc use freed memory again instead of giving it back at once.

    pyfuse3 makes a fresh buffer of up to 1 MiB for every WRITE. malloc would map and unmap each,
    and the first touch of a page costs several times its copy: writing had half of its speed.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc; musl has none
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 32 * MiB)
        mallopt(_M_TRIM_THRESHOLD, 64 * MiB)


async def _run(
    settings: MountSettings,
    ready: Callable[[], None],
    reload: Callable[[], Credentials | None],
) -> None:
    ending = Ending()
    with signals.received() as numbers:
        async with trio.open_nursery() as nursery:
            with ending.start:
                await _compose(settings, ready, reload, ending, numbers, nursery)
            nursery.cancel_scope.cancel()
    if ending.start.cancelled_caught and ending.number is not None:
        name = signal.Signals(ending.number).name
        text = f"{name}: ended before anything was mounted"
        raise Interrupted("interrupted" if name == "SIGINT" else text, ending.number)


async def _compose(
    settings: MountSettings,
    ready: Callable[[], None],
    reload: Callable[[], Credentials | None],
    ending: Ending,
    numbers: AsyncIterator[int],
    listeners: trio.Nursery,
) -> None:
    """Build everything, mount, serve, and take it all away again in reverse order."""
    connections = descriptors.connections_at_most(settings.server.connections)
    settings = replace(settings, server=replace(settings.server, connections=connections))
    metrics = Metrics()
    async with (
        contextlib.AsyncExitStack() as start,
        contextlib.AsyncExitStack() as stack,
        trio.open_nursery() as nursery,
    ):
        access = Access(settings.server, os.environ)
        breakers = Breakers(settings.server.url, metrics)
        client = ArtifactoryClient(settings.server, metrics, access, breakers)
        stack.push_async_callback(_to_the_end, client.aclose)
        source: RangeSource = HttpRangeSource(settings.server, metrics, access, breakers)
        stack.callback(source.close)
        keeper = Keeper(
            settings.cache.directory,
            settings.server.url,
            settings.source.path,
            settings.server.credentials,
        )
        stack.push_async_callback(keeper.close)

        reloading = trio.CapacityLimiter(1)

        async def reloaded() -> None:
            try:  # left to itself at the end: the disk of the log may hang
                credentials = await threads.abandoning(reloading, reload)
            except JfsError as error:
                log.warning("credentials stay as they were: %s", error)
                return
            if credentials is not None:
                access.authenticator.use(credentials)
                keeper.authenticate(credentials)
            log.info("SIGHUP: credentials were read again")

        listeners.start_soon(signals.listen, numbers, ending, reloaded)
        claimed = await threads.own_mount(
            functools.partial(claim, settings.mountpoint, nonempty=settings.nonempty)
        )
        start.callback(os.close, claimed)
        asked: ArtifactStore = client
        if settings.offline:
            begun = await starting.begin_offline(settings, keeper)
            asked, source = OfflineStore(await keeper.known_repositories()), OfflineSource()
        else:
            begun = await starting.begin(client, settings, keeper)
        breakers.on_change(log_changes)  # a start that fails says why itself, in one line
        store = await threads.on_disk(_open_store, settings, metrics)
        if store is not None:
            stack.push_async_callback(_to_the_end, threads.on_disk, store.close)
        limit = await threads.on_disk(memory_limit)
        memory.follow(limit)
        reads = fit_to_memory(settings.read, limit)
        nursery.start_soon(client.watch)
        budget = Budget(reads.memory_bytes)
        plane = DataPlane(
            source,
            store,
            reads,
            metrics,
            nursery,
            fetches=settings.server.connections,
            budget=budget,
            several=not settings.source.path.repo,
            locate=asked.locate,
        )
        notes = Notes(store.directory) if store is not None else None
        recall = Recall(notes, plane.disk, nursery, settings.server.url)
        await recall.load()
        Following(plane, recall)
        area = await _staging(settings, store)
        if area is not None:
            stack.callback(area.close)
        passthrough = None
        if settings.passthrough:
            passthrough = Passthrough(store.directory if store is not None else None)
        filesystem = Filesystem(
            asked,
            plane,
            settings.tree,
            begun.root,
            address=settings.server.url,
            area=area,
            notifier=KernelNotifier(),
            kept=keeper,
            backings=passthrough,
        )
        nursery.start_soon(keeper.run)
        stats = reports.Stats(settings, metrics, budget, limit)
        stats.add("server", lambda: reports.server(breakers, metrics, offline=settings.offline))
        stats.add("names", filesystem.holdings.figures)
        stats.add("uploads", lambda: reports.uploads(filesystem.behind.state, area))
        stats.add("fetches", filesystem.holdings.fetches)
        stats.add("passthrough", lambda: reports.passthrough(passthrough))
        filesystem.add_report("stats", stats.text)
        filesystem.add_report("stats.json", stats.json)
        filesystem.add_report("config", lambda: reports.config(settings))
        nursery.start_soon(_settle_logs)
        nursery.start_soon(filesystem.holdings.watch)
        nursery.start_soon(filesystem.sleeps.watch)
        if area is not None:
            await filesystem.behind.resume()

        async def resume() -> None:
            if begun.known_at is not None and not settings.offline:
                await starting.heal(client, settings, keeper)
            if area is not None:
                await recovery.resume(area, client, filesystem.claims.held)

        nursery.start_soon(resume)
        breakers.on_change(lambda outage, up: filesystem.up(outage.subject) if up else None)
        breakers.on_change(
            lambda outage, up: filesystem.behind.wake(outage.subject) if up else None
        )
        try:
            operations = Operations(filesystem)
            async with session.mounted(settings, operations, passthrough) as mount:
                ending.mounted()
                await start.aclose()  # from here on the table of mounts keeps other starts away
                filesystem.mounted(mount.device)
                ahead = await threads.own_mount(fusectl.reading_ahead, mount.device)
                plane.streaming.tell(ahead)
                plane.beside.tell(mount.beside.replies)
                if store is not None:
                    store.when_rejected(plane.beside.pause)
                plane.scattered.tell(Faults(operations.answers, mount.withdrawals, nursery))
                cuts = (source.close, client.cut_uploads)
                await _serve(settings, filesystem, mount, ending, cuts, ready)
        finally:
            await _to_the_end(_close, filesystem)
        nursery.cancel_scope.cancel()


async def _settle_logs() -> None:
    """Have repeats said that were counted, also if nothing more is logged."""
    while True:
        await trio.sleep(_SETTLE_S)
        logs.settle()


async def _to_the_end(close: Callable[..., Awaitable[object]], *args: object) -> None:
    """Close something also when a signal has ended the start."""
    with trio.CancelScope(shield=True):
        await close(*args)


async def _staging(settings: MountSettings, store: DiskBlockStore | None) -> StagingArea | None:
    """Open the staging directory; None: the mount is read-only. Raises ConfigError."""
    if settings.write is None:
        return None
    return await threads.on_disk(StagingArea, settings.write, settings.server.url, store)


def _open_store(settings: MountSettings, metrics: Metrics) -> DiskBlockStore | None:
    try:
        store = DiskBlockStore(settings.cache, metrics)
    except CacheError as error:
        log.warning("no disk cache, every read goes to the server: %s", error)
        return None
    lack = store.lack_of_space()
    if lack is not None:
        log.warning("%s", lack)
    return store


async def _serve(
    settings: MountSettings,
    filesystem: Filesystem,
    mount: Session,
    ending: Ending,
    cuts: Sequence[Callable[[], None]],
    ready: Callable[[], None],
) -> None:
    """Answer the kernel until the mount ends, by its being taken away or by a signal."""
    drain_s = settings.write.drain_s if settings.write else 0.0

    finishing, finished = trio.Lock(), False

    async def finish() -> None:
        nonlocal finished
        async with finishing:
            if finished:
                return
            with ending.patience(drain_s) as scope:
                await filesystem.drain()
            if scope.cancelled_caught:  # what is left is in the journal
                log.warning("uploads did not end within %.0f s: see `jfs recover ls`", drain_s)
            finished = True
        watchdog.stop(END_S)
        for cut in cuts:
            cut()

    async def finish_when_asked() -> None:
        await ending.asked.wait()
        await finish()
        await mount.end()

    root = trio.lowlevel.current_root_task()
    assert root is not None
    watchdog = Watchdog(mount.device, settings.watchdog_s, root)
    survivor = await threads.on_disk(Survivor, mount.device)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watchdog.beat)
        watchdog.start()
        nursery.start_soon(finish_when_asked)
        nursery.start_soon(session.say_ready, mount, settings.mountpoint, ready)
        await mount.answer(nursery)
        if watchdog.has_bitten:
            await trio.sleep_forever()  # its thread ends the process, with its own exit code
        await finish()
        await threads.on_disk(survivor.close)
        nursery.cancel_scope.cancel()


async def _close(filesystem: Filesystem) -> None:
    for path in await filesystem.close():
        log.warning("%s: was not closed, so not uploaded: see `jfs recover ls`", path)
