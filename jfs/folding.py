"""Which lines of a log are written, and which are only counted. No I/O; the caller holds a lock.

The first line of a kind is written at once. What follows within a minute is counted, and said in
one line at its end: ``… 240 times in 60 s, the last: …``. While it goes on there is one such line a
minute. So an outage costs a bounded number of lines, whatever asks how often.

A *kind* is the key that a record brings along (``fold_as``), of which one line a minute is
written, else the text of its call before names are filled in, of which some are.
"""

import contextlib
import copy
import logging
import math
import time
from collections.abc import Callable, Hashable
from typing import Final

WINDOW_S: Final = 60.0
_LINES = 20  # of one text within a window, which names different things in each
_KINDS = 100  # kinds at a time; those beyond share one
_REST: Final = "other messages"


def fold_as(*key: Hashable) -> dict[str, object]:
    """Return the ``extra`` of a log call of whose kind one line a minute is written."""
    return {"fold": key}


class _Kind:
    __slots__ = ("count", "ends", "last", "left", "since")

    def __init__(self, lines: int, now: float) -> None:
        self.left = lines
        self.since = now
        self.ends = now + WINDOW_S
        self.count = 0
        self.last: logging.LogRecord | None = None


class Folding:
    """See the module.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._kinds: dict[Hashable, _Kind] = {}
        self._first_end = math.inf

    def takes(self, record: logging.LogRecord) -> bool:
        """Whether the record is to be written now; else it is counted."""
        own = getattr(record, "fold", None)
        if own is None and record.levelno < logging.INFO:
            return True  # somebody wants to know everything
        key = own if own is not None else (record.name, record.levelno, str(record.msg))
        now = self._clock()
        kind = self._kinds.get(key)
        if kind is None:
            lines = 1 if own is not None else _LINES
            if len(self._kinds) >= _KINDS:
                key, lines = _REST, _LINES
                kind = self._kinds.get(key)
            if kind is None:
                kind = self._kinds[key] = _Kind(lines, now)
                self._first_end = min(self._first_end, kind.ends)
        if kind.left:
            kind.left -= 1
            return True
        kind.count += 1
        kind.last = _without_references(record)
        return False

    def due(self, *, now: bool = False) -> list[tuple[logging.LogRecord, int, float]]:
        """Return what was counted in windows that have ended: the last record, how many, seconds.

        Args:
            now: also what is counted at the moment: the process ends.
        """
        time_s = self._clock()
        if time_s < self._first_end and not now:
            return []
        found = []
        for key, kind in list(self._kinds.items()):
            if time_s < kind.ends and not now:
                continue
            if kind.last is None:
                del self._kinds[key]
                continue
            found.append((kind.last, kind.count, time_s - kind.since))
            # It goes on: from now on it is one line a window.
            self._kinds[key] = _Kind(0, time_s)
        self._first_end = min((kind.ends for kind in self._kinds.values()), default=math.inf)
        return found


def _without_references(record: logging.LogRecord) -> logging.LogRecord:
    """Return what is kept of a record: neither the objects that it names nor frames."""
    kept = copy.copy(record)
    with contextlib.suppress(Exception):  # a wrong call of the logger is said by who writes it
        kept.msg, kept.args = record.getMessage(), None
    kept.exc_info = kept.exc_text = kept.stack_info = None
    return kept
