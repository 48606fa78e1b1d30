"""The faults of a disk, what every operation of a mount answers meanwhile, and how it is tried.

Cache, staged files and kept metadata of the mount lie on a disk that fails (``faultydisk``).
"""

import contextlib
import json
import select
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from jfs.server import EmbeddedServer
from tests.component.server_requests import Requests
from tests.weather.diskwork import FILES, OPERATIONS, PART, half, made, whole

REPO = "ml-models-local"
_PATIENCE_S = 30


class Disk:
    """A disk that fails when it is told to, mounted at *place*; what it has lies in *backing*."""

    def __init__(self, directory: Path) -> None:
        self.place = directory / "disk"
        self.backing = directory / "backing"
        for each in (self.place, self.backing):
            each.mkdir()
        command = [sys.executable, "-m", "tests.weather.faultydisk"]
        self._process = subprocess.Popen(
            [*command, str(self.backing), str(self.place)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._said() == "mounted\n"

    def fail(self, **faults: str) -> None:
        """Fail from now on as ``faultydisk`` says; without any it is well again."""
        print(json.dumps(faults), file=_pipe(self._process.stdin), flush=True)
        assert self._said() == "ok\n"

    def _said(self) -> str:
        """Return its next line. Raises TimeoutError."""
        said = _pipe(self._process.stdout)
        if not select.select([said], [], [], _PATIENCE_S)[0]:
            self._process.kill()  # or whoever tells it next waits for ever
            raise TimeoutError("the faulty disk does not obey")
        return said.readline()

    def end(self) -> None:
        """Take it away."""
        with contextlib.suppress(BrokenPipeError):
            _pipe(self._process.stdin).close()
        try:
            self._process.wait(_PATIENCE_S)
        finally:
            self._process.kill()
            _pipe(self._process.stdout).close()


def _pipe(pipe: IO[str] | None) -> IO[str]:
    assert pipe is not None
    return pipe


def _faults(**faults: str) -> Callable[[Disk], None]:
    return lambda disk: disk.fail(**faults)


def _empty(disk: Disk) -> None:
    for each in (disk.backing / "cache").iterdir():
        if each.is_dir():
            shutil.rmtree(each)


def _remove(disk: Disk) -> None:
    shutil.rmtree(disk.backing / "cache")


def _take_away(disk: Disk) -> None:
    (disk.backing / "cache").rename(disk.backing / "elsewhere")
    disk.fail(mkdir="EROFS")  # a mount point without its disk


def _put_back(disk: Disk) -> None:
    disk.fail()
    (disk.backing / "elsewhere").rename(disk.backing / "cache")


def _well(disk: Disk) -> None:
    disk.fail()


@dataclass(frozen=True)
class Row:
    """A fault.

    Attributes:
        begin, end: of the fault.
        outcomes: of what does not go on as if nothing were.
        waits: somebody waits until the disk is given up.
    """

    name: str
    begin: Callable[[Disk], None]
    outcomes: dict[str, str] = field(default_factory=dict)
    end: Callable[[Disk], None] = _well
    waits: bool = False


_CREATE, _CHANGE, _ON, _CLOSE = "create, write, close", "change a part", "write on, close", "close"
_WRITES = (_CREATE, _CHANGE, _ON)


def _all(outcome: str, *names: str) -> dict[str, str]:
    return dict.fromkeys(names, outcome)


ROWS = [
    Row("EIO at read", _faults(read="EIO"), _all("EIO", *_WRITES, _CLOSE)),
    Row("EIO at write", _faults(write="EIO", fsync="EIO"), _all("EIO", *_WRITES)),
    Row("EIO at everything", _faults(all="EIO"), _all("EIO", *_WRITES, _CLOSE)),
    Row(
        "full",
        _faults(write="ENOSPC", create="ENOSPC", mkdir="ENOSPC", statfs="full"),
        _all("ENOSPC", *_WRITES),
    ),
    Row(
        "no inode left",
        _faults(create="ENOSPC", mkdir="ENOSPC"),
        _all("ENOSPC", _CREATE, _CHANGE),
    ),
    Row("quota exceeded", _faults(write="EDQUOT", create="EDQUOT"), _all("EDQUOT", *_WRITES)),
    Row("read-only", _faults(changes="EROFS"), _all("EROFS", *_WRITES)),
    Row("stale (NFS)", _faults(all="ESTALE"), _all("EIO", *_WRITES, _CLOSE)),
    Row("short reads", _faults(read="short")),
    Row("short writes", _faults(write="short")),
    Row("other bytes are read", _faults(read="flip"), _all("EIO", *_WRITES, _CLOSE)),
    Row("files deleted", _empty),
    Row("directory removed", _remove),
    Row("taken away and put back", _take_away, _all("EIO", _CREATE, _CHANGE), _put_back),
    Row("hangs at read", _faults(read="hang"), _all("EIO", *_WRITES, _CLOSE), waits=True),
    Row("hangs", _faults(all="hang"), _all("EIO", *_WRITES, _CLOSE), waits=True),
]


def expected(row: Row) -> dict[str, str]:
    """Return what every operation answers while a fault lasts."""
    return {name: row.outcomes.get(name, "ok") for name in OPERATIONS}


def prepare(server: EmbeddedServer, number: int) -> None:
    """Deploy the files of a row."""
    for name in FILES:
        server.deploy(REPO, f"{name}{number}", whole(name, number))
    server.set_properties(REPO, f"cached{number}", {"env": ["production"]})


def lost(server: EmbeddedServer, number: int, outcomes: dict[str, str]) -> list[str]:
    """Say what the server has otherwise than it was promised."""
    get, changed = Requests(server).content, whole("changed", number)
    right: dict[str, bytes | None] = {
        f"{name}{number}": whole(name, number) for name in ("cached", "cold", "held")
    }
    right |= {f"removed{number}": None, f"over{number}": None}
    right[f"under{number}"] = whole("over", number)
    written: dict[str, tuple[str, bytes, bytes | None]] = {
        f"made{number}": (_CREATE, made(number), None),
        f"changed{number}": (_CHANGE, PART + changed[len(PART) :], changed),
        f"half{number}": (_ON, half("half", number) * 2, None),
        f"closing{number}": (_CLOSE, half("closing", number), None),
    }
    found = [f"{name}: other bytes" for name, data in right.items() if get(name) != data]
    for name, (operation, after, before) in written.items():
        if get(name) != (after if outcomes[operation] == "ok" else before):
            found.append(f"{name}: {operation} was {outcomes[operation]}, and it is not so")
    return found
