"""What becomes of answers about names: of one name, or the listing of a whole folder.

Every answer goes through ``Taking``, which brings a name up to date unless something newer is known
of it: the answer to a later question, a change made here, a refresh. Trio thread only.
"""

import gc
import itertools
import math
from collections.abc import Sequence

import trio

from jfs import threads
from jfs.errors import JfsError, NoEntry
from jfs.model import EntryInfo, RepoPath
from jfs.packed import DEAD, TAKEN, Changes, Packed
from jfs.vfs.freshness import PIECE, Asked, pieces
from jfs.vfs.namespace.crowds import Crowd, packed_of
from jfs.vfs.namespace.inodes import Inode, below_of
from jfs.vfs.namespace.inodetable import InodeTable

# What a large listing leaves lives for long. The collector of cycles would look at it again and
# again, a second at a time for a million entries; frozen, it is not looked at, and is given back
# by its reference counts all the same.
_PIECES_BEFORE_FREEZING = 10
# With so many objects in all, at a kilobyte each, further entries do not become any: not those of
# so large a folder that its rows take less.
_OBJECTS, _WORTH_PACKING = 16_384, 8


class Moved(JfsError):
    """What was asked about has another path by now: ask again."""


class Taking:
    """See the module."""

    def __init__(self, inodes: InodeTable) -> None:
        self._inodes = inodes

    async def packed(
        self, folder: Inode, path: RepoPath, entries: Sequence[EntryInfo]
    ) -> Sequence[EntryInfo]:
        """Return the entries of a listing packed, where objects of them would be too many.

        A tree of a million would need a gibibyte. They are packed before there are objects, and
        not after: among those that stay, the ones that go leave holes which malloc keeps.
        """
        below, count = below_of(folder), len(entries)
        if below.crowd is not None or isinstance(entries, Packed) or count < _WORTH_PACKING:
            return entries
        if len(self._inodes) + count < _OBJECTS or 2 * len(below.children) > count:
            return entries
        packed = Packed(path, count=count)
        for piece in pieces(entries):
            for info in piece:
                packed.add(info.path.name, info)
            await trio.lowlevel.checkpoint()
        packed.trim()
        return packed

    async def listing(
        self, folder: Inode, path: RepoPath, entries: Sequence[EntryInfo], asked: Asked
    ) -> None:
        """Bring the names of a folder up to date, in pieces that do not stop the event loop."""
        below = below_of(folder)
        is_based = below.crowd is not None and packed_of(below) is getattr(entries, "known", None)
        if isinstance(entries, Changes) and not is_based:
            raise Moved(f"{path}: what had changed was forgotten meanwhile")
        if isinstance(entries, Packed) and below.crowd is None:
            await self._gather(folder, path, entries, asked)
        else:
            for count, piece in enumerate(pieces(entries), 1):
                believed = self._still(folder, path, asked)
                if below.crowd is None:
                    for info in piece:
                        self.take(folder, info.path.name, info, believed)
                else:
                    for info in piece:
                        self._take_listed(folder, below.crowd, info, believed)
                if not count % _PIECES_BEFORE_FREEZING:
                    gc.freeze()
                await trio.lowlevel.checkpoint()
            if below.crowd is not None:
                await self._take_rows(folder, path, below.crowd, entries, asked)
        for known in pieces(list(below.children.values())):
            for inode in known:
                # Every entry of the listing is as new as the listing by now.
                gone = inode.stat.asked.serial < asked.serial and not inode.is_ours
                # An unlisted folder may be where somebody is: without a dentry he has no path.
                if gone and inode.listed and inode.parent is folder and inode.attached():
                    if inode.lookup_count:  # a refresh must find what the kernel believes in
                        below.name(inode.name).put(None, asked)
                    self._inodes.unlink(inode)
            await trio.lowlevel.checkpoint()
        if below.crowd is not None:
            below.crowd.stat.put(True, self._still(folder, path, asked))

    def _still(self, folder: Inode, path: RepoPath, asked: Asked) -> Asked:
        """Return when a listing was asked, as a hint if it is not believed any more."""
        if folder.path != path:
            raise Moved(f"{path}: has moved")
        if not self._inodes.lives(folder):
            raise NoEntry(f"{path}: is gone")
        return asked if below_of(folder).listing.accepts(asked) else asked.as_hint()

    async def _gather(self, folder: Inode, path: RepoPath, packed: Packed, asked: Asked) -> None:
        """Let the rows of a listing be the entries of a folder; they become no objects."""
        below = below_of(folder)
        if self._inodes.is_based(packed.base):  # the numbers of a folder that was here, and moved
            await threads.computing(packed.rebase, f"{packed.base}\0{asked.serial}")
        done: set[str] = set()
        while True:
            believed = self._still(folder, path, asked)
            known = (name for each in (below.children, below.names) for name in each)
            names = list(itertools.islice((name for name in known if name not in done), PIECE))
            for name in names:  # something is known of them: that may be newer
                if (row := packed.find(name)) >= 0:
                    self.take(folder, name, packed[row], believed)
                    packed.mark(row, TAKEN if name in below.children else DEAD)
            done.update(names)
            if not names:
                break
            await trio.lowlevel.checkpoint()
        for name in done - below.children.keys():  # dropped meanwhile
            if (row := packed.find(name, TAKEN)) >= 0:
                packed.mark(row, DEAD)
        self._inodes.gather(folder, packed, believed)

    async def _take_rows(
        self,
        folder: Inode,
        path: RepoPath,
        crowd: Crowd,
        entries: Sequence[EntryInfo],
        asked: Asked,
    ) -> None:
        """Bring entries up to date that are no objects, and objects that a listing confirms."""
        packed, below = crowd.packed, below_of(folder)
        seen = entries.seen if isinstance(entries, Changes) else bytearray(len(packed))
        count = len(seen)
        for piece in pieces(entries):
            for info in piece:
                for row in packed.named(info.path.name):
                    if row < count:
                        seen[row] = 1
            await trio.lowlevel.checkpoint()
        for names in pieces(list(below.children)):
            believed = self._still(folder, path, asked)
            for name in names:
                row = packed.find(name, TAKEN)
                if 0 <= row < count and seen[row]:
                    self.take(folder, name, packed[row], believed)
            await trio.lowlevel.checkpoint()
        for start in range(0, count, PIECE):
            self._still(folder, path, asked)
            for row in range(start, min(start + PIECE, count)):
                if not seen[row] and not packed.kind(row) & (DEAD | TAKEN):
                    crowd.gone(row)
            await trio.lowlevel.checkpoint()

    def _take_listed(self, folder: Inode, crowd: Crowd, info: EntryInfo, asked: Asked) -> None:
        """Take one entry of a listing into a folder that has entries that are no objects."""
        below, name = below_of(folder), info.path.name
        if name in below.children or name in below.names:
            self.take(folder, name, info, asked)
            crowd.noted(name, info)
        else:
            crowd.put(name, info)

    def take(self, parent: Inode, name: str, info: EntryInfo | None, asked: Asked) -> Inode | None:
        """Bring a name up to date with an answer, unless something newer is known. No checkpoint.

        Args:
            info: None: the server has no such name.
        Returns:
            What it is now; None: it is not there.
        """
        below = below_of(parent)
        inode = below.children.get(name)
        if inode is None and below.crowd is not None:
            inode = below.crowd.take_out(name)
        if inode is not None and (inode.is_ours or not inode.stat.accepts(asked)):
            return inode
        cell = below.names.get(name)
        if inode is None and cell is not None and not cell.accepts(asked):
            is_refreshed = cell.asked.at == -math.inf
            is_missing = cell.is_known and cell.value is None
            if is_missing and (asked.serial < cell.as_of or not is_refreshed):
                return None  # it has gone since, whatever was refreshed after that
            if is_refreshed or not cell.is_known:
                asked = asked.as_hint()  # not believed
            elif cell.value is not None:
                info, asked = cell.value, cell.asked
        if info is not None:
            return self._inodes.link(parent, name, info, asked)
        if inode is not None:
            self._inodes.unlink(inode)
        below.name(name).put(None, asked)
        return None
