"""Composition root of one mount: check, build, mount, serve, end.

Everything that can be wrong is found before anything is mounted. The order at the end matters:
connections are cut first, so that no worker thread waits for the network; then handlers are
cancelled; then the kernel is told. Each step is bounded, with the server dead too.
"""

import contextlib
import ctypes
import errno
import logging
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyfuse3
import trio

from jfs import fusectl, threads
from jfs.artifactory import ArtifactoryClient, HttpRangeSource
from jfs.cache import DiskBlockStore
from jfs.cgroup import memory_limit
from jfs.config import MountSettings, fit_to_memory
from jfs.errors import CacheError, ConfigError, JfsError, NotFound
from jfs.extents import MiB
from jfs.fuse import Operations, invalidate
from jfs.metrics import Metrics
from jfs.model import FileInfo, FolderInfo, RepoPath
from jfs.protocols import BlockStore
from jfs.vfs.filesystem import Filesystem, Remembered
from jfs.vfs.reading.reader import DataPlane
from jfs.vfs.writing import recovery
from jfs.vfs.writing.staging import StagingArea

log = logging.getLogger(__name__)

FSTYPE = "fuse.jfs"
# Tasks that may wait at a time: every READ in flight holds one, and a `stat` must still get
# through when all of them wait for a slow server.
_MAX_TASKS = 512
_ANSWER_DEADLINE_S = 10.0
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h


@dataclass(frozen=True, slots=True)
class MountEntry:
    """One line of ``/proc/self/mountinfo``."""

    mountpoint: str
    fstype: str
    source: str
    device: str  # major:minor, the name of its bdi


def mounts() -> list[MountEntry]:
    """List what is mounted, the last one on a place being the one that is seen."""
    entries = []
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines():
        before, _, after = line.partition(" - ")
        fields = before.split(" ")
        fstype, source, *_ = after.split(" ")
        entries.append(MountEntry(_unescape(fields[4]), fstype, _unescape(source), fields[2]))
    return entries


def mount_at(path: Path) -> MountEntry | None:
    """Give the mount whose root is *path*. Does not touch *path* itself, which may be dead."""
    wanted = os.path.realpath(path)  # not strict: a dead mount answers ENOTCONN
    return next((entry for entry in reversed(mounts()) if entry.mountpoint == wanted), None)


def check_mountpoint(path: Path, *, nonempty: bool = False) -> None:
    """Make sure that something can be mounted on *path*; clear a dead jfs mount away.

    Raises:
        ConfigError: what is wrong with it and what to do.
    """
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        raise ConfigError(
            "/dev/fuse cannot be opened: run `modprobe fuse`, or give the container the device "
            "(--device /dev/fuse --cap-add SYS_ADMIN)"
        )
    if _fusermount() is None:
        raise ConfigError("fusermount3 is not in PATH: install the package fuse3")
    entry = mount_at(path)
    try:
        if entry is not None:
            os.statvfs(path)  # asks the daemon; stat may be answered from the kernel's memory
        is_directory = stat.S_ISDIR(path.stat().st_mode)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such directory: create it with `mkdir -p {path}`") from None
    except OSError as error:
        if error.errno != errno.ENOTCONN or entry is None:
            raise ConfigError(f"{path}: {error.strerror}") from None
        if entry.fstype != FSTYPE:
            raise ConfigError(
                f"{path}: a dead {entry.fstype} mount is in the way: `fusermount3 -uz {path}` first"
            ) from None
        log.warning("%s: clearing the mount of a jfs that crashed", path)
        unmount(path, lazy=True)
        check_mountpoint(path, nonempty=nonempty)
        return
    if entry is not None and entry.fstype == FSTYPE:
        raise ConfigError(
            f"{path}: {entry.source} is mounted here already: `jfs umount {path}` first"
        )
    if not is_directory:
        raise ConfigError(f"{path}: not a directory: give an empty directory to mount on")
    try:
        empty = not any(path.iterdir())
    except PermissionError:
        raise ConfigError(f"{path}: no permission to read it") from None
    if not empty and not nonempty:
        raise ConfigError(
            f"{path}: the directory is not empty: its files would be hidden; "
            "use another, or -o nonempty"
        )


def unmount(path: Path, *, lazy: bool = False) -> None:
    """Take the mount at *path* away. Blocking; any thread that the mount does not depend on.

    Raises:
        ConfigError: the reason that fusermount3 gives.
    """
    program = _fusermount()
    if program is None:
        raise ConfigError("fusermount3 is not in PATH: install the package fuse3")
    result = subprocess.run(
        [program, "-u", *(["-z"] if lazy else []), "--", str(path)],
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode != 0:
        reason = result.stderr.strip().rpartition("fusermount3: ")[2]
        raise ConfigError(f"{path}: {reason or 'fusermount3 failed'}")


def serve(settings: MountSettings, ready: Callable[[], None]) -> None:
    """Mount and serve until the mount is taken away or SIGTERM or SIGINT arrives.

    Args:
        ready: called once, when the mount answers.
    Raises:
        ConfigError: nothing is mounted; the text says what to do.
    """
    _keep_memory()
    # While the mount is taken away no signal is listened to: it would leave a dead one behind.
    for number in _SIGNALS:
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
    await threads.own_mount(
        lambda: check_mountpoint(settings.mountpoint, nonempty=settings.nonempty)
    )
    async with (
        contextlib.AsyncExitStack() as stack,
        trio.open_nursery() as nursery,
    ):
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
            abandoned=lambda remembered: nursery.start_soon(_tell_kernel, remembered),
        )
        async with _mounted(settings, filesystem):
            await _serve(settings, filesystem, source, client, ready)
        nursery.cancel_scope.cancel()


