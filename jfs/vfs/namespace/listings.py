"""Snapshots of folders, for who reads a directory. Trio thread only."""

from collections.abc import AsyncIterator
from typing import Protocol

import trio

from jfs.model import EntryInfo
from jfs.packed import DEAD, TAKEN
from jfs.vfs.freshness import PIECE
from jfs.vfs.namespace.crowds import Row
from jfs.vfs.namespace.inodes import Inode
from jfs.vfs.namespace.inodetable import InodeTable


class Listing:
    """The entries of a folder at one moment.

    A reader sees every entry once that was there at that moment and still is, whatever is listed
    anew, replaced, or forgotten meanwhile.
    """

    def __init__(self, inodes: InodeTable, folder: Inode) -> None:
        self._inodes = inodes
        self._folder = folder
        below = folder.below
        assert below is not None
        self._crowd = crowd = below.crowd
        self._entries = list(below.children.values())
        self._rows = 0
        if crowd is not None:
            self._rows = len(crowd.packed)
            self._entries = [
                inode for inode in self._entries if crowd.packed.find(inode.name, TAKEN) < 0
            ]
        self._names = {inode.name for inode in self._entries} if crowd is not None else set()
        self._again: dict[str, int] = {}  # names that were replaced meanwhile, by their old rows

    def read(self, start: int, count: int) -> list[tuple[str, Inode | Row, int]]:
        """Return up to *count* entries from a position on: name, entry, the next position."""
        found: list[tuple[str, Inode | Row, int]] = []
        for position in range(start, self._rows + len(self._entries)):
            entry = self._at(position)
            if isinstance(entry, Row) or (
                entry is not None and entry.listed and self._inodes.lives(entry)
            ):
                found.append((entry.name, entry, position + 1))
            if len(found) == count:
                break
        return found

    async def infos(self) -> AsyncIterator[list[EntryInfo]]:
        """Yield what is known of all entries, in pieces that do not stop the event loop."""
        position = 0
        while piece := self.read(position, PIECE):
            position = piece[-1][2]
            yield [entry.info for _, entry, _ in piece]
            await trio.lowlevel.checkpoint()

    def release(self) -> bool:
        """Drop some of what was made for this reader and nobody took; True: call again."""
        if self._folder.below is not None and self._folder.below.is_listed:
            return False  # they belong to the listing that is kept
        for _ in range(min(PIECE, len(self._entries))):
            self._inodes.settle(self._entries.pop())
        return bool(self._entries)

    def _at(self, position: int) -> Inode | Row | None:
        """Return what is at a position by now; None: nothing."""
        if position < self._rows:
            return self._row(position)
        taken = self._entries[position - self._rows]
        if taken.attached():
            return taken
        # It was replaced by an inode of its own, or is gone.
        return self._folder.child(taken.name) if taken.parent is self._folder else None

    def _row(self, row: int) -> Inode | Row | None:
        crowd, folder = self._crowd, self._folder
        assert crowd is not None
        kind = crowd.packed.kind(row)
        if folder.below is None or folder.below.crowd is not crowd:  # forgotten meanwhile
            return None if kind & DEAD else folder.child(crowd.packed.name(row))
        if kind & DEAD:
            return self._successor(row)
        if kind & TAKEN:
            return folder.dentries.get(crowd.packed.name(row))
        if crowd.packed.is_beside(row) or crowd.packed.number(row) in self._inodes.living:
            return crowd.make(row)
        return crowd.entry(row)

    def _successor(self, row: int) -> Inode | None:
        """Return what has the name of a dead row, if no other position has it."""
        crowd = self._crowd
        assert crowd is not None
        name = crowd.packed.name(row)
        if name in self._names or any(
            each < self._rows and not crowd.packed.kind(each) & DEAD
            for each in crowd.packed.named(name)
        ):
            return None
        found = self._folder.child(name)
        if found is None or self._again.setdefault(name, row) != row:
            return None
        return found


class _Released(Protocol):
    def release(self) -> bool: ...


async def released(listing: _Released) -> None:
    """Let go of a snapshot in pieces that do not stop the event loop."""
    while listing.release():
        await trio.lowlevel.checkpoint()
