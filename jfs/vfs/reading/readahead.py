"""Decide what to fetch for a READ: the read-ahead planner. Pure: no I/O, no clock, no threads.

A planner belongs to one content, not to a handle: model loaders fork, share descriptors and open
one file several times. It follows a few *runs*, each a place where somebody reads forward. Nobody
says how far a run will go, and what was fetched beyond its end was fetched for nothing:

- The first READ of a run fetches what it asked for (random access, a header, a page fault), and so
  does the second: one request of a program reaches us in two pieces.
- Then a sixteenth of what the run has read goes ahead of it: a piece of 4, 16 or 64 MiB costs 6 %
  more than itself, and the next request is on its way while the last is copied. After 64 MiB it is
  a stream, and the window opens. A far server needs more ahead: a quarter, and no run costs more.
  Who reads on from the start of a file, beyond its header, mostly reads all of it: a quarter, too.
- What is known shortens this. Two runs of one length (rows, chunks, slices of tensors): the next
  one is fetched to that length at once, and no further. Two tensors of which the same share was
  read (a quarter each, or all of it): the same of the next one. The last file of this folder was
  read whole: the window opens at the third READ.
- What a call of the program asks for is known where it can be seen (``jfs.mount.faults``): that is
  fetched at once, and no more. Pages that a mapping asks for one by one bring half as much again as
  was read, since each request takes longer than what it brings.
- A run does not go on into the next tensor, until its reader does. A page in which one ends and the
  next begins is of the one that is read. (32 tensors of 16 MiB, mapped, in any order, where each
  ended as another share: 5.0 CPU-s per GiB for 2.4, and 2530 READs of a single page for 290.)
- A run over bytes that are all here already fetches nothing: it has been here before.
- A run with holes in it (every other row) is no run.
"""

from collections.abc import Callable
from dataclasses import dataclass
from mmap import PAGESIZE

from jfs.extents import Extent, KiB, MiB
from jfs.formats import Layout, Part
from jfs.vfs.reading.ended import DISORDER, Known

# READs that are answered beside us (``beside``) are known before one that came first and waits for
# us: as many as the kernel has asked for ahead. It began a run of its own else, which told wrong
# lengths: of every second tensor 1.6 times what was read was fetched.
_OVERTAKEN = 4 * DISORDER
_READS_OF_A_RUN = 3
_RUNS = 16  # parallel loaders of one file; more than that is random access
_FRACTION = 16
_STREAM = 64 * MiB
_FROM_START = 8 * MiB
# What the kernel may ask for beyond what a program has asked for, once it reads ahead itself.
_MORE = 2 * MiB
_FEW = 64 * KiB  # of what was told
# Of smaller models the 2 MiB around a page of the header are worth their round trip.
_MODEL = 64 * MiB
_LARGE = 8  # a tensor, beside the READ for a page fault
# What is asked for at once where the kernel holds empty pages (jfs.mount.faults): it does not read
# around a page for half a MiB or less, but single pages (congestion threshold 0, jfs.fusectl).
_LEAST_AT_ONCE = 512 * KiB


@dataclass(frozen=True, slots=True)
class ReadPlan:
    """What one READ asks of the data plane.

    Attributes:
        demand: the READ itself, clipped to the file and widened to blocks.
        ahead: bytes beyond, worth fetching now; may be empty.
        warm: of *ahead* only what is on disk is worth it.
    """

    demand: Extent
    ahead: Extent
    warm: bool = False

    def joined(self, most: int) -> Extent:
        """Return what one request brings: the demand, and up to *most* bytes ahead of it."""
        if self.warm or self.ahead.start != self.demand.stop or self.ahead.size > most:
            return self.demand
        return Extent(self.demand.start, self.ahead.stop)


@dataclass(slots=True)
class _Run:
    start: int  # where it began
    position: int  # the furthest byte asked for
    ahead: int  # everything before it is asked for or planned
    expected: int  # where it ends if it is as long as those before it; 0: nobody knows
    warm: bool  # nothing was fetched for it
    used: int  # logical time of the last READ
    told: int = 0  # up to where its reader has said that he reads
    calls: int = 0  # that have said so: who calls again and again reads on
    is_looked_at: bool = False  # by who may know that
    reads: int = 1  # that moved position on
    size: int = 0  # bytes asked for
    learnt: int = 0  # its position when something was learnt of it last


