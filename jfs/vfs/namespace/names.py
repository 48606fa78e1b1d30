"""What is believed and asked of names: one name, or the listing of a whole folder.

What becomes of an answer is the part of ``taking``. Trio thread only.
"""

import functools
import logging
import math
from dataclasses import replace
from typing import Any

import trio

from jfs.config import TreeSettings
from jfs.errors import JfsError, NoEntry, NotFound
from jfs.model import EntryInfo, FolderInfo, RepoPath
from jfs.packed import Packed
from jfs.protocols import ArtifactStore
from jfs.vfs.freshness import Asked, Cell
from jfs.vfs.kept.keeper import Forgetful
from jfs.vfs.namespace import links
from jfs.vfs.namespace.crowds import Whole, packed_of
from jfs.vfs.namespace.inodes import Below, Inode, below_of
from jfs.vfs.namespace.inodetable import InodeTable
from jfs.vfs.namespace.taking import Moved, Taking
from jfs.vfs.questions import NotYet, Questions, StandsIn
from jfs.vfs.standing import Stand

log = logging.getLogger(__name__)

# Names looked up one by one before the whole folder is listed instead: a program that walks many
# names of a folder costs one listing, one that knows its path costs one small request a name.
_LOOKUPS_BEFORE_LISTING = 3
# After a listing that was refused, or that took longer than it is believed, this many more.
_LOOKUPS_AFTER_A_BAD_LISTING = 64
# A lookup waits this long for the listing; then it asks for its name alone, and the listing of a
# folder of a million entries, which takes a minute, goes on beside it.
_LISTING_PATIENCE_S = 1.0
# Times that a question is repeated whose answer was overtaken by a refresh or a rename.
_TRIES = 3


