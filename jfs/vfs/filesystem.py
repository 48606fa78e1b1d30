"""The filesystem that a mount shows, free of FUSE: the facade that ``fuse.py`` and tests drive.

It owns handles and what an entry looks like (mode, owner, times). Trio thread only. Names are
``str``; inodes and handles are numbers, as the kernel speaks them.
"""

import itertools
import stat
from collections.abc import Sequence
from dataclasses import dataclass

import trio

from jfs.config import TreeSettings
from jfs.errors import BadHandle, IsADirectory, ProtocolViolation, ReadOnly, Stale
from jfs.extents import Extent
from jfs.model import ArtifactVersion, ContentKey, FileInfo, FolderInfo
from jfs.protocols import ArtifactStore
from jfs.vfs.inodes import ROOT, Inode
from jfs.vfs.reader import ContentReader, DataPlane
from jfs.vfs.tree import Tree

_BLOCK = 4096  # st_blksize would steer stdio buffers; the kernel's page is what it expects
_WRITING = 0o3  # O_WRONLY | O_RDWR


@dataclass(frozen=True, slots=True)
class Attributes:
    """What ``stat`` shows. Times are ns, TTLs seconds."""

    ino: int
    mode: int
    nlink: int
    uid: int
    gid: int
    size: int
    mtime_ns: int
    ctime_ns: int
    entry_ttl_s: float
    attr_ttl_s: float


@dataclass(frozen=True, slots=True)
class Opened:
    """A new handle; *keep_cache*: the kernel's pages of the inode still hold this content."""

    handle: int
    keep_cache: bool


class _ReadHandle:
    """One open file: the version it was opened on, for as long as it lives."""

    __slots__ = ("info", "inode", "reader", "replaced")

    def __init__(self, inode: Inode, info: FileInfo, reader: ContentReader | None) -> None:
        self.inode = inode
        self.info = info
        self.reader = reader  # None: the file is empty
        self.replaced = False


class _OpenFile:
    """All handles of one inode on the version that was current at the last open."""

    __slots__ = ("handles", "info", "reader")

    def __init__(self, info: FileInfo, reader: ContentReader | None) -> None:
        self.info = info
        self.reader = reader
        self.handles = 0


