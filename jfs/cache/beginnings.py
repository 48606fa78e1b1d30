"""Whether the cache has content that begins as a file does. Blocking; any thread."""

import os
from pathlib import Path

from jfs.cache import eviction
from jfs.cache.blockmap import checksum, read_key, words_of
from jfs.errors import CacheError

_LOOKED_AT = 10_000  # contents, those used last: 20 µs each


def is_known(directory: Path, file: Path, size: int) -> bool:
    """Whether some content has the same blocks at its beginning; half of them must be cached.

    Models of one kind have the same header, which may be all that was read of one.

    Args:
        file: at least *size* bytes long.
    Raises:
        OSError: a disk fails.
    """
    sums: dict[int, list[int]] = {}  # of the file, by the size of blocks
    found = sorted(eviction.entries(directory), key=lambda entry: -entry.last_used)
    with file.open("rb", buffering=0) as opened:
        for entry in found[:_LOOKED_AT]:
            try:
                content, block_size = read_key(entry.map_path)
                count = size // block_size
                if content.size < size or not count:
                    continue
                words = words_of(entry.map_path, count)
            except (OSError, CacheError):
                continue  # it went meanwhile, or is no map
            ours = sums.setdefault(block_size, [])
            if 2 * sum(map(bool, words)) >= count and all(
                not word or word == _sum(opened.fileno(), ours, number, block_size)
                for number, word in enumerate(words)
            ):
                return True
    return False


def _sum(file: int, known: list[int], number: int, block_size: int) -> int:
    while len(known) <= number:
        block = os.pread(file, block_size, len(known) * block_size)
        known.append(checksum(memoryview(block), len(known)))
    return known[number]
