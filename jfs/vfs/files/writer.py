"""Change open files: stage, write, truncate, deploy, and show the server's version again.

``write``, ``change`` and ``truncate`` want the lock of the open file held: what is uploaded does
not change meanwhile. What uploads, queues or gives up (``close``, ``deploy_dirty``, ``enqueue``,
``deploy_queued``, ``refuse``, ``discard``, ``settle``) takes it, and claims the path first
(``namespace.locks``), whatever it is by then: an upload goes where the name is, and nobody moves or
removes it meanwhile. Trio thread only; disk and hashing are in threads.

With --write-back a file that is closed is *queued*: on this disk for good, and uploaded behind
(``queue``). Newer content is written beside it, and takes its place once it is queued itself: what
``close`` has promised is never overwritten. So is, without that, what waits until it rests
(``settling``); of that newer content is written into the same file (``writing.undo``).
"""

import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import trio

from jfs import waiting
from jfs.errors import (
    AccessDenied,
    Conflict,
    DiskHangs,
    JfsError,
    QuotaExceeded,
    disk_words,
)
from jfs.vfs.files.adopting import Adopting
from jfs.vfs.files.ondisk import OnDisk
from jfs.vfs.files.openfile import OpenFile, content_of
from jfs.vfs.files.promising import digest_of, keep_promise, promise
from jfs.vfs.files.queue import may_pass
from jfs.vfs.files.settling import Settling
from jfs.vfs.namespace.local import STAGED, LocalAttributeTable
from jfs.vfs.namespace.locks import PathLocks
from jfs.vfs.namespace.tree import Tree
from jfs.vfs.reading.reader import DataPlane
from jfs.vfs.writing.area import StagingArea
from jfs.vfs.writing.deployer import Deployer, keep
from jfs.vfs.writing.journal import Entry
from jfs.vfs.writing.records import State
from jfs.vfs.writing.staging import StagingFile, forgotten
from jfs.vfs.writing.undo import set_apart

log = logging.getLogger(__name__)


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

    def add(self, file: OpenFile, rest_s: float | None = None) -> None:
        """Note that a file is queued now, or queued anew. See ``UploadQueue.add``."""


