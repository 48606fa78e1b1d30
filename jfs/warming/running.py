"""Bring files into the cache, whole or in part: what those of one run share."""

import logging
import mmap
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from dataclasses import dataclass, field

import trio

from jfs import memory, threads
from jfs.artifactory import HttpRangeSource
from jfs.cache import DiskBlockStore
from jfs.errors import CacheFull, JfsError, ProtocolViolation
from jfs.extents import Extent, ExtentSet, KiB, MiB
from jfs.formats import FIRST_BYTES, Layout, MoreNeeded, layout_of
from jfs.model import ArtifactVersion, FileInfo, RepoPath
from jfs.protocols import CachedContent

log = logging.getLogger(__name__)

_PIECE = 4 * MiB  # one range request and one write to disk, at most
_SMALLEST = 256 * KiB
_CLAIM_POLL_S = 0.05
# A mount gives up on a claim without progress after 10 s, and fetches itself. So do we; but nobody
# waits for us: it goes first.
_CLAIM_PATIENCE_S = 15.0


@dataclass(slots=True)
class Warmed:
    """What one run did.

    Attributes:
        files: that were found.
        failed: of the files; *failures* also names folders that could not be listed.
        total, fetched: bytes of all files, or what was selected of them, and those that came from
            the server.
        each: the same of every file, if something was selected: its path, both numbers.
    """

    files: int = 0
    failed: int = 0
    total: int = 0
    fetched: int = 0
    failures: list[tuple[RepoPath, str]] = field(default_factory=list)
    each: list[tuple[RepoPath, int, int]] = field(default_factory=list)


Progress = Callable[[RepoPath, int], None]
Choose = Callable[[ArtifactVersion, CachedContent], Awaitable[ExtentSet]]


def piece_within(limit: int | None, connections: int) -> int:
    """Return how much is fetched at a time, so that all together take a quarter of the memory.

    Args:
        limit: bytes that this process may have; None: as many as there are.
    """
    piece = _PIECE
    while limit is not None and piece > _SMALLEST and piece * connections > limit // 4:
        piece //= 2
    return piece


class Run:
    """What the files of one run share. Trio thread, except ``_fetch``.

    Args:
        piece: see ``piece_within``.

    Attributes:
        names_each: whether the result tells of each file by itself.
    """

    def __init__(
        self,
        store: DiskBlockStore,
        source: HttpRangeSource,
        limit: trio.CapacityLimiter,
        result: Warmed,
        found: Progress,
        advanced: Progress,
        piece: int = _PIECE,
    ) -> None:
        self._piece_size = piece
        self._store = store
        self._source = source
        self._limit = limit
        self.result = result
        self._found = found
        self._advanced = advanced
        self.names_each = False
        # Buffers: fresh memory costs several times its copy.
        self._spare: list[mmap.mmap | bytearray] = []

    async def file(
        self, info: FileInfo, choose: Choose | None = None, *, verify: bool = False
    ) -> None:
        """Fetch what is missing of one artifact.

        Args:
            choose: says what is wanted of it, which may need some of it; None: all.
        """
        result, version, wanted = self.result, info.version, ExtentSet()
        fetched = result.fetched
        result.files += 1
        if choose is None:
            wanted.add(Extent(0, info.size))
            self._wants(info.path, info.size)
        try:
            if info.size == 0:
                return
            if version is None:
                raise ProtocolViolation("the server names no checksum of it")
            cached = await threads.on_disk(self._store.open, version.content)
            try:
                if choose is not None:
                    wanted = await choose(version, cached)
                    self._wants(info.path, wanted.size)
                await self._content(version, cached, wanted)
            finally:
                await threads.hashing(cached.close)
            if verify and not await threads.hashing(self._store.verify, version.content):
                raise ProtocolViolation("its bytes do not match its checksum: dropped")
        except JfsError as error:
            self.failed(info.path, error)
            result.failed += 1
        finally:
            if self.names_each:
                result.each.append((info.path, wanted.size, result.fetched - fetched))

    def failed(self, path: RepoPath, error: JfsError) -> None:
        """Note what cannot be done."""
        log.debug("%s: %s", path, error)
        self.result.failures.append((path, str(error)))

    def _wants(self, path: RepoPath, size: int) -> None:
        self._found(path, size)
        self.result.total += size

    async def layout(self, version: ArtifactVersion, cached: CachedContent) -> Layout:
        """Read what a file tells of its tensors, through the cache. Raises MalformedFile."""
        size = min(FIRST_BYTES, version.size)
        while True:
            head = await self.read(version, cached, size)
            try:
                return await threads.computing(layout_of, version.path.name, head, version.size)
            except MoreNeeded as more:
                size = more.upto

    async def read(self, version: ArtifactVersion, cached: CachedContent, size: int) -> bytes:
        """Return how a file begins, through the cache."""
        head, told = bytearray(size), Extent(0, size)
        for piece in told.pieces(self._piece_size):
            await self._piece(version, cached, piece)
        with memoryview(head) as buffer:
            if not await threads.on_disk(cached.read_into, told, buffer):
                raise CacheFull("what was cached of it is gone again: try again")
        return bytes(head)

    async def _content(
        self, version: ArtifactVersion, cached: CachedContent, wanted: ExtentSet
    ) -> None:
        pieces = (piece for extent in wanted for piece in extent.pieces(self._piece_size))
        failures: list[JfsError] = []

        async def worker() -> None:
            for piece in pieces:  # shared: each piece goes to one worker
                if failures:
                    return
                try:
                    await self._piece(version, cached, piece)
                except JfsError as error:
                    failures.append(error)
                    return
                self._advanced(version.path, piece.size)

        async with trio.open_nursery() as nursery:
            for _ in range(int(self._limit.total_tokens)):
                nursery.start_soon(worker)
        if failures:
            raise failures[0]

    async def _piece(self, version: ArtifactVersion, cached: CachedContent, piece: Extent) -> None:
        waiting_since, known_missing = trio.current_time(), None
        while missing := cached.missing(piece):
            if missing != known_missing:
                waiting_since, known_missing = trio.current_time(), missing
            claim = cached.claim(Extent(missing[0].start, missing[-1].stop))
            if claim is None:
                if trio.current_time() - waiting_since <= _CLAIM_PATIENCE_S:
                    await trio.sleep(_CLAIM_POLL_S)
                    continue
                # It is stopped; or its request is longer than ours, and its line slow.
                log.info("%s: another process holds its blocks and stands still", version)
                claim = nullcontext()
            with claim:
                for run in cached.missing(piece):
                    await threads.in_turn(self._limit, self._fetch, version, cached, run)
                    self.result.fetched += run.size  # here: of several threads one would be lost

    def _fetch(self, version: ArtifactVersion, cached: CachedContent, run: Extent) -> None:
        try:
            buffer = self._spare.pop()
        except IndexError:
            buffer = memory.buffer(self._piece_size)
        with memoryview(buffer) as whole, whole[: run.size] as piece:
            self._source.fetch(version, run, _Buffer(piece))
            if not cached.publish(run.start, piece):
                raise CacheFull(
                    self._store.lack_of_space()
                    or "no room in the cache: raise --cache-size, or jfs cache evict"
                )
        self._spare.append(buffer)


class _Buffer:
    """A ``Sink`` into memory of its owner."""

    def __init__(self, place: memoryview) -> None:
        self._place = place
        self._position = 0

    def buffer(self) -> memoryview:
        return self._place[self._position :]

    def advance(self, count: int) -> None:
        self._position += count
