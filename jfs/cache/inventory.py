"""What is in the cache, for the person who looks after it: list, check, pin, remove.

Blocking; any thread, beside any number of mounts that use the same directory.
"""

import contextlib
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from jfs import directories
from jfs.cache import eviction
from jfs.cache.blockmap import BlockMap, read_key
from jfs.cache.store import DiskBlockStore
from jfs.errors import CacheError
from jfs.extents import Extent
from jfs.model import ContentKey


@dataclass(frozen=True, slots=True)
class CachedEntry:
    """One content on disk.

    Attributes:
        present_bytes: of the content; *used_bytes* of disk, the map included.
        verified: the whole has been held against its digest.
        last_used: seconds since 1970.
    """

    content: ContentKey
    present_bytes: int
    used_bytes: int
    last_used: float
    verified: bool
    pinned: bool
    in_use: bool
    files: eviction.Entry

    @property
    def complete(self) -> bool:
        return self.present_bytes == self.content.size


@dataclass(frozen=True, slots=True)
class Checked:
    """How a check ended: *damaged_bytes* were on disk and wrong, and are gone now."""

    entry: CachedEntry
    damaged_bytes: int


def inventory(directory: Path) -> Iterator[CachedEntry]:
    """List every content, the one used last first.

    Raises:
        CacheError: there is no cache in *directory*.
    """
    directory = directories.existing(directory)
    if not directory.is_dir():
        raise CacheError(f"{directory}: no cache is there")
    found = sorted(eviction.entries(directory), key=lambda entry: -entry.last_used)
    for files in found:
        with contextlib.suppress(OSError, CacheError), _map(files) as blocks:
            yield CachedEntry(
                blocks.content,
                blocks.present_bytes(),
                files.used_bytes,
                files.last_used,
                blocks.verified,
                blocks.pinned,
                eviction.in_use(files),
                files,
            )


def check(store: DiskBlockStore, entry: CachedEntry) -> Checked:
    """Read every block back and verify it; a complete content against its digest too.

    What is wrong is dropped, and fetched again by whoever reads it next.
    """
    content = store.inspect(entry.content)
    try:
        whole = Extent(0, entry.content.size)
        before = whole.size - sum(run.size for run in content.missing(whole))
        stamp = content.stamp
        found = hashlib.new(entry.content.digest.partition(":")[0])
        piece = memoryview(bytearray(store.block_size))
        length = 0
        for extent in whole.pieces(store.block_size):
            if content.read_into(extent, piece):
                found.update(piece[: extent.size])
                length += extent.size
        if length == whole.size:
            if found.hexdigest() != entry.content.digest.partition(":")[2]:
                content.drop()
                return Checked(entry, length)
            content.note_verified(stamp)
        return Checked(entry, max(0, before - length))
    finally:
        content.close()


def pin(entry: CachedEntry, *, pinned: bool) -> None:
    """Let eviction leave a content alone, or no longer. Raises OSError, CacheError."""
    with _map(entry.files) as blocks:
        blocks.pinned = pinned


def remove(entry: CachedEntry, *, even_pinned: bool = False) -> bool:
    """Remove a content; False: it is in use, or pinned. Raises OSError."""
    with eviction.exclusive(entry.files.map_path.parent.parent):
        return eviction.remove(entry.files, even_pinned=even_pinned)


@contextlib.contextmanager
def _map(files: eviction.Entry) -> Iterator[BlockMap]:
    # As it was when it was made: opening must not touch the time of last use.
    content, block_size = read_key(files.map_path)
    blocks = BlockMap.open(files.map_path, content, block_size)
    try:
        yield blocks
    finally:
        blocks.close()
        with contextlib.suppress(OSError):
            os.utime(files.map_path, (files.last_used, files.last_used))
