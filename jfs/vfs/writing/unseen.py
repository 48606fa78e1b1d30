"""What the kernel writes to a staged file itself, which nobody tells us of: the file's times do.

The kernel sets the time of a file at each write. So before its bytes are hashed its time is set
into the past: whatever is written from then on makes it another one, however coarse the clock of
the file system is. Between two looks of other kinds a change is missed only within one tick of that
clock, and only until the next digest. Any thread.
"""

import errno
import fcntl
import os
import signal

from jfs.extents import MiB

_S = 10**9
_LEAST_ROOM = 64 * MiB


def free_room(file: int) -> int:
    """Return how many bytes are free on the disk of a file. Blocking. Raises OSError."""
    status = os.fstatvfs(file)
    return status.f_bavail * status.f_frsize


def require_room(file: int) -> None:
    """Raise OSError if the disk may have refused a write: hardly anything is free. Blocking."""
    if free_room(file) < _LEAST_ROOM:
        raise OSError(errno.ENOSPC, "hardly any room is left: a write may have been refused")


def is_open_elsewhere(file: int) -> bool:
    """Whether a file is open through other descriptors, or mapped. Does not wait for the disk.

    A lease for writing is refused then, also of a mapping whose descriptor was closed. Where the
    file system knows no leases nobody can tell: it is said to be.
    """
    try:
        # Whoever opens it before the lease is given back has it broken: by SIGIO, which would end
        # this process, unless another signal is named. That one is ignored.
        fcntl.fcntl(file, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    except OSError:
        return True
    fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return False


class Unseen:
    """The writes of the kernel to one file.

    Args:
        file: its descriptor; it must be closed later than this is used for the last time.
    """

    def __init__(self, file: int) -> None:
        self._file = file
        self._seen = self._now()

    @property
    def size(self) -> int:
        """How long the file is. Does not wait for the disk."""
        return os.fstat(self._file).st_size

    def is_there(self) -> bool:
        """Whether the file was written to since it was last seen. Does not wait for the disk."""
        return self._now() != self._seen

    def see(self) -> int:
        """Take note of it. Returns when it was written last, in ns since 1970."""
        self._seen = self._now()
        return self._seen[0]

    def mark(self) -> None:
        """Have every write from now on be told. Blocking. Raises OSError."""
        status = os.fstat(self._file)
        # A whole second: what file systems keep that keep less. The last write has this time, but
        # for a second or two, if a crash comes before the next.
        past = (status.st_mtime_ns // _S - 1) * _S
        os.utime(self._file, ns=(status.st_atime_ns, past))
        self._seen = past, status.st_size

    def _now(self) -> tuple[int, int]:
        status = os.fstat(self._file)
        return status.st_mtime_ns, status.st_size


class Sized:
    """A file whose size is known, or asked for while the kernel writes to it.

    Attributes:
        file: its descriptor.
        unseen: what the kernel writes itself; None: all writes come here.
        was_passed: the kernel writes, or wrote, to it.
    """

    def __init__(self, file: int, size: int) -> None:
        self.file = file
        self.unseen: Unseen | None = None
        self.was_passed = False
        self._size = size

    @property
    def size(self) -> int:
        return self._size if self.unseen is None else self.unseen.size

    @size.setter
    def size(self, size: int) -> None:
        self._size = size

    def pass_on(self) -> None:
        """Have the kernel write to it from now on, too."""
        self.unseen, self.was_passed = Unseen(self.file), True

    def seal(self) -> bool:
        """Have every write from now on be told; whether there are any. Blocking. Raises OSError."""
        if self.was_passed:
            require_room(self.file)
        if self.unseen is not None:
            self.unseen.mark()
        return self.unseen is not None
