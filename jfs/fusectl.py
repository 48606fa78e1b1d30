"""Tune a mount through sysfs, after it exists: root only, best effort, blocking.

libfuse negotiates neither the read-ahead of the bdi nor, through pyfuse3, ``max_background``, and
``max_read`` as a mount option is refused (the mount then answers ECONNREFUSED).
"""

import logging
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


def tune(device: str) -> None:
    """Raise the limits of the mount with the device number *device* (``major:minor``)."""
    minor = device.partition(":")[2]
    _raise(Path("/sys/class/bdi") / device / "read_ahead_kb", _READ_AHEAD_KB)
    connection = Path("/sys/fs/fuse/connections") / minor
    _raise(connection / "max_background", _MAX_BACKGROUND)
    _raise(connection / "congestion_threshold", _MAX_BACKGROUND * 3 // 4)


def _raise(setting: Path, value: int) -> None:
    try:
        if int(setting.read_text(encoding="ascii")) < value:
            setting.write_text(str(value), encoding="ascii")
    except (OSError, ValueError) as error:
        # Not root, or a container with a read-only /sys: slower, and right.
        log.debug("%s: left as it is: %s", setting, error)
