"""What the block cache has of one content, asked so that a disk which hangs holds up no reader.

Every look at the disk is in a thread and waited for in time; what is not answered is not cached,
and is fetched. Trio thread only, except where it says otherwise.
"""

import logging
from array import array
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TypeVar

import trio

from jfs.errors import CacheError, DiskHangs
from jfs.extents import Extent
from jfs.model import ArtifactVersion
from jfs.protocols import BlockStore, CachedContent
from jfs.vfs.reading.publisher import Publisher
from jfs.vfs.reading.segments import Segment
from jfs.waiting import Disk

log = logging.getLogger(__name__)

_T = TypeVar("_T")

# Another process of this node is fetching the same blocks: look again this often, and after so
# long without a block from it (it may be stopped, or its network dead) fetch them ourselves.
_CLAIM_POLL_S = 0.005
_CLAIM_PATIENCE_S = 10.0


@dataclass(slots=True)
class Look:
    """What a look at a segment has found.

    Attributes:
        missing: what is to be fetched.
        claim: the right to fetch it; None: another process has that.
        is_read: nothing was missing, and it is in the buffer.
    """

    missing: list[Extent] = field(default_factory=list)
    claim: AbstractContextManager[None] | None = None
    is_read: bool = False


@dataclass(frozen=True, slots=True)
class Received:
    """A run of whole blocks from the server, and their checksums where they are known."""

    start: int
    data: memoryview
    words: "array[int] | None" = None


async def opened(
    store: BlockStore, version: ArtifactVersion, disk: Disk, publisher: Publisher
) -> "Cached | None":
    """Open what is cached of a version; None: the cache cannot be used, and is read past."""
    try:
        content = await disk.run(store.open, version.content, late=lambda late: late.close())
    except DiskHangs:  # which was said
        return None
    except CacheError as error:
        log.log(error.log_level, "%s: reading past the cache: %s", version.path, error)
        return None
    return Cached(content, version, disk, publisher)


class Cached:
    """See the module.

    Attributes:
        stays: what is published stays in the page cache: whoever reads it reads the file next.
        is_full: something was not stored.
    """

    def __init__(
        self, content: CachedContent, version: ArtifactVersion, disk: Disk, publisher: Publisher
    ) -> None:
        self._content = content
        self._version = version
        self._disk = disk
        self._publisher = publisher
        self.stays = False
        self.is_full = False

    def resident(self, extent: Extent) -> memoryview | None:
        """Return *extent* if that needs no disk."""
        return self._content.read_resident(extent) if not self._disk.hangs else None

    @asynccontextmanager
    async def claimed(self, segment: Segment) -> AsyncIterator[Look]:
        """Wait until no other process fetches what *segment* lacks, and hold that right."""
        look = await self._looked(segment)
        waiting_since, known_missing = trio.current_time(), look.missing
        while look.missing and look.claim is None:
            if look.missing != known_missing:
                known_missing, waiting_since = look.missing, trio.current_time()
            elif trio.current_time() - waiting_since > _CLAIM_PATIENCE_S:
                log.warning("%s: another process holds its blocks and stands still", self._version)
                break
            await trio.sleep(_CLAIM_POLL_S)
            look = await self._looked(segment)
        try:
            yield look
        finally:
            if look.claim is not None and not isinstance(look.claim, nullcontext):
                with trio.CancelScope(shield=True):
                    await self._disk.end(lambda: _let_go(look))

    async def read(self, segment: Segment, run: Extent) -> bool:
        """Read *run* into the segment, verified; False: it is to be fetched."""
        view = segment.slice(run)
        try:
            # Shielded: a buffer that a thread still writes to must not be used again.
            return await self._disk.run(self._content.read_into, run, view, shielded=True)
        except DiskHangs as hangs:
            if hangs.asked:
                segment.replace_buffer()
            return False

    async def publish(self, runs: Sequence[Received], look: Look) -> None:
        """Write runs of whole blocks, unless the disk hangs, and give the claim back.

        All in one turn of a thread: each costs as much as a hundred KiB of the network.
        """
        stored: list[bool] = []
        if not self._disk.hangs:
            size = sum(len(run.data) for run in runs)
            await self._publisher.publish(lambda: stored.append(self._publish(runs, look)), size)
        self.is_full |= stored != [True]

    async def missing(self, extent: Extent) -> list[Extent]:
        """Return what of *extent* is not there; see ``CachedContent``. Raises DiskHangs."""
        return await self._disk.run(self._content.missing, extent)

    async def run(
        self, call: Callable[[CachedContent], _T], late: Callable[[_T], object] | None = None
    ) -> _T:
        """Return what *call* returns, in a thread. Raises DiskHangs; see ``Disk.run``."""
        return await self._disk.run(call, self._content, late=late)

    async def end(self, call: Callable[[], object]) -> None:
        """Call what ends a use of it; see ``Disk.end``."""
        await self._disk.end(call)

    async def close(self) -> None:
        """Let go of it."""
        await self._disk.end(self._content.close)

    async def _looked(self, segment: Segment) -> Look:
        try:
            return await self._disk.run(
                self._look, segment.extent, segment.view, late=_let_go, shielded=True
            )
        except DiskHangs as hangs:
            if hangs.asked:
                segment.replace_buffer()
            return Look([segment.extent], nullcontext())

    def _publish(self, runs: Sequence[Received], look: Look) -> bool:
        """Blocking; a worker thread."""
        try:
            publish, stays = self._content.publish, self.stays
            stored = [publish(run.start, run.data, run.words, stays=stays) for run in runs]
            return all(stored)
        finally:
            _let_go(look)

    def _look(self, extent: Extent, view: memoryview) -> Look:
        """Blocking; a worker thread."""
        missing = self._content.missing(extent)
        if not missing:
            return Look(is_read=self._content.read_into(extent, view))
        claim = self._content.claim(Extent(missing[0].start, missing[-1].stop))
        if claim is not None:
            # Between our look and our claim the other process may have finished.
            missing = self._content.missing(extent)
        return Look(missing, claim)


def _let_go(look: Look) -> None:
    """Give a claim back, which was never entered: that is all that there is to it."""
    claim, look.claim = look.claim, None
    if claim is not None:
        with claim:
            pass
