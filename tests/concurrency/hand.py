"""One process that does to a mount what it is told: JSON lines in, JSON lines out.

A process of its own: a system call that never returns can be named and killed, and a page fault on
a mapping does not hold the lock of the interpreter in which the server lives. Every request is an
object with ``do``; every reply has ``start`` and ``end`` (seconds of the monotonic clock), and, if
a system call failed, ``errno`` and the ``stage`` at which. Standard library only: it starts fast.
"""

import contextlib
import errno
import json
import mmap
import os
import sys
import time
from collections.abc import Iterator
from typing import Any

from tests.concurrency.content import WORD, joined, runs_of, words

_PIECE = 1 << 20
# Until what was refused is gone; where nobody knows whether it was, it may be there for good.
_PATIENCE_S, _SHORT_PATIENCE_S = 20.0, 2.0
_REFUSED = (errno.ESTALE, errno.EIO, errno.ETIMEDOUT)
_MODES = {
    "store": os.O_WRONLY | os.O_CREAT | os.O_TRUNC,
    "store+": os.O_RDWR | os.O_CREAT | os.O_TRUNC,
    "exclusive": os.O_WRONLY | os.O_CREAT | os.O_EXCL,
    "append": os.O_RDWR | os.O_APPEND,
    "change": os.O_RDWR,
    "cut": os.O_RDWR,
}

Reply = dict[str, Any]


