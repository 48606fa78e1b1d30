"""Inodes and dentries in memory, with exact lookup counts. No I/O. Trio thread only.

Terms, as the kernel uses them: an *inode* is one file or folder; a *dentry* is its name in a
folder; the *lookup count* is how often the kernel was given the inode and has not forgotten it.
An inode lives in the table while its lookup count is above zero, or while the folder that holds
its dentry keeps it as a part of a cached listing.

Inode numbers are a hash of the path, so that they are the same after ``forget``, after a remount
and in another mount: tools that remember them (``rsync``, ``tar``, ``find``) stay right.
"""

import math
from collections.abc import Iterator
from dataclasses import replace
from hashlib import blake2b

from jfs.errors import NoEntry
from jfs.model import EntryInfo, FileInfo, FolderInfo, Properties, RepoPath, kind_of, same_content
from jfs.vfs.freshness import NEVER, PIECE, Asked, Cell

ROOT = 1  # FUSE_ROOT_ID
_WORTH_SHRINKING = 4096
_MASK = (1 << 63) - 1  # ino_t is unsigned, but plenty of programs print and parse it signed
_NAMES_KEPT = 1024  # a storm of random names must not grow memory


class Below:
    """What is known of the names in a folder.

    Attributes:
        children: known dentries by name.
        folders: how many of them are folders.
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
        """The known children of a folder; a file has none."""
        return self.below.children if self.below is not None else {}

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
        """Believe the properties no more, nor an answer about them that is on its way."""
        self.tags = self.tags or Cell()
        self.tags.expire()

    def attached(self) -> bool:
        """Whether the inode still has its dentry (or is the root)."""
        parent = self.parent
        if parent is None:
            return True
        return parent.below is not None and parent.below.children.get(self.name) is self


class InodeTable:
    """Every living inode by number."""

    def __init__(self, root: EntryInfo) -> None:
        self.root = Inode(ROOT, None, "", root, NEVER)
        self.root.lookup_count = 1  # the kernel never looks the root up, nor forgets it
        self._inodes = {ROOT: self.root}
        self._computed: dict[str, Inode] = {}
        # Folders that were forgotten, each with those of its children that are still to be dropped.
        self._forgotten: list[tuple[Inode, list[Inode]]] = []
        self._most = 1  # inodes at a time since the table was last shrunk

    def __len__(self) -> int:
        return len(self._inodes)

    def __iter__(self) -> Iterator[Inode]:
        return iter(self._inodes.values())

    def get(self, ino: int) -> Inode:
        """Raises NoEntry for a number that was never given out or is forgotten."""
        try:
            return self._inodes[ino]
        except KeyError:
            raise NoEntry(f"inode {ino} is not known") from None

    def link(self, parent: Inode, name: str, info: EntryInfo, asked: Asked) -> Inode:
        """Return the inode of a dentry, made or brought up to date with *info*.

        A name that changed between file, link and folder gets a new inode: the kernel treats a
        changed type under one number as corruption. So does a file with other content that the
        kernel knows: who has the old one open goes on with its bytes, its size and its pages, and
        the kernel never takes the size of one for that of the other.

        Args:
            asked: when *info* was true. What is newer must not be replaced: the caller looks.
        """
        assert parent.below is not None
        inode = parent.below.children.get(name)
        if inode is not None:
            if inode.is_ours:
                return inode
            if _fits(inode, info):
                inode.stat.put(info, asked)
                return inode
            _detach(inode)
            self._shed(inode)
            self._settle(inode)
        inode = Inode(self._number(str(info.path)), parent, name, info, asked)
        self._inodes[inode.ino] = inode
        _attach(inode, parent)
        return inode

    def attach_again(self, inode: Inode) -> None:
        """Return the dentry to an inode that another one took it from."""
        parent = inode.parent
        if parent is None or inode.attached() or inode.path != parent.path.child(inode.name):
            return
        if (other := parent.dentries.get(inode.name)) is not None:
            _detach(other)
            self._settle(other)
        _attach(inode, parent)

    def compute(self, key: str, info: EntryInfo, computed: object, asked: Asked) -> Inode:
        """Return the inode of an entry that is computed, made or brought up to date.

        It has no dentry: it is in no listing of the server, and lives while the kernel holds it.

        Args:
            key: what it is known by, and its number made of; no path of the server.
            asked: when what it is computed from was asked for.
        """
        inode = self._computed.get(key)
        if inode is None:
            inode = Inode(self._number(key), None, key, info, asked)
            inode.below = None if not isinstance(info, FolderInfo) else Below()
            self._inodes[inode.ino] = inode
            self._computed[key] = inode
        inode.stat.put(info, asked)
        inode.computed = computed
        return inode

    def lives(self, inode: Inode) -> bool:
        """Whether the inode can still be found by its number."""
        return self._inodes.get(inode.ino) is inode

    def settle(self, inode: Inode) -> None:
        """Drop an inode that was made for somebody who in the end did not take it."""
        self._settle(inode)

    def unlink(self, inode: Inode) -> None:
        """Take the dentry away; the inode itself lives on while the kernel holds it."""
        parent = inode.parent
        if parent is not None and inode.attached():
            _detach(inode)
            self._settle(parent)
        if inode.lookup_count == 0:
            self._shed(inode)
            self._settle(inode)
            self.tidy()

    def move(self, inode: Inode, parent: Inode, name: str) -> None:
        """Move an inode to another dentry, which must be free; everything below it goes along.

        No answer to a question about an old place is stored.
        """
        before = inode.parent
        assert before is not None
        if inode.attached():
            _detach(inode)
        inode.parent, inode.name = parent, name
        _attach(inode, parent)
        _relocate(inode, parent.path.child(name))
        if inode.tags is None:
            inode.doubt_properties()  # a query of the new folder may be on its way
        self._settle(before)

    def remember(self, inode: Inode) -> None:
        """The kernel was given the inode once more."""
        inode.lookup_count += 1

    def forget(self, ino: int, count: int) -> bool:
        """Take *count* lookups of the kernel back; True when it holds none any more.

        Never raises: FUSE cannot hear an answer to FORGET.
        """
        inode = self._inodes.get(ino)
        if inode is None or inode is self.root:
            return False
        inode.lookup_count = max(0, inode.lookup_count - count)
        if inode.lookup_count > 0:
            return False
        self._shed(inode)
        self._settle(inode)
        self.tidy()
        return True

    @property
    def is_untidy(self) -> bool:
        """Whether ``tidy`` has something to do."""
        return bool(self._forgotten)

    def tidy(self) -> bool:
        """Drop some more of what lay below forgotten folders; True: call again.

        A folder of a million entries is dropped in pieces that do not stop the event loop.
        """
        budget = PIECE
        while self._forgotten and budget:
            folder, children = self._forgotten[-1]
            if not children or folder.lookup_count or (folder.below and folder.below.is_listed):
                self._forgotten.pop()  # done, or somebody came back
                self._settle(folder)
                continue
            budget -= 1
            child = children.pop()
            if child.lookup_count or child.parent is not folder or not child.attached():
                continue
            if child.dentries:
                self._shed(child)
            else:
                _detach(child)
                self._drop(child)
        return bool(self._forgotten)

    def _settle(self, inode: Inode) -> None:
        """Drop an inode that nobody needs: not the kernel, no child, and no cached listing.

        A folder may have outlived its own ``forget`` for a child's sake: it goes with the child.
        """
        if inode is self.root or inode.lookup_count or inode.dentries:
            return
        parent = inode.parent
        if parent is None or parent.below is None or not inode.attached():
            self._drop(inode)
        elif not inode.listed:
            _detach(inode)
            self._drop(inode)
            self._settle(parent)
        elif not parent.below.is_listed or parent.lookup_count == 0:
            _detach(inode)
            parent.below.listing.drop()
            self._drop(inode)
            self._settle(parent)
        # else the dentry stays, a part of a listing: the next `ls` needs no server.

    def _shed(self, folder: Inode) -> None:
        """Let ``tidy`` drop what the kernel does not hold below a folder that it has forgotten."""
        if folder.below is None:
            return
        folder.below.forget()
        if folder.below.children:
            self._forgotten.append((folder, list(folder.below.children.values())))

    def _drop(self, inode: Inode) -> None:
        if self._inodes.get(inode.ino) is inode:
            self._most = max(self._most, len(self._inodes))
            del self._inodes[inode.ino]
            if len(self._inodes) < self._most // 8 and self._most > _WORTH_SHRINKING:
                # A dict keeps the memory of its largest size; a copy has that of its own.
                self._inodes = dict(self._inodes)
                self._most = len(self._inodes)
        if inode.computed is not None and self._computed.get(inode.name) is inode:
            del self._computed[inode.name]

    def _number(self, key: str) -> int:
        digest = blake2b(key.encode("utf-8", "surrogateescape"), digest_size=8).digest()
        ino = int.from_bytes(digest) & _MASK
        # Two living inodes may want one number: an unlinked one that is still open and its
        # successor, or (once in 2**63) two paths of one hash.
        while ino <= ROOT or ino in self._inodes:
            ino = (ino + 1) & _MASK
        return ino


def _fits(inode: Inode, info: EntryInfo) -> bool:
    """Whether an inode can show an answer, or must be another inode's."""
    known = inode.info
    if kind_of(info) != kind_of(known) or not isinstance(info, FileInfo) or info.link_target:
        return kind_of(info) == kind_of(known)
    return not inode.lookup_count or same_content(info, known)


def _attach(inode: Inode, parent: Inode) -> None:
    assert parent.below is not None
    parent.below.children[inode.name] = inode
    parent.below.folders += inode.is_folder


def _detach(inode: Inode) -> None:
    assert inode.parent is not None
    assert inode.parent.below is not None
    del inode.parent.below.children[inode.name]
    inode.parent.below.folders -= inode.is_folder


def _relocate(top: Inode, path: RepoPath) -> None:
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
            for cell in inode.below.names.values():
                cell.confirm()
            waiting += [(child, path.child(name)) for name, child in inode.dentries.items()]
