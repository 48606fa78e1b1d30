"""Answers that are not waited for: whoever was told to end is let go (``jfs.answers``).

pyfuse3 (3.5) hides FUSE_INTERRUPT. So every handler that may wait is led through a function of
ours, which only notes libfuse's request. Those that still wait after a tick are watched:
libfuse's ``fuse_req_interrupt_func`` says when the kernel interrupts one, and ``waiters`` says why.

The kernel sends it once for each request, and none at all for READs that it makes by itself, whose
reader waits for the page, nor for the FLUSH of a process that is ending. So those that were
interrupted, READs and FLUSHes are looked at again at every tick.

What becomes of a request that is let go:

================================================ ================================================
LOOKUP, GETATTR, READLINK, OPEN, OPENDIR, READ,  cancelled: they change nothing. What was asked
GETXATTR, LISTXATTR                              goes on for others who wait for the same.
WRITE                                            cancelled before its bytes are taken, or not at
                                                 all: it waits for what was in the file before.
FLUSH, FSYNC                                     the upload goes on; its outcome is in the log,
                                                 and in the journal.
CREATE, MKNOD, MKDIR, SYMLINK, OPEN that empties go on; what they opened is closed again.
UNLINK, RMDIR, RENAME, SETXATTR, REMOVEXATTR,    go on; then the kernel forgets what it believes
SETATTR of a size, FALLOCATE                     of the name, since it was told EINTR.
COPY_FILE_RANGE                                  as WRITE.
READDIR, STATFS, SETATTR of modes, owners, times never wait.
FORGET, RELEASE, RELEASEDIR                      nobody waits for them.
================================================ ================================================

Trio thread only.
"""

import ctypes
import logging
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import trio

from jfs import threads
from jfs.answers import Answer, Answers
from jfs.mount.libfuse import PLACES, Table, library
from jfs.mount.waiters import Told, told

log = logging.getLogger(__name__)

# Whoever is killed is let go after two of these at most, once its request has waited for one.
_TICK_S = 0.1
# Whom we cannot see, or who would get SIGBUS for its Ctrl-C, gets so long for its answer first.
_PATIENCE_S = 5.0
_LOOKED_AT = 256  # threads at one tick, 30 µs each
_LOOKS_S = 1.0  # one of them may be in execve(2)
_LED = (
    *("lookup", "getattr", "setattr", "readlink", "mknod", "mkdir", "unlink", "rmdir", "symlink"),
    *("rename", "open", "read", "flush", "fsync", "opendir", "setxattr", "getxattr", "listxattr"),
    *("removexattr", "create", "write_buf"),
)
_WITHOUT_A_WORD = frozenset(["read", "flush"])
_INTERRUPTED = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p)


class _Context(ctypes.Structure):
    """The beginning of struct fuse_ctx (fuse_lowlevel.h)."""

    _fields_ = (("uid", ctypes.c_uint32), ("gid", ctypes.c_uint32), ("pid", ctypes.c_int32))


@dataclass(eq=False, slots=True)
class _Slow:
    """A request that waits for longer than a tick."""

    number: int
    request: int
    thread: int = 0
    is_watched: bool = False
    interrupted: float | None = None  # when we heard of it
    told: float | None = None  # when its thread was first seen to be told to stop


