"""Names that change: create, mkdir, symlink, unlink, rmdir, rename; first on the server.

Nothing is noted before the server has said yes. What only this mount knows of, a file that was
never uploaded, changes without a question. Trio thread only; a change holds the locks of the open
files that it touches, so that no upload is under way to a place that changes.
"""

import logging
import os
import time
from collections.abc import Awaitable, Callable
from functools import partial

from jfs import threads
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
)
from jfs.model import (
    PARENT_MAX,
    SYMLINK_TARGET,
    Checksums,
    Deployment,
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
from jfs.vfs.namespace.inodes import Inode
from jfs.vfs.namespace.tree import Tree

log = logging.getLogger(__name__)

RENAME_NOREPLACE = 1  # renameat2(2)
_LINK_MAX = 4000  # characters of a property's value (artifactory-rest 2.1)
_EMPTY_SHA256 = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


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
        forget_queries: Callable[[], None],
    ) -> None:
        self._store = store
        self._tree = tree
        self._files = files
        self._properties = properties
        self._writing = writing
        self._forget_queries = forget_queries

    async def create(self, parent: Inode, name: str, flags: int, pid: int) -> tuple[Inode, Opened]:
        """Make a file and open it; without O_EXCL one that is there is opened.

        Raises:
            AlreadyExists: O_EXCL, and the server has the name, whatever was believed.
        """
        writing = self._require_place(parent, name)
        if flags & os.O_EXCL:
            if await self._tree.is_there(parent, name):
                raise AlreadyExists(f"{parent.path.child(name)}: is there already")
        else:
            try:
                inode = await self._tree.lookup(parent, name)
            except NoEntry:
                pass
            else:
                return inode, await self._files.open(inode, flags, pid)
        path = parent.path.child(name)
        staged = await threads.on_disk(writing.area.new, path, None)
        # no checkpoint until it is open
        info = FileInfo(path, 0, Checksums(), time.time_ns())
        inode = self._tree.made(parent, name, info, local=True)
        return inode, self._files.create(inode, info, staged, flags, pid)

    async def mkdir(self, parent: Inode, name: str) -> Inode:
        """Make a folder. Raises AlreadyExists."""
        self._require_place(parent, name)
        path = parent.path.child(name)
        if await self._tree.is_there(parent, name):
            raise AlreadyExists(f"{path}: is there already")
        await self._store.make_folder(path)
        return self._tree.made(parent, name, FolderInfo(path, time.time_ns()), local=False)

    async def symlink(self, parent: Inode, name: str, target: str) -> Inode:
        """Make a symbolic link as the ``jf`` client does: an empty file with ``symlink.dest``."""
        writing = self._require_place(parent, name)
        path = parent.path.child(name)
        if len(target) > _LINK_MAX:
            raise NameTooLong(f"{path}: a link's target is at most {_LINK_MAX} characters long")
        if await self._tree.is_there(parent, name):
            raise AlreadyExists(f"{path}: is there already")
        properties = {**writing.area.settings.properties, SYMLINK_TARGET: (target,)}
        deployment = Deployment(path, 0, Checksums(sha256=_EMPTY_SHA256), properties)
        file = await threads.on_disk(writing.area.journal.anonymous)
        try:
            await self._store.deploy(deployment, file)
        finally:
            os.close(file)
        now = time.time_ns()
        info = FileInfo(path, 0, deployment.checksums, now, now, link_target=target)
        return self._tree.made(parent, name, info, local=False)

    async def unlink(self, parent: Inode, name: str) -> None:
        """Remove a file or link; who has it open keeps its content.

        Raises:
            IsADirectory, NoEntry; NotPermitted: --no-delete.
        """
        writing = self._require_changeable(parent)
        inode = await self._tree.lookup(parent, name)
        if inode.is_folder:
            raise IsADirectory(f"{inode.path} is a folder")
        async with self._files.held([inode]):
            file = self._files.find(inode)
            if not inode.local or (file is not None and file.replaces):
                self._require_deletable(inode)
                await self._files.keep_for_readers(inode)
                await self._delete(inode)
            await self._gone(inode, writing)

    async def rmdir(self, parent: Inode, name: str) -> None:
        """Remove an empty folder.

        The server deletes folders with all that is in them, and has no condition for it: it is
        asked right before, and what another client puts there in between is lost with it.

        Raises:
            NotADirectory, NoEntry; NotEmpty: names that cannot be shown count too.
        """
        writing = self._require_changeable(parent)
        inode = await self._tree.lookup(parent, name)
        if not inode.is_folder:
            raise NotADirectory(f"{inode.path} is a file")
        await self._require_empty(inode)
        self._require_deletable(inode)
        await self._delete(inode)
        await self._gone(inode, writing)

    async def rename(
        self, parent: Inode, name: str, new_parent: Inode, new_name: str, flags: int
    ) -> None:
        """Move an entry, over one that is there if its kind allows.

        Raises:
            InvalidArgument: RENAME_EXCHANGE, which the server cannot do in one step.
            AlreadyExists: RENAME_NOREPLACE or --no-overwrite, and the name is taken.
            NotEmpty, IsADirectory, NotADirectory, NotPermitted
        """
        if flags & ~RENAME_NOREPLACE:
            raise InvalidArgument("names cannot be exchanged: Artifactory has no such operation")
        writing = self._require_changeable(parent)
        self._require_place(new_parent, new_name)
        source = await self._tree.lookup(parent, name)
        if not source.path.path:
            raise NotPermitted(f"{source.path}: a repository cannot be renamed")
        target = await self._target(new_parent, new_name)
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
        moving = self._files.below(source)
        async with self._files.held([*moving, *([target] if target is not None else [])]):
            if target is not None and target.is_folder:
                await self._require_empty(target)
            elif target is not None:
                await self._files.keep_for_readers(target)
            try:
                await self._move(source, target, new_parent.path.child(new_name))
            except JfsError:  # its answer may have been lost: nobody knows what is there now
                self._tree.doubt_name(parent, name)
                self._tree.doubt_name(new_parent, new_name)
                raise
            # no checkpoint until tree and attributes have changed; nothing fails from here on
            old, file = source.path, self._files.find(source)
            if source.local and target is not None and not target.local and file is not None:
                file.replaces = True
            self._tree.moved(source, new_parent, new_name)
            if target is not None:
                self._attributes_of_removed(target, writing)
            writing.attributes.moved(old, source)
            if target is not None:
                await _best_effort(target.path, self._files.detach(target))
            for inode in self._files.below(source):
                await _best_effort(inode.path, self._files.relocate(inode))
        if emptied is not None:
            await _best_effort(parent.path, self._make_folder(parent.path, emptied))
        self._forget_queries()

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
            kept = await self._properties.current(target)
        if source.local:
            # Its upload will go to the new place, over what is there. What it took the place of
            # before is still on the server, and was gone for everybody here.
            file = self._files.find(source)
            if file is not None and file.replaces:
                await self._store.delete(source.path)
                file.replaces = False
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
            await self._store.move(source.path, path, tree=source.is_folder)
        except JfsError:
            if undo is not None:
                await _best_effort(source.path, undo())
            source.doubt_properties()
            raise
        source.doubt_properties()

    async def _target(self, parent: Inode, name: str) -> Inode | None:
        """Find what has the new name; the server itself is asked before it is called free."""
        try:
            return await self._tree.lookup(parent, name)
        except NoEntry:
            if not await self._tree.is_there(parent, name):
                return None
            return await self._tree.lookup(parent, name)

    async def _emptied(self, parent: Inode, source: Inode, target: Inode) -> Properties | None:
        """Say whether a move leaves a folder empty, which the server then prunes (8).

        Returns:
            Its properties, to make it again with; None: it stays as it is.
        """
        if source.local or not parent.path.path or parent is target:
            return None
        if any(child is not source and not child.local for child in parent.dentries.values()):
            return None
        return await self._properties.current(parent)

    async def _make_folder(self, path: RepoPath, properties: Properties) -> None:
        await self._store.make_folder(path)
        if properties:
            await self._store.set_properties(path, properties)

    async def _delete(self, inode: Inode) -> None:
        try:
            await self._store.delete(inode.path)
        except NotFound:
            self._tree.removed(inode)
            raise NoEntry(f"{inode.path}: was removed by somebody else") from None

    async def _gone(self, inode: Inode, writing: Writing) -> None:
        self._tree.removed(inode)
        self._attributes_of_removed(inode, writing)
        self._forget_queries()
        await self._files.detach(inode)

    def _attributes_of_removed(self, inode: Inode, writing: Writing) -> None:
        file = self._files.find(inode)
        writing.attributes.removed(inode, file.tag if file is not None else None)

    async def _require_empty(self, folder: Inode) -> None:
        if any(child.local for child in folder.dentries.values()):
            raise NotEmpty(f"{folder.path}: files in it are being written")
        if not await self._store.is_empty(folder.path):
            self._tree.expire_listing(folder)
            raise NotEmpty(f"{folder.path}: is not empty")

    def _require_changeable(self, parent: Inode) -> Writing:
        """Whether names of a folder may change. Raises ReadOnly, NotPermitted."""
        if self._writing is None:
            raise ReadOnly(f"{parent.path}: the mount is read-only")
        if parent.computed is not None:
            raise ReadOnly(f"{parent.path}: is the answer to a query: change the real place")
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
