"""Very many entries of one folder, in little memory: 82 bytes an entry, its name, and an index.

As objects an entry takes a kilobyte, so that a folder of a million would need a gibibyte. Here its
facts are one record of a fixed size, its digests raw; what does not fit into a record (a symbolic
link's target) is kept beside. What listings do not say (creator, MIME type, md5) is not kept at
all.

Rows are found by name and by inode number without either being kept in order: the number is a hash
of the path, and the index is a table of rows by number. Storage grows in chunks: to grow one large
buffer malloc would copy it, and leave holes of its size.

One thread changes rows; others may read them meanwhile. Pure.
"""

import threading
import zlib
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from hashlib import blake2b
from struct import Struct
from typing import Final, overload

from jfs.model import Checksums, EntryInfo, FileInfo, FolderInfo, RepoPath

# From this many entries on a folder is kept packed. It costs a few microseconds for each look at
# an entry, so that small folders are not, as long as there are few objects in all.
MANY = 16_384

# size, modified, number, sha256, sha1, where the name ends in the names of the chunk, kind, holds
_RECORD = Struct("<QqQ32s20sIBB")
_SIZE = _RECORD.size
_NUMBER = Struct("<Q")
_NUMBER_AT, _END_AT, _KIND_AT, _HOLDS_AT = 16, 76, 80, 81
_END = Struct("<I")
_CHUNK_BITS = 12
_CHUNK = 1 << _CHUNK_BITS  # rows
_LAST = _CHUNK - 1
# Of a kind.
FOLDER: Final = 1
_SHA256, _SHA1, _BESIDE = 2, 4, 8
_CONTENT = FOLDER | _SHA256 | _SHA1 | _BESIDE
DEAD: Final = 16  # the name is nobody's by now, or another row's
TAKEN: Final = 32  # an object has the name, and knows more
HOLDS_MOST: Final = 255
_TIMES = range(-(1 << 63), 1 << 63)
_NO_SHA256, _NO_SHA1 = bytes(32), bytes(20)

_PREFIX_BITS, _REST_BITS = 20, 43
_REST = (1 << _REST_BITS) - 1


