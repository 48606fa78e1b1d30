"""The digest of a staged file, computed beside its writes, and the sums that a cache keeps of it.

Hashed is what the file holds, read back from the page cache: nothing waits in memory, whichever is
slower, and what is written a second time before its turn has come costs nothing. The last MiB waits
until the digest is wanted: programs put a header right there when they know the length, and a small
write wakes no thread.

Each piece is read once: the digest and the sums are of the same bytes. Any thread.
"""

import hashlib
import threading
from array import array
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass

from jfs import memory
from jfs.disk import fill
from jfs.extents import MiB

_PIECE = 1 * MiB  # stays in the processor's cache between the digest and the sums
_LAG = 1 * MiB
_of_thread = threading.local()


@dataclass(frozen=True, slots=True)
class Blocks:
    """How a cache sums its blocks.

    Attributes:
        size: of one, in bytes.
        checksum: returns the word of a block with this number. Any thread.
    """

    size: int
    checksum: Callable[[memoryview, int], int]


class RunningHash:
    """The sha256 of a prefix, which grows with the writes that continue it.

    Args:
        hashers: threads that hash beside the writes.
        blocks: None: nobody wants sums.
    """

    def __init__(self, hashers: Executor, file: int, blocks: Blocks | None) -> None:
        self._hashers = hashers
        self._file = file
        self._blocks = blocks
        self._changed = threading.Condition()
        self._busy = self._ended = False
        self._end = 0  # of what was written in order
        self._prefix = _Prefix(blocks)

    @property
    def is_busy(self) -> bool:
        """Whether a thread reads the file."""
        return self._busy

    def wrote(self, offset: int, size: int) -> None:
        """Take note of what the file holds by now. Does not wait."""
        self.rewind(offset)
        with self._changed:
            if offset <= self._end:
                self._end = max(self._end, offset + size)
            if self._busy or self._ended or self._end - self._prefix.taken < _PIECE + _LAG:
                return
            self._busy = True
        try:
            self._hashers.submit(self._work)
        except RuntimeError:  # the threads have ended: what is left is hashed for who wants it
            self._idle()

    def rewind(self, offset: int) -> None:
        """Bytes from *offset* on are others now, or will be."""
        with self._changed:
            if offset < self._prefix.taken:
                self._begin_anew()
            # What is not taken yet is read later.

    def cut(self, size: int) -> None:
        """The file ends at *size*, which may be beyond what was written."""
        self.rewind(size)
        with self._changed:
            self._end = min(self._end, size)

    def digest(self, size: int) -> str:
        """Finish over *size* bytes, which nobody writes to meanwhile; later writes may continue.

        Raises OSError.
        """
        with self._changed:
            self._changed.wait_for(lambda: not self._busy)
            self._busy = True
            prefix = self._prefix
        try:
            while prefix.end < size:
                prefix.taken = min(prefix.end + _PIECE, size)
                prefix.add(self._file)
            self._end = max(self._end, size)
            return prefix.sha256.hexdigest()
        except BaseException:
            self._failed(prefix)
            raise
        finally:
            self._idle()

    def sums(self, size: int, sha256: str) -> "array[int] | None":
        """Return the words of all blocks of *size* bytes with this digest; None: not known."""
        with self._changed:
            prefix = self._prefix
            if self._busy or prefix.end != size or prefix.sha256.hexdigest() != sha256:
                return None
            return prefix.words

    def end(self) -> None:
        """Return once no thread reads the file any more, nor will. Waits for one piece."""
        with self._changed:
            self._ended = True
            self._changed.wait_for(lambda: not self._busy)

    def _begin_anew(self) -> None:
        # In one go, once it is wanted: of a file whose header is written anew after every piece all
        # would be hashed again each time.
        self._prefix = _Prefix(self._blocks)
        self._end = 0

    def _failed(self, prefix: "_Prefix") -> None:
        with self._changed:
            if prefix is self._prefix:
                self._begin_anew()

    def _idle(self) -> None:
        with self._changed:
            self._busy = False
            self._changed.notify_all()

    def _work(self) -> None:
        while True:
            with self._changed:
                prefix = self._prefix
                end = prefix.taken + _PIECE
                if self._ended or self._end - end < _LAG:
                    self._busy = False
                    self._changed.notify_all()
                    return
                prefix.taken = end
            try:
                prefix.add(self._file)
            except Exception:  # who asks for the digest is told, if it is so then
                self._failed(prefix)


class _Prefix:
    """What is known of the first *end* bytes; soon, of the first *taken*. One thread at a time."""

    def __init__(self, blocks: Blocks | None) -> None:
        self.sha256 = hashlib.sha256()
        self.end = self.taken = 0
        self.words: array[int] | None = None if blocks is None else array("Q")
        self._blocks = blocks

    def add(self, file: int) -> None:
        """Take what is to be taken, a MiB at most. Raises OSError."""
        piece = _buffer()[: self.taken - self.end]
        if not fill(piece, file, self.end):
            raise OSError(f"a staged file ends before {self.taken}")
        self.sha256.update(piece)
        if self.words is not None and self._blocks is not None:
            size = self._blocks.size
            if self.end != len(self.words) * size or _PIECE % size:
                self.words = None  # a block that was whole goes on: whoever wants the sums looks
            else:
                for start in range(0, len(piece), size):
                    block = piece[start : start + size]
                    self.words.append(self._blocks.checksum(block, len(self.words)))
        self.end = self.taken


def _buffer() -> memoryview:
    """Return a piece of memory of this thread's."""
    try:
        found: memoryview = _of_thread.buffer
    except AttributeError:
        found = _of_thread.buffer = memoryview(memory.buffer(_PIECE))
    return found
