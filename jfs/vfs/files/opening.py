"""Which open file an open gets: one that is there, or one on what the server has now.

The kernel opens an inode, not a name, and may have looked the name up a while ago. Where the name
is another inode's by now, or nobody's, the open is refused (``Replaced``): the kernel looks every
name up again, and opens what it finds. Who opens without a name (``/proc/self/fd/N``, a file that
is bind-mounted) comes back with the same inode, and no lookup in between: it gets what it had,
whatever the server has. What was removed here and is open still is refused first, too: the name may
have gone, or become another's, after it was looked up; what is written to the file goes with it.

The kernel tries twice. Who was refused what it had looked up again has heard of it: what it opens
next is another call, and begins anew.

What the kernel reads itself has all of its handles read so (``passing``): an open that cannot be is
refused in the same way, and its name leads to another inode.

Trio thread only. One open of an inode at a time (``Opening.turn``); whoever has the turn may wait
for the server, and must not want the claims of a path meanwhile but to close again.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import NoReturn

import trio

from jfs.errors import IsADirectory, JfsError, NoEntry, NotFound, Replaced, Stale
from jfs.model import ArtifactVersion, FileInfo, same_content
from jfs.vfs.files.openfile import OpenFile, content_of, reader_of
from jfs.vfs.files.passing import Passing, fits
from jfs.vfs.files.registry import Registry
from jfs.vfs.kernel import KernelView
from jfs.vfs.namespace.inodes import Inode
from jfs.vfs.namespace.tree import Tree, require_name
from jfs.vfs.reading.fetching import Fetching
from jfs.vfs.reading.reader import DataPlane
from jfs.vfs.writing.staging import forgotten

_REFUSED_KEPT = 1024
_FETCHES = 3  # for one open, of a file that is replaced all the time


@dataclass(slots=True)
class _Refusal:
    """Of a thread: the inode that it asked for; then, once it looks up, what it has found."""

    inode: Inode | None
    found: Inode | None = None


class Opening:
    """See the module.

    Attributes:
        fetching: what comes as a whole.
    """

    def __init__(
        self,
        registry: Registry,
        tree: Tree,
        plane: DataPlane,
        kernel: KernelView,
        passing: Passing,
    ) -> None:
        self._registry = registry
        self._tree = tree
        self._plane = plane
        self._kernel = kernel
        self._passing = passing
        self.fetching = Fetching(plane)
        self._turns: dict[Inode, trio.Lock] = {}
        self._refused: dict[int, _Refusal] = {}  # by the thread that asked

    @asynccontextmanager
    async def turn(self, inode: Inode) -> AsyncIterator[None]:
        """Be the only one who opens this inode."""
        lock = self._turns.setdefault(inode, trio.Lock())
        try:
            async with lock:
                yield
        finally:
            if not lock.locked():
                self._turns.pop(inode, None)

    def looks_up(self, pid: int) -> None:
        """A thread looks a name up: what it opens next, it opens by name."""
        if (refusal := self._refused.get(pid)) is not None:
            refusal.inode = refusal.found = None

    def looked_up(self, pid: int, found: Inode) -> None:
        """A thread has looked a name up."""
        if (refusal := self._refused.get(pid)) is not None:
            refusal.found = found

    def goes_on(self, pid: int) -> None:
        """A thread has an answer that is no refusal: what it asks next is another call."""
        self._refused.pop(pid, None)

    def _refuse(self, inode: Inode, pid: int, before: _Refusal | None) -> None:
        """Note that a thread is refused an inode, unless that was its second try by name."""
        if before is not None and before.found is inode:
            self.goes_on(pid)
            return
        if len(self._refused) >= _REFUSED_KEPT:
            self._refused.clear()
        self._refused[pid] = _Refusal(inode)

    def _comes_again(self, inode: Inode, pid: int, before: _Refusal | None) -> bool:
        """Whether a thread was refused this inode a moment ago, and looked nothing up since.

        Threads of other PID namespaces are all 0, and cannot be told apart.
        """
        again = before is not None and before.inode is inode
        return again and (pid != 0 or self._registry.find(inode) is not None)

    async def refresh(self, inode: Inode, pid: int) -> None:
        """Make what is known of an inode fresh that is not open. Raises as ``current``."""
        before = self._refused.get(pid)
        if self._comes_again(inode, pid, before):
            # The kernel may ask this before it opens, and repeats a call only once: the OPEN that
            # comes next is a part of that.
            return
        try:
            require_name(inode)
            await self._tree.refresh(inode)
        except Replaced:
            self._refuse(inode, pid, before)
            raise

    async def bring(self, inode: Inode, flags: int) -> None:
        """Have what an open will read in the cache, whole and verified, as far as that can be.

        Before its turn: who opens the inode for something else need not wait for it.

        Raises:
            RemoteError, IntegrityError: as a READ would.
        """
        if not self.fetching.is_for(flags):
            return
        brought = None
        for _ in range(_FETCHES):
            version = await self._to_bring(inode)
            if version is None or version.content == brought:
                return
            try:
                if not await self.fetching.whole(version):
                    return
                brought = version.content
            except Stale:
                self._tree.expire(inode)

    async def _to_bring(self, inode: Inode) -> ArtifactVersion | None:
        """Return the version that an open would get, unless it needs nothing to be fetched."""
        file = self._registry.find(inode)
        if file is not None and (file.staged is not None or file.backing is not None):
            return None
        try:
            require_name(inode)
            await self._tree.refresh(inode)
        except JfsError:
            return None  # the open says so itself
        info = inode.info
        return info.version if isinstance(info, FileInfo) and info.size else None

    async def current(
        self, inode: Inode, pid: int, *, reads: bool, writes: bool, flags: int | None
    ) -> tuple[OpenFile, bool]:
        """Return the open file of an inode on what is current now; True: it was open already.

        The caller opens a handle before its next checkpoint, or nobody lets go of the file.

        Args:
            pid: of the thread that opens.
            reads: what is in it now will be wanted.
            writes: then the server is asked what is there now, whatever was believed.
            flags: of open(2); None: the kernel cannot read it itself.
        Raises:
            Replaced: the inode has lost its name, or the server has nothing there; or the kernel
                reads it itself, which excludes this open.
            RemoteError
        """
        await self._require_way(inode, pid, flags)
        file = self._registry.find(inode)
        before = self._refused.pop(pid, None)
        again = self._comes_again(inode, pid, before)
        # What has lost its name is for those alone who open it without one: until our answer to
        # UNLINK or RENAME is there the kernel opens it by its name still.
        if file is not None and (again or (file.dirty and inode.attached())):
            return file, True
        if again and not writes and isinstance(inode.info, FileInfo):
            return await self._made(inode, inode.info, pid, flags, reads=True, named=False)
        try:
            return await self._by_name(inode, pid, flags, reads=reads, writes=writes)
        except (Replaced, NoEntry, NotFound) as error:
            self._refuse(inode, pid, before)
            # Also where the server has nothing: open(…, O_CREAT) of a name that the kernel believes
            # in comes as a plain open. The kernel looks again, and then asks to make it.
            raise Replaced(f"{inode.path}: {error}") from None

    async def _by_name(
        self, inode: Inode, pid: int, flags: int | None, *, reads: bool, writes: bool
    ) -> tuple[OpenFile, bool]:
        require_name(inode)
        await self._tree.refresh(inode, anew=writes)
        require_name(inode)
        info = inode.info
        if not isinstance(info, FileInfo):
            raise IsADirectory(f"{inode.path} is a folder")
        file = self._registry.find(inode)
        if file is not None and self._is_current(file, info):
            return file, True
        return await self._made(inode, info, pid, flags, reads=reads, named=True)

    async def _made(
        self,
        inode: Inode,
        info: FileInfo,
        pid: int,
        flags: int | None,
        *,
        reads: bool,
        named: bool,
    ) -> tuple[OpenFile, bool]:
        """Return an open file of this version, made if nobody has been faster."""
        fresh, is_taken = OpenFile(inode, info), False
        try:
            reader = await reader_of(fresh, self._plane) if reads else None
            if reader is not None and flags is not None and self._passing.may(inode, info, flags):
                fresh.backing = await self._passing.backing(reader)
            # no checkpoint from here to the handle
            file = self._registry.find(inode)
            if named and not inode.attached():  # removed while we opened its reader
                require_name(inode)
            if file is not None and (file.is_ours or self._is_current(file, info)):
                return file, True
            if file is not None:
                if file.backing is not None or file.passed is not None:
                    self._make_way(inode, pid)
                self._cut_off(file)
            self._registry.add(fresh)
            is_taken = True
            return fresh, False
        finally:
            if not is_taken and fresh.reader is not None:
                self._plane.nursery.start_soon(_close, fresh)

    async def _require_way(self, inode: Inode, pid: int, flags: int | None) -> None:
        """Refuse an open if the kernel reads the inode itself, and cannot for it. Raises Replaced.

        Args:
            flags: as for ``current``.
        """
        file = self._registry.find(inode)
        # As long as handles are left that were opened while the kernel wrote itself it insists on
        # the staged file of then, and so does the writer.
        if flags is not None and file is not None and file.passed is not None:
            return
        backing = file.backing if file is not None else None
        if backing is None or (flags is not None and fits(flags) and await backing.is_right()):
            return
        self._make_way(inode, pid)

    def _make_way(self, inode: Inode, pid: int) -> NoReturn:
        """Refuse an open, and have another inode at the name. Raises Replaced."""
        self._tree.separate(inode)
        self._refuse(inode, pid, self._refused.pop(pid, None))
        raise Replaced(f"{inode.path}: is read by the kernel itself")

    def keep_cache(self, file: OpenFile, *, shared: bool) -> bool:
        """Note a handle that is made now; True: the kernel's pages are right for it."""
        return self._kernel.opened(
            file.inode.ino, content_of(file.info), self._rejections(file), shared=shared
        )

    async def let_go(self, file: OpenFile) -> None:
        """Forget a file that nobody has open any more."""
        if self._registry.drop(file):
            self._kernel.closed(file.inode.ino, content_of(file.info), self._rejections(file))
        file.drop_kept()
        gone = [staged for staged in (file.staged, file.acknowledged) if staged is not None]
        file.staged = file.acknowledged = None
        for staged in gone:
            if file.detached:  # its name may have gone a moment ago
                await forgotten(staged)
            staged.close()
        await _close(file)

    def _is_current(self, file: OpenFile, info: FileInfo) -> bool:
        """Whether an open file has the content of *info*, and nothing wrong was read of it."""
        if not same_content(file.info, info):
            return False
        reader = file.reader
        return reader is None or reader.rejections == self._plane.rejections(reader.version)

    def _rejections(self, file: OpenFile) -> int:
        if file.reader is not None:
            return file.reader.rejections
        version = file.info.version
        return self._plane.rejections(version) if version is not None else 0

    def _cut_off(self, file: OpenFile) -> None:
        """End the handles of another content; their next READ is ESTALE."""
        file.replaced = True
        self._registry.end(file)
        reader, file.reader = file.reader, None
        if reader is not None:
            self._plane.nursery.start_soon(reader.close)


async def _close(file: OpenFile) -> None:
    """Let go of what a file reads from."""
    reader, file.reader = file.reader, None
    backing, file.backing = file.backing, None
    if backing is not None:
        await backing.close()
    if reader is not None:
        await reader.close()
