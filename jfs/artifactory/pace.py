"""A minimum rate of transfers: below it a connection counts as silent."""

import time

from jfs.extents import KiB

# Without it a server that sends a byte now and then would keep a thread for ever.
_SLOWEST = 64 * KiB


class Pace:
    """Measures the blocks that it is the context of; the time between them does not count.

    Leaving a block raises TimeoutError when less than 64 KiB moved in *patience_s* seconds. One
    thread at a time.
    """

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s
        self._spent_s = 0.0
        self._moved = 0
        self._began = 0.0

    def moved(self, count: int) -> None:
        """Say that *count* bytes moved."""
        self._moved += count

    def __enter__(self) -> None:
        self._began = time.monotonic()

    def __exit__(self, *error: object) -> None:
        self._spent_s += time.monotonic() - self._began
        if self._moved >= _SLOWEST:
            self._spent_s, self._moved = 0.0, 0
        elif self._spent_s > self._patience_s:
            raise TimeoutError
