"""The seams between the filesystem and what it stands on.

``ArtifactStore`` is the control plane (names, sizes, properties), ``RangeSource`` the data plane
(bytes), ``BlockStore`` the cache on disk. The filesystem in ``vfs/`` sees nothing else of the
server or of the disk; ``jfs.mount.serving`` decides what stands behind each.
"""

from array import array
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from jfs.extents import Extent
from jfs.model import (
    ArtifactVersion,
    ContentKey,
    Criteria,
    Deployment,
    EntryInfo,
    FileInfo,
    Match,
    Properties,
    RepoPath,
    Repository,
)
from jfs.packed import Packed

# Awaited before a try of a deploy, with the digests that the server said it had stored at earlier
# ones: they may be others than those of what it was sent.
Still = Callable[[Collection[str]], Awaitable[None]]


class Growing(Protocol):
    """A file that is sent while it is being written, front to back. Any thread."""

    def ready(self, sent: int, most: int, wait_s: float) -> int | None:
        """Return how many bytes may be sent in all, at most *most* more than *sent*.

        Waits for that many, *wait_s* at most: fewer then, or none; None: *sent* is all of the file.
        Raises OSError: it is not to be sent any more.
        """


class ArtifactStore(Protocol):
    """Control plane. Trio thread only; every call has a deadline and may be cancelled.

    Every method raises the ``RemoteError`` that fits the answer.
    """

    async def repositories(self) -> Sequence[Repository]:
        """List the repositories that the credentials may read."""

    async def stat(self, path: RepoPath) -> EntryInfo:
        """Describe one item. Raises NotFound only on a real 404."""

    async def list_children(
        self, path: RepoPath, known: Packed | None = None
    ) -> Sequence[EntryInfo]:
        """List a folder with sizes, times and checksums in one request.

        Names that cannot be a Linux directory entry are left out, with one warning.

        Args:
            known: what is known of it already. Read in another thread until this returns.
        Returns:
            ``Packed``, if there are very many; ``Changes``, if *known* is something.
        """

    async def properties(self, path: RepoPath) -> Properties:
        """Return the properties of one item, an empty mapping if it has none."""

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

    async def locate(self, version: ArtifactVersion) -> RepoPath | None:
        """Return where the content of *version* can be read now; None: nowhere that we may read.

        Asked by checksum, so the place may lie in another repository: the one where the server
        keeps the item (a remote repository's ``-cache``). Its own path is preferred, then its own
        repository. What is fetched there is held against the version as everywhere. A search that
        the server refuses finds nothing; NotFound is never raised.
        """

    async def downloads(self, path: RepoPath) -> int:
        """Return how often an artifact was downloaded."""

    # changes; each raises AccessDenied without the right, ReadOnly where nothing can be written

    async def deploy(
        self,
        deployment: Deployment,
        file: int | None,
        *,
        patient: bool = True,
        still: Still | None = None,
    ) -> FileInfo:
        """Make content the artifact at a path: by its checksum if the server has it, else whole.

        Retries what is worth retrying. The answer's checksums have been compared with ours.

        Args:
            file: descriptor of the content; it is read by position and must not change meanwhile.
                None: only by checksum; NotFound if the server does not have it.
            patient: whether an outage is waited for: not by who comes again by himself.
            still: asked before a try that is not made at once, be it the first: it may be minutes
                later. Raises when the path is not any more what it was.
        Raises:
            QuotaExceeded, Conflict: the server refuses; IntegrityError: it got other bytes.
            NotFound: without *file*: the server does not have the content.
            OSError: *file* cannot be read.
        Cancellation: the connection is cut; nothing half-done becomes visible.
        """

    async def stream(self, path: RepoPath, file: Path, growing: Growing) -> FileInfo:
        """Make a file the artifact at *path* while it is being written. Once: nothing is repeated.

        Nothing is at *path* until all of it has come. What the answer says is not compared with
        anything: the caller does, who knows by then what was written.

        Args:
            file: on this disk; the worker thread opens it.
            growing: asked by that thread.
        Raises:
            OSError: the file cannot be read.
        Cancellation: the connection is cut; a thread that waits for the disk is left to itself.
        """

    async def make_folder(self, path: RepoPath) -> None:
        """Make a folder and its parents; harmless if it exists."""

    async def is_empty(self, path: RepoPath) -> bool:
        """Whether a folder holds nothing at all, names that cannot be shown included."""

    async def delete(self, path: RepoPath) -> None:
        """Remove an item; a folder goes with everything in it. Raises NotFound."""

    async def move(
        self,
        source: RepoPath,
        target: RepoPath,
        *,
        tree: bool = False,
        known: EntryInfo | None = None,
    ) -> None:
        """Move an item, over a file that is at *target*. No bytes move; a *tree* may take minutes.

        A *target* that is a folder would get the item inside (artifactory-rest 8): the caller
        makes sure that there is none.

        Args:
            known: what the item is, as far as the caller knows: after an answer that was lost, it
                tells whether the move took place.
        """

    async def copy(self, source: RepoPath, target: RepoPath, *, tree: bool = False) -> None:
        """Copy an item, as ``move``."""

    def is_writable(self, repo: str) -> bool:
        """Whether a repository takes deploys, as far as its kind tells. Never asks."""

    def removes(self, repo: str) -> bool:
        """Whether what is deployed to a repository can be removed there, as far as its kind tells.

        Not through a virtual one (artifactory-rest 5). Never asks.
        """

    def lists_all(self, repo: str) -> bool:
        """Whether a name that is in no listing is not there. Never asks.

        A remote repository lists what it has cached, and has whatever its upstream has.
        """


