"""Clocks that nobody can set. Any thread.

``time.monotonic`` and trio's clock stand still while the machine is suspended, and so do the
kernel's timeouts; servers, networks and everybody else go on.
"""

import functools
import time
from pathlib import Path


def boot_time() -> float:
    """Return seconds that a suspended machine counts too."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def suspended_s() -> float:
    """Return for how long the machine was suspended since it was started, all times together."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) - time.clock_gettime(time.CLOCK_MONOTONIC)


@functools.cache
def boot_id() -> str:
    """Return what tells this run of the machine from all others; "": it is not told."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""
