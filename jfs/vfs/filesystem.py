"""The filesystem that a mount shows, free of FUSE: the facade that ``fuse.py`` and tests drive.

It decides which part answers, and what an entry looks like (mode, owner, times). Trio thread only.
Names are ``str``; inodes and handles are numbers, as the kernel speaks them.
"""

import itertools
import stat
from collections.abc import Sequence
from dataclasses import dataclass

import trio

from jfs.config import TreeSettings
from jfs.errors import BadHandle, NoAttribute, NoEntry, NotPermitted, Unsupported
from jfs.extents import Extent
from jfs.model import FileInfo, FolderInfo, RepoPath
from jfs.protocols import ArtifactStore
from jfs.vfs import queries, selectors, xattrs
from jfs.vfs.files import Opened, OpenFiles
from jfs.vfs.inodes import ROOT, Inode
from jfs.vfs.properties import PropertyTable
from jfs.vfs.queries import Queries, QueryFolder
from jfs.vfs.reader import DataPlane
from jfs.vfs.selectors import Selectors
from jfs.vfs.tree import Tree

__all__ = ["Attributes", "Filesystem", "Opened", "Remembered"]

# No property begins with "jfs.": reading it makes everything below fresh (``jfs refresh``).
REFRESH = b"user.jfs.refresh"


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
class Remembered:
    """What the kernel may have cached below an inode: to be invalidated by ``fuse.py``.

    Attributes:
        entries: number of a folder and a name in it, there or missing.
        inodes: numbers whose attributes are cached.
    """

    entries: Sequence[tuple[int, str]]
    inodes: Sequence[int]


@dataclass(frozen=True, slots=True)
class _Link:
    """What a computed symbolic link points to."""

    target: str


