"""Keep the cache within its budget and the disk above its floor. Blocking; any thread.

One process evicts at a time (an exclusive lock on the directory). Whole contents go first, the
least recently used before the others; a content that somebody has open loses blocks instead: the
words of its map first, then their space. That is safe, because a reader verifies what it reads:
it sees the block missing, or bytes that do not match and then the block missing.
"""

import contextlib
import ctypes
import fcntl
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from jfs.cache.blockmap import BlockMap, lock_blocks, read_key
from jfs.errors import CacheError
from jfs.extents import MiB

MAP_SUFFIX, DATA_SUFFIX = ".map", ".data"
# Free somewhat more than is asked for, so that the next writes need no eviction.
_SLACK = 16
_PUNCH = 4 * MiB

_FALLOC_FL_KEEP_SIZE, _FALLOC_FL_PUNCH_HOLE = 1, 2
# os.posix_fallocate cannot punch holes, and Python has no other binding of fallocate(2).
_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


@dataclass(frozen=True, slots=True)
class Entry:
    """One cached content as its files show it."""

    map_path: Path
    data_path: Path
    used_bytes: int  # of disk, both files
    last_used: float  # seconds since 1970


def entries(directory: Path) -> list[Entry]:
    """List every content on disk; what vanishes meanwhile is left out."""
    found = []
    for map_path in directory.glob(f"??/*{MAP_SUFFIX}"):
        data_path = map_path.with_suffix(DATA_SUFFIX)
        with contextlib.suppress(OSError):
            status = map_path.stat()
            used = status.st_blocks * 512
            with contextlib.suppress(FileNotFoundError):
                used += data_path.stat().st_blocks * 512
            found.append(Entry(map_path, data_path, used, status.st_mtime))
    return found


@contextlib.contextmanager
def exclusive(directory: Path) -> Iterator[None]:
    """Hold the right to evict among all processes. Raises OSError."""
    file = os.open(directory / "evict.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
    finally:
        os.close(file)


def make_room(directory: Path, budget: int, wanted: int, *, at_least: int = 0) -> int:
    """Evict until *wanted* more bytes fit into *budget*, and at least *at_least* bytes are freed.

    Returns:
        Bytes in use afterwards.
    Raises:
        OSError: the directory cannot be read or locked.
    """
    with exclusive(directory):
        found = sorted(entries(directory), key=lambda entry: entry.last_used)
        used = sum(entry.used_bytes for entry in found)
        goal = min(budget - wanted, used - at_least)
        if used <= goal:
            return used
        goal = max(0, goal - budget // _SLACK)
        busy = []
        for entry in found:
            if used <= goal:
                return used
            if _remove_unused(entry):
                used -= entry.used_bytes
            else:
                busy.append(entry)
        for entry in busy:
            if used <= goal:
                break
            used -= _punch(entry, used - goal)
        return used


def remove(entry: Entry, *, even_pinned: bool = False) -> bool:
    """Remove one content, unless it is in use (or pinned). True: it is gone."""
    return _remove_unused(entry, even_pinned=even_pinned)


def in_use(entry: Entry) -> bool:
    """Whether any process has the content open."""
    try:
        file = os.open(entry.map_path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(file)
    return False


def _remove_unused(entry: Entry, *, even_pinned: bool = False) -> bool:
    blocks = _open(entry)
    if blocks is None:
        entry.data_path.unlink(missing_ok=True)
        entry.map_path.unlink(missing_ok=True)  # not a map: of no use to anybody
        return True
    try:
        if blocks.pinned and not even_pinned:
            return False
        try:
            fcntl.flock(blocks.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        # Who opens the entry now finds no map and makes a new one; who opened it before we had the
        # lock sees that the map it holds is no longer the one at the path. The map goes last: were
        # it first, a new one could be in use already when the data that belongs to it goes.
        blocks.clear(range(blocks.count))  # in case we are killed between the two
        entry.data_path.unlink(missing_ok=True)
        entry.map_path.unlink(missing_ok=True)
        return True
    finally:
        blocks.close()


def _punch(entry: Entry, wanted: int) -> int:
    """Take blocks from a content in use, from its start on; give the bytes freed."""
    blocks = _open(entry)
    if blocks is None:
        return 0
    freed = 0
    try:
        if blocks.pinned:
            return 0
        data = os.open(entry.data_path, os.O_RDWR | os.O_CLOEXEC)
        try:
            blocks.verified = False
            step = max(1, _PUNCH // blocks.block_size)
            for first in range(0, blocks.count, step):
                numbers = range(first, min(first + step, blocks.count))
                if freed >= wanted:
                    break
                # Not while somebody fetches them: a word that is set between our clearing it and
                # our punching would promise bytes that are gone.
                if not any(blocks.words(numbers)) or not lock_blocks(blocks.fd, numbers):
                    continue
                before = os.fstat(data).st_blocks
                blocks.clear(numbers)
                start = first * blocks.block_size
                mode = _FALLOC_FL_PUNCH_HOLE | _FALLOC_FL_KEEP_SIZE
                if _libc.fallocate(data, mode, start, len(numbers) * blocks.block_size) != 0:
                    break
                freed += max(0, before - os.fstat(data).st_blocks) * 512
        finally:
            os.close(data)
    except OSError:
        pass
    finally:
        blocks.close()
    return freed


def _open(entry: Entry) -> BlockMap | None:
    try:
        content, block_size = read_key(entry.map_path)
        return BlockMap.open(entry.map_path, content, block_size)
    except (OSError, CacheError):
        return None
