"""What a process does in a mount, one thing at a time: JSON lines in, JSON lines out.

A process of its own: what hangs can be seen from outside and killed, and a page fault that fails
ends a child of it. Standard library only. A result is ``ok``, the name of an errno, ``SIGBUS``, or
``wrong`` with what was.
"""

import errno
import hashlib
import json
import mmap
import os
import signal
import sys
import time
from collections.abc import Callable

SIZE = 1 << 20


def content(name: str) -> bytes:
    """Return what a file of this name holds, other bytes in every block."""
    seed = hashlib.sha256(name.encode()).digest()
    return b"".join(seed + number.to_bytes(8, "big") for number in range(SIZE // 40))


class AtClose(Exception):
    """What close() said."""

    def __init__(self, error: OSError) -> None:
        super().__init__(f"{_name(error)} at close")


class Wrong(Exception):
    """A system call answered something that is not true."""


def _is(found: object, right: object) -> None:
    if found != right:
        raise Wrong(f"{str(found)[:80]!r} is not {str(right)[:80]!r}")


def stat_known(root: str) -> None:
    _is(os.stat(f"{root}/known").st_size, len(content("known")))


def stat_unknown(root: str) -> None:
    _is(os.stat(f"{root}/deep/unknown").st_size, len(content("unknown")))


def ls(root: str) -> None:
    _is({"known", "cached", "tagged"} <= set(os.listdir(root)), True)


def read_uncached(root: str) -> None:
    _is(_read(f"{root}/cold") == content("cold"), True)


def read_cached(root: str) -> None:
    _is(_read(f"{root}/cached") == content("cached"), True)


def mmap_uncached(root: str) -> None:
    """Map in a child: a fault that fails is a signal."""
    file = os.open(f"{root}/mapped", os.O_RDONLY)
    try:
        child = os.fork()
        if not child:
            code = 1
            try:
                with mmap.mmap(file, 0, prot=mmap.PROT_READ) as pages:
                    code = 0 if bytes(pages) == content("mapped") else 2
            finally:
                os._exit(code)
        _, status = os.waitpid(child, 0)
    finally:
        os.close(file)
    if os.WIFSIGNALED(status):
        raise _Signalled(signal.Signals(os.WTERMSIG(status)).name)
    _is(os.WEXITSTATUS(status), 0)


def getfattr(root: str) -> None:
    _is(os.getxattr(f"{root}/tagged", "user.env"), b"production")


def setfattr(root: str) -> None:
    os.setxattr(f"{root}/tagged", "user.note", b"seen")


def create(root: str) -> None:
    file = os.open(f"{root}/made", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        os.write(file, content("made"))
    except BaseException:
        os.close(file)
        raise
    try:
        os.close(file)
    except OSError as error:
        raise AtClose(error) from None


def rename(root: str) -> None:
    os.rename(f"{root}/old", f"{root}/new")


def unlink(root: str) -> None:
    os.unlink(f"{root}/gone")


def statfs(root: str) -> None:
    os.statvfs(root)


OPERATIONS: dict[str, Callable[[str], None]] = {
    "stat of what is known": stat_known,
    "stat of what is not": stat_unknown,
    "ls": ls,
    "read, not cached": read_uncached,
    "read, cached": read_cached,
    "mmap, not cached": mmap_uncached,
    "getfattr": getfattr,
    "setfattr": setfattr,
    "create, write, close": create,
    "rename": rename,
    "unlink": unlink,
    "statfs": statfs,
}


class _Signalled(Exception):
    pass


def _read(path: str) -> bytes:
    file = os.open(path, os.O_RDONLY)
    try:
        # What the kernel holds of it says nothing about the mount.
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        found = b""
        while data := os.read(file, SIZE):
            found += data
        return found
    finally:
        os.close(file)


def _name(error: OSError) -> str:
    return errno.errorcode.get(error.errno or 0, str(error))


def outcome(name: str, root: str) -> str:
    """Do it, and say how it ended."""
    try:
        OPERATIONS[name](root)
    except OSError as error:
        return _name(error)
    except (AtClose, _Signalled) as error:
        return str(error)
    except Wrong as error:
        return f"wrong: {error}"
    return "ok"


def main(root: str) -> None:
    for line in sys.stdin:
        began = time.monotonic()
        result = outcome(json.loads(line), root)
        print(json.dumps([result, time.monotonic() - began]), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
