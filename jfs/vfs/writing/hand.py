"""A thread that does at once what takes microseconds, while the event loop waits for it.

A hop to one of trio's threads and back costs 150 µs, of which a write of 4 KiB is 4. This costs 15,
and still no disk can hold up the event loop: it waits for a moment, and whoever wants the result
waits for it elsewhere then. A disk that once took longer is left to trio's threads for a while.
"""

import threading
import time
from collections.abc import Callable
from queue import SimpleQueue

from jfs.errors import ConfigError

# Of the loop, which has other requests to answer. A disk takes so long when it makes those who
# write wait for it (dirty_ratio), and then a hop does not matter.
_MOMENT_S = 0.005
_PAUSE_S = 1.0
# Many that take nearly as long would be all that the loop does: after one that took longer than
# this, others have the loop for so many times as long.
_SLOW_S, _OTHERS = 0.0005, 4


class Task:
    """A call that was begun at once. *is_over*: it was made, and nothing else is to come of it."""

    def __init__(self, call: Callable[[], None]) -> None:
        self._call = call
        self._done = threading.Lock()
        self._done.acquire()
        self._error: BaseException | None = None
        self.is_over = False

    def run(self) -> None:
        """Do it, in the thread."""
        try:
            self._call()
        except BaseException as error:
            self._error = error
        self.is_over = True
        self._done.release()

    def is_done(self, timeout_s: float) -> bool:
        """Wait for it, so long. It is to be asked no more once it was done."""
        return self._done.acquire(timeout=timeout_s)

    def wait(self) -> None:
        """Return once it is done; from another thread, if it was not. Raises what it raised."""
        with self._done:
            self.check()

    def check(self) -> None:
        """Raise what it raised, now that it is done."""
        if self._error is not None:
            raise self._error


class Hand:
    """See the module.

    Args:
        now: the clock, in seconds.
    Raises:
        ConfigError: no thread can be started.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._tasks: SimpleQueue[Task | None] = SimpleQueue()
        self._rests_until = 0.0
        self._under_way: Task | None = None  # took longer
        try:
            threading.Thread(target=self._work, name="jfs-hand", daemon=True).start()
        except RuntimeError:
            raise ConfigError("no thread can be started") from None

    @property
    def is_free(self) -> bool:
        """Whether ``do`` would be over at once, as far as is known."""
        if not self._rests_until:
            return True
        if self._under_way is not None or self._now() < self._rests_until:
            return False
        self._rests_until = 0.0
        return True

    def do(self, call: Callable[[], None]) -> Task | None:
        """Have *call* called. Only if it ``is_free``; the event loop's thread.

        Returns:
            None: it is over. A task: it takes longer, and ``wait`` tells.
        Raises what *call* raises, if it is over.
        """
        task, begun = Task(call), self._now()
        self._tasks.put(task)
        if task.is_done(_MOMENT_S):
            took_s = self._now() - begun
            if took_s > _SLOW_S:
                self._rests_until = self._now() + _OTHERS * took_s
            task.check()
            return None
        self._under_way = task
        self._rests_until = self._now() + _PAUSE_S
        if task.is_over:  # since the moment was over, and the thread has looked already
            self._under_way = None
        return task

    def close(self) -> None:
        """End the thread, after what it does."""
        self._tasks.put(None)

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            task.run()
            if self._under_way is task:
                self._under_way = None
                self._rests_until = self._now() + _PAUSE_S
