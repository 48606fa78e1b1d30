"""What comes of an upload behind, whose ``close`` has returned long ago. Trio thread only."""

import logging

from jfs.errors import JfsError
from jfs.vfs.files.openfile import OpenFile
from jfs.vfs.files.opening import Opening
from jfs.vfs.files.writer import Writer, Writing
from jfs.vfs.kernel import KernelView
from jfs.vfs.namespace.inodes import Inode
from jfs.vfs.namespace.tree import Tree
from jfs.vfs.refusals import Refusals

log = logging.getLogger(__name__)


class Verdicts:
    """Take them from the queue."""

    def __init__(
        self,
        tree: Tree,
        kernel: KernelView,
        writing: Writing,
        writer: Writer,
        opening: Opening,
        refusals: Refusals,
    ) -> None:
        self._tree = tree
        self._kernel = kernel
        self._writing = writing
        self._writer = writer
        self._opening = opening
        self._refusals = refusals

    async def refuse(self, file: OpenFile, error: Exception) -> None:
        """Give up an upload: the log, ``jfs recover`` and ``user.jfs.last_error`` tell."""
        path = file.inode.path
        log.error("%s: not uploaded, see `jfs recover ls`: %s", path, error)
        self._refusals.keep("upload", path, error)
        await self._writer.refuse(file, str(error))

    async def left(self, file: OpenFile) -> None:
        """Let go of a file that the queue has no more, if nobody has it open."""
        inode = file.inode
        try:
            await self._writer.settle(file)
        except (JfsError, OSError) as error:
            log.warning("%s: was uploaded, but not taken into the cache: %s", inode.path, error)
        if not file.dirty and not file.detached:
            self._refusals.succeeded("upload", inode.path)
        if file.is_pending:  # it was queued again meanwhile
            return
        file.held = False
        if not file.handles:
            await self._opening.let_go(file)
        self._forget(inode)

    def _forget(self, inode: Inode) -> None:
        """Let go of an inode that was held for the queue."""
        if self._tree.forget(inode.ino, 1):
            self._kernel.forget(inode.ino)
            self._writing.attributes.forget_number(inode.ino)
