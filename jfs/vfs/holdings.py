"""What a mount holds in memory because the kernel knows it, and how that is given back.

An inode lives as long as the kernel holds it, and the kernel forgets it when *it* is short of
memory: not when this process is, whose limit may be much smaller. Trio thread only.
"""

from collections.abc import AsyncIterator, Sequence

import trio

from jfs import memory, threads
from jfs.vfs.files.table import OpenFiles
from jfs.vfs.freshness import pieces
from jfs.vfs.kernel import KernelView, Remembered
from jfs.vfs.namespace.folders import Folders
from jfs.vfs.namespace.inodes import Inode
from jfs.vfs.namespace.tree import Tree

_LOOK_EVERY_S = 2.0
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
        return {"inodes": len(self._tree.inodes), "open_files": opened}

    def backing_of(self, handle: int) -> int:
        """Return the number of what the kernel reads itself through a handle; 0: nothing."""
        return self._files.backing_of(handle)

    async def shed(self) -> None:
        """Have the kernel forget every file that is not open, and forget them too.

        Their folders stay: a process may be in one, and would not find its way out.
        Cancellation: some is kept.
        """
        async for piece in self._children():
            names = [
                (inode.parent.ino, inode.name)
                for inode in piece
                if inode.lookup_count
                and inode.parent is not None
                and not inode.is_folder
                and self._files.find(inode) is None
            ]
            await self._kernel.drop(Remembered(names, []))
        await trio.sleep(_FORGETS_WITHIN_S)
        async for piece in self._children():
            for folder in {inode.parent for inode in piece}:
                if folder is not None and not self._folders.is_open(folder):
                    self._tree.inodes.give_back(folder)

    async def watch(self) -> None:
        """Shed whenever memory is tight; never ends."""
        while True:
            await trio.sleep(_LOOK_EVERY_S)
            if len(self._tree.inodes) > _WORTH_IT and memory.is_tight():
                await self.shed()
                await threads.computing(memory.trim)
                await trio.sleep(_SHED_EVERY_S)

    async def _children(self) -> AsyncIterator[Sequence[Inode]]:
        """Yield everything that is known, in pieces of one folder each."""
        waiting = [self._tree.inodes.root]
        while waiting:
            children = list(waiting.pop().dentries.values())
            waiting += [inode for inode in children if inode.is_folder]
            for piece in pieces(children):
                yield piece
                await trio.lowlevel.checkpoint()
