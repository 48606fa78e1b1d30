"""Threads for what blocks, with a limiter for each thing that is waited for.

trio's default limiter is one pool of 40 for everything: a hanging server or a kernel that waits for
us would use it up, and a cached open would wait behind them. So nothing uses it; a test keeps it
so.

Who may hold which while waiting for what, from the outside in; a thread never waits for a limiter:

======================  =======================================================================
limiter                 what its threads wait for
======================  =======================================================================
``notifying``           the kernel, which may wait for an answer of the event loop. No answer may
                        therefore wait for it; it is abandoned when its caller is cancelled.
``dropping_pages``      the same, and a page of it whose READ waits for the network: apart, so that
                        a server that hangs keeps no other notification waiting.
``own_mount``           the kernel too: looks at our own mount or at processes that use it.
``at_processes``        files of ``/proc`` that the kernel makes up at once, unless the process is
                        in execve(2), which may wait for an answer of the event loop. None may
                        therefore wait for it for long; abandoned when its caller is cancelled.
``on_disk``             the local disk, for as long as the disk takes; never the network.
``waiting.Disk``        a disk that may hang: given up in time, and left to itself.
``keeping``             the disk below kept metadata. Abandoned: a disk that hangs holds no answer.
``publishing``          the disk below the block cache; readers do not wait for it.
``hashing``             the CPU, a second for each GiB.
``computing``           the CPU: parsing of large answers.
``looking``             files of credentials and certificates, for a second or two at most.
``asking(what, repo)``  the network, one limiter for each repository: one that hangs keeps only
                        its own requests waiting.
======================  =======================================================================

Trio thread only. Each ``run`` returns what *call* returns and raises what it raises.
Cancellation: waits until the thread has ended, unless the limiter is one that abandons.
"""

import contextlib
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

import trio
from trio.lowlevel import RunVar

from jfs.errors import ConfigError, NoThread

_P = ParamSpec("_P")
_T = TypeVar("_T")

_NO_THREAD_S = 30.0
_FIRST_WAIT_S, _LAST_WAIT_S = 0.01, 0.2
_NO_THREAD = (
    "no thread can be started: raise the limit of processes "
    "(pids.max of the container, TasksMax= of systemd, ulimit -u)"
)

# Of one run of trio: a thread that outlives its run never gives its token back.
_limiters: RunVar[dict[str, trio.CapacityLimiter]] = RunVar("jfs.threads")


def _limiter(name: str, tokens: int) -> trio.CapacityLimiter:
    try:
        known = _limiters.get()
    except LookupError:
        known = {}
        _limiters.set(known)
    limiter = known.get(name)
    if limiter is None:
        limiter = known[name] = trio.CapacityLimiter(tokens)
    return limiter


async def _run(
    limiter: trio.CapacityLimiter, call: Callable[..., _T], *args: object, abandons: bool = False
) -> _T:
    """Run *call* in a thread; if none can be started, wait until one can, or one is idle again.

    A process has no thread left where a limit of processes is reached (the pids controller of a
    container, RLIMIT_NPROC), which whatever runs beside us may do.

    Raises:
        NoThread: there was none in time.
    """
    started = False

    def noted() -> _T:
        nonlocal started
        started = True
        return call(*args)

    deadline, wait_s = trio.current_time() + _NO_THREAD_S, _FIRST_WAIT_S
    while True:
        try:
            return await trio.to_thread.run_sync(noted, limiter=limiter, abandon_on_cancel=abandons)
        except RuntimeError as error:
            if started or trio.current_time() >= deadline:
                if started:
                    raise
                raise NoThread(_NO_THREAD) from error
        await trio.sleep(wait_s)
        wait_s = min(2 * wait_s, _LAST_WAIT_S)


def started(count: int, name: str) -> ThreadPoolExecutor:
    """Return an executor whose threads are running: none has to be started in the middle of work.

    Blocking, for a moment.

    Raises:
        ConfigError: they cannot be started.
    """
    executor = ThreadPoolExecutor(count, thread_name_prefix=name)
    all_there = threading.Barrier(count)
    try:
        for each in [executor.submit(all_there.wait) for _ in range(count)]:
            each.result()
    except RuntimeError:
        all_there.abort()
        executor.shutdown(wait=False, cancel_futures=True)
        raise ConfigError(_NO_THREAD) from None
    return executor


