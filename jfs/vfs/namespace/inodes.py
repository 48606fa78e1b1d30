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
from jfs.model import EntryInfo, FileInfo, FolderInfo, Properties, RepoPath, kind_of

ROOT = 1  # FUSE_ROOT_ID
_WORTH_SHRINKING = 4096
_NEVER = -math.inf  # one float for a million inodes
_MASK = (1 << 63) - 1  # ino_t is unsigned, but plenty of programs print and parse it signed


class Inode:
    """One file or folder that the kernel or a cached listing knows.

    Attributes:
        info: the last answer of the server about it.
        fresh_until: when *info* must be asked for again (``trio.current_time``).
        children: known dentries of a folder by name; None for files.
        complete_until: until when *children* is the whole listing; 0.0 means it is not.
        missing: names that the server said are not there, each with the time it is believed until.
        lookup_count: held by the kernel; changed by ``InodeTable`` only.
        properties: of the artifact, believed until *properties_until*; None: not asked for yet.
        sibling_asked: of a folder: when the properties of one of its children were asked for.
        changes: how often it was changed through this mount: an answer of the server that was asked
            for before a change says nothing about what is now.
        local: not on the server yet: made here, and not uploaded so far.
        computed: what a folder or link shows that is no entry of the server; None for real ones.
    """

    __slots__ = (
        "changes",
        "children",
        "complete_until",
        "computed",
        "fresh_until",
        "info",
        "ino",
        "local",
        "lookup_count",
        "missing",
        "name",
        "parent",
        "properties",
        "properties_until",
        "sibling_asked",
    )

    def __init__(
        self, ino: int, parent: "Inode | None", name: str, info: EntryInfo, fresh_until: float
    ) -> None:
        self.ino = ino
        self.parent = parent
        self.name = name
        self.info = info
        self.fresh_until = fresh_until
        self.children: dict[str, Inode] | None = None if isinstance(info, FileInfo) else {}
        self.complete_until = 0.0
        self.missing: dict[str, float] | None = None
        self.lookup_count = 0
        self.properties: Properties | None = None
        self.properties_until = 0.0
        self.sibling_asked = _NEVER
        self.computed: object | None = None
        self.changes = 0
        self.local = False

    @property
    def is_folder(self) -> bool:
        return self.children is not None

    @property
    def listed(self) -> bool:
        """Whether it is part of the listing of its folder."""
        return not isinstance(self.info, FolderInfo) or self.info.listed

    @property
    def path(self) -> RepoPath:
        return self.info.path

    @property
    def dentries(self) -> dict[str, "Inode"]:
        """The known children of a folder; a file has none."""
        return self.children if self.children is not None else {}

    def attached(self) -> bool:
        """Whether the inode still has its dentry (or is the root)."""
        return self.parent is None or self.parent.dentries.get(self.name) is self


class InodeTable:
    """Every living inode by number."""

    def __init__(self, root: EntryInfo, fresh_until: float) -> None:
        self.root = Inode(ROOT, None, "", root, fresh_until)
        self.root.lookup_count = 1  # the kernel never looks the root up, nor forgets it
        self._inodes = {ROOT: self.root}
        self._computed: dict[str, Inode] = {}
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

    def link(self, parent: Inode, name: str, info: EntryInfo, fresh_until: float) -> Inode:
        """Give the inode of a dentry, made or brought up to date with *info*.

        A name that changed between file, link and folder gets a new inode: the kernel treats a
        changed type under one number as corruption.
        """
        children = parent.dentries
        inode = children.get(name)
        if inode is not None:
            if kind_of(info) == kind_of(inode.info):
                inode.info = info
                inode.fresh_until = fresh_until
                return inode
            self.unlink(inode)
        inode = Inode(self._number(str(info.path)), parent, name, info, fresh_until)
        self._inodes[inode.ino] = inode
        children[name] = inode
        return inode

    def compute(self, key: str, info: EntryInfo, computed: object) -> Inode:
        """Give the inode of an entry that is computed, made or brought up to date.

        It has no dentry: it is in no listing of the server, and lives while the kernel holds it.

        Args:
            key: what it is known by, and its number made of; no path of the server.
        """
        inode = self._computed.get(key)
        if inode is None:
            inode = Inode(self._number(key), None, key, info, 0.0)
            inode.children = None if not isinstance(info, FolderInfo) else {}
            self._inodes[inode.ino] = inode
            self._computed[key] = inode
        inode.info = info
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
            del parent.dentries[inode.name]
            self._settle(parent)
        if inode.lookup_count == 0:
            self._shed(inode)
            self._settle(inode)

    def move(self, inode: Inode, parent: Inode, name: str) -> None:
        """Give an inode another dentry, which must be free; everything below it goes along."""
        assert inode.parent is not None
        before = inode.parent
        del before.dentries[inode.name]
        inode.parent, inode.name = parent, name
        parent.dentries[name] = inode
        _relocate(inode, parent.path.child(name))
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
        return True

    def _settle(self, inode: Inode) -> None:
        """Drop an inode that nobody needs: not the kernel, no child, and no cached listing.

        A folder may have outlived its own ``forget`` for a child's sake: it goes with the child.
        """
        if inode is self.root or inode.lookup_count or inode.dentries:
            return
        parent = inode.parent
        if parent is None or not inode.attached():
            self._drop(inode)
        elif not inode.listed:
            del parent.dentries[inode.name]
            self._drop(inode)
            self._settle(parent)
        elif parent.complete_until == 0.0 or parent.lookup_count == 0:
            del parent.dentries[inode.name]
            parent.complete_until = 0.0
            self._drop(inode)
            self._settle(parent)
        # else the dentry stays, a part of a complete listing: the next `ls` needs no server.

    def _shed(self, folder: Inode) -> None:
        """Drop what the kernel does not hold below a folder that it has forgotten."""
        folder.complete_until = 0.0
        folder.missing = None
        for child in list(folder.dentries.values()):
            self._shed(child)
            if child.lookup_count == 0 and not child.dentries:
                del folder.dentries[child.name]
                self._drop(child)

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


def _relocate(inode: Inode, path: RepoPath) -> None:
    inode.info = replace(inode.info, path=path)
    for name, child in inode.dentries.items():
        _relocate(child, path.child(name))
