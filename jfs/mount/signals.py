"""Signals, and when they end a mount.

=================== ==============================================================================
SIGTERM, SIGINT     end the mount, after uploads that are under way; a second one does not wait
SIGHUP              reopens the log file and reads credentials again; ends a mount in the foreground
                    of a terminal that was closed
SIGUSR1, SIGUSR2    nothing: programs that rotate logs send them
SIGPIPE             nothing: a reader of our output that has gone is no reason to end
=================== ==============================================================================
"""

import contextlib
import logging
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import trio

log = logging.getLogger(__name__)

_ENDING = (signal.SIGTERM, signal.SIGINT)
_HEARD = (*_ENDING, signal.SIGHUP)
_IGNORED = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGPIPE)


class Ending:
    """When one mount shall end. Trio thread only.

    Attributes:
        start: the scope of everything; a signal cancels it until ``mounted`` is called.
        asked: set by the first signal after that.
        number: the first signal.
    """

    def __init__(self) -> None:
        self.start = trio.CancelScope()
        self.asked = trio.Event()
        self.number: int | None = None
        self._mounted = False
        self._patience: trio.CancelScope | None = None
        self._at_once = False

    def mounted(self) -> None:
        """Say that there is a mount now: it ends in good order, not by cancellation."""
        self._mounted = True

    def ask(self, number: int) -> None:
        """Ask for the end, because of a signal."""
        if self.number is None:
            self.number = number
        if not self._mounted:
            self.start.cancel()
            return
        log.info("ending: %s", signal.Signals(number).name)
        if self.asked.is_set():
            self._at_once = True
            if self._patience is not None:
                self._patience.cancel()
        self.asked.set()

    @contextlib.contextmanager
    def patience(self, limit_s: float) -> Iterator[trio.CancelScope]:
        """Wait in the block for as long at most, and no longer once a second signal has come."""
        with trio.move_on_after(limit_s) as scope:
            self._patience = scope
            if self._at_once:
                scope.cancel()
            yield scope


def hold() -> None:
    """Keep signals back until they are ``received``, so that none is lost; ignore some for good.

    Before threads start. Ignored, too, since that is what ``received`` leaves behind: in a process
    that comes to its end a signal would only leave a dead mount. What is blocked is not dropped.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, _HEARD)
    for number in (*_HEARD, *_IGNORED):
        signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def received() -> Iterator[AsyncIterator[int]]:
    """Receive signals, also those that came since ``hold``. Afterwards they are ignored."""
    with trio.open_signal_receiver(*_HEARD) as numbers:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _HEARD)
        yield numbers


async def listen(
    numbers: AsyncIterator[int], ending: Ending, reload: Callable[[], Awaitable[None]]
) -> None:
    """Do what signals ask for, until cancelled."""
    had_terminal = _has_terminal()
    # A disk that hangs holds up what is read again, but not the end. One more waits at most.
    asking, asked = trio.open_memory_channel[None](1)
    async with asking, asked, trio.open_nursery() as nursery:
        nursery.start_soon(_reload, asked, reload)
        async for number in numbers:
            if number == signal.SIGHUP and _has_terminal() == had_terminal:
                with contextlib.suppress(trio.WouldBlock):
                    asking.send_nowait(None)
                continue
            ending.ask(number)


async def _reload(
    asked: trio.MemoryReceiveChannel[None], reload: Callable[[], Awaitable[None]]
) -> None:
    async for _ in asked:
        await reload()


def _has_terminal() -> bool:
    """Whether the process has a controlling terminal; one that was closed is none."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK))
    except OSError:
        return False
    return True
