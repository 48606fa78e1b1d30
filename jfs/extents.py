"""Byte ranges: half-open extents, sets of them, and block arithmetic. Pure; any thread."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

KiB = 1024
MiB = 1024 * KiB
GiB = 1024 * MiB
TiB = 1024 * GiB
PiB = 1024 * TiB


class Extent(NamedTuple):
    """Bytes ``[start, stop)``; ``0 <= start <= stop``. A tuple, because one is made per READ."""

    start: int
    stop: int

    @property
    def size(self) -> int:
        return self.stop - self.start

    def __bool__(self) -> bool:
        return self.stop > self.start

    def overlaps(self, other: "Extent") -> bool:
        return max(self.start, other.start) < min(self.stop, other.stop)

    def contains(self, other: "Extent") -> bool:
        """Whether *other* lies inside; an empty extent lies inside everything."""
        return not other or (self.start <= other.start and other.stop <= self.stop)

    def intersection(self, other: "Extent") -> "Extent":
        start = max(self.start, other.start)
        return Extent(start, max(start, min(self.stop, other.stop)))

    def clipped(self, size: int) -> "Extent":
        """Cut to a file of *size* bytes."""
        start = min(self.start, size)
        return Extent(start, max(start, min(self.stop, size)))

    def aligned(self, block_size: int, size: int) -> "Extent":
        """Widen to whole blocks of a file of *size* bytes (the last block may be short)."""
        if not self:
            return self
        start = self.start - self.start % block_size
        return Extent(start, min(-(-self.stop // block_size) * block_size, max(size, self.stop)))

    def pieces(self, piece_size: int) -> Iterator["Extent"]:
        """Cut at multiples of *piece_size*, in order."""
        start = self.start
        while start < self.stop:
            stop = min(self.stop, start - start % piece_size + piece_size)
            yield Extent(start, stop)
            start = stop


@dataclass(slots=True)
class ExtentSet:
    """A set of bytes, kept as sorted extents that neither touch nor overlap."""

    _starts: list[int]
    _stops: list[int]

    def __init__(self, extents: Iterable[Extent] = ()) -> None:
        self._starts = []
        self._stops = []
        for extent in extents:
            self.add(extent)

    def __iter__(self) -> Iterator[Extent]:
        return map(Extent, self._starts, self._stops)

    def __len__(self) -> int:
        return len(self._starts)

    def __bool__(self) -> bool:
        return bool(self._starts)

    def __repr__(self) -> str:
        return f"ExtentSet({list(self)!r})"

    @property
    def size(self) -> int:
        """Bytes in the set."""
        return sum(self._stops) - sum(self._starts)

    def add(self, extent: Extent) -> None:
        if not extent:
            return
        # Everything that touches [start, stop] becomes one extent.
        first = bisect_left(self._stops, extent.start)
        last = bisect_right(self._starts, extent.stop)
        start, stop = extent
        if first < last:
            start = min(start, self._starts[first])
            stop = max(stop, self._stops[last - 1])
        self._starts[first:last] = [start]
        self._stops[first:last] = [stop]

    def remove(self, extent: Extent) -> None:
        if not extent:
            return
        first = bisect_right(self._stops, extent.start)
        last = bisect_left(self._starts, extent.stop)
        if first >= last:
            return
        starts: list[int] = []
        stops: list[int] = []
        if self._starts[first] < extent.start:
            starts.append(self._starts[first])
            stops.append(extent.start)
        if self._stops[last - 1] > extent.stop:
            starts.append(extent.stop)
            stops.append(self._stops[last - 1])
        self._starts[first:last] = starts
        self._stops[first:last] = stops

    def contains(self, extent: Extent) -> bool:
        """Whether every byte of *extent* is in the set."""
        if not extent:
            return True
        at = bisect_right(self._starts, extent.start) - 1
        return at >= 0 and self._stops[at] >= extent.stop

    def missing(self, extent: Extent) -> list[Extent]:
        """Return the runs of *extent* that are not in the set, in order."""
        gaps: list[Extent] = []
        position = extent.start
        at = bisect_right(self._stops, extent.start)
        while position < extent.stop and at < len(self._starts):
            if self._starts[at] >= extent.stop:
                break
            if self._starts[at] > position:
                gaps.append(Extent(position, self._starts[at]))
            position = max(position, self._stops[at])
            at += 1
        if position < extent.stop:
            gaps.append(Extent(position, extent.stop))
        return gaps
