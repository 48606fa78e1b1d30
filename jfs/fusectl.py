"""Tune a mount through sysfs and fusectl, after it exists: root only, best effort, blocking.

libfuse negotiates neither the read-ahead of the bdi nor, through pyfuse3, ``max_background``, and
``max_read`` as a mount option is refused (the mount then answers ECONNREFUSED).
"""

import contextlib
import ctypes
import functools
import logging
import os
from collections.abc import Callable
from pathlib import Path

log = logging.getLogger(__name__)

# One READ carries up to 1 MiB (the kernel's max_pages of 256): page by page or 128 KiB at a time a
# sequential reader waits for 8 times as many round trips. Twice that, because a program's MiB at
# any place touches 257 pages, and a read larger than the read-ahead is taken for the start of a
# sequential one and asked for twice over (measured: 5.5 times the bytes of random MiBs). A power of
# two: 1280 to 1920 KiB were a quarter to a half slower. No more, because a page fault reads that
# much around itself; most of which is refused, since this cannot be less for some files or readers
# (jfs.mount.faults).
_READ_AHEAD_KB = 2048
# Asynchronous READs in flight; the default of 12 lets one slow file hold up all others.
_MAX_BACKGROUND = 64


_CONNECTIONS = Path("/sys/fs/fuse/connections")
_FSOPEN, _FSCONFIG, _FSMOUNT = 430, 431, 432  # system calls, of the same numbers everywhere
_CLOEXEC, _CMD_CREATE = 1, 6  # linux/mount.h


def tune(device: str) -> None:
    """Raise the limits of the mount with the device number *device* (``major:minor``)."""
    minor = device.partition(":")[2]
    _raise(Path("/sys/class/bdi") / device / "read_ahead_kb", _READ_AHEAD_KB)
    _raise(_connection(minor) / "max_background", _MAX_BACKGROUND)


def reading_ahead(device: str) -> Callable[[bool], None] | None:
    """Return what says whether the kernel may ask ahead of its readers; None: it does as it likes.

    The read-ahead of the bdi is copied into a file when that is opened, and holds as long. But what
    nobody waits for is left out while the connection has as many requests under way as its
    congestion threshold (``fuse_readahead``), and that is looked at every time: at 0 the kernel
    asks for what is read, in READs of up to a MiB. A piece of 4 MiB cost 6 to 8 MiB else. What is
    said takes effect at once, by three system calls that wait for nothing.
    """
    setting = _connection(device.partition(":")[2]) / "congestion_threshold"

    def say(ahead: bool) -> None:
        _write(setting, _MAX_BACKGROUND * 3 // 4 if ahead else 0)

    try:
        say(False)
    except OSError as error:
        log.debug("the kernel reads ahead as it likes: %s", error)
        return None

    def say_if_there(ahead: bool) -> None:
        with contextlib.suppress(OSError):  # the mount has gone
            say(ahead)

    return say_if_there


def waiting(device: str) -> int | None:
    """Return how many requests wait for an answer; None: it is not to be seen (a container)."""
    try:
        text = (_CONNECTIONS / device.partition(":")[2] / "waiting").read_text(encoding="ascii")
        return int(text)
    except (OSError, ValueError):
        return None


def open_abort(device: str) -> int:
    """Open what cuts the connection once anything is written to it: this one and no later one that
    gets its number. The caller closes it. Raises OSError.
    """
    return os.open(_connection(device.partition(":")[2]) / "abort", os.O_WRONLY | os.O_CLOEXEC)


def abort(device: str) -> None:
    """Cut the connection: whoever waits gets ECONNABORTED, whoever comes ENOTCONN.

    Where fusectl is not mounted, by closing every descriptor of this process that may be it. Their
    numbers stay taken: whoever closes them later closes nobody else's.
    """
    try:
        (_CONNECTIONS / device.partition(":")[2] / "abort").write_text("1", encoding="ascii")
    except OSError as error:
        log.debug("cut off by closing it: %s", error)
        nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        for name in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):
                if os.readlink(f"/proc/self/fd/{name}") == "/dev/fuse":
                    os.dup2(nothing, int(name), inheritable=False)


def _connection(minor: str) -> Path:
    place = _CONNECTIONS / minor
    if place.is_dir():
        return place
    return (_of_our_own() or _CONNECTIONS) / minor


@functools.cache
def _of_our_own() -> Path | None:
    """Return a fusectl that nobody else sees: many containers have none at its place."""
    call = ctypes.CDLL(None, use_errno=True).syscall
    call.restype = ctypes.c_long
    opened = call(ctypes.c_long(_FSOPEN), b"fusectl", ctypes.c_uint(_CLOEXEC))
    if opened < 0:  # before Linux 5.2, or not root
        return None
    try:
        create = (ctypes.c_uint(_CMD_CREATE), None, None, ctypes.c_int(0))
        if call(ctypes.c_long(_FSCONFIG), ctypes.c_int(opened), *create) < 0:
            return None
        flags = ctypes.c_uint(_CLOEXEC), ctypes.c_uint(0)
        mounted = call(ctypes.c_long(_FSMOUNT), ctypes.c_int(opened), *flags)
    finally:
        os.close(opened)
    return Path(f"/proc/self/fd/{mounted}") if mounted >= 0 else None


def _write(setting: Path, value: int) -> None:
    """Set a number. Raises OSError."""
    file = os.open(setting, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(file, str(value).encode())
    finally:
        os.close(file)


def _raise(setting: Path, value: int) -> None:
    try:
        if int(setting.read_text(encoding="ascii")) < value:
            setting.write_text(str(value), encoding="ascii")
    except (OSError, ValueError) as error:
        # Not root, or a container with a read-only /sys: slower, and right.
        log.debug("%s: left as it is: %s", setting, error)
