"""Checks before something is mounted on a directory, and taking a mount away. Any thread.

What is at a mountpoint may be dead, or a mount of our own process: these functions block for as
long as the kernel does, so the event loop that answers a mount never calls them itself.
"""

import contextlib
import errno
import fcntl
import logging
import os
import shutil
import stat
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

from jfs.errors import ConfigError
from jfs.mount.table import FSTYPE, leads_through, mount_above, mount_at, resolve

log = logging.getLogger(__name__)

_PATIENCE_S = 5.0  # for a mount that waits for nobody when it is asked so
_T = TypeVar("_T")


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
        # Asks the daemon; stat may be answered from the kernel's memory.
        if entry is not None and bounded(lambda: os.statvfs(path), _PATIENCE_S) is None:
            raise ConfigError(
                f"{path}: {entry.source} is mounted here, and does not answer: its daemon "
                f"hangs, or was killed: `umount -f {path}` ends it and whoever waits for it"
            )
        is_directory = stat.S_ISDIR(path.stat().st_mode)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such directory: create it with `mkdir -p {path}`") from None
    except OSError as error:
        above = mount_above(path) if error.errno == errno.ENOTCONN and entry is None else None
        if above is not None:
            place = above[0].mountpoint
            raise ConfigError(
                f"{path}: lies in {place}, a dead {above[0].fstype} mount: "
                f"`fusermount3 -uz {place}` first, or mount that again"
            ) from None
        if error.errno != errno.ENOTCONN or entry is None:
            raise ConfigError(f"{path}: {error.strerror}") from None
        if entry.fstype != FSTYPE:
            raise ConfigError(
                f"{path}: a dead {entry.fstype} mount is in the way: `fusermount3 -uz {path}` first"
            ) from None
        _clear(path)
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


def claim(path: Path, *, nonempty: bool = False) -> int:
    """Check a mountpoint, and keep other starts of jfs away from it.

    Whoever mounts holds this claim until the mount is there, and is in the table after that: of
    several starts at once one mounts. The claim is a lock on the directory itself, so it holds by
    whatever name it is reached, and needs no place of its own.

    Returns:
        A descriptor of the directory. Closing it gives the claim up.
    Raises:
        ConfigError: as ``check_mountpoint``, or that another start has it.
    """
    while True:
        check_mountpoint(path, nonempty=nonempty)
        try:
            directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            if error.errno == errno.ENOTCONN:  # another start was killed since the check
                continue
            raise ConfigError(f"{path}: {error.strerror}") from None
        try:
            fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(directory)
            raise ConfigError(f"{path}: another jfs is about to mount here") from None
        except OSError as error:  # a file system without locks: the check is all there is
            log.debug("%s: cannot be locked: %s", path, error.strerror)
        entry = mount_at(path)
        if entry is None or entry.fstype != FSTYPE:
            return directory
        os.close(directory)  # another start was quicker, and has given its claim up: it is mounted


def refuse_inside(mountpoint: Path, own: Mapping[str, Path]) -> None:
    """Make sure that nothing that a mount needs is hidden by it, or is asked of it.

    A daemon that opens a file of its own mount waits for itself; not even SIGKILL ends that.

    Args:
        own: what it needs, by the option that names it.
    Raises:
        ConfigError: which option, and what to do.
    """
    for option, path in own.items():
        if leads_through(path, mountpoint):
            raise ConfigError(
                f"{option} {path}: lies in the mountpoint {mountpoint}, where the mount itself "
                "would have to answer for it: give another place"
            )


def unmount(path: Path, *, lazy: bool = False) -> None:
    """Take the mount at *path* away, which may lead there through links.

    Raises:
        ConfigError: the reason that fusermount3 gives.
    """
    program = _fusermount()
    if program is None:
        raise ConfigError("fusermount3 is not in PATH: install the package fuse3")
    result = subprocess.run(
        # fusermount3 follows no link at the end of a path.
        [program, "-u", *(["-z"] if lazy else []), "--", str(resolve(path))],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    if result.returncode != 0:
        reason = result.stderr.strip().rpartition("fusermount3: ")[2]
        raise ConfigError(f"{path}: {reason or 'fusermount3 failed'}")


def is_dead(path: Path) -> bool:
    """Whether nobody answers for the mount at *path* any more. Asks it, and may hang with it."""
    try:
        os.statvfs(path)
    except OSError as error:
        return error.errno == errno.ENOTCONN
    return False


def _clear(path: Path) -> None:
    """Take a dead mount of jfs away, unless another start has done so and mounted meanwhile."""
    place = resolve(path)
    with _one_at_a_time(place.parent):
        if is_dead(place):
            log.warning("%s: clearing the mount of a jfs that crashed", path)
            unmount(place, lazy=True)


@contextlib.contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Hold a lock on a folder, if it can be locked.

    Not on the mountpoint: what is below a dead mount cannot be reached.
    """
    try:
        directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        log.debug("%s: cannot be locked: %s", folder, error.strerror)
        yield
        return
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(directory, fcntl.LOCK_EX)
        yield
    finally:
        os.close(directory)


def _fusermount() -> str | None:
    # Only PATH counts, although libfuse looks in its own folder first and root could do without:
    # ending a mount from outside, and clearing a dead one, need it.
    return shutil.which("fusermount3")


def bounded(call: Callable[[], _T], patience_s: float) -> _T | None:
    """Run a call that may hang; None: it did. It hangs on in a thread that ends with us.

    Raises:
        OSError: as *call* does.
    """
    found: list[_T] = []
    failed: list[OSError] = []

    def run() -> None:
        try:
            found.append(call())
        except OSError as error:
            failed.append(error)

    worker = threading.Thread(target=run, daemon=True)
    worker.start()
    worker.join(patience_s)
    if failed:
        raise failed[0]
    return found[0] if found else None
