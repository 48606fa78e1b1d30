"""The block store: a directory of contents, shared by every mount and process of the node.

Any thread; blocking.
"""

import contextlib
import errno
import fcntl
import logging
import os
import re
import threading
import time
from array import array
from collections.abc import Callable
from pathlib import Path

from jfs import descriptors, directories
from jfs.cache import adoption, beginnings, eviction, filesystem
from jfs.cache.blockmap import (
    DATA_SUFFIX,
    MAP_SUFFIX,
    BadMap,
    BlockMap,
    checksum,
    entry_name,
    open_either,
)
from jfs.cache.content import DiskContent
from jfs.cache.files import EntryFiles, Holder, OpenFiles
from jfs.cache.filesystem import Abilities
from jfs.cache.lastuse import LastUse
from jfs.cache.verification import Verifier
from jfs.config import CacheSettings
from jfs.errors import CacheError, CachePaused, ConfigError, disk_advice, is_of_descriptors
from jfs.extents import GiB, MiB
from jfs.metrics import Metrics
from jfs.model import ContentKey

log = logging.getLogger(__name__)

# Digests come from a server and become file names: nothing but these.
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}|sha1:[0-9a-f]{40}")
# Pause of writing after an error of the disk: asking it at every block would cost every read. It
# doubles while the disk goes on failing, and one that is well again is found within seconds.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 30.0
# A disk that fails is said once, until it has worked for so long.
_WELL_S = 60.0
# Pause after nothing could be evicted, since all is in use or pinned: looking again at every block
# would read the whole directory each time. What this process closes ends it.
_FULL_S = 2.0
# Between looks at what other processes have written.
_RESCAN_BYTES = 256 * MiB
# Room is asked for in pieces of this size and handed out from them: a look at the disk costs 2 µs.
_GRANT = 4 * MiB
_OPEN_TRIES = 16
# Files of contents that are held open for the kernel's sake are two descriptors each, which cannot
# be given back: half of what the cache may have (``files``).
_HELD_SHARE = 8
_FLOOR, _FLOOR_SHARE = 1 * GiB, 10
_LEAST_USEFUL = 4 * MiB
_SPARED = 256 * MiB  # for others, by what would be of use to somebody later


