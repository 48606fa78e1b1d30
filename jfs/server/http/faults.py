"""A fault plan: failures on demand, so that clients are tried against a real server.

A ``Fault`` says what goes wrong and for which requests: a glob on the decoded path below
``/artifactory`` (``*`` crosses slashes) and one on the method. Only a fault whose glob begins with
``/bucket`` acts on signed storage: it is held against ``/bucket/REPO/PATH``, the artifact that the
location was asked for, whatever the location looks like. Any thread: tests add faults from theirs
while the server's loop matches.

What a request that changes something has done when it goes wrong:

- nothing: ``status`` and ``garbage`` (the body is read away first, unless *early*), ``cut``;
- nothing yet: ``hold``, until it is released; then everything;
- everything: ``drop`` (the client never hears of it), ``stall`` and what spoils answers.
"""

import asyncio
import contextlib
import json
import random
import threading
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from enum import StrEnum
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TypedDict, Unpack

from jfs.errors import ConfigError


class Kind(StrEnum):
    CUT = "cut"
    HOLD = "hold"
    STATUS = "status"
    GARBAGE = "garbage"
    DROP = "drop"
    SHORT = "short"
    STALL = "stall"
    WRONG_RANGE = "wrong_range"
    IGNORE_RANGE = "ignore_range"
    GZIP = "gzip"
    CHUNKED = "chunked"
    HEADERS = "headers"
    WRONG_CHECKSUMS = "wrong_checksums"
    CORRUPT = "corrupt"
    REDIRECT = "redirect"
    OTHER_CONTENT = "other_content"


class When(TypedDict, total=False):
    """Which requests a fault spoils: see ``Fault``."""

    method: str
    times: int | None
    after: int
    agent: str
    share: float


