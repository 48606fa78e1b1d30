"""A file that is being written: bytes on local disk, hashed on the way while they come in order.

Blocking, except where it says otherwise; one writing thread at a time (the owner's lock), any
number that read. Hashing has threads of its own (``hashing``): sha256 runs at 1.4 GB/s beside the
writes, so that a file that was written front to back needs no second look when it is closed. What
was written out of order is hashed once it is closed.
"""

import logging
import os
import threading
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from jfs import waiting
from jfs.disk import allocate, copy_at, punch, read_at
from jfs.errors import (
    FileTooLarge,
    IntegrityError,
    disk_words,
    is_not_supported,
)
from jfs.extents import Extent, MiB
from jfs.model import Properties
from jfs.vfs.writing.changes import Changes
from jfs.vfs.writing.follower import Follower
from jfs.vfs.writing.hand import Hand, Task
from jfs.vfs.writing.hashing import RunningHash
from jfs.vfs.writing.journal import Entry
from jfs.vfs.writing.lent import Lent
from jfs.vfs.writing.room import Room, keep_half
from jfs.vfs.writing.undo import Undo
from jfs.vfs.writing.unseen import Sized

log = logging.getLogger(__name__)

_PIECE = 1 * MiB
# The kernel frees the pages of a file that is gone when it is closed: 40 ms for each GiB.
_FREED_AT_ONCE = 32 * MiB


