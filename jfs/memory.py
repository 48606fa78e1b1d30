"""The memory for bytes on their way: one budget that all buffers of a mount share.

What counts is what is held: a segment by the size of its buffer, a spare buffer that waits for its
next segment. Nothing else of a mount grows with the sizes of files.

The sum never passes the bound. Who gets nothing does without: a read-ahead is not made, a READ
waits until something is given back. So whoever holds memory must
give it back without waiting for anybody who wants some. What is held only because it may be useful
again (spare buffers, finished segments) is asked back by ``Budget.take``.

Lock order: ``Budget._lock`` is the innermost lock, and no callback is called under it.

What is known of names is no part of it: that grows with how much of the server somebody looks at,
and what is left of the limit may be less than the bound then.
``follow`` sets what the whole process may have; answers that would pass it are refused
(``require_room``), since a process that the kernel kills has taken the whole mount with it.

Any thread.
"""

import ctypes
import mmap
import os
import threading
from collections.abc import Callable
from pathlib import Path

from jfs.errors import NoMemory
from jfs.extents import KiB, MiB

_STATM = Path("/proc/self/statm")
_PAGE = os.sysconf("SC_PAGESIZE")
# Of the limit: the rest is for pages of cache files, and for what is received meanwhile.
_TIGHT, _FULL = 0.7, 0.85
_AT_LEAST = 4  # a budget can always have this part of its bound, four segments

# From this size on a buffer has pages of its own, which is what O_DIRECT wants: what is not aligned
# was written through the page cache, at ten times the CPU time.
LARGE = 256 * KiB

_limit: int | None = None


def follow(limit: int | None) -> None:
    """Set how many bytes this process may have in all; None: as many as there are."""
    global _limit
    _limit = limit


def resident() -> int:
    """Return how many bytes of memory this process has, without pages of files."""
    pages = _STATM.read_text(encoding="ascii").split()
    return (int(pages[1]) - int(pages[2])) * _PAGE


def is_tight() -> bool:
    """Whether most of the limit is used: what can be known again should be given back."""
    return _limit is not None and resident() > _TIGHT * _limit


def has_grown(since: int, share: float) -> bool:
    """Whether more than this share of the limit came since so many bytes, and it is tight."""
    return is_tight() and _limit is not None and resident() > since + share * _limit


def require_room(more: int, what: str) -> None:
    """Make sure that *more* bytes fit below the limit.

    Raises:
        NoMemory: they do not; *what* names who wants them.
    """
    if _limit is None or _fits(more):
        return
    trim()
    if not _fits(more):
        raise NoMemory(
            f"{what}: does not fit into the {_limit // MiB} MiB that this process may have: raise "
            "its memory limit, or look at a smaller part"
        )


def _fits(more: int) -> bool:
    return _limit is None or resident() + more <= _FULL * _limit


def trim() -> None:
    """Give memory back to the system that is free, and kept for the next who wants some.

    Blocking, for some ms: pieces of large answers leave holes that malloc keeps.
    """
    give_back = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc; musl has none
    if give_back is not None:
        give_back(0)


def buffer(size: int) -> mmap.mmap | bytearray:
    """Return fresh memory; see ``LARGE``. It counts in no budget by itself.

    Private: the pages of a shared mapping cost more to make, and to find when they are written.
    """
    if size < LARGE:
        return bytearray(size)
    return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


class Budget:
    """See the module.

    Args:
        bound: bytes.
    """

    def __init__(self, bound: int) -> None:
        self.bound = bound
        self._held = 0
        self._most = 0
        self._lock = threading.Lock()
        self._keepers: list[Callable[[int], None]] = []
        self._waiting: list[Callable[[], None]] = []

    @property
    def held(self) -> int:
        """Bytes that are held now."""
        return self._held

    @property
    def most(self) -> int:
        """The most bytes that ever were held."""
        return self._most

    def take(self, size: int) -> bool:
        """Hold *size* more bytes; False: they are not there, also after keepers were asked."""
        if self.try_take(size):
            return True
        for give_back in self._keepers:
            give_back(size)
            if self.try_take(size):
                return True
        return False

    def try_take(self, size: int) -> bool:
        """As ``take``, and ask no keeper: for a keeper.

        Where this process has little room left, since it knows many names, a part of the bound must
        do: that it is given back lets others go on.
        """
        wanted = self._held + size
        is_cramped = wanted > self.bound // _AT_LEAST and not _fits(size)
        with self._lock:
            bound = self.bound // _AT_LEAST if is_cramped and self._held else self.bound
            if self._held + size > bound:
                return False
            self._held += size
            self._most = max(self._most, self._held)
            return True

    def give(self, size: int) -> None:
        """Give back what was taken. Wakes who waits."""
        with self._lock:
            self._held -= size
            assert self._held >= 0
            waiting, self._waiting = self._waiting, []
        for wake in waiting:
            wake()

    def add_keeper(self, give_back: Callable[[int], None]) -> None:
        """Register who keeps memory for its own sake.

        Args:
            give_back: called from any thread when so many bytes are wanted; it gives back at once
                what it can, or soon what it cannot at once. Must not block.
        """
        self._keepers.append(give_back)

    def when_given(self, wake: Callable[[], None]) -> None:
        """Have *wake* called once, from any thread, when something is given back. Must not block.

        Ask for it before the ``take`` whose failure makes you wait: else what is given back between
        the two wakes nobody.
        """
        with self._lock:
            self._waiting.append(wake)
