"""The filesystem that a mount shows, free of FUSE: the facade that ``fuse.py`` and tests drive.

It decides which part answers, and what an entry looks like (mode, owner, times). Trio thread only.
Names are ``str``; inodes and handles are numbers, as the kernel speaks them.
"""

import itertools
import os
import stat
from collections.abc import Callable, Sequence

from jfs.config import TreeSettings
from jfs.errors import InvalidArgument, JfsError, NotPermitted, ReadOnly, Replaced
from jfs.extents import Extent
from jfs.model import FolderInfo, RepoPath, problem_with_name
from jfs.protocols import ArtifactStore
from jfs.vfs.attributes.extended import ExtendedAttributes, StaleView
from jfs.vfs.attributes.privileges import Privileges
from jfs.vfs.attributes.properties import PropertyTable
from jfs.vfs.attributes.stat import Attributes, Caller, Change, StatView, link_target
from jfs.vfs.boundary import Boundary
from jfs.vfs.files.behind import Behind
from jfs.vfs.files.copies import Copies
from jfs.vfs.files.openfile import Opened
from jfs.vfs.files.reserving import Reserving
from jfs.vfs.files.table import OpenFiles
from jfs.vfs.files.writer import Writing
from jfs.vfs.holdings import Holdings
from jfs.vfs.kept.keeper import FORGETFUL, Forgetful
from jfs.vfs.kernel import BackingFiles, KernelView, Notifier, Remembered
from jfs.vfs.mutations import Mutations
from jfs.vfs.namespace.folders import Folders
from jfs.vfs.namespace.inodes import Inode
from jfs.vfs.namespace.local import LocalAttributeTable
from jfs.vfs.namespace.locks import PathLocks
from jfs.vfs.namespace.queries import Queries
from jfs.vfs.namespace.reports import Report, Reports
from jfs.vfs.namespace.selectors import Link, Selectors
from jfs.vfs.namespace.tree import Tree, require_name
from jfs.vfs.questions import Questions
from jfs.vfs.reading.reader import DataPlane
from jfs.vfs.refusals import Refusals
from jfs.vfs.shards import Shards
from jfs.vfs.sleeps import Sleeps
from jfs.vfs.smallwrites import SmallWrites
from jfs.vfs.standing import Standing
from jfs.vfs.writing.area import StagingArea
from jfs.vfs.writing.deployer import Deployer

__all__ = ["Attributes", "Caller", "Change", "Filesystem", "Opened"]

# No property begins with "jfs.": reading it makes everything below fresh (``jfs refresh``).
REFRESH, UPLOAD = b"user.jfs.refresh", b"user.jfs.upload"  # this one uploads what waits now
_ENTRIES_AT_A_TIME = 256  # of a directory; more than the kernel takes at once


