"""How pyfuse3 waits for requests, and its tasks for one another: pyfuse3 sees another ``trio``.

So that no request that is withdrawn stops the event loop:

pyfuse3 waits until the kernel has a request, then reads it with a blocking read(2), on the event
loop and without giving the interpreter up. In between the request may be withdrawn: whoever made
it was killed. Then the read waits for the next request of anybody, and everything else with it:
timers, uploads, answers that are ready. (Measured: after 20 of 218 times that 8 processes were
killed while they looked at files.) The descriptor cannot be made non-blocking, as pyfuse3 takes
EAGAIN for the end of the mount. But it goes on after EINTR: so a timer interrupts the read.

And so that each of its tasks can be let go (``jfs.answers``).
"""

import select
import signal
from collections.abc import Awaitable, Callable
from typing import Any

import trio

from jfs.answers import Answers

# From waiting to reading takes microseconds; a handler's first steps, which follow in the same
# turn of the event loop, may take longer: that the timer wakes it then is harmless.
_PATIENCE_S = 0.02
_descriptor: int | None = None  # of the kernel's connection, once it was waited for
_source: Callable[[int], int] | None = None
_closed = False


async def wait_readable(descriptor: int) -> None:
    """Wait as trio does; a read that follows and blocks is interrupted after 20 ms, and so on.

    Until the next call. Main thread only, after ``prepare``.
    """
    global _descriptor
    _descriptor = descriptor
    place = _source(descriptor) if _source is not None else descriptor
    if place != descriptor:  # what is read there does not block
        await trio.lowlevel.wait_readable(place)
        return
    signal.setitimer(signal.ITIMER_REAL, 0)
    await trio.lowlevel.wait_readable(descriptor)
    signal.setitimer(signal.ITIMER_REAL, _PATIENCE_S, _PATIENCE_S)


def connection() -> int | None:
    """Return the descriptor of the kernel's connection; None: there is none, or not yet."""
    return None if _closed else _descriptor


def is_connected() -> bool:
    """Whether the kernel still has our mount. Any thread.

    Once it has gone the next mount of anybody gets its device number: whatever is done to a mount
    that is found by this number would be done to theirs.
    """
    if _closed:
        return False
    if _descriptor is None:
        return True  # it has asked nothing yet
    poll = select.poll()
    poll.register(_descriptor, 0)
    # fs/fuse/dev.c fuse_dev_poll: EPOLLERR once it is not connected.
    return not any(events & (select.POLLERR | select.POLLNVAL) for _, events in poll.poll(0))


def prepare(source: Callable[[int], int] | None = None) -> None:
    """Make SIGALRM interrupt system calls, and do nothing else. Main thread only.

    Args:
        source: returns the descriptor to wait for, if that is not the connection.
    """
    global _source
    _source = source
    signal.signal(signal.SIGALRM, lambda number, frame: None)


def closed() -> None:
    """Note that the connection is closed: its descriptor is another's soon."""
    global _closed
    _closed = True


def rest() -> None:
    """Stop the timer: nobody reads any more."""
    signal.setitimer(signal.ITIMER_REAL, 0)


class _Lowlevel:
    wait_readable: Callable[[int], Awaitable[None]] = staticmethod(wait_readable)

    def __getattr__(self, name: str) -> Any:
        return getattr(trio.lowlevel, name)


class _Lock:
    """What pyfuse3's tasks wait for before they take a request: not one that was let go.

    Its scope is cancelled. Told that the descriptor is closed it ends in good order; another waits
    for requests already, as always when one is answered.
    """

    def __init__(self, answers: Answers) -> None:
        self._answers = answers
        self._lock = trio.Lock()

    def __aenter__(self) -> Awaitable[None]:
        if self._answers.leaving and trio.lowlevel.current_task() in self._answers.leaving:
            raise trio.ClosedResourceError
        return self._lock.acquire()

    def __aexit__(self, *_: object) -> Awaitable[None]:
        self._lock.release()
        return _at_once()


async def _at_once() -> None:
    """Return without a checkpoint."""


class _Tasks:
    """The nursery of pyfuse3's tasks, each of which can be let go."""

    def __init__(self, answers: Answers) -> None:
        self._answers = answers
        self._manager = trio.open_nursery()
        self._nursery: trio.Nursery | None = None

    async def __aenter__(self) -> "_Tasks":
        self._nursery = await self._manager.__aenter__()
        return self

    async def __aexit__(self, *error: Any) -> bool | None:
        return await self._manager.__aexit__(*error)

    def start_soon(self, loop: Callable[..., Awaitable[None]], *args: Any, name: object) -> None:
        assert self._nursery is not None
        self._nursery.start_soon(self._answer, loop, *args, name=name)

    async def _answer(self, loop: Callable[..., Awaitable[None]], *args: Any) -> None:
        with self._answers.answering():
            await loop(*args)


class Trio:
    """The module trio as pyfuse3 shall see it; it lets itself be given another, for asyncio."""

    lowlevel = _Lowlevel()

    def __init__(self, answers: Answers) -> None:
        self._answers = answers

    def Lock(self) -> _Lock:
        return _Lock(self._answers)

    def open_nursery(self) -> _Tasks:
        return _Tasks(self._answers)

    def __getattr__(self, name: str) -> Any:
        return getattr(trio, name)
