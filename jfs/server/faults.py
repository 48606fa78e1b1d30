"""A fault plan: weather on demand, so that clients are tried against a real server.

A fault matches requests by method and by a glob on the path below the service, and acts on some of
them. Thread-safe; tests in the same process add faults, ``jfs serve --faults FILE`` reads them.
"""

import asyncio
import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

from jfs.errors import ConfigError

Action = Literal[
    "status",  # answer *status* with *body* and *headers* instead
    "garbage",  # 200 with HTML where JSON or bytes belong
    "drop",  # cut the connection after *bytes* of the body (0: before any answer)
    "short",  # end the body cleanly after *bytes*, having promised all of it
    "stall",  # hold the answer back until the fault is released
    "wrong_range",  # answer another range than was asked for
    "ignore_range",  # answer 200 with everything
    "gzip",  # compress, as a proxy would
    "headers",  # answer with *headers* changed (checksums, ETag …)
    "corrupt",  # flip a bit in the body
    "redirect",  # 302 to signed storage
    "expired",  # 302 to a signed location that answers 403
]


@dataclass
class Fault:
    """One rule; *times* None: every request that matches."""

    action: Action
    path: str = "*"
    method: str = "*"
    times: int | None = None
    after: int = 0  # matching requests to let pass first
    status: int = 503
    body: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    bytes: int = 0
    hits: int = 0

    def __post_init__(self) -> None:
        self.released = threading.Event()

    @classmethod
    def garbage(cls, path: str, times: int | None = None) -> "Fault":
        """Answer 200 with an HTML page."""
        return cls("garbage", path, times=times)

    async def wait_released(self) -> None:
        """Wait for ``released``; the server's loop only."""
        # The event is set by another thread, which asyncio's events are not made for.
        while not self.released.is_set():  # noqa: ASYNC110 - see above
            await asyncio.sleep(0.01)


class FaultPlan:
    """The faults in force, the first that matches acts."""

    def __init__(self) -> None:
        self._faults: list[Fault] = []
        self._lock = threading.Lock()

    def add(self, fault: Fault) -> Fault:
        with self._lock:
            self._faults.append(fault)
        return fault

    def clear(self) -> None:
        """Take every fault away, and release what is stalled."""
        with self._lock:
            for fault in self._faults:
                fault.released.set()
            self._faults.clear()

    def match(self, method: str, path: str) -> Fault | None:
        """Find the fault for a request and count it."""
        with self._lock:
            for fault in self._faults:
                if not fnmatchcase(method, fault.method) or not fnmatchcase(path, fault.path):
                    continue
                if fault.after > 0:
                    fault.after -= 1
                    continue
                if fault.times is not None:
                    if fault.times <= 0:
                        continue
                    fault.times -= 1
                fault.hits += 1
                return fault
        return None

    @classmethod
    def load(cls, path: Path) -> "FaultPlan":
        """Read a JSON list of faults. Raises ConfigError."""
        plan = cls()
        try:
            for row in json.loads(path.read_text(encoding="utf-8")):
                plan.add(Fault(**row))
        except (OSError, ValueError, TypeError) as error:
            raise ConfigError(f"--faults {path}: {error}") from None
        return plan
