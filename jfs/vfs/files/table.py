"""Open files: handles, and the version that each was opened on.

An ``OpenFile`` is what all handles of one inode share. It shows a version of the server, through a
reader, until the first change; from then on the staged bytes are the truth for every handle of this
mount, as on a local disk. Closing deploys them; when the last writer has gone they become a cache
entry, and the file shows a version of the server again.

Trio thread only. The order of locks is that of the package. A READ takes none.
"""

import itertools
import logging
import os
from collections.abc import Iterable

from jfs import waiting
from jfs.errors import InvalidArgument, JfsError, NotPermitted, ReadOnly, Stale
from jfs.extents import Extent
from jfs.model import FileInfo, RepoPath
from jfs.vfs.files.beside import ReadBeside
from jfs.vfs.files.handles import Handle, Handles
from jfs.vfs.files.openfile import Opened, OpenFile, reader_of
from jfs.vfs.files.opening import Opening
from jfs.vfs.files.passed import PassedWrites
from jfs.vfs.files.passing import Passing
from jfs.vfs.files.promising import leave
from jfs.vfs.files.queue import Hands, UploadQueue
from jfs.vfs.files.registry import Registry
from jfs.vfs.files.renaming import Renaming
from jfs.vfs.files.settling import Settling
from jfs.vfs.files.verdicts import Verdicts
from jfs.vfs.files.writer import Writer, Writing
from jfs.vfs.kernel import KernelView, Remembered
from jfs.vfs.namespace.inodes import ROOT, Inode
from jfs.vfs.namespace.locks import PathLocks
from jfs.vfs.namespace.tree import Tree
from jfs.vfs.reading.reader import DataPlane
from jfs.vfs.refusals import Refusals
from jfs.vfs.writing.journal import Entry
from jfs.vfs.writing.staging import StagingFile, forgotten

log = logging.getLogger(__name__)

_READS_BESIDE_WRITES = 100  # tries of one READ to see no write pass by


