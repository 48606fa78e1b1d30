"""Segments: bytes of a file on their way from the server or the disk to whoever wants them.

A segment is one contiguous piece, fetched by one worker thread into one buffer. READs are answered
from the buffer as soon as their bytes have arrived, before the rest of the segment has.

Concurrency: a segment is made, waited for, and freed on the trio thread. The one worker
thread that fills it only writes into ``view`` and calls ``progress``. The views handed out stay
right until the next checkpoint of the trio thread, because buffers are reused on that thread only.
"""

import contextlib
import mmap
import time
from array import array
from bisect import bisect_right, insort
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Iterator

import trio

from jfs import memory
from jfs.extents import Extent
from jfs.memory import LARGE, Budget
from jfs.native import receiving
from jfs.native.receiving import Run
from jfs.native.replies import Piece


class Segment:
    """One piece of a file; see the module.

    Attributes:
        arrival: of what comes in the middle of a call of the native part; None: there is none.
        done: nothing more will arrive: ``filled`` is the end, or ``error`` says why not.
        group: see ``SegmentPool.allocate``.
        users: who waits for it, fills it or takes from it; its buffer is not reused meanwhile.
        is_read: its last byte was answered.
        piece: as what the native part answers from it; None: it does not.
    """

    __slots__ = (
        "_filled",
        "_need",
        "_parked",
        "_shown",
        "_token",
        "arrival",
        "buffer",
        "done",
        "error",
        "extent",
        "group",
        "is_read",
        "piece",
        "users",
        "view",
    )

    def __init__(self, extent: Extent, buffer: mmap.mmap | bytearray, group: str) -> None:
        self.extent = extent
        self.group = group
        self.buffer = buffer
        self.view = memoryview(buffer)[: extent.size]
        self._filled = extent.start
        self.arrival = receiving.arrival(extent.start)
        self.error: BaseException | None = None
        self.done = False
        self.users = 0
        self.is_read = False
        self.piece: Piece | None = None
        self._shown: Callable[[Segment], Piece] | None = None
        self._need = 0  # the least `filled` that somebody waits for; 0: nobody does
        self._parked = trio.lowlevel.ParkingLot()
        self._token = trio.lowlevel.current_trio_token()

    @property
    def filled(self) -> int:
        """Every byte of the file before it, back to ``extent.start``, is in ``view``."""
        if self.done or self.arrival is None:
            return self._filled
        return max(self._filled, self.arrival.filled)

    def slice(self, extent: Extent) -> memoryview:
        """Return the bytes of *extent*, which must have arrived."""
        start = self.extent.start
        return self.view[extent.start - start : extent.stop - start]

    def taken(self, extent: Extent) -> memoryview:
        """As ``slice``, for a READ."""
        self.is_read |= extent.stop == self.extent.stop
        return self.slice(extent)

    def shown_by(self, shown: "Callable[[Segment], Piece]") -> None:
        """Have it answered from by what *shown* makes of it, while it has its buffer."""
        self._shown = shown
        self._show(shown)

    def _show(self, shown: "Callable[[Segment], Piece]") -> None:
        self.piece = shown(self)
        if self.arrival is not None:
            self.arrival.tell(self.piece.pointer)

    def hide(self) -> None:
        """Return when nobody but the trio thread answers from it any more."""
        piece, self.piece = self.piece, None
        if piece is not None:
            if self.arrival is not None:
                self.arrival.tell(0)
            piece.end()

    def replace_buffer(self) -> None:
        """Go on in another buffer: a thread that nobody waits for may still write to this one.

        Trio thread, while no other thread fills it.
        """
        fresh = memory.buffer(len(self.buffer))
        view = memoryview(fresh)[: self.extent.size]
        arrived = self.filled - self.extent.start
        view[:arrived] = self.view[:arrived]
        self.hide()
        self.buffer, self.view = fresh, view
        if self._shown is not None:
            self._show(self._shown)

    def progress(self, filled: int) -> None:
        """Say from the filling thread that everything before *filled* has arrived."""
        self._filled = filled
        piece = self.piece
        if piece is not None:
            piece.filled(filled)
        # The waiter writes _need and then reads filled; we write filled and then read _need: with
        # the interpreter's lock one of the two sees the other.
        if 0 < self._need <= filled:
            self._token.run_sync_soon(self._wake, idempotent=True)

    def finish(self, error: BaseException | None = None) -> None:
        """End the filling; trio thread. Waiters get the bytes there are, or *error*."""
        self.error = error
        self.done = True
        if error is not None and self.piece is not None:
            self.piece.failed()
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
            if self.arrival is not None:
                self.arrival.want(self._need)
            if self.filled < until:
                await self._parked.park()

    def _wake(self) -> None:
        self._need = 0
        self._parked.unpark_all()


