"""Snapshots of folders, for who reads a directory. Trio thread only."""

from typing import Protocol

import trio

from jfs.vfs.freshness import PIECE
from jfs.vfs.namespace.inodes import Inode
from jfs.vfs.namespace.inodetable import InodeTable


class Listing:
    """The entries of a folder at one moment.

    A reader sees every entry once that was there at that moment and still is, whatever is listed
    anew, replaced, or forgotten meanwhile.
    """

    def __init__(self, inodes: InodeTable, folder: Inode, entries: list[Inode]) -> None:
        self._inodes = inodes
        self._folder = folder
        self._entries = entries

    def read(self, start: int, count: int) -> list[tuple[str, Inode, int]]:
        """Return up to *count* entries from a position on: name, inode, the next position."""
        found = []
        for position in range(start, len(self._entries)):
            inode = self._now(self._entries[position])
            if inode is not None and inode.listed and self._inodes.lives(inode):
                found.append((inode.name, inode, position + 1))
            if len(found) == count:
                break
        return found

    def release(self) -> bool:
        """Drop some of what was made for this reader and nobody took; True: call again."""
        if self._folder.below is not None and self._folder.below.is_listed:
            return False  # they belong to the listing that is kept
        for _ in range(min(PIECE, len(self._entries))):
            self._inodes.settle(self._entries.pop())
        return bool(self._entries)

    def _now(self, taken: Inode) -> Inode | None:
        """Return what has the name of an entry by now; None: nothing."""
        if taken.attached():
            return taken
        # It was replaced by an inode of its own, or is gone.
        return self._folder.dentries.get(taken.name) if taken.parent is self._folder else None


class _Released(Protocol):
    def release(self) -> bool: ...


async def released(listing: _Released) -> None:
    """Let go of a snapshot in pieces that do not stop the event loop."""
    while listing.release():
        await trio.lowlevel.checkpoint()
