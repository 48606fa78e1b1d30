"""File descriptors of this process: the limit, and what happens when none is left.

Every cached content that is open holds two, every file that is being written one, every connection
one. The soft limit that shells and container runtimes start with (often 1024) is for programs that
use select(2); we don't, so it is raised to the hard limit. Where that is small as well, whoever
holds descriptors that can be opened again gives them back when somebody needs one.

Any thread.
"""

import contextlib
import logging
import resource
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from jfs.errors import is_of_descriptors, is_of_the_machine

log = logging.getLogger(__name__)

_T = TypeVar("_T")

# Linux' own default of fs.nr_open. Container runtimes set hard limits of a thousand times that, and
# then children that close every possible descriptor one by one take minutes.
_MOST = 1 << 20
_SILENCE_S = 60.0

_lock = threading.Lock()
_holders: list[Callable[[], int]] = []
_silent_until = 0.0


def raise_limit() -> None:
    """Raise the soft limit to the hard one. Call it once, before threads start."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST if hard == resource.RLIM_INFINITY else min(hard, _MOST)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):  # a sandbox that forbids it
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def limit() -> int:
    """Return how many descriptors this process may have open."""
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return _MOST if soft == resource.RLIM_INFINITY else soft


def add_holder(give_back: Callable[[], int]) -> Callable[[], None]:
    """Register who can close descriptors that it does not need at the moment.

    Args:
        give_back: closes some and returns how many. Called from any thread.
    Returns:
        What ends the registration.
    """
    with _lock:
        _holders.append(give_back)

    def end() -> None:
        with _lock, contextlib.suppress(ValueError):
            _holders.remove(give_back)

    return end


def opening(call: Callable[[], _T]) -> _T:
    """Run *call*, which opens files; if no descriptor is left, have some closed and try once more.

    Raises:
        OSError: as *call* does.
    """
    try:
        return call()
    except OSError as error:
        if not is_of_descriptors(error):
            raise
        with _lock:
            holders = list(_holders)
        if not sum(give_back() for give_back in holders):
            raise
        return call()


def shortage(error: OSError) -> str:
    """Describe an error of ``errors.is_of_descriptors``: which limit, and what to do."""
    if is_of_the_machine(error):
        return "no file descriptor is left on this machine: raise the sysctl fs.file-max"
    return (
        f"no file descriptor is left: the limit of this process is {limit()}: raise the hard limit "
        "(ulimit -Hn, LimitNOFILE= of systemd, --ulimit nofile= of a container)"
    )


def complain(error: OSError) -> None:
    """Log a shortage, at most once a minute."""
    global _silent_until
    with _lock:
        if time.monotonic() < _silent_until:
            return
        _silent_until = time.monotonic() + _SILENCE_S
    log.warning("%s", shortage(error))
