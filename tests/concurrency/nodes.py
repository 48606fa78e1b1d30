"""Mounts that come and go, and the processes that work in them."""

import json
import os
import selectors
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.mount.mounting import Mounted, clean_environ

_DEADLINE_S = 30  # of a process that was killed


class Hung(Exception):
    """A call outlasted its deadline."""


class Hand:
    """A process that does things in one mount; see ``hand``."""

    def __init__(self, name: str, node: "Node") -> None:
        self.name = name
        self.node = node
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.concurrency.hand"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**clean_environ(), "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        assert self.process.stdout is not None
        self._selector = selectors.DefaultSelector()
        self._selector.register(self.process.stdout, selectors.EVENT_READ)

    def ask(self, deadline_s: float, **request: Any) -> dict[str, Any]:
        """Let it do one thing. Raises Hung."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(request).encode() + b"\n")
        self.process.stdin.flush()
        if not self._selector.select(deadline_s):
            raise Hung(
                f"{self.name}: {request} has not returned after {deadline_s:g} s\n"
                f"{_where(self.process.pid)}"
            )
        line = self.process.stdout.readline()
        if not line:
            raise AssertionError(f"{self.name} died at {request}: {self.process.wait()}")
        reply: dict[str, Any] = json.loads(line)
        return reply

    def end(self) -> None:
        self.process.kill()
        with suppress(subprocess.TimeoutExpired):  # it hangs in a mount: that was said already
            self.process.wait(_DEADLINE_S)
        self._selector.close()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()


def _where(pid: int) -> str:
    """Say where in the kernel a process waits."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stack").read_text()
    return ""


class Node:
    """One mount that is started, killed and started again at the same place.

    It is entered by every call that names a path: a mount is started again when all that ran into
    its end have returned, so that nobody writes into the bare directory below it.
    """

    def __init__(
        self, name: str, root: Path, ttl_s: float, start: Callable[["Node"], Mounted]
    ) -> None:
        self.name = name
        self.root = root
        self.ttl_s = ttl_s
        self.cuts = 0  # kills after which the kernel had to be told to let go
        # Who writes in place to a folder: one hand at a time, or contents would be mixed.
        self.writing: dict[str, threading.Lock] = {}
        self._start = start
        self._changed = threading.Condition()
        self._users = 0
        self._down = False
        self._failed = False
        self._logged: list[str] = []  # by those that were killed
        self.mounted = start(self)

    def __enter__(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: not self._down)
            if self._failed:
                raise Hung(f"{self.name} did not start again: see what is said of its start")
            self._users += 1

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._users -= 1
            self._changed.notify_all()

    def restart(self, deadline_s: float, how: signal.Signals) -> None:
        """End the process, wait until everybody has noticed, start another. Raises Hung."""
        with self._changed:
            self._down = True
        if how is signal.SIGKILL:
            self.mounted.process.kill()
            self.cuts += self.mounted.buried()
        else:
            self.mounted.process.send_signal(how)
            try:
                self.mounted.process.wait(deadline_s)
            except subprocess.TimeoutExpired:
                raise Hung(f"{self.name} does not end by {how.name}") from None
        with self._changed:
            if not self._changed.wait_for(lambda: not self._users, deadline_s):
                raise Hung(f"{self.name}: calls into it do not end with it")
        self._logged += self.mounted.log().splitlines()
        self.mounted.close()
        try:
            self.mounted = self._start(self)
        except BaseException:
            self._failed = True
            raise
        finally:
            with self._changed:
                self._down = False
                self._changed.notify_all()

    def logged(self) -> list[str]:
        """Return what its processes have logged."""
        return [*self._logged, *self.mounted.log().splitlines()]

    def end(self) -> None:
        self.mounted.kill()