class Gate:
    """Closed until opened, once; waited for on a loop, opened from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open = False
        self._waiting: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    async def wait(self) -> None:
        event = asyncio.Event()
        with self._lock:
            if self._open:
                return
            self._waiting.append((asyncio.get_running_loop(), event))
        await event.wait()

    def open(self) -> None:
        with self._lock:
            self._open = True
            waiting, self._waiting = self._waiting, []
        for loop, event in waiting:
            with contextlib.suppress(RuntimeError):  # that server has ended
                loop.call_soon_threadsafe(event.set)


@dataclass(eq=False)
class Fault:
    """One rule. Make it with a constructor below; each takes these keywords.

    Args:
        path: glob on the path, such as ``/api/storage/*/bad``.
        method: glob on the method.
        times: requests to spoil; None: all.
        after: matching requests to let pass first.
        agent: glob on the User-Agent: weather for one client, and not for another.
        share: of the others so many, at random, the same in every run.
    """

    kind: Kind
    _: KW_ONLY
    path: str = "*"
    method: str = "*"
    times: int | None = None
    after: int = 0
    agent: str = "*"
    share: float = 1.0
    code: int = 503
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    offset: int | None = None
    expired: bool = False
    uses: int | None = None
    early: bool = False
    to: str = ""
    opaque: bool = False
    silent: bool = False
    relative: bool = False
    hits: int = field(default=0, init=False)  # requests spoiled so far
    gate: Gate = field(default_factory=Gate, init=False)
    reached: threading.Event = field(default_factory=threading.Event, init=False)

    def __post_init__(self) -> None:
        self._passed = 0
        self._dice = random.Random(self.kind)

    def release(self) -> None:
        """Let every stalled request go on, and those that come later."""
        self.gate.open()

    def wait_hit(self, timeout_s: float = 30) -> None:
        """Wait until a request was spoiled (for a stall or a hold: waits). Raises TimeoutError."""
        if not self.reached.wait(timeout_s):
            raise TimeoutError(f"no request met the fault {self.kind} on {self.path}")

    def _takes(self, method: str, path: str, agent: str) -> bool:
        given = ((path, self.path), (method, self.method), (agent, self.agent))
        if not all(fnmatchcase(text, pattern) for text, pattern in given):
            return False
        if self.times is not None and self.hits >= self.times:
            return False
        if self._passed < self.after:
            self._passed += 1
            return False
        if self.share < 1 and self._dice.random() >= self.share:
            return False
        self.hits += 1
        if self.kind not in (Kind.STALL, Kind.HOLD):
            self.reached.set()
        return True

    @classmethod
    def cut(
        cls,
        path: str = "*",
        *,
        after_bytes: int = 0,
        **when: Unpack[When],
    ) -> "Fault":
        """Cut the connection and do nothing: once that many bytes of the request's body came.

        A body that is shorter is read to its end, and then the connection is cut.
        """
        return cls(Kind.CUT, path=path, **when, offset=after_bytes)

    @classmethod
    def hold(cls, path: str = "*", **when: Unpack[When]) -> "Fault":
        """Do nothing until ``release``: then act and answer as if the request had just come.

        A client that goes away meanwhile does not undo that, unless it sent a body: its delete or
        move happens late, as behind a slow proxy. A server that is stopped meanwhile does nothing.
        """
        return cls(Kind.HOLD, path=path, **when)

    @classmethod
    def status(
        cls,
        code: int,
        path: str = "*",
        *,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        early: bool = False,
        **when: Unpack[When],
    ) -> "Fault":
        """Answer *code* and do nothing; an empty *body* makes the usual JSON error.

        Args:
            early: answer without reading the request's body, and close.
        """
        return cls(
            Kind.STATUS,
            path=path,
            **when,
            code=code,
            body=body,
            headers=headers or {},
            early=early,
        )

    @classmethod
    def garbage(
        cls,
        path: str = "*",
        *,
        body: bytes = b"<html><body>Welcome to the hotel network</body></html>",
        **when: Unpack[When],
    ) -> "Fault":
        """Answer 200 with *body* in place of anything sensible: HTML, or binary junk."""
        return cls(Kind.GARBAGE, path=path, **when, body=body)

    @classmethod
    def drop(
        cls,
        path: str = "*",
        *,
        after_bytes: int | None = None,
        **when: Unpack[When],
    ) -> "Fault":
        """Do what is asked, then cut: before the answer, or after that many bytes of its body."""
        return cls(Kind.DROP, path=path, **when, offset=after_bytes)

    @classmethod
    def short(
        cls,
        path: str = "*",
        *,
        size: int,
        **when: Unpack[When],
    ) -> "Fault":
        """Send only *size* bytes, as valid HTTP; Content-Range still names all of them."""
        return cls(Kind.SHORT, path=path, **when, offset=size)

    @classmethod
    def stall(
        cls,
        path: str = "*",
        *,
        after_bytes: int | None = None,
        **when: Unpack[When],
    ) -> "Fault":
        """Do what is asked; hold the answer, or its body after so many bytes, until ``release``."""
        return cls(Kind.STALL, path=path, **when, offset=after_bytes)

    @classmethod
    def wrong_content_range(
        cls,
        path: str = "*",
        *,
        value: str | None = None,
        **when: Unpack[When],
    ) -> "Fault":
        """Name another range in Content-Range: *value*, or one byte further on."""
        headers = {} if value is None else {"Content-Range": value}
        return cls(Kind.WRONG_RANGE, path=path, **when, headers=headers)

    @classmethod
    def ignore_range(cls, path: str = "*", **when: Unpack[When]) -> "Fault":
        """Answer 200 with everything."""
        return cls(Kind.IGNORE_RANGE, path=path, **when)

    @classmethod
    def gzip(cls, path: str = "*", **when: Unpack[When]) -> "Fault":
        """Compress the body, as a proxy would. It is made in memory: for small files."""
        return cls(Kind.GZIP, path=path, **when)

    @classmethod
    def chunked(cls, path: str = "*", **when: Unpack[When]) -> "Fault":
        """Send without Content-Length, that of a HEAD too. It is made in memory."""
        return cls(Kind.CHUNKED, path=path, **when)

    @classmethod
    def set_headers(
        cls,
        headers: Mapping[str, str],
        path: str = "*",
        **when: Unpack[When],
    ) -> "Fault":
        """Overwrite headers of the answer; an empty value removes one."""
        return cls(Kind.HEADERS, path=path, **when, headers=headers)

    @classmethod
    def wrong_etag(cls, path: str = "*", **when: Unpack[When]) -> "Fault":
        return cls.set_headers({"ETag": "0" * 40}, path, **when)

    @classmethod
    def wrong_checksums(cls, path: str = "*", **when: Unpack[When]) -> "Fault":
        """State other checksums: in X-Checksum headers and in JSON, that of a deploy too."""
        return cls(Kind.WRONG_CHECKSUMS, path=path, **when)

    @classmethod
    def corrupt(
        cls,
        path: str = "*",
        *,
        offset: int = 0,
        **when: Unpack[When],
    ) -> "Fault":
        """Flip the byte at *offset* of the body."""
        return cls(Kind.CORRUPT, path=path, **when, offset=offset)

    @classmethod
    def redirect(
        cls,
        path: str = "*",
        *,
        expired: bool = False,
        uses: int | None = None,
        to: str = "",
        opaque: bool = False,
        silent: bool = False,
        relative: bool = False,
        headers: Mapping[str, str] | None = None,
        **when: Unpack[When],
    ) -> "Fault":
        """Send downloads to a signed location on a second listener that refuses credentials.

        Only GET, unless *method* says otherwise; a location is signed for one method.

        Args:
            expired: the location answers 403, as after its 30 seconds.
            uses: it does so after that many requests.
            to: it leads to the content of another artifact, ``REPO/PATH``.
            opaque: it names the place, not the content: what is there when it is asked is sent.
            silent: the redirect itself states no checksums.
            relative: its Location names no scheme.
            headers: of the redirect itself, as ``set_headers`` has them.
        """
        when.setdefault("method", "GET")
        return cls(
            Kind.REDIRECT,
            path=path,
            expired=expired,
            uses=uses,
            to=to,
            opaque=opaque,
            silent=silent,
            relative=relative,
            headers=headers or {},
            **when,
        )

    @classmethod
    def other_content(cls, other: str, path: str = "/bucket/*", **when: Unpack[When]) -> "Fault":
        """Send what another artifact, ``REPO/PATH``, holds; of signed storage only."""
        return cls(Kind.OTHER_CONTENT, path=path, to=other, **when)


class FaultPlan:
    """The faults in force; of those that match, the first one acts."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._faults: list[Fault] = []

    def add(self, fault: Fault) -> Fault:
        with self._lock:
            self._faults.append(fault)
        return fault

    def remove(self, fault: Fault) -> None:
        """Take a fault away and let go on what it stalls."""
        with self._lock:
            self._faults.remove(fault)
        fault.release()

    def clear(self) -> None:
        """Take every fault away and let go on what is stalled."""
        with self._lock:
            faults, self._faults = self._faults, []
        for fault in faults:
            fault.release()

    def release_all(self) -> None:
        """Let go on what is stalled; the faults stay."""
        with self._lock:
            faults = list(self._faults)
        for fault in faults:
            fault.release()

    def match(self, method: str, path: str, agent: str = "") -> Fault | None:
        """Find the fault of a request and count it."""
        if not self._faults:
            return None
        bucket = path.startswith("/bucket")
        with self._lock:
            return next(
                (
                    each
                    for each in self._faults
                    if each.path.startswith("/bucket") is bucket
                    and each._takes(method, path, agent)
                ),
                None,
            )

    @classmethod
    def load(cls, path: Path) -> "FaultPlan":
        """Read a JSON list such as ``[{"kind": "status", "path": "/r/*", "code": 503}]``.

        Keys are the fields of ``Fault``; *body* is text. Raises ConfigError.
        """
        plan = cls()
        try:
            rows = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(rows, list):
                raise ValueError("a list of faults is expected")
            for row in rows:
                plan.add(_read(row))
        except OSError as error:
            raise ConfigError(f"--faults {path}: {error.strerror}") from None
        except (ValueError, TypeError, KeyError) as error:
            raise ConfigError(f"--faults {path}: {error}") from None
        return plan


_FIELDS = {
    "path": str,
    "method": str,
    "times": int,
    "after": int,
    "agent": str,
    "share": float,
    "code": int,
    "headers": dict,
    "offset": int,
    "expired": bool,
    "uses": int,
    "early": bool,
    "to": str,
    "opaque": bool,
    "silent": bool,
    "relative": bool,
}


def _read(row: object) -> Fault:
    if not isinstance(row, dict):
        raise ValueError(f"a fault is an object, not {row!r}")
    fields = dict(row)
    kind = Kind(fields.pop("kind", ""))
    if kind is Kind.REDIRECT:
        fields.setdefault("method", "GET")  # as the constructor has it
    body = fields.pop("body", "")
    for name, value in fields.items():
        if name in ("times", "offset", "uses") and value is None:
            continue
        if name not in _FIELDS:
            raise ValueError(f"{kind}: unknown field {name!r}; known: {', '.join(_FIELDS)}")
        if not isinstance(value, _FIELDS[name]):
            raise ValueError(f"{kind}: {name} must be {_FIELDS[name].__name__}, not {value!r}")
    return Fault(kind, body=str(body).encode(), **fields)
