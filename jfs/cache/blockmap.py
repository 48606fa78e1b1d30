"""The map of one cached content: which blocks are on disk, and the checksum of each.

A file of a header and one 64-bit word per block: 0 means absent, anything else is the block's xxh3
(seeded with its number; a hash of 0 is written as 1). A word is set after its data is down. What a
crash or another process leaves behind is found out when the block is read back and verified.

The file is read and written by position and never mapped into memory: a page of a file that
somebody truncates, or of a disk that fails, would be SIGBUS. Nor is it read as a whole: that of
140 GB has 34 MiB, of which one READ needs a few bytes. The page cache makes a word visible to every
process of the node at once, and costs 1 µs a look.

Every word and every flag has bytes of its own, so that two processes that write neighbours never
undo each other's. The words that a truncated map lacks are absent.

Any thread.
"""

import contextlib
import errno
import fcntl
import os
import struct
import tempfile
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import xxhash

from jfs.clocks import boot_id
from jfs.disk import read_at
from jfs.errors import CacheError, is_not_supported
from jfs.extents import Extent
from jfs.model import ContentKey
from jfs.native.sums import sums

MAP_SUFFIX, DATA_SUFFIX = ".map", ".data"

_MAGIC = b"JFSMAP02"
# magic, block size, verified, pinned, size of the content, digest
_HEADER = struct.Struct("<8sIBBxxQ96s")
# struct flock of 64-bit Linux: type, whence, start, length, pid (0 for OFD locks).
_FLOCK = struct.Struct("hh4xqqi4x")
_VERIFIED_AT, _PINNED_AT = 12, 13
_STAMP = struct.Struct("<Q")
_STAMP_AT = 128  # behind the header, which older versions compare
_WORDS_AT = 4096  # the header has a page of its own
_WORD = 8
_ABSENT = bytes(_WORD)
_A_LOOK = 1 << 15
# Words that are looked through at a time: the first page, then more and more, at most 1 MiB.
_FIRST_STEP, _LARGEST_STEP = 512, 1 << 17


def checksum(block: memoryview, number: int) -> int:
    """Return the word of a block; never 0. 26 GB/s, the interpreter's lock released."""
    return xxhash.xxh3_64_intdigest(block, number) or 1


def checksums(data: memoryview, block_size: int, first: int) -> "array[int]":
    """Return the words of consecutive blocks, of which *first* is the number of the first."""
    words = sums(data, block_size, first)
    if words is not None:
        return words
    starts = range(0, len(data), block_size)
    return array(
        "Q",
        [checksum(data[at : at + block_size], number) for number, at in enumerate(starts, first)],
    )


class BadMap(CacheError):
    """A file that is no map of its content, or another user's."""


