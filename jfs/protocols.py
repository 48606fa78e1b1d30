"""The seams between the filesystem and what it stands on.

``ArtifactStore`` is the control plane (names, sizes, properties), ``RangeSource`` the data plane
(bytes), ``BlockStore`` the cache on disk. The filesystem in ``vfs/`` sees nothing else of the
server or of the disk; ``mount.py`` decides what stands behind each.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from jfs.extents import Extent
from jfs.model import (
    ArtifactVersion,
    ContentKey,
    Criteria,
    EntryInfo,
    Match,
    Properties,
    RepoPath,
    Repository,
)


class ArtifactStore(Protocol):
    """Control plane. Trio thread only; every call has a deadline and may be cancelled.

    Every method raises the ``RemoteError`` that fits the answer.
    """

    async def repositories(self) -> Sequence[Repository]:
        """List the repositories that the credentials may read."""

    async def stat(self, path: RepoPath) -> EntryInfo:
        """Describe one item. Raises NotFound only on a real 404."""

    async def list_children(self, path: RepoPath) -> Sequence[EntryInfo]:
        """List a folder with sizes, times and checksums in one request.

        Names that cannot be a Linux directory entry are left out, with one warning.
        """

    async def properties(self, path: RepoPath) -> Properties:
        """Give the properties of one item; none is an empty mapping."""

    async def set_properties(
        self, path: RepoPath, change: Mapping[str, tuple[str, ...] | None]
    ) -> None:
        """Set keys of one item, or remove those that are None; others stay.

        A folder's properties touch that folder alone.
        """

    async def search(self, criteria: Criteria) -> Sequence[Match]:
        """Find items with their properties, in one request.

        Raises:
            InvalidName: a value that the query language cannot express.
        """

    async def downloads(self, path: RepoPath) -> int:
        """Give how often an artifact was downloaded."""


class Sink(Protocol):
    """Where the bytes of one fetch go. Called from one worker thread, in order, without gaps."""

    def buffer(self) -> memoryview:
        """Give writable memory for the next bytes: at least 1, at most what is still wanted."""

    def advance(self, count: int) -> None:
        """Say that *count* bytes of ``buffer()`` are valid now. Must not block."""


class RangeSource(Protocol):
    """Data plane. Blocking: called from worker threads, several at a time."""

    def fetch(self, version: ArtifactVersion, extent: Extent, sink: Sink) -> None:
        """Receive exactly the bytes *extent* of *version* into *sink*.

        Retries what is worth retrying from the byte that was reached. Every wait on the network
        has a deadline.

        Args:
            extent: not empty, within ``[0, version.size)``.
        Raises:
            Stale: the server has other content at the path now.
            RemoteError: anything else; bytes already given to *sink* are right all the same.
        """

    def close(self) -> None:
        """Cut every connection: a blocked ``fetch`` raises Unavailable soon. Any thread."""


class CachedContent(Protocol):
    """The blocks of one content that are on disk. Any thread; blocking unless it says otherwise.

    Holding one keeps its file open, so eviction by anyone never takes bytes away mid-call: a block
    is either read whole and verified, or reported missing.
    """

    def missing(self, extent: Extent) -> list[Extent]:
        """Give the runs of *extent*, widened to blocks, that are not on disk. Does not block."""

    def read_into(self, extent: Extent, buffer: memoryview) -> bool:
        """Copy *extent* into *buffer*, every block it touches verified.

        Returns False when a block is missing or fails its checksum (then it is missing from now
        on): *buffer* must not be used.

        Args:
            extent: any bytes within the file; *buffer* has at least its size.
        """

    def read_resident(self, extent: Extent) -> memoryview | None:
        """Give *extent* if that needs no disk: for the event loop. Never blocks, never lies."""

    def publish(self, start: int, data: memoryview) -> bool:
        """Store whole blocks beginning at *start*; they are present once this returned True.

        Returns False if the disk is full, failing or gone; the bytes then live in memory only.

        Args:
            start: a multiple of the block size; *data* ends at a block's end or at the file's.
        """

    def claim(self, extent: Extent) -> AbstractContextManager[None] | None:
        """Claim the right to fetch *extent* among all processes of this node. Does not block.

        Returns None while another process holds a part of it. A claim dies with its process.
        """

    def close(self) -> None:
        """Give the file back; idempotent."""


class BlockStore(Protocol):
    """Cache of content on disk, shared by every mount of the node. Any thread; blocking."""

    @property
    def block_size(self) -> int:
        """Bytes of one block, the unit of presence and of verification."""

    def open(self, content: ContentKey) -> CachedContent:
        """Open or create the entry of *content*.

        Raises:
            CacheError: the disk is unusable; read straight through.
        """

    def rejections(self, content: ContentKey) -> int:
        """How often the whole content turned out not to match its digest. Does not block.

        What was read of it until then was wrong, and so is what the kernel has kept of it.
        """

    def close(self) -> None:
        """End background work; idempotent."""
