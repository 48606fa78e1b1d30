"""What is on this disk of an open file: to be changed and uploaded, or to be read on.

Everything here wants the lock of the open file held. Trio thread only.
"""

import logging
from functools import partial

import trio

from jfs import waiting
from jfs.errors import ProtocolViolation, Stale, disk_words
from jfs.extents import Extent, GiB, MiB
from jfs.vfs.files.openfile import OpenFile, reader_of
from jfs.vfs.reading.reader import DataPlane
from jfs.vfs.writing.area import StagingArea
from jfs.vfs.writing.staging import StagingFile, forgotten

log = logging.getLogger(__name__)

_COPY_PIECE = 1 * MiB
# Content that is open while its name goes is copied to this disk first, up to so many bytes; the
# server forgets it with its name. Readers of more get ESTALE, as after a change from elsewhere.
_KEPT_FOR_READERS = 1 * GiB


class OnDisk:
    """See the module."""

    def __init__(self, plane: DataPlane, area: StagingArea) -> None:
        self._plane = plane
        self._area = area

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

    async def stage(self, file: OpenFile, size: int) -> StagingFile:
        """Make the file staged, with the first *size* bytes of what it shows.

        Raises JfsError, OSError.
        """
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

    async def stage_newer(self, file: OpenFile, size: int) -> StagingFile:
        """As ``stage``, to be changed: what is queued stays as it is beside it.

        Or in it, if its promise is soft: ``writing.undo``.
        """
        staged = await self.stage(file, size)
        await staged.own(size)
        keeps_little = 2 * size < staged.size or not size
        if staged.goes_on if not file.is_pending else staged.is_soft:
            if not keeps_little:  # a copy of what stays would be more than what goes
                if not staged.goes_on:
                    await staged.change(staged.go_on)
                return staged
        elif not file.is_pending:
            return staged
        successor = self._area.successor
        newer = await waiting.on_disk(
            successor, staged, size, late=StagingFile.unmake, size=2 * size
        )
        if staged.goes_on:
            try:
                await staged.change(staged.go_back)
            except BaseException as error:
                if isinstance(error, OSError):
                    file.broken = error  # some of it may be what was promised, and some newer
                await forgotten(newer)
                newer.close()
                raise
        file.acknowledged, file.staged = staged, newer
        return newer

    async def _copy(self, file: OpenFile, staged: StagingFile, size: int) -> None:
        await staged.require_room(size, replaces=0 if size else file.info.size)
        reader = await reader_of(file, self._plane) if size else None
        for piece in Extent(0, size).pieces(_COPY_PIECE):
            assert reader is not None
            data = bytes(await reader.read(piece))
            if len(data) != piece.size:
                raise ProtocolViolation(f"{file.inode.path}: ends at {piece.start + len(data)}")
            await staged.change(staged.write, piece.start, data)