class Filesystem:
    """See the module. Read-only in structure; properties can be set.

    Args:
        root: the folder where the mount begins; that of ``RepoPath("")`` shows every repository.
        address: URL of the service, for ``user.jfs.uri``.
    """

    def __init__(
        self,
        store: ArtifactStore,
        plane: DataPlane,
        settings: TreeSettings,
        root: FolderInfo,
        *,
        address: str = "",
    ) -> None:
        self._settings = settings
        self._store = store
        self._address = address
        self._numbers = itertools.count(1)
        self._tree = Tree(store, settings, root)
        self._files = OpenFiles(self._tree, plane, self._numbers)
        self._properties = PropertyTable(store, settings.attr_ttl_s)
        self._selectors = Selectors(store, self._tree)
        self._queries = Queries(store, self._tree, settings.entry_ttl_s)
        self._listings: dict[int, Sequence[tuple[str, Inode]]] = {}

    # names

    async def lookup(self, parent: int, name: str) -> Attributes:
        """Resolve *name*; the kernel holds the inode once more (``forget`` gives it back).

        Raises:
            NoEntry: there is no such name; believed for ``negative_ttl_s``.
        """
        inode = await self._resolve(self._tree.find(parent), name)
        # no checkpoint: a computed inode that nobody holds would be lost
        self._tree.inodes.remember(inode)
        return self._attributes(inode)

    def remember(self, ino: int) -> None:
        """Count a lookup that ``readdir`` gave to the kernel."""
        self._tree.inodes.remember(self._tree.find(ino))

    def forget(self, ino: int, count: int) -> None:
        """Take *count* lookups back. Never raises."""
        if self._tree.inodes.forget(ino, count):
            self._files.forget(ino)

    async def getattr(self, ino: int) -> Attributes:
        """Describe an inode. While it is open that is the version that was opened."""
        inode = self._tree.find(ino)
        if self._files.version_shown(inode) is None:
            await self._tree.refresh(inode)
        return self._attributes(inode)

    def readlink(self, ino: int) -> str:
        """Give what a selector stands for. Raises NoEntry."""
        computed = self._tree.find(ino).computed
        if not isinstance(computed, _Link):
            raise NoEntry(f"inode {ino} is no link")
        return computed.target

    async def opendir(self, ino: int) -> int:
        """Take a snapshot of a folder, so that a reader sees every entry exactly once."""
        folder = self._tree.find(ino)
        if isinstance(folder.computed, QueryFolder):
            listing = [
                (child.info.path.name, child)
                for child in await self._queries.children(folder.computed)
            ]
        else:
            listing = [(child.name, child) for child in await self._tree.children(folder)]
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
            (name, self._attributes(inode), position + 1)
            for position, (name, inode) in enumerate(listing[start : start + 256], start)
            if inode.attached() and self._tree.inodes.lives(inode)
        ]

    def releasedir(self, handle: int) -> None:
        """Drop a snapshot."""
        for _, inode in self._listings.pop(handle, ()):
            self._tree.inodes.settle(inode)

    async def refresh(self, ino: int) -> Remembered:
        """Believe nothing at or below an inode any more.

        Returns:
            What the kernel must be told to forget too.
        """
        top = self._tree.find(ino)
        entries: list[tuple[int, str]] = []
        inodes: list[int] = []
        waiting = [top]
        while waiting:
            inode = waiting.pop()
            inodes.append(inode.ino)
            entries += [(inode.ino, name) for name in inode.missing or ()]
            for child in inode.dentries.values():
                entries.append((inode.ino, child.name))
                waiting.append(child)
        if top.parent is not None:
            entries.append((top.parent.ino, top.name))
        self._tree.forget_below(top)
        self._queries.forget()
        return Remembered(entries, inodes)

    # content

    async def open(self, ino: int, flags: int) -> Opened:
        """Open a file for reading and pin its version.

        Raises:
            ReadOnly: *flags* ask for writing.
            IsADirectory: it is a folder.
            IntegrityError: the server's bytes do not match its checksum.
            ProtocolViolation: the server names no checksum, so versions cannot be told apart.
        """
        return await self._files.open(self._tree.find(ino), flags)

    async def read(self, handle: int, extent: Extent) -> bytes | bytearray | memoryview:
        """Give bytes of an open file; fewer only at its end.

        Returns:
            A buffer that stays right until the caller's next checkpoint only.
        Raises:
            Stale: the artifact was replaced since the handle was opened.
            IntegrityError, RemoteError, BadHandle
        """
        return await self._files.read(handle, extent)

    async def release(self, handle: int) -> None:
        """Close a handle."""
        await self._files.release(handle)

    # attributes

    async def getxattr(self, ino: int, name: bytes) -> bytes:
        """Give a property, or a fact about the artifact.

        Raises:
            NoAttribute: it has none of that name.
            Unsupported: another namespace than ``user.``; answered without the server.
        """
        if name.startswith(xattrs.FACTS.encode()):
            return await self._fact(self._tree.find(ino), name.decode("utf-8", "replace"))
        key = xattrs.key_to_read(name)
        values = (await self._properties.get(self._tree.find(ino))).get(key)
        if values is None:
            raise NoAttribute(f"no property {key}")
        return xattrs.encode_values(values)

    async def listxattr(self, ino: int) -> list[bytes]:
        """Name the properties. Facts are not listed: who copies attributes cannot set them."""
        properties = await self._properties.get(self._tree.find(ino))
        return [f"{xattrs.PREFIX}{key}".encode() for key in sorted(properties)]

    async def setxattr(self, ino: int, name: bytes, value: bytes) -> None:
        """Set a property. Whether it exists is the caller's to check (XATTR_CREATE).

        Raises:
            InvalidProperty: Artifactory cannot hold it.
            NotPermitted: a fact, or an entry that is computed.
            Unsupported: another namespace than ``user.``.
        """
        key, values = xattrs.key_to_write(name), xattrs.decode_values(value)
        await self._change(ino, key, values)

    async def removexattr(self, ino: int, name: bytes) -> None:
        """Remove a property. Raises as ``setxattr``, and NoAttribute."""
        await self._change(ino, xattrs.key_to_write(name), None)

    async def close(self) -> None:
        """Let go of every reader; for the end of the mount."""
        await self._files.close()

    @property
    def negative_ttl_s(self) -> float:
        """How long the kernel may believe that a name is not there."""
        return self._settings.negative_ttl_s

    async def _resolve(self, parent: Inode, name: str) -> Inode:
        """Resolve a name: a real entry, else a computed one."""
        try:
            if isinstance(parent.computed, QueryFolder):
                return await self._queries.lookup(parent.computed, name)
            return await self._tree.lookup(parent, name)
        except NoEntry:
            if name == queries.NAME and parent.ino == ROOT:
                return self._queries.root()
            if not name.startswith(selectors.MARK) or parent.computed is not None:
                raise
        target = await self._selectors.resolve(parent, name)
        info = FolderInfo(RepoPath(parent.path.repo, f"{parent.path.path}//{name}"), 0)
        return self._tree.inodes.compute(f"{parent.path}//{name}", info, _Link(target))

    async def _fact(self, inode: Inode, name: str) -> bytes:
        if inode.computed is not None or not inode.path.repo:
            raise NoAttribute(f"{name}: only of what is on the server")
        fact = name.removeprefix(xattrs.FACTS)
        info = inode.info
        value = xattrs.fact(info, fact)
        if value is None and fact == "downloads":
            value = str(await self._store.downloads(inode.path))
        elif value is None and fact == "uri":
            value = f"{self._address}/{inode.path}"
        elif value is None and fact == "state":
            value = "clean"
        elif value is None and fact != "last_error":
            # A listing does not say everything: ask once, and keep the answer.
            info = await self._store.stat(inode.path)
            known = inode.info
            if isinstance(info, FileInfo) and isinstance(known, FileInfo):
                inode.info = info if info.version == known.version else known
            value = xattrs.fact(info, fact)
        if value is None:
            raise NoAttribute(f"{name}: not known")
        return value.encode()

    async def _change(self, ino: int, key: str, values: tuple[str, ...] | None) -> None:
        if self._settings.read_only:
            raise NotPermitted("the mount is read-only")
        inode = self._tree.find(ino)
        if isinstance(inode.computed, _Link):
            raise Unsupported("a selector has no properties of its own")
        await self._properties.change(inode, {key: values})

    def _attributes(self, inode: Inode) -> Attributes:
        settings = self._settings
        info = self._files.version_shown(inode) or inode.info
        # The kernel counts from its own receipt: give it what is left of ours, so that a change
        # is seen within one TTL and not two.
        left = max(0.0, inode.fresh_until - trio.current_time())
        if inode.ino == ROOT or inode.computed is not None:
            left = settings.attr_ttl_s
        mode, size, nlink = stat.S_IFDIR | 0o777 & ~settings.umask, 0, 2
        if isinstance(inode.computed, _Link):
            mode, size, nlink = stat.S_IFLNK | 0o777, len(inode.computed.target.encode()), 1
        elif isinstance(info, FileInfo):
            mode, size, nlink = stat.S_IFREG | 0o666 & ~settings.umask, info.size, 1
        return Attributes(
            ino=inode.ino,
            mode=mode,
            nlink=nlink,
            uid=settings.uid,
            gid=settings.gid,
            size=size,
            mtime_ns=info.modified_ns,
            ctime_ns=info.modified_ns,
            entry_ttl_s=min(left, settings.entry_ttl_s),
            attr_ttl_s=min(left, settings.attr_ttl_s),
        )