class Withdrawals:
    """The watch over the answers of one mount."""

    def __init__(self, answers: Answers) -> None:
        self._answers = answers
        self._slow: dict[Answer, _Slow] = {}
        self._by_request: dict[int, _Slow] = {}
        self._heard = trio.Event()
        self._last = 0  # thread that was looked at
        self._callback = _INTERRUPTED(self._note)
        self._watch: Callable[[int, object, None], None] | None = None
        self._context: Callable[[int], int] | None = None

    def change(self, table: Table) -> object:
        """Lead handlers through a function of ours; for ``libfuse.table_changed_by``."""
        libfuse = library()
        watch, context = libfuse.fuse_req_interrupt_func, libfuse.fuse_req_ctx
        watch.argtypes, watch.restype = (ctypes.c_void_p, _INTERRUPTED, ctypes.c_void_p), None
        context.argtypes, context.restype = (ctypes.c_void_p,), ctypes.c_void_p
        kept: list[object] = [self._callback]
        for name in _LED:
            # Both keep the interpreter's lock: this is called for every request.
            kind = ctypes.PYFUNCTYPE(None, *[ctypes.c_uint64] * PLACES[name][1])
            proceed = kind(table.get(name) or 0)
            arrived = _read_arrived if name == "read" else _arrived
            ours = kind(partial(arrived, self._answers, proceed))
            table.put(name, ours)
            kept += [proceed, ours]
        self._watch, self._context = watch, context
        return kept

    def thread_of(self, request: int) -> int:
        """Return who made a request that is not answered yet; 0: it is not known."""
        if self._context is None:
            return 0
        return int(_Context.from_address(self._context(request)).pid)

    async def run(self) -> None:
        """Let go whoever was told to end, until cancelled."""
        if self._watch is None:
            log.info("requests cannot be interrupted with this libfuse: their deadlines end them")
            return
        while True:
            with trio.move_on_after(_TICK_S):
                await self._heard.wait()
            if self._heard.is_set():
                self._heard = trio.Event()
                await self._look(interrupted_only=True)
            else:
                self._notice()
                await self._look(interrupted_only=False)

    def _note(self, request: int, _: int) -> None:
        """Hear of an interrupt from libfuse, which holds a lock of the request."""
        slow = self._by_request.get(request)
        if slow is not None and slow.interrupted is None:
            slow.interrupted = trio.current_time()
            self._heard.set()

    def _notice(self) -> None:
        """Watch what has waited since the last tick, and forget what was answered."""
        assert self._watch is not None
        before, self._slow, self._by_request = self._slow, {}, {}
        for answer in self._answers.busy():
            slow = before.get(answer)
            if slow is None or slow.number != answer.number:
                slow = _Slow(answer.number, answer.request)
            elif answer.is_let_go:
                continue
            self._slow[answer] = slow
            self._by_request[slow.request] = slow
        for answer, slow in self._slow.items():
            if answer in before and not slow.is_watched and before[answer] is slow:
                slow.is_watched = True
                slow.thread = self.thread_of(slow.request)
                self._watch(slow.request, self._callback, None)

    async def _look(self, *, interrupted_only: bool) -> None:
        asked = {
            answer: slow
            for answer, slow in list(self._slow.items())
            if slow.interrupted is not None
            or (slow.is_watched and answer.call in _WITHOUT_A_WORD and not interrupted_only)
        }
        if not asked:
            return
        # A part at a time, and all in turn.
        waiting = sorted({slow.thread for slow in asked.values()})
        start = bisect_right(waiting, self._last) if len(waiting) > _LOOKED_AT else 0
        seen = (waiting[start:] + waiting[:start])[:_LOOKED_AT]
        self._last = seen[-1]
        said: dict[int, Told] = {}
        with trio.move_on_after(_LOOKS_S):
            said = await threads.at_processes(told, seen)
        now = trio.current_time()
        for answer, slow in asked.items():
            if answer.number != slow.number or not answer.call or answer.is_let_go:
                continue  # answered meanwhile
            what = said.get(slow.thread, Told.NOTHING)
            if what is Told.TO_STOP_LATER and answer.call == "flush":  # in no page fault
                what = Told.TO_END
            if _is_to_go(slow, what, now):
                log.debug("%s: whoever waits was told to end", answer.call)
                answer.let_go()


def _is_to_go(slow: _Slow, what: Told, now: float) -> bool:
    if what in (Told.TO_END, Told.GONE):
        return True
    if what is Told.TO_STOP_LATER and slow.told is None:
        slow.told = now
    since = slow.told if what is Told.TO_STOP_LATER else slow.interrupted
    return (
        what in (Told.TO_STOP_LATER, Told.UNKNOWN)
        and since is not None
        and now - since >= _PATIENCE_S
    )


def _arrived(answers: Answers, proceed: Callable[..., None], *arguments: int) -> None:
    """Note the request that a handler of pyfuse3 is about to get."""
    answers.arrived = arguments[0]
    proceed(*arguments)


def _read_arrived(answers: Answers, proceed: Callable[..., None], *arguments: int) -> None:
    """As ``_arrived``: request, inode, size, offset, and struct fuse_file_info, which has flags."""
    answers.file = arguments[1], ctypes.c_int32.from_address(arguments[4]).value
    _arrived(answers, proceed, *arguments)