class BlockMap:
    """See the module. ``open`` makes one."""

    def __init__(
        self, file: int, content: ContentKey, block_size: int, *, writable: bool = True
    ) -> None:
        self.fd = file
        self.writable = writable
        self.content = content
        self.block_size = block_size
        self.count = -(-content.size // block_size)

    @classmethod
    def open(cls, path: Path, content: ContentKey, block_size: int) -> Self:
        """Open the map at *path*, or make an empty one there.

        On a disk that is read-only by now it is opened for reading.

        Raises:
            OSError: the disk refuses.
            BadMap: the file is not a map of this content, or another user's.
        """
        try:
            file, writable = open_either(path)
        except FileNotFoundError:
            _create(path, content, block_size)
            file, writable = open_either(path)
        try:
            found = read_at(file, _HEADER.size, 0)
            wanted = _header(content, block_size)
            if found[:_VERIFIED_AT] != wanted[:_VERIFIED_AT] or found[16:] != wanted[16:]:
                raise BadMap(f"the map of {content} is damaged")
            status = os.fstat(file)
            if status.st_uid != os.geteuid():
                raise BadMap(f"the map of {content} belongs to another user")
            opened = cls(file, content, block_size, writable=writable)
            if status.st_size < map_length(content, block_size):
                opened.set_unverified()  # the blocks whose words are lost are fetched again
            return opened
        except BaseException:
            os.close(file)
            raise

    def close(self) -> None:
        """Close the file; idempotent."""
        file, self.fd = self.fd, -1
        if file >= 0:
            os.close(file)

    def is_at(self, path: Path) -> bool:
        """Whether this map is still the one at *path*: eviction may have taken it away."""
        try:
            there = os.stat(path)
        except FileNotFoundError:
            return False
        here = os.fstat(self.fd)
        return here.st_ino == there.st_ino and here.st_dev == there.st_dev

    def is_removed(self) -> bool:
        """Whether no name leads to this map any more: what is noted in it helps nobody."""
        return not os.fstat(self.fd).st_nlink

    def blocks(self, extent: Extent) -> range:
        """Return the numbers of the blocks that *extent* touches."""
        return range(extent.start // self.block_size, -(-extent.stop // self.block_size))

    def extent_of(self, number: int) -> Extent:
        start = number * self.block_size
        return Extent(start, min(start + self.block_size, self.content.size))

    def words(self, blocks: range) -> list[int]:
        """Return the words of consecutive blocks as of now. Raises OSError."""
        return memoryview(self._read(blocks)).cast("Q").tolist()

    def resident_words(self, blocks: range) -> list[int]:
        """As ``words``, of what the kernel has in memory. Raises BlockingIOError: it has not."""
        data = bytearray(_WORD * len(blocks))
        count = os.preadv(self.fd, [data], _WORDS_AT + _WORD * blocks.start, os.RWF_NOWAIT)
        if count < len(data):
            raise BlockingIOError
        return memoryview(data).cast("Q").tolist()

    def set(self, first: int, words: "array[int]") -> None:
        """Make blocks from *first* on present. Raises OSError."""
        self._require_writable()
        os.pwrite(self.fd, words, _WORDS_AT + _WORD * first)

    def clear(self, blocks: range) -> None:
        """Make consecutive blocks absent. Raises OSError."""
        self._require_writable()
        if len(blocks) == self.count:
            os.ftruncate(self.fd, _WORDS_AT)  # its space is free too
            os.ftruncate(self.fd, map_length(self.content, self.block_size))
        else:
            os.pwrite(self.fd, bytes(_WORD * len(blocks)), _WORDS_AT + _WORD * blocks.start)

    def looks_complete(self) -> bool:
        """Whether the blocks of the first GiB and the last block are there."""
        first = min(self.count, _A_LOOK)
        last = range(self.count - 1, self.count)
        return self.words(last) != [0] and _absent_in(self._read(range(first))) == first

    def present(self) -> int:
        """Count the blocks on disk: 2 ms for each GiB of content that is there in part."""
        present = 0
        for _, data, none in self._steps(range(self.count)):
            length = len(data) // _WORD
            if none or _absent_in(data) == length:
                present += 0 if none else length
            else:
                present += length - memoryview(data).cast("Q").tolist().count(0)
        return present

    def first_absent(self, start: int = 0) -> int:
        """Return the first block from *start* on that is not there; ``count`` if all are.

        1 ms for each 20 GiB of content that is there.
        """
        for first, data, _ in self._steps(range(start, self.count)):
            at = _absent_in(data)
            if at * _WORD < len(data):
                return first + at
        return self.count

    def is_complete(self) -> bool:
        """Whether every block is there; takes as long as ``first_absent``. Raises OSError."""
        return self.first_absent() == self.count

    def missing(self, blocks: range) -> list[range]:
        """Return the runs of absent blocks. Raises OSError."""
        if len(blocks) <= _FIRST_STEP and (data := self._read(blocks)):
            if _absent_in(data) * _WORD == len(data):
                return []
            if data == bytes(len(data)):
                return [blocks]
        runs: list[range] = []
        for first, data, none in self._steps(blocks):
            length = len(data) // _WORD
            if none:
                _append(runs, first, first + length)
                continue
            if _absent_in(data) == length:
                continue
            for number, word in enumerate(memoryview(data).cast("Q").tolist(), first):
                if not word:
                    _append(runs, number, number + 1)
        return runs

    def present_bytes(self) -> int:
        """Return how much of the content is on disk."""
        size = self.present() * self.block_size
        last = self.count - 1
        if self.words(range(last, last + 1)) != [0]:
            size -= self.block_size - self.extent_of(last).size
        return size

    @property
    def verified(self) -> bool:
        """Whether the whole content has been held against its digest."""
        return self._flag(_VERIFIED_AT)

    @property
    def stamp(self) -> int:
        """``stamp_of`` the data as it was verified; 0: not known, or it is not verified."""
        if not self.verified:
            return 0
        data = os.pread(self.fd, _STAMP.size, _STAMP_AT)
        return int(_STAMP.unpack(data)[0]) if len(data) == _STAMP.size else 0

    def set_verified(self, stamp: int) -> None:
        """Note that the whole content matches its digest. Raises OSError.

        Args:
            stamp: ``stamp_of`` the data from before it was read.
        """
        os.pwrite(self.fd, _STAMP.pack(stamp), _STAMP_AT)
        self._set_flag(_VERIFIED_AT, True)

    def set_unverified(self) -> None:
        """Note that it has to be held against its digest again. Raises OSError."""
        self._set_flag(_VERIFIED_AT, False)

    @property
    def pinned(self) -> bool:
        """Whether eviction must leave it alone."""
        return self._flag(_PINNED_AT)

    @pinned.setter
    def pinned(self, value: bool) -> None:
        self._set_flag(_PINNED_AT, value)

    def _flag(self, place: int) -> bool:
        return os.pread(self.fd, 1, place) == b"\1"

    def _require_writable(self) -> None:
        if not self.writable:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    def _set_flag(self, place: int, value: bool) -> None:
        self._require_writable()
        os.pwrite(self.fd, b"\1" if value else b"\0", place)

    def _read(self, blocks: range) -> bytes:
        size = _WORD * len(blocks)
        data = read_at(self.fd, size, _WORDS_AT + _WORD * blocks.start)
        return data if len(data) == size else data.ljust(size, b"\0")

    def _steps(self, blocks: range) -> Iterator[tuple[int, bytes, bool]]:
        """Read words step by step: the first block's number, its words, whether all are absent."""
        position, step = blocks.start, _FIRST_STEP
        while position < blocks.stop:
            stop = min(position + step, blocks.stop)
            data = self._read(range(position, stop))
            yield position, data, data == bytes(len(data))
            position, step = stop, min(2 * step, _LARGEST_STEP)


def _absent_in(data: bytes) -> int:
    """Return the index of the first word that is 0, or how many words there are."""
    at = data.find(_ABSENT)  # 0.2 ns a byte; looking at every word would take 60 ns
    while at >= 0 and at % _WORD:
        at = data.find(_ABSENT, at + 1)  # the end of one word and the beginning of the next
    return at // _WORD if at >= 0 else len(data) // _WORD


def _append(runs: list[range], start: int, stop: int) -> None:
    if runs and runs[-1].stop == start:
        runs[-1] = range(runs[-1].start, stop)
    else:
        runs.append(range(start, stop))


def open_either(path: Path, create: int = 0) -> tuple[int, bool]:
    """Open a file to change it, or on a disk that is read-only to read it. Raises OSError.

    Args:
        create: O_CREAT: make it if it is missing.
    Returns:
        Its descriptor, and whether it can be changed.
    """
    flags = os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        return os.open(path, os.O_RDWR | create | flags, 0o600), True
    except OSError as error:
        if error.errno != errno.EROFS:
            raise
        return os.open(path, os.O_RDONLY | flags), False


def lock_blocks(file: int, blocks: range) -> bool:
    """Lock a run of blocks for writing, among all processes; False: somebody has one of them.

    The lock belongs to the open file description (OFD) of *file*, an open map, and ends with it.

    Raises:
        OSError: the file system has no locks.
    """
    lock = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, blocks.start, len(blocks), 0)
    try:
        fcntl.fcntl(file, fcntl.F_OFD_SETLK, lock)
    except (BlockingIOError, PermissionError):
        return False
    return True


def stamp_of(data: int, boot: str | None = None) -> int:
    """Return what changes with every change of a data file, whoever makes it. Raises OSError.

    Its time of change (ns), which unlike the one of modification no program can set back; and the
    start of the machine. Nothing here is synced: a loss of power leaves the time, and the words of
    the map, of bytes that had not reached the disk yet.

    Args:
        boot: which start; None: the last one.
    """
    started = (boot_id() if boot is None else boot).encode()
    return os.fstat(data).st_ctime_ns ^ xxhash.xxh3_64_intdigest(started)


def words_of(path: Path, count: int) -> "array[int]":
    """Return the words of the first blocks of a map, 0 for those that are absent. OSError."""
    words = array("Q")
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        data = os.pread(file, count * _WORD, _WORDS_AT)
    finally:
        os.close(file)
    words.frombytes(data[: len(data) // _WORD * _WORD])
    return words


def read_key(path: Path) -> tuple[ContentKey, int]:
    """Read whose map a file is, and its block size.

    Raises:
        OSError: it cannot be read. CacheError: it is no map, or not the one that its name says.
    """
    with path.open("rb", buffering=0) as file:
        header = file.read(_HEADER.size)
    if len(header) != _HEADER.size or not header.startswith(_MAGIC):
        raise CacheError(f"{path} is not a map")
    _, block_size, _, _, size, digest = _HEADER.unpack(header)
    try:
        key = ContentKey(digest.rstrip(b"\0").decode("ascii"), size)
    except UnicodeDecodeError:
        raise CacheError(f"{path} is not a map") from None
    if not block_size or path.name != entry_name(key) + MAP_SUFFIX:
        raise CacheError(f"{path} is not a map")
    return key, block_size


def entry_name(content: ContentKey) -> str:
    """Return what the files of a content are called, without their suffixes."""
    algorithm, _, digest = content.digest.partition(":")
    return f"{algorithm}-{digest}-{content.size}"


def map_length(content: ContentKey, block_size: int) -> int:
    return _WORDS_AT + _WORD * -(-content.size // block_size)


def _header(content: ContentKey, block_size: int) -> bytes:
    return _HEADER.pack(_MAGIC, block_size, 0, 0, content.size, content.digest.encode())


def _create(path: Path, content: ContentKey, block_size: int) -> None:
    """Make an empty map; another process may do the same at the same time, one of them wins."""
    with contextlib.suppress(FileExistsError):
        path.parent.mkdir(mode=0o700)
    file, name = tempfile.mkstemp(dir=path.parent, prefix=".new-")
    try:
        os.pwrite(file, _header(content, block_size), 0)
        os.ftruncate(file, map_length(content, block_size))
        try:
            os.link(name, path)
        except FileExistsError:
            pass
        except OSError as error:
            if not is_not_supported(error) and not isinstance(error, PermissionError):
                raise
            # No hard links (some network and sandbox file systems): whoever renames last wins.
            os.rename(name, path)
    finally:
        os.close(file)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