def number_of(path: str) -> int:
    """Return the inode number of a path: a hash, so that it is the same in every mount.

    Its first bits are those of the folder alone: by them the folder of a number is found, without
    a table of all numbers. ino_t is unsigned, but plenty of programs print and parse it signed.
    """
    digest = blake2b(path.encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return _first_number(path.rpartition("/")[0]) | int.from_bytes(digest, "big") & _REST


@lru_cache
def _first_number(folder: str) -> int:
    prefix = zlib.crc32(folder.encode("utf-8", "surrogateescape")) >> (32 - _PREFIX_BITS)
    return prefix << _REST_BITS


def prefix_of(number: int) -> int:
    """Return the part of a number that all entries of its folder share."""
    return number >> _REST_BITS


class Packed(Sequence[EntryInfo]):
    """See the module.

    Args:
        folder: of all entries.
        base: the path that numbers are made of; that of the folder, unless it has moved since.
        count: how many rows there will be, if that is known: nothing is held in reserve then.

    Attributes:
        folder: may be changed: all entries are there then.
        folders: how many of its rows are folders, without those that are ``DEAD`` or ``TAKEN``.
        displaced: rows whose number is not that of their path, since something else had it.
    """

    __slots__ = (
        "_beside",
        "_count",
        "_index",
        "_lock",
        "_mask",
        "_names",
        "_records",
        "base",
        "displaced",
        "folder",
        "folders",
    )

    def __init__(self, folder: RepoPath, base: str = "", count: int = 0) -> None:
        self.folder = folder
        self.folders = 0
        self.base = base or str(folder)
        self._count = 0
        self._records: list[bytearray] = []
        self._names: list[bytearray] = []
        self._beside: dict[int, EntryInfo] = {}
        self._index = _index(3 * count // 2)
        self._mask = len(self._index) - 1
        self.displaced: dict[str, list[int]] = {}
        self._lock = threading.Lock()  # no reader in another thread sees half of a change

    def __len__(self) -> int:
        """Return the number of rows, whatever has become of them."""
        return self._count

    @overload
    def __getitem__(self, row: int) -> EntryInfo: ...
    @overload
    def __getitem__(self, row: slice) -> list[EntryInfo]: ...
    def __getitem__(self, row: int | slice) -> EntryInfo | list[EntryInfo]:
        """Return the entry of a row, or those of a range that are not ``DEAD``."""
        if isinstance(row, slice):
            rows = range(*row.indices(self._count))
            return [self[each] for each in rows if not self.kind(each) & DEAD]
        if not 0 <= row < self._count:
            raise IndexError(row)
        with self._lock:
            chunk, at = self._records[row >> _CHUNK_BITS], (row & _LAST) * _SIZE
            size, modified, _, sha256, sha1, _, kind, _ = _RECORD.unpack_from(chunk, at)
            path = self.folder.child(self.name(row))
            if kind & _BESIDE:
                return _at(self._beside[row], path)
        if kind & FOLDER:
            return FolderInfo(path, modified)
        sums = Checksums(
            sha256.hex() if kind & _SHA256 else None, sha1.hex() if kind & _SHA1 else None
        )
        return FileInfo(path, size, sums, modified)

    def name(self, row: int) -> str:
        chunk, at = self._records[row >> _CHUNK_BITS], row & _LAST
        start = _END.unpack_from(chunk, (at - 1) * _SIZE + _END_AT)[0] if at else 0
        end = _END.unpack_from(chunk, at * _SIZE + _END_AT)[0]
        return self._names[row >> _CHUNK_BITS][start:end].decode("utf-8", "surrogatepass")

    def number(self, row: int) -> int:
        """Return its inode number."""
        chunk = self._records[row >> _CHUNK_BITS]
        found: int = _NUMBER.unpack_from(chunk, (row & _LAST) * _SIZE + _NUMBER_AT)[0]
        return found

    def kind(self, row: int) -> int:
        """Return bits: ``FOLDER``, ``DEAD``, ``TAKEN``, and more."""
        return self._records[row >> _CHUNK_BITS][(row & _LAST) * _SIZE + _KIND_AT]

    def kinds(self) -> bytes:
        """Return the kinds of all rows."""
        return b"".join(chunk[_KIND_AT::_SIZE] for chunk in self._records)

    def facts(self, row: int) -> tuple[str, int, int, int, int]:
        """Return name, kind, number, size and time of modification."""
        chunk, at = self._records[row >> _CHUNK_BITS], (row & _LAST) * _SIZE
        size, modified, number, _, _, _, kind, _ = _RECORD.unpack_from(chunk, at)
        return self.name(row), kind, number, size, modified

    def is_beside(self, row: int) -> bool:
        """Whether it is something that does not fit into a record."""
        return bool(self.kind(row) & _BESIDE)

    def mark(self, row: int, state: int) -> None:
        """Set what has become of a row: 0, ``DEAD`` or ``TAKEN``."""
        chunk, at = self._records[row >> _CHUNK_BITS], (row & _LAST) * _SIZE + _KIND_AT
        kind = chunk[at]
        chunk[at] = kind & _CONTENT | state
        self.folders += (kind & FOLDER) * ((not state) - (not kind & (DEAD | TAKEN)))

    def holds(self, row: int) -> int:
        return self._records[row >> _CHUNK_BITS][(row & _LAST) * _SIZE + _HOLDS_AT]

    def hold(self, row: int, count: int) -> None:
        """Note a small number of a row, which is the caller's: 0 to ``HOLDS_MOST``."""
        self._records[row >> _CHUNK_BITS][(row & _LAST) * _SIZE + _HOLDS_AT] = count

    def usual_number(self, name: str) -> int:
        """Return the inode number of a name, if nothing else has it."""
        return number_of(f"{self.base}/{name}")

    def named(self, name: str) -> Iterator[int]:
        """Return all rows that have or had a name."""
        number = self.usual_number(name)
        for row in self.numbered(number):
            if self.name(row) == name:
                yield row
        if self.displaced:
            yield from self.displaced.get(name, ())

    def find(self, name: str, state: int = 0) -> int:
        """Return the row that has a name and is in a state; -1: there is none."""
        for row in self.named(name):
            if self.kind(row) & (DEAD | TAKEN) == state:
                return row
        return -1

    def numbered(self, number: int) -> Iterator[int]:
        """Return all rows that have or had an inode number."""
        index, mask = self._index, self._mask
        at = number & mask
        while row := index[at]:
            if self.number(row - 1) == number:
                yield row - 1
            at = (at + 1) & mask

    def is_like(self, row: int, info: EntryInfo) -> bool:
        """Whether a row says all that could be kept of an entry; not when it was asked."""
        chunk, at = self._records[row >> _CHUNK_BITS], (row & _LAST) * _SIZE
        size, modified, _, sha256, sha1, _, kind, _ = _RECORD.unpack_from(chunk, at)
        known = kind & _CONTENT, size, modified, sha256, sha1
        return known == _content(info) and (
            not kind & _BESIDE or self._beside[row] == _at(info, self._beside[row].path)
        )

    def add(self, name: str, info: EntryInfo, number: int | None = None) -> int:
        """Append a row, and return it. Whether the name is there already is the caller's to look.

        Args:
            number: its inode number, if it is not that of its path.
        """
        row = self._count
        usual = self.usual_number(name)
        if number is None:
            number = usual
        elif number != usual:
            self.displaced.setdefault(name, []).append(row)
        kind, size, modified, sha256, sha1 = _content(info)
        if not row & _LAST:
            self._seal()
        names = self._names[-1]
        names += name.encode("utf-8", "surrogatepass")
        if kind & _BESIDE:
            self._beside[row] = info
        self._records[-1] += _RECORD.pack(size, modified, number, sha256, sha1, len(names), kind, 0)
        self._count += 1
        self.folders += kind & FOLDER
        if 3 * self._count > 2 * self._mask:
            self._grow()
        else:
            self._enter(self._index, self._mask, number, row)
        return row

    def put(self, row: int, info: EntryInfo) -> None:
        """Say something else of an entry that keeps its name and number."""
        content, size, modified, sha256, sha1 = _content(info)
        chunk, at = self._records[row >> _CHUNK_BITS], (row & _LAST) * _SIZE
        with self._lock:
            _, _, number, _, _, end, kind, holds = _RECORD.unpack_from(chunk, at)
            if not kind & (DEAD | TAKEN):
                self.folders += (content & FOLDER) - (kind & FOLDER)
            kind = kind & ~_CONTENT | content
            _RECORD.pack_into(chunk, at, size, modified, number, sha256, sha1, end, kind, holds)
            if content & _BESIDE:
                self._beside[row] = info
            else:
                self._beside.pop(row, None)

    def empty_files(self, start: int, stop: int) -> list[int]:
        """Return the rows of a range that are files without content."""
        found = []
        for row in range(start, min(stop, self._count)):
            chunk, at = self._records[row >> _CHUNK_BITS], (row & _LAST) * _SIZE
            if not any(chunk[at : at + 8]) and not chunk[at + _KIND_AT] & FOLDER:
                found.append(row)
        return found

    def rebase(self, base: str) -> None:
        """Make all numbers anew. Nobody may know any of them yet."""
        self.base = base
        self.displaced.clear()
        for row in range(self._count):
            chunk, at = self._records[row >> _CHUNK_BITS], (row & _LAST) * _SIZE
            _NUMBER.pack_into(chunk, at + _NUMBER_AT, self.usual_number(self.name(row)))
        self._grow()

    def trim(self) -> None:
        """Give back what the last chunk has in reserve: an eighth of its size."""
        if self._records:
            self._records[-1] = bytearray(bytes(self._records[-1]))
            self._names[-1] = bytearray(bytes(self._names[-1]))

    def _seal(self) -> None:
        """Begin a chunk."""
        self.trim()
        self._records.append(bytearray())
        self._names.append(bytearray())

    def _grow(self) -> None:
        """Make the index anew, large enough for what there is."""
        index = _index(3 * self._count)  # a third full by then; add() goes on to two thirds
        mask = len(index) - 1
        for row in range(self._count):
            self._enter(index, mask, self.number(row), row)
        self._index, self._mask = index, mask

    @staticmethod
    def _enter(index: "array[int]", mask: int, number: int, row: int) -> None:
        at = number & mask
        while index[at]:
            at = (at + 1) & mask
        index[at] = row + 1


class Changes(Packed):
    """What a new listing says otherwise than what is known, and what it says is as it was.

    Both together would need twice the memory, to say mostly the same.

    Args:
        known: rows of the folder.

    Attributes:
        seen: for each row of *known* whether the new listing has it, unchanged.
    """

    __slots__ = ("known", "seen")

    def __init__(self, folder: RepoPath, known: Packed) -> None:
        super().__init__(folder)
        self.known = known
        self.seen = bytearray(len(known))

    def take(self, name: str, info: EntryInfo) -> bool:
        """Note an entry of the new listing; False: its name was there already.

        One without content is always a change: it may be a link by now, or none any more.
        """
        if len(self) and self.find(name) >= 0:
            return False
        for row in self.known.named(name):
            if row < len(self.seen) and not self.known.kind(row) & DEAD:
                if self.seen[row]:
                    return False
                if not _is_empty(info) and self.known.is_like(row, info):
                    self.seen[row] = 1
                    return True
        self.add(name, info)
        return True


class Gathered:
    """Entries of a folder as they come: objects at first, packed when they get many.

    Args:
        known: what is known of the folder, if that is packed; only changes are gathered then.
    """

    def __init__(self, folder: RepoPath, known: Packed | None = None) -> None:
        self._folder = folder
        self._objects: dict[str, EntryInfo] = {}
        self._packed: Packed | None = None if known is None else Changes(folder, known)

    @property
    def is_packed(self) -> bool:
        return self._packed is not None

    @property
    def entries(self) -> Sequence[EntryInfo]:
        """What has come; ``Packed`` of many, ``Changes`` if something was known."""
        return list(self._objects.values()) if self._packed is None else self._packed

    def add(self, name: str, info: EntryInfo) -> bool:
        """Take one more entry; False: the name was there already, and has what it had."""
        packed = self._packed
        if packed is None:
            objects = self._objects
            if objects.setdefault(name, info) is not info:
                return False
            if len(objects) > MANY:
                self._packed = Packed(self._folder)
                for each, known in self._objects.items():
                    self._packed.add(each, known)
                self._objects.clear()
            return True
        if isinstance(packed, Changes):
            return packed.take(name, info)
        if packed.find(name) >= 0:
            return False
        packed.add(name, info)
        return True


def _index(places: int) -> "array[int]":
    """Make an index of so many places at least: each has row + 1, or 0 if it is free."""
    size = 16
    while places > size:
        size *= 2
    return array("H" if size <= 1 << 16 else "I", [0]) * size


def _content(info: EntryInfo) -> tuple[int, int, int, bytes, bytes]:
    """Return what a record says of an entry: kind, size, time and digests."""
    if isinstance(info, FolderInfo):
        if info.listed and info.modified_ns in _TIMES:
            return FOLDER, 0, info.modified_ns, _NO_SHA256, _NO_SHA1
        return FOLDER | _BESIDE, 0, 0, _NO_SHA256, _NO_SHA1
    kind, sha256, sha1 = 0, _NO_SHA256, _NO_SHA1
    try:
        if info.checksums.sha256:
            kind, sha256 = kind | _SHA256, bytes.fromhex(info.checksums.sha256)
        if info.checksums.sha1:
            kind, sha1 = kind | _SHA1, bytes.fromhex(info.checksums.sha1)
    except ValueError:
        kind = _BESIDE
    fits = len(sha256) == len(_NO_SHA256) and len(sha1) == len(_NO_SHA1)
    if not fits or kind & _BESIDE or info.link_target is not None or info.modified_ns not in _TIMES:
        return _BESIDE, info.size, 0, _NO_SHA256, _NO_SHA1
    return kind, info.size, info.modified_ns, sha256, sha1


def _is_empty(info: EntryInfo) -> bool:
    return isinstance(info, FileInfo) and not info.size


def _at(info: EntryInfo, path: RepoPath) -> EntryInfo:
    return replace(info, path=path)
