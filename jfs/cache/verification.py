"""Compare complete contents with their digest, in the background.

Blocks are verified one by one whenever they are read back, but against checksums of what arrived.
Only the digest of the whole tells whether the server sent the right bytes in the first place, and
that costs as much CPU time as receiving them did (sha256 1.3 GB/s on one core): so it waits until
no data has moved for a while.

Any thread.
"""

import contextlib
import hashlib
import logging
import os
import threading
import time
from collections.abc import Callable

from cachetools import TTLCache

from jfs.cache.content import DiskContent
from jfs.errors import CacheError
from jfs.metrics import Metrics
from jfs.model import ContentKey
from jfs.threads import started

log = logging.getLogger(__name__)

# Verification begins after this long without data moving. On two cores a reader beside a running
# verification had 0.3 of the speed that it had alone, out of the kernel's page cache.
_QUIET_S = 2.0
# On a mount that is never idle it begins after this long all the same, at the lowest priority.
_PATIENCE_S = 60.0
# How long a content that failed is remembered: a server that was repaired is believed again.
_MEMORY_S = 300.0


class Verifier:
    """One thread that verifies what was completed.

    Args:
        inspect: opens a content without counting that as a use. Raises CacheError.
        quiet_s: verification begins after this long without data moving.
    Attributes:
        rejected: called in the thread that has found out, once ``rejections`` tells.
    """

    def __init__(
        self,
        inspect: Callable[[ContentKey], DiskContent],
        metrics: Metrics,
        *,
        quiet_s: float = _QUIET_S,
    ) -> None:
        self._inspect = inspect
        self._metrics = metrics
        self._quiet_s = quiet_s
        self._thread = started(1, "jfs-verify")
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._waiting: set[ContentKey] = set()
        self._rejections: TTLCache[ContentKey, int] = TTLCache(1024, _MEMORY_S)
        self.rejected: Callable[[], None] = lambda: None

    def submit(self, key: ContentKey) -> None:
        """Verify *key* in the background, once no data moves. Does not block."""
        with self._lock:
            if key in self._waiting:
                return
            self._waiting.add(key)
        with contextlib.suppress(RuntimeError):  # closing
            self._thread.submit(self._quietly, key)

    def rejections(self, key: ContentKey) -> int:
        """How often *key* did not match its digest, lately. Does not block."""
        with self._lock:
            return self._rejections.get(key, 0)

    def verify(self, key: ContentKey) -> bool:
        """Compare a complete content with its digest; one that does not match is dropped.

        Returns:
            Whether every byte is there and matches.
        """
        try:
            content = self._inspect(key)
        except CacheError:
            return False
        try:
            if not content.complete:
                return False
            if content.verified:
                return True
            stamp = content.stamp
            algorithm, _, digest = key.digest.partition(":")
            found = hashlib.new(algorithm)
            length = 0
            for piece in content.read_all():
                if self._closed.is_set():
                    return False
                found.update(piece)
                length += len(piece)
            if length != key.size:
                return False  # evicted meanwhile
            if found.hexdigest() == digest:
                content.note_verified(stamp)
                self._metrics.count("verified_contents")
                return True
            self._metrics.count("integrity_errors")
            with self._lock:
                self._rejections[key] = self._rejections.get(key, 0) + 1
            self.rejected()
            log.error("%s: what the server sent does not match its checksum: dropped", key)
            content.drop()
            return False
        finally:
            content.close()

    def close(self) -> None:
        """End the thread, within one piece of hashing; what waits is verified when it is opened."""
        self._closed.set()
        self._thread.shutdown(cancel_futures=True)

    def _quietly(self, key: ContentKey) -> None:
        # On Linux the nice value belongs to the thread.
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
        if self._is_complete(key):
            self._wait_for_quiet()
        with self._lock:
            self._waiting.discard(key)
        if not self._closed.is_set():
            self.verify(key)

    def _is_complete(self, key: ContentKey) -> bool:
        try:
            content = self._inspect(key)
        except CacheError:
            return False
        try:
            return content.complete
        finally:
            content.close()

    def _wait_for_quiet(self) -> None:
        patience = time.monotonic() + _PATIENCE_S
        moved = self._moved()
        while time.monotonic() < patience and not self._closed.wait(self._quiet_s):
            before, moved = moved, self._moved()
            if before == moved:
                return

    def _moved(self) -> int:
        counters = self._metrics.snapshot()
        return counters.get("received_bytes", 0) + counters.get("disk_bytes", 0)
