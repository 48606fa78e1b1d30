"""Fill the cache before the first reader: composition root of ``jfs warm``, without a mount.

Bytes go from the server straight to the block store that the mounts of this node read from. Only
what is missing is fetched, so a second run goes on where the first one ended, and two runs (or a
run and a mount) share the work through the claims of the store.
"""

import logging
import mmap
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field

import trio

from jfs import interrupts, threads
from jfs.artifactory import ArtifactoryClient, HttpRangeSource
from jfs.cache import DiskBlockStore
from jfs.config import CacheSettings, ServerSettings
from jfs.errors import CacheFull, JfsError, NotFound, ProtocolViolation
from jfs.extents import Extent, ExtentSet, MiB
from jfs.formats import (
    FIRST_BYTES,
    Layout,
    MoreNeeded,
    Selection,
    describes_itself,
    layout_of,
)
from jfs.metrics import Metrics
from jfs.model import ArtifactVersion, FileInfo, FolderInfo, RepoPath
from jfs.protocols import CachedContent

log = logging.getLogger(__name__)

_PIECE = 4 * MiB  # one range request and one write to disk
_CLAIM_POLL_S = 0.05
# A mount gives up on a claim without progress after 10 s. Nobody waits for us: it goes first.
_CLAIM_PATIENCE_S = 15.0


@dataclass(slots=True)
class Warmed:
    """What one run did.

    Attributes:
        files: that were found.
        failed: of the files; *failures* also names folders that could not be listed.
        total, fetched: bytes of all files, or what was selected of them, and those that came from
            the server.
    """

    files: int = 0
    failed: int = 0
    total: int = 0
    fetched: int = 0
    failures: list[tuple[RepoPath, str]] = field(default_factory=list)


Progress = Callable[[RepoPath, int], None]


def warm(
    server: ServerSettings,
    cache: CacheSettings,
    paths: list[RepoPath],
    *,
    verify: bool,
    found: Progress,
    advanced: Progress,
    selection: Selection | None = None,
) -> Warmed:
    """Bring every artifact at or below *paths* into the cache. Blocking: runs an event loop.

    One file that fails does not stop the others.

    Args:
        verify: hold each whole content against its digest afterwards.
        found: called with each file and its size, before it is fetched.
        advanced: called with bytes that are in the cache now, fetched or not.
        selection: of files that tell where their tensors are, only this.
    Raises:
        ConfigError: the server cannot be used; nothing was fetched.
        CacheError: the cache cannot be used.
    """
    return interrupts.run(_run, server, cache, paths, verify, found, advanced, selection)


async def _run(
    server: ServerSettings,
    cache: CacheSettings,
    paths: list[RepoPath],
    verify: bool,
    found: Progress,
    advanced: Progress,
    selection: Selection | None,
) -> Warmed:
    metrics = Metrics()
    store = await threads.on_disk(DiskBlockStore, cache, metrics)
    source = HttpRangeSource(server, metrics)
    result = Warmed()
    try:
        async with (
            threads.cut_when_cancelled(source.close),
            aclosing(ArtifactoryClient(server, metrics)) as client,
        ):
            await client.check()
            limit = trio.CapacityLimiter(server.connections)
            run = _Run(store, source, limit, result, found, advanced, selection)
            for path in paths:
                files = _files(client, path, result)
                async with aclosing(files):
                    async for info in files:
                        result.files += 1
                        await run.file(info, verify)
    finally:
        with trio.CancelScope(shield=True):
            await threads.on_disk(store.close)
    return result


async def _files(
    client: ArtifactoryClient, path: RepoPath, result: Warmed
) -> AsyncGenerator[FileInfo, None]:
    """Walk the artifacts at or below *path*, one listing a folder."""
    try:
        entry = await client.stat(path)
    except NotFound:
        result.failures.append((path, "no such file or folder on the server"))
        return
    except JfsError as error:
        result.failures.append((path, str(error)))
        return
    if isinstance(entry, FileInfo):
        yield entry
        return
    folders = [path]
    while folders:
        folder = folders.pop()
        try:
            entries = await client.list_children(folder)
        except JfsError as error:
            result.failures.append((folder, str(error)))
            continue
        if folder == path and not entries and not client.lists_all(path.repo):
            # A remote repository lists what it has cached: nothing of it is not nothing at all.
            result.failures.append((path, "nothing of it is cached on the server: name its files"))
        ordered = sorted(entries, key=lambda entry: entry.path)
        for child in ordered:
            if isinstance(child, FileInfo):
                yield child
        folders += [child.path for child in reversed(ordered) if isinstance(child, FolderInfo)]