class ReadaheadPlanner:
    """See the module. Trio thread only (it keeps no lock).

    Args:
        size: of the file, bytes.
        block_size: unit of fetching, bytes.
        window: largest read-ahead, bytes.
        piece: largest request, of a stream: they are cut at its multiples.
        doubled: whether those of a stream, once its window is open, may be twice as large.
        whole: whether files such as this one were read whole.
        cached: whether bytes may be on disk; ``fetched`` tells which were not.
        head: whether its beginning tells where its parts are, and is read by itself.
        is_far: whether the first byte of a request takes long.

    Attributes:
        layout: where the parts of the file are, once that is known.
        piece: the largest request for what was planned last.
    """

    def __init__(
        self,
        size: int,
        block_size: int,
        window: int,
        *,
        piece: int = 4 * MiB,
        whole: bool = False,
        cached: bool = False,
        head: bool = False,
        is_far: Callable[[], bool] = lambda: False,
        doubled: Callable[[], bool] = lambda: False,
    ) -> None:
        self._size = size
        self._block_size = block_size
        self._window = window
        self._least_piece = self.piece = piece
        self._whole = whole
        self._cached = cached
        self._head = head and size >= _MODEL
        self._is_far = is_far
        self._doubled = doubled
        self._runs: list[_Run] = []
        self._latest: _Run | None = None
        self._known = Known()
        self._time = 0
        self.layout: Layout | None = None

    def observe(self, extent: Extent, told: int = 0, *, is_spare: bool = False) -> ReadPlan:
        """Note a READ of *extent* and say what to fetch.

        Args:
            extent: not empty and within the file.
            told: up to where will be read from here on, if it is known.
            is_spare: see the method. Where a run goes on so, nobody is known to want it, and
                nothing goes ahead of it.
        """
        self._time += 1
        demand = extent.aligned(self._block_size, self._size)
        nothing = ReadPlan(demand, Extent(demand.stop, demand.stop))
        run = self._find(extent)
        if run is None:
            run, is_spare = self._begin(extent, demand), False
        else:
            run.used = self._time
            run.size += extent.size
            self._latest = run
            if extent.stop <= run.position:
                return nothing
            run.position = extent.stop
            run.reads += 1
        if 0 < run.told <= extent.start and extent.size <= PAGESIZE:
            # Refused to the call before this one, wanted now: else page by page to its end.
            run.told = 0
            run.is_looked_at = False
        run.calls += told > run.told
        run.told = max(run.told, min(told, self._size))
        run.is_looked_at |= extent.size >= MiB
        stop = Extent(0, self._reach(run, extent)).aligned(self._block_size, self._size).stop
        stop = min(stop, self._size)
        if is_spare and not told:
            stop = min(stop, demand.stop)
        wanted = stop - run.position
        # Each costs 2 ms, 64 of them a tenth of the time of a GiB; a far server needs several.
        is_open = run.size > 2 * _STREAM and not self._is_far() and self._doubled()
        self.piece = 2 * self._least_piece if is_open else self._least_piece
        if wanted >= 2 * self.piece and stop < self._size:
            stop -= stop % self.piece  # else it is two requests, for ever
        start = max(run.ahead, demand.stop)
        run.ahead = start
        if stop - start < min(wanted // 2, self._window // 8) and stop < self._size:
            # Ask again when a worthwhile piece is due, not block by block.
            return nothing
        run.ahead = max(start, stop)
        return ReadPlan(demand, Extent(start, max(start, stop)), run.warm)

    def nothing(self, extent: Extent) -> ReadPlan:
        """Return the plan of a READ that was observed before."""
        demand = extent.aligned(self._block_size, self._size)
        return ReadPlan(demand, Extent(demand.stop, demand.stop))

    def quiet(self) -> Extent:
        """Return of which bytes READs change no plan, as the last READ left it.

        An eighth of the window at most: who reads is to be known.
        """
        run = self._latest
        if run is None:
            return Extent(0, 0)
        eighth = self._window // 8
        stop = self._size
        if run.ahead < self._size:
            # Nothing is planned before a READ has come so near to what is under way (``observe``).
            stop = min(run.ahead - 7 * eighth, self._size - self._window)
        stop = min(stop, run.position + eighth)
        return Extent(run.position, max(run.position, stop))

    @property
    def streams(self) -> bool:
        """Whether the last READ was one of a stream."""
        run = self._latest
        if run is None:
            return False
        # What the kernel asks for ahead, 2 MiB, is a sixteenth of half of that.
        return run.size > _STREAM // 2 or (self._whole and run.reads >= _READS_OF_A_RUN)

    def is_astray(self, extent: Extent) -> bool:
        """Whether a READ of *extent* begins a run that is likely to be short: not the first one.

        But of a model the first one is of its header.
        """
        if self._latest is None:
            return self._head and self.layout is None and not self._whole
        return self._find(extent) is None

    def is_to_be_looked_at(self, extent: Extent) -> bool:
        """Whether it matters who makes a READ, and why.

        It does if it begins a run; where much is first asked for; and at the end of what was told.
        """
        run = self._find(extent)
        if run is None or (extent.size >= MiB and not run.is_looked_at):
            return True
        return self._is_beyond(run, extent)

    def told(self, extent: Extent) -> int:
        """Return up to where will be read, as was told of the run that a READ goes on with."""
        run = self._find(extent)
        return run.told if run is not None and extent.start < run.told else 0

    def is_spare(self, extent: Extent) -> bool:
        """Whether a READ need not be answered, as far as is known here: who made it decides."""
        run = self._find(extent)
        if run is not None:
            return self._is_beyond(run, extent)
        if self._latest is not None:
            self._learn(self._latest)
        return self.is_astray(extent) and not self._begins_part(extent)

    def goes_on_to(self, extent: Extent) -> int:
        """Return up to where a run will be read for certain, or as good as, after this READ."""
        run = self._latest
        if run is None or run.position != extent.stop:
            return extent.stop
        reach = self._reach(run, extent)
        if run.size >= _LEAST_AT_ONCE:
            reach = max(reach, run.position + max(run.size, MiB))
        elif self._begins_part(Extent(extent.start, extent.start + MiB)):
            reach = max(reach, run.position + MiB)
        return reach if reach - run.position >= _LEAST_AT_ONCE else extent.stop

    def retract(self, ahead: Extent, reached: int) -> None:
        """Note that of a planned read-ahead only what is before *reached* is being fetched.

        There was no memory for more. The next READ of that run plans the rest again; else every
        READ of it would find nothing under way and fetch for itself.
        """
        for run in self._runs:
            if run.ahead == ahead.stop:
                run.ahead = max(reached, run.position)

    def fetched(self, extent: Extent) -> None:
        """Note what was not on disk, and is being fetched."""
        for run in self._runs:
            if run.warm and run.start - self._block_size < extent.stop and extent.start < run.ahead:
                run.warm = False

    def is_read_whole(self) -> bool | None:
        """Whether the file was read from its start to its end; None: its start was not wanted."""
        from_start = [run for run in self._runs if run.start == 0 and run.reads >= _READS_OF_A_RUN]
        if not from_start:
            return None
        return any(run.position >= self._size for run in from_start)

    def _begins_part(self, extent: Extent) -> bool:
        """Whether a READ, also of 1 MiB for a page fault, begins what will be read of a part.

        Nobody hits the first page of a tensor by chance, and who does reads an eighth of it or
        more, if nothing else is known. Page by page it would take 200 READs.
        """
        page = Extent(extent.start + PAGESIZE - 1, extent.start + PAGESIZE)
        part = self._part(page)
        if part is None or not part.name:
            return False
        share = self._known.share(part)
        if share is not None:
            return abs(share.start - extent.start) < PAGESIZE and extent.stop <= share.stop
        if len(self._known.shares) == 2:
            return False
        is_its_first = abs(part.extent.start - extent.start) < PAGESIZE
        return is_its_first and part.extent.size >= _LARGE * extent.size

    def _is_beyond(self, run: _Run, extent: Extent) -> bool:
        """Whether little of a READ at most is of what its run will read, as far as is known."""
        start, stop = extent
        end = self._end_of_share(max(run.start, run.position - PAGESIZE))
        # Its first page is wanted at most, or, since that is not read yet, nothing.
        is_behind = end - PAGESIZE < start < end or start > run.position
        if is_behind and abs(run.position - end) < PAGESIZE < stop - start and run.start < start:
            return True
        if run.calls >= _READS_OF_A_RUN:
            return False
        return 0 < run.told < stop and run.told - _FEW <= start < run.told + _MORE

    def _end_of_share(self, position: int) -> int:
        """Return where what will be read of the part at *position* ends; 0: nobody knows."""
        part = self._part(Extent(position, position + 1))
        share = self._known.share(part) if part is not None and part.name else None
        return share.stop if share is not None else 0

    def _reach(self, run: _Run, extent: Extent) -> int:
        """Return up to where to plan: at most the window beyond the run."""
        limit = run.position + self._window
        if run.told and run.calls < _READS_OF_A_RUN and extent.start < run.told + _MORE:
            return max(run.position, min(run.told, limit))
        part = self._part(Extent(min(run.start, extent.start), extent.stop))
        share = self._known.share(part) if part is not None else None
        if share is None:
            if run.position <= run.expected:
                stop = max(part.extent.stop, run.position) if part is not None else limit
                return min(run.expected, limit, stop)
        elif extent.start >= share.start - DISORDER and run.position <= share.stop:
            return min(share.stop, limit)
        if run.reads > 1 and run.size < _LEAST_AT_ONCE and extent.size <= PAGESIZE:
            return min(run.position + run.size // 2, limit)
        if run.reads < _READS_OF_A_RUN or run.size * 4 < (run.position - run.start) * 3:
            return run.position
        reach = run.position + self._allowed(run)
        if part is not None and run.start >= part.extent.start - DISORDER:
            reach = min(reach, max(part.extent.stop, run.position))
        return min(reach, limit)

    def _allowed(self, run: _Run) -> int:
        """Return how much may go ahead of a run."""
        size = run.size
        if self._whole:
            return 2 * size
        most = size // 4
        if self._is_far() or (run.start == 0 and size >= _FROM_START):
            return most
        return min(most, min(size, _STREAM) // _FRACTION + max(0, size - _STREAM) // 2)

    def _part(self, extent: Extent) -> Part | None:
        """Return the part that a READ ends in; the header counts as one."""
        if self.layout is None:
            return None
        header, parts = Part("", Extent(0, self.layout.header)), self.layout.parts
        if extent.stop <= header.extent.stop:
            return header
        number = self.layout.at(extent.stop - 1)
        if number is None:
            return None
        # The last page of a part has the beginning of the next one, which was not meant.
        if extent.start < parts[number].extent.start > extent.stop - PAGESIZE:
            if number == 0:
                return header
            number -= extent.size > PAGESIZE
        return parts[number]

    def _find(self, extent: Extent) -> _Run | None:
        best: _Run | None = None
        for run in self._runs:
            low = max(run.start, run.position - _OVERTAKEN)
            # What others have read is in the page cache: the next READ that we see may lie anywhere
            # in what was planned for the run.
            high = max(run.position, run.ahead)
            if run.reads >= _READS_OF_A_RUN:
                high = max(high, run.position + min(DISORDER, run.size))
            close = low <= extent.start <= high
            if close and (best is None or run.position > best.position):
                best = run
        return best

    def _begin(self, extent: Extent, demand: Extent) -> _Run:
        if self._latest is not None:
            self._learn(self._latest)
        if len(self._runs) >= _RUNS:
            self._runs.remove(min(self._runs, key=lambda run: run.used))
        length = self._known.length()
        run = _Run(
            extent.start,
            extent.stop,
            demand.stop,
            expected=extent.start + length if length else 0,
            warm=self._cached,
            used=self._time,
            size=extent.size,
        )
        self._runs.append(run)
        self._latest = run
        return run

    def _learn(self, run: _Run) -> None:
        """Note a run that has ended, as far as anybody can tell: another one begins."""
        if run.learnt == run.position:
            return
        run.learnt = run.position
        self._known.note_length(run, run.position - run.start)
        part = self._part(Extent(run.start, run.position))
        if part is None:
            return
        # The kernel reads on from the last page of a part; a run may be of several.
        before = self._part(Extent(run.start, max(run.start + 1, part.extent.start)))
        if before is not None and before.extent.start < part.extent.start:
            if run.position - run.start <= PAGESIZE:
                return  # where they meet
            beyond = run.position - part.extent.start
            if beyond < part.extent.start - max(run.start, before.extent.start):
                part = before
        if part.name:
            start, stop = part.extent
            first = max(0, run.start - start) / part.extent.size
            self._known.note_share(first, (min(run.position, stop) - start) / (stop - start))
