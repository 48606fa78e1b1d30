"""Segments: bytes of a file on their way from the server or the disk to whoever wants them.

A segment is one contiguous piece, fetched by one worker thread into one buffer. READs are answered
from the buffer as soon as their bytes have arrived, before the rest of the segment has.

Concurrency: a segment is made, waited for, and given back on the trio thread. The one worker
thread that fills it only writes into ``view`` and calls ``progress``. The views handed out stay
right until the next checkpoint of the trio thread, because buffers are reused on that thread only.
"""

import mmap
from collections import OrderedDict

import trio

from jfs.extents import Extent


class Segment:
    """One piece of a file; see the module.

    Attributes:
        filled: every byte of the file before it, back to ``extent.start``, is in ``view``.
        done: nothing more will arrive: ``filled`` is the end, or ``error`` says why not.
        users: READs that wait for it; its buffer is not reused before they are answered.
    """

    __slots__ = (
        "_need",
        "_parked",
        "_token",
        "buffer",
        "done",
        "error",
        "extent",
        "filled",
        "users",
        "view",
    )

    def __init__(self, extent: Extent, buffer: mmap.mmap | bytearray) -> None:
        self.extent = extent
        self.buffer = buffer
        self.view = memoryview(buffer)[: extent.size]
        self.filled = extent.start
        self.error: BaseException | None = None
        self.done = False
        self.users = 0
        self._need = 0  # the least `filled` that somebody waits for; 0: nobody does
        self._parked = trio.lowlevel.ParkingLot()
        self._token = trio.lowlevel.current_trio_token()

    def slice(self, extent: Extent) -> memoryview:
        """Give the bytes of *extent*, which must have arrived."""
        start = self.extent.start
        return self.view[extent.start - start : extent.stop - start]

    def progress(self, filled: int) -> None:
        """Say from the filling thread that everything before *filled* has arrived."""
        self.filled = filled
        # The waiter writes _need and then reads filled; we write filled and then read _need: with
        # the interpreter's lock one of the two sees the other.
        if 0 < self._need <= filled:
            self._token.run_sync_soon(self._wake, idempotent=True)

    def finish(self, error: BaseException | None = None) -> None:
        """End the filling; trio thread. Waiters get the bytes there are, or *error*."""
        self.error = error
        self.done = True
        self._wake()

    async def wait(self, until: int) -> None:
        """Return when every byte before *until* has arrived.

        Raises:
            BaseException: what ended the filling too early.
        """
        while self.filled < until:
            if self.done:
                assert self.error is not None
                raise self.error
            self._need = min(self._need or until, until)
            if self.filled < until:
                await self._parked.park()

    def _wake(self) -> None:
        self._need = 0
        self._parked.unpark_all()


class SegmentPool:
    """Bounded memory for segments, the least recently added finished ones given up first.

    Trio thread only. Demand always gets memory (a READ must be answered; the kernel bounds how
    many there are), read-ahead only what is left of the budget.

    Args:
        budget: bytes.
        segment_size: size of the buffers that are kept for reuse; touching fresh memory costs
            several times its copy, so they are never given back to the system while in use.
    """

    def __init__(self, budget: int, segment_size: int) -> None:
        self._budget = budget
        self._segment_size = segment_size
        self._spare: list[mmap.mmap] = []
        self._in_use = 0
        self._idle: OrderedDict[Segment, SegmentOwner] = OrderedDict()

    @property
    def in_use(self) -> int:
        """Bytes held by segments, finished or not."""
        return self._in_use

    def allocate(self, extent: Extent, *, demand: bool) -> Segment | None:
        """Make an empty segment; None when *demand* is false and the budget is spent."""
        self._make_room(extent.size)
        if not demand and self._in_use + extent.size > self._budget:
            return None
        self._in_use += extent.size
        if extent.size * 2 <= self._segment_size or extent.size > self._segment_size:
            return Segment(extent, bytearray(extent.size))
        if self._spare:
            return Segment(extent, self._spare.pop())
        return Segment(extent, mmap.mmap(-1, self._segment_size))

    def keep(self, segment: Segment, owner: "SegmentOwner") -> None:
        """Hold a finished segment for READs to come, until its memory is wanted."""
        self._idle[segment] = owner

    def free(self, segment: Segment) -> None:
        """Take the memory of a segment that its owner has let go of."""
        self._idle.pop(segment, None)
        self._in_use -= segment.extent.size
        buffer = segment.buffer
        segment.view.release()
        if isinstance(buffer, mmap.mmap) and len(self._spare) * len(buffer) < self._budget:
            self._spare.append(buffer)

    def _make_room(self, size: int) -> None:
        while self._in_use + size > self._budget:
            victim = next((segment for segment in self._idle if segment.users == 0), None)
            if victim is None:
                return
            self._idle[victim].discard(victim)


class SegmentOwner:
    """Who keeps segments and lets the pool take them back."""

    def discard(self, segment: Segment) -> None:
        """Let go of a finished segment that no thread uses, and ``free`` it."""
        raise NotImplementedError
