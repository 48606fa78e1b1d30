"""Selectors: names that stand for the entry of a folder that somebody means.

``@latest`` is the newest version; ``@KEY=VALUE`` the entry that carries the property, itself or
through an artifact below it, and the newest of several. They are computed symbolic links, relative,
so that they survive bind mounts. A real entry of that name wins. Trio thread only.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from jfs.errors import InvalidName, NoEntry
from jfs.model import Criteria, EntryInfo, FileInfo, problem_with_key
from jfs.protocols import ArtifactStore
from jfs.vfs.namespace.inodes import Inode
from jfs.vfs.namespace.tree import Tree, below
from jfs.vfs.namespace.versions import version_key

MARK = "@"
_LATEST = "@latest"


@dataclass(frozen=True, slots=True)
class Link:
    """What a computed symbolic link points to.

    Attributes:
        folder, name: the selector.
        as_of: ``Tree.changes`` when it was resolved: a change made here since may mean another.
    """

    target: str
    folder: Inode
    name: str
    as_of: int


def parse_criterion(text: str) -> tuple[str, str] | None:
    """Read ``KEY=VALUE``; None if it is none."""
    key, equals, value = text.partition("=")
    if not equals or problem_with_key(key) is not None or '"' in value:
        return None
    return key, value


def newest(entries: Iterable[EntryInfo]) -> str | None:
    """Give the name of the newest version; folders count before files (a README is no version)."""
    candidates = list(entries)
    folders = [entry for entry in candidates if not isinstance(entry, FileInfo)]
    ordered = sorted(
        folders or candidates, key=lambda entry: version_key(entry.path.name, entry.modified_ns)
    )
    return ordered[-1].path.name if ordered else None


class Selectors:
    """Resolve selectors of one mount."""

    def __init__(self, store: ArtifactStore, tree: Tree) -> None:
        self._store = store
        self._tree = tree

    async def link(self, folder: Inode, name: str) -> Link:
        """Resolve a selector. Raises as ``resolve``."""
        as_of = self._tree.changes
        return Link(await self.resolve(folder, name), folder, name, as_of)

    async def current(self, link: Link) -> Link:
        """Resolve it again, if anything was changed here since. Raises as ``resolve``."""
        return link if link.as_of == self._tree.changes else await self.link(link.folder, link.name)

    async def resolve(self, folder: Inode, name: str) -> str:
        """Give the name of the entry of *folder* that a selector means.

        Raises:
            NoEntry: *name* is no selector, or nothing fits it.
        """
        if name == _LATEST:
            children = await self._tree.children(folder)
            found = newest(child.info for child in children)
        else:
            found = await self._carrier(folder, name)
        if found is None:
            raise NoEntry(f"{folder.path}/{name}: nothing fits")
        return found

    async def _carrier(self, folder: Inode, name: str) -> str | None:
        criterion = parse_criterion(name.removeprefix(MARK))
        if criterion is None:
            raise NoEntry(f"{folder.path}/{name}: neither an entry nor a selector")
        try:
            matches = await self._store.search(
                Criteria(folder.path, properties=(criterion,), kind="any", plain=True)
            )
        except InvalidName as error:
            raise NoEntry(str(error)) from None
        carriers = {parts[0] for match in matches if (parts := below(folder.path, match.info.path))}
        if not carriers:
            return None
        children = await self._tree.children(folder)
        return newest(child.info for child in children if child.name in carriers)
