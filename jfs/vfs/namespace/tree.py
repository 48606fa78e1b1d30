"""The namespace: resolve names and list folders, from memory while it is fresh, else the server.

Trio thread only. A lock per folder, and one per name that is asked for by itself, keep the same
question from being asked twice at a time (single-flight); no lock is held while another is taken.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace

import trio

from jfs.config import TreeSettings
from jfs.errors import AccessDenied, NameTooLong, NoEntry, NotADirectory, NotFound, Unavailable
from jfs.model import (
    PARENT_MAX,
    SYMLINK_TARGET,
    Criteria,
    EntryInfo,
    FileInfo,
    FolderInfo,
    RepoPath,
    as_link,
    is_too_long,
    kind_of,
    problem_with_name,
)
from jfs.protocols import ArtifactStore
from jfs.vfs.namespace.inodes import Inode, InodeTable

log = logging.getLogger(__name__)

# Names looked up one by one before the whole folder is listed instead: a program that walks many
# names of a folder costs one listing, one that knows its path costs one small request a name.
_LOOKUPS_BEFORE_LISTING = 3
_MISSING_NAMES_KEPT = 1024  # a storm of random names must not grow memory
# While the server is down an expired answer is served for this long before it is tried again, so
# that `ls` of a cached folder does not wait for a deadline at every call.
_STALE_RETRY_S = 5.0


class Tree:
    """Inodes of one mount, kept in step with the server."""

    def __init__(self, store: ArtifactStore, settings: TreeSettings, root: FolderInfo) -> None:
        self._store = store
        self._settings = settings
        self._locks: dict[_LockKey, trio.Lock] = {}
        self._lookups: dict[Inode, int] = {}
        # Names that this mount changed while a listing of their folder is under way: what it says
        # about them is older than what we know.
        self._being_listed: dict[Inode, set[str]] = {}
        self.changes = 0  # made by this mount, of names, content and properties
        self.inodes = InodeTable(root, trio.current_time() + settings.attr_ttl_s)

    def find(self, ino: int) -> Inode:
        """Give a living inode. Raises NoEntry."""
        return self.inodes.get(ino)

    async def refresh(self, inode: Inode) -> None:
        """Make ``inode.info`` fresh.

        The root of the mount never asks: it answers while the server is down.

        Raises:
            NotFound: the server says it is gone; its dentry goes too.
            RemoteError: the server did not answer and nothing is known.
        """
        if inode is self.inodes.root or inode.fresh_until > trio.current_time():
            return
        if inode.computed is not None or inode.local or not inode.attached():
            return  # made anew by every lookup; ours alone; gone, and open still
        async with self._lock(inode):
            if inode.fresh_until > trio.current_time():
                return
            changes = inode.changes
            try:
                info = await self._stat(inode.path)
            except NotFound:
                if inode.changes != changes:
                    return
                self.inodes.unlink(inode)
                raise
            except Unavailable as error:
                log.warning("%s: serving what was known before: %s", inode.path, error)
                inode.fresh_until = trio.current_time() + _STALE_RETRY_S
                return
            if inode.changes != changes:
                return  # asked before the change: what we know is newer
            if kind_of(info) != kind_of(inode.info):
                self.inodes.unlink(inode)
                raise NoEntry(f"{inode.path}: was replaced by another kind of entry")
            inode.info = info
            inode.fresh_until = trio.current_time() + self._settings.attr_ttl_s

    async def lookup(self, parent: Inode, name: str) -> Inode:
        """Resolve *name* in the folder *parent*.

        Raises:
            NotADirectory: *parent* is a file.
            NoEntry: the server has no such name (a real 404, or a complete listing without it).
            RemoteError: the server did not answer and nothing is known.
        """
        self._require_folder(parent)
        found = self._from_memory(parent, name)
        if found is not None:
            return found
        if (problem := problem_with_name(name)) is not None:
            error = NameTooLong if is_too_long(name) else NoEntry
            raise error(f"{name!r} {problem}")  # it cannot be there: nobody need be asked
        if len(parent.path.path) > PARENT_MAX:
            raise NoEntry(f"{parent.path.path:.80}…: nothing can be below so long a path")
        lookups = self._lookups.get(parent, 0)
        # Repositories are known by their list alone: one that hangs must not be asked for its name.
        # The listing of a remote repository says nothing about what it has not cached yet.
        lists_all = self._store.lists_all(parent.path.repo)
        if (lookups >= _LOOKUPS_BEFORE_LISTING and lists_all) or not parent.path.repo:
            await self.children(parent)
            found = self._from_memory(parent, name)
            if found is not None:
                return found
            raise NoEntry(f"{parent.path.child(name)}: not listed by the server")
        # The lock is that of the name: one that the server is slow about keeps no other waiting.
        async with self._lock(parent, name):
            found = self._from_memory(parent, name)
            if found is not None:
                return found
            self._lookups[parent] = lookups + 1
            return await self._ask(parent, name)

    async def children(self, folder: Inode) -> Sequence[Inode]:
        """Return the listing of a folder, by name.

        What was looked up and is in no listing is left out: ``FolderInfo.listed``.

        Raises:
            NotADirectory, NotFound, RemoteError: as for ``lookup``.
        """
        self._require_folder(folder)
        if folder.complete_until <= trio.current_time():
            async with self._lock(folder):
                if folder.complete_until <= trio.current_time():
                    await self._list(folder)
        return [inode for _, inode in sorted(folder.dentries.items()) if inode.listed]

    def adopt(self, info: EntryInfo) -> Inode | None:
        """Give the inode of an item that the server described out of turn, in a query.

        Its folders get their dentries too, without a question: what is not known of them is asked
        when somebody looks. None: it lies outside of the mount.
        """
        root = self.inodes.root
        parts = below(root.path, info.path)
        if not parts:
            return None
        now = trio.current_time()
        parent = root
        for part in parts[:-1]:
            child = parent.dentries.get(part)
            if child is None:
                child = self.inodes.link(parent, part, FolderInfo(parent.path.child(part), 0), 0.0)
            if not child.is_folder:
                return None
            parent = child
        known = parent.dentries.get(parts[-1])
        if known is not None and (known.local or known.fresh_until > now):
            return known
        if parent.missing is not None and parent.missing.get(parts[-1], 0.0) > now:
            return None  # removed since the query was answered
        return self.inodes.link(parent, parts[-1], info, now + self._settings.attr_ttl_s)

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
        inode = self.inodes.link(
            parent, name, info, trio.current_time() + self._settings.attr_ttl_s
        )
        inode.local = local
        if isinstance(info, FolderInfo):  # a new folder is empty: no need to ask
            inode.complete_until = trio.current_time() + self._settings.entry_ttl_s
        return inode

    def removed(self, inode: Inode) -> None:
        """Note that an entry is gone."""
        parent = inode.parent
        inode.changes += 1
        inode.local = False
        if parent is not None and inode.attached():
            self._touch(parent, inode.name)
            self._note_missing(parent, inode.name)
        self.inodes.unlink(inode)

    def moved(self, inode: Inode, parent: Inode, name: str) -> None:
        """Note that an entry has another place; what was at that place is gone."""
        before, old_name = inode.parent, inode.name
        assert before is not None
        existing = parent.dentries.get(name)
        if existing is not None:
            self.removed(existing)
        inode.changes += 1
        self._touch(before, old_name)
        self._touch(parent, name)
        self.inodes.move(inode, parent, name)
        self._note_missing(before, old_name)
        self._lookups.pop(before, None)

    def changed(self, inode: Inode, info: EntryInfo) -> None:
        """Note that an entry is on the server now, and what it is there."""
        inode.changes += 1
        inode.local = False
        inode.info = info
        inode.fresh_until = trio.current_time() + self._settings.attr_ttl_s
        if inode.parent is not None:
            self._touch(inode.parent, inode.name)

    def expire_listing(self, folder: Inode) -> None:
        """List a folder again at its next use."""
        folder.complete_until = 0.0
        folder.missing = None

    def doubt(self, inode: Inode) -> None:
        """Believe nothing about a name any more, neither that it is there nor that it is not."""
        self.expire(inode)
        if inode.parent is not None and inode.parent.missing is not None:
            inode.parent.missing.pop(inode.name, None)

    def _touch(self, parent: Inode, name: str) -> None:
        self.changes += 1
        if parent.missing is not None:
            parent.missing.pop(name, None)
        if (touched := self._being_listed.get(parent)) is not None:
            touched.add(name)

    async def is_there(self, parent: Inode, name: str) -> bool:
        """Ask the server itself whether a name is taken, whatever was believed. RemoteError."""
        known = parent.dentries.get(name)
        if known is not None and known.local:
            return True
        try:
            info = await self._stat(parent.path.child(name))
        except NotFound:
            if known is not None:
                self.inodes.unlink(known)
            return False
        if known is None:
            self.inodes.link(parent, name, info, trio.current_time() + self._settings.attr_ttl_s)
        return True

    async def _stat(self, path: RepoPath) -> EntryInfo:
        """Describe one item; an empty file may be a symbolic link."""
        info = await self._store.stat(path)
        if isinstance(info, FileInfo) and not info.size:
            return as_link(info, await self._store.properties(path))
        return info

    async def _with_links(
        self, folder: RepoPath, entries: Sequence[EntryInfo]
    ) -> Sequence[EntryInfo]:
        """Find out which empty files of a listing are symbolic links, by one query."""
        if not any(isinstance(info, FileInfo) and not info.size for info in entries):
            return entries
        criteria = Criteria(folder, ((SYMLINK_TARGET, "*"),), direct=True)
        try:
            matches = await self._store.search(criteria)
        except AccessDenied:  # anonymous users may not query (artifactory-rest 10.1)
            return [
                await self._stat(info.path)
                if isinstance(info, FileInfo) and not info.size
                else info
                for info in entries
            ]
        links = {m.info.path: as_link(m.info, m.properties) for m in matches}
        return [links.get(info.path, info) for info in entries]

    def forget_below(self, inode: Inode) -> None:
        """Believe nothing at or below the inode any more; the next use asks the server."""
        self.expire(inode)
        inode.properties_until = 0.0
        inode.complete_until = 0.0
        inode.missing = None
        self._lookups.pop(inode, None)
        for child in inode.dentries.values():
            self.forget_below(child)

    def expire(self, inode: Inode) -> None:
        """Believe nothing about the inode any more; the next use asks the server."""
        inode.fresh_until = 0.0
        if inode.parent is not None:
            inode.parent.complete_until = 0.0

    def _from_memory(self, parent: Inode, name: str) -> Inode | None:
        """Answer from what is fresh; None means that the server must be asked."""
        now = trio.current_time()
        inode = parent.dentries.get(name)
        if inode is not None and inode.local:
            return inode
        if inode is not None and (inode.fresh_until > now or parent.complete_until > now):
            return inode
        settings = self._settings
        listed_at = parent.complete_until - settings.entry_ttl_s
        listed_until = min(parent.complete_until, listed_at + settings.negative_ttl_s)
        if inode is None and now < listed_until and self._store.lists_all(parent.path.repo):
            raise NoEntry(f"{parent.path.child(name)}: not in the listing")
        if parent.missing is not None and parent.missing.get(name, 0.0) > now:
            raise NoEntry(f"{parent.path.child(name)}: was not there a moment ago")
        return None

    async def _ask(self, parent: Inode, name: str) -> Inode:
        path = parent.path.child(name)
        known = parent.dentries.get(name)
        changes = known.changes if known is not None else 0
        try:
            info = await self._stat(path)
        except NotFound as error:
            if (ours := self._changed_meanwhile(parent, name, known, changes)) is not None:
                return ours
            if known is not None:
                self.inodes.unlink(known)
            self._note_missing(parent, name)
            raise NoEntry(f"{path}: {error.message}") from None
        except Unavailable as error:
            if known is None:
                raise
            log.warning("%s: serving what was known before: %s", path, error)
            known.fresh_until = trio.current_time() + _STALE_RETRY_S
            return known
        if (ours := self._changed_meanwhile(parent, name, known, changes)) is not None:
            return ours
        inode = self.inodes.link(
            parent, name, info, trio.current_time() + self._settings.attr_ttl_s
        )
        _list_above(inode)
        return inode

    def _changed_meanwhile(
        self, parent: Inode, name: str, known: Inode | None, changes: int
    ) -> Inode | None:
        """Give what this mount made of a name while the server was asked about it.

        None: nothing, the answer counts. Raises NoEntry: it was removed.
        """
        now = parent.dentries.get(name)
        if now is not None and (now is not known or now.changes != changes):
            return now
        if parent.missing is not None and parent.missing.get(name, 0.0) > trio.current_time():
            raise NoEntry(f"{parent.path.child(name)}: was removed")
        return None

    async def _list(self, folder: Inode) -> None:
        """Replace the dentries of *folder* by a fresh listing. Its lock is held."""
        try:
            touched = self._being_listed[folder] = set()
            entries = await self._with_links(
                folder.path, await self._store.list_children(folder.path)
            )
        except NotFound:
            if folder is not self.inodes.root:
                self.inodes.unlink(folder)
            raise
        except Unavailable as error:
            if folder.complete_until == 0.0:
                raise
            log.warning("%s: serving the listing known before: %s", folder.path, error)
            folder.complete_until = trio.current_time() + _STALE_RETRY_S
            return
        finally:
            self._being_listed.pop(folder, None)
        # no checkpoint until the end: nobody sees half of the new listing
        now = trio.current_time()
        names = set()
        for info in entries:
            name = info.path.name
            names.add(name)
            known = folder.dentries.get(name)
            if name not in touched and (known is None or not known.local):
                self.inodes.link(folder, name, info, now + self._settings.attr_ttl_s)
        for name in folder.dentries.keys() - names - touched:
            # An unlisted folder may be where somebody is: without its dentry he has no path.
            if not folder.dentries[name].local and folder.dentries[name].listed:
                self.inodes.unlink(folder.dentries[name])
        folder.complete_until = now + self._settings.entry_ttl_s
        folder.missing = None
        self._lookups.pop(folder, None)

    def _note_missing(self, parent: Inode, name: str) -> None:
        if parent.missing is None or len(parent.missing) >= _MISSING_NAMES_KEPT:
            parent.missing = {}
        parent.missing[name] = trio.current_time() + self._settings.negative_ttl_s

    @staticmethod
    def _require_folder(inode: Inode) -> None:
        if not inode.is_folder:
            raise NotADirectory(f"{inode.path} is a file")

    def _lock(self, inode: Inode, name: str = "") -> "_Lock":
        return _Lock(self._locks, (inode, name))


def _list_above(inode: Inode) -> None:
    """Let the folders above something that is listed be listed too: they are there now."""
    if inode.listed:
        while (above := inode.parent) is not None and isinstance(above.info, FolderInfo):
            if above.info.listed:
                return
            above.info = replace(above.info, listed=True)
            inode = above


def below(folder: RepoPath, path: RepoPath) -> tuple[str, ...]:
    """Give the names that lead from *folder* to *path*; none if it does not lie below."""
    parts, base = _parts(path), _parts(folder)
    return parts[len(base) :] if parts[: len(base)] == base else ()


def _parts(path: RepoPath) -> tuple[str, ...]:
    return tuple(part for part in (path.repo, *path.path.split("/")) if part)


_LockKey = tuple[Inode, str]  # an inode, or a name in a folder


class _Lock:
    """A lock that exists only while somebody wants it: a million inodes cost no lock each."""

    def __init__(self, locks: dict[_LockKey, trio.Lock], key: _LockKey) -> None:
        self._locks = locks
        self._key = key

    async def __aenter__(self) -> None:
        self._lock = self._locks.setdefault(self._key, trio.Lock())
        await self._lock.acquire()

    async def __aexit__(self, *_: object) -> None:
        self._lock.release()
        if not self._lock.statistics().tasks_waiting and not self._lock.locked():
            self._locks.pop(self._key, None)
