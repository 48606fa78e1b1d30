"""Tune a mount through sysfs, after it exists: root only, best effort, blocking.

libfuse negotiates neither the read-ahead of the bdi nor, through pyfuse3, ``max_background``, and
``max_read`` as a mount option is refused (the mount then answers ECONNREFUSED).
"""

import contextlib
import logging
import os
from pathlib import Path

log = logging.getLogger(__name__)

# One READ carries up to 1 MiB (the kernel's max_pages of 256): page by page or 128 KiB at a time a
# sequential reader waits for 8 times as many round trips. Twice that, because a program's MiB at
# any place touches 257 pages, and a read larger than the read-ahead is taken for the start of a
# sequential one and asked for twice over (measured: 5.5 times the bytes of random MiBs). A power of
# two: 1280 to 1920 KiB were a quarter to a half slower. No more, because a page fault reads that
# much around itself: opening a header costs these 2 MiB.
_READ_AHEAD_KB = 2048
# Asynchronous READs in flight; the default of 12 lets one slow file hold up all others.
_MAX_BACKGROUND = 64


_CONNECTIONS = Path("/sys/fs/fuse/connections")


def tune(device: str) -> None:
    """Raise the limits of the mount with the device number *device* (``major:minor``)."""
    minor = device.partition(":")[2]
    _raise(Path("/sys/class/bdi") / device / "read_ahead_kb", _READ_AHEAD_KB)
    connection = _CONNECTIONS / minor
    _raise(connection / "max_background", _MAX_BACKGROUND)
    _raise(connection / "congestion_threshold", _MAX_BACKGROUND * 3 // 4)


def waiting(device: str) -> int | None:
    """Return how many requests wait for an answer; None: it is not to be seen (a container)."""
    try:
        text = (_CONNECTIONS / device.partition(":")[2] / "waiting").read_text(encoding="ascii")
        return int(text)
    except (OSError, ValueError):
        return None


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


def _raise(setting: Path, value: int) -> None:
    try:
        if int(setting.read_text(encoding="ascii")) < value:
            setting.write_text(str(value), encoding="ascii")
    except (OSError, ValueError) as error:
        # Not root, or a container with a read-only /sys: slower, and right.
        log.debug("%s: left as it is: %s", setting, error)
