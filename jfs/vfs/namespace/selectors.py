"""Selectors: names that stand for the entry of a folder that somebody means.

``@latest`` is the newest version; ``@KEY=VALUE`` the entry that carries the property, itself or
through an artifact below it, and the newest of several. They are computed symbolic links, relative,
so that they survive bind mounts. A real entry of that name wins. Trio thread only.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from jfs import threads
from jfs.config import TreeSettings
from jfs.errors import InvalidName, NoEntry
from jfs.model import Criteria, EntryInfo, FileInfo, FolderInfo, RepoPath, problem_with_key
from jfs.protocols import ArtifactStore
from jfs.vfs.freshness import PIECE, Asked, Cell
from jfs.vfs.kept.keeper import Forgetful
from jfs.vfs.namespace.inodes import Inode
from jfs.vfs.namespace.tree import Tree, below
from jfs.vfs.namespace.versions import version_key
from jfs.vfs.questions import Questions, StandsIn

MARK = "@"
_LATEST = "@latest"
_SELECTORS_KEPT = 256


@dataclass(frozen=True, slots=True)
class Link:
    """What a computed symbolic link points to.

    Attributes:
        folder, name: the selector.
        as_of: ``Tree.changes`` when it was resolved: a change made here since may mean another.
        asked: when it was resolved.
    """

    target: str
    folder: Inode
    name: str
    as_of: int
    asked: Asked


def parse_criterion(text: str) -> tuple[str, str] | None:
    """Read ``KEY=VALUE``; None if it is none."""
    key, equals, value = text.partition("=")
    if not equals or problem_with_key(key) is not None or '"' in value:
        return None
    return key, value


def newest(entries: Iterable[EntryInfo]) -> str | None:
    """Return the newest version's name; folders count before files (a README is no version)."""
    candidates = list(entries)
    folders = [entry for entry in candidates if not isinstance(entry, FileInfo)]
    ordered = sorted(
        folders or candidates, key=lambda entry: version_key(entry.path.name, entry.modified_ns)
    )
    return ordered[-1].path.name if ordered else None


class Selectors:
    """Resolve selectors of one mount."""

    def __init__(
        self,
        store: ArtifactStore,
        tree: Tree,
        settings: TreeSettings,
        questions: Questions,
        kept: Forgetful,
    ) -> None:
        self._store = store
        self._tree = tree
        self._settings = settings
        self._questions = questions
        self._kept = kept
        self._as_of = 0
        # Names in a folder that carry a property; latest used last.
        self._carriers: dict[tuple[int, str], Cell[frozenset[str]]] = {}

    async def inode(self, folder: Inode, name: str) -> Inode:
        """Return the inode of a selector's link. Raises as ``link``."""
        link = await self.link(folder, name)
        info = FolderInfo(RepoPath(folder.path.repo, f"{folder.path.path}//{name}"), 0)
        return self._tree.inodes.compute(f"{folder.path}//{name}", info, link, link.asked)

    async def link(self, folder: Inode, name: str) -> Link:
        """Resolve a selector.

        Raises:
            NoEntry: *name* is no selector, or nothing fits it.
            RemoteError: the server could not be asked.
        """
        as_of = self._tree.changes
        carriers, asked = None, Asked.now()
        if name != _LATEST:
            criterion = parse_criterion(name.removeprefix(MARK))
            if criterion is None:
                raise NoEntry(f"{folder.path}/{name}: neither an entry nor a selector")
            carriers, asked = await self._carriers_in(folder, criterion)
        target: str | None = None
        if carriers is None or carriers:
            best: list[EntryInfo] = []
            async for piece in (await self._tree.listing(folder)).infos():
                best += [i for i in piece if carriers is None or i.path.name in carriers]
                many = len(best) >= PIECE
                target = await threads.computing(newest, best) if many else newest(best)
                best = [info for info in best if info.path.name == target]
        if target is None:
            raise NoEntry(f"{folder.path}/{name}: nothing fits")
        if folder.below is not None and folder.below.listing.asked.at < asked.at:
            asked = folder.below.listing.asked  # as old as the older of the two
        return Link(target, folder, name, as_of, asked)

    async def current(self, link: Link) -> Link:
        """Resolve it again, if anything was changed here since. Raises as ``link``."""
        return link if link.as_of == self._tree.changes else await self.link(link.folder, link.name)

    def forget(self) -> None:
        """Believe nothing any more, nor what is on its way."""
        for cell in self._carriers.values():
            cell.expire()

    async def _carriers_in(
        self, folder: Inode, criterion: tuple[str, str]
    ) -> tuple[frozenset[str], Asked]:
        """Return the names that carry a property, or have something below that does."""
        if self._as_of != self._tree.changes:
            self._as_of = self._tree.changes
            self.forget()
        key = (folder.ino, "=".join(criterion))
        cell = self._carriers.pop(key, None) or Cell()
        self._carriers[key] = cell
        while len(self._carriers) > _SELECTORS_KEPT:
            del self._carriers[next(iter(self._carriers))]
        settings = self._settings
        some = cell.is_known and bool(cell.value)
        if cell.is_fresh(settings.entry_ttl_s if some else settings.negative_ttl_s):
            return cell.value, cell.asked

        async def ask(asked: Asked) -> frozenset[str]:
            criteria = Criteria(folder.path, properties=(criterion,), kind="any", plain=True)
            try:
                matches = await self._store.search(criteria)
            except InvalidName as error:
                raise NoEntry(str(error)) from None
            found = (below(folder.path, match.info.path) for match in matches)
            names = frozenset(parts[0] for parts in found if parts)
            carriers = [FolderInfo(folder.path.child(name), 0) for name in names]
            self._kept.searched(f"{folder.path}//{key[1]}", carriers, asked)
            return names

        async def recall() -> Cell[frozenset[str]] | None:
            found = await self._kept.search(f"{folder.path}//{key[1]}")
            if found is None or not found[0]:
                return None
            names = frozenset(info.path.name for info in found[0])
            return cell if cell.put(names, found[1]) else None

        # That nothing carried it does not stand in: a failure must not become ENOENT.
        known = cell if some else None
        try:
            answer = await self._questions.answer(
                cell, ask, folder.path.repo, stands=known, recall=recall
            )
        except StandsIn as stands:
            cell.stand_in(stands.stand)
            return cell.value, cell.asked
        return answer.value, answer.asked
