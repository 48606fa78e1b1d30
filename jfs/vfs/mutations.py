"""Names that change: create, mkdir, symlink, unlink, rmdir, rename; first on the server.

Nothing is noted before the server has said yes, and what it refuses changes nothing. What only this
mount knows of, a file that was never uploaded, changes without a question. Trio thread only.

Where the server cannot be asked, some of it goes on with --write-back: see ``unasked``.

Every change claims the paths that it touches (``namespace.locks``), before it looks what is there:
no upload is under way to a place that changes, and two changes of a place come one after the other.
The kernel holds the lock of the folder all the while, so a change must end: each request to the
server has a deadline, and an upload that it waits for has one for each of its requests.
"""

import logging
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial

from jfs import descriptors, waiting
from jfs.errors import (
    AlreadyExists,
    InvalidArgument,
    InvalidName,
    IsADirectory,
    JfsError,
    NameTooLong,
    NoEntry,
    NotADirectory,
    NotEmpty,
    NotFound,
    NotPermitted,
    ReadOnly,
    Replaced,
)
from jfs.model import (
    PARENT_MAX,
    Checksums,
    FileInfo,
    FolderInfo,
    Properties,
    RepoPath,
    is_too_long,
    kind_of,
    problem_with_name,
)
from jfs.protocols import ArtifactStore
from jfs.vfs.attributes.properties import PropertyTable
from jfs.vfs.files.openfile import Opened
from jfs.vfs.files.table import OpenFiles
from jfs.vfs.files.writer import Writing
from jfs.vfs.namespace import links
from jfs.vfs.namespace.inodes import Inode
from jfs.vfs.namespace.locks import PathLocks
from jfs.vfs.namespace.tree import Tree
from jfs.vfs.unasked import Unasked
from jfs.vfs.writing.staging import StagingFile

log = logging.getLogger(__name__)

RENAME_NOREPLACE = 1  # renameat2(2)
_TRIES = 10  # to open or make a name that others make and remove meanwhile
_LINK_MAX = 4000  # characters of a property's value (artifactory-rest 2.1)
Place = tuple[Inode, str]  # a folder and a name in it


