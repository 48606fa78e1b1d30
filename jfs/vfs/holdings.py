"""What a mount holds in memory because the kernel knows it, and how that is given back.

An inode lives as long as the kernel holds it, and the kernel forgets it when *it* is short of
memory: not when this process is, whose limit may be much smaller. So when memory gets tight, those
are packed that nobody has as an object (``namespace.crowds``); and if that is not enough, the
kernel is made to forget. Trio thread only.
"""

from collections.abc import AsyncIterator
from operator import itemgetter

import trio

from jfs import memory, threads
from jfs.vfs.files.table import OpenFiles
from jfs.vfs.freshness import PIECE, pieces
from jfs.vfs.kernel import KernelView, Remembered
from jfs.vfs.namespace.folders import Folders
from jfs.vfs.namespace.inodes import Inode
from jfs.vfs.namespace.tree import Tree

_LOOK_EVERY_S = 0.5  # a walk through a tree learns 20,000 names a second, a kilobyte each
_FORGETS_WITHIN_S = 1.0
_WORTH_IT = 5_000  # inodes: fewer are not what takes the memory
# What is given back leaves holes, which are filled before the process grows again: only if it has
# grown by so much of its limit, more is given back. Whoever walks the tree needs the names that it
# looks at, so that half of them stay: those of the folders that were listed last.
_GROWN, _SHARE = 0.04, 0.5
_A_FOLDER = 10  # entries that take as long to look at as the folder itself


class Holdings:
    """See the module."""

    def __init__(self, tree: Tree, files: OpenFiles, kernel: KernelView, folders: Folders) -> None:
        self._tree = tree
        self._files = files
        self._kernel = kernel
        self._folders = folders
        self._work = 0

    def figures(self) -> dict[str, int]:
        """Return how much is known, and open, for ``.jfs/stats``."""
        opened = sum(1 for _ in self._files.inodes())
        return {"inodes": self._tree.inodes.known, "open_files": opened}

    def fetches(self) -> dict[str, object]:
        """Return which contents are being fetched as a whole, for ``.jfs/stats``."""
        return self._files.opening.fetching.figures()

    def backing_of(self, handle: int) -> tuple[int, bool]:
        """See ``PassedWrites.backing_of``."""
        return self._files.passed.backing_of(handle)

    async def shed(self, share: float = 1.0) -> None:
        """Have the kernel forget files that are not open, and forget them too.

        Their folders stay: a process may be in one, and would not find its way out. What the kernel
        has of them takes a row.
        Cancellation: some is kept.

        Args:
            share: of all that is known; what was listed longest ago goes first.
        """
        chosen = await self._oldest(share)
        waiting: list[tuple[int, str]] = []
        for folder, _ in chosen:
            async for names in self._files_held(folder):
                waiting += names
                if len(waiting) >= PIECE:
                    await self._kernel.drop_surely(Remembered(waiting, []))
                    waiting = []
        await self._kernel.drop_surely(Remembered(waiting, []))
        await trio.sleep(_FORGETS_WITHIN_S)
        for folder, listed in chosen:
            await self._rest(_size(folder))
            if self._tree.inodes.lives(folder) and not self._folders.is_open(folder):
                self._tree.inodes.give_back(folder, listed)

    async def _oldest(self, share: float) -> list[tuple[Inode, int]]:
        """Return the folders that were listed longest ago and hold this share of all entries.

        Each with the serial of its listing.
        """
        folders = []
        async for folder in self._folders_known():
            assert folder.below is not None
            folders.append((folder.below.listing.asked.serial, _size(folder), folder))
        folders.sort(key=itemgetter(0))
        left = share * sum(size for _, size, _ in folders)
        chosen = []
        for listed, size, folder in folders:
            if left <= 0:
                break
            chosen.append((folder, listed))
            left -= size
        return chosen

    async def pack(self) -> None:
        """Fold every entry that nobody has as an object."""
        above = []
        async for folder in self._folders_known():
            if any(inode.below and inode.below.is_blank for inode in folder.dentries.values()):
                above.append(folder)
            await self._pack(folder)
        # Folders in which nothing is known: the search for folders had them.
        for folder in above:
            await self._pack(folder)

    async def _pack(self, folder: Inode) -> None:
        for names in pieces(list(folder.dentries)):
            if folder.below is not None and self._tree.inodes.lives(folder):
                self._tree.inodes.pack(folder, names)
            await self._rest(len(names))

    async def watch(self) -> None:
        """Give back whenever memory is tight; never ends."""
        objects = shed_at = 0  # what was left when something was last given back
        while True:
            await trio.sleep(_LOOK_EVERY_S)
            inodes = self._tree.inodes
            objects = min(objects, len(inodes))
            if not memory.is_tight():
                continue
            if len(inodes) > objects + _WORTH_IT:
                await self.pack()
                objects = len(inodes)
                await threads.computing(memory.trim)
            if memory.has_grown(shed_at, _GROWN) and inodes.known > _WORTH_IT:
                await self.shed(_SHARE)
                await self.pack()
                objects = len(inodes)
                await threads.computing(memory.trim)
                shed_at = memory.resident()

    async def _folders_known(self) -> AsyncIterator[Inode]:
        """Yield every folder that is an object and has something in it."""
        waiting = [self._tree.inodes.root]
        while waiting:
            folder = waiting.pop()
            # Nothing here may have an entry while a folder is looked at: it would not be folded.
            waiting += [inode for inode in folder.dentries.values() if inode.is_folder]
            await self._rest(len(folder.dentries))
            yield folder

    async def _rest(self, entries: int) -> None:
        """Let others have their turn, once so many entries were looked at since they had one.

        Not after each folder: of 100,000 the last would be looked at a minute later, on a machine
        that is busy with those who fill the memory.
        """
        self._work += entries + _A_FOLDER
        if self._work >= PIECE:
            self._work = 0
            await trio.lowlevel.checkpoint()

    async def _files_held(self, folder: Inode) -> AsyncIterator[list[tuple[int, str]]]:
        """Yield files of a folder, with its number, that the kernel holds and nobody has open."""
        for piece in pieces(list(folder.dentries.values())):
            yield [
                (folder.ino, inode.name)
                for inode in piece
                if inode.lookup_count and not inode.is_folder and self._files.find(inode) is None
            ]
        if folder.below is not None and (crowd := folder.below.crowd) is not None:
            for start in range(0, len(crowd.packed), PIECE):
                yield crowd.held_among(start, start + PIECE, files=True)[0]


def _size(folder: Inode) -> int:
    below = folder.below
    rows = 0 if below is None or below.crowd is None else len(below.crowd.packed)
    return len(folder.dentries) + rows