class Writer:
    """See the module.

    Args:
        abandoned: told about a file whose upload failed and which nobody writes any more.
        queue: told about what is queued.
        settling: says what waits until it rests.
        fell_back: told about a file that shows again what it was before it was written.

    Attributes:
        on_disk: what is on this disk of open files.
    """

    def __init__(
        self,
        tree: Tree,
        plane: DataPlane,
        writing: Writing,
        locks: PathLocks,
        abandoned: Callable[[OpenFile], None],
        queue: Queue,
        settling: Settling,
        fell_back: Callable[[OpenFile], None],
    ) -> None:
        self._tree = tree
        self._adopting = Adopting(plane)
        self._attributes = writing.attributes
        self._area = writing.area
        self.on_disk = OnDisk(plane, writing.area)
        self._deployer = writing.deployer
        self._locks = locks
        self._abandoned = abandoned
        self._queue = queue
        self._settling = settling
        self._fell_back = fell_back

    async def write(self, file: OpenFile, offset: int, data: bytes) -> None:
        """Write all of *data*. Raises JfsError, OSError."""
        await self.change(file, file.size, StagingFile.write, offset, data)

    async def change(
        self, file: OpenFile, size: int, call: Callable[..., None], *args: object
    ) -> None:
        """Call a change of ``StagingFile`` on the first *size* bytes. Raises JfsError, OSError."""
        staged = await self.on_disk.stage_newer(file, size)
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
        staged = await self.on_disk.stage_newer(file, min(size, file.size))
        await self._change(file, staged)
        try:
            await staged.change(staged.truncate, size)
        except DiskHangs as error:
            file.broken = error  # nobody knows what is there now
            raise
        if not size:
            file.broken = None

    async def close(self, file: OpenFile) -> None:
        """Do what the last ``close`` does: upload what is new, or let it wait (``settling``).

        Raises as ``deploy_dirty``, ``enqueue``.
        """
        write_back = self._area.settings.write_back
        may_wait = not self._queue.is_full and (write_back or self._settling.lets_wait(file))
        if not may_wait or await _is_lost(file):
            await self.deploy_dirty(file)
        elif write_back:
            await self.enqueue(file)
        else:
            await self.enqueue(file, self._settling.rest_s)
            if self._settling.waits_too_long(file):
                try:
                    await self._deploy_at_last(file)
                except BaseException:  # it waits on, and the next close is one of the same row
                    self._settling.closed(file)
                    raise
        self._settling.closed(file)

    async def enqueue(self, file: OpenFile, rest_s: float | None = None) -> None:
        """Let what is new survive every process here, and have it uploaded behind.

        Claims the path, then takes the lock. Raises Stale; OSError: this disk does not keep it.

        Args:
            rest_s: once it has rested for so long; it need not be on disk then. None: --write-back.
        """
        async with self._placed(file):
            if not file.dirty or file.is_pending:
                return
            file.require_current()  # given up meanwhile: the journal has it
            await self._promise(file, rest_s)

    async def _promise(self, file: OpenFile, rest_s: float | None) -> None:
        generation = file.tried = file.generation
        if file.broken is not None:
            raise file.broken
        staged = await self.on_disk.stage(file, file.size)
        await staged.own(staged.size)
        assert staged.entry is not None
        size = staged.size + waiting.SYNCED
        keep_it = partial(keep_promise, staged, promise(file), durable=rest_s is None)
        try:
            await waiting.on_disk(keep_it, size=size)
        except OSError as error:
            if not staged.goes_on:
                await waiting.on_disk(keep, staged.entry, disk_words(error), size=size)
            raise
        file.queued = generation
        if file.waits_since is None and rest_s is not None:
            file.waits_since = trio.current_time()
        await self._supersede(file)
        self.enter(file, rest_s)

    def enter(self, file: OpenFile, rest_s: float | None = None) -> None:
        """Have what is pending uploaded behind; until then the inode lives. See ``Queue.add``."""
        if not file.held:
            file.held = True
            self._tree.inodes.remember(file.inode)
        self._queue.add(file, rest_s)

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
                    await self._deploy(file, patient=False)
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
                if file.staged is not None and file.staged.goes_on and not await _is_lost(file):
                    # What was promised before is no file any more: it must not outlive this one.
                    await self._promise(file, self._settling.rest_s)
                await self._deploy(file)
        self._queue.done(file)

    async def _deploy_at_last(self, file: OpenFile) -> None:
        """Upload what waits and never rests. Raises what the server has said, and it waits on."""
        try:
            await self.deploy_dirty(file)
        except (JfsError, OSError) as error:
            # What it refuses for now may be for want of room, or of a token: whoever writes can do
            # something about that. What is refused for good the queue gives up soon.
            if not may_pass(error) or isinstance(error, AccessDenied | Conflict | QuotaExceeded):
                raise
            log.info("%s: waits on: %s", file.inode.path, error)

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
        if file.dirty and staged.goes_on:
            await self._go_back(file, staged)
            return
        if file.dirty:
            await staged.give_up(file.broken)
            if file.acknowledged is not None:
                self._fall_back(file, staged)
            else:
                self._abandon(file)
            return
        if file.passed is not None:
            return  # with the last of these handles: they map this file, whatever is written yet
        await self._adopting.adopt(file.info, staged)
        file.staged = None
        staged.close()

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
        self._shows_what_waits(file)

    async def _go_back(self, file: OpenFile, staged: StagingFile) -> None:
        """As ``_fall_back``, where newer content was written into what waits."""
        if file.broken is None and staged.entry is not None:  # whole, and not noted by the journal
            with suppress(OSError):
                await waiting.on_disk(set_apart, self._area.journal, staged.entry)
        try:
            await staged.change(staged.go_back)
        except OSError as error:  # the next mount will do it
            log.error("%s: what was closed last is not back: %s", file.inode.path, error)
            self._abandon(file)
            return
        self._shows_what_waits(file)

    def _shows_what_waits(self, file: OpenFile) -> None:
        file.broken = None
        file.generation += 1
        file.queued = file.tried = file.generation
        now = time.time_ns()
        self._attributes.set(file.inode, mtime_ns=now, ctime_ns=now, content=STAGED)
        self.enter(file)
        self._fell_back(file)

    def note_change(self, file: OpenFile, now: int | None = None) -> None:
        """Note that the content is about to change, or has at *now* (ns since 1970)."""
        file.generation += 1
        file.modified_ns = None
        file.drop_kept()
        file.inode.ahead = not file.detached
        now = time.time_ns() if now is None else now
        self._attributes.set(file.inode, mtime_ns=now, ctime_ns=now, content=STAGED)

    async def _change(self, file: OpenFile, staged: StagingFile) -> None:
        self.note_change(file)
        if not (entry := staged.entry) or file.detached or entry.record.state is State.WRITING:
            return
        if staged.goes_on:  # the journal goes on promising what was closed
            return
        size = file.base.size if file.base is not None else 0
        changes = {"base": digest_of(file.base), "base_size": size, "sha256": ""}
        await waiting.on_disk(lambda: entry.update(state=State.WRITING, **changes))

    async def _deploy(self, file: OpenFile, *, patient: bool = True) -> None:
        inode = file.inode
        if file.broken is not None:
            file.tried = file.generation
            raise file.broken
        staged = await self.on_disk.stage(file, file.size)
        generation = file.tried = file.generation
        staged.is_soft = False  # a thread reads it from now on, for as long as it takes
        try:
            info = await self._deployer.deploy(
                staged,
                inode.path,
                base=file.base,
                properties=inode.properties or {} if inode.local else {},
                modified_ns=file.modified_ns,
                patient=patient,
            )
        except (JfsError, OSError):
            await self._make_durable(staged)
            raise
        # no checkpoint: the file is what the server has now
        file.deployed = generation
        file.waits_since = None
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

    async def _make_durable(self, staged: StagingFile) -> None:
        """Let what waits survive a loss of power: it may wait for long."""
        entry = staged.entry
        if entry is not None and entry.record.state is State.PENDING and entry.record.boot:
            try:
                await waiting.on_disk(entry.make_durable, size=staged.size + waiting.SYNCED)
            except OSError as error:
                log.warning("%s: may not survive: %s", entry.record.path, disk_words(error))

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


async def _is_lost(file: OpenFile) -> bool:
    """Whether somebody has removed what is staged: it cannot wait, only we have it. OSError."""
    staged = file.staged
    if staged is None or staged.entry is None:
        return False
    entry = staged.entry
    with staged.in_use():
        return not await waiting.on_disk(lambda: entry.is_there)
