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
``own_mount``           the kernel too: looks at our own mount or at processes that use it.
``on_disk``             the local disk, for as long as the disk takes; never the network.
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
from collections.abc import AsyncIterator, Callable
from typing import ParamSpec, TypeVar

import trio
from trio.lowlevel import RunVar

_P = ParamSpec("_P")
_T = TypeVar("_T")

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


async def on_disk(call: Callable[..., _T], *args: object) -> _T:
    """Run what touches the local disk: staging, journal, cache files."""
    return await trio.to_thread.run_sync(call, *args, limiter=_limiter("disk", 32))


async def keeping(call: Callable[..., _T], *args: object) -> _T:
    """Read and write kept metadata. Abandoned on cancellation: nothing depends on them."""
    return await trio.to_thread.run_sync(
        call, *args, limiter=_limiter("keeping", 2), abandon_on_cancel=True
    )


async def publishing(call: Callable[..., _T], *args: object) -> _T:
    """Write fetched blocks to the block cache, behind the readers.

    One writer leaves a disk idle between its writes; more than two only queue.
    """
    return await trio.to_thread.run_sync(call, *args, limiter=_limiter("publishing", 2))


async def hashing(call: Callable[..., _T], *args: object) -> _T:
    """Compute digests of whole files."""
    return await trio.to_thread.run_sync(call, *args, limiter=_limiter("hashing", 4))


async def computing(call: Callable[..., _T], *args: object) -> _T:
    """Run what takes the event loop too long, and waits for nothing."""
    return await trio.to_thread.run_sync(call, *args, limiter=_limiter("computing", 2))


async def notifying(call: Callable[..., _T], *args: object) -> _T:
    """Tell the kernel something. Abandoned on cancellation: the kernel may never answer."""
    return await trio.to_thread.run_sync(
        call, *args, limiter=_limiter("notifying", 16), abandon_on_cancel=True
    )


def notifications() -> int:
    """Return how many notifications the kernel has not taken yet, abandoned ones included."""
    return _limiter("notifying", 16).borrowed_tokens


async def own_mount(call: Callable[..., _T], *args: object) -> _T:
    """Look at our own mount from outside. Abandoned on cancellation."""
    return await trio.to_thread.run_sync(
        call, *args, limiter=_limiter("own mount", 8), abandon_on_cancel=True
    )


async def looking(call: Callable[..., _T], *args: object) -> _T:
    """Look whether files of credentials or certificates have changed.

    Apart from the disk: such a file may lie on a file system that hangs, and what is bounded by a
    second itself would wait here for what is not.
    """
    return await trio.to_thread.run_sync(call, *args, limiter=_limiter("looking", 16))


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
    return await trio.to_thread.run_sync(call, *args, limiter=limiter)
