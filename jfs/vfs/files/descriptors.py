"""Whether a file can still be written through an open descriptor. Blocking (procfs); any thread.

FLUSH is sent for every descriptor that is closed, copies included: ``cmd > file`` opens, copies the
descriptor with dup2 and closes the first before a byte was written, and every command of
``(a; b) > file`` closes its inherited one at its end. Uploading then would show others half of a
file. The kernel does not say which FLUSH is the last one, but the processes that opened the file
tell: while one of them holds a writable descriptor of the inode, the last close is yet to come.
When in doubt the answer is that there is none.
"""

import contextlib
import os
from collections.abc import Iterable

_ACCESS_MODE = 0o3


def can_write(opened_by: Iterable[int], ino: int, device: str | None) -> bool:
    """Whether one of the processes holds a writable descriptor of a file.

    Those that are gone, in another PID namespace, or not ours to look at, hold none.

    Args:
        opened_by: process or thread that opened it, of each of its writable handles.
        ino: of the file, as ``stat`` shows it.
        device: of the mount, ``major:minor``: another mount of the same server has the same inode
            numbers. None: not known.
    """
    groups = set()
    for pid in dict.fromkeys(opened_by):
        if (group := _group(pid)) in groups:
            continue
        groups.add(group)
        mounts = [mount for mount in _writable(pid, ino) if device is None or mount]
        if mounts and (device is None or not _mounts_of(pid, device).isdisjoint(mounts)):
            return True
    return False


def _writable(pid: int, ino: int) -> list[str]:
    """Return the mount of each descriptor of *ino* that can be written through."""
    found = []
    with contextlib.suppress(OSError):
        for name in os.listdir(f"/proc/{pid}/fdinfo"):
            with contextlib.suppress(OSError, ValueError):
                fields = _fields(f"/proc/{pid}/fdinfo/{name}")
                mode = int(fields.get("flags", "0"), 8) & _ACCESS_MODE
                # The line ``ino:`` is there since Linux 5.14.
                if int(fields.get("ino", "0")) == ino and mode != os.O_RDONLY:
                    found.append(fields.get("mnt_id", ""))
    return found


def _fields(path: str) -> dict[str, str]:
    with open(path, encoding="ascii", errors="replace") as file:
        return {
            key: value.strip() for key, _, value in (line.partition(":") for line in file) if value
        }


def _mounts_of(pid: int, device: str) -> set[str]:
    """Return the numbers under which a process sees a device mounted, bind mounts included."""
    found = set()
    with (
        contextlib.suppress(OSError),
        open(f"/proc/{pid}/mountinfo", encoding="utf-8", errors="replace") as file,
    ):
        for line in file:
            number, _, where, *_ = line.split(" ", 3)
            if where == device:
                found.add(number)
    return found


def _group(pid: int) -> int:
    """Return the process of a thread: FUSE names the thread."""
    with (
        contextlib.suppress(OSError, ValueError),
        open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as file,
    ):
        return int(next(line for line in file if line.startswith("Tgid:")).split()[1])
    return pid
