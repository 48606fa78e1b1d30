"""The query tree: ``.by/KEY=VALUE[/KEY=VALUE…]/`` shows the artifacts that match, in their folders.

Files in it are the real entries, with the same inodes: one page cache, one cache on disk, and
their properties can be set. Folders are computed, since the kernel allows a folder in one place
only (``d_splice_alias`` moves it). A folder that carries the properties itself is shown whole. One
scoped query for each combination of criteria, believed as long as a listing. Trio thread only.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import trio

from jfs import memory
from jfs.errors import InvalidName, NoEntry
from jfs.model import Criteria, EntryInfo, FileInfo, FolderInfo, Match, RepoPath
from jfs.protocols import ArtifactStore
from jfs.vfs.freshness import NEVER, Asked, Cell, pieces
from jfs.vfs.kept.keeper import Forgetful
from jfs.vfs.namespace import links
from jfs.vfs.namespace.inodes import Inode
from jfs.vfs.namespace.selectors import parse_criterion
from jfs.vfs.namespace.tree import Tree, below
from jfs.vfs.questions import Questions, StandsIn

NAME = ".by"
_RESULTS_KEPT = 64  # combinations of criteria
_AN_ENTRY = 700  # bytes, of a folder that is shown whole


@dataclass(frozen=True, slots=True)
class QueryFolder:
    """What a computed folder stands for.

    Attributes:
        criteria: key and value pairs; none: ``.by`` itself.
        parts: names below the criteria, as below the root of the mount.
    """

    criteria: tuple[tuple[str, str], ...] = ()
    parts: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """Its path, which no item of the server can have: there is no repository ``.by``."""
        criteria = (f"{key}={value}" for key, value in self.criteria)
        return "/".join([NAME, *criteria, "", *self.parts])


@dataclass(slots=True)
class _Folder:
    """A folder of a result: what matched in it."""

    entries: dict[str, "_Folder | FileInfo"] = field(default_factory=dict)
    whole: bool = False  # it carries the properties itself


@dataclass(frozen=True, slots=True)
class _Result:
    """What matched, and when it was asked for."""

    root: _Folder
    asked: Asked


_Shown = FileInfo | QueryFolder


class Queries:
    """The query tree of one mount.

    Args:
        ttl_s: how long a result is believed.
    """

    def __init__(
        self,
        store: ArtifactStore,
        tree: Tree,
        ttl_s: float,
        questions: Questions,
        kept: Forgetful,
    ) -> None:
        self._store = store
        self._tree = tree
        self._ttl_s = ttl_s
        self._questions = questions
        self._kept = kept
        self._results: dict[tuple[tuple[str, str], ...], Cell[_Folder]] = {}  # latest used last

    def root(self) -> Inode:
        """Return the inode of ``.by``."""
        return self._computed(QueryFolder(), Asked.now())

    async def lookup(self, folder: QueryFolder, name: str) -> Inode:
        """Resolve a name in a computed folder; a real entry wins over a further criterion.

        Raises:
            NoEntry: nothing that matches has this name.
            RemoteError: the server could not be asked.
        """
        entries, asked = await self._entries(folder)
        found = self.inode(entries[name], asked) if name in entries else None
        if found is not None:
            return found
        criterion = parse_criterion(name)
        if criterion is None or folder.parts:
            raise NoEntry(f"{folder.key}/{name}: nothing that matches")
        return self._computed(QueryFolder((*folder.criteria, criterion)), Asked.now())

    async def listing(self, folder: QueryFolder) -> "QueryListing":
        """List a computed folder. Raises NoEntry, RemoteError."""
        entries, asked = await self._entries(folder)
        return QueryListing(self, list(entries.items()), asked)

    def forget(self) -> None:
        """Believe no result any more, nor one that is on its way; each may stand in."""
        for cell in self._results.values():
            cell.expire()

    async def _entries(self, folder: QueryFolder) -> tuple[Mapping[str, _Shown], Asked]:
        """Return what a folder shows, and when that was asked for."""
        if not folder.criteria:
            return {}, NEVER
        result = await self._result(folder.criteria)
        found = result.root
        for part in folder.parts:
            if found.whole:
                break
            entry = found.entries.get(part)
            if not isinstance(entry, _Folder):
                raise NoEntry(f"{folder.key}: nothing that matches")
            found = entry
        if found.whole:
            return await self._mirrored(folder)
        return {
            name: each
            if isinstance(each, FileInfo)
            else QueryFolder(folder.criteria, (*folder.parts, name))
            for name, each in found.entries.items()
        }, result.asked

    async def _mirrored(self, folder: QueryFolder) -> tuple[Mapping[str, _Shown], Asked]:
        """Show everything in the real folder of the same place."""
        real = await self._tree.walk(folder.parts)
        listing = await self._tree.listing(real)
        assert real.below is not None
        entries: dict[str, _Shown] = {}
        async for piece in listing.infos():
            memory.require_room(len(piece) * _AN_ENTRY, f"{folder.key}")
            for info in piece:
                name = info.path.name
                inside = QueryFolder(folder.criteria, (*folder.parts, name))
                entries[name] = info if isinstance(info, FileInfo) else inside
        return entries, real.below.listing.asked

    async def _result(self, criteria: tuple[tuple[str, str], ...]) -> _Result:
        cell = self._results.pop(criteria, None) or Cell()
        self._results[criteria] = cell
        while len(self._results) > _RESULTS_KEPT:
            del self._results[next(iter(self._results))]
        if cell.is_fresh(self._ttl_s):
            return _Result(cell.value, cell.asked)

        async def ask(asked: Asked) -> _Folder:
            return await self._ask(criteria, asked)

        async def recall() -> Cell[_Folder] | None:
            found = await self._kept.search(QueryFolder(criteria).key)
            if found is None:
                return None
            return cell if cell.put(await self._folder(found[0]), found[1]) else None

        # Queries over all repositories may fail while the list of them does not.
        subject = self._tree.inodes.root.path.repo or NAME
        try:
            answer = await self._questions.answer(cell, ask, subject, stands=cell, recall=recall)
        except StandsIn as stands:
            cell.stand_in(stands.stand)
            return _Result(cell.value, cell.asked)
        # What is not stored was overtaken by a change here: it is shown, and not believed.
        return _Result(answer.value, answer.asked if answer.stored else answer.asked.as_hint())

    async def _ask(self, criteria: tuple[tuple[str, str], ...], asked: Asked) -> _Folder:
        scope = self._tree.inodes.root.path
        try:
            matches = await self._store.search(Criteria(scope, criteria, kind="any", plain=True))
            found = await self._links(criteria, matches)
        except InvalidName as error:
            raise NoEntry(str(error)) from None
        entries = [found.get(match.info.path, match.info) for match in matches]
        self._kept.searched(QueryFolder(criteria).key, entries, asked)
        return await self._folder(entries)

    async def _folder(self, entries: Sequence[EntryInfo]) -> _Folder:
        """Put what was found into its folders."""
        scope, result = self._tree.inodes.root.path, _Folder()
        for piece in pieces(entries):
            for info in piece:
                _insert(result, below(scope, info.path), info)
            await trio.lowlevel.checkpoint()
        return result

    async def _links(
        self, criteria: tuple[tuple[str, str], ...], matches: Sequence[Match]
    ) -> Mapping[RepoPath, EntryInfo]:
        """Find out which empty files are symbolic links: one more query, if there are any."""
        if not any(links.is_empty_file(match.info) for match in matches):
            return {}
        return await links.links_among(self._store, Criteria(self._tree.inodes.root.path, criteria))

    def inode(self, shown: _Shown, asked: Asked) -> Inode | None:
        """Return the inode of an entry; None for a file that is outside of the mount, or gone.

        It is made for the caller, who settles it if nobody takes it. No checkpoint.
        """
        if isinstance(shown, FileInfo):
            return self._tree.adopt(shown, asked)
        return self._computed(shown, asked)

    def settle(self, inode: Inode) -> None:
        """Drop an inode that was made and that nobody took."""
        self._tree.inodes.settle(inode)

    def _computed(self, folder: QueryFolder, asked: Asked) -> Inode:
        info = FolderInfo(RepoPath(NAME, folder.key), self._tree.inodes.root.info.modified_ns)
        return self._tree.inodes.compute(folder.key, info, folder, asked)


class QueryListing:
    """The entries of a computed folder at one moment; inodes are made as they are read."""

    def __init__(
        self, queries: Queries, entries: Sequence[tuple[str, _Shown]], asked: Asked
    ) -> None:
        self._queries = queries
        self._entries = entries
        self._asked = asked
        self._made: list[Inode] = []

    def read(self, start: int, count: int) -> list[tuple[str, Inode, int]]:
        """As ``Listing.read``; the inodes are there until the next call at least."""
        self.release()
        found = []
        for position in range(start, len(self._entries)):
            name, shown = self._entries[position]
            inode = self._queries.inode(shown, self._asked)
            if inode is not None:
                found.append((name, inode, position + 1))
            if len(found) == count:
                break
        self._made = [inode for _, inode, _ in found]
        return found

    def release(self) -> bool:
        """Drop what was made for this reader and nobody took. Returns False: that was all."""
        for inode in self._made:
            self._queries.settle(inode)
        self._made = []
        return False


def _insert(root: _Folder, parts: Sequence[str], info: EntryInfo) -> None:
    if not parts:
        return
    folder = root
    for part in parts[:-1]:
        entry = folder.entries.setdefault(part, _Folder())
        if not isinstance(entry, _Folder):
            return  # a file with something below it: the server contradicts itself
        folder = entry
    if isinstance(info, FileInfo):
        folder.entries.setdefault(parts[-1], info)
        return
    entry = folder.entries.setdefault(parts[-1], _Folder())
    if isinstance(entry, _Folder):
        entry.whole = True
