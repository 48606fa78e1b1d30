"""What a change of names does to open files. Trio thread only.

Whoever calls this holds the claims of the paths (``namespace.locks``): nothing is uploaded to or
from them meanwhile. The lock of an open file is taken here, for a moment.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial

from jfs import waiting
from jfs.model import FileInfo, RepoPath
from jfs.vfs.files.openfile import OpenFile
from jfs.vfs.files.queue import UploadQueue
from jfs.vfs.files.registry import Registry
from jfs.vfs.files.writer import Writer
from jfs.vfs.namespace.inodes import Inode
from jfs.vfs.namespace.locks import PathLocks
from jfs.vfs.writing.staging import forgotten


class Renaming:
    """See the module.

    Args:
        writer: None: nothing can be written.
        let_go: called when nobody has a file open any more.
    """

    def __init__(
        self,
        registry: Registry,
        locks: PathLocks,
        writer: Writer | None,
        queue: UploadQueue | None,
        let_go: Callable[[OpenFile], Awaitable[None]],
    ) -> None:
        self._registry = registry
        self._locks = locks
        self._writer = writer
        self._queue = queue
        self._let_go = let_go

    @asynccontextmanager
    async def held(self, inode: Inode) -> AsyncIterator[None]:
        """Claim the path of an inode, whatever it is by then: nothing of it is uploaded meanwhile.

        An inode that has lost its name claims nothing.
        """
        while inode.attached():
            path = inode.path
            async with self._locks.held(path):
                if inode.path == path:
                    yield
                    return
        yield

    async def publish(self, inode: Inode | None) -> None:
        """Upload what waits until it rests, at or below an inode whose name changes.

        Its new name shows it whole, and never what was uploaded before. Without any claims. Raises
        JfsError, OSError: the verdict; it waits on.
        """
        for file in self._registry.below(inode) if inode is not None else ():
            if file.waits_since is not None and file.is_pending and self._writer is not None:
                await self._writer.deploy_dirty(file)

    def writes_below(self, folder: Inode) -> bool:
        """Whether something in a folder is shown that the server does not have. No checkpoint.

        It may have what was there before, or not any more: others remove it meanwhile.
        """
        return any(file.dirty for file in self._registry.below(folder))

    @asynccontextmanager
    async def kept(self, inode: Inode | None) -> AsyncIterator[None]:
        """Keep content here for its readers while the server forgets it with its name.

        In vain, if the block raises.

        Raises:
            JfsError: it cannot be read.
        """
        file = self._registry.find(inode) if inode is not None else None
        if file is None or self._writer is None:
            yield
            return
        file.handles += 1  # who closes it meanwhile does not take it from us
        try:
            async with file.lock:
                await self._writer.on_disk.keep_for_readers(file)
            try:
                yield
            except BaseException:
                file.drop_kept()
                raise
        finally:
            file.handles -= 1
            if not file.handles and not file.held:
                await self._let_go(file)

    def removed(self, inode: Inode) -> None:
        """Note that the name is gone: handles go on, and nothing is uploaded. No checkpoint.

        ``forget`` must follow.
        """
        for file in self._registry:
            # Also what was open on another content of the name, or it would be uploaded there.
            if file.inode is inode or (file.inode.path == inode.path and not file.inode.attached()):
                self._removed(file)

    def _removed(self, file: OpenFile) -> None:
        file.detached = True
        file.inode.ahead = False
        if file.staged is None:
            file.staged, file.kept = file.kept, None

    async def forget(self, inode: Inode) -> None:
        """Take what was staged for a name that is gone out of the journal."""
        for file in self._registry:
            if file.detached and file.inode.path == inode.path:
                async with file.lock:  # a write may be making its staged file at this moment
                    for staged in (file.staged, file.acknowledged):
                        if staged is not None:
                            await forgotten(staged)
                if self._queue is not None:
                    await self._queue.drop(file)

    async def relocate(self, folder: Inode) -> None:
        """Note that an inode, and what is open below it, has another path now."""
        for file in self._registry.below(folder):
            await self._relocate(file)

    async def _relocate(self, file: OpenFile) -> None:
        path = file.inode.path
        file.info = replace(file.info, path=path)
        if file.reader is not None:
            file.reader.relocate(path)
        async with file.lock:
            for staged in (file.staged, file.acknowledged):
                entry = staged.entry if staged is not None else None
                if entry is not None and not file.detached:
                    await waiting.on_disk(partial(entry.update, path=path))

    async def note_move(
        self,
        file: OpenFile,
        over: OpenFile | None,
        path: RepoPath,
        replaces: FileInfo | None,
    ) -> None:
        """Let the journal know where a pending file will belong, before it does.

        Args:
            over: what it takes the place of, which is never uploaded then.
        Raises:
            OSError: it belongs where it did.
        """
        staged = file.staged
        places = () if over is None else (over.staged, over.acknowledged)
        gone = [each for each in places if each is not None]
        # What is there may be an upload of it whose answer was lost: that is ours.
        sent = {sha256 for each in gone for sha256 in each.sent}
        if staged is None or staged.entry is None or not file.is_pending:
            if staged is not None:
                staged.sent.update(sent)
            return  # whoever writes it still has to close it
        entry = staged.entry
        names = [each.entry.name for each in gone if each.entry is not None]
        changes = {
            "path": path,
            "base": replaces.checksums.sha256 if replaces is not None else None,
            "base_size": replaces.size if replaces is not None else 0,
            "supersedes": (*entry.record.supersedes, *names),
            "sent": tuple(sorted(sent)),
        }
        await waiting.on_disk(partial(entry.update, **changes))
        staged.sent.clear()
        staged.sent.update(sent)
        staged.properties = {}

    async def note_times(self, inode: Inode) -> None:
        """Let the journal know the time that was set on a file that waits for its upload."""
        file = self._registry.find(inode)
        if file is None or not file.is_pending or not file.lock.value:
            return  # an upload that is under way is not waited for: it is too late for it
        async with file.lock:
            entry = file.staged.entry if file.staged is not None else None
            if entry is not None:
                await waiting.on_disk(partial(entry.note, modified_ns=file.modified_ns))

    async def note_properties(self, inode: Inode) -> None:
        """Let the journal know what was set on a file that was never uploaded."""
        file = self._registry.find(inode)
        if file is None:
            return
        async with file.lock:
            entry = file.staged.entry if file.staged is not None else None
            if entry is not None and not file.detached:
                properties = {**entry.record.properties, **(inode.properties or {})}
                await waiting.on_disk(lambda: entry.update(properties=properties))