async def _tell_kernel(remembered: Remembered) -> None:
    # In a thread: the kernel may hold what this needs while it waits for an answer of this loop.
    await threads.notifying(invalidate, remembered)


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
        return DiskBlockStore(settings.cache, metrics)
    except CacheError as error:
        log.warning("no disk cache, every read goes to the server: %s", error)
        return None


@contextlib.asynccontextmanager
async def _mounted(settings: MountSettings, filesystem: Filesystem) -> AsyncIterator[None]:
    """Hold the kernel's mount. Taken away at the end even if it is in use."""
    options = {
        f"fsname={_option_value(settings.shown_source)}",
        "subtype=jfs",
        "default_permissions",
        *settings.fuse_options,
    }
    try:
        with _libfuse_messages() as messages:
            pyfuse3.init(Operations(filesystem), str(settings.mountpoint), options)
    except RuntimeError as error:
        reason = messages().splitlines()
        raise ConfigError(
            f"{settings.mountpoint}: cannot be mounted: {reason[0] if reason else error}"
        ) from None
    try:
        yield
    finally:
        # Unmounting is a local system call: it does not wait for handlers, which are cancelled.
        pyfuse3.close(unmount=True)
        with trio.CancelScope(shield=True):
            for path in await filesystem.close():
                log.warning("%s: was not closed, so not uploaded: see `jfs recover ls`", path)


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
        nursery.start_soon(_end_on_signal, end, drain_s)
        nursery.start_soon(_say_ready, settings.mountpoint, filesystem, ready)
        await pyfuse3.main(min_tasks=4, max_tasks=_MAX_TASKS)
        await end(drain_s)


async def _drain(filesystem: Filesystem, limit_s: float) -> None:
    """Wait for uploads that are under way; what is left then is in the journal."""
    with trio.move_on_after(limit_s) as scope:
        await filesystem.drain()
    if scope.cancelled_caught:
        log.warning("uploads did not end within %.0f s: see `jfs recover ls`", limit_s)


async def _say_ready(mountpoint: Path, filesystem: Filesystem, ready: Callable[[], None]) -> None:
    """Call *ready* when the mount answers a request that came through the kernel."""
    with trio.move_on_after(_ANSWER_DEADLINE_S) as scope:
        # A thread, since our own loop has to answer it; the call releases the interpreter's lock.
        await threads.own_mount(os.statvfs, mountpoint)
    if scope.cancelled_caught:
        log.error("%s: the kernel does not answer", mountpoint)
        return
    # In a thread like every look at our own mount: even resolving its path asks our event loop.
    entry = await threads.own_mount(mount_at, mountpoint)
    if entry is not None:
        filesystem.mounted(entry.device)
        await threads.own_mount(fusectl.tune, entry.device)
    ready()


async def _end_on_signal(end: Callable[[float], Awaitable[None]], drain_s: float) -> None:
    """End at the first signal, after uploads that are under way; at a second one, at once."""
    with trio.open_signal_receiver(*_SIGNALS) as signals:
        async with trio.open_nursery() as nursery:
            async for number in signals:
                log.info("ending: %s", signal.Signals(number).name)
                nursery.start_soon(end, drain_s)
                drain_s = 0.0


@contextlib.contextmanager
def _libfuse_messages() -> Iterator[Callable[[], str]]:
    """Collect what libfuse and fusermount3 print to standard error, their only explanation."""
    with tempfile.TemporaryFile() as file:
        text = ""
        sys.stderr.flush()
        saved = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            yield lambda: text
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            file.seek(0)
            text = file.read().decode("utf-8", "replace").strip()


def _fusermount() -> str | None:
    # Only PATH counts, although libfuse looks in its own folder first and root could do without:
    # ending a mount from outside, and clearing a dead one, need it.
    return shutil.which("fusermount3")


def _option_value(text: str) -> str:
    r"""Escape a value for libfuse's option parser, where ``,`` separates and ``\`` escapes."""
    return text.replace("\\", "\\\\").replace(",", "\\,")


def _unescape(field: str) -> str:
    r"""Decode the octal escapes of ``/proc`` (``\040`` is a space)."""
    return (
        field.encode("utf-8", "surrogateescape")
        .decode("unicode_escape")
        .encode("latin-1", "surrogateescape")
        .decode("utf-8", "surrogateescape")
    )