class Filesystem:
    """See the module.

    Args:
        root: the folder where the mount begins; that of ``RepoPath("")`` shows every repository.
        address: URL of the service, for ``user.jfs.uri``.
        area: where files are written; None: nothing can be changed, properties neither.
        notifier: tells the kernel what to forget; None: there is none.
        kept: what is learnt outlives the mount in it.
        backings: where files are registered that the kernel reads itself; None: nowhere.

    Attributes:
        boundary: is told what is refused, and what is answered after that.
        claims: of paths, for who changes the server beside the filesystem.
        copies, reserving: what is copied without being read; what fallocate(2) asks for.
        holdings: what is held in memory, and how it is given back.
        sleeps: what is believed after the machine was suspended.
    """

    def __init__(
        self,
        store: ArtifactStore,
        plane: DataPlane,
        settings: TreeSettings,
        root: FolderInfo,
        *,
        address: str = "",
        area: StagingArea | None = None,
        notifier: Notifier | None = None,
        kept: Forgetful = FORGETFUL,
        backings: BackingFiles | None = None,
    ) -> None:
        self._settings = settings
        self._store = store
        self._numbers = itertools.count(1)
        window_s, patience_s = settings.stale_if_error_s, settings.patience_s
        standing = Standing(window_s, patience_s, plane.metrics, kept.doubts)
        self._questions = questions = Questions(plane.nursery, standing)
        local = LocalAttributeTable(lambda: self._files.inodes())
        self._tree = Tree(store, settings, root, questions, local, kept)
        self._writing = None
        if area is not None:
            deployer = Deployer(store, area, plane.metrics, plane.nursery, root.path, plane.store)
            self._writing = Writing(area, deployer, local)
        self._kernel = KernelView(plane.nursery, notifier, backings)
        refusals = Refusals(plane.beside.pause)
        self.claims = locks = PathLocks()
        self._files = OpenFiles(
            self._tree, plane, self._numbers, self._writing, self._kernel, locks, refusals
        )
        if plane.settings.prefetch_shards:
            Shards(self._tree, plane)
        self.boundary = Boundary(self._tree, self._files, refusals)
        self._stat = StatView(settings, self._files, self._writing)
        self._properties = PropertyTable(store, settings, questions, kept)
        stale = StaleView(settings, standing)
        self._extended = ExtendedAttributes(
            store, self._properties, self._files, refusals, address, stale, read_only=area is None
        )
        self._selectors = Selectors(store, self._tree, settings, questions, kept)
        self._queries = Queries(store, self._tree, settings.entry_ttl_s, questions, kept)
        self.behind = Behind(self._tree, self._files, self._writing, self._kernel, questions)
        tree, files, table, forget = self._tree, self._files, self._properties, self._queries.forget
        self._mutations = Mutations(store, tree, files, table, self._writing, locks, forget)
        self._reports = Reports(self._tree.inodes)
        self.add_report("errors", refusals.text)
        self._folders = Folders(
            self._tree, self._queries, self._selectors, self._reports, questions, self._numbers
        )
        self.holdings = Holdings(self._tree, self._files, self._kernel, self._folders)
        self.sleeps = Sleeps(self._tree, self._kernel, self.behind.wake)
        self._privileges = Privileges(self._stat, self._kernel)
        self._files.passed.tell(self._privileges.written_unseen)
        self.small_writes = SmallWrites(self._files, self._stat, self._kernel, plane.nursery)
        self.copies = Copies(self._files, plane, area, self._privileges.written)
        self.reserving = Reserving(self._files)

    # names

    async def lookup(self, parent: int, name: str, pid: int = 0) -> Attributes:
        """Resolve *name*; the kernel holds the inode once more (``forget`` gives it back).

        Raises:
            NoEntry: there is no such name; believed for ``negative_ttl_s``.
        """
        self._files.opening.looks_up(pid)
        inode = await self._folders.resolve(self._tree.find(parent), name)
        # no checkpoint: a computed inode that nobody holds would be lost
        self._files.opening.looked_up(pid, inode)
        self._tree.inodes.remember(inode)
        return self._stat.of(inode)

    def remember(self, ino: int) -> None:
        """Count a lookup that ``readdir`` gave to the kernel."""
        self._tree.inodes.remember_number(ino)

    def forget(self, ino: int, count: int) -> None:
        """Take *count* lookups back. Never raises."""
        if self._tree.forget(ino, count):
            self._kernel.forget(ino)
            if self._writing is not None:
                self._writing.attributes.forget_number(ino)

    async def getattr(self, ino: int, pid: int = 0) -> Attributes:
        """Describe an inode. While it is open that is the version that was opened."""
        inode = self._tree.find(ino)
        self._reports.refresh(inode)
        if self._files.find(inode) is None:
            try:
                await self._files.opening.refresh(inode, pid)
            except Replaced:
                if self._files.shown(inode) is None:  # or it was opened meanwhile
                    raise
                self._files.opening.goes_on(pid)
        return self._stat.of(inode)

    async def readlink(self, ino: int) -> str:
        """Return what a link points to. The kernel keeps its inode for a while, but asks this anew.

        Raises:
            InvalidArgument: it is no link. NoEntry: a selector that nothing fits any more.
        """
        inode = self._tree.find(ino)
        if isinstance(inode.computed, Link):
            inode.computed = await self._selectors.current(inode.computed)
        target = link_target(inode)
        if target is None:
            raise InvalidArgument(f"inode {ino} is no link")
        return target

    async def opendir(self, ino: int) -> int:
        """Take a snapshot of a folder, so that a reader sees every entry exactly once."""
        return await self._folders.open(self._tree.find(ino))

    def readdir(self, handle: int, start: int) -> list[tuple[str, Attributes, int]]:
        """Return entries from position *start* of the snapshot: name, attributes, next position.

        The caller counts a lookup (``remember``) for every entry that it passes to the kernel.
        Entries that vanished since the snapshot are left out.
        """
        return [
            (name, self._stat.of_entry(entry), position)
            for name, entry, position in self._folders.read(handle, start, _ENTRIES_AT_A_TIME)
        ]

    def releasedir(self, handle: int) -> None:
        """Drop a snapshot."""
        self._folders.release(handle)

    async def refresh(self, ino: int) -> int:
        """Believe nothing at or below an inode any more; nor does the kernel.

        Returns:
            How many names the kernel knew.
        Cancellation: the kernel may believe some of it as long as it was told to.
        """
        top = self._tree.find(ino)
        self._queries.forget()
        self._selectors.forget()
        await self._tree.forget_below(top)
        count = 0
        async for entries, inodes in self._tree.remembered_below(top):
            count += await self._kernel.drop(Remembered(entries, inodes))
        return count

    # changes of names; each raises ReadOnly or NotPermitted where nothing may change

    async def create(
        self, parent: int, name: str, mode: int, flags: int, caller: Caller
    ) -> tuple[Opened, Attributes]:
        """Make a file and open it. It is on the server, for others to see, once it is closed.

        Raises:
            InvalidName, NameTooLong: a name that Linux and Artifactory cannot both hold.
            AlreadyExists: O_EXCL, and there is one.
        """
        folder = self._tree.find(parent)
        inode, opened = await self._mutations.create(folder, name, flags, caller.pid)
        if inode.local:
            self._stat.own(inode, mode, caller, folder)
        self._privileges.opened(opened.handle, flags, caller.uid)
        return opened, self._stat.of(inode)

    async def mknod(self, parent: int, name: str, mode: int, caller: Caller) -> Attributes:
        """Make an empty file. Raises NotPermitted for devices, pipes and sockets."""
        if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
            raise NotPermitted(f"{name}: Artifactory holds neither devices nor pipes nor sockets")
        opened, attributes = await self.create(parent, name, mode, os.O_WRONLY | os.O_EXCL, caller)
        try:
            await self._files.flush(opened.handle)
        except (JfsError, OSError):
            self.forget(attributes.ino, 1)
            raise
        finally:
            await self.release(opened.handle)
        return attributes

    async def mkdir(self, parent: int, name: str, mode: int, caller: Caller) -> Attributes:
        """Make a folder. Raises AlreadyExists, InvalidName."""
        folder = self._tree.find(parent)
        inode = await self._mutations.mkdir(folder, name)
        self._stat.own(inode, mode, caller, folder)
        self._tree.inodes.remember(inode)
        return self._stat.of(inode)

    async def symlink(self, parent: int, name: str, target: str, caller: Caller) -> Attributes:
        """Make a symbolic link, stored as the ``jf`` client stores one."""
        folder = self._tree.find(parent)
        inode = await self._mutations.symlink(folder, name, target)
        self._stat.own(inode, 0o777, caller, folder)
        self._tree.inodes.remember(inode)
        return self._stat.of(inode)

    async def unlink(self, parent: int, name: str) -> None:
        """Remove a file. Who has it open keeps its content. Raises IsADirectory."""
        await self._mutations.unlink(self._tree.find(parent), name)

    async def rmdir(self, parent: int, name: str) -> None:
        """Remove an empty folder. Raises NotEmpty, NotADirectory."""
        await self._mutations.rmdir(self._tree.find(parent), name)

    async def rename(
        self, parent: int, name: str, new_parent: int, new_name: str, flags: int
    ) -> None:
        """Move an entry on the server, also to another repository; see ``Mutations.rename``."""
        folder = self._tree.find(new_parent)
        await self._mutations.rename(self._tree.find(parent), name, folder, new_name, flags)
        if (inode := folder.child(new_name)) is not None:
            self._stat.touch(inode)

    # content

    async def open(self, ino: int, flags: int, pid: int = 0, uid: int = 0) -> Opened:
        """Open a file and pin its version.

        Args:
            flags: of open(2); O_TRUNC is obeyed.
            pid: who opens; a copy of its descriptor is told from the last one by it.
            uid: whose process it is: what other users than root write has no setuid bit after it.
        Raises:
            ReadOnly, NotPermitted: *flags* ask for writing where that may not be.
            IsADirectory: it is a folder.
            IntegrityError: the server's bytes do not match its checksum.
            ProtocolViolation: the server names no checksum, so versions cannot be told apart.
        """
        inode = self._tree.find(ino)
        writes = flags & os.O_ACCMODE != os.O_RDONLY or bool(flags & os.O_TRUNC)
        if isinstance(inode.computed, Report):
            self._reports.open(inode, handle := next(self._numbers), writes=writes)
            return Opened(handle, keep_cache=False, direct=True)
        if writes:
            if self._writing is None:
                raise ReadOnly(f"{inode.path}: the mount is read-only")
            if not self._store.is_writable(inode.path.repo):
                raise ReadOnly(f"{inode.path.repo}: a remote repository only shows what it fetched")
        opened = await self._files.open(inode, flags, pid)
        self._privileges.opened(opened.handle, flags, uid)
        if flags & os.O_TRUNC and uid:
            await self._privileges.drop(inode)
        return opened

    async def read(self, handle: int, extent: Extent) -> bytes | bytearray | memoryview:
        """Return bytes of an open file; fewer only at its end.

        Returns:
            A buffer that stays right until the caller's next checkpoint only.
        Raises:
            Stale: the artifact was replaced since the handle was opened.
            IntegrityError, RemoteError, BadHandle
        """
        if handle in self._reports:
            return self._reports.read(handle, extent.start, extent.stop)
        return await self._files.read(handle, extent)

    def read_at_once(self, handle: int, extent: Extent) -> memoryview | None:
        """As ``read``, of bytes that are in memory; None: ``read`` has more to do."""
        return None if self.boundary.expects else self._files.read_at_once(handle, extent)

    async def write(self, handle: int, offset: int, data: bytes) -> int:
        """Write all of *data* to the staged copy; the first write fetches what was there.

        Raises:
            OSError: the local disk is full. RemoteError: what was there cannot be fetched.
        """
        count = await self._files.write(handle, offset, data)
        await self._privileges.written(handle, self._files.inode_of(handle))
        return count

    async def flush(self, handle: int) -> None:
        """Upload what was written: ``close`` returns this verdict; see ``OpenFiles.flush``."""
        if handle not in self._reports:
            await self._files.flush(handle)

    async def fsync(self, handle: int) -> None:
        """Upload what was written."""
        if handle not in self._reports:
            await self._files.fsync(handle)

    async def release(self, handle: int) -> None:
        """Close a handle."""
        if handle in self._reports:
            self._reports.release(handle)
            return
        with self._privileges.releasing(handle):
            await self._files.release(handle)

    # attributes

    async def setattr(
        self, ino: int, change: Change, handle: int | None = None, pid: int = 0, uid: int = 0
    ) -> Attributes:
        """Set size, mode, owner and times. All but the size are kept while the mount lives.

        Raises:
            IsADirectory: the size of a folder. The verdict of the upload, where truncating is one.
        """
        inode = self._named(ino)
        if self._writing is None:
            raise ReadOnly(f"{inode.path}: the mount is read-only")
        if inode.computed is not None:
            raise NotPermitted(f"{inode.name}: is computed")
        if change.size is not None:
            await self._files.truncate(inode, change.size, handle, pid)
        self._stat.change(inode, change)
        await self._files.renaming.note_times(inode)
        if uid and change.size is not None:
            self._stat.drop_privileges(inode)
        return self._stat.of(inode)

    async def getxattr(self, ino: int, name: bytes) -> bytes:
        """Return a property, or a fact about the artifact; see ``ExtendedAttributes``."""
        return await self._extended.get(self._named(ino), name)

    async def listxattr(self, ino: int) -> list[bytes]:
        """Name the properties. Facts are not listed: who copies attributes cannot set them."""
        return await self._extended.names(self._named(ino))

    async def setxattr(self, ino: int, name: bytes, value: bytes) -> None:
        """Set a property. Whether it exists is the caller's to check (XATTR_CREATE)."""
        inode = self._tree.find(ino)
        await self._extended.set(inode, name, value)
        self._tree.changes += 1
        self._stat.touch(inode)

    async def removexattr(self, ino: int, name: bytes) -> None:
        """Remove a property. Raises as ``setxattr``, and NoAttribute."""
        inode = self._tree.find(ino)
        await self._extended.set(inode, name, None)
        self._tree.changes += 1
        self._stat.touch(inode)

    def add_report(self, name: str, write: Callable[[], str]) -> None:
        """Show one more text in ``.jfs/``; *write* returns it at once, whatever is down."""
        self._reports.add(name, write)

    async def drain(self) -> None:
        """Return when no upload is under way, and what is queued was tried once more."""
        await self._files.drain()

    async def close(self) -> Sequence[RepoPath]:
        """Let go of every reader; for the end of the mount.

        Returns:
            Where bytes belong that were written and are on no server: the journal has them.
        """
        self._questions.close()
        return await self._files.close()

    def up(self, subject: str) -> None:
        """Ask anew for what stands in, at its next use: *subject* can be asked again.

        That is a repository, or what else is asked; "": the server.
        """
        self._questions.up("" if subject.startswith("/") else subject)

    def mounted(self, device: str) -> None:
        """Say on which device it is mounted, ``major:minor``."""
        self._files.mounted(device)

    def missing_for_s(self, parent: int, name: str) -> float:
        """Return how long the kernel may believe that a name is not there: what is left of ours."""
        folder = self._tree.find(parent)
        ttl_s = self._settings.negative_ttl_s
        if folder.computed is not None or folder.below is None or problem_with_name(name):
            return ttl_s
        cell = folder.below.names.get(name)
        return cell.left_s(ttl_s)[0] if cell is not None and cell.is_known else 0.0

    def _named(self, ino: int) -> Inode:
        """Return an inode. Raises Replaced for a file that has no name, and is not open."""
        inode = self._tree.find(ino)
        if self._files.find(inode) is None:
            require_name(inode)
        return inode