class DiskBlockStore:
    """``BlockStore`` on disk; see the module. It is the ``Shelf`` of its contents.

    Args:
        abilities: of the file system; None: they are found out.
        now: see ``LastUse``.
    Raises:
        CacheError: there is no directory that can be used.
    """

    def __init__(
        self,
        settings: CacheSettings,
        metrics: Metrics,
        abilities: Abilities | None = None,
        now: Callable[[], int] = time.time_ns,
    ) -> None:
        self._settings = settings
        self.metrics = metrics
        self.block_size = settings.block_size
        self._directory = _made(settings.directory)
        try:
            self.abilities = abilities or filesystem.probe(self._directory)
            self._floor = _floor(settings, self._directory)
        except OSError as error:
            raise CacheError(f"{self._directory}: {error.strerror}") from error
        if self._directory != settings.directory:
            log.info(
                "%s: others can look in: the cache is in %s", settings.directory, self._directory
            )
        log.debug("%s: %s", self._directory, self.abilities)
        self._lock = threading.Lock()
        self._paused_until = 0.0
        self._pause_s = _FIRST_PAUSE_S
        self._failed_at: float | None = None  # None: it works
        self._full_until = 0.0
        self._used = 0
        self._granted = 0  # of what is used: room that was asked for and not handed out yet
        self._pending = 0  # bytes that have room and may not be on disk yet
        self._since_scan = _RESCAN_BYTES  # the first write looks
        self._held = 0
        self._open_files = OpenFiles()
        self._last_use = LastUse(self._directory, now)
        self._verifier = Verifier(self.inspect, metrics)
        self._end_holding = descriptors.add_holder(self._open_files.close_half)

    def open(self, content: ContentKey) -> DiskContent:
        opened = self._open(content, is_use=True)
        if not opened.verified and opened.looks_complete:
            # Completed by a process that ended before it had verified it.
            self._verifier.submit(content)
        return opened

    def inspect(self, content: ContentKey) -> DiskContent:
        """Open an entry as ``open`` does, without counting that as a use."""
        return self._open(content, is_use=False)

    def close(self) -> None:
        self._end_holding()
        self._verifier.close()

    def checksum(self, block: memoryview, number: int) -> int:
        return checksum(block, number)

    def adopt(self, content: ContentKey, staged: Path, words: "array[int] | None" = None) -> bool:
        paths = self._paths(content)
        if not self.room(content.size):
            return False
        try:
            with contextlib.suppress(OSError):  # another file system: its bytes are copied
                if self.abilities.locks and adoption.install(
                    paths, content, self.block_size, staged, words
                ):
                    self.used(paths[0])
                    return True
            adoption.fill(self.inspect(content), staged)
        except (OSError, CacheError) as error:
            log.info("%s: not taken in: %s", staged, error)
        finally:
            self.written(content.size)
        return False

    def has_beginning(self, file: Path, size: int) -> bool:
        return beginnings.is_known(self._directory, file, size)

    def fits(self, content: ContentKey) -> bool:
        if content.size > self._settings.budget_bytes:
            return False
        try:
            status = os.statvfs(self._directory)
        except OSError:
            return False
        return content.size <= status.f_blocks * status.f_frsize - self._floor

    def verify(self, content: ContentKey) -> bool:
        """Compare a content with its digest now; see ``Verifier.verify``."""
        return self._verifier.verify(content)

    def spare(self) -> int:
        budget = self._settings.budget_bytes
        used = sum(entry.used_bytes for entry in eviction.entries(self._directory))
        free = min(budget - used, self._free() - self._floor) - self._pending
        return max(0, free - min(_SPARED, budget // 8))

    def when_rejected(self, call: Callable[[], None]) -> None:
        """Have *call* called whenever ``rejections`` of a content has changed. In any thread."""
        self._verifier.rejected = call

    def rejections(self, content: ContentKey) -> int:
        return self._verifier.rejections(content)

    @property
    def directory(self) -> Path:
        """Where the contents lie."""
        return self._directory

    def lack_of_space(self) -> str | None:
        """Describe in one line that the disk has no space for a cache; None: it has."""
        try:
            status = os.statvfs(self._directory)
            free = status.f_bavail * status.f_frsize
            if free >= self._floor + _LEAST_USEFUL:
                return None
            cached = sum(entry.used_bytes for entry in eviction.entries(self._directory))
        except OSError as error:
            return f"{self._directory}: {error.strerror}"
        if free + cached >= self._floor + _LEAST_USEFUL:
            return None  # what was used least recently makes room
        return (
            f"{self._directory}: {_size(free)} of {_size(status.f_blocks * status.f_frsize)} are "
            f"free, and {_size(self._floor)} are left to others: nothing more is cached: "
            "free some space, or give a --cache-dir on another disk"
        )

    # the shelf of the contents

    def open_files(self, content: ContentKey, *, wait: bool) -> EntryFiles:
        paths = self._paths(content)
        damaged = False
        for _ in range(_OPEN_TRIES):
            try:
                files = descriptors.opening(lambda: self._open_once(paths, content, wait))
            except BadMap as error:
                if damaged:  # the one that was made a moment ago
                    raise OSError(errno.EIO, "what was written is read otherwise") from error
                damaged = True
                log.warning("%s: made anew", error)
                paths[0].unlink(missing_ok=True)
                continue
            if files is not None:
                return files
            if not self._directory.is_dir():
                self._make_again()
        raise CacheError(f"{self._directory}: the entry of {content} keeps vanishing")

    def opened(self, content: Holder) -> None:
        self._open_files.add(content)

    def closed(self, content: Holder) -> None:
        self._open_files.remove(content)
        self._full_until = 0.0

    def room(self, size: int) -> bool:
        with self._lock:
            if size <= self._granted:
                self._granted -= size
                self._pending += size
                return True
        if size > self._settings.budget_bytes or time.monotonic() < self._paused_until:
            return False
        # A sixteenth of a small cache at most: what is granted is not there for other processes.
        grant = min(_GRANT, self._settings.budget_bytes // 16)
        try:
            return (size < grant and self._ask(size, grant)) or self._ask(size, size)
        except FileNotFoundError:
            with contextlib.suppress(OSError):
                self._make_again()
        except OSError as error:
            self.failed(error)
        return False

    def written(self, size: int) -> None:
        with self._lock:
            self._pending -= size

    def failed(self, error: OSError) -> None:
        """Pause writing for a while; a shortage of descriptors is no fault of the disk."""
        now = time.monotonic()
        if is_of_descriptors(error):
            descriptors.complain(error)
            return
        self.metrics.count("cache_disk_errors")
        with self._lock:
            first, self._failed_at = self._failed_at is None, now
            if now >= self._paused_until:
                self._paused_until = now + self._pause_s
                self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)
            self._used -= self._granted
            self._granted = 0
        if first:
            log.warning(
                "%s: %s: reading past the cache while it fails: %s",
                self._directory,
                error.strerror or error,
                disk_advice(error, "--cache-dir"),
            )

    def worked(self) -> None:
        if self._failed_at is None:
            return
        with self._lock:
            self._pause_s = _FIRST_PAUSE_S
            if self._failed_at is None or time.monotonic() - self._failed_at < _WELL_S:
                return
            self._failed_at = None
        log.info("%s: its disk works again", self._directory)

    def completed(self, content: ContentKey) -> None:
        self._verifier.submit(content)

    def used(self, entry: int | Path) -> None:
        with contextlib.suppress(OSError):
            self._last_use.note(entry)

    def may_hold(self, count: int) -> bool:
        with self._lock:
            if count > 0 and (
                self._held + count > descriptors.limit() // _HELD_SHARE
                or self._has_failed_lately()  # who reads here reads past a bad disk
            ):
                return False
            self._held += count
            return True

    def _has_failed_lately(self) -> bool:
        return self._failed_at is not None and time.monotonic() - self._failed_at < _WELL_S

    # one entry

    def _open(self, content: ContentKey, *, is_use: bool) -> DiskContent:
        try:  # also while the disk is left alone: what is cached may be readable
            files = self.open_files(content, wait=True)
        except OSError as error:
            self.failed(error)
            raise CachePaused(f"{self._directory}: {error.strerror}") from error
        if is_use:
            self.used(files.blocks.fd)
        opened = DiskContent(content, files, self, is_use=is_use)
        self._open_files.add(opened)
        return opened

    def _paths(self, content: ContentKey) -> tuple[Path, Path]:
        if not _DIGEST.fullmatch(content.digest) or content.size <= 0:
            raise CacheError(f"{content.digest!r:.100} is not a digest")
        name = entry_name(content)
        folder = self._directory / content.digest.partition(":")[2][:2]
        return folder / (name + MAP_SUFFIX), folder / (name + DATA_SUFFIX)

    def _open_once(
        self, paths: tuple[Path, Path], content: ContentKey, wait: bool
    ) -> EntryFiles | None:
        """Open an entry; None when it was evicted between two of our steps. Raises BadMap."""
        map_path, data_path = paths
        try:
            blocks = BlockMap.open(map_path, content, self.block_size)
        except FileNotFoundError:
            return None  # evicted as soon as it was made, or the directory is gone
        try:
            if self.abilities.locks:
                fcntl.flock(blocks.fd, fcntl.LOCK_SH | (0 if wait else fcntl.LOCK_NB))
            if not blocks.is_at(map_path):
                blocks.close()
                return None
            data = self._open_data(data_path)
        except BaseException as error:
            blocks.close()
            if isinstance(error, FileNotFoundError):
                return None
            raise
        if not blocks.writable:
            self.failed(OSError(errno.EROFS, os.strerror(errno.EROFS)))
        return EntryFiles(map_path, data_path, blocks, data)

    def _open_data(self, path: Path) -> int:
        file, _ = open_either(path, os.O_CREAT)
        if os.fstat(file).st_uid != os.geteuid():
            os.close(file)
            raise CacheError(f"{path}: belongs to another user")
        return file

    # room

    def _ask(self, size: int, grant: int) -> bool:
        """Whether *grant* more bytes may be written; evicts for them if need be. Raises OSError.

        If so, *size* of them are pending, and the others granted.
        """
        budget = self._settings.budget_bytes
        lacking = self._floor + grant - self._free()
        with self._lock:
            self._used += grant - self._granted
            self._since_scan += grant - self._granted
            self._granted = 0
            if (
                self._since_scan >= min(_RESCAN_BYTES, budget // 8)
                or self._used > budget
                or lacking > 0
            ):
                if time.monotonic() < self._full_until:
                    self._used -= grant
                    return False
                # What others of this process are writing now is on no scan.
                taken = self._pending + grant
                self._used = taken + eviction.make_room(
                    self._directory,
                    budget,
                    taken,
                    at_least=max(0, lacking),
                    keep=() if self.abilities.locks else self._open_files.paths(),
                )
                self._since_scan = 0
            if self._used > budget or (lacking > 0 and self._free() < self._floor + grant):
                self._used -= grant
                if grant == size:
                    self._full_until = time.monotonic() + _FULL_S
                return False
            self._pending += size
            self._granted = grant - size
            return True

    def _free(self) -> int:
        status = os.statvfs(self._directory)
        return status.f_bavail * status.f_frsize

    def _make_again(self) -> None:
        """The directory was removed under us: make it again, and go on. Raises OSError."""
        try:
            directories.private(self._settings.directory)
        except ConfigError as error:
            raise OSError(errno.ENOENT, f"was removed, and cannot be made: {error}") from error
        log.info("%s: was removed, and is made again", self._directory)


def _made(directory: Path) -> Path:
    try:
        return directories.private(directory)
    except ConfigError as error:
        raise CacheError(str(error)) from error


def _floor(settings: CacheSettings, directory: Path) -> int:
    """Return the free space to leave: 1 GiB, or a tenth of a small disk."""
    if settings.free_floor_bytes is not None:
        return settings.free_floor_bytes
    status = os.statvfs(directory)
    return min(_FLOOR, status.f_blocks * status.f_frsize // _FLOOR_SHARE)


def _size(count: int) -> str:
    return f"{count / GiB:.1f} GiB" if count >= GiB else f"{count / MiB:.1f} MiB"