class _Run:
    """What the files of one run share. Trio thread, except ``_fetch``."""

    def __init__(
        self,
        store: DiskBlockStore,
        source: HttpRangeSource,
        limit: trio.CapacityLimiter,
        result: Warmed,
        found: Progress,
        advanced: Progress,
        selection: Selection | None,
    ) -> None:
        self._store = store
        self._source = source
        self._limit = limit
        self._result = result
        self._found = found
        self._advanced = advanced
        self._selection = selection
        self._spare: list[mmap.mmap] = []  # buffers: fresh memory costs several times its copy

    async def file(self, info: FileInfo, verify: bool) -> None:
        """Fetch what is missing of one artifact."""
        version = info.version
        whole = self._selection is None or not describes_itself(info.path.name)
        if whole:
            self._wants(info.path, info.size)
        if info.size == 0:
            return
        try:
            if version is None:
                raise ProtocolViolation("the server names no checksum of it")
            cached = await threads.on_disk(self._store.open, version.content)
            try:
                wanted = ExtentSet([Extent(0, version.size)])
                if self._selection is not None and not whole:
                    wanted = self._selection.of(await self._layout(version, cached))
                    self._wants(info.path, wanted.size)
                await self._content(version, cached, wanted)
            finally:
                await threads.hashing(cached.close)
            if verify and not await threads.hashing(self._store.verify, version.content):
                raise ProtocolViolation("its bytes do not match its checksum: dropped")
        except JfsError as error:
            log.debug("%s: %s", info.path, error)
            self._result.failed += 1
            self._result.failures.append((info.path, str(error)))

    def _wants(self, path: RepoPath, size: int) -> None:
        self._found(path, size)
        self._result.total += size

    async def _layout(self, version: ArtifactVersion, cached: CachedContent) -> Layout:
        """Read what a file tells of its tensors, through the cache. Raises MalformedFile."""
        head = bytearray(min(FIRST_BYTES, version.size))
        while True:
            told = Extent(0, len(head))
            for piece in told.pieces(_PIECE):
                await self._piece(version, cached, piece)
            with memoryview(head) as buffer:
                if not await threads.on_disk(cached.read_into, told, buffer):
                    raise CacheFull("what was cached of it is gone again: try again")
            try:
                return await threads.computing(
                    layout_of, version.path.name, bytes(head), version.size
                )
            except MoreNeeded as more:
                head = bytearray(more.upto)

    async def _content(
        self, version: ArtifactVersion, cached: CachedContent, wanted: ExtentSet
    ) -> None:
        pieces = (piece for extent in wanted for piece in extent.pieces(_PIECE))
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
        waiting_since = trio.current_time()
        while missing := cached.missing(piece):
            claim = cached.claim(Extent(missing[0].start, missing[-1].stop))
            if claim is None:
                if trio.current_time() - waiting_since > _CLAIM_PATIENCE_S:
                    raise CacheFull("another process holds its blocks and stands still: try again")
                await trio.sleep(_CLAIM_POLL_S)
                continue
            with claim:
                for run in cached.missing(piece):
                    await threads.in_turn(self._limit, self._fetch, version, cached, run)

    def _fetch(self, version: ArtifactVersion, cached: CachedContent, run: Extent) -> None:
        try:
            buffer = self._spare.pop()
        except IndexError:
            buffer = mmap.mmap(-1, _PIECE)  # page-aligned, as the disk wants it for O_DIRECT
        with memoryview(buffer) as whole, whole[: run.size] as piece:
            self._source.fetch(version, run, _Buffer(piece))
            if not cached.publish(run.start, piece):
                raise CacheFull(
                    self._store.lack_of_space()
                    or "no room in the cache: raise --cache-size, or jfs cache evict"
                )
        self._spare.append(buffer)
        self._result.fetched += run.size


class _Buffer:
    """A ``Sink`` into memory of its owner."""

    def __init__(self, memory: memoryview) -> None:
        self._memory = memory
        self._position = 0

    def buffer(self) -> memoryview:
        return self._memory[self._position :]

    def advance(self, count: int) -> None:
        self._position += count