class Mutations:
    """Changes of names in one mount.

    Args:
        forget_queries: called after a name is gone, so that no query shows it any more.
    """

    def __init__(
        self,
        store: ArtifactStore,
        tree: Tree,
        files: OpenFiles,
        properties: PropertyTable,
        writing: Writing | None,
        locks: PathLocks,
        forget_queries: Callable[[], None],
    ) -> None:
        self._store = store
        self._tree = tree
        self._files = files
        self._renaming = files.renaming
        self._locks = locks
        self._properties = properties
        self._writing = writing
        self._forget_queries = forget_queries
        self._unasked = Unasked(
            store,
            tree,
            files,
            properties,
            write_back=writing is not None and writing.area.settings.write_back,
        )

    async def create(self, parent: Inode, name: str, flags: int, pid: int) -> tuple[Inode, Opened]:
        """Make a file and open it; without O_EXCL one that is there is opened.

        Returns:
            Its inode, which the kernel holds once more.
        Raises:
            AlreadyExists: O_EXCL, and the server has the name, whatever was believed.
        """
        writing = self._require_place(parent, name)
        for _ in range(_TRIES):
            if not flags & os.O_EXCL and parent.child(name) is not None:
                # Not under the claims: whoever has the turn of opening it may want them.
                with suppress(NoEntry, NotFound, Replaced):  # it was believed to be there
                    return await self._open(parent, name, flags, pid)
            async with self._claimed((parent, name)):
                if not await self._unasked.is_there(parent, name):
                    path = parent.path.child(name)
                    new = partial(writing.area.new, path, None, made=True)
                    staged = await waiting.on_disk(new, late=StagingFile.unmake)
                    # no checkpoint until it is open
                    info = FileInfo(path, 0, Checksums(), time.time_ns())
                    inode = self._tree.made(parent, name, info, local=True)
                    self._tree.inodes.remember(inode)
                    return inode, self._files.create(inode, info, staged, flags, pid)
            if flags & os.O_EXCL:
                raise AlreadyExists(f"{parent.path.child(name)}: is there already")
        raise Replaced(f"{parent.path.child(name)}: comes and goes faster than it can be opened")

    async def _open(self, parent: Inode, name: str, flags: int, pid: int) -> tuple[Inode, Opened]:
        inode = await self._tree.lookup(parent, name)
        self._tree.inodes.remember(inode)  # the kernel may forget what others had looked up
        try:
            return inode, await self._files.open(inode, flags, pid, creates=True)
        except BaseException:
            self._tree.forget(inode.ino, 1)
            raise
        finally:
            self._files.opening.goes_on(pid)  # a refusal is not the kernel's to hear

    async def mkdir(self, parent: Inode, name: str) -> Inode:
        """Make a folder. Raises AlreadyExists."""
        self._require_place(parent, name)
        async with self._claimed((parent, name)):
            path = parent.path.child(name)
            if await self._tree.is_there(parent, name):
                raise AlreadyExists(f"{path}: is there already")
            with self._tree.doubted((parent, name)):
                await self._store.make_folder(path)
            return self._tree.made(parent, name, FolderInfo(path, time.time_ns()), local=False)

    async def symlink(self, parent: Inode, name: str, target: str) -> Inode:
        """Make a symbolic link as the ``jf`` client does: an empty file with ``symlink.dest``."""
        writing = self._require_place(parent, name)
        if len(target) > _LINK_MAX:
            raise NameTooLong(f"{name}: a link's target is at most {_LINK_MAX} characters long")
        async with self._claimed((parent, name)):
            path = parent.path.child(name)
            if await self._tree.is_there(parent, name):
                raise AlreadyExists(f"{path}: is there already")
            deployment = links.deployment(path, target, writing.area.settings.properties)
            # Nothing of it is read: a disk that fails is no reason not to make a link.
            file = descriptors.opening(lambda: os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
            try:
                with self._tree.doubted((parent, name)):
                    still = partial(links.require_no_other, self._store, path, target)
                    await self._store.deploy(deployment, file, still=still)
            finally:
                os.close(file)
            now = time.time_ns()
            info = FileInfo(path, 0, deployment.checksums, now, now, link_target=target)
            return self._tree.made(parent, name, info, local=False)

    async def unlink(self, parent: Inode, name: str) -> None:
        """Remove a file or link; who has it open keeps its content.

        An upload of it that is under way ends first: cut off, the server might still publish it.

        Raises:
            IsADirectory, NoEntry; NotPermitted: --no-delete.
        """
        writing = self._require_changeable(parent)
        async with self._claimed((parent, name)):
            inode = await self._tree.lookup(parent, name)
            if inode.is_folder:
                raise IsADirectory(f"{inode.path} is a folder")
            file = self._files.find(inode)
            if inode.local and (file is None or file.replaces is None):
                await self._unasked.remove_traces(inode)
                await self._gone(inode, writing, (parent, name))
                return
            self._require_deletable(inode)
            async with self._renaming.kept(inode):
                await self._delete(inode, writing, (parent, name))
            await self._gone(inode, writing, (parent, name))

    async def rmdir(self, parent: Inode, name: str) -> None:
        """Remove an empty folder.

        The server deletes folders with all that is in them, and has no condition for it: it is
        asked right before, and what another client puts there in between is lost with it.

        Raises:
            NotADirectory, NoEntry; NotEmpty: names that cannot be shown count too.
        """
        writing = self._require_changeable(parent)
        async with self._claimed((parent, name), tree=True):
            inode = await self._tree.lookup(parent, name)
            if not inode.is_folder:
                raise NotADirectory(f"{inode.path} is a file")
            await self._require_empty(inode)
            self._require_deletable(inode)
            await self._delete(inode, writing, (parent, name))
            await self._gone(inode, writing, (parent, name))

    async def rename(
        self, parent: Inode, name: str, new_parent: Inode, new_name: str, flags: int
    ) -> None:
        """Move an entry, over one that is there if its kind allows. Refused, it changes nothing.

        Uploads to either place, or below, end first; those that come later go to the new place.

        Raises:
            InvalidArgument: RENAME_EXCHANGE, which the server cannot do in one step.
            AlreadyExists: RENAME_NOREPLACE or --no-overwrite, and the name is taken.
            NotEmpty, IsADirectory, NotADirectory, NotPermitted
        """
        if flags & ~RENAME_NOREPLACE:
            raise InvalidArgument("names cannot be exchanged: Artifactory has no such operation")
        writing = self._require_changeable(parent)
        self._require_place(new_parent, new_name)
        places = (parent, name), (new_parent, new_name)
        await self._renaming.publish(parent.child(name))
        async with AsyncExitStack() as held:
            await held.enter_async_context(self._claimed(*places, tree=True))
            source = await self._tree.lookup(parent, name)
            # Somebody may look the name up meanwhile, and find another's content there.
            held.enter_context(self._tree.inodes.held(source))
            if not source.path.path:
                raise NotPermitted(f"{source.path}: a repository cannot be renamed")
            target = await self._target(new_parent, new_name, source)
            if target is source:
                return
            if target is not None:
                no_overwrite = writing.area.settings.no_overwrite and not target.local
                if flags & RENAME_NOREPLACE or no_overwrite:
                    raise AlreadyExists(f"{target.path}: is there already")
                _require_kind(source, target)
            if not source.local:
                self._require_deletable(source)
            emptied = await self._emptied(parent, source, new_parent)
            if target is not None and target.is_folder:
                await self._require_empty(target)
            async with self._renaming.kept(target):
                with self._tree.doubted(*places):
                    await self._move(source, target, new_parent.path.child(new_name))
                # no checkpoint until all is noted; nothing fails from here on
                self._note_move(source, (parent, name), target, (new_parent, new_name), writing)
            if target is not None:
                await _best_effort(target.path, self._renaming.forget(target))
            await _best_effort(source.path, self._renaming.relocate(source))
            if emptied is not None:
                await _best_effort(parent.path, self._make_folder(parent.path, emptied))
        self._forget_queries()

    def _note_move(
        self, source: Inode, old: Place, target: Inode | None, new: Place, writing: Writing
    ) -> None:
        path = source.path
        if target is not None:
            self._attributes_of_removed(target, writing)
            self._renaming.removed(target)
        self._tree.moved(source, old, new)
        writing.attributes.moved(path, source)

    async def _move(self, source: Inode, target: Inode | None, path: RepoPath) -> None:
        """Move on the server. The target is empty, or a file.

        A move that is refused leaves both as they were, on the server too: what has to be done
        before it is taken back.
        """
        kept: Properties = {}
        if (
            target is not None
            and kind_of(target.info) == kind_of(source.info) == "file"
            and not await self._properties.current(source)
        ):
            # A file without properties that takes the place of one with: how editors and trainers
            # save. It is the same artifact to its users, and keeps its tags.
            kept = await self._unasked.properties_under(source, target)
        if source.local:
            await self._move_local(source, target, path)
            if kept:
                source.properties = kept
            return
        undo: Callable[[], Awaitable[None]] | None = None
        if target is not None and target.is_folder:
            # Moved onto a folder, the server would nest it there (artifactory-rest 8).
            tags = await self._properties.current(target)
            await self._store.delete(target.path)
            undo = partial(self._make_folder, target.path, tags)
        elif kept:
            # Before the move, so that there is no moment at which the place has no tags.
            await self._store.set_properties(source.path, kept)
            undo = partial(self._store.set_properties, source.path, dict.fromkeys(kept))
        try:
            await self._store.move(source.path, path, tree=source.is_folder, known=source.info)
        except JfsError:
            if undo is not None:
                await _best_effort(source.path, undo())
            source.doubt_properties()
            raise
        source.doubt_properties()

    async def _move_local(self, source: Inode, target: Inode | None, path: RepoPath) -> None:
        """Let the upload of a file that was made here go to a new place, over what is there."""
        file = self._files.find(source)
        there = await self._unasked.there(source, target, path)
        if file is None:
            return
        if file.replaces is not None:
            self._require_deletable(source)
        await self._unasked.remove_traces(source)
        if file.replaces is not None:
            await self._unasked.remove_replaced(source, file.replaces)
        replaces = there if isinstance(there, FileInfo) else None
        over = self._files.find(target) if target is not None else None
        await self._renaming.note_move(file, over, path, replaces)
        file.replaces = replaces

    async def _target(self, parent: Inode, name: str, source: Inode) -> Inode | None:
        """Find what has the new name; the server itself is asked before it is called free."""
        for _ in range(_TRIES):
            with suppress(NoEntry):
                return await self._tree.lookup(parent, name)
            is_there = (
                self._unasked.is_there if self._unasked.is_pending(source) else self._tree.is_there
            )
            if not await is_there(parent, name):
                return None
        raise Replaced(f"{parent.path.child(name)}: comes and goes faster than it can be replaced")

    async def _emptied(self, parent: Inode, source: Inode, target: Inode) -> Properties | None:
        """Say whether a move leaves a folder empty, which the server then prunes (8).

        Returns:
            Its properties, to make it again with; None: it stays as it is.
        """
        if source.local or not parent.path.path or parent is target:
            return None
        if any(child is not source and not child.local for child in parent.dentries.values()):
            return None
        if parent.below is not None and parent.below.has_rows:
            return None
        return await self._properties.current(parent)

    async def _make_folder(self, path: RepoPath, properties: Properties) -> None:
        await self._store.make_folder(path)
        if properties:
            await self._store.set_properties(path, properties)

    async def _delete(self, inode: Inode, writing: Writing, place: Place) -> None:
        try:
            with self._tree.doubted(place):
                await self._store.delete(inode.path)
        except NotFound:
            await self._gone(inode, writing, place)
            raise NoEntry(f"{inode.path}: was removed by somebody else") from None

    async def _gone(self, inode: Inode, writing: Writing, place: Place) -> None:
        """Note that a name is gone, whatever inode has it by now.

        While the server was deleting, an answer may have given the name to another inode, of what
        somebody had put there before: the server has removed that.
        """
        parent, name = place
        gone = [inode]
        if (successor := parent.child(name)) is not None and successor is not inode:
            gone.append(successor)
        for each in gone:
            self._attributes_of_removed(each, writing)
            self._renaming.removed(each)
            self._tree.removed(each)
        self._tree.vacated(parent, name)
        self._forget_queries()
        for each in gone:
            await self._renaming.forget(each)

    def _attributes_of_removed(self, inode: Inode, writing: Writing) -> None:
        file = self._files.find(inode)
        writing.attributes.removed(inode, file.tag if file is not None else None)

    async def _require_empty(self, folder: Inode) -> None:
        if self._renaming.writes_below(folder):
            raise NotEmpty(f"{folder.path}: files in it are being written")
        if not await self._store.is_empty(folder.path):
            self._tree.expire_listing(folder)
            raise NotEmpty(f"{folder.path}: is not empty")

    @asynccontextmanager
    async def _claimed(self, *places: Place, tree: bool = False) -> AsyncIterator[None]:
        """Claim places by their paths, whatever those are by then."""
        while True:
            paths = [parent.path.child(name) for parent, name in places]
            async with self._locks.held(*paths, tree=tree):
                if paths == [parent.path.child(name) for parent, name in places]:
                    yield
                    return

    def _require_changeable(self, parent: Inode) -> Writing:
        """Whether names of a folder may change. Raises ReadOnly, NotPermitted."""
        if self._writing is None:
            raise ReadOnly(f"{parent.path}: the mount is read-only")
        if parent.computed is not None:
            raise ReadOnly(f"{parent.path}: is computed: change the real place")
        if not parent.path.repo:
            raise NotPermitted("repositories are made and removed by Artifactory's administrator")
        if not self._store.is_writable(parent.path.repo):
            raise ReadOnly(f"{parent.path.repo}: a remote repository only shows what it fetched")
        return self._writing

    def _require_place(self, parent: Inode, name: str) -> Writing:
        """Whether an entry of this name can be made. Raises InvalidName first, then as above."""
        if name and (problem := problem_with_name(name)) is not None:
            error = NameTooLong if is_too_long(name) else InvalidName
            raise error(f"{name!r} {problem}")
        if len(parent.path.path) > PARENT_MAX:
            raise NameTooLong(f"{parent.path.path:.80}…: is longer than {PARENT_MAX} characters")
        return self._require_changeable(parent)

    def _require_deletable(self, inode: Inode) -> None:
        writing = self._writing
        if writing is not None and writing.area.settings.no_delete:
            raise NotPermitted(f"{inode.path}: --no-delete keeps what is on the server")


async def _best_effort(path: RepoPath, work: Awaitable[None]) -> None:
    """Do what comes with a change, whose failure cannot undo the change any more."""
    try:
        await work
    except (JfsError, OSError) as error:
        log.warning("%s: after a rename: %s", path, error)


def _require_kind(source: Inode, target: Inode) -> None:
    if source.is_folder and not target.is_folder:
        raise NotADirectory(f"{target.path} is a file")
    if not source.is_folder and target.is_folder:
        raise IsADirectory(f"{target.path} is a folder")
