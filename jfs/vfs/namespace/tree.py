"""The namespace: resolve names and list folders, from memory while it is fresh, else the server.

What is asked of the server is the part of ``names``. Trio thread only, no locks.
"""

import itertools
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager

import trio

from jfs.config import TreeSettings
from jfs.errors import JfsError, NameTooLong, NoEntry, NotFound, Replaced, ServerDown
from jfs.model import (
    PARENT_MAX,
    EntryInfo,
    FileInfo,
    FolderInfo,
    RepoPath,
    is_too_long,
    problem_with_name,
)
from jfs.protocols import ArtifactStore
from jfs.vfs.freshness import NEVER, PIECE, Asked
from jfs.vfs.kept.keeper import FORGETFUL, Forgetful
from jfs.vfs.namespace import links
from jfs.vfs.namespace.crowds import Crowd
from jfs.vfs.namespace.inodes import Below, Inode, below_of
from jfs.vfs.namespace.inodetable import InodeTable
from jfs.vfs.namespace.listings import Listing
from jfs.vfs.namespace.local import LocalAttributeTable
from jfs.vfs.namespace.names import Names
from jfs.vfs.questions import Questions

_Remembered = tuple[list[tuple[int, str]], list[int]]


class Tree:
    """Inodes of one mount, kept in step with the server.

    Args:
        local: told when names of a folder change, which changes its times.
        kept: told what is learnt, and what is changed here.

    Attributes:
        changes: made by this mount, of names, content and properties.
    """

    def __init__(
        self,
        store: ArtifactStore,
        settings: TreeSettings,
        root: FolderInfo,
        questions: Questions,
        local: LocalAttributeTable,
        kept: Forgetful = FORGETFUL,
    ) -> None:
        self._store = store
        self._settings = settings
        self._questions = questions
        self._local = local
        self._kept = kept
        self._tidying = False
        self.changes = 0
        self.inodes = InodeTable(root)
        self._names = Names(store, settings, self.inodes, questions, kept)

    def find(self, ino: int) -> Inode:
        """Return a living inode. Raises NoEntry."""
        return self.inodes.get(ino)

    def forget(self, ino: int, count: int) -> bool:
        """Take lookups of the kernel back; see ``InodeTable.forget``. Never raises."""
        gone = self.inodes.forget(ino, count)
        if self.inodes.is_untidy and not self._tidying:
            self._tidying = True
            self._questions.run(self._tidy)
        return gone

    async def refresh(self, inode: Inode, *, anew: bool = False) -> None:
        """Make ``inode.info`` fresh.

        The root of the mount never asks: it answers while the server is down.

        Args:
            anew: ask the server now, whatever is believed.
        Raises:
            NoEntry: the server says that a folder is gone; its dentry goes too.
            Replaced: a file is gone, or its name is another inode's by now, which has other
                content. ENOENT would be final: open(…, O_CREAT) asks for the attributes, too.
            RemoteError: the server did not answer and nothing is known.
        """
        if inode.computed is not None:
            return  # made anew by every lookup
        while inode.parent is not None and inode.attached() and not inode.is_ours:
            if not anew and inode.stat.is_fresh(self._settings.attr_ttl_s):
                return
            place = inode.parent, inode.name
            try:
                found = await self._names.ask_name(*place, anew=anew)
            except NoEntry:
                if inode.attached() and place != (inode.parent, inode.name):
                    continue
                if inode.is_folder:
                    raise
                raise Replaced(f"{inode.path}: was removed on the server") from None
            if found is inode:
                return
            if place == (inode.parent, inode.name):
                raise Replaced(f"{inode.path}: the server has other content there")
        # the root; one that is gone, and open still; or not on the server yet

    async def lookup(self, parent: Inode, name: str) -> Inode:
        """Resolve *name* in the folder *parent*.

        Raises:
            NotADirectory: *parent* is a file.
            NoEntry: the server has no such name (a real 404, or a complete listing without it).
            NameTooLong: no folder can have it.
            RemoteError: the server did not answer and nothing is known.
        """
        if is_too_long(name):
            raise NameTooLong(f"{name!r:.80}… {problem_with_name(name)}")
        found = self._names.believed(parent, name)
        if found is not None:
            return found
        if (problem := problem_with_name(name)) is not None:
            raise NoEntry(f"{name!r} {problem}")  # it cannot be there: nobody need be asked
        if len(parent.path.path) > PARENT_MAX:
            raise NoEntry(f"{parent.path.path:.80}…: nothing can be below so long a path")
        return await self._names.ask(parent, name)

    async def listing(self, folder: Inode) -> Listing:
        """Return a snapshot of what is known in a folder after its listing.

        That may be more than the listing, see ``Inode.listed``, and a million.

        Raises:
            NotADirectory, NotFound, RemoteError: as for ``lookup``.
        """
        listing = below_of(folder).listing
        if not listing.is_fresh(self._settings.entry_ttl_s):
            await self._names.list_or_stand_in(folder)
        return Listing(self.inodes, folder)

    def adopt(self, info: EntryInfo, asked: Asked) -> Inode | None:
        """Return the inode of an item that the server described out of turn, in a query.

        Its folders get their dentries too, without a question: what is not known of them is asked
        when somebody looks. None: it lies outside of the mount, or is gone by now.

        Args:
            asked: when the query was asked.
        """
        parent = self._above(info.path, asked)
        return self._names.take(parent, info.path.name, info, asked) if parent else None

    def _above(self, path: RepoPath, asked: Asked) -> Inode | None:
        """Return the folder of a path, made without a question if need be; None: it has none."""
        parts = below(self.inodes.root.path, path)
        parent = self.inodes.root
        for part in parts[:-1]:
            child = parent.child(part)
            if child is None:
                folder = FolderInfo(parent.path.child(part), 0)
                # Not believed, and older than every answer; but it was there.
                there = NEVER._replace(confirmed=asked.confirmed)
                child = self.inodes.link(parent, part, folder, there)
            if not child.is_folder:
                return None
            parent = child
        return parent if parts else None

    async def walk(self, parts: Sequence[str]) -> Inode:
        """Resolve a path from the root of the mount. Raises as ``lookup`` does."""
        inode = self.inodes.root
        for part in parts:
            inode = await self.lookup(inode, part)
        return inode

    # what this mount changes itself; no checkpoint between the change and its note

    def made(self, parent: Inode, name: str, info: EntryInfo, *, local: bool) -> Inode:
        """Note a new entry; *local*: it is not on the server yet."""
        self._touch(parent, name)
        self._local.names_changed(parent)
        inode = self.inodes.link(parent, name, info, Asked.now())
        inode.local = local
        inode.doubt_properties()
        if not local:
            self._kept.named(info.path, info, inode.stat.asked)
        if inode.below is not None:  # a new folder is empty: no need to ask
            inode.below.listing.change(True)
            self._kept.listed(info.path, [], inode.below.listing.asked)
        return inode

    def resumed(
        self, info: FileInfo, *, made: bool, drop: Callable[[Inode, Inode], None]
    ) -> Inode | None:
        """Note a file that was written by an earlier mount, and is not uploaded yet.

        Args:
            info: what the server had there then; or of a file that was made.
            drop: told about what the name was until now: a folder and an inode.
        Returns:
            None: the place is outside of the mount, or something is being written there.
        """
        asked = Asked.now()
        parent, name = self._above(info.path, asked), info.path.name
        if parent is None:
            return None
        known = parent.child(name)
        if known is not None:
            if known.is_ours or known.is_folder:
                return None
            self.inodes.unlink(known)
            drop(parent, known)
        self._touch(parent, name)
        inode = self.inodes.link(parent, name, info, asked)
        inode.local, inode.ahead = made, not made
        return inode

    def removed(self, inode: Inode) -> None:
        """Note that an entry is gone."""
        parent = inode.parent
        inode.stat.confirm()
        inode.local = False
        if parent is not None and inode.attached():
            self.vacated(parent, inode.name)
        self.inodes.unlink(inode)

    def separate(self, inode: Inode) -> None:
        """Let whoever opens a file by its name get another inode, which shows what is written.

        Who has this one open goes on with its content.
        """
        if inode.parent is not None and inode.attached():
            self.inodes.separate(inode)
            inode.parent.dentries[inode.name].written = True
            self._local.separated(inode)

    def vacated(self, parent: Inode, name: str) -> None:
        """Note that a name is nobody's now: what was asked until now says nothing about it."""
        self._touch(parent, name)
        below_of(parent).name(name).change(None)
        self._kept.named(parent.path.child(name), None, Asked.now())
        self._local.names_changed(parent)

    def moved(self, inode: Inode, old: tuple[Inode, str], new: tuple[Inode, str]) -> None:
        """Note that an entry has another place; what was at that place is gone.

        While the server moved it, somebody may have asked for either name and got any answer.
        """
        (before, old_name), (parent, name) = old, new
        for existing in (before.child(old_name), parent.child(name)):
            if existing is not None and existing is not inode:
                self.removed(existing)
        self._touch(before, old_name)
        self._touch(parent, name)
        below_of(before).name(old_name).change(None)
        below_of(before).asked_singly = 0
        source = inode.path
        self.inodes.move(inode, parent, name)
        if not inode.local:
            self._kept.moved(source, inode.info)
        self._local.names_changed(before)
        self._local.names_changed(parent)

    def changed(self, inode: Inode, info: EntryInfo) -> None:
        """Note that an entry is on the server now, and what it is there."""
        inode.local = False
        self.inodes.attach_again(inode)
        inode.stat.change(info)
        self._kept.named(info.path, info, inode.stat.asked)
        self._kept.tagged(info.path.parent, {info.path.name: None}, inode.stat.asked)
        if inode.parent is not None:
            self._touch(inode.parent, inode.name)

    def expire_listing(self, folder: Inode) -> None:
        """List a folder again at its next use."""
        below_of(folder).listing.expire()

    def expire(self, inode: Inode) -> None:
        """Believe nothing about the inode any more; the next use asks the server."""
        inode.stat.expire()
        if inode.parent is not None:
            below = below_of(inode.parent)
            below.listing.expire()
            if (cell := below.names.get(inode.name)) is not None:
                cell.expire()

    def abandoned(self, inode: Inode) -> None:
        """Note that an inode does not show what is at its name: whoever looks gets another."""
        inode.local = inode.ahead = False
        inode.stat.expire()
        if inode.parent is not None and inode.attached():
            self._touch(inode.parent, inode.name)
            self.expire_listing(inode.parent)
            self.inodes.unlink(inode)

    @contextmanager
    def doubted(self, *places: tuple[Inode, str]) -> Iterator[None]:
        """Believe nothing about names any more, if the block fails after the server was asked.

        Its answer may have been lost: nobody knows what has become of them.
        """
        try:
            yield
        except JfsError as error:
            if not isinstance(error, ServerDown):  # nothing was asked
                for parent, name in places:
                    self._touch(parent, name)
                    self.expire_listing(parent)
                    if (inode := parent.child(name)) is not None:
                        inode.stat.expire()
            raise

    async def forget_below(self, top: Inode) -> None:
        """Believe nothing at or below the inode any more; the next use asks the server.

        Answers to questions that were asked before are not stored. Made in pieces: what was known
        of a large tree is partly believed until this returns.
        """
        self.expire(top)
        refreshed = Asked.now().as_hint()
        waiting = [top]
        for count in itertools.count(1):
            inode = waiting.pop()
            inode.stat.expire(refreshed)
            if inode.tags is not None and not inode.local:
                inode.tags.expire(refreshed)
            if inode.below is not None:
                _expire_below(inode.below, refreshed)
                waiting += inode.below.children.values()
            if not waiting:
                return
            if not count % PIECE:
                await trio.lowlevel.checkpoint()

    async def remembered_below(self, top: Inode) -> AsyncIterator[_Remembered]:
        """Yield what the kernel may hold at or below an inode: names in folders, and inodes."""
        waiting = [top]
        while waiting:
            entries: list[tuple[int, str]] = []
            inodes: list[int] = []
            crowds: list[Crowd] = []
            for inode in [waiting.pop() for _ in range(min(PIECE, len(waiting)))]:
                if inode.lookup_count:
                    inodes.append(inode.ino)
                if inode.parent is not None:
                    entries.append((inode.parent.ino, inode.name))
                if inode.below is not None:
                    entries += [(inode.ino, name) for name in inode.below.names]
                    waiting += inode.below.children.values()
                    if inode.below.crowd is not None:
                        crowds.append(inode.below.crowd)
            await trio.lowlevel.checkpoint()
            yield entries, inodes
            for crowd in crowds:
                for start in range(0, len(crowd.packed), PIECE):
                    await trio.lowlevel.checkpoint()
                    yield crowd.held_among(start, start + PIECE)

    async def is_there(self, parent: Inode, name: str) -> bool:
        """Ask the server itself whether a name is taken, whatever was believed. RemoteError."""
        known = parent.child(name)
        if known is not None and known.is_ours:
            return True
        asked = Asked.now()
        info: EntryInfo | None
        try:
            info = await links.described(self._store, parent.path.child(name))
        except NotFound:
            info = None
        self._kept.named(parent.path.child(name), info, asked)
        return self._names.take(parent, name, info, asked) is not None

    def is_believed_there(self, parent: Inode, name: str) -> bool | None:
        """Say without the server whether a name is taken; None: nobody knows."""
        if parent.child(name) is not None:
            return True
        under = below_of(parent)
        cell = under.names.get(name)
        if cell is not None and cell.is_known and cell.value is None:
            return False
        return False if under.listing.is_known else None

    def _touch(self, parent: Inode, name: str) -> None:
        """What is known or being asked of a name was true before a change."""
        self.changes += 1
        self._kept.changed()
        below = below_of(parent)
        cell = below.names.get(name)
        if cell is not None and cell.is_idle:
            del below.names[name]
        elif cell is not None:
            cell.drop()

    async def _tidy(self) -> None:
        try:
            while self.inodes.tidy():
                await trio.lowlevel.checkpoint()
        finally:
            self._tidying = False


def _expire_below(below: Below, refreshed: Asked) -> None:
    below.listing.expire(refreshed)
    below.tags.expire(refreshed)
    below.asked_singly = 0
    for cell in below.names.values():
        cell.expire(refreshed)
    if below.crowd is not None:
        below.crowd.expire(refreshed)


def below(folder: RepoPath, path: RepoPath) -> tuple[str, ...]:
    """Return the names that lead from *folder* to *path*; none if it does not lie below."""
    parts, base = _parts(path), _parts(folder)
    return parts[len(base) :] if parts[: len(base)] == base else ()


def _parts(path: RepoPath) -> tuple[str, ...]:
    return tuple(part for part in (path.repo, *path.path.split("/")) if part)


def require_name(inode: Inode) -> None:
    """Raises Replaced for a file that has lost its name: the kernel looks what has it now."""
    if not inode.is_folder and not inode.attached():
        raise Replaced(f"{inode.path}: this name is not its own any more")