class Calls:
    """Does one request after the other. *slots*: descriptors that are kept open."""

    def __init__(self) -> None:
        self.slots: dict[int, int] = {}

    def do(self, request: dict[str, Any]) -> Reply:
        reply: Reply = {"start": time.monotonic(), "stage": "open"}
        action = getattr(self, "do_" + request.pop("do"))
        try:
            action(reply, **request)
        except OSError as error:
            reply["errno"] = error.errno
        reply["end"] = time.monotonic()
        if reply.get("errno") in _REFUSED and "write" in request:
            refused = reply["errno"] == errno.ESTALE and reply["stage"] == "close"
            patience_s = _PATIENCE_S if refused else _SHORT_PATIENCE_S
            _settle(request["path"], request["write"], reply.get("cut"), patience_s)
            reply["settled"] = time.monotonic()
        return reply

    def do_read(self, reply: Reply, path: str, pieces: Any, mapped: bool) -> None:
        file = self._open(reply, path)
        with _closing(file):
            _read(reply, file, pieces, mapped=mapped)

    def do_hold(self, reply: Reply, path: str, slot: int) -> None:
        self.slots[slot] = self._open(reply, path)

    def do_peek(self, reply: Reply, slot: int, pieces: Any, mapped: bool) -> None:
        _read(reply, self.slots[slot], pieces, mapped=mapped)

    def do_drop(self, reply: Reply, slot: int) -> None:
        reply["stage"] = "close"
        os.close(self.slots.pop(slot))

    def do_write(
        self, reply: Reply, path: str, mode: str, write: int, size: int, sync: int
    ) -> None:
        """Make a file anew. *sync*: with an ``fsync`` after so many bytes; 0: without."""
        file = os.open(path, _MODES[mode], 0o644)
        reply["opened"] = time.monotonic()
        with _closing(file, reply):
            if sync:
                _put(reply, file, write, 0, sync)
                reply["sync"], reply["syncing"] = sync, time.monotonic()
                reply["stage"] = "fsync"
                os.fsync(file)
                reply["synced"] = time.monotonic()
            _put(reply, file, write, sync, size - sync)

    def do_patch(
        self, reply: Reply, path: str, mode: str, write: int, size: int, where: float
    ) -> None:
        """Read a file and change a part of it, append, or cut it off."""
        file = os.open(path, _MODES[mode])
        reply["opened"] = time.monotonic()
        with _closing(file, reply):
            _read(reply, file, None, mapped=False)
            there = reply["size"] // WORD
            if mode == "cut" and there:
                reply["stage"], reply["cut"] = "write", int(1 + where * (there - 1)) * WORD
                os.ftruncate(file, reply["cut"])
                return
            start = there if mode == "append" else int(where * there)
            reply["patch"] = (write, start, start + size // WORD)
            _put(reply, file, write, start * WORD, size, append=mode == "append")

    def do_unlink(self, reply: Reply, path: str) -> None:
        os.unlink(path)

    def do_rename(self, reply: Reply, path: str, to: str) -> None:
        os.rename(path, to)

    def do_stat(self, reply: Reply, path: str) -> None:
        reply["size"] = os.stat(path).st_size

    def do_list(self, reply: Reply, path: str) -> None:
        reply["names"] = os.listdir(path)

    def do_folder(self, reply: Reply, path: str) -> None:
        """Make a folder and remove it."""
        os.mkdir(path)
        reply["stage"] = "remove"
        os.rmdir(path)

    def do_tree(self, reply: Reply, path: str, to: str, write: int, size: int) -> None:
        """Rename a folder while a file in it is written, and read that at its new place."""
        half = size // 2 // WORD * WORD
        os.mkdir(path)
        file = os.open(os.path.join(path, "file"), _MODES["store"], 0o644)
        with _closing(file, reply):
            _put(reply, file, write, 0, half)
            reply["stage"] = "rename"
            os.rename(path, to)
            _put(reply, file, write, half, size - half)
        reply["stage"] = "open"
        file = self._open(reply, os.path.join(to, "file"))
        with _closing(file):
            _read(reply, file, None, mapped=False)

    def do_tag(self, reply: Reply, path: str, key: str, value: int) -> None:
        """Set a property; 0: remove it."""
        if value:
            os.setxattr(path, f"user.{key}", str(value).encode())
        else:
            os.removexattr(path, f"user.{key}")

    def do_tagged(self, reply: Reply, path: str, key: str) -> None:
        """Read a property."""
        try:
            value = os.getxattr(path, f"user.{key}")
        except OSError as error:
            if error.errno != errno.ENODATA:
                raise
            reply["value"] = 0
        else:
            reply["value"] = int(value) if value.isdigit() else -1  # which nobody has set

    def do_fact(self, reply: Reply, path: str, fact: str) -> None:
        """Read what the mount says of a name."""
        reply["fact"] = os.getxattr(path, f"user.jfs.{fact}").decode()

    def do_refresh(self, reply: Reply, path: str, attribute: str) -> None:
        """What ``jfs refresh`` does."""
        os.getxattr(path, attribute)

    def _open(self, reply: Reply, path: str) -> int:
        file = os.open(path, os.O_RDONLY)
        reply["opened"] = time.monotonic()
        return file


def _read(reply: Reply, file: int, pieces: Any, *, mapped: bool) -> None:
    """Read pieces ``(offset, size)`` in fractions of the file; None: all of it, to its end."""
    reply["stage"] = "fstat"
    size = reply["size"] = os.fstat(file).st_size
    reply["sizes"] = [size]
    reply["stage"] = "read"
    chunks = reply["chunks"] = []
    if pieces is None:
        place, found = 0, []
        while data := os.pread(file, _PIECE, place):
            found.append(runs_of(data, place))
            place += len(data)
        chunks.append((0, place + WORD, joined(found)))
        return
    for where, part in pieces:
        offset = int(where * size) // WORD * WORD
        asked = max(WORD, int(part * size) // WORD * WORD)
        if not mapped:
            # A page that fails ends a read before it; the next one says why.
            data = b""
            while len(data) < asked and (
                more := os.pread(file, asked - len(data), offset + len(data))
            ):
                data += more
            chunks.append((offset, asked, runs_of(data, offset)))
        elif offset + asked <= size:
            chunks.append((offset, asked, _mapped(file, offset, asked)))


def _mapped(file: int, offset: int, asked: int) -> Any:
    """Read by page faults, in a child: one that fails is SIGBUS."""
    out, into = os.pipe()
    child = os.fork()
    if not child:
        try:
            data = _faulted(file, offset, asked)
            os.write(into, json.dumps(runs_of(data, offset)).encode())
            os._exit(0)
        except OSError as error:
            os._exit(error.errno or 255)
        except BaseException:
            os._exit(255)
    os.close(into)
    with os.fdopen(out, "rb") as pipe:
        text = pipe.read()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        raise OSError(-os.WTERMSIG(status), "a page fault")
    if status:
        failed = os.waitstatus_to_exitcode(status)
        if failed == 255:
            raise RuntimeError("the reader of a mapping failed")
        raise OSError(failed, "a mapping")
    return json.loads(text)


def _faulted(file: int, offset: int, asked: int) -> bytes:
    while size := os.fstat(file).st_size:  # what is empty cannot be mapped
        # With a length, or mmap takes a failure of its own fstat for a length of 0.
        with (
            contextlib.suppress(ValueError),  # it became shorter
            mmap.mmap(file, size, prot=mmap.PROT_READ) as view,
        ):
            return view[offset : offset + asked]
    return b""


def _put(
    reply: Reply, file: int, write: int, offset: int, size: int, *, append: bool = False
) -> None:
    reply["stage"] = "write"
    for at in range(offset, offset + size, _PIECE):
        data = words(write, at // WORD, min(at + _PIECE, offset + size) // WORD)
        if append:
            os.write(file, data)
        else:
            os.pwrite(file, data, at)


def _settle(path: str, write: int, cut: int | None, patience_s: float) -> None:
    """Wait, not for ever, until a refused change is not shown any more.

    ``close`` fails before the mount hears that the file was closed.
    """
    end = time.monotonic() + patience_s
    while time.monotonic() < end:
        try:
            with open(path, "rb", buffering=0) as file:
                data = file.read() or b""
        except OSError:
            return
        if len(data) != cut and all(run[0] != write for run in runs_of(data, 0)):
            return
        os.sched_yield()


@contextlib.contextmanager
def _closing(file: int, reply: Reply | None = None) -> Iterator[None]:
    """Close a descriptor at the end; what ``close`` says counts if nothing failed before."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            os.close(file)
        raise
    if reply is not None:
        reply["closing"], reply["stage"] = time.monotonic(), "close"
    os.close(file)


def main() -> None:
    calls = Calls()
    for line in sys.stdin:
        print(json.dumps(calls.do(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
