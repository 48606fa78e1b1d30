"""Look whether a mount answers the kernel, by a STATFS, which waits for nothing but the mount.

A child looks: whoever waits inside a mount cannot be ended, and while a thread of ours did, the end
of this process would not close the connection that it waits for.

It reaches the mount without its path: another mount that the path leads through may hang, and ours
would be ended for it. No descriptor of the mount is held: that would keep everybody from unmounting
it. So the child asks for the file system with the device number of the mount, by ustat(2), which is
old, but exists for that. Where there is none (arm64), or it is refused (the seccomp profile of
Docker), the child looks up one name, in the folder that holds the mountpoint, once that answers.
"""

import contextlib
import ctypes
import errno
import logging
import os
import platform
import subprocess
import sys

from jfs.mount.table import mounts

log = logging.getLogger(__name__)

# Numbers of ustat(2), which the C library calls no more: arch/*/…/syscall*.tbl of the kernel.
_USTAT = {"x86_64": 136, "i386": 62, "i686": 62, "ppc64le": 62, "s390x": 62}
_BY_NUMBER = """
import ctypes, os, sys
number, device = map(int, sys.argv[1:])
call = ctypes.CDLL(None).syscall
found = ctypes.create_string_buffer(1024)
os.write(1, b".")
call(ctypes.c_long(number), ctypes.c_long(device), found)
"""
_BY_NAME = """
import os, sys
os.fchdir(int(sys.argv[1]))
os.stat(".")
os.write(1, b".")
os.statvfs(sys.argv[2])
"""


def ustat_number() -> int | None:
    """Return the number of ustat(2); None: this machine has none that is known, or refuses it."""
    machine = platform.machine()
    if sys.maxsize <= 1 << 32 and machine not in ("i386", "i686"):  # its numbers are others
        return None
    number = _USTAT.get(machine)
    if number is None:
        return None
    call = ctypes.CDLL(None, use_errno=True).syscall
    call(ctypes.c_long(number), ctypes.c_long(0), ctypes.create_string_buffer(1024))
    return number if ctypes.get_errno() == errno.EINVAL else None  # no file system is number 0


class Looker:
    """Looks at one mount, from one thread. ``close`` it.

    Args:
        device: of the mount, ``major:minor``.
        number: ``ustat_number()``; None: by name.
    """

    def __init__(self, device: str, number: int | None) -> None:
        self._device = device
        self._number = number
        self._place = ""
        self._folder: int | None = None
        if number is None:
            self._hold_folder()
        self._child: subprocess.Popen[bytes] | None = None
        self._has_asked = False

    @property
    def is_looking(self) -> bool:
        """Whether a look has not come back."""
        return self._child is not None

    def begin(self) -> None:
        """Look, unless there is nothing to look at, or no child."""
        if self._number is not None and self._device:
            device = os.makedev(*map(int, self._device.split(":")))
            self._start(_BY_NUMBER, str(self._number), str(device))
        elif self._folder is not None and self._is_seen():
            self._start(_BY_NAME, str(self._folder), os.path.basename(self._place))

    def _start(self, program: str, *arguments: str) -> None:
        try:
            self._child = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", program, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                cwd="/",
                pass_fds=[self._folder] if self._folder is not None else [],
                start_new_session=True,
            )
        except OSError as error:
            log.debug("nobody looks whether the mount answers: %s", error.strerror)
            return
        assert self._child.stdout is not None
        os.set_blocking(self._child.stdout.fileno(), False)
        self._has_asked = False

    def is_answered(self, patience_s: float) -> bool:
        """Wait for a look that is under way, for so long; False: it waits for the mount."""
        child = self._child
        if child is None:
            return True
        assert child.stdout is not None
        try:
            child.wait(patience_s)
        except subprocess.TimeoutExpired:
            if not self._has_asked:  # a child may take long to begin, on a loaded machine
                with contextlib.suppress(BlockingIOError):
                    self._has_asked = bool(os.read(child.stdout.fileno(), 1))
            return not self._has_asked
        child.stdout.close()
        self._child = None
        return True

    def close(self) -> None:
        """Leave a look to itself, and give everything back."""
        if self._child is not None:
            self._child.kill()
            assert self._child.stdout is not None
            self._child.stdout.close()
        if self._folder is not None:
            os.close(self._folder)
            self._folder = None

    def _hold_folder(self) -> None:
        found = next((entry for entry in mounts() if entry.device == self._device), None)
        if found is None:
            return
        self._place = found.mountpoint
        with contextlib.suppress(OSError):
            folder = os.path.dirname(self._place)
            self._folder = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    def _is_seen(self) -> bool:
        """Whether it is still there, and nothing else is mounted over it."""
        last = {entry.mountpoint: entry.device for entry in mounts()}
        return last.get(self._place) == self._device
