"""What ``close`` has promised of a staged file, while newer content is written into the same file.

A program that opens its file again and again would else cost a copy of all of it each time. So the
file is changed in place; of what was promised that is overwritten or cut goes to ``ID.undo`` first,
and the record says how long the promised content is. What is appended needs nothing.

If the mount dies before the file is closed again, whoever finds it puts the promised content back
(``settled``), and sets apart what was newer, as a file that was never closed. Nothing here waits
for the disk: this is of promises that hold for as long as the machine runs (``records``).

A piece of the undo file: where it was, how long, whether its bytes follow (else they are zeros),
and a sum over all of that: a piece that is not whole was not followed by its overwriting. Blocking;
one thread at a time.
"""

import os
import struct
import zlib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from jfs.disk import copy_data, read_at
from jfs.extents import Extent, ExtentSet, MiB
from jfs.vfs.writing.journal import Entry, Journal
from jfs.vfs.writing.records import State

_HEADER = struct.Struct("<QQ?")
_SUM = struct.Struct("<I")
_PIECE = 1 * MiB
_FLAGS = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW


class Undo:
    """What is kept of the first *size* bytes of a staged file, as they are now. Raises OSError."""

    def __init__(self, entry: Entry, size: int) -> None:
        self.size = size
        self._entry = entry
        self._path = entry.undo_path
        self._path.unlink(missing_ok=True)
        self._file = -1
        self._end = 0
        self._kept = ExtentSet()
        entry.update(promised=size)

    def keep(self, changed: Extent) -> None:
        """Keep what was promised there, before it is changed. Raises OSError: it must not be."""
        for gap in self._kept.missing(changed.clipped(self.size)):
            for piece in gap.pieces(_PIECE):
                self._keep(piece)
                self._kept.add(piece)

    def _keep(self, piece: Extent) -> None:
        if self._file < 0:
            self._file = os.open(self._path, _FLAGS, 0o600)
        data = read_at(self._entry.file, piece.size, piece.start)
        if len(data) != piece.size:
            raise OSError(f"a staged file ends at {piece.start + len(data)}")
        is_full = data.count(0) != len(data)
        header = _HEADER.pack(piece.start, piece.size, is_full)
        content = header + data if is_full else header
        view = memoryview(content + _SUM.pack(zlib.crc32(content)))
        position = self._end
        while view:
            written = os.pwrite(self._file, view, position)
            position += written
            view = view[written:]
        self._end = position

    def put_back(self) -> None:
        """Make the file what was promised. Raises OSError: it is not, or not all of it."""
        kept = _pieces_of(self._file) if self._file >= 0 else ()  # its name may have gone
        _put_back(self._entry.file, kept, self.size)
        self._entry.update(promised=None)

    def leave(self) -> None:
        """Close its file, and leave what was kept to whoever finds it."""
        file, self._file = self._file, -1
        if file >= 0:
            os.close(file)

    def close(self) -> None:
        """Remove what was kept: nobody will want it back."""
        if self._file >= 0:
            self.leave()
            with suppress(OSError):  # of no use, and known to be
                self._path.unlink(missing_ok=True)


def settled(journal: Journal, entry: Entry) -> None:
    """Make what a mount has left what it had promised; what was newer is set apart beside it.

    Raises OSError: nothing was done, or it can be done again.
    """
    size = entry.record.promised
    if size is None:
        return
    for _ in _pieces(entry.undo_path):
        pass  # what cannot be read now is not set apart each time that somebody looks
    set_apart(journal, entry)
    _put_back(entry.file, _pieces(entry.undo_path), size)
    entry.update(promised=None)
    entry.undo_path.unlink(missing_ok=True)


def set_apart(journal: Journal, entry: Entry) -> None:
    """Keep what a file holds now as one of its own, which was never closed. Raises OSError."""
    plain = {"promised": None, "boot": "", "supersedes": (), "sha256": "", "error": ""}
    counts = {"queued_ns": 0, "tries": 0, "next_ns": 0}
    newer = journal.create(replace(entry.record, state=State.WRITING, **plain, **counts))  # type: ignore[arg-type]
    try:
        copy_data(entry.file, newer.file)
    except BaseException:
        newer.remove()
        raise
    finally:
        newer.close()


def _put_back(data: int, kept: Iterable[tuple[Extent, bytes]], size: int) -> None:
    for piece, content in kept:
        view = memoryview(content)
        position = piece.start
        while view:
            written = os.pwrite(data, view, position)
            position += written
            view = view[written:]
    os.ftruncate(data, size)


def _pieces(undo: Path) -> Iterator[tuple[Extent, bytes]]:
    """Yield what was kept, as far as it is whole. Nothing may have been."""
    try:
        file = os.open(undo, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return
    try:
        yield from _pieces_of(file)
    finally:
        os.close(file)


def _pieces_of(file: int) -> Iterator[tuple[Extent, bytes]]:
    position = 0
    while len(header := read_at(file, _HEADER.size, position)) == _HEADER.size:
        start, size, is_full = _HEADER.unpack(header)
        if size > _PIECE:
            return
        rest = read_at(file, (size if is_full else 0) + _SUM.size, position + len(header))
        content, summed = rest[: -_SUM.size], rest[-_SUM.size :]
        if len(rest) < _SUM.size or _SUM.unpack(summed) != (zlib.crc32(header + content),):
            return
        if len(content) != (size if is_full else 0):
            return
        yield Extent(start, start + size), content or bytes(size)
        position += len(header) + len(rest)
