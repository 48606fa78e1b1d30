"""The block store: a directory of contents, shared by every mount and process of the node.

Any thread; blocking. Lock order: the eviction lock of the directory, then the lock of a content's
map; a content in use holds the latter shared for as long as it is open.
"""

import contextlib
import fcntl
import logging
import os
import re
import stat
import threading
import time
from pathlib import Path

from jfs.cache import adoption, eviction
from jfs.cache.blockmap import BlockMap, map_length
from jfs.cache.content import DiskContent
from jfs.cache.verification import Verifier
from jfs.config import CacheSettings
from jfs.errors import CacheError
from jfs.metrics import Metrics
from jfs.model import ContentKey

log = logging.getLogger(__name__)

# Digests come from a server and become file names: nothing but these.
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}|sha1:[0-9a-f]{40}")
# A disk that refuses is left alone for so long: asking it at every block would cost every read.
_PAUSE_S = 30.0
# Between looks at what other processes have written.
_RESCAN_BYTES = 256 * 1024 * 1024
_OPEN_TRIES = 16


class DiskBlockStore:
    """``BlockStore`` on disk; see the module.

    Raises:
        CacheError: the directory cannot be made, or is open to other users.
    """

    def __init__(self, settings: CacheSettings, metrics: Metrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self._directory = settings.directory
        _prepare(settings.directory)
        self._lock = threading.Lock()
        self._paused_until = 0.0
        self._used = 0
        self._pending = 0  # bytes that were given room and may not be on disk yet
        self._since_scan = _RESCAN_BYTES  # the first write looks
        self._verifier = Verifier(self.inspect, metrics)

    @property
    def block_size(self) -> int:
        return self._settings.block_size

    def open(self, content: ContentKey) -> DiskContent:
        opened = self._open(content, is_use=True)
        blocks = opened.blocks
        if not blocks.verified and blocks.present() == blocks.count:
            # Completed by a process that ended before it had verified it.
            self._verifier.submit(content)
        return opened

    def inspect(self, content: ContentKey) -> DiskContent:
        """Open an entry as ``open`` does, without counting that as a use."""
        return self._open(content, is_use=False)

    def _open(self, content: ContentKey, *, is_use: bool) -> DiskContent:
        paths = self._paths(content)
        for _ in range(_OPEN_TRIES):
            try:
                opened = self._open_once(paths, content, is_use)
            except OSError as error:
                raise CacheError(f"{self._directory}: {error.strerror}") from error
            if opened is not None:
                return opened
        raise CacheError(f"{self._directory}: the entry of {content} keeps vanishing")

    def close(self) -> None:
        self._verifier.close()

    def adopt(self, content: ContentKey, staged: Path) -> bool:
        paths = self._paths(content)
        if not self._room(content.size):
            return False
        try:
            with contextlib.suppress(OSError):  # another file system: its bytes are copied
                if adoption.install(paths, content, self.block_size, staged):
                    return True
            adoption.fill(self.inspect(content), staged)
        except (OSError, CacheError) as error:
            log.info("%s: not taken in: %s", staged, error)
        finally:
            self._written(content.size)
        return False

    def _paths(self, content: ContentKey) -> tuple[Path, Path]:
        if not _DIGEST.fullmatch(content.digest) or content.size <= 0:
            raise CacheError(f"{content.digest!r:.100} is not a digest")
        algorithm, _, digest = content.digest.partition(":")
        base = self._directory / digest[:2] / f"{algorithm}-{digest}-{content.size}"
        return (
            base.with_name(base.name + eviction.MAP_SUFFIX),
            base.with_name(base.name + eviction.DATA_SUFFIX),
        )

    def _open_once(
        self, paths: tuple[Path, Path], content: ContentKey, is_use: bool
    ) -> DiskContent | None:
        """Open an entry; None when it was evicted between two of our steps."""
        map_path, data_path = paths
        # A map is a part of the budget too; without room for it the blocks find none either.
        length = 0 if map_path.exists() else map_length(content, self.block_size)
        charged = length if length and self._room(length) else 0
        try:
            blocks = BlockMap.open(map_path, content, self.block_size)
        except FileNotFoundError:
            return None  # evicted as soon as it was made
        except CacheError as error:
            log.warning("%s: made anew", error)
            map_path.unlink(missing_ok=True)
            return None
        finally:
            self._written(charged)
        try:
            fcntl.flock(blocks.fd, fcntl.LOCK_SH)
            if not blocks.is_at(map_path):
                blocks.close()
                return None
            data = os.open(data_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            direct = _open_direct(data_path)
            if os.fstat(data).st_size < content.size:
                os.ftruncate(data, content.size)
            if is_use:
                with contextlib.suppress(OSError):
                    os.utime(map_path)
        except BaseException:
            blocks.close()
            raise
        return DiskContent(
            paths,
            blocks,
            data,
            direct,
            self._metrics,
            room=self._room,
            written=self._written,
            failed=self._failed,
            completed=self._completed,
            is_use=is_use,
        )

    def _room(self, size: int) -> bool:
        """Whether *size* more bytes may be written; evicts for them if need be."""
        settings = self._settings
        if size > settings.budget_bytes or time.monotonic() < self._paused_until:
            return False
        try:
            status = os.statvfs(self._directory)
            lacking = settings.free_floor_bytes + size - status.f_bavail * status.f_frsize
            with self._lock:
                self._since_scan += size
                self._used += size
                if (
                    self._since_scan >= min(_RESCAN_BYTES, settings.budget_bytes // 8)
                    or self._used > settings.budget_bytes
                    or lacking > 0
                ):
                    self._used = eviction.make_room(
                        self._directory,
                        settings.budget_bytes,
                        # What others are writing now is on no scan.
                        self._pending + size,
                        at_least=max(0, lacking),
                    )
                    self._since_scan = 0
                    self._used += self._pending + size
                    if self._used > settings.budget_bytes:
                        self._used -= size
                        return False
                self._pending += size
            if lacking > 0:
                status = os.statvfs(self._directory)
                if status.f_bavail * status.f_frsize < settings.free_floor_bytes + size:
                    self._written(size)
                    return False
        except OSError as error:
            self._failed(error)
            return False
        return True

    def _written(self, size: int) -> None:
        with self._lock:
            self._pending -= size

    def _failed(self, error: OSError) -> None:
        """Leave the disk alone for a while."""
        self._metrics.count("cache_disk_errors")
        with self._lock:
            first = time.monotonic() >= self._paused_until
            self._paused_until = time.monotonic() + _PAUSE_S
        if first:
            log.warning(
                "%s: %s: reading past the cache for %.0f s",
                self._directory,
                error.strerror,
                _PAUSE_S,
            )

    def _completed(self, content: DiskContent) -> None:
        self._verifier.submit(content.blocks.content)

    def verify(self, key: ContentKey) -> bool:
        """Hold a content against its digest now; see ``Verifier.verify``."""
        return self._verifier.verify(key)

    def rejections(self, content: ContentKey) -> int:
        return self._verifier.rejections(content)


def _prepare(directory: Path) -> None:
    """Make the directory, private; refuse one that others could write to."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = directory.stat()
    except OSError as error:
        raise CacheError(f"{directory}: {error.strerror}") from error
    if not stat.S_ISDIR(status.st_mode):
        raise CacheError(f"{directory}: is not a directory")
    if status.st_uid != os.geteuid():
        raise CacheError(f"{directory}: belongs to another user")
    if stat.S_IMODE(status.st_mode) & 0o077:
        raise CacheError(f"{directory}: other users can look in: chmod 700 {directory}")


def _open_direct(path: Path) -> int:
    """Open a file past the page cache; -1 where the file system cannot (tmpfs)."""
    try:
        return os.open(path, os.O_WRONLY | os.O_DIRECT | os.O_CLOEXEC)
    except OSError:
        return -1
