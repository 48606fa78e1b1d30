"""Take content in that is on this disk already: what was just uploaded needs no download.

The whole file becomes the data of a new entry by a rename, with the checksum of every block in its
map. An entry that exists gets the blocks that it lacks. Blocking; any thread.
"""

import fcntl
import os
from array import array
from contextlib import closing
from pathlib import Path

from jfs.cache.blockmap import BlockMap, checksums, stamp_of
from jfs.cache.content import DiskContent
from jfs.errors import CacheError
from jfs.extents import Extent, MiB
from jfs.model import ContentKey

_PIECE = 4 * MiB


def install(
    paths: tuple[Path, Path],
    content: ContentKey,
    block_size: int,
    staged: Path,
    words: "array[int] | None" = None,
) -> bool:
    """Make *staged* the data of a new entry; False: there is an entry, which may be in use.

    Args:
        words: of its blocks; None: it is read for them.
    Raises:
        OSError: the disk refuses, or *staged* lies on another file system.
        CacheError: *staged* is not of the content's size.
    """
    map_path, data_path = paths
    if map_path.exists():
        return False
    if words is None or len(words) != -(-content.size // block_size):
        words = _checksums(staged, content, block_size)
    elif (size := staged.stat().st_size) != content.size:
        raise CacheError(f"{staged}: has {size} bytes, not {content.size}")
    blocks = BlockMap.open(map_path, content, block_size)
    try:
        # Who opens an entry holds the lock shared from before it opens the data until it closes:
        # with the lock ours alone nobody has the data open that the rename replaces.
        fcntl.flock(blocks.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not blocks.is_at(map_path) or blocks.present():
            return False
        os.chmod(staged, 0o600)
        os.rename(staged, data_path)
        blocks.set(0, words)
        # Its digest was computed from these bytes, and nobody writes to the file any more.
        with data_path.open("rb", buffering=0) as data:
            blocks.set_verified(stamp_of(data.fileno()))
        return True
    except BlockingIOError:
        return False
    finally:
        blocks.close()


def fill(opened: DiskContent, staged: Path) -> None:
    """Publish from *staged* what an entry lacks. Raises OSError."""
    with closing(opened), staged.open("rb", buffering=0) as file:
        whole = Extent(0, opened.key.size)
        for run in opened.missing(whole):
            for piece in run.pieces(_PIECE):
                data = os.pread(file.fileno(), piece.size, piece.start)
                if len(data) != piece.size or not opened.publish(piece.start, memoryview(data)):
                    return


def _checksums(staged: Path, content: ContentKey, block_size: int) -> "array[int]":
    words = array("Q")
    piece = min(_PIECE, -(-content.size // block_size) * block_size)
    buffer = memoryview(bytearray(piece - piece % block_size))
    with staged.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            words += checksums(buffer[:count], block_size, len(words))
            if count % block_size and len(words) != -(-content.size // block_size):
                raise CacheError(f"{staged}: a read ended inside a block")
        if file.tell() != content.size:
            raise CacheError(f"{staged}: has {file.tell()} bytes, not {content.size}")
    return words
