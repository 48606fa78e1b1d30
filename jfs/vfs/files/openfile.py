"""What all handles of one open file share. Trio thread only."""

from dataclasses import dataclass, field

import trio

from jfs.errors import ProtocolViolation, Stale
from jfs.extents import Extent
from jfs.model import ArtifactVersion, ContentKey, FileInfo
from jfs.vfs.files.passing import Backing
from jfs.vfs.namespace.inodes import Inode
from jfs.vfs.namespace.local import STAGED
from jfs.vfs.reading.reader import ContentReader, DataPlane
from jfs.vfs.writing.staging import StagingFile


@dataclass(frozen=True, slots=True)
class Opened:
    """A new handle.

    Attributes:
        keep_cache: the kernel's pages of the inode still hold this content.
        direct: what is written shall not go through them.
    """

    handle: int
    keep_cache: bool
    direct: bool = False


@dataclass(slots=True)
class Passed:
    """A staged file that is registered with the kernel, until the last handle has gone.

    It stays what is written to until then, and becomes a file of the cache afterwards: whoever maps
    the file, through whatever handle, maps this one.

    Attributes:
        number: of the registration.
        handle: through which the kernel writes itself; None: it was closed.
        closed: handles that are being closed: the kernel has none of them any more.
    """

    number: int
    handle: int | None
    closed: set[int] = field(default_factory=set)


