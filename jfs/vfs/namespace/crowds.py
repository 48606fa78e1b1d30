"""Entries of a folder that have no inode object: those of very many, and those nobody looks at.

The kernel may hold every one of them: `ls -l` of a million files makes it look up a million. As
objects they would take a gibibyte. A row of ``jfs.packed`` has what is known of an entry and how
often the kernel was given it; the object is made when somebody looks, and folded back into its row
when nobody does. Trio thread only.
"""

import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple, Protocol

from jfs.model import EntryInfo, Properties
from jfs.packed import DEAD, FOLDER, HOLDS_MOST, TAKEN, Packed, prefix_of
from jfs.vfs.freshness import Asked, Cell
from jfs.vfs.namespace.inodes import Below, Inode, shows


def _references(thing: object) -> int:
    return sys.getrefcount(thing)


def _references_of_ours() -> int:
    """Count the references to an object that nobody has, as ``_fold`` does.

    Those of its folder, of the table, of the function that counts them and of its call. The last
    two are not references in every version of Python: one that somebody has must not pass for them.
    """
    folder = {"": object()}
    table = dict(folder)
    return _references(table[""])


_OURS = _references_of_ours()


class Table(Protocol):
    """What a crowd needs of the table of inodes."""

    living: dict[int, Inode]

    def free_number(self, number: int) -> int:
        """Return the next number that nothing has."""

    def unused_number(self, number: int) -> int:
        """Return the next number for a row: no other row may have it."""

    def has_row(self, number: int) -> bool:
        """Whether a number is that of a row: by it alone the kernel asks for one."""

    def is_held(self, inode: Inode) -> bool:
        """Whether somebody needs the object as it is."""

    def make_room(self, crowd: "Crowd") -> None:
        """Fold what nobody has, if crowds have made many objects; this one makes the next."""


class Row(NamedTuple):
    """An entry that has no object, as a reader of its folder sees it.

    Attributes:
        number: of the inode.
        modified_ns: ns since the epoch.
    """

    crowd: "Crowd"
    row: int
    name: str
    is_folder: bool
    number: int
    size: int
    modified_ns: int

    @property
    def info(self) -> EntryInfo:
        return self.crowd.packed[self.row]


