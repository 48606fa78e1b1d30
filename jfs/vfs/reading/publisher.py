"""Write what was received to the block cache, behind the readers. Trio thread only.

What waits for the disk holds memory that READs may want: as a rule they wait, so that nothing is
fetched twice. A disk that hangs (NFS without its server, say) must not hold them up for ever: then
what waits is dropped, and the cache is read past for a while.
"""

import logging
from collections.abc import Callable

import trio

from jfs import threads

log = logging.getLogger(__name__)

_PAUSE_S = 30.0


class Publisher:
    """See the module.

    Args:
        patience_s: a disk that takes nothing for this long hangs.
    """

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s
        self._waiting: dict[trio.CancelScope, float] = {}  # since when
        self._paused_until = 0.0

    async def publish(self, write: Callable[[], None]) -> None:
        """Call what writes blocks, in a thread, unless the disk hangs."""
        if trio.current_time() < self._paused_until:
            return
        with trio.CancelScope() as scope:
            self._waiting[scope] = trio.current_time()
            try:
                await threads.publishing(write)
            finally:
                del self._waiting[scope]

    async def wait(self, given: trio.Event) -> None:
        """Wait for memory that is given back; if the disk hangs, drop what waits for it.

        Returns:
            When *given* is set, or after a while: try again.
        """
        with trio.move_on_after(self._patience_s) as scope:
            await given.wait()
        now = trio.current_time()
        oldest = min(self._waiting.values(), default=now)
        hangs = scope.cancelled_caught and now - oldest >= self._patience_s
        if hangs and now >= self._paused_until:
            log.warning(
                "the cache's disk took nothing for %g s: reading past it for %.0f s",
                self._patience_s,
                _PAUSE_S,
            )
            self._paused_until = now + _PAUSE_S
            for waiting in self._waiting:
                waiting.cancel()
