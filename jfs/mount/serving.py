"""Composition root of one mount: check, build, mount, serve, end.

Everything that can be wrong is found before anything is mounted. The order at the end matters:
connections are cut first, so that no worker thread waits for the network; then handlers are
cancelled; then the kernel is told. Each step is bounded, with the server dead too.
"""

import contextlib
import ctypes
import functools
import logging
import os
import signal
from collections.abc import Callable

import trio

from jfs import threads
from jfs.artifactory import ArtifactoryClient, HttpRangeSource
from jfs.cache import DiskBlockStore
from jfs.cgroup import memory_limit
from jfs.config import MountSettings, fit_to_memory
from jfs.errors import CacheError, ConfigError, JfsError, NotFound
from jfs.extents import MiB
from jfs.fuse import KernelNotifier
from jfs.metrics import Metrics
from jfs.model import FileInfo, FolderInfo, RepoPath
from jfs.mount import session, signals
from jfs.mount.mountpoint import claim
from jfs.protocols import BlockStore
from jfs.vfs.filesystem import Filesystem
from jfs.vfs.reading.reader import DataPlane
from jfs.vfs.writing import recovery
from jfs.vfs.writing.staging import StagingArea

log = logging.getLogger(__name__)

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h


def serve(settings: MountSettings, ready: Callable[[], None]) -> None:
    """Mount and serve until the mount is taken away or SIGTERM or SIGINT arrives.

    Args:
        ready: called once, when the mount answers.
    Raises:
        ConfigError: nothing is mounted; the text says what to do.
    """
    _keep_memory()
    # While the mount is taken away no signal is listened to: it would leave a dead one behind.
    for number in signals.ENDING:
        signal.signal(number, signal.SIG_IGN)
    try:
        trio.run(_run, settings, ready)
    except BaseExceptionGroup as group:
        mistakes, rest = group.split(ConfigError)
        if mistakes is None or rest is not None:
            raise
        mistake: BaseException = mistakes
        while isinstance(mistake, BaseExceptionGroup):
            mistake = mistake.exceptions[0]
        raise mistake from None


def _keep_memory() -> None:
    """Let malloc use freed memory again instead of giving it back at once.

    pyfuse3 makes a fresh buffer of up to 1 MiB for every WRITE. malloc would map and unmap each,
    and the first touch of a page costs several times its copy: writing had half of its speed.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc; musl has none
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 32 * MiB)
        mallopt(_M_TRIM_THRESHOLD, 64 * MiB)


async def _run(settings: MountSettings, ready: Callable[[], None]) -> None:
    metrics = Metrics()
    async with (
        contextlib.AsyncExitStack() as start,
        contextlib.AsyncExitStack() as stack,
        trio.open_nursery() as nursery,
    ):
        claimed = await threads.own_mount(
            functools.partial(claim, settings.mountpoint, nonempty=settings.nonempty)
        )
        start.callback(os.close, claimed)
        client = await stack.enter_async_context(
            contextlib.aclosing(ArtifactoryClient(settings.server, metrics))
        )
        root = await _root(client, settings)
        source = HttpRangeSource(settings.server, metrics)
        stack.callback(source.close)
        store = await threads.on_disk(_open_store, settings, metrics)
        if store is not None:
            stack.push_async_callback(threads.on_disk, store.close)
        plane = DataPlane(
            source,
            store,
            fit_to_memory(settings.read, await threads.on_disk(memory_limit)),
            metrics,
            nursery,
            fetches=settings.server.connections,
        )
        area = await _staging(settings)
        if area is not None:
            stack.callback(area.close)
            nursery.start_soon(recovery.resume, area, client)
        filesystem = Filesystem(
            client,
            plane,
            settings.tree,
            root,
            address=settings.server.url,
            area=area,
            notifier=KernelNotifier(),
        )
        async with session.mounted(settings, filesystem):
            await start.aclose()  # from here on the table of mounts keeps other starts away
            await _serve(settings, filesystem, source, client, ready)
        nursery.cancel_scope.cancel()


async def _staging(settings: MountSettings) -> StagingArea | None:
    """Open the staging directory; None: the mount is read-only. Raises ConfigError."""
    if settings.write is None:
        return None
    return await threads.on_disk(StagingArea, settings.write, settings.server.url)


async def _root(client: ArtifactoryClient, settings: MountSettings) -> FolderInfo:
    """Ask the server for the folder to mount. Raises ConfigError with what to do."""
    path = settings.source.path
    await client.check()
    if not path.repo:
        await client.repositories()
        return FolderInfo(RepoPath(""), modified_ns=0)
    try:
        info = await client.stat(path)
    except NotFound:
        if path.path:
            with contextlib.suppress(NotFound):
                await client.stat(RepoPath(path.repo))
                raise ConfigError(f"{path}: no such folder in the repository") from None
        raise ConfigError(
            f"{path.repo}: no such repository on {settings.server.url}, or no right to read it"
        ) from None
    except JfsError as error:
        raise ConfigError(f"{path}: {error}") from None
    if isinstance(info, FileInfo):
        raise ConfigError(f"{path}: is a file: mount its folder, {path.parent}, instead")
    return info


def _open_store(settings: MountSettings, metrics: Metrics) -> BlockStore | None:
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
    source: HttpRangeSource,
    client: ArtifactoryClient,
    ready: Callable[[], None],
) -> None:
    drain_s = settings.write.drain_s if settings.write else 0.0

    async def end(limit_s: float) -> None:
        await _drain(filesystem, limit_s)
        source.close()
        client.cut_uploads()
        nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(signals.end_on_signal, end, drain_s)
        nursery.start_soon(session.say_ready, settings.mountpoint, filesystem, ready)
        await session.answer()
        await end(drain_s)


async def _drain(filesystem: Filesystem, limit_s: float) -> None:
    """Wait for uploads that are under way; what is left then is in the journal."""
    with trio.move_on_after(limit_s) as scope:
        await filesystem.drain()
    if scope.cancelled_caught:
        log.warning("uploads did not end within %.0f s: see `jfs recover ls`", limit_s)
