"""Write what was received to the block cache, behind the readers. Trio thread only.

What waits for the disk holds memory that READs may want: then they wait, so that nothing is fetched
twice, but not for long. What a disk cannot take in time is dropped, and not cached:

- A disk that is slower than the network: READs wait for it a fourth of the time for which the
  network keeps them waiting, and a few seconds more, as a disk that is fast in the long run stands
  still now and then.
- A disk that hangs (NFS without its server, say): the cache is read past for a while.
"""

import logging
from collections.abc import Callable

import trio

from jfs import threads
from jfs.folding import fold_as
from jfs.metrics import Metrics

log = logging.getLogger(__name__)

_PAUSE_S = 30.0
_SHARE = 4


class _Writing:
    """What waits for the disk, or is being written."""

    __slots__ = ("began", "scope")

    def __init__(self) -> None:
        self.scope = trio.CancelScope()
        self.began: float | None = None  # of the clock of trio; None: not yet

    @property
    def waits(self) -> bool:
        return self.began is None and not self.scope.cancel_called


class Publisher:
    """See the module.

    Args:
        patience_s: a disk that takes nothing for this long hangs.
        slack_s: READs wait so long for a slow disk, beyond what the network allows.
    """

    def __init__(self, patience_s: float, slack_s: float, metrics: Metrics) -> None:
        self._patience_s = patience_s
        self._slack_s = self._credit_s = slack_s  # how long READs may wait for the disk
        self._charged_until = 0.0
        self._metrics = metrics
        self._waiting: dict[_Writing, None] = {}  # in order
        self._paused_until = 0.0

    async def publish(self, write: Callable[[], None], size: int) -> None:
        """Call what writes blocks, *size* bytes, in a thread, unless the disk has no time."""
        if trio.current_time() < self._paused_until:
            return
        writing = _Writing()
        clock = trio.lowlevel.current_clock()

        def begin() -> None:
            writing.began = clock.current_time()
            write()

        with writing.scope:
            self._waiting[writing] = None
            try:
                await threads.publishing(begin)
            finally:
                del self._waiting[writing]
        if writing.scope.cancelled_caught:
            self._metrics.count("cache_dropped_bytes", size)

    def fetched(self, seconds: float) -> None:
        """Note how long the network took for something."""
        self._credit_s = min(self._slack_s, self._credit_s + seconds / _SHARE)

    async def wait(self, given: trio.Event) -> None:
        """Wait for memory that is given back; drop what waits for a disk that has no time.

        Returns:
            When *given* is set, or after a while: try again.
        """
        start = trio.current_time()
        held = any(writing.waits for writing in self._waiting)
        limit_s = min(self._patience_s, max(0.0, self._credit_s)) if held else self._patience_s
        with trio.move_on_after(limit_s) as scope:
            await given.wait()
        now = trio.current_time()
        if held:  # of several that wait at a time each moment counts once
            self._credit_s -= max(0.0, now - max(start, self._charged_until))
            self._charged_until = now
        if not scope.cancelled_caught:
            return
        began = min((each.began for each in self._waiting if each.began is not None), default=now)
        if now - began >= self._patience_s and now >= self._paused_until:
            log.warning(
                "the cache's disk took nothing for %g s: reading past it for %.0f s",
                self._patience_s,
                _PAUSE_S,
            )
            self._paused_until = now + _PAUSE_S
        elif held:
            log.info(
                "the cache's disk is slower than the network: what it does not take in time is "
                "read past it, and fetched again when it is read again",
                extra=fold_as("slow disk"),
            )
        # All of it: READs go on, and read ahead, until memory is full again.
        for writing in self._waiting:
            writing.scope.cancel()