class SegmentSink:
    """Receive one run into its place in the segment. The filling thread only.

    Args:
        block_size: of the blocks that are to be summed as they come; 0: none are.
    Attributes:
        began: when its first byte came, of the monotonic clock; 0: not yet.
        run: see ``Sink``.
    """

    __slots__ = ("_piece", "_position", "_segment", "_stop", "began", "run")

    def __init__(self, segment: Segment, run: Extent, block_size: int = 0) -> None:
        self.began = 0.0
        self.run: Run | None = None
        if run.size >= LARGE and segment.arrival is not None:
            view = segment.slice(run)
            self.run = receiving.run(view, run.start, block_size, segment.arrival)
        self._piece = segment.piece  # the call that fills may use it, whatever becomes of us
        self._segment = segment
        self._position = run.start
        self._stop = run.stop

    def buffer(self) -> memoryview:
        return self._segment.slice(Extent(self._position, self._stop))

    def advance(self, count: int) -> None:
        self.began = self.began or time.monotonic()
        self._position += count
        self._segment.progress(self._position)

    def sums(self) -> "array[int] | None":
        """Return the checksums of its blocks; None: they were not made."""
        return self.run.sums() if self.run is not None else None


class HeldSink(SegmentSink):
    """As its base, but nobody gets a byte: who fills it says when they are right."""

    __slots__ = ()

    def __init__(self, segment: Segment, run: Extent) -> None:
        super().__init__(segment, run)
        self.run = None  # it would be told of as it comes

    def advance(self, count: int) -> None:
        self._position += count


class Placed:
    """The segments of one content by their place; they never overlap. Trio thread only."""

    def __init__(self) -> None:
        self._segments: dict[int, Segment] = {}  # by start
        self._starts: list[int] = []

    def __iter__(self) -> Iterator[Segment]:
        return iter(self._segments.values())

    def __contains__(self, segment: Segment) -> bool:
        return self._segments.get(segment.extent.start) is segment

    def add(self, segment: Segment) -> None:
        """Take a segment in, where no other is."""
        self._segments[segment.extent.start] = segment
        insort(self._starts, segment.extent.start)

    def remove(self, segment: Segment) -> bool:
        """Take a segment out; False: it is not here."""
        if segment not in self:
            return False
        del self._segments[segment.extent.start]
        self._starts.remove(segment.extent.start)
        return True

    def at(self, position: int) -> Segment | None:
        """Return the segment that holds byte *position*."""
        at = bisect_right(self._starts, position) - 1
        if at < 0:
            return None
        segment = self._segments[self._starts[at]]
        return segment if position < segment.extent.stop else None

    def covering(self, extent: Extent) -> Segment | None:
        """Return the segment that holds all of *extent*."""
        segment = self.at(extent.start)
        return segment if segment is not None and segment.extent.contains(extent) else None

    def ending_in(self, extent: Extent) -> list[Segment]:
        """Return those whose last byte is in *extent*."""
        found = []
        position = extent.start
        while position < extent.stop and (segment := self.at(position)) is not None:
            position = segment.extent.stop
            if position <= extent.stop:
                found.append(segment)
        return found

    def gaps(self, extent: Extent) -> list[Extent]:
        """Return the runs of *extent* that no segment covers."""
        gaps = []
        position = extent.start
        while position < extent.stop:
            segment = self.at(position)
            if segment is not None:
                position = segment.extent.stop
                continue
            at = bisect_right(self._starts, position)
            stop = min(extent.stop, self._starts[at]) if at < len(self._starts) else extent.stop
            gaps.append(Extent(position, stop))
            position = stop
        return gaps