class Names:
    """The names of one mount; see the module."""

    def __init__(
        self,
        store: ArtifactStore,
        settings: TreeSettings,
        inodes: InodeTable,
        questions: Questions,
        kept: Forgetful,
    ) -> None:
        self._store = store
        self._kept = kept
        self._recalling = trio.Lock()
        self._settings = settings
        self._inodes = inodes
        self._taking = Taking(inodes)
        self._questions = questions

    def believed(self, parent: Inode, name: str) -> Inode | None:
        """Answer from what is fresh; None means that the server must be asked."""
        settings = self._settings
        below = below_of(parent)
        inode = parent.child(name)
        if inode is not None:
            return inode if inode.is_ours or inode.stat.is_fresh(settings.entry_ttl_s) else None
        cell = below.names.get(name)
        if cell is not None and cell.is_answered(settings.negative_ttl_s) and cell.value is None:
            raise NoEntry(f"{parent.path.child(name)}: was not there a moment ago")
        if below.listing.is_answered(
            min(settings.entry_ttl_s, settings.negative_ttl_s)
        ) and self._store.lists_all(parent.path.repo):
            below.name(name).put(None, below.listing.asked)
            raise NoEntry(f"{parent.path.child(name)}: not in the listing")
        return None

    def _pays_to_list(self, below: Below) -> bool:
        """Whether a listing would be believed longer than it takes; now and then it is tried."""
        settings = self._settings
        ttl_s = max(settings.entry_ttl_s, settings.attr_ttl_s)
        if below.listing.is_answered(settings.entry_ttl_s):
            ttl_s = settings.negative_ttl_s  # what it showed is known: this is about others
        return ttl_s > 0 and (
            ttl_s > below.took_s or below.asked_singly >= _LOOKUPS_AFTER_A_BAD_LISTING
        )

    def _listed(self, parent: Inode, name: str) -> Inode:
        """Find a name in the listing that has come a moment ago. Raises NoEntry."""
        below = below_of(parent)
        inode = parent.child(name)
        if inode is None:
            below.name(name).put(None, below.listing.asked)
            raise NoEntry(f"{parent.path.child(name)}: not listed by the server")
        return inode

    async def ask(self, parent: Inode, name: str) -> Inode:
        """Ask the server: about the name, or for the whole folder if many names were asked for.

        Raises:
            NoEntry, RemoteError
        """
        below = below_of(parent)
        if not parent.path.repo:
            # Repositories are known by their list alone: one that hangs is not asked.
            repository = parent.child(name)
            known = repository.stat if repository is not None else self._denying(parent)
            try:
                await self._list(parent, stands=known)
            except StandsIn as stands:
                return self._standing_in(parent, name, repository, stands.stand)
            return self._listed(parent, name)
        cell = below.names.get(name)
        if cell is not None and not cell.is_idle:
            return await self.ask_name(parent, name)
        # The listing of a remote repository says nothing about what it has not cached yet.
        is_walked = below.asked_singly >= _LOOKUPS_BEFORE_LISTING
        if is_walked and self._store.lists_all(parent.path.repo) and self._pays_to_list(below):
            try:
                await self._list(parent, patience_s=_LISTING_PATIENCE_S)
            except NotFound:
                raise NoEntry(f"{parent.path}: is gone") from None
            except (NotYet, JfsError) as error:
                # What is wrong with the listing says nothing about this name.
                log.debug("%s: asking for %s alone: %s", parent.path, name, error)
            else:
                return self._listed(parent, name)
        below.asked_singly += 1
        return await self.ask_name(parent, name)

    async def ask_name(self, parent: Inode, name: str, *, anew: bool = False) -> Inode:
        """Ask the server about one name alone.

        While it cannot be asked, what was known of the name stands in, where something had it.
        That it was missing does not: a failure must not become ENOENT. Only a listing of the whole
        folder that stands in says so still, as its ``ls`` does: programs look for files that are
        optional, and would fail.

        Raises:
            NoEntry, RemoteError

        Args:
            anew: do not wait with those who asked before.
        """
        below = below_of(parent)
        if anew:
            below.name(name).expire()
        answer = None
        for _ in range(_TRIES):
            path = parent.path.child(name)

            async def ask(asked: Asked, path: RepoPath = path) -> EntryInfo | None:
                info: EntryInfo | None
                try:
                    info = await links.described(self._store, path)
                except NotFound:
                    info = None
                if parent.path.child(name) != path:
                    raise Moved(f"{path}: has moved")
                self._kept.named(path, info, asked)
                inode = self.take(parent, name, info, asked)
                if inode is not None:
                    _list_above(inode)
                return info

            known = parent.child(name)
            try:
                answer = await self._questions.answer(
                    below.name(name),
                    ask,
                    path.repo,
                    stands=known.stat if known is not None else self._denying(parent),
                    anew=anew,
                    recall=functools.partial(self._recall_name, parent, name),
                )
            except Moved:
                continue
            except StandsIn as stands:
                return self._standing_in(parent, name, known, stands.stand)
            finally:
                below.settle(name)
            if answer.stored:
                break
            # It was changed here, or refreshed, since it was asked for.
            if (believed := self.believed(parent, name)) is not None:
                return believed
        # Once more: whoever was to have the inode may have forgotten it since the answer came.
        inode = self.take(parent, name, answer.value, answer.asked) if answer is not None else None
        if inode is None:
            raise NoEntry(f"{parent.path.child(name)}: is not there")
        return inode

    def _standing_in(self, parent: Inode, name: str, known: Inode | None, stand: Stand) -> Inode:
        """Return what had a name when it was asked for in vain. Raises NoEntry.

        Args:
            known: None: nothing had it, by the listing.
        """
        path = parent.path.child(name)
        inode = parent.child(name)
        if inode is None and known is not None and known.path == path:
            # The kernel has forgotten it meanwhile, unless it was removed.
            inode = self.take(parent, name, known.info, known.stat.asked)
        if inode is None:
            raise NoEntry(f"{path}: is not there, as far as is known")
        inode.stat.stand_in(stand)
        return inode

    async def list_or_stand_in(self, folder: Inode) -> None:
        """Bring the listing up to date; while that cannot be, what was known stands in.

        Raises:
            NotFound, RemoteError
        """
        listing = below_of(folder).listing
        try:
            await self._list(folder, stands=listing)
        except StandsIn as stands:
            if listing.is_known:
                listing.stand_in(stands.stand)
            else:  # forgotten meanwhile
                await self._list(folder)

    def _denying(self, folder: Inode) -> Cell[bool] | None:
        """Return the listing, if by it a name is missing that is not in it.

        Not after a refresh, nor after something here whose outcome nobody knows.
        """
        listing = below_of(folder).listing
        is_whole = listing.asked.at > -math.inf and self._store.lists_all(folder.path.repo)
        return listing if is_whole else None

    async def _list(
        self, folder: Inode, *, patience_s: float = math.inf, stands: Cell[Any] | None = None
    ) -> None:
        """Bring the listing of a folder up to date.

        Raises:
            NotYet, StandsIn: see ``Questions.answer``.
            NotFound, RemoteError
        """
        recall = self._recall_listing
        for _ in range(_TRIES):

            async def ask(asked: Asked) -> bool:
                return await self._ask_listing(folder, asked)

            try:
                answer = await self._questions.answer(
                    below_of(folder).listing,
                    ask,
                    folder.path.repo,
                    stands=stands,
                    patience_s=patience_s,
                    recall=None if patience_s < math.inf else functools.partial(recall, folder),
                )
            except Moved:
                continue
            if answer.stored:
                return
            # Refreshed since it was asked for: what changed until then must be in it.

    async def _recall_name(self, parent: Inode, name: str) -> Cell[Any] | None:
        """Find what an earlier mount knew of a name; see ``Questions.answer``."""
        path = parent.path.child(name)
        found = await self._kept.name(path, lists_all=self._store.lists_all(path.repo))
        if found is None or parent.path.child(name) != path:
            return None
        info, asked = found
        if info is None:  # by the listing alone, if there is one
            await self._recall_listing(parent)
            return self._denying(parent)
        inode = self.take(parent, name, info, asked)
        return inode.stat if inode is not None else None

    async def _recall_listing(self, folder: Inode) -> Cell[bool] | None:
        """Find what an earlier mount knew of a folder; see ``Questions.answer``."""
        async with self._recalling:  # once for all who want it
            path, below = folder.path, below_of(folder)
            if below.listing.is_known:
                return below.listing
            found = await self._kept.listing(path)
            if found is None:
                return None
            entries, asked = found
            below.being_taken += 1
            try:
                entries = await self._taking.packed(folder, path, entries)
                await self._taking.listing(folder, path, entries, asked)
            except (Moved, NoEntry):
                return None
            finally:
                below.being_taken -= 1
            return below.listing if below.listing.put(True, asked) else None

    async def _ask_listing(self, folder: Inode, asked: Asked) -> bool:
        path, below = folder.path, below_of(folder)
        below.asked_singly = 0
        try:
            entries = await links.listed(self._store, path, packed_of(below))
        except NotFound:
            if folder.path == path and folder.parent is not None and folder.attached():
                self._kept.named(path, None, asked)
                self.take(folder.parent, folder.name, None, asked)
            raise
        except JfsError:
            below.asked_singly = -_LOOKUPS_AFTER_A_BAD_LISTING
            raise
        below.being_taken += 1  # no dentry is dropped until the listing is whole
        try:
            entries = await self._taking.packed(folder, path, entries)
            is_packed = isinstance(entries, Packed)
            if folder.path == path and not is_packed:
                self._kept.listed(path, entries, asked)
            await self._taking.listing(folder, path, entries, asked)
            if folder.path == path and is_packed:  # its rows are those of the folder by now
                self._kept.listed(path, Whole(folder), asked)
        finally:
            below.being_taken -= 1
            below.took_s = trio.current_time() - asked.at
        return True

    def take(self, parent: Inode, name: str, info: EntryInfo | None, asked: Asked) -> Inode | None:
        """Bring a name up to date with an answer; see ``Taking.take``."""
        return self._taking.take(parent, name, info, asked)


def _list_above(inode: Inode) -> None:
    """Let the folders above something that is listed be listed too: they are there now."""
    if inode.listed:
        while (above := inode.parent) is not None and isinstance(above.info, FolderInfo):
            if above.info.listed:
                return
            above.stat.confirm(replace(above.info, listed=True))
            inode = above
