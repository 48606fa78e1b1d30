"""Names of files whose upload waits: what may be done about them without the server.

With --write-back programs go on saving in an outage: a file is made, and renamed over another,
where the server cannot be asked whether that name is taken. What is known has to do, and whether
it fits is seen at the upload, which replaces nothing else than what was known here. Trio thread
only.
"""

from contextlib import suppress

from jfs.errors import NotFound
from jfs.model import EntryInfo, FileInfo, Properties, RepoPath, same_content
from jfs.protocols import ArtifactStore
from jfs.vfs.attributes.properties import PropertyTable
from jfs.vfs.files.table import OpenFiles
from jfs.vfs.freshness import OUTAGES
from jfs.vfs.namespace.inodes import Inode
from jfs.vfs.namespace.tree import Tree


class Unasked:
    """See the module. *write_back*: the mode of the mount."""

    def __init__(
        self,
        store: ArtifactStore,
        tree: Tree,
        files: OpenFiles,
        properties: PropertyTable,
        *,
        write_back: bool,
    ) -> None:
        self._store = store
        self._tree = tree
        self._files = files
        self._properties = properties
        self._write_back = write_back

    async def is_there(self, parent: Inode, name: str) -> bool:
        """Ask the server whether a name is taken; if it cannot be asked, say what is known.

        Raises:
            RemoteError: nothing is, or everything is uploaded as it is closed.
        """
        try:
            return await self._tree.is_there(parent, name)
        except OUTAGES:
            there = self._tree.is_believed_there(parent, name)
            if not self._write_back or there is None:
                raise
            return there

    def is_pending(self, inode: Inode) -> bool:
        """Whether an inode is a file that was made here, and waits for its upload."""
        file = self._files.find(inode)
        return inode.local and file is not None and file.is_pending

    async def properties_under(self, source: Inode, target: Inode) -> Properties:
        """Return what *source*, a file without properties, will take over from *target*."""
        try:
            return await self._properties.current(target)
        except OUTAGES:
            if not self.is_pending(source):
                raise
            return {}  # its upload will ask for them

    async def there(self, source: Inode, target: Inode | None, path: RepoPath) -> EntryInfo | None:
        """Return what the server has at *path*, where *source* takes the place of *target*."""
        if target is None:
            return None
        if target.local:  # made here too, it may wait in the place of a file of the server
            file = self._files.find(target)
            return file.replaces if file is not None else None
        try:
            return await self._store.stat(path)
        except NotFound:  # removed since we looked
            return None
        except OUTAGES:
            if not self.is_pending(source):
                raise
            return target.info  # if it is another, the upload will find out

    async def remove_traces(self, inode: Inode) -> None:
        """Remove from the server what came there of a file that is said to be here alone.

        That is so if the answer to an upload was lost. Raises RemoteError.
        """
        file = self._files.find(inode)
        staged = file.staged if file is not None else None
        if staged is None or not staged.sent:
            return
        with suppress(NotFound):
            there = await self._store.stat(inode.path)
            if isinstance(there, FileInfo) and there.checksums.sha256 in staged.sent:
                await self._store.delete(inode.path)

    async def remove_replaced(self, inode: Inode, replaced: FileInfo) -> None:
        """Remove from the server what a file took the place of, which is here alone and moves away.

        It is gone for everybody here. What somebody else has put there since stays. Raises
        RemoteError.
        """
        with suppress(NotFound):
            there = await self._store.stat(inode.path)
            if isinstance(there, FileInfo) and same_content(there, replaced):
                await self._store.delete(inode.path)
