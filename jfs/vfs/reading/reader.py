"""Read one content: from memory, from the disk cache, from the server; ahead of who reads it.

A ``ContentReader`` belongs to one artifact version and is shared by every handle on it. ``read``
asks the planner what to fetch, starts a segment for each piece that nobody is fetching yet
(single-flight), and answers from the segments as their bytes arrive.

Concurrency: trio thread, except ``_from_server``, which runs in a worker thread and touches only
its segment, the source and ``Habits.answered``. Between taking a view and answering with it
there must be no checkpoint: see ``segments``.
"""

import contextlib
import logging
import time
from array import array
from collections.abc import Awaitable, Callable
from dataclasses import replace

import trio

from jfs import threads
from jfs.errors import DiskHangs, IntegrityError, JfsError, NotFound, Stale, Unavailable
from jfs.extents import Extent
from jfs.formats import describes_itself
from jfs.model import ArtifactVersion, RepoPath
from jfs.vfs.reading import cached
from jfs.vfs.reading.cached import Cached, Look, Received
from jfs.vfs.reading.companions import Teller, description, learn
from jfs.vfs.reading.intent import Coverage
from jfs.vfs.reading.limits import Limits
from jfs.vfs.reading.plane import Plane
from jfs.vfs.reading.readahead import ReadaheadPlanner, ReadPlan
from jfs.vfs.reading.segments import Placed, Segment, SegmentOwner, SegmentSink
from jfs.vfs.reading.whole import REFETCHES, receive_whole

log = logging.getLogger(__name__)


