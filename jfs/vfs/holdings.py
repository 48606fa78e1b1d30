"""What a mount holds in memory because the kernel knows it, and how that is given back.

An inode lives as long as the kernel holds it, and the kernel forgets it when *it* is short of
memory: not when this process is, whose limit may be much smaller. So when memory gets tight, those
are packed that nobody has as an object (``namespace.crowds``); and if that is not enough, the
kernel is made to forget. Trio thread only.
"""

import math
from collections.abc import AsyncIterator

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
_SHED_EVERY_S = 30.0  # at most: whoever walks the tree needs the names that it looks at


class Holdings:
    """See the module."""

    def __init__(self, tree: Tree, files: OpenFiles, kernel: KernelView, folders: Folders) -> None:
        self._tree = tree
        self._files = files
        self._kernel = kernel
        self._folders = folders

    def figures(self) -> dict[str, int]:
        """Return how much is known, and open, for ``.jfs/stats``."""
        opened = sum(1 for _ in self._files.inodes())
        return {"inodes": self._tree.inodes.known, "open_files": opened}

    def fetches(self) -> dict[str, object]:
        """Return which contents are being fetched as a whole, for ``.jfs/stats``."""
        return self._files.opening.fetching.figures()

    def backing_of(self, handle: int) -> int:
        """Return the number of what the kernel reads itself through a handle; 0: nothing."""
        return self._files.backing_of(handle)

    async def shed(self) -> None:
        """Have the kernel forget every file that is not open, and forget them too.

        Their folders stay: a process may be in one, and would not find its way out.
        Cancellation: some is kept.
        """
        async for folder in self._folders_known():
            async for names in self._files_held(folder):
                await self._kernel.drop(Remembered(names, []))
        await trio.sleep(_FORGETS_WITHIN_S)
        async for folder in self._folders_known():
            if not self._folders.is_open(folder):
                self._tree.inodes.give_back(folder)

    async def pack(self) -> None:
        """Fold every entry that nobody has as an object."""
        async for folder in self._folders_known():
            for names in pieces(list(folder.dentries)):
                if folder.below is not None and self._tree.inodes.lives(folder):
                    self._tree.inodes.pack(folder, names)
                await trio.lowlevel.checkpoint()

    async def watch(self) -> None:
        """Shed whenever memory is tight; never ends."""
        again_at = -math.inf
        while True:
            await trio.sleep(_LOOK_EVERY_S)
            if len(self._tree.inodes) <= _WORTH_IT or not memory.is_tight():
                continue
            await self.pack()
            await threads.computing(memory.trim)
            if memory.is_tight() and trio.current_time() >= again_at:
                await self.shed()
                await threads.computing(memory.trim)
                again_at = trio.current_time() + _SHED_EVERY_S

    async def _folders_known(self) -> AsyncIterator[Inode]:
        """Yield every folder that is an object and has something in it."""
        waiting = [self._tree.inodes.root]
        while waiting:
            folder = waiting.pop()
            # Nothing here may have an entry while a folder is looked at: it would not be folded.
            waiting += [inode for inode in folder.dentries.values() if inode.is_folder]
            await trio.lowlevel.checkpoint()
            yield folder

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
