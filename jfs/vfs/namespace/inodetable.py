"""Every living inode by number, with exact lookup counts. No I/O. Trio thread only.

An inode lives in the table while its lookup count is above zero, or while the folder that holds
its dentry keeps it as a part of a cached listing.

Inode numbers are a hash of the path, so that they are the same after ``forget``, after a remount
and in another mount: tools that remember them (``rsync``, ``tar``, ``find``) stay right.

What lives need not be an object: see ``crowds``. Whoever asks for it gets one.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from jfs.errors import NoEntry
from jfs.model import EntryInfo, FolderInfo
from jfs.packed import Packed, number_of, prefix_of
from jfs.vfs.freshness import NEVER, PIECE, Asked
from jfs.vfs.namespace.crowds import Crowd
from jfs.vfs.namespace.inodes import ROOT, Below, Inode, attach, detach, fits, relocate

_WORTH_SHRINKING = 4096
# Objects that are made of rows before those are folded that nobody has.
_ROOM = 2000
_MASK = (1 << 63) - 1


class InodeTable:
    """Every living inode by number.

    Attributes:
        living: those that are objects.
    """

    def __init__(self, root: EntryInfo) -> None:
        self.root = Inode(ROOT, None, "", root, NEVER)
        self.root.lookup_count = 1  # the kernel never looks the root up, nor forgets it
        self.living = {ROOT: self.root}
        self._crowds: dict[int, list[Crowd]] = {}  # by what the numbers of their entries begin with
        self._computed: dict[str, Inode] = {}
        # Folders that were forgotten, each with those of its children that are still to be dropped.
        self._forgotten: list[tuple[Inode, list[Inode]]] = []
        self._held: Counter[Inode] = Counter()
        self._most = 1  # inodes at a time since the table was last shrunk
        # Crowds that have made objects since these were last folded, and how many they may make.
        self._loose: dict[Crowd, None] = {}
        self._room = _ROOM

    def __len__(self) -> int:
        """Return how many objects there are."""
        return len(self.living)

    @property
    def known(self) -> int:
        """How many the kernel holds, or we as objects."""
        return len(self.living) + sum(
            crowd.held for alike in self._crowds.values() for crowd in alike
        )

    def __iter__(self) -> Iterator[Inode]:
        return iter(self.living.values())

    def get(self, ino: int) -> Inode:
        """Raises NoEntry for a number that was never given out or is forgotten."""
        inode = self.living.get(ino)
        if inode is None:
            crowd, row = self._row(ino)
            if crowd is None:
                raise NoEntry(f"inode {ino} is not known")
            inode = crowd.make(row)
        return inode

    def link(self, parent: Inode, name: str, info: EntryInfo, asked: Asked) -> Inode:
        """Return the inode of a dentry, made or brought up to date with *info*.

        A name that changed between file, link and folder gets a new inode: the kernel treats a
        changed type under one number as corruption. So does a file with other content that the
        kernel knows: who has the old one open goes on with its bytes, its size and its pages, and
        the kernel never takes the size of one for that of the other.

        Args:
            asked: when *info* was true. What is newer must not be replaced: the caller looks.
        """
        below = parent.below
        assert below is not None
        inode = below.children.get(name)
        if inode is None and below.crowd is not None:
            inode = below.crowd.take_out(name)
        if inode is not None:
            if inode.is_ours:
                return inode
            if fits(inode, info):
                inode.stat.put(info, asked)
                return inode
            detach(inode)
            self._shed(inode)
            self._settle(inode)
        inode = Inode(self._number(str(info.path)), parent, name, info, asked)
        self.living[inode.ino] = inode
        attach(inode, parent)
        return inode

    def separate(self, inode: Inode) -> None:
        """Give the name of an inode to a new one that is the same; the old one has none then."""
        parent = inode.parent
        assert parent is not None
        number = self._number(str(inode.path))
        other = Inode(number, parent, inode.name, inode.info, inode.stat.asked)
        other.tags = inode.tags  # one cell: they are those of the path
        detach(inode)
        self.living[number] = other
        attach(other, parent)
        self._settle(inode)

    def attach_again(self, inode: Inode) -> None:
        """Return the dentry to an inode that another one took it from."""
        parent = inode.parent
        if parent is None or inode.attached() or inode.path != parent.path.child(inode.name):
            return
        if not self.lives(parent):
            return
        if (other := parent.child(inode.name)) is not None:
            detach(other)
            self._shed(other)
            self._settle(other)
        self._attach(inode, parent)

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
            self.living[inode.ino] = inode
            self._computed[key] = inode
        inode.stat.put(info, asked)
        inode.computed = computed
        return inode

    def computed(self, key: str) -> Inode | None:
        """Return the living inode of an entry that is computed, if there is one."""
        return self._computed.get(key)

    def lives(self, inode: Inode) -> bool:
        """Whether the inode can still be found by its number."""
        return self.living.get(inode.ino) is inode

    def settle(self, inode: Inode) -> None:
        """Drop an inode that was made for somebody who in the end did not take it."""
        self._settle(inode)

    def unlink(self, inode: Inode) -> None:
        """Take the dentry away; the inode itself lives on while the kernel holds it."""
        parent = inode.parent
        if parent is not None and inode.attached():
            detach(inode)
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
            detach(inode)
        inode.parent, inode.name = parent, name
        self._attach(inode, parent)
        relocate(inode, parent.path.child(name))
        if inode.tags is None:
            inode.doubt_properties()  # a query of the new folder may be on its way
        self._settle(before)

    def _attach(self, inode: Inode, parent: Inode) -> None:
        """Give an inode a dentry, which the kernel may have forgotten while the server was asked.

        A dentry whose inode cannot be found by its number would be ENOENT to whoever opens it.
        """
        attach(inode, parent)
        if not self.lives(inode):
            inode.ino = self._number(str(parent.path.child(inode.name)))
            self.living[inode.ino] = inode

    def remember(self, inode: Inode) -> None:
        """The kernel was given the inode once more."""
        inode.lookup_count += 1

    def remember_number(self, ino: int) -> None:
        """As ``remember``; no object is made. Raises NoEntry."""
        inode = self.living.get(ino)
        if inode is not None:
            inode.lookup_count += 1
            return
        crowd, row = self._row(ino)
        if crowd is None:
            raise NoEntry(f"inode {ino} is not known")
        crowd.set_lookups(row, crowd.lookups(row) + 1)

    @contextmanager
    def held(self, inode: Inode) -> Iterator[None]:
        """Keep an inode for the time of the block, whatever the kernel forgets meanwhile."""
        self._held[inode] += 1
        try:
            yield
        finally:
            self._held[inode] -= 1
            if not self._held[inode]:
                del self._held[inode]
                self._settle(inode)

    def forget(self, ino: int, count: int) -> bool:
        """Take *count* lookups of the kernel back; True when it holds none any more.

        Never raises: FUSE cannot hear an answer to FORGET.
        """
        inode = self.living.get(ino)
        if inode is None:
            return self._forget_row(ino, count)
        if inode is self.root:
            return False
        inode.lookup_count = max(0, inode.lookup_count - count)
        if inode.lookup_count > 0:
            return False
        self._shed(inode)
        self._settle(inode)
        self.tidy()
        return True

    def _forget_row(self, ino: int, count: int) -> bool:
        crowd, row = self._row(ino)
        if crowd is None or not (known := crowd.lookups(row)):
            return False
        crowd.set_lookups(row, max(0, known - count))
        if known > count:
            return False
        if not crowd.held and not crowd.folder.lookup_count:
            self._shed(crowd.folder)
            self._settle(crowd.folder)
            self.tidy()
        return True

    # entries that are no objects

    def gather(self, folder: Inode, packed: Packed, asked: Asked) -> Crowd:
        """Let rows be the entries of a folder that have no object. It must have none so far."""
        below = folder.below
        assert below is not None
        assert below.crowd is None
        crowd = below.crowd = Crowd(self, folder, packed, asked)
        self._crowds.setdefault(crowd.prefix, []).append(crowd)
        return crowd

    def pack(self, folder: Inode, names: Sequence[str]) -> None:
        """Fold entries of a folder that are objects, and that nobody has: memory is short."""
        below = folder.below
        assert below is not None
        if below.being_taken:
            return
        if below.crowd is None:
            asked = [below.children[name].stat.asked for name in names if name in below.children]
            if below.listing.is_known:
                asked.append(below.listing.asked)
            if not asked:  # the kernel has forgotten the folder meanwhile, and all went with it
                return
            self.gather(folder, Packed(folder.path), min(asked))
        assert below.crowd is not None
        below.crowd.fold(names)

    def make_room(self, crowd: Crowd) -> None:
        """See ``crowds.Table``."""
        self._loose[crowd] = None
        self._room -= 1
        if self._room > 0:
            return
        loose, self._loose, left = self._loose, {}, 0
        for each in loose:
            below = each.folder.below
            assert below is not None
            each.fold(list(below.children))
            left += len(below.children)
        self._room = max(_ROOM, left)

    def is_based(self, base: str) -> bool:
        """Whether there are rows whose numbers are made of this path: its folder has moved."""
        crowds = self._crowds.get(prefix_of(number_of(f"{base}/")), ())
        return any(crowd.packed.base == base for crowd in crowds)

    def is_held(self, inode: Inode) -> bool:
        """Whether somebody holds it; see ``held``."""
        return inode in self._held

    def _scatter(self, folder: Inode) -> None:
        """Forget the entries of a folder that are no objects; the kernel holds none of them."""
        below = folder.below
        if below is None or (crowd := below.crowd) is None:
            return
        below.crowd = None
        self._loose.pop(crowd, None)
        alike = self._crowds[crowd.prefix]
        alike.remove(crowd)
        if not alike:
            del self._crowds[crowd.prefix]

    def _row(self, ino: int) -> tuple[Crowd, int] | tuple[None, int]:
        for crowd in self._crowds.get(prefix_of(ino), ()):
            if (row := crowd.at(ino)) >= 0:
                return crowd, row
        return None, -1

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
            if child.parent is not folder or not child.attached():
                continue
            if child.lookup_count or child in self._held:
                continue
            if child.holds_others:
                self._shed(child)
            else:
                detach(child)
                self._drop(child)
        return bool(self._forgotten)

    def give_back(self, folder: Inode, listed: int) -> None:
        """Drop what is known of a folder but nobody holds, its listing with it: memory is short.

        Nobody may be reading a snapshot of it.

        Args:
            listed: serial of its listing when it was chosen. One that has come since is not given
                back: who asked for it may not have had his turn yet, and would find nothing.
        """
        below = folder.below
        if below is None or below.being_taken or below.listing.asked.serial != listed:
            return
        below.forget()
        if below.crowd is not None and not below.crowd.held:
            self._scatter(folder)
        for child in list(below.children.values()):
            held = child.lookup_count or child.holds_others or child in self._held
            if not (held or child.is_ours):
                detach(child)
                self._drop(child)

    def _settle(self, inode: Inode) -> None:
        """Drop an inode that nobody needs: not the kernel, no child, and no cached listing.

        A folder may have outlived its own ``forget`` for a child's sake: it goes with the child.
        """
        if inode is self.root or inode.lookup_count or inode.holds_others or inode in self._held:
            return
        parent = inode.parent
        if parent is None or parent.below is None or not inode.attached():
            self._drop(inode)
        elif not inode.listed:
            detach(inode)
            self._drop(inode)
            self._settle(parent)
        elif not parent.below.is_listed or parent.lookup_count == 0:
            detach(inode)
            parent.below.listing.drop()
            self._drop(inode)
            self._settle(parent)
        # else the dentry stays, a part of a listing: the next `ls` needs no server.

    def _shed(self, folder: Inode) -> None:
        """Let ``tidy`` drop what the kernel does not hold below a folder that it has forgotten."""
        if folder.below is None:
            return
        folder.below.forget()
        if folder.below.crowd is not None and not folder.below.crowd.held:
            self._scatter(folder)
        if folder.below.children:
            self._forgotten.append((folder, list(folder.below.children.values())))

    def _drop(self, inode: Inode) -> None:
        self._scatter(inode)
        if self.living.get(inode.ino) is inode:
            self._most = max(self._most, len(self.living))
            del self.living[inode.ino]
            if len(self.living) < self._most // 8 and self._most > _WORTH_SHRINKING:
                # A dict keeps the memory of its largest size; a copy has that of its own.
                self.living = dict(self.living)
                self._most = len(self.living)
        if inode.computed is not None and self._computed.get(inode.name) is inode:
            del self._computed[inode.name]

    def _number(self, key: str) -> int:
        number = number_of(key)
        if number > ROOT and number not in self.living and not self._crowds:
            return number
        return self.free_number(number)

    def free_number(self, number: int) -> int:
        """Return the next number that nothing has.

        Two living inodes may want one: an unlinked one that is still open and its successor, or
        (once in 2**43 within a folder) two paths of one hash.
        """
        while not self._is_free(number):
            number = (number + 1) & _MASK
        return number

    def unused_number(self, number: int) -> int:
        """Return the next number that is free, and no row's: also of one that nobody holds.

        The folder that a number is made of may have moved, and another may be there now.
        """
        while not self._is_free(number) or self.has_row(number):
            number = (number + 1) & _MASK
        return number

    def has_row(self, number: int) -> bool:
        """Whether a row has this number."""
        return self._row(number)[0] is not None

    def _is_free(self, number: int) -> bool:
        if number <= ROOT or number in self.living:
            return False
        crowd, row = self._row(number) if self._crowds else (None, -1)
        return crowd is None or not crowd.lookups(row)
