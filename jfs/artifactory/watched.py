"""What files hold that others replace while we run: tokens, keys, certificates. Any thread.

Kubernetes swaps a symbolic link, ``jf`` and people write in place. For a moment such a file may be
missing, empty, half written or without its other half (a certificate whose key comes next): what it
held before serves on.

A file system may hang (NFS). So each look happens in a thread of its own, one at a time, is waited
for a second at most, and not at all while an earlier one has not come back.
"""

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

import trio

from jfs.errors import JfsError

log = logging.getLogger(__name__)

_T = TypeVar("_T")
_Stamp = tuple[tuple[int, int, int, int] | None, ...]

_PATIENCE_S = 1.0
# Two changes within a tick of the file system's clock (4 ms; of a FAT 2 s) look like one.
_YOUNG_NS = 2_000_000_000
_TRIES = 3  # of reading files that change meanwhile


class Watched(Generic[_T]):
    """See the module.

    Args:
        paths: the files; links are followed.
        read: reads them, in a thread; raises JfsError, with a message that names the file.
        known: what they held when it was last seen, if it was.
    """

    def __init__(
        self, paths: Sequence[Path], read: Callable[[], _T], known: _T | None = None
    ) -> None:
        self.paths = tuple(paths)
        self._read = read
        self._state = threading.Condition()
        self._value = known
        self._failure: JfsError | None = None
        self._failing = False
        self._stamp: _Stamp | None = None
        # Looks are numbered: who asks waits for one that began after it asked.
        self._asked = self._begun = self._done = 0
        self._surely = False
        self._hangs = False

    @property
    def known(self) -> _T | None:
        """What they held when it was last seen."""
        return self._value

    def now(self, *, surely: bool = False) -> _T:
        """Return what they hold, else what they held last.

        Blocking, for a second at most: not for the event loop.

        Args:
            surely: read them although they look unchanged.
        Raises:
            JfsError: of *read*, if they never held anything useful.
            TimeoutError: they were never read, since their file system does not answer.
        """
        with self._state:
            self._asked += 1
            mine = self._asked
            self._surely = self._surely or surely
            if self._begun == self._done:
                self._begun = mine
                trio.lowlevel.start_thread_soon(self._look_for_all, lambda _: None)
            if not self._hangs:
                self._hangs = not self._state.wait_for(lambda: self._done >= mine, _PATIENCE_S)
            if self._value is not None:
                return self._value
            if self._failure is not None:
                raise self._failure
        raise TimeoutError

    def _look_for_all(self) -> None:
        """Look until everybody who asked has an answer."""
        while True:
            with self._state:
                surely, self._surely = self._surely, False
                self._begun = self._asked
            self._look(surely)
            with self._state:
                self._done = self._begun
                self._hangs = False
                self._state.notify_all()
                if self._asked == self._done:
                    return
                self._begun = self._asked

    def _look(self, surely: bool) -> None:
        stamp = self._stamp_now()
        if not surely and not self._failing and stamp == self._stamp:
            return
        for _ in range(_TRIES):
            before = stamp
            try:
                value = self._read()
                failure = None
            except JfsError as error:
                failure = error
            stamp = self._stamp_now()
            if stamp == before:
                break
        if failure is not None:
            self._keep(failure)
            return
        with self._state:
            self._value = value
            recovered, self._failing = self._failing, False
            self._stamp = None if _is_young(stamp) else stamp
        if recovered:
            log.info("%s: can be used again", ", ".join(map(str, self.paths)))

    def _keep(self, failure: JfsError) -> None:
        with self._state:
            self._failure = failure
            begins = self._value is not None and not self._failing
            self._failing = self._value is not None
        if begins:
            log.warning("%s: what it held before serves on", failure)

    def _stamp_now(self) -> _Stamp:
        return tuple(_stamp_of(path) for path in self.paths)


def _stamp_of(path: Path) -> tuple[int, int, int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino, status.st_dev


def _is_young(stamp: _Stamp) -> bool:
    now = time.time_ns()
    return any(each is None or abs(now - each[0]) < _YOUNG_NS for each in stamp)
