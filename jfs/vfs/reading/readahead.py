"""Decide what to fetch for a READ: the read-ahead planner. Pure: no I/O, no clock, no threads.

A planner belongs to one content, not to a handle: model loaders fork, share descriptors and open
one file several times, and the kernel's own read-ahead reaches us out of order anyway. It follows
a few *streams*, each a place where somebody reads forward:

- A READ that starts no stream fetches what it asked for and nothing more (random access, a header,
  the first page fault of a tensor).
- The READ after it is still only that: one request of a program reaches us in two pieces (an
  unaligned MiB touches 257 pages, a READ carries 256; a page fault reads around itself by more
  than one READ).
- The third shows a direction: the window opens at twice what has been read and doubles with every
  READ until the full window. A sequential reader is at full speed after five or six requests,
  while a header never pulls more than the kernel itself asked for.
- Strided access (the same tensor of every layer, say) never continues a stream, so each piece
  costs its own bytes and no more.
"""

from dataclasses import dataclass

from jfs.extents import Extent, MiB

# Kernel read-ahead keeps several requests of up to 1 MiB in flight and the event loop may see them
# in any order: this far behind or beyond the expected place still continues a stream.
_DISORDER = 2 * MiB
_READS_OF_A_RUN = 3
_STREAMS = 16  # parallel loaders of one file; more than that is random access


@dataclass(frozen=True, slots=True)
class ReadPlan:
    """What one READ asks of the data plane.

    Attributes:
        demand: the READ itself, clipped to the file and widened to blocks.
        ahead: bytes beyond, worth fetching now; may be empty.
    """

    demand: Extent
    ahead: Extent


@dataclass(slots=True)
class _Stream:
    start: int  # where it began
    position: int  # the furthest byte asked for
    ahead: int  # everything before it is asked for or planned
    window: int  # bytes to keep planned beyond position
    reads: int  # that moved position on
    used: int  # logical time of the last READ


class ReadaheadPlanner:
    """See the module. Trio thread only (it keeps no lock).

    Args:
        size: of the file, bytes.
        block_size: unit of fetching, bytes.
        window: largest read-ahead, bytes.
    """

    def __init__(self, size: int, block_size: int, window: int) -> None:
        self._size = size
        self._block_size = block_size
        self._window = window
        self._streams: list[_Stream] = []
        self._time = 0

    def observe(self, extent: Extent) -> ReadPlan:
        """Note a READ of *extent* and say what to fetch.

        Args:
            extent: not empty and within the file.
        """
        self._time += 1
        demand = extent.aligned(self._block_size, self._size)
        stream = self._find(extent)
        if stream is None:
            self._open(extent, demand)
            return ReadPlan(demand, Extent(demand.stop, demand.stop))
        stream.used = self._time
        if extent.stop <= stream.position:
            return ReadPlan(demand, Extent(demand.stop, demand.stop))
        stream.position = extent.stop
        stream.reads += 1
        if stream.reads < _READS_OF_A_RUN:
            stream.ahead = max(stream.ahead, demand.stop)
            return ReadPlan(demand, Extent(demand.stop, demand.stop))
        stream.window = min(self._window, max(stream.window * 2, 2 * extent.size))
        # Never more ahead than has been read in this stream, doubled: a short run costs little.
        reach = min(stream.window, 2 * (stream.position - stream.start))
        start = max(stream.ahead, demand.stop)
        stop = Extent(0, stream.position + reach).aligned(self._block_size, self._size).stop
        stop = min(stop, self._size)
        if stop - start < min(reach // 4, self._window // 8) and stop < self._size:
            # Ask again when a worthwhile piece is due, not block by block.
            return ReadPlan(demand, Extent(demand.stop, demand.stop))
        stream.ahead = max(start, stop)
        return ReadPlan(demand, Extent(start, max(start, stop)))

    def retract(self, ahead: Extent, reached: int) -> None:
        """Note that of a planned read-ahead only what is before *reached* is being fetched.

        There was no memory for more. The next READ of that stream plans the rest again; else every
        READ of it would find nothing under way and fetch for itself.
        """
        for stream in self._streams:
            if stream.ahead == ahead.stop:
                stream.ahead = max(reached, stream.position)

    def _find(self, extent: Extent) -> _Stream | None:
        best: _Stream | None = None
        for stream in self._streams:
            low = max(stream.start, stream.position - _DISORDER)
            # A pushed page hides the reader's progress, so the next READ we see may lie anywhere
            # in what was planned for it.
            high = max(stream.position, stream.ahead) + (_DISORDER if stream.window else 0)
            close = low <= extent.start <= high
            if close and (best is None or stream.position > best.position):
                best = stream
        return best

    def _open(self, extent: Extent, demand: Extent) -> None:
        if len(self._streams) >= _STREAMS:
            self._streams.remove(min(self._streams, key=lambda stream: stream.used))
        self._streams.append(
            _Stream(extent.start, extent.stop, demand.stop, window=0, reads=1, used=self._time)
        )
