"""The kernel's mount, through pyfuse3: made, answered, taken away."""

import contextlib
import logging
import os
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pyfuse3
import trio

from jfs import fusectl, threads
from jfs.config import MountSettings
from jfs.errors import ConfigError
from jfs.fuse import Operations
from jfs.mount.table import mount_at
from jfs.vfs.filesystem import Filesystem

log = logging.getLogger(__name__)

# Tasks that may wait at a time: every READ in flight holds one, and a `stat` must still get
# through when all of them wait for a slow server.
_MAX_TASKS = 512
_ANSWER_DEADLINE_S = 10.0


@contextlib.asynccontextmanager
async def mounted(settings: MountSettings, filesystem: Filesystem) -> AsyncIterator[None]:
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


async def answer() -> None:
    """Answer the kernel's requests until the mount is taken away."""
    await pyfuse3.main(min_tasks=4, max_tasks=_MAX_TASKS)


async def say_ready(mountpoint: Path, filesystem: Filesystem, ready: Callable[[], None]) -> None:
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


@contextlib.contextmanager
def _libfuse_messages() -> Iterator[Callable[[], str]]:
    """Collect what libfuse and fusermount3 print to standard error, their only explanation."""
    with open(os.memfd_create("jfs-messages"), "w+b") as file:  # needs no directory
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


def _option_value(text: str) -> str:
    r"""Escape a value for libfuse's option parser, where ``,`` separates and ``\`` escapes."""
    return text.replace("\\", "\\\\").replace(",", "\\,")
