"""Checks before something is mounted on a directory, and taking a mount away."""

import errno
import logging
import os
import shutil
import stat
import subprocess
from pathlib import Path

from jfs.errors import ConfigError
from jfs.mount.table import FSTYPE, mount_at

log = logging.getLogger(__name__)


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


def _fusermount() -> str | None:
    # Only PATH counts, although libfuse looks in its own folder first and root could do without:
    # ending a mount from outside, and clearing a dead one, need it.
    return shutil.which("fusermount3")
