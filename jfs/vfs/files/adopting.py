"""What was uploaded becomes a cache entry: nobody who reads it next has to fetch it. Trio thread.

That is of the cache's disk as well as of the staging directory's. It has threads of its own: a
cache that hangs, or is slow to make room, fails no write, and no READ waits behind a large copy.
"""

import logging
from contextlib import suppress

from jfs.errors import DiskHangs, disk_words
from jfs.model import FileInfo
from jfs.vfs.files.openfile import version_of
from jfs.vfs.reading.reader import DataPlane
from jfs.vfs.writing.staging import StagingFile, forgotten
from jfs.waiting import Disk

log = logging.getLogger(__name__)

_THREADS = 8
_PATIENCES = 3  # of a READ's: to take a file in is more than to read a block


class Adopting:
    """See the module."""

    def __init__(self, plane: DataPlane) -> None:
        self._store = plane.store
        patience_s = _PATIENCES * plane.settings.disk_patience_s
        self._disk = Disk("the cache's disk, to take in what was uploaded,", _THREADS, patience_s)

    async def adopt(self, info: FileInfo, staged: StagingFile) -> None:
        """Forget what is staged, which the server has; the cache takes it in, if it can."""
        if self._store is not None and info.size and staged.lent is None:
            try:
                await self._disk.run(self._adopt, info, staged, shielded=True, size=staged.size)
                return
            except DiskHangs as error:
                log.warning("%s: not taken into the cache: %s", info.path, disk_words(error))
                if error.asked:  # the thread goes on, and forgets it
                    return
        await forgotten(staged)

    def _adopt(self, info: FileInfo, staged: StagingFile) -> None:
        """Blocking; a worker thread."""
        assert self._store is not None
        assert staged.entry is not None
        with suppress(OSError):  # what is reserved stays then: the cache looks at its size
            staged.trim()
        words = staged.sums(info.checksums.sha256 or "")
        self._store.adopt(version_of(info).content, staged.entry.data_path, words)
        staged.forget_quietly()
