"""A disk that may hang is waited for in time: threads for it, and what becomes of those given up.

A call on a disk of which a server, a cable or a controller has gone may never return, and no signal
reaches its thread. Whoever waits for it gives up after a while; the thread goes on. Until it comes
back the disk counts as hanging: others fail at once, but for one now and then that finds out.

Trio thread only.
"""

import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Generic, TypeVar

import trio
from trio.lowlevel import RunVar

from jfs import threads
from jfs.errors import DiskHangs
from jfs.extents import GiB, MiB

log = logging.getLogger(__name__)

_T = TypeVar("_T")

_PROBE_S, _PROBE_PATIENCE_S = 15.0, 1.0
_SLOWEST = 5 * MiB  # bytes a second of a disk that does not hang
# To sync a file may take writing what others have written: 200 s at that speed.
SYNCED = 1 * GiB
_STAGING_S = 30.0
_STAGING_THREADS = 32
_STAGING = "the staging directory's disk"


class Disk:
    """The threads of one disk; see the module.

    Args:
        what: it is, for the log.
        tokens: calls at a time, those that are stuck included.
        patience_s: how long a call is waited for.
    """

    def __init__(self, what: str, tokens: int, patience_s: float) -> None:
        self._what = what
        self._patience_s = patience_s
        self._limiter = trio.CapacityLimiter(tokens)
        self._token: trio.lowlevel.TrioToken | None = None
        self._hung_at: float | None = None  # None: it answers
        self._probe_at = 0.0
        self._owed: list[Callable[[], object]] = []

    @property
    def hangs(self) -> bool:
        """Whether it has not answered in time, and nothing else came back since."""
        return self._hung_at is not None

    async def run(
        self,
        call: Callable[..., _T],
        *args: object,
        late: Callable[[_T], object] | None = None,
        shielded: bool = False,
        size: int = 0,
        limiter: trio.CapacityLimiter | None = None,
    ) -> _T:
        """Return what *call* returns, in a thread.

        Args:
            late: takes what is returned when nobody waits any more; in the thread, never raises.
            shielded: a cancellation waits for the end, as long as others do.
            size: bytes that are read or written: those of a slow disk are waited for.
            limiter: another than its own.
        Raises:
            DiskHangs: it did not return in time, or others did not a moment ago: it was not called.
        Cancellation: the thread goes on.
        """
        now = trio.current_time()
        patience_s = self._patience_s + size / _SLOWEST
        if self._hung_at is not None:
            patience_s = min(patience_s, _PROBE_PATIENCE_S)
            if now < self._probe_at:
                raise self._hangs(asked=False)
            self._probe_at = now + _PROBE_S
        self._token = trio.lowlevel.current_trio_token()
        under_way = _Call(call, args, late, self._came_back)
        with trio.move_on_after(patience_s, shield=shielded):
            try:
                result = await threads.abandoning(limiter or self._limiter, under_way)
            except trio.Cancelled:
                under_way.leave()
                raise
            except Exception:
                self._answered()
                raise
            self._answered()
            return result
        if self._hung_at is None:
            self._hung_at = now
            log.warning(
                "%s has not answered for %g s: going on without it", self._what, self._patience_s
            )
        self._probe_at = trio.current_time() + _PROBE_S
        raise self._hangs(asked=under_way.begun)

    async def end(self, call: Callable[[], object]) -> None:
        """Call what ends a use: now, or once the disk answers again. Never raises for the disk."""
        try:
            await self.run(call)
        except DiskHangs as hangs:
            if not hangs.asked:
                self._owed.append(call)

    def _hangs(self, *, asked: bool) -> DiskHangs:
        return DiskHangs(f"has not answered for {self._patience_s:g} s", asked=asked)

    def _came_back(self) -> None:
        """A call that was given up has ended. Any thread."""
        assert self._token is not None
        with suppress(trio.RunFinishedError):
            self._token.run_sync_soon(self._answered)

    def _answered(self) -> None:
        if self._hung_at is None:
            return
        log.info("%s answers again, after %.0f s", self._what, trio.current_time() - self._hung_at)
        self._hung_at = None
        owed, self._owed = self._owed, []
        if owed:
            threading.Thread(target=_call_all, args=(owed,), daemon=True).start()


class _Call(Generic[_T]):
    """A call in a thread that may be left to itself. ``__call__`` in the thread."""

    def __init__(
        self,
        call: Callable[..., _T],
        args: tuple[object, ...],
        late: Callable[[_T], object] | None,
        came_back: Callable[[], None],
    ) -> None:
        self._call = call
        self._args = args
        self._late = late
        self._came_back = came_back
        self._lock = threading.Lock()
        self._left = False
        self._results: list[_T] = []
        self.begun = False

    def __call__(self) -> _T:
        with self._lock:
            if self._left:  # whoever waited counts on that it is not called: buffers are reused
                raise DiskHangs("was given up before it began", asked=False)
            self.begun = True
        try:
            result = self._call(*self._args)
        except BaseException:
            with self._lock:
                left = self._left
            if left:
                self._came_back()
            raise
        with self._lock:
            left = self._left
            if not left:
                self._results.append(result)
        if left:
            self._take(result)
            self._came_back()
        return result

    def leave(self) -> None:
        """Nobody waits for it any more."""
        with self._lock:
            self._left = True
            results, self._results = self._results, []
        for result in results:  # it ended at the same moment
            threading.Thread(target=self._take, args=(result,), daemon=True).start()

    def _take(self, result: _T) -> None:
        if self._late is not None:
            self._late(result)


def _call_all(calls: list[Callable[[], object]]) -> None:
    for call in calls:
        with suppress(OSError):
            call()


# Of one run of trio: a thread that outlives its run never gives its token back.
_staging: RunVar[Disk] = RunVar("jfs.waiting")


def staging_disk() -> Disk:
    """Return the disk of the staging directory."""
    try:
        return _staging.get()
    except LookupError:
        disk = Disk(_STAGING, _STAGING_THREADS, _STAGING_S)
        _staging.set(disk)
        return disk


def may_hang() -> bool:
    """Whether the disk of the staging directory hangs, as far as is known. Any thread."""
    try:
        return _staging.get().hangs
    except (LookupError, RuntimeError):  # nobody has asked it, or this is no trio thread
        return False


def use_patience(patience_s: float) -> None:
    """Wait so long for the disk of the staging directory, in this run."""
    _staging.set(Disk(_STAGING, _STAGING_THREADS, patience_s))


async def on_disk(
    call: Callable[..., _T],
    *args: object,
    late: Callable[[_T], object] | None = None,
    size: int = 0,
) -> _T:
    """Run what touches staged files and their journal; see ``Disk.run``.

    A cancellation waits for the end. Raises DiskHangs.
    """
    return await staging_disk().run(call, *args, late=late, size=size, shielded=True)


async def hashing(call: Callable[[], _T], size: int) -> _T:
    """Compute the digest of a staged file of *size* bytes, which may be read for it. As above."""
    limiter = threads.of_hashing()
    return await staging_disk().run(call, size=size, limiter=limiter, shielded=True)
