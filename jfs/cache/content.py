"""One content of the cache, opened: read blocks back verified, publish new ones, claim fetches.

Any thread. Never raises for what the disk does: a block is read whole and verified, or it is
missing. Files of the cache are read and written by file descriptor only, never mapped (a mapped
page of a failing or full disk is SIGBUS); the map alone is, and it is allocated beforehand.
"""

import contextlib
import errno
import logging
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from jfs.cache.blockmap import BlockMap, checksum, lock_blocks
from jfs.extents import Extent
from jfs.metrics import Metrics

log = logging.getLogger(__name__)

# O_DIRECT wants multiples of the device's block; small writes are as well off in the page cache.
_DIRECT_UNIT = 4096
_DIRECT_LEAST = 1024 * 1024


class DiskContent:
    """``CachedContent`` on disk; made by ``DiskBlockStore.open``.

    Args:
        data, direct: the same file, opened for the page cache and past it (-1: impossible).
        room: asked before bytes are written; False: there is no room for so many.
        written: told after that: the room that was given is used, or not wanted.
        failed: told about an error of the disk.
        completed: told once when the last missing block was published through us.
        is_use: whether eviction should take it for used lately; verification is no use.
    """

    def __init__(
        self,
        paths: tuple[Path, Path],
        blocks: BlockMap,
        data: int,
        direct: int,
        metrics: Metrics,
        *,
        room: Callable[[int], bool],
        written: Callable[[int], None],
        failed: Callable[[OSError], None],
        completed: Callable[["DiskContent"], None],
        is_use: bool,
    ) -> None:
        self.map_path, self.data_path = paths
        self.blocks = blocks
        self._data = data
        self._direct = direct
        self._metrics = metrics
        self._room = room
        self._written = written
        self._failed = failed
        self._completed = completed
        self._is_use = is_use
        self._lock = threading.Lock()
        self._uses = 0
        self._closing = False
        self._warned = False
        self._absent = blocks.count - blocks.present()

    def missing(self, extent: Extent) -> list[Extent]:
        blocks = self.blocks.blocks(extent)
        runs: list[Extent] = []
        with self._used() as usable:
            words = self.blocks.words(blocks) if usable else [0] * len(blocks)
        for number, word in zip(blocks, words, strict=True):
            if word:
                continue
            block = self.blocks.extent_of(number)
            if runs and runs[-1].stop == block.start:
                runs[-1] = Extent(runs[-1].start, block.stop)
            else:
                runs.append(block)
        return runs

    def read_into(self, extent: Extent, buffer: memoryview) -> bool:
        with self._used() as usable:
            if not usable:
                return False
            widened = self._widened(extent)
            if widened == extent:
                return self._read_blocks(widened, buffer[: extent.size], 0)
            whole = memoryview(bytearray(widened.size))
            if not self._read_blocks(widened, whole, 0):
                return False
            start = extent.start - widened.start
            buffer[: extent.size] = whole[start : start + extent.size]
            return True

    def read_resident(self, extent: Extent) -> memoryview | None:
        with self._used() as usable:
            if not usable:
                return None
            widened = self._widened(extent)
            words = self.blocks.words(self.blocks.blocks(widened))
            if 0 in words:
                return None
            whole = memoryview(bytearray(widened.size))
            # RWF_NOWAIT: the kernel answers from its page cache or says EAGAIN.
            if not self._read_blocks(widened, whole, os.RWF_NOWAIT):
                return None
            start = extent.start - widened.start
            return whole[start : start + extent.size]

    def publish(self, start: int, data: memoryview) -> bool:
        with self._used() as usable:
            if not usable or not self._room(len(data)):
                return False
            try:
                self._write(start, data)
            except OSError as error:
                self._failed(error)
                return False
            finally:
                self._written(len(data))
            size = self.blocks.block_size
            fresh = 0
            for offset in range(0, len(data), size):
                number = (start + offset) // size
                fresh += self.blocks.words(range(number, number + 1)) == [0]
                self.blocks.set(number, checksum(data[offset : offset + size], number))
            self._metrics.count("cache_written_bytes", len(data))
            with self._lock:
                self._absent -= fresh
                complete = self._absent <= 0 < fresh
        if complete:
            self._completed(self)
        return True

    @contextlib.contextmanager
    def _hold(self, file: int) -> Iterator[None]:
        try:
            yield
        finally:
            os.close(file)

    def claim(self, extent: Extent) -> contextlib.AbstractContextManager[None] | None:
        # OFD locks belong to the open file description: one of its own for each claim, so that two
        # claims exclude each other in one process just as in two, and die with their holder.
        blocks = self.blocks.blocks(extent)
        try:
            file = os.open(self.map_path, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return contextlib.nullcontext()  # evicted, or the disk is gone: nobody to agree with
        try:
            locked = lock_blocks(file, blocks)
        except OSError:
            locked = True  # a file system without locks: everybody fetches for himself
        if not locked:
            os.close(file)
            return None
        return self._hold(file)

    def close(self) -> None:
        with self._lock:
            self._closing = True
            if self._uses:
                return  # the last use closes
        self._release()

    def read_all(self) -> Iterator[memoryview]:
        """Give the whole content, verified block-wise, in pieces; ends early at a bad block."""
        piece = memoryview(bytearray(4 * 1024 * 1024))
        for extent in Extent(0, self.blocks.content.size).pieces(len(piece)):
            if not self.read_into(extent, piece):
                return
            yield piece[: extent.size]

    def drop(self) -> None:
        """Make every block absent."""
        with self._used() as usable:
            if usable:
                self.blocks.clear(range(self.blocks.count))

    @contextlib.contextmanager
    def _used(self) -> Iterator[bool]:
        """Keep the files open for the time of a call; False: they are closed already."""
        with self._lock:
            usable = not self._closing
            if usable:
                self._uses += 1
        try:
            yield usable
        finally:
            if usable:
                with self._lock:
                    self._uses -= 1
                    last = self._closing and self._uses == 0
                if last:
                    self._release()

    def _release(self) -> None:
        with self._lock:
            data, self._data = self._data, -1
        if data >= 0:
            if self._is_use:
                with contextlib.suppress(OSError):
                    os.utime(self.map_path)  # last use, for eviction
            os.close(data)
            if self._direct >= 0:
                os.close(self._direct)
            self.blocks.close()

    def _widened(self, extent: Extent) -> Extent:
        return extent.aligned(self.blocks.block_size, self.blocks.content.size)

    def _read_blocks(self, extent: Extent, buffer: memoryview, flags: int) -> bool:
        """Read whole blocks into *buffer* and verify each; False: one is missing or bad."""
        blocks = self.blocks.blocks(extent)
        words = self.blocks.words(blocks)
        if 0 in words:
            return False
        position = 0
        try:
            while position < extent.size:
                count = os.preadv(self._data, [buffer[position:]], extent.start + position, flags)
                if not count:
                    break
                position += count
        except BlockingIOError:
            return False
        except OSError as error:
            self._failed(error)
            return False
        if position < extent.size and flags:
            return False
        good = True
        size = self.blocks.block_size
        for index, (number, word) in enumerate(zip(blocks, words, strict=True)):
            block = buffer[index * size : (index + 1) * size]
            if checksum(block, number) != word and not self._read_again(number, block):
                good = False
        return good

    def _read_again(self, number: int, block: memoryview) -> bool:
        """Look twice before a block is called damaged.

        It may have been evicted and published anew while we read it. Whoever does either holds the
        lock of the block; with the lock ours, the word and the bytes stand still.
        """
        extent = self.blocks.extent_of(number)
        lock = self.claim(extent)
        if lock is None:
            return False  # somebody is at it: as good as missing
        with lock:
            (word,) = self.blocks.words(range(number, number + 1))
            if not word:
                return False
            try:
                os.preadv(self._data, [block], extent.start)
            except OSError as error:
                self._failed(error)
                return False
            if checksum(block, number) == word:
                return True
            self.blocks.clear(range(number, number + 1))
            self._damaged(number)
            return False

    def _write(self, position: int, data: memoryview) -> None:
        """Write past the page cache where alignment allows.

        The kernel keeps these bytes in the pages of the mount anyway: a second copy would cost
        their memory, and most of the CPU time of the write.
        """
        direct = len(data) - len(data) % _DIRECT_UNIT
        if self._direct >= 0 and position % _DIRECT_UNIT == 0 and direct >= _DIRECT_LEAST:
            try:
                written = os.pwrite(self._direct, data[:direct], position)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                written = 0  # memory that is not aligned, or a file system with other rules
            position += written
            data = data[written:]
        while data:
            written = os.pwrite(self._data, data, position)
            position += written
            data = data[written:]

    def _damaged(self, number: int) -> None:
        self._metrics.count("cache_corrupt_blocks")
        with self._lock:
            self._absent += 1
            warned, self._warned = self._warned, True
        if not warned:
            log.warning(
                "%s: block %d does not match its checksum: fetching it again",
                self.data_path,
                number,
            )