class Crowd:
    """The entries of one folder that have no object.

    Attributes:
        packed: their rows. Those of entries that have an object are ``TAKEN``, and may be older.
        stat: when they were asked for, all together.
        prefix: of the numbers of all that are rows.
        held: how many the kernel was given and has not forgotten, ``DEAD`` ones too.
        tagged: the properties of those that have any, and when that was asked.
    """

    __slots__ = (
        "_many",
        "_table",
        "folder",
        "held",
        "packed",
        "prefix",
        "stat",
        "tagged",
    )

    def __init__(self, table: Table, folder: Inode, packed: Packed, asked: Asked) -> None:
        self._table = table
        self.folder = folder
        self.packed = packed
        self.stat: Cell[bool] = Cell()
        self.stat.put(True, asked)
        self.prefix = prefix_of(packed.usual_number(""))
        self.held = 0
        self.tagged: tuple[dict[str, Properties], Asked] | None = None
        self._many: dict[int, int] = {}  # lookups of rows that have more than fit

    @property
    def folders(self) -> int:
        """How many of the rows are folders."""
        return self.packed.folders

    @property
    def is_used_up(self) -> bool:
        """Whether all that the folder has are objects by now."""
        return all(kind & (DEAD | TAKEN) for kind in self.packed.kinds())

    # what the kernel holds

    def lookups(self, row: int) -> int:
        """Return how often the kernel was given a row and has not forgotten it."""
        count = self.packed.holds(row)
        return self._many[row] if count == HOLDS_MOST else count

    def set_lookups(self, row: int, count: int) -> None:
        before = self.packed.holds(row)
        self.held += bool(count) - bool(before)
        if count >= HOLDS_MOST:
            self._many[row] = count
        elif before == HOLDS_MOST:
            del self._many[row]
        if before or count:
            self.packed.hold(row, min(count, HOLDS_MOST))

    def at(self, number: int) -> int:
        """Return the row that an inode number means; -1: none."""
        for row in self.packed.numbered(number):
            kind = self.packed.kind(row)
            if not kind & (DEAD | TAKEN) or (kind & DEAD and self.packed.holds(row)):
                return row
        return -1

    # objects

    def take_out(self, name: str) -> Inode | None:
        """Return the object of an entry that has none so far; None: there is no such entry."""
        row = self.packed.find(name)
        return self.make(row) if row >= 0 else None

    def make(self, row: int) -> Inode:
        """Make the object of a row; one that is dead gets no dentry."""
        packed, table = self.packed, self._table
        below = self.folder.below
        assert below is not None
        table.make_room(self)
        kind, number = packed.kind(row), packed.number(row)
        if number in table.living:  # a file that has lost this path, and is open still
            number = table.free_number(number)
        name = packed.name(row)
        inode = Inode(number, self.folder, name, packed[row], self.stat.asked)
        inode.lookup_count = self.lookups(row)
        self.set_lookups(row, 0)
        table.living[number] = inode
        if kind & DEAD:
            return inode
        if self.tagged is not None and self.stat.asked.serial < self.tagged[1].serial:
            found, asked = self.tagged
            inode.tags = Cell()
            inode.tags.put(found.get(name, {}), asked)
        packed.mark(row, TAKEN)
        below.children[name] = inode
        below.folders += inode.is_folder
        return inode

    def vacated(self, name: str) -> None:
        """Note that the object of an entry has lost its name, or has gone."""
        row = self.packed.find(name, TAKEN)
        if row >= 0:
            self.packed.mark(row, DEAD)

    def fold(self, names: Iterable[str]) -> None:
        """Fold those objects that nobody has, and that know no more than a row can say."""
        below = self.folder.below
        assert below is not None
        # An answer that was asked for before another must not replace it.
        settled = below.listing.is_idle and below.tags.is_idle and not below.being_taken
        for name in names:
            if name in below.children and name not in below.names:
                self._fold(below.children[name], settled=settled)

    def _fold(self, inode: Inode, *, settled: bool) -> None:
        packed, table, below = self.packed, self._table, self.folder.below
        assert below is not None
        if sys.getrefcount(inode) > _OURS or table.is_held(inode):
            return
        if inode.is_ours or inode.computed is not None or not inode.stat.is_idle:
            return
        if inode.below is not None and not inode.below.is_blank:
            return
        ours, asked = self.stat.asked, inode.stat.asked
        if asked != ours and not (settled and asked.serial > ours.serial and asked.at >= ours.at):
            return
        if inode.tags is not None and not self._keeps(inode.name, inode.tags, settled=settled):
            return
        row = packed.find(inode.name, TAKEN)
        if row >= 0 and packed.number(row) == inode.ino:
            if not packed.is_like(row, inode.info):
                packed.put(row, inode.info)
            packed.mark(row, 0)
        elif row < 0 and not table.has_row(inode.ino) and prefix_of(inode.ino) == self.prefix:
            row = packed.add(inode.name, inode.info, inode.ino)
        else:
            return
        self.set_lookups(row, inode.lookup_count)
        del below.children[inode.name]
        del table.living[inode.ino]
        below.folders -= inode.is_folder

    def _keeps(self, name: str, tags: Cell[Properties], *, settled: bool) -> bool:
        """Whether an object may go though its properties are known; they are kept if all are."""
        if not (settled and tags.is_idle and tags.is_known):
            return False
        if self.tagged is not None:
            found, asked = self.tagged
            if tags.asked.serial < asked.serial:
                return False
            if tags.asked != asked:
                found[name] = tags.value
        return True

    # what the server says

    def put(self, name: str, info: EntryInfo) -> None:
        """Bring an entry that has no object up to date with a listing; made if there is none."""
        packed = self.packed
        row = packed.find(name)
        if row >= 0 and packed.is_like(row, info):
            return
        if row >= 0 and self.lookups(row) and not shows(packed[row], info):
            packed.mark(row, DEAD)  # the kernel has this number for other content
            row = -1
        if row >= 0:
            packed.put(row, info)
        else:
            packed.add(name, info, self._table.unused_number(packed.usual_number(name)))

    def gone(self, row: int) -> None:
        """Note that the server does not list an entry any more. The kernel may have it still."""
        self.packed.mark(row, DEAD)

    def noted(self, name: str, info: EntryInfo) -> None:
        """Let the row of an entry that has an object say what a listing says."""
        row = self.packed.find(name, TAKEN)
        if row >= 0 and not self.packed.is_like(row, info):
            self.packed.put(row, info)

    def tag(self, found: Mapping[str, Properties], asked: Asked) -> None:
        """Note the properties of all entries; those that are not in *found* have none."""
        self.tagged = dict(found), asked

    def expire(self, refreshed: Asked) -> None:
        """Believe nothing that was asked for until then."""
        self.stat.expire(refreshed)
        self.tagged = None

    def entry(self, row: int) -> Row:
        name, kind, number, size, modified = self.packed.facts(row)
        return Row(self, row, name, bool(kind & FOLDER), number, size, modified)

    def held_among(
        self, start: int, stop: int, *, files: bool = False
    ) -> tuple[list[tuple[int, str]], list[int]]:
        """Return what the kernel holds of some rows: names in the folder, and inode numbers.

        Args:
            files: only of files.
        """
        packed, ino = self.packed, self.folder.ino
        rows = [row for row in range(start, min(stop, len(packed))) if packed.holds(row)]
        if files:
            rows = [row for row in rows if not packed.kind(row) & FOLDER]
        return [(ino, packed.name(row)) for row in rows], [packed.number(row) for row in rows]


class Whole:
    """All that is listed in a folder as of now, for who reads it later, in any thread.

    What has become of a row since is told by somebody else.
    """

    def __init__(self, folder: Inode) -> None:
        below = folder.below
        assert below is not None
        assert below.crowd is not None
        self._packed = packed = below.crowd.packed
        self._kinds = packed.kinds()
        self._others = [
            inode.info
            for inode in below.children.values()
            if inode.listed and not inode.is_ours and packed.find(inode.name, TAKEN) < 0
        ]

    def __len__(self) -> int:
        return len(self._kinds) + len(self._others)

    def __iter__(self) -> Iterator[EntryInfo]:
        for row, kind in enumerate(self._kinds):
            if not kind & DEAD:
                yield self._packed[row]
        yield from self._others


def packed_of(below: Below) -> Packed | None:
    """Return the rows of a folder; None: all its entries are objects."""
    return None if below.crowd is None else below.crowd.packed
