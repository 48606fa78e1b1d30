"""Change open files: stage, write, truncate, deploy, and show the server's version again.

Everything here but ``deploy_dirty``, ``enqueue``, ``deploy_queued``, ``refuse`` and ``settle``
wants the lock of the open file held: what is uploaded does not change meanwhile. Those claim the
path first (``namespace.locks``), whatever it is by then: an upload goes where the name is, and
nobody moves or removes it meanwhile. Trio thread only; disk and hashing are in threads.

With --write-back a file that is closed is *queued*: on this disk for good, and uploaded behind
(``queue``). Newer content is written beside it, and takes its place once it is queued itself: what
``close`` has promised is never overwritten.
"""

import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import trio

from jfs import waiting
from jfs.errors import DiskHangs, ProtocolViolation, Stale, disk_words
from jfs.extents import Extent, GiB, MiB
from jfs.model import FileInfo
from jfs.vfs.files.openfile import OpenFile, content_of, reader_of, version_of
from jfs.vfs.namespace.local import STAGED, LocalAttributeTable
from jfs.vfs.namespace.locks import PathLocks
from jfs.vfs.namespace.tree import Tree
from jfs.vfs.reading.reader import DataPlane
from jfs.vfs.writing.deployer import Deployer, keep
from jfs.vfs.writing.journal import Entry
from jfs.vfs.writing.records import State
from jfs.vfs.writing.staging import StagingArea, StagingFile, forgotten

log = logging.getLogger(__name__)

_COPY_PIECE = 1 * MiB
# Content that is open while its name goes is copied to this disk first, up to so many bytes; the
# server forgets it with its name. Readers of more get ESTALE, as after a change from elsewhere.
_KEPT_FOR_READERS = 1 * GiB


@dataclass(frozen=True, slots=True)
class Writing:
    """What a mount that can be written to writes with."""

    area: StagingArea
    deployer: Deployer
    attributes: LocalAttributeTable


class Queue(Protocol):
    """What is to be uploaded behind."""

    @property
    def is_full(self) -> bool:
        """Whether nothing more may be queued."""

    def done(self, file: OpenFile) -> None:
        """Note that a file is uploaded, which may be queued."""

    def add(self, file: OpenFile, *, settled: bool = False) -> None:
        """Note that a file is queued now, or queued anew; *settled*: it was a while ago."""


