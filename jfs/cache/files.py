"""The two files of an entry, opened; and who of all open contents has them open at the moment.

An open content keeps two descriptors, the map's and the data's. One that nobody has used since the
last round gives them back when there are too many, and opens them again when it is used: a thousand
models can be open where a process may have 1,024 descriptors. While they are closed the entry is
not locked, so eviction may take it; who reads it then finds blocks missing and fetches them.

Any thread.
"""

import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from jfs import descriptors
from jfs.cache.blockmap import BlockMap
from jfs.cache.filesystem import open_direct
from jfs.errors import is_not_supported
from jfs.extents import KiB, MiB

# O_DIRECT wants multiples of the device's block; small writes are as well off in the page cache.
_DIRECT_UNIT = 4096
_DIRECT_LEAST = 1 * MiB
# One write into the page cache. For more at a time the kernel takes memory in pieces so large that
# nobody has touched them, which in a virtual machine costs eight times the copy: 384 MiB took 1.0 s
# of CPU time in pieces of 4 MiB, and 0.13 s so.
_BUFFERED = 256 * KiB
# Of the descriptors that this process may have, the cache takes half: the rest is for connections,
# staged files and the claims of fetches under way.
_SHARE = 2
_EACH = 2


@dataclass(frozen=True, slots=True)
class EntryFiles:
    """The files of an entry; whoever has them open holds the lock of the map shared."""

    map_path: Path
    data_path: Path
    blocks: BlockMap
    data: int

    def write(self, position: int, data: memoryview, *, direct: bool) -> None:
        """Write all of *data*, past the page cache if *direct* and where alignment allows.

        The kernel keeps these bytes in the pages of the mount anyway: a second copy would cost
        their memory, and most of the CPU time of the write. Raises OSError.
        """
        size = len(data) - len(data) % _DIRECT_UNIT
        if direct and size >= _DIRECT_LEAST and position % _DIRECT_UNIT == 0:
            written = self._write_direct(position, data[:size])
            position += written
            data = data[written:]
        while data:
            written = os.pwrite(self.data, data[:_BUFFERED], position)
            position += written
            data = data[written:]

    def _write_direct(self, position: int, data: memoryview) -> int:
        """Write what the disk takes directly; return how much that is, 0 if it cannot."""
        try:
            # Opened for each write: 4 µs beside a millisecond, and no descriptor in between.
            file = open_direct(self.data)
        except OSError:
            return 0
        try:
            return os.pwrite(file, data, position)
        except OSError as error:
            if not is_not_supported(error):
                raise
            return 0  # memory that is not aligned, or a file system with other rules
        finally:
            os.close(file)

    def close(self) -> None:
        os.close(self.data)
        self.blocks.close()


class Holder(Protocol):
    """A content that may have its files open."""

    recent: bool
    """Used since it was last looked at; the holder sets it, ``OpenFiles`` takes it back."""
    map_path: Path
    closed: bool
    """It will never open its files again."""

    def close_idle_files(self) -> bool:
        """Close the files unless somebody uses them. Returns whether they are closed now."""


class OpenFiles:
    """The contents of one store that have their files open, in the order they opened them."""

    def __init__(self) -> None:
        self._holders: dict[Holder, None] = {}
        self._lock = threading.Lock()

    def add(self, holder: Holder) -> None:
        """Note that *holder* has opened its files; close others' if they are too many by now."""
        with self._lock:
            self._holders[holder] = None
            excess = len(self._holders) - descriptors.limit() // (_SHARE * _EACH)
        if excess > 0:
            self.close_idle(excess)

    def remove(self, holder: Holder) -> None:
        with self._lock:
            self._holders.pop(holder, None)

    def paths(self) -> set[Path]:
        """Return the paths of their maps."""
        with self._lock:
            return {holder.map_path for holder in self._holders}

    def close_half(self) -> int:
        """Close the files of half of them; return of how many."""
        with self._lock:
            wanted = -(-len(self._holders) // 2)
        return self.close_idle(wanted)

    def close_idle(self, wanted: int) -> int:
        """Close the files of *wanted* contents that nobody uses at the moment; return of how many.

        Those that were used since the last round come last.
        """
        closed = 0
        with self._lock:
            looks = 2 * len(self._holders)
        while closed < wanted and looks > 0:
            looks -= 1
            with self._lock:
                holder = next(iter(self._holders), None)
                if holder is None:
                    break
                del self._holders[holder]
                if holder.recent:
                    holder.recent = False
                    self._holders[holder] = None
                    continue
            if holder.close_idle_files():
                closed += 1
                continue
            with self._lock:
                self._holders[holder] = None
            if holder.closed:
                self.remove(holder)
        return closed