async def on_disk(call: Callable[..., _T], *args: object) -> _T:
    """Run what touches the local disk: staging, journal, cache files."""
    return await _run(_limiter("disk", 32), call, *args)


async def abandoning(limiter: trio.CapacityLimiter, call: Callable[[], _T]) -> _T:
    """Run *call*, which is left to itself when its caller is cancelled: see ``waiting``."""
    return await _run(limiter, call, abandons=True)


async def keeping(call: Callable[..., _T], *args: object) -> _T:
    """Read and write kept metadata. Abandoned on cancellation: nobody must wait for them."""
    return await _run(_limiter("keeping", 2), call, *args, abandons=True)


async def publishing(call: Callable[..., _T], *args: object) -> _T:
    """Write fetched blocks to the block cache, behind the readers.

    One writer leaves a disk idle between its writes; more than two only queue.
    """
    return await _run(_limiter("publishing", 2), call, *args)


async def hashing(call: Callable[..., _T], *args: object) -> _T:
    """Compute digests of whole files."""
    return await _run(of_hashing(), call, *args)


def of_hashing() -> trio.CapacityLimiter:
    """Return the limiter of digests of whole files."""
    return _limiter("hashing", 4)


async def computing(call: Callable[..., _T], *args: object) -> _T:
    """Run what takes the event loop too long, and waits for nothing."""
    return await _run(_limiter("computing", 2), call, *args)


async def notifying(call: Callable[..., _T], *args: object) -> _T:
    """Tell the kernel something. Abandoned on cancellation: the kernel may never answer."""
    return await _run(_limiter("notifying", 16), call, *args, abandons=True)


async def dropping_pages(call: Callable[..., _T], *args: object) -> _T:
    """As ``notifying``, of pages that are being read perhaps, and nobody waits for."""
    return await _run(_limiter("dropping pages", 4), call, *args, abandons=True)


def notifications() -> int:
    """Return how many notifications the kernel has not taken yet, abandoned ones included."""
    limiters = _limiter("notifying", 16), _limiter("dropping pages", 4)
    return sum(limiter.borrowed_tokens for limiter in limiters)


async def own_mount(call: Callable[..., _T], *args: object) -> _T:
    """Look at our own mount from outside. Abandoned on cancellation."""
    return await _run(_limiter("own mount", 8), call, *args, abandons=True)


async def looking(call: Callable[..., _T], *args: object) -> _T:
    """Look whether files of credentials or certificates have changed.

    Apart from the disk: such a file may lie on a file system that hangs, and what is bounded by a
    second itself would wait here for what is not.
    """
    return await _run(_limiter("looking", 16), call, *args)


async def at_processes(call: Callable[..., _T], *args: object) -> _T:
    """Look at other processes in ``/proc``. Abandoned on cancellation: see ``mount.waiters``."""
    return await _run(_limiter("processes", 32), call, *args, abandons=True)


def asking(what: str, repo: str, tokens: int) -> trio.CapacityLimiter:
    """Return the limiter of requests of one kind to one repository, for ``in_turn``.

    Args:
        tokens: how many at a time; counts where the limiter is made.
    """
    return _limiter(f"{what} {repo}", tokens)


@contextlib.asynccontextmanager
async def cut_when_cancelled(cut: Callable[[], None]) -> AsyncIterator[None]:
    """Call *cut* at the end of the block, and as soon as it is cancelled.

    For threads that wait for the network: cancellation waits for them, and they for what is cut.
    """
    failure: Exception | None = None

    async def wait() -> None:
        try:
            await trio.sleep_forever()
        finally:
            cut()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        try:
            yield
        except Exception as error:  # as it is, not in a group
            failure = error
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure


async def in_turn(limiter: trio.CapacityLimiter, call: Callable[..., _T], *args: object) -> _T:
    """Run *call*, which waits for the network, under a limiter of ``asking``."""
    return await _run(limiter, call, *args)
