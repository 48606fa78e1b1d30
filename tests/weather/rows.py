"""The faults of the matrix: how each begins and ends."""

import json
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from jfs.server import EmbeddedServer, Fault
from tests.weather.line import Line, Mode
from tests.weather.names import Knows, NameServer

_FILES = "/ml-models-local/*"
XRAY = (
    "Artifact download request rejected: model was not downloaded due to the download blocking "
    "policy 'no-pickles' configured in Xray."
)


@dataclass(frozen=True)
class Certificates:
    """Of one name, by one authority."""

    authority: Path
    good: ssl.SSLContext
    expired: ssl.SSLContext


@dataclass(frozen=True)
class World:
    """What is between a mount and its files."""

    server: EmbeddedServer
    line: Line
    names: NameServer
    certificates: Certificates


@dataclass(frozen=True)
class Row:
    """A fault.

    Attributes:
        begin: makes the weather bad.
        each: anew for every operation, since it spoils only so many requests.
        tls: the mount speaks TLS.
        named: the mount knows the server by a name, which leads elsewhere afterwards.
    """

    name: str
    begin: Callable[[World], None]
    each: bool = False
    tls: bool = False
    named: bool = False


def lift(row: Row, world: World) -> None:
    """Make the weather good again."""
    if row.named:
        _move(world)
    world.server.faults.clear()
    if world.line.tls is not None:
        world.line.tls = world.certificates.good
    world.line.set(Mode.PASS)


def _line(mode: Mode) -> Callable[[World], None]:
    return lambda world: world.line.set(mode)


def _fault(make: Callable[[], Fault]) -> Callable[[World], None]:
    def begin(world: World) -> None:
        world.server.faults.add(make())

    return begin


def _names(knows: Knows) -> Callable[[World], None]:
    """Return what spoils a name, and shows it: who is connected already needs none."""

    def begin(world: World) -> None:
        world.names.knows = knows
        world.line.set(Mode.REFUSE)

    return begin


def _move(world: World) -> None:
    world.names.leads_to = world.line.move()
    world.names.knows = Knows.NAME


def _expire(world: World) -> None:
    world.line.tls = world.certificates.expired
    world.line.set(Mode.PASS)  # connections that were made with the good one end


def _status(code: int, **of: object) -> Callable[[World], None]:
    return _fault(lambda: Fault.status(code, **of))  # type: ignore[arg-type]  # as its keywords


_BLOCKED = json.dumps({"errors": [{"status": 403, "message": XRAY}]}).encode()
_SOON = {"Retry-After": "1"}

ROWS = [
    Row("connection refused", _line(Mode.REFUSE)),
    Row("black hole", _line(Mode.BLACK_HOLE)),
    Row("server's name unknown", _names(Knows.NOTHING), named=True),
    Row("name server fails", _names(Knows.FAILS), named=True),
    Row("name server silent", _names(Knows.SILENT), named=True),
    Row("server at another address", _move, each=True, named=True),
    Row("TLS certificate expired", _expire, tls=True),
    # Not for each: a token that has not changed is tried again once a second at most.
    Row("401 once", _status(401, times=1)),
    Row("401", _status(401)),
    Row("403, blocked by Xray", _status(403, body=_BLOCKED, path=_FILES)),
    Row("404 once, of what is there", _status(404, path=_FILES, times=1), each=True),
    Row("409", _status(409)),
    Row("413", _status(413, method="PUT")),
    Row("423", _status(423)),
    Row("429 once, with Retry-After", _status(429, headers=_SOON, times=1), each=True),
    Row("429", _status(429)),
    Row("500", _status(500)),
    Row("503, longer than anybody waits", _status(503)),
    Row("503 once", _status(503, times=1), each=True),
    Row("silence before the first byte", _fault(Fault.stall)),
    Row("silence in the body", _fault(lambda: Fault.stall(_FILES, after_bytes=1000))),
    Row("reset in the body", _fault(lambda: Fault.drop(_FILES, after_bytes=1000))),
    Row("body cut short", _fault(lambda: Fault.short(_FILES, size=1000))),
    Row("wrong bytes", _fault(lambda: Fault.corrupt(_FILES, offset=1000))),
    Row("wrong range", _fault(lambda: Fault.wrong_content_range(_FILES))),
    Row("200 for a range", _fault(lambda: Fault.ignore_range(_FILES))),
    Row("redirect that has expired", _fault(lambda: Fault.redirect(_FILES, expired=True))),
    Row("server stopped", _line(Mode.SILENT)),
]
