"""File descriptors of this process: the limit, and what happens when none is left.

Every cached content that is open holds two, every file that is being written one, every connection
one. The soft limit that shells and container runtimes start with (often 1024) is for programs that
use select(2); we don't, so it is raised to the hard limit. Where that is small as well, whoever
holds descriptors that can be opened again gives them back when somebody needs one, and files leave
some for connections: a file that cannot be opened is refused, or read from the server; a connection
that cannot be made would fail a reader in the middle of a file.

Any thread.
"""

import contextlib
import logging
import os
import resource
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from jfs.errors import ConfigError, is_of_descriptors, is_of_the_machine, out_of_descriptors

log = logging.getLogger(__name__)

_T = TypeVar("_T")

# Linux' own default of fs.nr_open. Container runtimes set hard limits of a thousand times that, and
# then children that close every possible descriptor one by one take minutes.
_MOST = 1 << 20
_SILENCE_S = 60.0
# Limits up to this are looked after: descriptors are counted before a file is opened (20 µs).
_SMALL = 4096
_FEW = 256  # less is said at the start
_FEWEST = 32  # an idle mount holds 15
_LEFT_TO_CONNECTIONS = (8, 64)  # a quarter of a small limit, within these
_FOR_A_CONNECTION = 32  # descriptors of the limit, for each bulk connection at a time

_RAISE = (
    "raise the hard limit (ulimit -Hn, LimitNOFILE= of systemd, --ulimit nofile= of a container)"
)

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


def opening(call: Callable[[], _T], *, connects: bool = False) -> _T:
    """Run *call*, which opens files; if no descriptor is left, have some closed and try once more.

    Args:
        connects: it makes a connection, which may have what files must leave.
    Raises:
        OSError: as *call* does.
    """
    try:
        if not connects:
            _leave_some()
        return call()
    except OSError as error:
        if not is_of_descriptors(error) or not relieve():
            raise
        if not connects:
            _leave_some()
        return call()


def relieve() -> int:
    """Have descriptors closed that can be opened again. Returns how many."""
    with _lock:
        holders = list(_holders)
    return sum(give_back() for give_back in holders)


def connections_at_most(wanted: int) -> int:
    """Return how many bulk connections fit below the limit; says so if those are fewer, or few.

    Raises:
        ConfigError: the limit is too low for a mount.
    """
    most = limit()
    if most < _FEWEST:
        raise ConfigError(f"only {most} file descriptors, and {_FEWEST} are the least: {_RAISE}")
    if most >= _FEW:
        return wanted
    fitting = max(1, min(wanted, most // _FOR_A_CONNECTION))
    log.warning(
        "only %d file descriptors, of which files leave %d to connections, and %d downloads of one "
        "repository at a time: %s",
        most,
        _left_to_connections(most),
        fitting,
        _RAISE,
    )
    return fitting


def _left_to_connections(most: int) -> int:
    least, enough = _LEFT_TO_CONNECTIONS
    return min(enough, max(least, most // 4))


def _leave_some() -> None:
    """Raises OSError (EMFILE) if only those are left that connections need."""
    most = limit()
    if most > _SMALL:
        return
    try:
        used = len(os.listdir("/proc/self/fd"))
    except OSError as error:
        if is_of_descriptors(error):
            raise
        return  # no /proc
    if used >= most - _left_to_connections(most):
        raise out_of_descriptors()


def shortage(error: OSError) -> str:
    """Describe an error of ``errors.is_of_descriptors``: which limit, and what to do."""
    if is_of_the_machine(error):
        return "no file descriptor is left on this machine: raise the sysctl fs.file-max"
    return f"no file descriptor is left: the limit of this process is {limit()}: {_RAISE}"


def complain(error: OSError) -> None:
    """Log a shortage, at most once a minute."""
    global _silent_until
    with _lock:
        if time.monotonic() < _silent_until:
            return
        _silent_until = time.monotonic() + _SILENCE_S
    log.warning("%s", shortage(error))
