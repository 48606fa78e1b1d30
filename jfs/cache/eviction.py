"""Keep the cache within its budget and the disk above its floor. Blocking; any thread.

One process evicts at a time (an exclusive lock on the directory). Whole contents go, the least
recently used first. What somebody has open or has pinned stays: when nothing else is left there is
no room, and what is read then is read past the cache. (Taking blocks from open contents instead
made a file that is larger than the cache throw out, in every pass, what the next pass would read
first; and a model that one process was reading lost its blocks to another's.)
"""

import contextlib
import fcntl
import os
from collections.abc import Container, Iterator
from dataclasses import dataclass
from pathlib import Path

from jfs.cache.blockmap import DATA_SUFFIX, MAP_SUFFIX, BlockMap, read_key
from jfs.errors import CacheError, is_not_supported

# Free somewhat more than is asked for, so that the next writes need no eviction.
_SLACK = 16
_PREFIX = 2  # characters of a digest: the folder of its entry


@dataclass(frozen=True, slots=True)
class Entry:
    """One cached content as its files show it."""

    map_path: Path
    data_path: Path
    used_bytes: int  # of disk, both files
    last_used: float  # seconds since 1970


def entries(directory: Path) -> list[Entry]:
    """List every content on disk; what vanishes meanwhile is left out. Raises OSError."""
    found: list[Entry] = []
    for name in os.listdir(directory):
        if len(name) != _PREFIX:
            continue
        folder = os.path.join(directory, name)
        taken = dict(_files(folder))
        for name, status in taken.items():
            stem = name.removesuffix(MAP_SUFFIX)
            if stem != name:
                data = taken.get(stem + DATA_SUFFIX)
                used = _taken(status) + (_taken(data) if data is not None else 0)
                paths = Path(folder, name), Path(folder, stem + DATA_SUFFIX)
                found.append(Entry(*paths, used, status.st_mtime))
    return found


def _files(folder: str) -> Iterator[tuple[str, os.stat_result]]:
    with contextlib.suppress(OSError), os.scandir(folder) as files:
        for file in files:
            with contextlib.suppress(OSError):
                yield file.name, file.stat(follow_symlinks=False)


def _taken(status: os.stat_result) -> int:
    """Return what a file takes of the disk; some file systems say only its size."""
    return status.st_blocks * 512 or status.st_size


@contextlib.contextmanager
def exclusive(directory: Path) -> Iterator[None]:
    """Hold the right to evict among all processes. Raises OSError."""
    file = os.open(directory / "evict.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            if not is_not_supported(error):
                raise
            # Without locks two processes may evict at once, and free more than was wanted.
        yield
    finally:
        os.close(file)


def make_room(
    directory: Path, budget: int, wanted: int, *, at_least: int = 0, keep: Container[Path] = ()
) -> int:
    """Evict until *wanted* more bytes fit into *budget*, and at least *at_least* bytes are freed.

    Args:
        keep: maps of entries that are open in this process, where locks do not say so.
    Returns:
        Bytes in use afterwards: more than there should be, if the rest is in use or pinned.
    Raises:
        OSError: the directory cannot be read or locked.
    """
    with exclusive(directory):
        found = sorted(entries(directory), key=lambda entry: entry.last_used)
        used = sum(entry.used_bytes for entry in found)
        goal = min(budget - wanted, used - at_least)
        if used <= goal:
            return used
        goal = max(0, goal - min(budget, used) // _SLACK)
        for entry in found:
            if used <= goal:
                break
            if entry.map_path not in keep and _remove_unused(entry):
                used -= entry.used_bytes
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
        return not _lock_alone(file)
    finally:
        os.close(file)


def _remove_unused(entry: Entry, *, even_pinned: bool = False) -> bool:
    blocks = _open(entry)
    if blocks is None:
        entry.data_path.unlink(missing_ok=True)
        entry.map_path.unlink(missing_ok=True)  # not a map: of no use to anybody
        return True
    try:
        if blocks.pinned and not even_pinned:
            return False
        if not _lock_alone(blocks.fd):
            return False
        # Who opens the entry now finds no map and makes a new one; who opened it before we had the
        # lock sees that the map it holds is no longer the one at the path. The map goes last: were
        # it first, a new one could be in use already when the data that belongs to it goes.
        # In case we are killed between the two:
        blocks.set_unverified()
        blocks.clear(range(blocks.count))
        entry.data_path.unlink(missing_ok=True)
        entry.map_path.unlink(missing_ok=True)
        return True
    finally:
        blocks.close()


def _lock_alone(file: int) -> bool:
    """Lock an entry; False: somebody has it open. Without locks nobody is known to."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return is_not_supported(error)
    return True


def _open(entry: Entry) -> BlockMap | None:
    try:
        content, block_size = read_key(entry.map_path)
        return BlockMap.open(entry.map_path, content, block_size)
    except (OSError, CacheError):
        return None
