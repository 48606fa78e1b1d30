"""Room on the staging directory's disk: looked for before bytes are brought, kept for who asks.

What a write was refused for want of room is half a file. Its writer was told; what there is of it
stays, for `jfs recover`, until its room is wanted for something else. Blocking; any thread.
"""

import logging
import os

from jfs.errors import disk_words, is_of_the_disk, no_room
from jfs.vfs.writing.journal import Entry, Journal

log = logging.getLogger(__name__)


class Room:
    """That of one staging directory.

    Attributes:
        largest: bytes that it could hold if it were empty.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        status = os.statvfs(journal.directory)
        self.largest = status.f_blocks * status.f_frsize

    def require(self, size: int, file: int | None = None) -> None:
        """Make sure that *size* bytes can be there, those that *file* has included.

        Raises OSError: the disk is full.
        """
        if self.lacks(size, file) and not (self.make() and not self.lacks(size, file)):
            raise no_room()

    def make(self) -> bool:
        """Drop what is half a file, and nobody's any more. Returns whether there was any."""
        return self._journal.make_room()

    def lacks(self, size: int, file: int | None) -> bool:
        """Whether so many bytes do not fit, as far as is known; as ``require``."""
        try:
            status = os.statvfs(self._journal.directory)
            held = os.fstat(file).st_blocks * 512 if file is not None else 0
        except OSError:  # who writes will find out
            return False
        free = status.f_bfree if os.geteuid() == 0 else status.f_bavail
        # Some file systems of a network know nothing of it.
        return bool(status.f_blocks) and size > held + free * status.f_frsize


def keep_half(entry: Entry, error: OSError) -> None:
    """Let the journal say what is wrong with a file. Never raises."""
    words = f"is not all that was written: {disk_words(error)}"
    try:
        entry.mark(half=True, error=words)
    except OSError as failed:
        level = logging.INFO if is_of_the_disk(failed) else logging.WARNING
        log.log(level, "%s: its journal cannot be written: %s", entry.record.path, failed)
