"""Whether a process still holds a copy of a descriptor. Blocking (procfs); any thread.

FLUSH is sent for every descriptor that is closed, copies included: ``cmd > file`` opens, copies the
descriptor with dup2 and closes the first before a byte was written, and every command of
``(a; b) > file`` closes its inherited one at its end. Uploading then would show others half of a
file. The kernel does not say which FLUSH is the last one, but the process that opened the file
tells: while it holds more writable descriptors of the inode than it opened, one of them is a copy,
and its last close is yet to come. When in doubt the answer is that there is no copy.
"""

import contextlib
import os
from collections.abc import Sequence

_ACCESS_MODE = 0o3


def has_copy(pid: int, opened_by: Sequence[int], ino: int) -> bool:
    """Whether the process of *pid* holds a copy of a descriptor that it has just closed.

    False when it is gone, in another PID namespace, or not ours to look at.

    Args:
        pid: of the process or thread that opened the file.
        opened_by: the same for every writable handle of the file, this one included.
        ino: of the file, as ``stat`` shows it.
    """
    left = _writable(pid, ino)
    if not left:
        return False
    if len(opened_by) > 1:
        group = _group(pid)
        return left >= sum(_group(other) == group for other in opened_by)
    return True


def _writable(pid: int, ino: int) -> int:
    count = 0
    with contextlib.suppress(OSError):
        for name in os.listdir(f"/proc/{pid}/fdinfo"):
            with contextlib.suppress(OSError, ValueError):
                count += _matches(f"/proc/{pid}/fdinfo/{name}", ino)
    return count


def _matches(path: str, ino: int) -> bool:
    """Look at one descriptor; the line ``ino:`` is there since Linux 5.14."""
    with open(path, encoding="ascii", errors="replace") as file:
        fields = dict(line.split(":", 1) for line in file if ":" in line)
    return (
        int(fields.get("ino", "0")) == ino
        and int(fields.get("flags", "0"), 8) & _ACCESS_MODE != os.O_RDONLY
    )


def _group(pid: int) -> int:
    """Give the process of a thread: FUSE names the thread."""
    with (
        contextlib.suppress(OSError, ValueError),
        open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as file,
    ):
        return int(next(line for line in file if line.startswith("Tgid:")).split()[1])
    return pid
