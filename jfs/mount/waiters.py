"""Whether a thread that waits for an answer was told to end: by its signals, in ``/proc``.

The kernel says that *some* signal came (FUSE_INTERRUPT), also for those that a program only hears
of: a child that ended, a timer, Go's preemption of its threads. A local disk lets none of these
disturb a call, and neither do we: programs take EINTR for an error. What counts:

- one that will end the thread: SIGKILL, or any other that it neither catches, ignores nor blocks,
  and whose default is to end it;
- SIGINT, SIGTERM, SIGHUP, SIGQUIT that it catches: somebody means it to stop (Ctrl-C in Python);
- it was killed already, and waits for the FLUSH of a file that it had open; or it is gone, and
  left a read ahead behind, which keeps an unmounted file system alive.

Any thread. What ``/proc`` says of a thread's call waits while that is in execve(2), on Linux 6.18
its ``stat``, too: there files are closed which are to be closed on exec, and what was written to
one may be uploaded for minutes. So whoever asks must not wait for long, and only one thread of ours
ever waits for one of others.
"""

import contextlib
import os
import re
import signal
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path

_MASKS = re.compile(rb"^(SigPnd|ShdPnd|SigBlk|SigIgn|SigCgt):\s*([0-9a-f]+)$", re.MULTILINE)
_MEANT_TO_STOP = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
# Those whose default action is not the end (signal(7)).
_HARMLESS = (
    *(signal.SIGCHLD, signal.SIGURG, signal.SIGWINCH, signal.SIGCONT),
    *(signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU),
)
_PF_EXITING = 0x4  # include/linux/sched.h
# Places in /proc/PID/stat after the name, which may hold spaces (proc_pid_stat(5)).
_FLAGS, _EXIT_CODE = 6, 49

_asked: set[int] = set()  # whose call somebody looks at
_asking = threading.Lock()


def _mask(signals: Sequence[signal.Signals]) -> int:
    return sum(1 << (number - 1) for number in signals)


_STOPPING = _mask(_MEANT_TO_STOP)
_ENDING = ~_mask(_HARMLESS) & ((1 << 64) - 1)


class Told(Enum):
    """What a thread was told."""

    NOTHING = auto()
    TO_END = auto()
    TO_STOP_LATER = auto()  # in a page fault: without the page it gets SIGBUS before its signal
    GONE = auto()  # it has ended: its reads ahead wait for nobody
    UNKNOWN = auto()  # another PID namespace, or another user's


def told(threads: Sequence[int]) -> dict[int, Told]:
    """Say for each thread what it was told."""
    return {thread: _told(thread) for thread in threads}


def _told(thread: int) -> Told:
    if not thread:  # of another PID namespace
        return Told.UNKNOWN
    place = Path("/proc") / str(thread)
    try:
        masks = dict(_MASKS.findall((place / "status").read_bytes()))
        pending, shared, blocked, ignored, caught = (
            int(masks[name], 16) for name in (b"SigPnd", b"ShdPnd", b"SigBlk", b"SigIgn", b"SigCgt")
        )
        heard = (pending | shared) & ~blocked & ~ignored
        if heard & _ENDING & ~caught or _was_killed(thread):
            return Told.TO_END
    except (OSError, KeyError, ValueError, IndexError):
        return Told.GONE if _is_gone(thread) else Told.UNKNOWN
    if heard & _STOPPING:
        return Told.TO_STOP_LATER if _in_page_fault(thread) else Told.TO_END
    return Told.NOTHING


def _is_gone(thread: int) -> bool:
    """Whether there is no such thread; /proc may only hide it (``hidepid``, proc(5))."""
    try:
        os.kill(thread, 0)
    except ProcessLookupError:
        return True
    except OSError:  # another user's
        pass
    return False


def _was_killed(thread: int) -> bool:
    try:
        with _looked_at(thread) as place:
            fields = (place / "stat").read_bytes().rpartition(b")")[2].split()
    except BlockingIOError:
        return False
    # The signal, not the exit code: who ends by itself waits for its files as long as close(2).
    return bool(int(fields[_FLAGS]) & _PF_EXITING and int(fields[_EXIT_CODE]) & 0x7F)


class Wait(Enum):
    """What a thread waits for whose READ is not answered."""

    LOCK = auto()  # of a page that its program has touched, which somebody fills
    ANSWER = auto()  # to a request of its own, as to that for such a page alone
    CALL = auto()  # for a system call to end, by which it reads
    NOTHING = auto()  # it does not wait yet, or no more
    UNKNOWN = auto()


@dataclass(frozen=True, slots=True)
class Waiting:
    """What a thread waits for.

    Attributes:
        size, start: of the call, where they are to be seen.
        at_lock: it waits for the lock of a page, also in that.
    """

    what: Wait
    size: int = 0
    start: int | None = None
    at_lock: bool = False


def waiting(thread: int) -> Waiting:
    """Say what a thread waits for."""
    try:
        with _looked_at(thread) as place:
            said = (place / "syscall").read_bytes().split()
            if said[0] == b"running":
                return Waiting(Wait.NOTHING)
            call = int(said[0])
            where = _WAITS.get((place / "wchan").read_bytes(), Wait.UNKNOWN)
            start = _start(place, call, said) if call in _READS else None
        if call == -1:
            return Waiting(where, at_lock=where is Wait.LOCK)
        size = int(said[3], 16)  # after descriptor and address
        if call in _READS and size:  # 0: a thread of the kernel has zeros there (loop, nfsd)
            return Waiting(Wait.CALL, size, start, where is Wait.LOCK)
    except (OSError, ValueError, LookupError):  # not ours to see
        pass
    return Waiting(Wait.UNKNOWN)


def _start(place: Path, call: int, said: Sequence[bytes]) -> int | None:
    """Return where a call reads from; None: that is not to be seen. Raises as ``waiting``."""
    if call == _READS[-1]:
        return int(said[4], 16)
    with contextlib.suppress(FileNotFoundError):
        # Where the open file stands, which moves when the call ends.
        lines = (place / "fdinfo" / str(int(said[1], 16))).read_bytes().splitlines()
        found = dict(line.split(b":", 1) for line in lines if b":" in line)
        return int(found[b"pos"])
    return None


def _in_page_fault(thread: int) -> bool:
    try:
        with _looked_at(thread) as place:
            return (place / "syscall").read_bytes().startswith(b"-1")
    except BlockingIOError:
        return True  # nobody knows
    except OSError:  # not ours to see
        return False


@contextlib.contextmanager
def _looked_at(thread: int) -> Iterator[Path]:
    """Look at a thread's call; see the module. Raises BlockingIOError: another thread does."""
    with _asking:
        if thread in _asked:
            raise BlockingIOError
        _asked.add(thread)
    try:
        yield Path("/proc") / str(thread)
    finally:
        with _asking:
            _asked.remove(thread)


# By where in the kernel it waits; before Linux 5.16 the second.
_WAITS = {
    b"folio_wait_bit_common": Wait.LOCK,
    b"wait_on_page_bit_common": Wait.LOCK,
    b"request_wait_answer": Wait.ANSWER,
}
# Numbers of read(2) and pread(2), asm/unistd.h.
_READS = {"x86_64": [0, 17], "aarch64": [63, 67]}.get(os.uname().machine, [])
