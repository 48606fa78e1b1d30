"""One content of the cache, opened: read blocks back verified, publish new ones, claim fetches.

Any thread. Never raises for what the disk does: a block is read whole and verified, or it is
missing.
"""

import contextlib
import logging
import os
import threading
from array import array
from collections.abc import Callable, Iterator
from typing import TypeVar

from jfs import descriptors
from jfs.cache.blockmap import BlockMap, checksum, checksums, lock_blocks, stamp_of
from jfs.cache.files import EntryFiles
from jfs.cache.shelf import Shelf
from jfs.cache.whole import WholeFile, hold
from jfs.disk import fill
from jfs.errors import CacheError, is_not_supported
from jfs.extents import Extent, MiB
from jfs.model import ContentKey

log = logging.getLogger(__name__)

_T = TypeVar("_T")

_PIECE = 4 * MiB


class DiskContent:
    """``CachedContent`` on disk; made by ``DiskBlockStore.open``.

    Args:
        is_use: whether eviction should take it for used lately; verification is no use.
    Attributes:
        recent, closed: see ``files.Holder``.
    """

    def __init__(self, key: ContentKey, files: EntryFiles, shelf: Shelf, *, is_use: bool) -> None:
        self.key = key
        self.recent = True
        self.map_path = files.map_path
        self._files: EntryFiles | None = files
        self._shelf = shelf
        self._block_size = shelf.block_size
        self._nowait = shelf.abilities.nowait
        self._is_use = is_use
        self._lock = threading.Lock()
        # Held while the map is read, so apart from the other, which the event loop takes too.
        self._completing = threading.Lock()
        self._uses = 0
        self.closed = False
        self._is_written = False
        self._warned = False
        # Every block before it was present when we looked. It moves on when the block at it is
        # published: so the end of a download is found without reading the whole map each time.
        self._complete_to = 0
        self._published = False

    def missing(self, extent: Extent) -> list[Extent]:
        size, end = self._block_size, self.key.size
        blocks = range(extent.start // size, -(-extent.stop // size))
        runs = self._with_map(lambda found: found.missing(blocks), [blocks])
        return [Extent(run.start * size, min(run.stop * size, end)) for run in runs if run]

    def read_into(self, extent: Extent, buffer: memoryview) -> bool:
        files = self._use()
        if files is None:
            return False
        try:
            widened = extent.aligned(self._block_size, self.key.size)
            if widened == extent:
                return self._read_blocks(files, widened, buffer[: extent.size])
            whole = memoryview(bytearray(widened.size))
            if not self._read_blocks(files, widened, whole):
                return False
            start = extent.start - widened.start
            buffer[: extent.size] = whole[start : start + extent.size]
            return True
        finally:
            self._end_use()

    def read_resident(self, extent: Extent) -> memoryview | None:
        # Files that are closed are opened in a thread.
        if not self._nowait or self._files is None:
            return None
        files = self._use()
        if files is None:
            return None
        try:
            widened = extent.aligned(self._block_size, self.key.size)
            whole = self._read_if_resident(files, widened)
            if whole is None:
                return None
            start = extent.start - widened.start
            return whole[start : start + extent.size]
        finally:
            self._end_use()

    def publish(
        self,
        start: int,
        data: memoryview,
        words: "array[int] | None" = None,
        *,
        stays: bool = False,
    ) -> bool:
        files = self._use()
        if files is None:
            return False
        try:
            return self._publish(files, start, data, words, stays)
        except OSError as error:
            self._shelf.failed(error)
            return False
        finally:
            self._end_use()

    def claim(self, extent: Extent) -> contextlib.AbstractContextManager[None] | None:
        if not self._shelf.abilities.claims:
            return contextlib.nullcontext()
        files = self._use()
        if files is None:
            return contextlib.nullcontext()
        try:
            # OFD locks belong to the open file description: one of its own for each claim, so that
            # two claims exclude each other in one process just as in two, and die with their
            # holder. Not by the map's path, where another map may be by now.
            name = f"/proc/self/fd/{files.blocks.fd}"
            file = descriptors.opening(lambda: os.open(name, os.O_RDWR | os.O_CLOEXEC))
        except OSError:
            return contextlib.nullcontext()  # fetched twice is better than not at all
        finally:
            self._end_use()
        try:
            locked = lock_blocks(file, files.blocks.blocks(extent))
        except OSError:
            locked = True
        if not locked:
            os.close(file)
            return None
        return _holding(file)

    def close(self) -> None:
        with self._lock:
            self.closed = True
            if self._uses:
                return  # the last use closes
        self._close_files()

    def read_all(self) -> Iterator[memoryview]:
        """Yield the whole content, verified block-wise, in pieces; end early at a bad block."""
        piece = memoryview(bytearray(min(_PIECE, -(-self.key.size // 4096) * 4096)))
        for extent in Extent(0, self.key.size).pieces(_PIECE):
            if not self.read_into(extent, piece):
                return
            yield piece[: extent.size]

    def drop(self) -> None:
        """Make every block absent."""

        def clear(blocks: BlockMap) -> None:
            self._is_written = True
            blocks.set_unverified()
            blocks.clear(range(blocks.count))

        self._with_map(clear, None)

    @property
    def complete(self) -> bool:
        """Whether every block is there."""
        return self._with_map(BlockMap.is_complete, False)

    @property
    def verified(self) -> bool:
        """Whether the whole content has been held against its digest."""
        return self._with_map(lambda blocks: blocks.verified, False)

    @property
    def stamp(self) -> int:
        """``stamp_of`` its file, 0: none; for ``note_verified``, once all of it was read."""
        return self._with_files(lambda files: stamp_of(files.data), 0)

    def note_verified(self, stamp: int) -> None:
        """Note that the whole content matches its digest, and did so at a *stamp*."""
        self._is_written = True
        self._with_map(lambda blocks: blocks.set_verified(stamp), None)

    def is_verified(self) -> bool:
        return self._with_map(lambda blocks: blocks.verified and blocks.is_complete(), False)

    def vouch(self) -> bool:
        stamp = self.stamp
        if not stamp or not self.complete:
            return False
        self.note_verified(stamp)
        return True

    def whole(self) -> WholeFile | None:
        files = self._use()
        return hold(files, self._shelf, self._end_use) if files is not None else None

    @property
    def looks_complete(self) -> bool:
        """Whether the first blocks and the last are there: an open has no time for more."""
        return self._with_map(BlockMap.looks_complete, False)

    # descriptors

    def close_idle_files(self) -> bool:
        """Close the files until they are used again. False: somebody uses them."""
        with self._lock:
            if self._uses:
                return False
            files, self._files = self._files, None
        if files is not None:
            self._let_go(files)
        return True

    def _use(self) -> EntryFiles | None:
        """Keep the files open for the time of a call, which ends it with ``_end_use``.

        None: the content is closed, or its files cannot be opened again; nothing is to be ended.
        """
        with self._lock:
            if self.closed:
                return None
            files = self._files
            if files is not None:
                self._uses += 1
                self.recent = True
                return files
        return self._open_again()

    def _open_again(self) -> EntryFiles | None:
        try:
            fresh = self._shelf.open_files(self.key, wait=False)
        except (OSError, CacheError) as error:
            log.debug("%s: its files cannot be opened: %s", self.key, error)
            return None
        files = None
        with self._lock:
            if not self.closed:
                if self._files is None:
                    self._files, self._complete_to = fresh, 0
                files = self._files
                self._uses += 1
                self.recent = True
        if files is fresh:
            self._shelf.opened(self)
        else:
            fresh.close()  # another thread was faster, or it was closed meanwhile
        return files

    def _end_use(self) -> None:
        with self._lock:
            self._uses -= 1
            if self._uses or not self.closed:
                return
        self._close_files()

    def _with_map(self, call: Callable[[BlockMap], _T], otherwise: _T) -> _T:
        return self._with_files(lambda files: call(files.blocks), otherwise)

    def _with_files(self, call: Callable[[EntryFiles], _T], otherwise: _T) -> _T:
        """Return what *call* returns; *otherwise* if there are no files to be had, or it fails."""
        files = self._use()
        if files is None:
            return otherwise
        try:
            return call(files)
        except OSError as error:
            self._shelf.failed(error)
            return otherwise
        finally:
            self._end_use()

    def _close_files(self) -> None:
        with self._lock:
            files, self._files = self._files, None
        if files is not None:
            self._shelf.closed(self)
            self._let_go(files)

    def _let_go(self, files: EntryFiles) -> None:
        # What writes to the map gives it the time of any clock: also that is overwritten.
        if self._is_use or self._published or self._is_written:
            self._shelf.used(files.blocks.fd)
        if self._published and self._complete_to < files.blocks.count:
            # Another process may have published what was missing before our blocks.
            with contextlib.suppress(OSError):
                if files.blocks.first_absent(self._complete_to) == files.blocks.count:
                    self._shelf.completed(self.key)
        files.close()

    # blocks

    def _read_if_resident(self, files: EntryFiles, extent: Extent) -> memoryview | None:
        """Read whole blocks that are in the kernel's page cache, verified. Never waits for a disk.

        What is odd about them is left to who can wait.
        """
        size = self._block_size
        first = extent.start // size
        try:
            words = files.blocks.resident_words(range(first, -(-extent.stop // size)))
            if 0 in words:
                return None
            buffer = memoryview(bytearray(extent.size))
            if not fill(buffer, files.data, extent.start, os.RWF_NOWAIT):
                return None
        except BlockingIOError:
            return None
        except OSError as error:
            if is_not_supported(error):
                self._nowait = False  # the probe was on another file system than this file
            return None
        return buffer if checksums(buffer, size, first).tolist() == words else None

    def _read_blocks(self, files: EntryFiles, extent: Extent, buffer: memoryview) -> bool:
        """Read whole blocks into *buffer* and verify each; False: one is missing or bad."""
        size = self._block_size
        first = extent.start // size
        try:
            words = files.blocks.words(range(first, -(-extent.stop // size)))
            if 0 in words:
                return False
            fill(buffer, files.data, extent.start)  # what the file lacks is found by its sum
        except OSError as error:
            self._shelf.failed(error)
            return False
        good = True
        for index, (found, word) in enumerate(
            zip(checksums(buffer, size, first), words, strict=True)
        ):
            block = buffer[index * size : (index + 1) * size]
            if found != word and not self._read_again(files, first + index, block):
                good = False
        return good

    def _read_again(self, files: EntryFiles, number: int, block: memoryview) -> bool:
        """Look twice before a block is called damaged.

        It may have been evicted and published anew while we read it. Whoever does either holds the
        lock of the block; with the lock ours, the word and the bytes stand still.
        """
        extent = files.blocks.extent_of(number)
        lock = self.claim(extent)
        if lock is None:
            return False  # somebody is at it: as good as missing
        with lock:
            try:
                (word,) = files.blocks.words(range(number, number + 1))
                if not word:
                    return False
                os.preadv(files.data, [block], extent.start)
                if checksum(block, number) == word:
                    return True
                files.blocks.set_unverified()  # what is fetched instead is held against it again
                files.blocks.clear(range(number, number + 1))
            except OSError as error:
                self._shelf.failed(error)
                return False
            self._damaged(files, number)
            return False

    def _publish(
        self,
        files: EntryFiles,
        start: int,
        data: memoryview,
        words: "array[int] | None",
        stays: bool,
    ) -> bool:
        if files.blocks.is_removed():
            # Somebody removed the directory: files without a name are of no use to others.
            self._give_back(files)
            return False
        if not files.blocks.writable:
            self._give_back(files)  # opened again they can perhaps be written
            return False
        charged = len(data)
        if not self._shelf.abilities.sparse:
            charged = max(charged, start + charged - os.fstat(files.data).st_size)
        if not self._shelf.room(charged):
            return False
        size = self._block_size
        first = start // size
        try:
            files.write(start, data, direct=self._shelf.abilities.direct and not stays)
            words = words or checksums(data, size, first)
            files.blocks.set(first, words)
        finally:
            self._shelf.written(charged)
        self._shelf.metrics.count("cache_written_bytes", len(data))
        self._published = True
        self._shelf.worked()
        with self._completing:
            if not first <= self._complete_to < first + len(words):
                return True
        self._look_for_completion(files, first + len(words))
        return True

    def _look_for_completion(self, files: EntryFiles, present_to: int) -> None:
        # Under the lock, so that of two threads that publish neighbours the later one sees both.
        with self._completing:
            self._complete_to = files.blocks.first_absent(max(present_to, self._complete_to))
            complete = self._complete_to == files.blocks.count
        if complete:
            self._shelf.completed(self.key)

    def _give_back(self, files: EntryFiles) -> None:
        with self._lock:
            if self._files is not files or self._uses > 1:
                return  # a later publish will find nobody else reading
            self._files = None
        self._shelf.closed(self)
        files.close()

    def _damaged(self, files: EntryFiles, number: int) -> None:
        self._shelf.metrics.count("cache_corrupt_blocks")
        with self._completing:
            self._complete_to = min(self._complete_to, number)
            warned, self._warned = self._warned, True
        if not warned:
            log.warning(
                "%s: block %d does not match its checksum: fetching it again",
                files.data_path,
                number,
            )


@contextlib.contextmanager
def _holding(file: int) -> Iterator[None]:
    try:
        yield
    finally:
        os.close(file)