class Writer:
    """See the module.

    Args:
        abandoned: told about a file whose upload failed and which nobody writes any more.
        queue: told about what is queued; None: everything is uploaded as it is closed.
        fell_back: told about a file that shows again what it was before it was written.
    """

    def __init__(
        self,
        tree: Tree,
        plane: DataPlane,
        writing: Writing,
        locks: PathLocks,
        abandoned: Callable[[OpenFile], None],
        queue: Queue,
        fell_back: Callable[[OpenFile], None],
    ) -> None:
        self._tree = tree
        self._plane = plane
        self._attributes = writing.attributes
        self._area = writing.area
        self._deployer = writing.deployer
        self._locks = locks
        self._abandoned = abandoned
        self._queue = queue
        self._fell_back = fell_back

    async def write(self, file: OpenFile, offset: int, data: bytes) -> None:
        """Write all of *data*. Raises JfsError, OSError."""
        await self.change(file, file.size, StagingFile.write, offset, data)

    async def change(
        self, file: OpenFile, size: int, call: Callable[..., None], *args: object
    ) -> None:
        """Call a change of ``StagingFile`` on the first *size* bytes. Raises JfsError, OSError."""
        staged = await self._stage_newer(file, size)
        await self._change(file, staged)
        try:
            await staged.change(call, staged, *args)
        except OSError as error:
            file.broken = error
            raise

    async def truncate(self, file: OpenFile, size: int) -> None:
        """Cut or extend; only what stays is fetched. Raises JfsError, OSError."""
        if file.size == size and (size or file.broken is None):
            now = time.time_ns()  # nothing to upload, but the call sets the times (POSIX)
            self._attributes.set(file.inode, mtime_ns=now, ctime_ns=now, content=file.tag)
            return
        staged = await self._stage_newer(file, min(size, file.size))
        await self._change(file, staged)
        try:
            await staged.change(staged.truncate, size)
        except DiskHangs as error:
            file.broken = error  # nobody knows what is there now
            raise
        if not size:
            file.broken = None

    async def close(self, file: OpenFile) -> None:
        """Do what ``close`` does: upload what is new, or queue it. Raises as ``deploy_dirty``."""
        if self._area.settings.write_back and not self._queue.is_full:
            await self.enqueue(file)
        else:
            await self.deploy_dirty(file)

    async def enqueue(self, file: OpenFile) -> None:
        """Let what is new survive everything here, and have it uploaded behind.

        Claims the path, then takes the lock. Raises Stale; OSError: this disk does not keep it.
        """
        async with self._placed(file):
            if not file.dirty or file.is_pending:
                return
            file.require_current()  # given up meanwhile: the journal has it
            generation = file.tried = file.generation
            if file.broken is not None:
                raise file.broken
            staged = await self._stage(file, file.size)
            await staged.own(staged.size)
            assert staged.entry is not None
            size = staged.size + waiting.SYNCED
            try:
                await waiting.on_disk(_queue, staged.entry, _promise(file), size=size)
            except OSError as error:
                await waiting.on_disk(keep, staged.entry, disk_words(error), size=size)
                raise
            file.queued = generation
            await self._supersede(file)
            self.enter(file)

    def enter(self, file: OpenFile, *, settled: bool = False) -> None:
        """Have what is pending uploaded behind; until then the inode lives. See ``Queue.add``."""
        if not file.held:
            file.held = True
            self._tree.inodes.remember(file.inode)
        self._queue.add(file, settled=settled)

    async def deploy_queued(self, file: OpenFile) -> None:
        """Upload what is queued, if it still is. Claims the path, then takes the lock.

        It is cut when somebody changes the file: the server has it then, or not.

        Raises:
            JfsError, OSError: the verdict; it stays queued.
        """
        async with self._placed(file):
            if not file.is_pending:
                return
            try:
                with trio.CancelScope() as file.uploading:
                    await self._deploy(file)
            finally:
                file.uploading = None

    async def refuse(self, file: OpenFile, reason: str) -> None:
        """Give up what is queued: the journal keeps it, for a person to look at.

        Claims the path, then takes the lock. Raises OSError.
        """
        async with self._placed(file):
            if file.is_pending and file.staged is not None and file.staged.entry is not None:
                size = file.staged.size + waiting.SYNCED
                await waiting.on_disk(keep, file.staged.entry, reason, size=size)
                self._abandon(file)

    async def discard(self, file: OpenFile, entry: Entry) -> None:
        """Drop what is queued, if it is *entry* still. Locks as ``refuse``. Raises OSError."""
        self.cut(file)
        async with self._placed(file):
            if file.is_pending and file.staged is not None and file.staged.entry is entry:
                await waiting.on_disk(file.staged.forget)
                self._abandon(file)
                log.info("%s: what waited for its upload was dropped", file.inode.path)

    def cut(self, file: OpenFile) -> None:
        """Cut an upload behind: somebody wants to change the file, and shall not wait for it."""
        if file.uploading is not None:
            file.uploading.cancel()

    async def deploy_dirty(self, file: OpenFile) -> None:
        """Upload what the server does not have. Claims the path, then takes the lock.

        Raises:
            JfsError, OSError: the verdict; ``file`` stays dirty.
        """
        async with self._placed(file):
            if file.dirty:
                file.require_current()
                await self._deploy(file)
        self._queue.done(file)

    @asynccontextmanager
    async def _placed(self, file: OpenFile) -> AsyncIterator[None]:
        """Hold the path of a file, as it is by then, and its lock; of a removed one the lock."""
        while not file.detached:
            path = file.inode.path
            async with self._locks.held(path):
                if file.inode.path == path:
                    async with file.lock:
                        yield
                    return
        async with file.lock:
            yield

    async def settle(self, file: OpenFile) -> None:
        """Let the staged bytes become a cache entry, once the last writer has gone.

        Claims the path, then takes the lock.
        """
        if file.staged is not None and not file.detached:
            async with self._placed(file):
                await self._settle(file)

    async def _settle(self, file: OpenFile) -> None:
        staged = file.staged
        if staged is None or file.detached or file.writers or file.is_pending:
            return
        if file.dirty:
            await staged.give_up(file.broken)
            if file.acknowledged is not None:
                self._fall_back(file, staged)
            else:
                self._abandon(file)
            return
        try:
            await waiting.on_disk(self._adopt, file.info, staged, size=staged.size)
        except DiskHangs as error:  # the server has it
            log.warning("%s: not taken into the cache: %s", file.inode.path, disk_words(error))
        file.staged = None
        staged.close()

    async def keep_for_readers(self, file: OpenFile) -> None:
        """Bring the content here before the server forgets it with its name.

        A staging disk that fails is no reason to keep the name: readers have what is cached then.

        Raises:
            JfsError: it cannot be read.
        """
        if file.staged is not None or not file.info.size or file.replaced:
            return
        if file.backing is not None:  # its readers have the file itself
            return
        file.drop_kept()
        if file.info.size > _KEPT_FOR_READERS:
            log.warning("%s: open, and too large to be kept for its readers", file.inode.path)
            return
        try:
            file.kept = await self._kept(file)
        except (Stale, OSError) as error:  # of Stale, its readers are told
            if isinstance(error, OSError):
                log.warning("%s: not kept for readers: %s", file.inode.path, disk_words(error))

    async def _kept(self, file: OpenFile) -> StagingFile:
        staged = await waiting.on_disk(self._area.anonymous, late=StagingFile.unmake)
        try:
            await self._copy(file, staged, file.info.size)
        except BaseException:
            staged.close()
            raise
        return staged

    async def _stage(self, file: OpenFile, size: int) -> StagingFile:
        """Make the file staged, with the first *size* bytes of what it shows."""
        if file.staged is not None:
            return file.staged
        if file.detached:
            staged = await waiting.on_disk(self._area.anonymous, late=StagingFile.unmake)
        else:
            new = partial(self._area.new, file.inode.path, file.base, made=file.inode.local)
            staged = await waiting.on_disk(new, late=StagingFile.unmake)
        try:
            await self._copy(file, staged, size)
        except BaseException:
            with trio.CancelScope(shield=True):
                await forgotten(staged)
            staged.close()
            raise
        file.staged = staged
        return staged

    async def _stage_newer(self, file: OpenFile, size: int) -> StagingFile:
        """As ``_stage``, to be changed: what is queued stays as it is beside it."""
        staged = await self._stage(file, size)
        await staged.own(size)
        if not file.is_pending:
            return staged
        successor = self._area.successor
        newer = await waiting.on_disk(
            successor, staged, size, late=StagingFile.unmake, size=2 * size
        )
        file.acknowledged, file.staged = staged, newer
        return newer

    async def _supersede(self, file: OpenFile) -> None:
        """Forget what was queued before: what is newer is safe."""
        older, file.acknowledged = file.acknowledged, None
        if older is not None:
            await forgotten(older)
            older.close()

    def _fall_back(self, file: OpenFile, staged: StagingFile) -> None:
        """Show what was closed last again: what was written since is not what was wanted."""
        staged.close()
        file.staged, file.acknowledged = file.acknowledged, None
        file.broken = None
        file.generation += 1
        file.queued = file.tried = file.generation
        now = time.time_ns()
        self._attributes.set(file.inode, mtime_ns=now, ctime_ns=now, content=STAGED)
        self.enter(file)
        self._fell_back(file)

    async def _copy(self, file: OpenFile, staged: StagingFile, size: int) -> None:
        await staged.require_room(size, replaces=0 if size else file.info.size)
        reader = await reader_of(file, self._plane) if size else None
        for piece in Extent(0, size).pieces(_COPY_PIECE):
            assert reader is not None
            data = bytes(await reader.read(piece))
            if len(data) != piece.size:
                raise ProtocolViolation(f"{file.inode.path}: ends at {piece.start + len(data)}")
            await staged.change(staged.write, piece.start, data)

    def note_change(self, file: OpenFile) -> None:
        """Note that the content is about to change."""
        file.generation += 1
        file.modified_ns = None
        file.drop_kept()
        file.inode.ahead = not file.detached
        now = time.time_ns()
        self._attributes.set(file.inode, mtime_ns=now, ctime_ns=now, content=STAGED)

    async def _change(self, file: OpenFile, staged: StagingFile) -> None:
        self.note_change(file)
        if not (entry := staged.entry) or file.detached or entry.record.state is State.WRITING:
            return
        size = file.base.size if file.base is not None else 0
        changes = {"base": _digest_of(file.base), "base_size": size, "sha256": ""}
        await waiting.on_disk(lambda: entry.update(state=State.WRITING, **changes))

    async def _deploy(self, file: OpenFile) -> None:
        inode = file.inode
        if file.broken is not None:
            file.tried = file.generation
            raise file.broken
        staged = await self._stage(file, file.size)
        generation = file.tried = file.generation
        info = await self._deployer.deploy(
            staged,
            inode.path,
            base=file.base,
            properties=inode.properties or {} if inode.local else {},
            modified_ns=file.modified_ns,
        )
        # no checkpoint: the file is what the server has now
        file.deployed = generation
        file.info = info
        file.ours, file.replaces = True, None
        inode.ahead = False
        reader, file.reader = file.reader, None
        inode.doubt_properties()
        self._tree.changed(inode, info)
        self._attributes.set(inode, content=str(content_of(info)))
        if reader is not None:
            await reader.close()
        await self._supersede(file)

    def _adopt(self, info: FileInfo, staged: StagingFile) -> None:
        """Blocking; a worker thread."""
        assert staged.entry is not None
        if self._plane.store is not None and info.size and staged.lent is None:
            staged.trim()
            words = staged.sums(info.checksums.sha256 or "")
            self._plane.store.adopt(version_of(info).content, staged.entry.data_path, words)
        staged.forget_quietly()

    def _abandon(self, file: OpenFile) -> None:
        """Show what the server has again: the upload failed, and the journal keeps the bytes."""
        file.replaced = True
        file.queued = 0
        staged, file.staged = file.staged, None
        assert staged is not None
        file.info = replace(file.info, size=staged.size)  # for fstat of the handles that are left
        staged.close()
        inode = file.inode
        self._attributes.forget(inode)
        self._tree.abandoned(inode)
        self._abandoned(file)


def _digest_of(base: FileInfo | None) -> str | None:
    """Return the digest that the journal notes as what the server had."""
    return base.checksums.sha256 if base is not None else None


def _promise(file: OpenFile) -> dict[str, object]:
    """Return what the next mount needs to upload a file as this one would."""
    inode, base = file.inode, file.base
    assert file.staged is not None
    assert file.staged.entry is not None
    properties = file.staged.entry.record.properties
    if inode.local:
        properties = {**properties, **(inode.properties or {})}
    return {
        "path": inode.path,
        "base": _digest_of(base),
        "base_size": base.size if base is not None else 0,
        "made": inode.local,
        "properties": properties,
        "modified_ns": file.modified_ns,
        "sent": tuple(sorted(file.staged.sent)),
    }


def _queue(entry: Entry, promise: dict[str, object]) -> None:
    """Write all of a staged file to disk, and that it is to be uploaded. Blocking. OSError."""
    entry.sync_data()
    entry.update(
        state=State.PENDING, error="", queued_ns=time.time_ns(), tries=0, next_ns=0, **promise
    )
