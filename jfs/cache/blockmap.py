"""The map of one cached content: which blocks are on disk, and the checksum of each.

A file of a header and one 64-bit word per block, mapped shared, so that every process of the node
sees a block the moment it is published: 0 means absent, anything else is the block's xxh3 (seeded
with its number; a hash of 0 is written as 1). A word is set after its data is down, in one aligned
8-byte store; what a crash leaves behind is found out when the block is read back and verified.

Any thread: reads and single-word writes are atomic under the interpreter's lock, and between
processes on every architecture that stores an aligned word at once.
"""

import contextlib
import fcntl
import mmap
import os
import struct
import tempfile
from pathlib import Path
from typing import Self

import xxhash

from jfs.errors import CacheError
from jfs.extents import Extent
from jfs.model import ContentKey

_MAGIC = b"JFSMAP01"
# magic, block size, flags, size of the content, digest
_HEADER = struct.Struct("<8sIIQ96s")
# struct flock of 64-bit Linux: type, whence, start, length, pid (0 for OFD locks).
_FLOCK = struct.Struct("hh4xqqi4x")
_FLAGS_AT = 12
_WORDS_AT = 4096  # the header has a page of its own
_VERIFIED, _PINNED = 1, 2


def checksum(block: memoryview, number: int) -> int:
    """Give the word of a block; never 0. 26 GB/s, the interpreter's lock released."""
    return xxhash.xxh3_64_intdigest(block, number) or 1


class BlockMap:
    """See the module. ``open`` makes one."""

    def __init__(self, file: int, mapped: mmap.mmap, content: ContentKey, block_size: int) -> None:
        self.fd = file
        self.content = content
        self.block_size = block_size
        self.count = -(-content.size // block_size)
        self._map = mapped
        self._words = memoryview(mapped)[_WORDS_AT : _WORDS_AT + 8 * self.count].cast("Q")

    @classmethod
    def open(cls, path: Path, content: ContentKey, block_size: int) -> Self:
        """Open the map at *path*, or make an empty one there.

        Raises:
            OSError: the disk refuses.
            CacheError: the file is not a map of this content.
        """
        try:
            file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            _create(path, content, block_size)
            file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            return cls._map_open(file, content, block_size)
        except BaseException:
            os.close(file)
            raise

    @classmethod
    def _map_open(cls, file: int, content: ContentKey, block_size: int) -> Self:
        wanted = _HEADER.pack(_MAGIC, block_size, 0, content.size, content.digest.encode())
        found = bytearray(os.pread(file, _HEADER.size, 0))
        found[_FLAGS_AT : _FLAGS_AT + 4] = bytes(4)
        length = map_length(content, block_size)
        # Longer than its words, or a load beyond the end is SIGBUS.
        if bytes(found) != wanted or os.fstat(file).st_size != length:
            raise CacheError(f"the map of {content} is damaged")
        return cls(file, mmap.mmap(file, length), content, block_size)

    def close(self) -> None:
        """Unmap and close; idempotent."""
        if self.fd >= 0:
            self._words.release()
            self._map.close()
            os.close(self.fd)
            self.fd = -1

    def is_at(self, path: Path) -> bool:
        """Whether this map is still the one at *path*: eviction may have taken it away."""
        try:
            there = path.stat()
        except FileNotFoundError:
            return False
        here = os.fstat(self.fd)
        return (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)

    def blocks(self, extent: Extent) -> range:
        """Give the numbers of the blocks that *extent* touches."""
        return range(extent.start // self.block_size, -(-extent.stop // self.block_size))

    def extent_of(self, number: int) -> Extent:
        start = number * self.block_size
        return Extent(start, min(start + self.block_size, self.content.size))

    def words(self, blocks: range) -> list[int]:
        """Give the words of consecutive blocks as of now."""
        return self._words[blocks.start : blocks.stop].tolist()

    def set(self, number: int, word: int) -> None:
        self._words[number] = word

    def clear(self, blocks: range) -> None:
        """Make consecutive blocks absent."""
        self._words[blocks.start : blocks.stop] = memoryview(bytes(8 * len(blocks))).cast("Q")

    def present(self) -> int:
        """Count the blocks on disk."""
        return self.count - self._words.tolist().count(0)

    @property
    def verified(self) -> bool:
        """Whether the whole content has been held against its digest."""
        return bool(self._flags() & _VERIFIED)

    @verified.setter
    def verified(self, value: bool) -> None:
        self._set_flag(_VERIFIED, value)

    @property
    def pinned(self) -> bool:
        """Whether eviction must leave it alone."""
        return bool(self._flags() & _PINNED)

    @pinned.setter
    def pinned(self, value: bool) -> None:
        self._set_flag(_PINNED, value)

    def _flags(self) -> int:
        return int.from_bytes(self._map[_FLAGS_AT : _FLAGS_AT + 4], "little")

    def _set_flag(self, flag: int, value: bool) -> None:
        flags = self._flags() | flag if value else self._flags() & ~flag
        self._map[_FLAGS_AT : _FLAGS_AT + 4] = flags.to_bytes(4, "little")


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


def read_key(path: Path) -> tuple[ContentKey, int]:
    """Read whose map a file is, and its block size. Raises OSError, CacheError."""
    with path.open("rb") as file:
        header = file.read(_HEADER.size)
    if len(header) != _HEADER.size or not header.startswith(_MAGIC):
        raise CacheError(f"{path} is not a map")
    _, block_size, _, size, digest = _HEADER.unpack(header)
    try:
        return ContentKey(digest.rstrip(b"\0").decode("ascii"), size), block_size
    except UnicodeDecodeError:
        raise CacheError(f"{path} is not a map") from None


def map_length(content: ContentKey, block_size: int) -> int:
    return _WORDS_AT + 8 * -(-content.size // block_size)


def _create(path: Path, content: ContentKey, block_size: int) -> None:
    """Make an empty map; another process may do the same at the same time, one of them wins."""
    path.parent.mkdir(mode=0o700, exist_ok=True)
    file, name = tempfile.mkstemp(dir=path.parent, prefix=".new-")
    try:
        length = map_length(content, block_size)
        # Backed by disk before it is mapped: a store into a hole of a full disk is SIGBUS.
        os.posix_fallocate(file, 0, length)
        os.pwrite(
            file, _HEADER.pack(_MAGIC, block_size, 0, content.size, content.digest.encode()), 0
        )
        with contextlib.suppress(FileExistsError):
            os.link(name, path)
    finally:
        os.close(file)
        os.unlink(name)