class StagingFile(Sized):
    """The bytes of one file; made by ``StagingArea``.

    Attributes:
        ordered: so many bytes from the beginning on were written, or more.
        inherits: it may have begun as a copy of older content.
        overlap: who sends it while it is written, or did; None: nobody.
        is_gone: nobody needs it any more.
        grown, grown_at: told once *ordered* reaches that.
        entry: in the journal; None for content that shall never be uploaded.
        sent: digests of what was deployed from it, whether the server has said yes or not.
        properties: which the server had at the place, as of a try that failed.
        lent: what it consists of; None: of its bytes on this disk.
        is_soft: it is PENDING, no upload of it has begun, and its promise holds for as long as the
            machine runs: newer content may be written into it.
    """

    def __init__(
        self,
        file: int,
        entry: Entry | None,
        running_hash: RunningHash,
        hand: Hand,
        room: Room,
        size: int,
    ) -> None:
        super().__init__(file, size)
        self.entry = entry
        self.sent: set[str] = set()
        self.properties: Properties = {}
        self.ordered = 0
        self.inherits = size > 0 or (entry is not None and entry.record.base is not None)
        self.overlap: Follower | None = None
        self.is_gone = False
        self.grown: Callable[[StagingFile], None] | None = None
        self.grown_at = 0
        self._in_order = True
        self.lent: Lent | None = None
        self.is_soft = False
        self._undo: Undo | None = None
        self._hash = running_hash
        self._room = room
        self._changes = Changes(hand, room)
        self._users = 0
        self._closing = False

    def grew(self) -> None:
        """Take what the kernel has written for written in order. Does not wait for the disk.

        Whoever sends it meanwhile compares: nothing that is wrong takes its place.
        """
        if self.unseen is None or not self._in_order:
            return
        if self.ordered < (size := self.unseen.size) <= self._room.largest:
            self._followed(self.ordered, size)

    def take_back(self) -> None:
        """The kernel writes to it no more."""
        if self.unseen is not None:
            self.grew()
            self._size, self.unseen = self.unseen.size, None
            self._hash.rewind(0)

    async def change(self, call: Callable[..., None], *args: object) -> None:
        """Call ``write`` or ``truncate`` in a thread. Trio thread. Raises as those; DiskHangs."""
        await self._changes.make(call, *args)

    @property
    def is_free(self) -> bool:
        """Whether ``write_at_once`` would be over at once, as far as is known."""
        return self.lent is None and self._changes.is_free

    def write_at_once(self, offset: int, data: bytes) -> Task | None:
        """As ``change`` with ``write``; see ``Changes.at_once``. Only if it ``is_free``."""
        return self._changes.at_once(self.write, offset, data)

    async def end_of(self, task: Task, size: int) -> None:
        """Return once what was begun at once is over. Raises as ``change``. Trio thread."""
        await self._changes.end_of(task, size)

    def write(self, offset: int, data: bytes) -> None:
        """Write all of *data*.

        Raises:
            OSError: the disk refuses, and some of it may be there. FileTooLarge: nothing is.
        """
        self._require_size(offset + len(data))
        if self._undo is not None:
            self._undo.keep(Extent(offset, offset + len(data)))
        view = memoryview(data)
        position = offset
        try:
            while view:
                written = os.pwrite(self.file, view, position)
                position += written
                view = view[written:]
        except OSError:
            self._hash.rewind(offset)
            raise
        finally:
            if position > offset:  # a write of which nothing came to the disk extends nothing
                self.size = max(self.size, position)
                self._followed(offset, position)
        self._hash.wrote(offset, len(data))

    def truncate(self, size: int) -> None:
        """Cut or extend by a hole, for which there is room. Raises OSError, FileTooLarge."""
        self._require_size(size)
        if size > self.size:
            self._room.require(size, self.file)
        if self._undo is not None:
            self._undo.keep(Extent(size, max(size, self.size)))
        self._in_order = self._in_order and size <= self.size  # or a hole is no sign of a write
        os.ftruncate(self.file, size)
        self._hash.cut(size)
        self.size = size
        self.ordered = min(self.ordered, size)
        self.inherits = self.inherits and size > 0
        if self.overlap is not None:
            self.overlap.changed(size)

    def reserve(self, offset: int, size: int) -> None:
        """Have room for bytes, beyond the end, too, which stays. Raises OSError, FileTooLarge."""
        self._require_size(offset + size)
        try:
            allocate(self.file, offset, size)
        except OSError as error:
            if not is_not_supported(error):
                os.ftruncate(self.file, self.size)  # what it had reserved beyond the end so far
                raise
            self._room.require(max(offset + size, self.size), self.file)

    def zero(self, offset: int, size: int) -> None:
        """Make bytes zeros that there are. Raises OSError."""
        stop = min(offset + size, self.size)
        if offset >= stop:
            return
        if self._undo is not None:
            self._undo.keep(Extent(offset, stop))
        try:
            punch(self.file, offset, stop - offset)
        except OSError as error:
            if not is_not_supported(error):
                raise
            for piece in Extent(offset, stop).pieces(_PIECE):
                self.write(piece.start, bytes(piece.size))
        finally:  # not before: who hashes or sends beside us might still read what was there
            self._hash.rewind(offset)
            if self.overlap is not None:
                self.overlap.changed(offset)

    async def require_room(self, size: int, *, replaces: int = 0) -> None:
        """Make sure that so many bytes can be here, before they are brought. Trio thread. OSError.

        What is small is not looked at: to ask costs more than to fail.

        Args:
            replaces: size of what the file was. It is emptied, and may become as large again: that
                there is no room for it is only said, as nobody knows.
        """
        if size > _PIECE:
            await waiting.on_disk(self._room.require, size, self.file)
        elif (
            replaces > _PIECE
            and self.entry is not None
            and await waiting.on_disk(self._room.lacks, replaces, self.file)
        ):
            log.warning(
                "%s: %d bytes are to be replaced, and the staging directory's disk has no room for "
                "as many",
                self.entry.record.path,
                replaces,
            )

    async def give_up(self, error: OSError | None) -> None:
        """Note that it will not be uploaded. What a person may still want stays. Trio thread.

        Args:
            error: which a write met: it is half a file.
        """
        if self.lent is not None:  # there are no bytes of it
            await forgotten(self)
        elif self.entry is not None and error is not None:
            await waiting.staging_disk().end(partial(keep_half, self.entry, error))

    def trim(self) -> None:
        """Give back what was reserved beyond the end, and never written. Raises OSError."""
        if os.fstat(self.file).st_blocks * 512 > self.size + _PIECE:
            os.ftruncate(self.file, self.size)

    def copy(self, offset: int, source: "StagingFile", extent: Extent) -> None:
        """Write bytes of another one, which the disk may share. Raises as ``write``."""
        self._require_size(offset + extent.size)
        if self._undo is not None:
            self._undo.keep(Extent(offset, offset + extent.size))
        position = extent.start
        while position < extent.stop:
            to = offset + position - extent.start
            self._hash.rewind(to)
            count = copy_at(source.file, position, self.file, to, extent.stop - position)
            position += count
            self.size = max(self.size, to + count)
            self._followed(to, to + count)
            self._hash.wrote(to, count)

    def borrow(self, lent: Lent) -> None:
        """Consist of *lent*, whatever was here. Raises OSError."""
        if self.size:
            self.truncate(0)
        if self.entry is not None:
            self.entry.update(lent=True)
        self.lent, self.size, self.inherits = lent, lent.size, True

    async def own(self, size: int) -> None:
        """Have the first *size* bytes of what is lent on this disk, and no more. Trio thread.

        Raises RemoteError, IntegrityError, OSError: it stays lent.
        """
        lent, entry = self.lent, self.entry
        if lent is None:
            return
        await self.require_room(min(size, lent.size))
        for piece in Extent(0, min(size, lent.size)).pieces(_PIECE):
            data = await lent.read(piece)
            if len(data) != piece.size:
                raise IntegrityError(f"what was copied ends at {piece.start + len(data)}")
            await self.change(self._fill, piece.start, data)
        if entry is not None:
            await waiting.on_disk(lambda: entry.update(lent=False))
        self.lent, self.size = None, min(size, lent.size)
        lent.close()

    def _fill(self, offset: int, data: bytes) -> None:
        size = self.size
        self.write(offset, data)
        self.size = size

    def _followed(self, start: int, stop: int) -> None:
        before = self.ordered
        if start <= before:
            self.ordered = max(before, stop)
        if self.overlap is not None:
            self.overlap.changed(start)
        elif before < self.grown_at <= self.ordered and self.grown is not None:
            self.grown(self)

    @property
    def goes_on(self) -> bool:
        """Whether newer content is being written into what ``close`` has promised."""
        return self._undo is not None

    def go_on(self) -> None:
        """Have what was promised kept while newer content is written into it. Raises OSError."""
        assert self.entry is not None
        self._undo = Undo(self.entry, self.size)

    def promised(self) -> None:
        """Let go of what was promised before: the journal promises what there is now."""
        undo, self._undo = self._undo, None
        if undo is not None:
            undo.close()

    def go_back(self) -> None:
        """Become what was promised again. Raises OSError: it may be so in part."""
        assert self._undo is not None
        self._undo.put_back()
        self.size = self._undo.size
        self.ordered = min(self.ordered, self.size)
        self._hash.cut(0)
        if self.overlap is not None:
            self.overlap.changed(0)
        self.promised()

    def _require_size(self, size: int) -> None:
        # A hole costs this disk nothing and the upload all of its size: what could not be on this
        # disk is no file of models.
        if size > self._room.largest:
            raise FileTooLarge(f"{size} bytes are more than the staging directory's disk has")

    async def read(self, extent: Extent) -> bytes:
        """Return bytes, from a thread; fewer only at the end. Trio thread.

        Raises OSError; of what is lent RemoteError, IntegrityError, too.
        """
        if self.lent is not None:
            return await self.lent.read(extent)
        with self.in_use():
            return await waiting.on_disk(read_at, self.file, extent.size, extent.start)

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Keep it open: its descriptor would soon be another file's. Trio thread."""
        self._users += 1
        try:
            yield
        finally:
            self._users -= 1
            if self._closing and not self._users:
                self._close()

    def sha256(self) -> str:
        """Return the digest of all that was written. Raises OSError, FileTooLarge."""
        if self.lent is not None and self.lent.is_whole:
            return self.lent.sha256
        if self.was_passed:  # no write of the kernel was asked for its place
            self._require_size(self.size)
        if self.seal():
            self._hash.rewind(0)
        return self._hash.digest(self.size)

    def sums(self, sha256: str) -> "array[int] | None":
        """Return the sums of its blocks if it has this digest; None: they are not known."""
        return self._hash.sums(self.size, sha256)

    def forget(self) -> None:
        """Take it out of the journal: it is on the server, or nobody wants it. Raises OSError."""
        self._give_up()
        if self.entry is not None:
            self.entry.remove()

    def forget_quietly(self) -> None:
        """As ``forget``, but a disk that refuses is only logged.

        What stays is looked at by the next mount: the server has it, or nobody was promised it.
        """
        try:
            self.forget()
        except OSError as error:
            assert self.entry is not None
            log.warning("%s: stays in the journal: %s", self.entry.record.path, disk_words(error))

    def unmake(self) -> None:
        """Forget and close it: whoever wanted it has given up. Blocking; any thread."""
        self.forget_quietly()
        self._close_now()

    def close(self) -> None:
        """Close the file, after its readers; the journal keeps what it has. Trio thread."""
        self._give_up()
        self.take_back()
        self._closing = True
        if self.lent is not None:
            self.lent.close()
        if not self._users:
            self._close()

    def _give_up(self) -> None:
        self.is_gone = True
        if self.overlap is not None:
            self.overlap.give_up()

    def _close(self) -> None:
        # A change that was given up may use the descriptor yet; and to close waits for the disk.
        waits = waiting.may_hang() or self._changes.is_busy or self._hash.is_busy
        is_last = self.entry is None or self.entry.is_removed
        if waits or (is_last and self._size > _FREED_AT_ONCE):
            try:
                threading.Thread(target=self._close_now, daemon=True).start()
                return
            except RuntimeError:  # at the limit of processes
                if waits:
                    raise
        self._close_now()

    def _close_now(self) -> None:
        self._changes.after_all(self._close_file)

    def _close_file(self) -> None:
        self._hash.end()
        if self._undo is not None:  # whoever finds it needs that
            self._undo.leave()
        if self.entry is not None:
            self.entry.close()
        elif self.file >= 0:
            os.close(self.file)
        self.file = -1


async def forgotten(staged: StagingFile) -> None:
    """Call ``forget_quietly`` in a thread; at a disk that hangs it is done later. Trio thread."""
    await waiting.staging_disk().end(staged.forget_quietly)