class OpenFiles:
    """Every open file of one mount.

    Args:
        writing: None: nothing can be written.
        kernel: what it may hold of the files.

    Attributes:
        queue: what is uploaded behind; None: nothing can be written.
        renaming: what a change of names does to them.
    """

    def __init__(
        self,
        tree: Tree,
        plane: DataPlane,
        numbers: "itertools.count[int]",
        writing: Writing | None,
        kernel: KernelView,
        locks: PathLocks,
        refusals: Refusals,
    ) -> None:
        self._tree = tree
        self._plane = plane
        self._kernel = kernel
        self._writer = None
        self._writing = writing
        self._settling: Settling | None = None
        self._no_overwrite = False
        self.queue: UploadQueue | None = None
        self._registry = Registry()
        self._passing = Passing(kernel.backings, plane.metrics)
        self._opening = Opening(self._registry, tree, plane, kernel, self._passing)
        if writing is not None:
            self._no_overwrite = writing.area.settings.no_overwrite
            self.queue = queue = UploadQueue(writing.area.settings, plane.nursery)
            self._settling = Settling(writing.area.settings)
            told = self._abandon, queue, self._settling, self._shows_other_bytes
            self._writer = writer = Writer(tree, plane, writing, locks, *told)
            verdicts = Verdicts(tree, kernel, writing, writer, self._opening, refusals)
            queue.use(Hands(writer.deploy_queued, verdicts.refuse, verdicts.left))
        self.renaming = Renaming(
            self._registry, locks, self._writer, self.queue, self._opening.let_go
        )
        self._handles = Handles(numbers)
        self._beside = ReadBeside(self._handles, kernel, refusals)
        plane.beside.listen(self._beside.noted)
        self.passed = PassedWrites(self._handles, kernel, self._writer, plane, writing)
        self._refusals = refusals

    def find(self, inode: Inode) -> OpenFile | None:
        """Return the open file of an inode, if it is open."""
        return self._registry.find(inode)

    def shown(self, inode: Inode) -> OpenFile | None:
        """Return the file whose size and times an inode shows, if it is open.

        That may be one through whose handles nothing can be read any more.
        """
        return self._registry.find(inode) or self._registry.find_ended(inode)

    def inodes(self) -> Iterable[Inode]:
        """Return what is open."""
        return self._registry.inodes()

    async def require_room(self, size: int) -> None:
        """Make sure that the staging disk has room for so many bytes. Raises OSError."""
        if self._writing is not None:
            await waiting.on_disk(self._writing.area.room.require, size)

    def handle(self, number: int) -> Handle | None:
        """Return an open handle."""
        return self._handles.get(number)

    @property
    def writer(self) -> Writer | None:
        """Who changes files; None: nobody."""
        return self._writer

    def inode_of(self, handle: int) -> Inode:
        """Return the inode that a handle is of. Raises BadHandle."""
        return self._handles.find(handle).file.inode

    @property
    def opening(self) -> Opening:
        """Who may open which inode."""
        return self._opening

    def writes(self, handle: int) -> bool:
        """Whether closing a handle may upload something. Raises BadHandle."""
        return self._handles.find(handle).writes

    def mounted(self, device: str) -> None:
        """Say on which device the mount is, ``major:minor``."""
        self._handles.device = device

    # opening and closing

    async def open(self, inode: Inode, flags: int, pid: int, *, creates: bool = False) -> Opened:
        """Open a file, pin its version; with O_TRUNC empty it. See ``Filesystem.open``.

        Args:
            creates: it is the answer to CREATE, or for ourselves: the kernel reads nothing itself.
        """
        writes = flags & os.O_ACCMODE != os.O_RDONLY
        if flags & os.O_TRUNC and not writes:  # unspecified by POSIX; Linux empties the file
            await self.truncate(inode, 0, None, pid)
        writer = self.require_writer(inode) if writes else None
        if not writes and not creates:
            await self._opening.bring(inode, flags)
        truncates = writes and bool(flags & os.O_TRUNC)
        async with self._opening.turn(inode):
            known = self._registry.find(inode)
            if writes and self._no_overwrite and not (known is not None and known.ours):
                raise NotPermitted(
                    f"{inode.path}: is on the server, and --no-overwrite keeps what is there"
                )
            file, shared = await self._opening.current(
                inode,
                pid,
                reads=not truncates,
                writes=writes,
                flags=None if creates else flags,
            )
            # no checkpoint until there is a handle: nobody lets go of the file meanwhile
            opened = self._opened(file, flags, pid, shared=shared)
            if truncates and writer is not None:
                try:
                    writer.cut(file)
                    async with file.lock:
                        await writer.truncate(file, 0)
                except BaseException:
                    await self.release(opened.handle)
                    raise
            return opened

    def create(
        self, inode: Inode, info: FileInfo, staged: StagingFile, flags: int, pid: int
    ) -> Opened:
        """Open a file that was made a moment ago, and is *staged* alone."""
        file = OpenFile(inode, info)
        file.staged = staged
        file.generation = 1  # an empty file is one, too
        file.ours = True
        self._registry.add(file)
        return self._opened(file, flags, pid, shared=False)

    def beside(self) -> list[StagingFile]:
        """Return what was closed and is on no server, while newer content of its file is written.

        It is not queued any more: nobody uploads it unless that is given up, or the mount dies.
        """
        queued = set(self.queue.files()) if self.queue is not None else set()
        found = []
        for file in self._registry:
            goes_on = file.staged is not None and file.staged.goes_on
            promised = file.staged if file.is_pending or goes_on else file.acknowledged
            if promised is not None and file not in queued and not file.detached:
                found.append(promised)
        return found

    async def discard(self, file: OpenFile, entry: Entry) -> None:
        """Drop what waits of a file, as ``jfs recover drop`` wants: *entry* alone. Never raises."""
        assert self._writer is not None
        assert self.queue is not None
        try:
            await self._writer.discard(file, entry)
        except OSError as error:
            log.warning("%s: cannot be dropped: %s", file.inode.path, error)
        await self.queue.drop(file)

    def resumed(self, file: OpenFile) -> None:
        """Take a file that an earlier mount has queued."""
        assert self._writer is not None
        self._registry.add(file)
        self._writer.enter(file, 0.0)

    async def flush(self, handle: int) -> None:
        """Deploy what was written, if nobody can write to the file any more: see ``handles``.

        Raises:
            JfsError, OSError: the verdict, which is what ``close`` returns.
        """
        opened = self._handles.find(handle)
        file = opened.file
        opened.flushed = True
        self.passed.look(file)
        if not opened.writes or not file.dirty or file.is_pending:
            return
        if await self._handles.can_write(file):
            file.require_intact()  # the last close will fail: whoever has written it hears of it
        else:
            await self.require_writer(file.inode).close(file)

    async def fsync(self, handle: int) -> None:
        """Deploy what was written. Raises as ``flush``."""
        file = self._handles.find(handle).file
        self.passed.look(file)
        if file.dirty:
            await self.require_writer(file.inode).deploy_dirty(file)

    async def release(self, handle: int) -> None:
        """Close a handle. What no FLUSH saw, such as the last stores of a mapping, is deployed.

        A mapping of what the kernel writes itself outlives its handle: it is closed behind then.
        """
        opened = self._handles.find(handle)
        self._beside.released(handle, opened)
        if self.passed.may_be_mapped(opened):
            self._plane.nursery.start_soon(self._release_unmapped, handle, opened.file)
        else:
            await self._release(handle, opened)

    async def _release_unmapped(self, handle: int, file: OpenFile) -> None:
        await self.passed.unmapped(file)
        if (opened := self._handles.get(handle)) is None:  # the mount ends
            return
        try:
            await self._release(handle, opened)
        except (JfsError, OSError) as error:
            log.warning("%s: is not closed as it should be: %s", file.inode.path, error)

    async def _release(self, handle: int, opened: Handle) -> None:
        file = opened.file
        self.passed.closed(file, handle)
        if opened.writes and file.writers == 1 and file.dirty and file.tried < file.generation:
            try:
                await self.require_writer(file.inode).close(file)
            except (JfsError, OSError) as error:
                # close() has returned: the log, jfs recover and user.jfs.last_error tell.
                log.error("%s: not uploaded: %s", file.inode.path, error)
                self._refusals.keep("close", file.inode.path, error)
        self._handles.drop(handle)
        self._passing.closed(file.inode, file.backing)
        file.writers -= opened.writes
        try:
            if self._writer is not None and (opened.writes or not file.dirty):
                await self._writer.settle(file)
        finally:  # not before: whoever closes beside us must not let go of it meanwhile
            file.handles -= 1
            if not file.handles and not file.held:
                await self._opening.let_go(file)

    async def drain(self) -> None:
        """Return when no upload is under way, and what is queued was tried once more."""
        if self.queue is not None:
            await self.queue.drain()
        if self._writing is not None:
            await self._writing.deployer.wait_idle()

    async def close(self) -> list[RepoPath]:
        """Let go of everything; for the end of the mount.

        Returns:
            Where staged bytes belong that are on no server: they stay in the journal.
        """
        left = []
        if self.queue is not None:
            await self.queue.close()
        if self._writer is not None:
            await leave(self._registry)
        for file in self._registry:
            if file.dirty and not file.is_pending:  # with what is the next mount goes on
                left.append(file.inode.path)
            elif file.staged is not None and file.staged.unseen is not None:
                pass  # the kernel may write to it as long as somebody has it open
            elif not file.dirty and file.staged is not None:
                await forgotten(file.staged)
            await self._opening.let_go(file)
        if self._writing is not None:
            await self._writing.deployer.close()
            await waiting.staging_disk().end(self._writing.area.journal.remove_the_rest)
        self._handles.clear()
        return left

    # content

    async def read(self, handle: int, extent: Extent) -> bytes | bytearray | memoryview:
        """Return bytes of an open file; see ``Filesystem.read``."""
        opened = self._handles.find(handle)
        data = await self._read(opened.file, extent)
        # no checkpoint until it is answered
        self._beside.read(handle, opened)
        return data

    def read_at_once(self, handle: int, extent: Extent) -> memoryview | None:
        """As ``read``, of bytes that are in memory; None: ``read`` has more to do."""
        opened = self._handles.get(handle)
        data = opened.file.read_at_once(extent) if opened is not None else None
        if opened is not None and data is not None:
            self._beside.read(handle, opened)
        return data

    async def _read(self, file: OpenFile, extent: Extent) -> bytes | bytearray | memoryview:
        file.require_current()
        if file.staged is None:
            reader = await reader_of(file, self._plane)
            try:
                data = await reader.read(extent) if reader is not None else b""
            except Stale:
                if file.staged is None:
                    self._tree.expire(file.inode)
                    raise
            else:
                # A newer version was opened meanwhile: the kernel keeps the pages of both under
                # one inode, so nothing of the old one may be given out any more.
                file.require_current()
                if file.staged is None:
                    return data
        # What was read beside a write may be from before it, and must not become a page after it.
        for _ in range(_READS_BESIDE_WRITES):
            written = file.written
            data = await file.staged.read(extent)
            if file.written == written:
                return data
        self._kernel.drop_pages(file.inode.ino)
        return data

    async def write(self, handle: int, offset: int, data: bytes) -> int:
        """Write all of *data*; see ``Filesystem.write``."""
        file, direct = self._handles.to_write(handle), self._handles.find(handle).direct
        writer = self.require_writer(file.inode)
        writer.cut(file)
        async with file.lock:
            file.require_current()
            try:
                await writer.write(file, offset, data)
            finally:
                file.written += 1
        if direct:
            await self._kernel.passed_by(file.inode.ino)
        return len(data)

    async def truncate(self, inode: Inode, size: int, handle: int | None, pid: int) -> None:
        """Set the size. Without a handle the verdict of the upload is the caller's.

        Raises:
            InvalidArgument, BadHandle, JfsError, OSError
        """
        if size < 0:
            raise InvalidArgument(f"{inode.path}: a size of {size}")
        if handle is not None:
            file = self._handles.to_write(handle)
            writer = self.require_writer(inode)
            writer.cut(file)
            async with file.lock:
                file.require_current()
                await writer.truncate(file, size)
            return
        flags = os.O_WRONLY | (0 if size else os.O_TRUNC)
        opened = await self.open(inode, flags, pid, creates=True)
        ours = self._handles.find(opened.handle)
        ours.flushed = True
        try:
            await self.truncate(inode, size, opened.handle, pid)
            # Other writers will close; a file that only we have open is done now.
            if ours.file.dirty and not await self._handles.can_write(ours.file):
                await self.require_writer(inode).close(ours.file)
        finally:
            await self.release(opened.handle)

    # inside

    def require_writer(self, inode: Inode) -> Writer:
        if self._writer is None:
            raise ReadOnly(f"{inode.path}: the mount is read-only")
        return self._writer

    def _opened(self, file: OpenFile, flags: int, pid: int, *, shared: bool) -> Opened:
        # Who made a file uploads it, also one that cannot write to it (O_CREAT | O_RDONLY).
        writes = flags & os.O_ACCMODE != os.O_RDONLY or (file.inode.local and not shared)
        handle, opened = self._handles.add(file, flags, pid, writes=writes)
        if writes and file.writers == 1 and self._settling is not None:
            self._settling.opened(file)
        self._passing.opened(file.inode, file.backing)
        file.inode.written |= writes
        return Opened(handle, self._opening.keep_cache(file, shared=shared), opened.direct)

    def _abandon(self, file: OpenFile) -> None:
        self._registry.end(file)
        inode = file.inode
        self._kernel.forget(inode.ino)
        parent = inode.parent.ino if inode.parent is not None else ROOT
        self._kernel.drop_soon(Remembered([(parent, inode.name)], [inode.ino]))

    def _shows_other_bytes(self, file: OpenFile) -> None:
        """Let the kernel read it anew: it shows what it was before somebody wrote."""
        file.written += 1
        self._kernel.drop_pages(file.inode.ino)
