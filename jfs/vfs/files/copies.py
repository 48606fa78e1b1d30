"""What is copied without being read: COPY_FILE_RANGE, which ``cp`` and most libraries use.

A copy from the first byte on, of content that the server has, is that content (``writing.lent``):
nothing is fetched, and at its close the server is told the digest. It may come in pieces, and end
before the source does. What is staged here is copied on this disk, which may share it. All else the
kernel copies by itself, by READ and WRITE: what lies in the middle of an artifact would have to be
fetched anyway. With --write-back, too, of what the server has: the bytes of what was closed are on
this disk.

Properties are not copied, as by ``cp`` in a directory. Trio thread only.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from jfs.errors import BadHandle, RemoteError
from jfs.extents import Extent, MiB
from jfs.model import ArtifactVersion
from jfs.vfs.files.openfile import OpenFile
from jfs.vfs.files.table import OpenFiles
from jfs.vfs.namespace.inodes import Inode
from jfs.vfs.reading.reader import ContentReader, DataPlane
from jfs.vfs.writing.area import StagingArea
from jfs.vfs.writing.staging import StagingFile

_MOST = 0xFFFFF000  # the answer has 32 bits for it
_ON_DISK = 64 * MiB  # where the disk does not share it, a moment's work
_SHA256 = "sha256:"


class Copies:
    """See the module.

    Args:
        written: awaited when something was written through a handle.
    """

    def __init__(
        self,
        files: OpenFiles,
        plane: DataPlane,
        area: StagingArea | None,
        written: Callable[[int, Inode], Awaitable[None]],
    ) -> None:
        self._files = files
        self._plane = plane
        self._written = written
        self._write_back = area is not None and area.settings.write_back

    async def copy(
        self, source: int, start: int, handle: int, offset: int, size: int
    ) -> int | None:
        """Copy up to *size* bytes from one handle to another.

        Returns:
            How many; 0: the source ends there; None: the kernel shall do it.
        Raises:
            BadHandle, Stale, JfsError, OSError: as a write does.
        """
        origin, target = self._files.handle(source), self._files.handle(handle)
        if origin is None or target is None:  # what the mount says of itself
            return None
        if not target.writes:
            raise BadHandle(f"handle {handle} is not open for writing")
        if origin.file is target.file or target.file.passed is not None:
            return None
        self._files.require_writer(target.file.inode).cut(target.file)
        async with target.file.lock:
            target.file.require_current()
            origin.file.require_current()
            count = await self._copy(origin.file, Extent(start, start + size), target.file, offset)
        if count:
            await self._written(handle, target.file.inode)
        return count

    async def _copy(
        self, origin: OpenFile, extent: Extent, file: OpenFile, offset: int
    ) -> int | None:
        writer, staged = self._files.require_writer(file.inode), origin.staged
        extent = Extent(extent.start, min(extent.stop, extent.start + _MOST)).clipped(origin.size)
        if not extent:
            return 0
        try:
            if staged is None or staged.lent is not None:
                lent = self._lent(origin, extent, file, offset)
                if lent is None:
                    return None
                await writer.change(file, 0, StagingFile.borrow, lent)
                file.broken = None  # whatever was there, nothing of it is left
            else:
                extent = Extent(extent.start, min(extent.stop, extent.start + _ON_DISK))
                replaces = not offset and extent.size >= file.size
                keep = 0 if replaces else file.size
                with staged.in_use():
                    await writer.change(file, keep, StagingFile.copy, offset, staged, extent)
        finally:
            file.written += 1
        return extent.size

    def _lent(
        self, origin: OpenFile, extent: Extent, file: OpenFile, offset: int
    ) -> "_Content | None":
        """Return what *file* consists of after the copy, if that is the beginning of a content."""
        version, source, generation = origin.info.version, origin, origin.generation
        if origin.staged is not None and isinstance(of := origin.staged.lent, _Content):
            version, source, generation = of.version, of.source, of.generation
        if version is None or not version.content.digest.startswith(_SHA256):
            return None
        if extent.start != offset or self._write_back:
            return None
        before = file.staged.lent if file.staged is not None else None
        known = 0
        if isinstance(before, _Content) and before.version.content == version.content:
            known = before.size
        if offset > known or max(extent.stop, known) < file.size:
            return None
        size = max(extent.stop, known)
        return _Content(self._plane, version, size, source, generation)


@dataclass(eq=False, slots=True)
class _Content:
    """The beginning of a content that the server has: ``writing.lent.Lent``.

    Attributes:
        source, generation: where it was copied from, and how often that was changed by then.
    """

    plane: DataPlane
    version: ArtifactVersion
    size: int
    source: OpenFile
    generation: int
    _reader: ContentReader | None = None
    _is_closed: bool = False

    @property
    def sha256(self) -> str:
        return self.version.content.digest.removeprefix(_SHA256)

    @property
    def is_whole(self) -> bool:
        return self.size == self.version.size

    async def read(self, extent: Extent) -> bytes:
        extent = extent.clipped(self.size)
        try:
            return await self._read(extent)
        except RemoteError:
            # Its name may have gone here: then it is on this disk for who still has it open.
            kept = self.source.staged
            if not self.source.detached or kept is None or self.source.generation > self.generation:
                raise
            return await kept.read(extent)

    async def _read(self, extent: Extent) -> bytes:
        reader = self._reader
        if reader is None:
            reader = await self.plane.open(self.version)
            # no checkpoint
            if self._reader is None and not self._is_closed:
                self._reader = reader
        try:
            return bytes(await reader.read(extent))
        finally:
            if reader is not self._reader:
                self.plane.nursery.start_soon(reader.close)

    def close(self) -> None:
        self._is_closed = True
        reader, self._reader = self._reader, None
        if reader is not None:
            self.plane.nursery.start_soon(reader.close)
