"""What fallocate(2) asks for: room on the staging directory's disk, zeros. Trio thread only."""

from jfs.errors import BadHandle, InvalidArgument, Unsupported
from jfs.vfs.files.openfile import OpenFile
from jfs.vfs.files.table import OpenFiles
from jfs.vfs.files.writer import Writer
from jfs.vfs.writing.staging import StagingFile

KEEP_SIZE, _PUNCH_HOLE, _ZERO_RANGE = 1, 2, 16  # linux/falloc.h
_ZEROS = _PUNCH_HOLE | _ZERO_RANGE


class Reserving:
    """See the module.

    ================================= ==========================================================
    mode                              what becomes of the file
    ================================= ==========================================================
    0                                 is so long, at least; there is room for it
    KEEP_SIZE                         there is room for it, once it grows
    PUNCH_HOLE, ZERO_RANGE            the bytes are zeros
    COLLAPSE_RANGE and others         refused (EOPNOTSUPP)
    ================================= ==========================================================

    Room is kept in what is staged. An artifact that nobody has changed yet, or what is queued and
    stays as it is, needs room for all of it with the first change: then it is only looked whether
    there is as much.
    """

    def __init__(self, files: OpenFiles) -> None:
        self._files = files

    async def reserve(self, handle: int, mode: int, offset: int, size: int) -> None:
        """Answer a call. Raises Unsupported, InvalidArgument, BadHandle, JfsError, OSError."""
        opened = self._files.handle(handle)
        if opened is None or not opened.writes:
            raise BadHandle(f"handle {handle} is not open for writing")
        if mode & ~(KEEP_SIZE | _ZEROS) or mode in (_PUNCH_HOLE, _ZEROS, _ZEROS | KEEP_SIZE):
            raise Unsupported(f"fallocate with mode {mode:#x}: bytes of an artifact have one place")
        if offset < 0 or size <= 0:
            raise InvalidArgument(f"fallocate of {size} bytes at {offset}")
        file = opened.file
        writer = self._files.require_writer(file.inode)
        writer.cut(file)
        async with file.lock:
            file.require_current()
            try:
                if mode & _ZEROS and offset < file.size:
                    await writer.change(file, file.size, StagingFile.zero, offset, size)
                if not mode & _PUNCH_HOLE:
                    await self._reserve(writer, file, mode, offset, size)
            finally:
                file.written += 1

    async def _reserve(
        self, writer: Writer, file: OpenFile, mode: int, offset: int, size: int
    ) -> None:
        before = file.size
        if not mode & KEEP_SIZE and offset + size > before:
            await writer.truncate(file, offset + size)
        staged = file.staged
        if (
            staged is None
            or staged.lent is not None
            or (file.is_pending and not staged.is_soft)  # the next change copies it
        ):
            await self._files.require_room(max(offset + size, file.size))
            return
        try:
            await staged.change(staged.reserve, offset, size)
        except OSError:
            if file.size > before:
                await writer.truncate(file, before)
            raise
