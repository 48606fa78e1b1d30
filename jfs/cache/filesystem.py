"""What the file system of a directory can do; found out by trying, once for each store.

Containers put caches on overlayfs, tmpfs, xfs, btrfs and NFS, sandboxes on file systems of their
own, and what is missing differs by kernel version too: names and versions tell nothing. The cache
does without whatever is missing:

==============  ==================================================================================
``nowait``      RWF_NOWAIT: a block in the page cache is read on the event loop. Without (overlayfs,
                tmpfs): every read takes a thread.
``direct``      O_DIRECT writes: a large block is not kept in memory a second time. Without: it is.
``sparse``      A file may have holes. Without (FAT, some network file systems): a block far into
                the file is charged with all the bytes before it.
``locks``       flock: an entry that another process has open is not evicted. Without (NFS without a
                lock server): that is known of this process only; what another has open may be
                evicted, and its space is free when it is closed there.
``claims``      OFD locks: processes share the work of fetching. Without: each fetches for itself.
==============  ==================================================================================

Neither fallocate nor SEEK_DATA is needed: nothing is mapped into memory, so nothing must be
allocated beforehand, and the map says which blocks are there.
"""

import fcntl
import mmap
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from jfs.cache.blockmap import lock_blocks
from jfs.errors import is_of_the_disk
from jfs.extents import KiB, MiB

_HOLE = 4 * MiB
_DIRECT = 4 * KiB


@dataclass(frozen=True, slots=True)
class Abilities:
    """See the module."""

    nowait: bool = True
    direct: bool = True
    sparse: bool = True
    locks: bool = True
    claims: bool = True


NOTHING = Abilities(nowait=False, direct=False, sparse=False, locks=False, claims=False)


def probe(directory: Path) -> Abilities:
    """Try everything on a file of *directory*. What fails for another reason counts as missing.

    Raises:
        OSError: no file can be made there, and not because the disk is full.
    """
    try:
        file, name = tempfile.mkstemp(dir=directory, prefix=".probe-")
    except OSError as error:
        if not is_of_the_disk(error):
            raise
        # What is cached already can be read all the same.
        return replace(NOTHING, locks=_works(lambda: _lock(directory)))
    try:
        return Abilities(
            nowait=_works(lambda: os.preadv(file, [bytearray(1)], 0, os.RWF_NOWAIT)),
            locks=_works(lambda: fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)),
            claims=_works(lambda: _claim(name)),  # while *file* is locked
            direct=_works(lambda: _write_direct(name)),
            sparse=_works(lambda: _make_hole(file)),
        )
    finally:
        os.close(file)
        os.unlink(name)


def open_direct(file: int) -> int:
    """Open the file of a descriptor once more, for writing past the page cache. Raises OSError."""
    # Not by its path, where another file may be by now.
    return os.open(f"/proc/self/fd/{file}", os.O_WRONLY | os.O_DIRECT | os.O_CLOEXEC)


def _works(attempt: Callable[[], object]) -> bool:
    try:
        attempt()
    except BlockingIOError:
        return True  # it knows what was asked, and the answer is: not now
    except OSError:
        return False
    return True


def _lock(directory: Path) -> None:
    file = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    finally:
        os.close(file)


def _claim(name: str) -> None:
    """Claim a block of a file that is locked as an open entry is.

    To NFS both are locks of bytes (flock(2)): there whoever has the entry open refuses every claim,
    its own too, and each would be waited for in vain.
    """
    file = os.open(name, os.O_RDWR | os.O_CLOEXEC)
    try:
        if not lock_blocks(file, range(1)):
            raise OSError("who has the file locked refuses it")
    finally:
        os.close(file)


def _write_direct(name: str) -> None:
    file = os.open(name, os.O_WRONLY | os.O_DIRECT | os.O_CLOEXEC)
    try:
        with mmap.mmap(-1, _DIRECT) as page:  # aligned
            os.pwrite(file, page, 0)
    finally:
        os.close(file)


def _make_hole(file: int) -> None:
    os.pwrite(file, b"x", _HOLE)
    if os.fstat(file).st_blocks * 512 > _HOLE // 2:
        raise OSError("the hole was filled")
