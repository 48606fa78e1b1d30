"""What a folder shows: its real entries, and names that are computed. Trio thread only."""

import itertools
from collections.abc import Sequence

from jfs.errors import BadHandle, NameTooLong, NoEntry
from jfs.vfs.freshness import OUTAGES
from jfs.vfs.namespace import queries, reports, selectors
from jfs.vfs.namespace.crowds import Row
from jfs.vfs.namespace.inodes import ROOT, Inode
from jfs.vfs.namespace.listings import Listing, released
from jfs.vfs.namespace.queries import Queries, QueryFolder, QueryListing
from jfs.vfs.namespace.reports import ReportFolder, ReportListing, Reports
from jfs.vfs.namespace.selectors import Selectors
from jfs.vfs.namespace.tree import Tree
from jfs.vfs.questions import Questions


class Folders:
    """Names and snapshots of every folder of one mount."""

    def __init__(
        self,
        tree: Tree,
        found: Queries,
        chosen: Selectors,
        told: Reports,
        questions: Questions,
        numbers: "itertools.count[int]",
    ) -> None:
        self._tree = tree
        self._queries = found
        self._selectors = chosen
        self._reports = told
        self._questions = questions
        self._numbers = numbers
        self._opened: dict[int, Listing | QueryListing | ReportListing] = {}
        self._read: dict[int, Inode] = {}

    async def resolve(self, parent: Inode, name: str) -> Inode:
        """Resolve a name: a real entry, else a computed one. Raises as ``Tree.lookup``.

        No checkpoint after a computed inode was made: nobody holds it.
        """
        if isinstance(parent.computed, ReportFolder):
            return self._reports.lookup(name)
        if name == reports.NAME and parent.ino == ROOT and parent.child(name) is None:
            return self._reports.folder()
        try:
            if isinstance(parent.computed, QueryFolder):
                return await self._queries.lookup(parent.computed, name)
            return await self._tree.lookup(parent, name)
        except (NoEntry, NameTooLong):  # the value of a property may be long
            if name == queries.NAME and parent.ino == ROOT:
                return self._queries.root()
            if not name.startswith(selectors.MARK) or parent.computed is not None:
                raise
        except OUTAGES:
            # What is known of queries stands in, also for who never listed the root.
            if name == queries.NAME and parent.ino == ROOT and parent.child(name) is None:
                return self._queries.root()
            raise
        return await self._selectors.inode(parent, name)

    async def open(self, folder: Inode) -> int:
        """Take a snapshot, so that a reader sees every entry exactly once; returns its handle."""
        listing: Listing | QueryListing | ReportListing
        if isinstance(folder.computed, ReportFolder):
            listing = self._reports.listing()
        elif isinstance(folder.computed, QueryFolder):
            listing = await self._queries.listing(folder.computed)
        else:
            listing = await self._tree.listing(folder)
        handle = next(self._numbers)
        self._opened[handle] = listing
        self._read[handle] = folder
        return handle

    def read(self, handle: int, start: int, count: int) -> Sequence[tuple[str, Inode | Row, int]]:
        """Return entries from a position on: name, entry, next position. Raises BadHandle."""
        try:
            listing = self._opened[handle]
        except KeyError:
            raise BadHandle(f"handle {handle} is not an open folder") from None
        return listing.read(start, count)

    def is_open(self, folder: Inode) -> bool:
        """Whether somebody reads a snapshot of a folder, whose entries must be there meanwhile."""
        return any(folder is each for each in self._read.values())

    def release(self, handle: int) -> None:
        """Drop a snapshot."""
        listing = self._opened.pop(handle, None)
        self._read.pop(handle, None)
        if listing is not None and listing.release():
            self._questions.run(released, listing)
