"""How many range requests to have under way: additive increase, multiplicative decrease.

A server that is asked for too much says 429 or 503, or is silent until a deadline. Each of these
halves what we ask for at a time; every request that went well adds a part of one again, so that a
whole round of them adds one (as TCP does, RFC 5681).
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from jfs.errors import DeadlineExceeded, JfsError


class Parallelism:
    """A gate for requests. Blocking; any thread.

    Args:
        most: requests at a time while all goes well.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._limit = float(most)
        self._active = 0
        self._changed = threading.Condition()
        self._closed = False

    @property
    def limit(self) -> int:
        """How many requests may be under way now."""
        return max(1, int(self._limit))

    @contextmanager
    def request(self, patience_s: float) -> Iterator[None]:
        """Wait for a place and hold it; how the block ends moves the limit.

        After ``close`` no thread waits.

        Raises:
            DeadlineExceeded: no place became free in *patience_s* seconds.
        """
        with self._changed:
            free = self._changed.wait_for(
                lambda: self._active < self.limit or self._closed, patience_s
            )
            if not free:
                raise DeadlineExceeded("the server kept all downloads waiting")
            self._active += 1
        try:
            yield
        except JfsError as error:
            if error.retryable:
                with self._changed:
                    self._limit = max(1.0, self._limit / 2)
            raise
        else:
            with self._changed:
                self._limit = min(float(self._most), self._limit + 1 / self._limit)
        finally:
            with self._changed:
                self._active -= 1
                self._changed.notify_all()

    def close(self) -> None:
        """Let all waiting threads through; they fail at their sockets."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