class Filesystem:
    """See the module. Read-only.

    Args:
        root: the folder where the mount begins; that of ``RepoPath("")`` shows every repository.
    """

    def __init__(
        self, store: ArtifactStore, plane: DataPlane, settings: TreeSettings, root: FolderInfo
    ) -> None:
        self._settings = settings
        self._plane = plane
        self._tree = Tree(store, settings, root)
        self._numbers = itertools.count(1)
        self._handles: dict[int, _ReadHandle] = {}
        self._listings: dict[int, Sequence[Inode]] = {}
        self._open: dict[Inode, _OpenFile] = {}
        # Whose pages the kernel may still hold for an inode, and how often that content had been
        # rejected when they were read. Nothing is pushed into them: measured
        # on Linux 6.18, a READ of 1 MiB is answered into large folios at 2.5 to 2.9 GB/s, while
        # notify_store fills page by page (0.3 to 1.1 GB/s, with twice the CPU time).
        self._pages: dict[int, tuple[ContentKey, int]] = {}
        self._opening: dict[Inode, trio.Lock] = {}

    async def lookup(self, parent: int, name: str) -> Attributes:
        """Resolve *name*; the kernel holds the inode once more (``forget`` gives it back).

        Raises:
            NoEntry: there is no such name; believed for ``negative_ttl_s``.
        """
        inode = await self._tree.lookup(self._tree.find(parent), name)
        self._tree.inodes.remember(inode)
        return self._attributes(inode)

    def remember(self, ino: int) -> None:
        """Count a lookup that ``readdir`` gave to the kernel."""
        self._tree.inodes.remember(self._tree.find(ino))

    def forget(self, ino: int, count: int) -> None:
        """Take *count* lookups back. Never raises."""
        if self._tree.inodes.forget(ino, count):
            self._pages.pop(ino, None)

    async def getattr(self, ino: int) -> Attributes:
        """Describe an inode. While it is open that is the version that was opened.

        A reader that stops at ``st_size`` must never see the size of another version than the
        one its handle reads.
        """
        inode = self._tree.find(ino)
        if inode not in self._open:
            await self._tree.refresh(inode)
        return self._attributes(inode)

    async def open(self, ino: int, flags: int) -> Opened:
        """Open a file for reading and pin its version.

        Raises:
            ReadOnly: *flags* ask for writing.
            IsADirectory: it is a folder.
            ProtocolViolation: the server names no checksum, so versions cannot be told apart.
        """
        inode = self._tree.find(ino)
        if flags & _WRITING:
            raise ReadOnly(f"{inode.path}: the mount is read-only")
        lock = self._opening.setdefault(inode, trio.Lock())
        try:
            async with lock:
                return await self._open_pinned(inode)
        finally:
            if not lock.locked():
                self._opening.pop(inode, None)

    async def read(self, handle: int, extent: Extent) -> bytes | bytearray | memoryview:
        """Give bytes of an open file; fewer only at its end.

        Returns:
            A buffer that stays right until the caller's next checkpoint only.
        Raises:
            Stale: the artifact was replaced since the handle was opened.
            RemoteError, BadHandle
        """
        opened = self._handle(handle)
        if opened.reader is None:
            return b""
        try:
            data = await opened.reader.read(extent)
        except Stale:
            self._tree.expire(opened.inode)
            raise
        # A newer version was opened meanwhile: the kernel keeps the pages of both under one inode,
        # so nothing of the old one may be given out any more.
        if opened.replaced:
            raise Stale(f"{opened.inode.path}: replaced on the server since it was opened")
        return data

    async def release(self, handle: int) -> None:
        """Close a handle."""
        opened = self._handles.pop(handle, None)
        if opened is None:
            raise BadHandle(f"handle {handle} is not open")
        file = self._open.get(opened.inode)
        if file is not None and file.info is opened.info:
            file.handles -= 1
            if file.handles == 0:
                del self._open[opened.inode]
                if file.reader is not None:
                    await file.reader.close()

    async def opendir(self, ino: int) -> int:
        """Take a snapshot of a folder, so that a reader sees every entry exactly once."""
        folder = self._tree.find(ino)
        listing = await self._tree.children(folder)
        handle = next(self._numbers)
        self._listings[handle] = listing
        return handle

    def readdir(self, handle: int, start: int) -> list[tuple[str, Attributes, int]]:
        """Give entries from position *start* of the snapshot: name, attributes, next position.

        The caller counts a lookup (``remember``) for every entry that it passes to the kernel.
        Entries that vanished since the snapshot are left out.
        """
        try:
            listing = self._listings[handle]
        except KeyError:
            raise BadHandle(f"handle {handle} is not an open folder") from None
        return [
            (inode.name, self._attributes(inode), position + 1)
            for position, inode in enumerate(listing[start : start + 256], start)
            if inode.attached()
        ]

    def releasedir(self, handle: int) -> None:
        """Drop a snapshot."""
        self._listings.pop(handle, None)

    async def close(self) -> None:
        """Let go of every reader; for the end of the mount."""
        for file in list(self._open.values()):
            if file.reader is not None:
                await file.reader.close()
        self._open.clear()
        self._handles.clear()

    @property
    def negative_ttl_s(self) -> float:
        """How long the kernel may believe that a name is not there."""
        return self._settings.negative_ttl_s

    async def _open_pinned(self, inode: Inode) -> Opened:
        await self._tree.refresh(inode)
        info = inode.info
        if not isinstance(info, FileInfo):
            raise IsADirectory(f"{inode.path} is a folder")
        file = self._open.get(inode)
        if file is None or not self._is_current(file, info):
            version = _content_version(info)
            reader = await self._plane.open(version) if version is not None else None
            # no checkpoint until the handle exists
            file = self._open.get(inode)
            if file is not None:
                self._replace(inode)
            file = self._open[inode] = _OpenFile(info, reader)
        file.handles += 1
        handle = next(self._numbers)
        self._handles[handle] = _ReadHandle(inode, file.info, file.reader)
        pages = _content(info), file.reader.rejections if file.reader is not None else 0
        keep = self._pages.get(inode.ino) == pages
        self._pages[inode.ino] = pages
        return Opened(handle, keep)

    def _is_current(self, file: _OpenFile, info: FileInfo) -> bool:
        """Whether an open file has the content of *info*, and nothing wrong was read of it."""
        if _content(file.info) != _content(info):
            return False
        reader = file.reader
        return reader is None or reader.rejections == self._plane.rejections(reader.version)

    def _replace(self, inode: Inode) -> None:
        """Cut the handles of an older version off; their next READ is ESTALE."""
        del self._open[inode]
        orphans = set()
        for handle in self._handles.values():
            if handle.inode is inode and not handle.replaced:
                handle.replaced = True
                if handle.reader is not None:
                    orphans.add(handle.reader)
        for reader in orphans:
            self._plane.nursery.start_soon(reader.close)

    def _handle(self, handle: int) -> _ReadHandle:
        opened = self._handles.get(handle)
        if opened is None:
            raise BadHandle(f"handle {handle} is not open")
        if opened.replaced:
            raise Stale(f"{opened.inode.path}: replaced on the server since it was opened")
        return opened

    def _attributes(self, inode: Inode) -> Attributes:
        settings = self._settings
        file = self._open.get(inode)
        info = file.info if file is not None else inode.info
        # The kernel counts from its own receipt: give it what is left of ours, so that a change
        # is seen within one TTL and not two.
        left = max(0.0, inode.fresh_until - trio.current_time())
        if inode.ino == ROOT:
            left = settings.attr_ttl_s
        is_file = isinstance(info, FileInfo)
        return Attributes(
            ino=inode.ino,
            mode=(stat.S_IFREG | 0o666 if is_file else stat.S_IFDIR | 0o777) & ~settings.umask,
            nlink=1 if is_file else 2,
            uid=settings.uid,
            gid=settings.gid,
            size=info.size if isinstance(info, FileInfo) else 0,
            mtime_ns=info.modified_ns,
            ctime_ns=info.modified_ns,
            entry_ttl_s=min(left, settings.entry_ttl_s),
            attr_ttl_s=min(left, settings.attr_ttl_s),
        )


def _content(info: FileInfo) -> ContentKey:
    version = info.version
    if version is not None:
        return version.content
    return ContentKey("none", info.size)


def _content_version(info: FileInfo) -> ArtifactVersion | None:
    """Give the version to read; None for an empty file, which needs no bytes (and no range)."""
    if info.size == 0:
        return None
    if info.version is None:
        raise ProtocolViolation(f"{info.path}: the server names no sha256 or sha1 of it")
    return info.version
