"""Ctrl-C in a command: one line, exit code 130, and soon, whatever the command waits for."""

import contextlib
import os
import signal
import threading
from collections.abc import Awaitable, Callable
from typing import NoReturn, TypeVar

_T = TypeVar("_T")

_PATIENCE_S = 3.0  # what is cancelled has ended by then, unless it waits for what nobody can cut


def leave() -> NoReturn:
    """End the process at once: a thread that waits for the network would keep the interpreter."""
    if _in_main_thread():  # elsewhere Python allows no change, and a second line is unlikely
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(OSError):
        os.write(2, b"jfs: interrupted\n")
    os._exit(128 + signal.SIGINT)


def run(call: Callable[..., Awaitable[_T]], *args: object) -> _T:
    """Run an event loop that Ctrl-C ends: everything in it is cancelled.

    trio's own way cancels what is around the task that is interrupted, and only when that task
    runs again: not while it waits for a thread. What does not end within 3 s is left behind, with
    the process.

    Raises:
        KeyboardInterrupt: Ctrl-C came.
    """
    import trio

    if not _in_main_thread():
        return trio.run(call, *args)
    interrupted = False
    results: list[_T] = []
    failures: list[Exception] = []

    async def listen(scope: trio.CancelScope) -> None:
        nonlocal interrupted
        with trio.open_signal_receiver(signal.SIGINT) as numbers:
            async for _ in numbers:
                if interrupted:
                    leave()
                interrupted = True
                timer = threading.Timer(_PATIENCE_S, leave)
                timer.daemon = True
                timer.start()
                scope.cancel()

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(listen, nursery.cancel_scope)
            try:
                results.append(await call(*args))
            except Exception as error:
                failures.append(error)
            nursery.cancel_scope.cancel()

    trio.run(main)
    if interrupted:
        raise KeyboardInterrupt
    if failures:
        raise failures[0]
    return results[0]


def wait_for(call: Callable[[], _T]) -> _T:
    """Call what blocks inside the kernel, in a thread: Ctrl-C does not wait for its end.

    Raises:
        KeyboardInterrupt: Ctrl-C came.
    """
    results: list[_T] = []
    failures: list[BaseException] = []

    def work() -> None:
        try:
            results.append(call())
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join()
    if failures:
        raise failures[0]
    return results[0]


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
