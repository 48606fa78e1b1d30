"""What a process does in a mount whose disk fails: JSON lines in, JSON lines out.

A request is ``[operation, number]``; every number has files of its own. A result is ``ok``, the
name of an errno, or ``wrong`` with what was. Standard library only.
"""

import contextlib
import errno
import json
import os
import sys
import time
from collections.abc import Callable

from tests.weather.operations import content

SIZE = 1 << 20
PART = b"a part that is other now"
# Files of a number that the server has, before anything is done.
FILES = ("cached", "cold", "held", "changed", "removed", "over", "under", "after")


def whole(name: str, number: int) -> bytes:
    """Return what a file of the server holds: 2 MiB."""
    return content(f"{name}{number}") * 2


def half(name: str, number: int) -> bytes:
    """Return what is written first."""
    return content(f"{name}{number}")[:10_000]


def made(number: int) -> bytes:
    """Return what is written."""
    return content(f"made{number}")[: SIZE // 4]


class Work:
    """The operations; *held* are descriptors that were open before."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._held: dict[str, int] = {}

    def prepare(self, number: int) -> None:
        """Have a file in the cache, and some open; they are open for good weather, too."""
        self.read_cached(number)
        os.getxattr(self._root + f"/cached{number}", "user.env")
        for name in ("held", "removed", "under"):
            self._held[name] = os.open(f"{self._root}/{name}{number}", os.O_RDONLY)
            _is(os.pread(self._held[name], 10, 0), whole(name, number)[:10])
        for name in ("half", "closing"):
            file = os.open(f"{self._root}/{name}{number}", os.O_RDWR | os.O_CREAT | os.O_EXCL)
            self._held[name] = file
            data = half(name, number)
            _is(os.write(file, data), len(data))

    def read_cached(self, number: int) -> None:
        _is(self._read(f"cached{number}") == whole("cached", number), True)

    def read_cold(self, number: int) -> None:
        _is(self._read(f"cold{number}") == whole("cold", number), True)

    def read_on(self, number: int) -> None:
        file = self._held.pop("held")
        try:
            _is(os.pread(file, 4 * SIZE, 0) == whole("held", number), True)
        finally:
            os.close(file)

    def ls(self, number: int) -> None:
        _is({f"cached{number}", f"cold{number}"} <= set(os.listdir(self._root)), True)

    def getfattr(self, number: int) -> None:
        _is(os.getxattr(f"{self._root}/cached{number}", "user.env"), b"production")

    def statfs(self, number: int) -> None:
        os.statvfs(self._root)

    def create(self, number: int) -> None:
        file = os.open(f"{self._root}/made{number}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        _written(file, made(number))

    def change(self, number: int) -> None:
        file = os.open(f"{self._root}/changed{number}", os.O_WRONLY)
        _written(file, PART)

    def write_on(self, number: int) -> None:
        _written(self._held.pop("half"), half("half", number))

    def close(self, number: int) -> None:
        os.close(self._held.pop("closing"))

    def remove(self, number: int) -> None:
        os.unlink(f"{self._root}/removed{number}")
        os.close(self._held.pop("removed"))

    def replace(self, number: int) -> None:
        os.rename(f"{self._root}/over{number}", f"{self._root}/under{number}")
        os.close(self._held.pop("under"))

    def read_after(self, number: int) -> None:
        _is(self._read(f"after{number}") == whole("after", number), True)

    def read_again(self, number: int) -> None:
        _is(self._read(f"again{number}") == whole("again", number), True)

    def write_again(self, number: int) -> None:
        file = os.open(f"{self._root}/written{number}", os.O_WRONLY | os.O_CREAT, 0o644)
        _written(file, made(number))

    def _read(self, name: str) -> bytes:
        file = os.open(f"{self._root}/{name}", os.O_RDONLY)
        try:
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
            return b"".join(iter(lambda: os.read(file, SIZE), b""))
        finally:
            os.close(file)


OPERATIONS: dict[str, Callable[[Work, int], None]] = {
    "read, cached": Work.read_cached,
    "read, not cached": Work.read_cold,
    "read on": Work.read_on,
    "ls": Work.ls,
    "getfattr": Work.getfattr,
    "statfs": Work.statfs,
    "create, write, close": Work.create,
    "change a part": Work.change,
    "write on, close": Work.write_on,
    "close": Work.close,
    "unlink of what is open": Work.remove,
    "rename over what is open": Work.replace,
}
_OTHERS = {
    "prepare": Work.prepare,
    "read after": Work.read_after,
    "read again": Work.read_again,
    "write again": Work.write_again,
}


class Wrong(Exception):
    """A system call answered something that is not true."""


def _is(found: object, right: object) -> None:
    if found != right:
        raise Wrong(f"{str(found)[:80]!r} is not {str(right)[:80]!r}")


def _written(file: int, data: bytes) -> None:
    """Write and close; what write says counts."""
    try:
        _is(os.write(file, data), len(data))
    except OSError:
        with contextlib.suppress(OSError):
            os.close(file)
        raise
    os.close(file)


def main(root: str) -> None:
    work = Work(root)
    for line in sys.stdin:
        name, number = json.loads(line)
        began = time.monotonic()
        try:
            {**OPERATIONS, **_OTHERS}[name](work, number)
            outcome = "ok"
        except OSError as error:
            outcome = errno.errorcode.get(error.errno or 0, str(error))
        except Wrong as error:
            outcome = f"wrong: {error}"
        print(json.dumps([outcome, time.monotonic() - began]), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
