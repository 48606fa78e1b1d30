"""The memory for bytes on their way: one budget that all buffers of a mount share.

What counts is what is held: a segment by the size of its buffer, a spare buffer that waits for its
next segment, a piece of a written file that waits to be hashed. Nothing else of a mount grows with
the sizes of files.

The sum never passes the bound. Who gets nothing does without: a read-ahead is not made, a write is
hashed by its own thread, a READ waits until something is given back. So whoever holds memory must
give it back without waiting for anybody who wants some. What is held only because it may be useful
again (spare buffers, finished segments) is asked back by ``Budget.take``.

Lock order: ``Budget._lock`` is the innermost lock, and no callback is called under it.

Any thread.
"""

import threading
from collections.abc import Callable


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
        """As ``take``, and ask no keeper: for a keeper."""
        with self._lock:
            if self._held + size > self.bound:
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