class Sink(Protocol):
    """Where the bytes of one fetch go. Called from one worker thread, in order, without gaps.

    It may have an attribute ``run``, a ``native.receiving.Run`` of all that it takes: then many
    pieces come in one call, and ``advance`` is told of them all the same.
    """

    def buffer(self) -> memoryview:
        """Return writable memory for the next bytes: at least 1, at most what is still wanted."""

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
            RemoteError: anything else; the bytes that *sink* has by then are right all the same.
        """

    def close(self) -> None:
        """Cut every connection: a blocked ``fetch`` raises Unavailable soon. Any thread."""


class WholeFile(Protocol):
    """A file of this disk that holds one content, and nothing else. Any thread; blocking.

    It stays open, and is not evicted, until it is closed.
    """

    file: int
    """Its descriptor."""

    def is_right(self) -> bool:
        """Whether nobody has changed it since all of it was verified, nor found it wrong."""

    def close(self) -> None:
        """Let it go; once."""


class CachedContent(Protocol):
    """The blocks of one content that are on disk. Any thread; blocking unless it says otherwise.

    A block is either read whole and verified, or reported missing. What is open is not evicted,
    unless it is idle and descriptors are so few that its files were closed meanwhile.
    """

    def missing(self, extent: Extent) -> list[Extent]:
        """Return the runs of *extent*, widened to blocks, that are not on disk.

        It reads a few bytes that the kernel has cached, as a rule.
        """

    def read_into(self, extent: Extent, buffer: memoryview) -> bool:
        """Copy *extent* into *buffer*, every block it touches verified.

        Returns False when a block is missing or fails its checksum (then it is missing from now
        on): *buffer* must not be used.

        Args:
            extent: any bytes within the file; *buffer* has at least its size.
        """

    def read_resident(self, extent: Extent) -> memoryview | None:
        """Return *extent* if that needs no disk, every block verified. Never blocks."""

    def publish(
        self,
        start: int,
        data: memoryview,
        words: "array[int] | None" = None,
        *,
        stays: bool = False,
    ) -> bool:
        """Store whole blocks beginning at *start*; they are present once this returned True.

        Returns False if the disk is full, failing or gone; the bytes then live in memory only.

        Args:
            start: a multiple of the block size; *data* ends at a block's end or at the file's.
            words: the checksum of each block, where they were made when it was received.
            stays: in the page cache, too: it is read from there next.
        """

    def whole(self) -> WholeFile | None:
        """Return the file of the content if every byte is there, and was held against the digest.

        None: it is not so, or as many are held as there are descriptors for. What was changed since
        it was verified is verified again, behind.
        """

    def is_verified(self) -> bool:
        """Whether every byte is there, and was held against the digest."""

    def vouch(self) -> bool:
        """Note that all of it was held against the digest while it was published.

        Returns:
            Whether every byte is there.
        """

    def claim(self, extent: Extent) -> AbstractContextManager[None] | None:
        """Claim the right to fetch *extent* among all processes of this node.

        Returns None while another process holds a part of it. A claim dies with its process.
        """

    def close(self) -> None:
        """Close the files, after the calls under way; idempotent."""


class Notes(Protocol):
    """Words of yes or no that outlive the mount. Any thread; blocking; each raises OSError."""

    def load(self) -> dict[str, bool]:
        """Return all that is remembered, by key."""

    def keep(self, key: str, value: bool) -> None:
        """Remember *value* for *key*, 32 hexadecimal digits."""


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

    def checksum(self, block: memoryview, number: int) -> int:
        """Return the word by which a block is known again. Does not block."""

    def adopt(self, content: ContentKey, staged: Path, words: "array[int] | None" = None) -> bool:
        """Take a file with exactly this content in, by a rename; its bytes are believed.

        Returns False, and leaves *staged* alone, when there is no room or the disk refuses.
        Nobody may write to the file any more.

        Args:
            words: of its blocks (``checksum``), computed from the same bytes as the digest; None:
                the file is read for them.
        """

    def has_beginning(self, file: Path, size: int) -> bool:
        """Whether content that is cached at its beginning begins as *file* does, for *size* bytes.

        It looks at every content that is cached. Raises OSError.
        """

    def fits(self, content: ContentKey) -> bool:
        """Whether there would be room for all of it, with everything else evicted."""

    def verify(self, content: ContentKey) -> bool:
        """Hold what is there of a content against its digest; what does not match is dropped.

        That takes a second for each GiB. Returns whether every byte is there, and matches.
        """

    def spare(self) -> int:
        """Return how many bytes can be written with nothing evicted, and some room left.

        It looks at every content that is cached. Raises OSError.
        """

    def rejections(self, content: ContentKey) -> int:
        """How often the whole content turned out not to match its digest. Does not block.

        What was read of it until then was wrong, and so is what the kernel has kept of it.
        """

    def close(self) -> None:
        """End background work; idempotent."""