class OpenFile:
    """All handles of one inode; see the module.

    Attributes:
        info: what the server has, as of the last open or deploy.
        reader: of that content; None: it is empty, or nobody needed it yet.
        staged: the truth while it is there.
        handles, writers: open handles, and those of them that may write.
        written: how often somebody has written.
        generation: changes of content so far; *deployed*: of them on the server; *tried*: of them
            in the last deploy, whether it went well or not.
        kept: what its readers will read on from if its name goes.
        replaces: it was made here, and took the name of this file, which the server still has.
        modified_ns: its time, if somebody set one since it was deployed.
        ours: what is at the path was put there through this open file.
        replaced: nothing can be read: its bytes did not match the checksum, or its upload failed.
        queued: the generation that waits to be uploaded behind; 0: none.
        held: the queue has it: it stays open without handles.
        uploading: of the upload behind that is under way; cancelled, it is cut.
        acknowledged: what waits, or did until newer content is being written: that is lost with
            its process, this must not be.
        broken: a write that the local disk refused: what is staged is not what was written, and is
            not uploaded; until it is emptied.
        backing: what the kernel reads through all of its handles; None: READs come here. Set before
            there is a handle, and not changed.
        closes: how often it was closed before, each time soon after the last, when its first writer
            opened it (``settling``).
        waits_since: on trio's clock, when what waits until it rests was closed first; None: nothing
            does.
        passed: what the kernel writes to itself; None: nothing.
        detached: the name is gone: nothing will ever be uploaded.
    """

    __slots__ = (
        "_reader",
        "_replaced",
        "_staged",
        "acknowledged",
        "backing",
        "broken",
        "closes",
        "deployed",
        "detached",
        "generation",
        "handles",
        "held",
        "info",
        "inode",
        "kept",
        "lock",
        "modified_ns",
        "ours",
        "passed",
        "queued",
        "replaces",
        "tried",
        "uploading",
        "waits_since",
        "writers",
        "written",
    )

    def __init__(self, inode: Inode, info: FileInfo) -> None:
        self.inode = inode
        self.info = info
        self._reader: ContentReader | None = None
        self._staged: StagingFile | None = None
        self._replaced = False
        self.kept: StagingFile | None = None
        self.handles = 0
        self.writers = 0
        self.written = 0
        self.lock = trio.Semaphore(1, max_value=1)  # a small write takes it for another task
        self.generation = 0
        self.deployed = 0
        self.tried = 0
        self.modified_ns: int | None = None
        self.ours = False
        self.replaces: FileInfo | None = None
        self.queued = 0
        self.held = False
        self.uploading: trio.CancelScope | None = None
        self.acknowledged: StagingFile | None = None
        self.backing: Backing | None = None
        self.passed: Passed | None = None
        self.broken: OSError | None = None
        self.closes = 0
        self.waits_since: float | None = None
        self.detached = False

    # What is shown changes with each of these three: READs are answered from none but what is
    # shown (``jfs.vfs.reading.beside``).

    @property
    def reader(self) -> ContentReader | None:
        return self._reader

    @reader.setter
    def reader(self, reader: ContentReader | None) -> None:
        self._changes()
        self._reader = reader

    @property
    def staged(self) -> StagingFile | None:
        return self._staged

    @staged.setter
    def staged(self, staged: StagingFile | None) -> None:
        self._changes()
        self._staged = staged

    @property
    def replaced(self) -> bool:
        return self._replaced

    @replaced.setter
    def replaced(self, replaced: bool) -> None:
        self._changes()
        self._replaced = replaced

    def _changes(self) -> None:
        if self._reader is not None:
            self._reader.shown.revoke()

    def answer_beside(self, handle: int) -> None:
        """Have READs of a handle answered beside the interpreter, while they are of *reader*."""
        if not self._replaced and self._staged is None and self._reader is not None:
            self._reader.shown.publish(handle)

    @property
    def dirty(self) -> bool:
        """Whether there is something that the server does not have."""
        if self.detached:
            return False
        unseen = self.staged.unseen if self.staged is not None else None
        return self.generation > self.deployed or (unseen is not None and unseen.is_there())

    @property
    def is_pending(self) -> bool:
        """Whether all of it is on this disk, and waits to be uploaded behind."""
        return self.dirty and self.queued == self.generation

    @property
    def is_ours(self) -> bool:
        """Whether what it shows is decided here, and not by what the server has by now."""
        return self.dirty or self.detached

    @property
    def base(self) -> FileInfo | None:
        """What the server had where it belongs when it was opened, or last deployed; None: nothing.

        It is not overwritten if it is something else by now.
        """
        return self.replaces if self.inode.local else self.info

    @property
    def tag(self) -> str:
        """What the times belong to that are set now."""
        return STAGED if self.dirty or self.detached else str(content_of(self.info))

    @property
    def size(self) -> int:
        return self.staged.size if self.staged is not None else self.info.size

    def drop_kept(self) -> None:
        """Let go of what was kept for its readers."""
        kept, self.kept = self.kept, None
        if kept is not None:
            kept.close()

    def read_at_once(self, extent: Extent) -> memoryview | None:
        """Return bytes of what the server has, if they are in memory and it is what is shown."""
        if self.replaced or self.staged is not None or self.reader is None:
            return None
        return self.reader.read_at_once(extent)

    def require_current(self) -> None:
        """Raises Stale: see *replaced*."""
        if self.replaced:
            raise Stale(f"{self.inode.path}: what was opened is not there any more: open it again")

    def require_intact(self) -> None:
        """Raises as an upload would at once: Stale; OSError: see *broken*."""
        self.require_current()
        if self.broken is not None:
            raise self.broken


def content_of(info: FileInfo) -> ContentKey:
    """Return what tells contents apart, also where the server names no checksum."""
    version = info.version
    if version is not None:
        return version.content
    return ContentKey("none", info.size)


def version_of(info: FileInfo) -> ArtifactVersion:
    """Return the version to read. Raises ProtocolViolation if the server names no checksum."""
    if info.version is None:
        raise ProtocolViolation(f"{info.path}: the server names no sha256 or sha1 of it")
    return info.version


async def reader_of(file: OpenFile, plane: DataPlane) -> ContentReader | None:
    """Return the reader of what the server has; None: the file is empty."""
    while file.reader is None and file.info.size:
        content = content_of(file.info)
        reader = await plane.open(version_of(file.info))
        # no checkpoint from here on: who reads takes what is returned, whatever becomes of the file
        if file.reader is None and content_of(file.info) == content:
            file.reader = reader
            reader.inode = file.inode.ino
        else:  # somebody else was faster, or it was written meanwhile
            plane.nursery.start_soon(reader.close)
    return file.reader
