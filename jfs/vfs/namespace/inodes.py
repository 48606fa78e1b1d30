"""Inodes and dentries in memory: what is known of one file or folder. No I/O. Trio thread only.

Terms, as the kernel uses them: an *inode* is one file or folder; a *dentry* is its name in a
folder; the *lookup count* is how often the kernel was given the inode and has not forgotten it.
Which inodes there are is the part of ``inodetable``.
"""

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from jfs.errors import NotADirectory
from jfs.model import EntryInfo, FileInfo, FolderInfo, Properties, RepoPath, kind_of, same_content
from jfs.vfs.freshness import NEVER, Asked, Cell

if TYPE_CHECKING:
    from jfs.vfs.namespace.crowds import Crowd

ROOT = 1  # FUSE_ROOT_ID
_NAMES_KEPT = 1024  # a storm of random names must not grow memory


class Below:
    """What is known of the names in a folder.

    Attributes:
        children: known dentries by name, those that are objects.
        crowd: the others; None: there are none.
        folders: how many of *children* are folders.
        listing: True once *children* were the whole listing, as of the time it was asked for.
        names: a cell for each name that is being asked for, or is known to be missing (None).
        asked_singly: names looked up one by one since the folder was listed.
        took_s: from the question for the last listing until it was here.
        being_taken: listings that are being taken over at the moment, piece by piece.
        tags: of the query for the properties of all children.
        tag_asked_at: when the properties of one child were asked for (``trio.current_time``).
        no_query_until: the server refused that query: it is not asked again before.
    """

    __slots__ = (
        "_room",
        "asked_singly",
        "being_taken",
        "children",
        "crowd",
        "folders",
        "listing",
        "names",
        "no_query_until",
        "tag_asked_at",
        "tags",
        "took_s",
    )

    def __init__(self) -> None:
        self.children: dict[str, Inode] = {}
        self.crowd: Crowd | None = None
        self.folders = 0
        self.listing: Cell[bool] = Cell()
        self.names: dict[str, Cell[EntryInfo | None]] = {}
        self._room = _NAMES_KEPT
        self.asked_singly = 0
        self.took_s = 0.0
        self.being_taken = 0
        self.tags: Cell[bool] = Cell()
        self.tag_asked_at = NEVER.at
        self.no_query_until = NEVER.at

    @property
    def is_listed(self) -> bool:
        """Whether dentries are kept for the sake of a listing, fresh or not."""
        return self.listing.is_known or self.being_taken > 0

    @property
    def is_blank(self) -> bool:
        """Whether nothing is known, nor asked at the moment."""
        cells = self.listing, self.tags
        return not (self.children or self.crowd or self.names or self.being_taken) and all(
            cell.is_idle and not cell.is_known for cell in cells
        )

    @property
    def has_rows(self) -> bool:
        """Whether there are entries that are no objects."""
        return self.crowd is not None and not self.crowd.is_used_up

    def name(self, name: str) -> Cell[EntryInfo | None]:
        """Return the cell of a name that may be no dentry; made if there is none."""
        cell = self.names.get(name)
        if cell is None:
            if len(self.names) >= self._room:
                self._trim()
            cell = self.names[name] = Cell()
        return cell

    def settle(self, name: str) -> None:
        """Drop the cell of a name that nobody asks for, and that is not known to be missing."""
        cell = self.names.get(name)
        if cell is not None and cell.is_idle and not (cell.is_known and cell.value is None):
            del self.names[name]

    def forget(self) -> None:
        """Believe nothing, and keep nothing that costs memory."""
        self.listing.drop()
        self.tags.drop()
        for name in [name for name, cell in self.names.items() if cell.is_idle]:
            del self.names[name]
        for cell in self.names.values():
            cell.drop()
        self.asked_singly = 0

    def _trim(self) -> None:
        """Drop what is known longest of missing names.

        Not those that went missing since a listing was asked for that is still to come: it would
        bring names back that were removed here.
        """
        newest = math.inf if (asking := self.listing.asking) is None else asking.serial
        idle = [n for n, cell in self.names.items() if cell.is_idle and cell.asked.serial < newest]
        for name in idle[: max(0, len(self.names) - _NAMES_KEPT // 2)]:
            del self.names[name]
        self._room = max(_NAMES_KEPT, 2 * len(self.names))


class Inode:
    """One file or folder that the kernel or a cached listing knows.

    Attributes:
        stat: the last answer of the server about it; always known.
        below: of a folder; None for files.
        lookup_count: held by the kernel; changed by ``InodeTable`` only.
        tags: properties of the artifact; None: nobody asked for them yet.
        local: not on the server yet: made here, and not uploaded so far.
        ahead: it was written here, and the server does not have that yet.
        written: it was opened for writing here, which shows to whoever has it open: see
            ``files.passing``.
        computed: what a folder or link shows that is no entry of the server; None for real ones.
    """

    __slots__ = (
        "ahead",
        "below",
        "computed",
        "ino",
        "local",
        "lookup_count",
        "name",
        "parent",
        "stat",
        "tags",
        "written",
    )

    def __init__(
        self, ino: int, parent: "Inode | None", name: str, info: EntryInfo, asked: Asked
    ) -> None:
        self.ino = ino
        self.parent = parent
        self.name = name
        self.stat: Cell[EntryInfo] = Cell()
        self.stat.put(info, asked)
        self.below = None if isinstance(info, FileInfo) else Below()
        self.lookup_count = 0
        self.tags: Cell[Properties] | None = None
        self.computed: object | None = None
        self.local = False
        self.ahead = False
        self.written = False

    @property
    def info(self) -> EntryInfo:
        """The last answer of the server about it, fresh or not."""
        return self.stat.value

    @property
    def is_ours(self) -> bool:
        """Whether the name is its own, whatever the server says about it."""
        return self.local or self.ahead

    @property
    def is_folder(self) -> bool:
        return self.below is not None

    @property
    def listed(self) -> bool:
        """Whether it is part of the listing of its folder."""
        if self.below is None:
            return True
        info = self.stat.value
        return not isinstance(info, FolderInfo) or info.listed

    @property
    def path(self) -> RepoPath:
        return self.stat.value.path

    @property
    def dentries(self) -> dict[str, "Inode"]:
        """The known children of a folder that are objects; a file has none."""
        return self.below.children if self.below is not None else {}

    @property
    def holds_others(self) -> bool:
        """Whether it is needed for the sake of what is below it."""
        below = self.below
        return below is not None and (
            bool(below.children) or (below.crowd is not None and below.crowd.held > 0)
        )

    def child(self, name: str) -> "Inode | None":
        """Return what is known to have a name in a folder; None: nothing, so far."""
        below = self.below
        if below is None:
            return None
        found = below.children.get(name)
        if found is None and below.crowd is not None:
            return below.crowd.take_out(name)
        return found

    @property
    def properties(self) -> Properties | None:
        """The properties last known, fresh or not; None: nobody asked for them yet."""
        return self.tags.value if self.tags is not None and self.tags.is_known else None

    @properties.setter
    def properties(self, properties: Properties) -> None:
        """Note what they were made here."""
        self.tags = self.tags or Cell()
        self.tags.change(properties)

    def doubt_properties(self) -> None:
        """Forget the properties, and believe no answer about them that is on its way.

        They were changed here, nobody knows to what: they must not stand in, either.
        """
        self.tags = self.tags or Cell()
        self.tags.drop()

    def attached(self) -> bool:
        """Whether the inode still has its dentry (or is the root)."""
        parent = self.parent
        if parent is None:
            return True
        return parent.below is not None and parent.below.children.get(self.name) is self


def below_of(folder: Inode) -> Below:
    """Return what is known below a folder. Raises NotADirectory."""
    if folder.below is None:
        raise NotADirectory(f"{folder.path} is a file")
    return folder.below


def fits(inode: Inode, info: EntryInfo) -> bool:
    """Whether an inode can show an answer, or must be another inode's."""
    if inode.lookup_count:
        return shows(inode.info, info)
    return kind_of(info) == kind_of(inode.info)


def shows(known: EntryInfo, info: EntryInfo) -> bool:
    """Whether an inode that the kernel holds can show an answer; *known* is what it shows."""
    if kind_of(info) != kind_of(known) or not isinstance(info, FileInfo) or info.link_target:
        return kind_of(info) == kind_of(known)
    return same_content(info, known)


def attach(inode: Inode, parent: Inode) -> None:
    assert parent.below is not None
    parent.below.children[inode.name] = inode
    parent.below.folders += inode.is_folder


def detach(inode: Inode) -> None:
    assert inode.parent is not None
    below = inode.parent.below
    assert below is not None
    del below.children[inode.name]
    below.folders -= inode.is_folder
    if below.crowd is not None:
        below.crowd.vacated(inode.name)


def relocate(top: Inode, path: RepoPath) -> None:
    """Set new paths of an entry and what is below it; answers about the old ones are too late."""
    waiting = [(top, path)]
    while waiting:
        inode, path = waiting.pop()
        stat = inode.stat
        stat.confirm(replace(stat.value, path=path))
        if inode.tags is not None:
            inode.tags.confirm()
        if inode.below is not None:
            inode.below.listing.confirm()
            inode.below.tags.confirm()
            if (crowd := inode.below.crowd) is not None:
                crowd.packed.folder = path
                crowd.stat.confirm()
            for cell in inode.below.names.values():
                cell.confirm()
            waiting += [(child, path.child(name)) for name, child in inode.dentries.items()]
