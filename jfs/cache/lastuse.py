"""When a content was last used, which eviction goes by: the time of its map. Blocking; any thread.

The clock of a machine is set forward and back, and begins in 1970 on some until a network is there.
What is used after that must still count as used later: otherwise what was used while the clock was
ahead would stay for years, and what is used while it is behind would be the first to go. So no use
is given an earlier time than one before it, of any process: the latest is the time of a file.
"""

import os
import stat
import time
from collections.abc import Callable
from pathlib import Path

_MARK = "last-use"
# The mark is at most so much behind, as long as the clock goes on: else every use would write it.
_BEHIND_NS = 1_000_000_000
# Between uses while the clock is behind the mark; far less than there is between real uses, so that
# a clock that was only a moment ahead catches up.
_STEP_NS = 1_000


class LastUse:
    """Times of use in one cache directory.

    Args:
        now: nanoseconds since 1970.
    """

    def __init__(self, directory: Path, now: Callable[[], int] = time.time_ns) -> None:
        self._mark = directory / _MARK
        self._now = now

    def note(self, entry: int | Path) -> None:
        """Give the map of an entry, open or by its path, the time of this use. Raises OSError."""
        latest, now = self._latest(), self._now()
        at = max(now, latest + _STEP_NS)
        os.utime(entry, ns=(at, at))
        if not latest <= now < latest + _BEHIND_NS:
            self._write(at)

    def _latest(self) -> int:
        try:
            return os.stat(self._mark, follow_symlinks=False).st_mtime_ns
        except FileNotFoundError:
            return -_BEHIND_NS

    def _write(self, at: int) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        file = os.open(self._mark, flags, 0o600)
        try:
            if stat.S_ISREG(os.fstat(file).st_mode):
                os.utime(file, ns=(at, at))
        finally:
            os.close(file)
