"""Child processes of one command: started, known to be ready by their own word, ended in time.

Children are in process groups of their own: a Ctrl-C at the terminal reaches only us, so the order
in which they end is ours. Trio thread only.
"""

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence

import trio

from jfs.errors import ConfigError, JfsError

# -P: the current directory is the user's, and may hold a jfs.py.
JFS = (sys.executable, "-P", "-m", "jfs")
_KILL_WAIT_S = 5.0  # SIGKILL works at once, except for a process that waits inside a dead mount
_LAST_WORDS_S = 2.0  # standard error ends with its process, unless a grandchild holds it
_KEPT_LINES = 15


class ChildEnded(JfsError):
    """A child ended that should not have: which one, how, and its last lines."""


class Child:
    """One running child; made by ``running``."""

    def __init__(self, name: str, process: trio.Process) -> None:
        self.name = name
        self.process = process
        self._errors: deque[str] = deque(maxlen=_KEPT_LINES)
        self._errors_read = trio.Event()

    async def wait(self) -> int:
        """Wait for the child's end; give its exit code, negative for a signal."""
        return await self.process.wait()

    async def ended(self) -> ChildEnded:
        """Describe an end that has happened."""
        with trio.move_on_after(_LAST_WORDS_S):
            await self._errors_read.wait()
        return ChildEnded(
            "\n".join([f"{self.name} {_how(self.process.returncode)}", *self._errors])
        )

    async def read_errors(self) -> None:
        assert self.process.stderr is not None
        async for line in _lines(self.process.stderr):
            self._errors.append(f"  {line}")
        self._errors_read.set()

    async def read_output(
        self, ready: re.Pattern[str], found: trio.MemorySendChannel[re.Match[str]]
    ) -> None:
        assert self.process.stdout is not None
        said = False
        with found:
            async for line in _lines(self.process.stdout):  # to the end: a full pipe stops a child
                match = None if said else ready.match(line)
                if match is not None:
                    found.send_nowait(match)
                    said = True

    async def stop(self, grace_s: float) -> None:
        """End the child and what it started: SIGTERM, after *grace_s* SIGKILL. Shielded."""
        with trio.CancelScope(shield=True):
            for number, wait_s in ((signal.SIGTERM, grace_s), (signal.SIGKILL, _KILL_WAIT_S)):
                if self.process.returncode is None:
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(self.process.pid, number)
                    with trio.move_on_after(wait_s):
                        await self.process.wait()


@contextlib.asynccontextmanager
async def running(
    name: str,
    arguments: Sequence[str],
    nursery: trio.Nursery,
    *,
    ready: re.Pattern[str],
    ready_within_s: float,
    grace_s: float,
) -> AsyncIterator[tuple[Child, re.Match[str]]]:
    """Run a child for the time of the block, which begins when it says that it is ready.

    Args:
        nursery: reads the child's output, also while it ends; outlives the block.
        ready: matched against each line of standard output.
        grace_s: from SIGTERM to SIGKILL.
    Raises:
        ConfigError: it ended with exit code 2, that is with a message for the user.
        ChildEnded: it ended otherwise, or was not ready in time.
    """
    child = await start(name, arguments)
    try:
        send, receive = trio.open_memory_channel[re.Match[str]](1)
        nursery.start_soon(child.read_errors)
        nursery.start_soon(child.read_output, ready, send)
        match: re.Match[str] | None = None
        with trio.move_on_after(ready_within_s) as scope, contextlib.suppress(trio.EndOfChannel):
            match = await receive.receive()
        if match is None:
            if scope.cancelled_caught:
                await child.stop(grace_s)
                raise ChildEnded(
                    f"{name} was not ready within {ready_within_s:g} s\n{await child.ended()}"
                )
            code = await child.wait()
            error = await child.ended()
            if code == ConfigError.exit_code:
                last = str(error).rpartition("\n")[2].strip().removeprefix("jfs: ")
                raise ConfigError(f"{name}: {last}")
            raise error
        yield child, match
    finally:
        await child.stop(grace_s)


async def run(
    command: str, *, within_s: float, environ: Mapping[str, str] | None = None
) -> tuple[int | None, str]:
    """Run a shell command; return its exit code (None: not in time) and everything it printed.

    Cancellation: ends the command. Never waits for one that SIGKILL does not end.
    """
    child = await start(
        "the command", ["/bin/sh", "-c", command], errors=subprocess.STDOUT, environ=environ
    )
    output: list[str] = []

    async def read() -> None:
        assert child.process.stdout is not None
        async for line in _lines(child.process.stdout):
            output.append(line)  # noqa: PERF401 - what was read counts when time runs out too

    try:
        with trio.move_on_after(within_s):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(read)
                await child.wait()
            return child.process.returncode, "\n".join(output)
        return None, "\n".join(output)
    finally:
        await child.stop(0)


async def start(
    name: str,
    arguments: Sequence[str],
    *,
    errors: int = subprocess.PIPE,
    environ: Mapping[str, str] | None = None,
) -> Child:
    """Start a child whose output goes to us and who is asked nothing."""
    process = await trio.lowlevel.open_process(
        list(arguments),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=errors,
        env=environ,
        process_group=0,
    )
    return Child(name, process)


async def _lines(stream: trio.abc.ReceiveStream) -> AsyncIterator[str]:
    rest = b""
    async with stream:
        async for chunk in stream:
            *whole, rest = (rest + chunk).split(b"\n")
            for line in whole:
                yield line.decode("utf-8", "replace")
    if rest:
        yield rest.decode("utf-8", "replace")


def _how(code: int | None) -> str:
    if code is None:
        return "does not end"
    if code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"