class ContentReader(SegmentOwner):
    """See the module; made by ``DataPlane.open``. *cached*: its blocks on disk, None: nowhere."""

    def __init__(self, plane: Plane, version: ArtifactVersion, content: Cached | None) -> None:
        self.version = version
        self.inode = 0  # that the kernel reads it through; 0: none
        self._plane = plane
        self.cached = content
        self._block_size = plane.block_size
        self._planner = ReadaheadPlanner(
            version.size,
            plane.block_size,
            plane.settings.window_bytes,
            piece=plane.settings.segment_bytes,
            whole=plane.habits.are_read_whole(version.path),
            cached=content is not None,
            head=describes_itself(version.path.name),
            is_far=plane.habits.is_far,
            doubled=plane.may_double,
        )
        self._description = description(version, self._serve, plane.companions)
        self._planner.layout = plane.companions.layout(version)
        intent = plane.intent
        self.coverage = Coverage(
            version.size, lambda: intent.read(version.path), lambda: intent.goes_on(self)
        )
        self.was_cold = False  # something of it came from the server
        self._whole = Extent(0, version.size)
        self._is_small = plane.is_small(version)
        self.segments = Placed()
        self.shown = plane.beside.shown(self, 0 if self._is_small else version.size)
        self._looking = trio.StrictFIFOLock()
        self._working = 0  # tasks that still use our segments
        self._resting = trio.lowlevel.ParkingLot()
        self.is_closed = False
        self._stale: Stale | None = None
        self.rejections = plane.rejections(version)
        if content is not None and isinstance(self._description, Teller):
            # The kernel may read all of it itself (vfs.files.passing), or have its pages.
            self._begin(self._learn, content)

    async def read(self, extent: Extent) -> bytes | bytearray | memoryview:
        """Return the bytes of *extent*, cut at the end of the file.

        Returns:
            A view that stays right until the caller's next checkpoint only, or bytes.
        Raises:
            Stale: the artifact was replaced; for every later READ too.
            IntegrityError: what was read so far does not match the digest.
            DeadlineExceeded: the bytes did not come in time.
            RemoteError: the server failed, after retries.
            Unasked: it is of the kernel, which asks again for what is wanted of it.
        Cancellation: the fetch goes on; its bytes go to the cache.
        """
        extent = extent.clipped(self.version.size)
        if not extent:
            return b""
        if self._stale is not None:
            raise self._stale
        if self._plane.rejections(self.version) != self.rejections:
            raise IntegrityError(f"{self.version.path}: does not match its checksum: open it again")
        self._plane.beside.hear()
        resident, is_fetched = None, self.segments.covering(extent) is not None
        if self.cached is not None and not is_fetched:
            resident = self.cached.resident(extent)
        is_here = is_fetched or resident is not None
        told, is_spare = 0, False
        if not (is_here or self._is_small) and self._planner.is_to_be_looked_at(extent):
            async with self._looking:  # its second READ comes while we look at the first
                if self._planner.is_to_be_looked_at(extent):
                    told, is_spare = self._planner.told(extent), self._planner.is_spare(extent)
                    told = await self._plane.scattered.look(
                        self.inode, extent, told, is_spare=is_spare
                    )
        plan = self._observed(extent, told, is_spare=is_spare)
        if resident is not None:
            self._start_ahead(plan)
            return resident
        demand = plan.joined(self._plane.settings.segment_bytes // 2)
        if self._start_missing(demand, demand=True) >= plan.demand.stop:
            self._start_ahead(plan)
        else:  # not while there is no memory for what is asked for
            self._planner.retract(plan.ahead, plan.demand.stop)
        with self._plane.deadline(self.version):
            return await self._serve(extent)

    def read_at_once(self, extent: Extent) -> memoryview | None:
        """As ``read``, if one segment has all of *extent*. None: it has not, nothing is noted."""
        self._plane.beside.hear()  # before it takes a segment: it may free some
        extent = extent.clipped(self.version.size)
        segment = self.segments.covering(extent) if extent else None
        if segment is None or segment.filled < extent.stop or self._is_small or not self.is_right:
            return None
        segment.users += 1  # its memory is not to be had for what is started now
        try:
            self._start_ahead(self._observed(extent))
            self._plane.metrics.count("reads_at_once")
            return segment.taken(extent)
        finally:
            self.give_back(segment)

    def went_on(self, extent: Extent) -> Extent:
        """Note a READ answered beside us; return among which bytes the next fetch nothing more."""
        self._start_ahead(self._observed(extent))
        return self._planner.quiet()

    @property
    def is_right(self) -> bool:
        """Whether what is here may be read, as far as anybody knows."""
        return self._stale is None and self._plane.rejections(self.version) == self.rejections

    @property
    def streams(self) -> bool:
        """Whether the last READ was one of a stream, which is read ahead of."""
        return self._planner.streams

    def bring(self, extent: Extent, *, demand: bool) -> Segment | None:
        """Fetch *extent* as far as memory allows, not as a READ does.

        Args:
            demand: somebody waits for it.
        Returns:
            The segment with its first byte, not to be reused until ``give_back``. None: there is no
            memory for it.
        """
        extent = self._whole if self._is_small else extent
        self._start_missing(extent, demand=demand)
        segment = self.segments.at(extent.start)
        if segment is not None:
            segment.users += 1
        return segment

    async def rest(self, patience_s: float) -> bool:
        """Return when nothing is being fetched or written to the disk any more.

        Returns:
            Whether it is so; False: nothing of it has come to an end for *patience_s*.
        """
        while self._working:
            with trio.move_on_after(patience_s) as scope:
                await self._resting.park()
            if scope.cancelled_caught:
                return False
        return True

    def relocate(self, path: RepoPath) -> None:
        """The same content is at another path now: what is fetched from here on is asked there."""
        self.version = replace(self.version, path=path)

    async def close(self) -> None:
        """Free everything once the fetches under way have ended. Idempotent."""
        self.shown.revoke()
        if not self.is_closed:
            self.is_closed = True
            self._plane.intent.left(self)
            if (whole := self._planner.is_read_whole()) is not None:
                self._plane.habits.note(self.version.path, whole)
            await self._close_when_idle()

    def discard(self, segment: Segment) -> None:
        if self.segments.remove(segment) and segment.users == 0:
            self._plane.pool.free(segment)

    def give_back(self, segment: Segment) -> None:
        """End one use of a segment; the last one frees what was discarded meanwhile."""
        segment.users -= 1
        if segment.users:
            return
        if segment in self.segments:
            self._plane.pool.unused(segment, is_kept=self.cached is not None)
        else:
            self._plane.pool.free(segment)

    async def _serve(self, extent: Extent) -> memoryview | bytearray:
        first = self.segments.at(extent.start)
        if first is not None and first.extent.stop >= extent.stop:
            return await self._take(first, extent)
        parts = bytearray()
        position = extent.start
        while position < extent.stop:
            segment = self.segments.at(position)
            if segment is None:
                # There was no memory for it, or it was given up while we waited for the piece
                # before it.
                rest = Extent(position, extent.stop).aligned(self._block_size, self.version.size)
                rest = self._whole if self._is_small else rest
                given = self._plane.pool.given()
                if self._start_missing(rest, demand=True) <= position:
                    await self._plane.publisher.wait(given)
                continue
            piece = Extent(position, min(extent.stop, segment.extent.stop))
            parts += await self._take(segment, piece)
            position = piece.stop
        return parts

    async def _take(self, segment: Segment, extent: Extent) -> memoryview:
        segment.users += 1  # its buffer must not be reused between our waking and our reply
        try:
            await segment.wait(extent.stop)
            # no checkpoint from here to the reply
            return segment.taken(extent)
        finally:
            self.give_back(segment)

    def _observed(self, extent: Extent, told: int = 0, *, is_spare: bool = False) -> ReadPlan:
        """Note a READ, unless that was done; return what to fetch."""
        if self.shown.was_noted(extent):
            return self._planner.nothing(extent)
        plan = self._planner.observe(extent, told, is_spare=is_spare)
        if self._plane.scattered.is_any:
            self._plane.scattered.asked(self.inode, extent, self._planner.goes_on_to(extent))
        self._plane.streaming.note(self._planner.streams, self.version.content)
        if self._is_small:
            plan = ReadPlan(self._whole, Extent(self.version.size, self.version.size))
        self.coverage.note(extent)
        if self._planner.layout is None and self._description.is_seen(extent):
            self._begin(self._learn)
        return plan

    def _start_ahead(self, plan: ReadPlan) -> None:
        if plan.warm and self.cached is not None and plan.ahead:
            self._begin(self._start_warm, plan.ahead, self.cached)
        else:
            self._fetch_ahead(plan.ahead, plan.ahead)

    async def _start_warm(self, ahead: Extent, content: Cached) -> None:
        """Read ahead what is on disk; what is not is not worth it, until somebody asks for it."""
        with contextlib.suppress(DiskHangs):
            missing = await content.missing(ahead)
            stop = max(ahead.start, missing[0].start) if missing else ahead.stop
            if not self.is_closed:
                self._fetch_ahead(Extent(ahead.start, stop), ahead)

    def _fetch_ahead(self, extent: Extent, planned: Extent) -> None:
        reached = self._start_missing(extent, demand=False)
        if reached < planned.stop:
            self._planner.retract(planned, reached)

    def _start_missing(self, extent: Extent, *, demand: bool) -> int:
        """Start fetching what nobody fetches yet; return up to where memory allows."""
        largest = self._planner.piece
        for gap in self.segments.gaps(extent):
            # What fits into one segment is not cut where it passes a multiple: each costs 2 ms.
            for piece in [gap] if gap.size <= largest else gap.pieces(largest):
                segment = self._plane.pool.allocate(piece, self.version.path.repo)
                if segment is None:
                    return piece.start
                self.segments.add(segment)
                self.shown.add(segment)
                self._begin(self._work, segment, demand)
        return extent.stop

    async def _work(self, segment: Segment, demand: bool) -> None:
        """Fill one segment and leave it to the pool."""
        segment.users += 1
        try:
            await self._fill(segment, demand)
        finally:
            if segment.error is not None or self.is_closed:
                self.discard(segment)
            else:
                self._plane.pool.keep(segment, self)
            self.give_back(segment)

    async def _learn(self, content: Cached | None = None) -> None:
        plane = self._plane
        await learn(self._description, self.version, self._planner, plane.companions, content)

    def _begin(self, task: Callable[..., Awaitable[None]], *args: object) -> None:
        """Start what uses our segments, or our blocks on disk: they are not closed meanwhile."""
        self._working += 1
        self._plane.nursery.start_soon(self._to_its_end, task, *args)

    async def _to_its_end(self, task: Callable[..., Awaitable[None]], *args: object) -> None:
        try:
            await task(*args)
        finally:
            self._working -= 1
        await self._close_when_idle()

    async def _fill(self, segment: Segment, demand: bool) -> None:
        """Fill one segment. A failure ends in the segment, never in the nursery."""
        error: BaseException | None = None
        limits = Limits.of(self.version.path.repo, self._plane.fetches)
        limit = limits.demand if demand else limits.ahead
        try:
            path = self.version.path
            try:
                await self._fill_claimed(segment, limit)
            except (Stale, NotFound) as gone:
                if self.version.path == path:  # else it was moved while we asked
                    await self._find_again(gone)
                await self._fill_claimed(segment, limit)
        except trio.Cancelled:
            error = Unavailable("the mount is ending")
            raise
        except JfsError as failure:
            error = failure
            if isinstance(failure, Stale):
                self._stale = failure
                self.shown.revoke()
            log.debug("%s %s: %s", self.version.path, segment.extent, failure)
        except Exception as failure:
            error = JfsError(f"internal error: {failure!r}")
            log.exception("%s %s: fetch failed", self.version.path, segment.extent)
        finally:
            if not segment.done:
                segment.finish(error)

    async def _find_again(self, gone: Stale | NotFound) -> None:
        """Read on where the server has the same content, if it has it anywhere. Raises Stale."""
        place = await self._plane.locate(self.version) if self._plane.locate is not None else None
        if place is None:
            raise Stale(f"{self.version.path}: its content is not on the server any more: {gone}")
        log.info("%s: has other content now, reading on at %s", self.version.path, place)
        self.relocate(place)

    async def _fill_claimed(self, segment: Segment, limit: trio.CapacityLimiter) -> None:
        """Wait until no other process fetches the same, then fill and publish."""
        content = self.cached
        if content is None:
            await self._fill_from(segment, Look([segment.extent]), None, limit)
            return
        async with content.claimed(segment) as look:
            fetched = await self._fill_from(segment, look, content, limit)
            # READs are answered from now on; the disk is written behind them, in threads of its
            # own, so that a slow disk holds up no connection. Memory bounds how far behind.
            segment.finish()
            if fetched:
                await content.publish(fetched, look)

    async def _fill_from(
        self, segment: Segment, look: Look, content: Cached | None, limit: trio.CapacityLimiter
    ) -> list[Received]:
        """Receive what is missing from the server and everything else from disk, in order.

        Returns:
            What came from the server.
        """

        async def is_there(run: Extent) -> bool:
            if not look.is_read and (content is None or not await content.read(segment, run)):
                return False
            self._plane.metrics.count("disk_bytes", run.size)
            segment.progress(run.stop)
            return True

        async def fetch(run: Extent) -> None:
            self._planner.fetched(run)
            self.was_cold = True
            with self._plane.foreground:
                took_s, words = await threads.in_turn(limit, self._from_server, segment, run)
            self._plane.publisher.fetched(took_s)
            fetched.append(Received(run.start, segment.slice(run), words))

        fetched: list[Received] = []
        if self._is_small:
            if not look.missing and await is_there(self._whole):
                return []
            plane = self._plane
            with plane.foreground:
                await threads.in_turn(
                    limit, receive_whole, plane.source, self.version, segment, plane.metrics
                )
            return [Received(0, segment.view)]
        position = segment.extent.start
        for run in [*look.missing, Extent(segment.extent.stop, segment.extent.stop)]:
            kept = Extent(position, run.start)
            if kept and not await is_there(kept):
                await fetch(kept)  # evicted or damaged since we looked
            if run:
                await fetch(run)
            position = run.stop
        return fetched

    def _from_server(self, segment: Segment, run: Extent) -> tuple[float, "array[int] | None"]:
        """Return how long it took, and the checksums of its blocks if they are known."""
        sink = SegmentSink(segment, run, self._block_size if self.cached is not None else 0)
        start = time.monotonic()
        self._plane.source.fetch(self.version, run, sink)
        self._plane.habits.answered(sink.began - start)
        return time.monotonic() - start, sink.sums()

    async def _close_when_idle(self) -> None:
        self._resting.unpark_all()
        if self._working or not self.is_closed:
            return  # the last of them comes back here
        for segment in list(self.segments):
            self.discard(segment)
        content, self.cached = self.cached, None
        if content is not None:
            await content.close()


class DataPlane(Plane):
    """What all readers of one mount share; makes them."""

    async def open(self, version: ArtifactVersion) -> ContentReader:
        """Open a version for reading. A cache that cannot be used is read past, not reported.

        Raises:
            IntegrityError: its bytes, fetched whole twice, did not match its digest.
        """
        if self.rejections(version) > REFETCHES:
            raise IntegrityError(
                f"{version.path}: the server keeps sending bytes that do not match its checksum"
            )
        content: Cached | None = None
        if self.store is not None:
            content = await cached.opened(self.store, version, self.disk, self.publisher)
        self.intent.opened(version.path)
        return ContentReader(self, version, content)