class SegmentPool:
    """The segments of one mount, within the budget that they share with everything else.

    A finished segment stays for READs to come until its memory is wanted, and its buffer stays for
    the next segment: the first touch of fresh memory costs several times its copy. So a segment
    that was read and is on disk gives its buffer before fresh memory is taken. Large buffers are of
    few sizes, each half of the next: the pieces that a window grows by find some, too. Trio thread
    only, except ``_give_back_soon``.

    Args:
        budget: counts every buffer, in use or spare.
        segment_size: bytes of the largest buffers.
        several: whether there may be several groups (see ``allocate``).
    """

    def __init__(self, budget: Budget, segment_size: int, *, several: bool) -> None:
        self._budget = budget
        self._share = budget.bound * 3 // 4 if several else budget.bound
        self._segment_size = segment_size
        self._spare: list[mmap.mmap] = []
        self._read: defaultdict[int, dict[Segment, SegmentOwner]] = defaultdict(dict)  # by size
        self._held_by: Counter[str] = Counter()
        self._idle: OrderedDict[Segment, SegmentOwner] = OrderedDict()
        self._token = trio.lowlevel.current_trio_token()
        self._given: trio.Event | None = None
        self._listening = False
        budget.add_keeper(self._give_back_soon)

    def allocate(self, extent: Extent, group: str) -> Segment | None:
        """Make an empty segment; None: there is no memory.

        Args:
            group: what hangs together, a repository. One of several gets three quarters of the
                budget at most: while it hangs, the others can go on.
        """
        size = self._size_of(extent.size)
        while self._held_by[group] + size > self._share:
            if not self._discard_idle(group):
                return None
        buffer: mmap.mmap | bytearray | None = None
        if size >= LARGE:
            buffer = self._spare_buffer(size)
            if buffer is None and self._discard_read(size):
                buffer = self._spare_buffer(size)
        if buffer is None:
            while not self._budget.try_take(size):
                if not self._drop_spare() and not self._discard_idle():
                    return None
            buffer = memory.buffer(size)
        self._held_by[group] += size
        return Segment(extent, buffer, group)

    def keep(self, segment: Segment, owner: "SegmentOwner") -> None:
        """Hold a finished segment for READs to come, until its memory is wanted."""
        self._idle[segment] = owner

    def _size_of(self, wanted: int) -> int:
        size = self._segment_size
        while size // 2 >= max(wanted, LARGE):
            size //= 2
        return size if LARGE <= wanted <= size else wanted

    def free(self, segment: Segment) -> None:
        """Take the memory of a segment that its owner has discarded."""
        self._idle.pop(segment, None)
        segment.hide()
        buffer = segment.buffer
        if segment.is_read:
            self._read[len(buffer)].pop(segment, None)
        segment.view.release()
        self._held_by[segment.group] -= len(buffer)
        if not self._held_by[segment.group]:
            del self._held_by[segment.group]
        if isinstance(buffer, mmap.mmap):
            self._spare.append(buffer)
        else:
            self._budget.give(len(buffer))
        self._wake()

    def unused(self, segment: Segment, *, is_kept: bool) -> None:
        """Note that a segment has no more users: its memory can be had.

        Args:
            is_kept: its bytes are on disk, or about to be.
        """
        if is_kept and segment.is_read and segment in self._idle:
            self._read[len(segment.buffer)][segment] = self._idle[segment]
        self._wake()

    def given(self) -> trio.Event:
        """Return what is set when memory can be had again. Ask before ``allocate`` fails."""
        if self._given is None:
            self._given = trio.Event()
        if not self._listening:
            self._listening = True
            self._budget.when_given(self._wake_soon)
        return self._given

    def _wake(self) -> None:
        given, self._given = self._given, None
        if given is not None:
            given.set()

    def _wake_soon(self) -> None:
        self._listening = False
        with contextlib.suppress(trio.RunFinishedError):
            self._token.run_sync_soon(self._wake, idempotent=True)

    def _spare_buffer(self, size: int = 0) -> mmap.mmap | None:
        """Take a spare buffer of *size*, the one that was used last; 0: of any size."""
        with contextlib.suppress(IndexError, ValueError):  # another thread may take it back
            if not size:
                return self._spare.pop()
            for buffer in reversed(self._spare):
                if len(buffer) == size:
                    self._spare.remove(buffer)
                    return buffer
        return None

    def _drop_spare(self) -> int:
        """Give a spare buffer back; return its size, 0: there is none."""
        buffer = self._spare_buffer()
        if buffer is None:
            return 0
        # Not closed: a view of it may be on its way to the kernel, and keeps it until then.
        self._budget.give(len(buffer))
        return len(buffer)

    def _discard_read(self, size: int) -> bool:
        """Discard a segment of *size* that was read; False: there is none."""
        for segment, owner in self._read[size].items():
            if segment.users == 0:
                owner.discard(segment)
                return True
        return False

    def _discard_idle(self, group: str | None = None) -> bool:
        """Discard the finished segment that was added first; False: there is none."""
        for segment, owner in self._idle.items():
            if segment.users == 0 and group in (None, segment.group):
                owner.discard(segment)
                return True
        return False

    def _give_back_soon(self, size: int) -> None:
        """Others want memory: spare buffers at once, finished segments soon. Any thread."""
        freed = 0
        while freed < size and (dropped := self._drop_spare()):
            freed += dropped
        if freed < size and self._idle:
            with contextlib.suppress(trio.RunFinishedError):
                self._token.run_sync_soon(self._make_room, idempotent=True)

    def _make_room(self) -> None:
        """Discard finished segments until there is room for one more."""
        while self._budget.bound - self._budget.held < self._segment_size:
            if not self._drop_spare() and not self._discard_idle():
                return


class SegmentOwner:
    """Who keeps segments, and discards them when the pool wants their memory."""

    def discard(self, segment: Segment) -> None:
        """Forget a finished segment that no thread uses, and ``free`` it."""
        raise NotImplementedError
