"""What every operation answers in bad weather: the table of the README, which the matrix checks."""

from collections.abc import Iterator

from tests.weather.operations import OPERATIONS
from tests.weather.rows import ROWS

OK = "ok"
UNMOUNT = "unmount"
COLUMNS = (*OPERATIONS, UNMOUNT)
LOCAL = ("statfs", UNMOUNT)


def _all(outcome: str) -> dict[str, str]:
    """Return a row in which the server refuses everything."""
    return {name: outcome for name in COLUMNS if name not in LOCAL}


def _outage(outcome: str) -> dict[str, str]:
    """Return a row in which the server cannot be asked: what is known and cached stands in."""
    known = ("stat of what is known", "ls", "read, cached", "getfattr")
    row = {name: outcome for name in _all(outcome) if name not in known}
    return {**row, "mmap, not cached": "SIGBUS"}


def _bytes(outcome: str, **others: str) -> dict[str, str]:
    """Return a row in which the bytes of files alone are spoilt."""
    return {"read, not cached": outcome, "mmap, not cached": "SIGBUS", **others}


_CLOSE = "create, write, close"

# What is not said is ``ok``.
_OTHER: dict[str, dict[str, str]] = {
    "connection refused": _outage("EIO"),
    "black hole": _outage("ETIMEDOUT"),
    "server's name unknown": _outage("EIO"),
    "name server fails": _outage("EIO"),
    "name server silent": _outage("EIO"),
    "server at another address": {},
    "TLS certificate expired": _outage("EIO"),
    "401 once": {},
    "401": {**_all("EACCES"), "mmap, not cached": "EACCES"},
    "403, blocked by Xray": _bytes("EACCES", **{_CLOSE: "EACCES at close", "unlink": "EACCES"}),
    "404 once, of what is there": {"unlink": "ENOENT"},
    "409": _all("EBUSY"),
    "413": {_CLOSE: "ENOSPC at close"},
    "423": _all("EBUSY"),
    "429 once, with Retry-After": {},
    "429": _outage("EIO"),
    "500": _outage("EIO"),
    "503, longer than anybody waits": _outage("EIO"),
    "503 once": {},
    "silence before the first byte": _outage("ETIMEDOUT"),
    "silence in the body": _bytes("ETIMEDOUT", **{_CLOSE: "ETIMEDOUT at close"}),
    "reset in the body": _bytes("EIO"),
    "body cut short": _bytes("EIO"),
    "wrong bytes": _bytes("EIO"),
    "wrong range": _bytes("EIO"),
    "200 for a range": {},
    "redirect that has expired": _bytes("EACCES"),
    "server stopped": _outage("ETIMEDOUT"),
}


def expected(row: str) -> dict[str, str]:
    """Return the outcome of every operation while a fault lasts."""
    return {name: _OTHER[row].get(name, OK) for name in COLUMNS}


def table() -> str:
    """Render the table of the README."""
    return "\n".join(_lines()) + "\n"


def _lines() -> Iterator[str]:
    yield f"| fault | {' | '.join(COLUMNS)} |"
    yield "|---" * (1 + len(COLUMNS)) + "|"
    for row in ROWS:
        cells = [outcome.replace(OK, "✓") for outcome in expected(row.name).values()]
        yield f"| {row.name} | {' | '.join(cells)} |"
