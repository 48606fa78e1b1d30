"""Open files: handles, the version that each was opened on, and whose pages the kernel holds.

Trio thread only.
"""

import itertools
from dataclasses import dataclass

import trio

from jfs.errors import BadHandle, IsADirectory, ProtocolViolation, ReadOnly, Stale
from jfs.extents import Extent
from jfs.model import ArtifactVersion, ContentKey, FileInfo
from jfs.vfs.inodes import Inode
from jfs.vfs.reader import ContentReader, DataPlane
from jfs.vfs.tree import Tree

_WRITING = 0o3  # O_WRONLY | O_RDWR


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


class OpenFiles:
    """Every open file of one mount."""

    def __init__(self, tree: Tree, plane: DataPlane, numbers: "itertools.count[int]") -> None:
        self._tree = tree
        self._plane = plane
        self._numbers = numbers
        self._handles: dict[int, _ReadHandle] = {}
        self._open: dict[Inode, _OpenFile] = {}
        # Whose pages the kernel may still hold for an inode, and how often that content had been
        # rejected when they were read. Nothing is pushed into them: measured on Linux 6.18, a READ
        # of 1 MiB is answered at 2.5 to 2.9 GB/s, while notify_store fills page by page (0.3 to
        # 1.1 GB/s, with twice the CPU time).
        self._pages: dict[int, tuple[ContentKey, int]] = {}
        self._opening: dict[Inode, trio.Lock] = {}

    def version_shown(self, inode: Inode) -> FileInfo | None:
        """Give what an open file was opened on; None if it is not open.

        A reader that stops at ``st_size`` must never see the size of another version than the
        one its handle reads.
        """
        file = self._open.get(inode)
        return file.info if file is not None else None

    def forget(self, ino: int) -> None:
        """The kernel holds nothing of the inode any more."""
        self._pages.pop(ino, None)

    async def open(self, inode: Inode, flags: int) -> Opened:
        """Open a file for reading and pin its version; see ``Filesystem.open``."""
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
        """Give bytes of an open file; see ``Filesystem.read``."""
        opened = self._handles.get(handle)
        if opened is None:
            raise BadHandle(f"handle {handle} is not open")
        if opened.replaced:
            raise _replaced(opened)
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
            raise _replaced(opened)
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

    async def close(self) -> None:
        """Let go of every reader; for the end of the mount."""
        for file in list(self._open.values()):
            if file.reader is not None:
                await file.reader.close()
        self._open.clear()
        self._handles.clear()

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


def _replaced(opened: _ReadHandle) -> Stale:
    return Stale(f"{opened.inode.path}: replaced on the server since it was opened")


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
