"""A process that survives the daemon, and cuts the connection of one that was killed.

A thread that tells the kernel to forget a name waits in the kernel, deaf to signals, for the lock
of the folder. A LOOKUP in that folder may hold it, until it is answered. If the daemon is killed
then (SIGKILL, no memory left), nobody answers; the thread cannot end, so its descriptors stay open,
and so the connection, whose end alone would free the two: readers stay in state D for good. Only a
write to ``abort`` of fusectl helps, by somebody else.

Where that cannot be opened (no root, no fusectl) nobody survives: ``umount -f`` is what is left.
"""

import logging
import os
import subprocess
import sys

from jfs import fusectl

log = logging.getLogger(__name__)

# A pidfd tells the end at once, if it is one. The leader of a thread group is a zombie (Z) from
# when it ended until its last thread did; it may also be in the kernel still, with signal 9
# pending. Read from a descriptor that was opened once, nothing of another process with the same
# number is seen: ESRCH. What is written to a connection that has gone does nothing.
_PROGRAM = """
import os, select, signal, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
process, status, abort = map(int, sys.argv[1:])
def lives():
    try:
        lines = os.pread(status, 4096, 0).split(b"\\n")
    except OSError:
        return False
    found = dict(line.split(b":\\t", 1) for line in lines if b":\\t" in line)
    killed = int(found[b"SigPnd"], 16) | int(found[b"ShdPnd"], 16)
    return found[b"State"][:1] not in (b"Z", b"X") and not killed & 1 << 8
end = select.poll()
end.register(process, select.POLLIN)
while lives() and not end.poll(1000):
    pass
os.write(abort, b"1")
"""


class Survivor:
    """Watches this process for the connection of one mount. Any thread; blocking.

    Args:
        device: of the mount, ``major:minor``.
    """

    def __init__(self, device: str) -> None:
        self._child: subprocess.Popen[bytes] | None = None
        try:
            abort = fusectl.open_abort(device)
        except OSError as error:
            log.debug("nobody would cut the connection after a kill: %s", error)
            return
        try:
            self._child = self._start(abort)
        except OSError as error:
            log.debug("nobody would cut the connection after a kill: %s", error)
        finally:
            os.close(abort)

    def _start(self, abort: int) -> "subprocess.Popen[bytes]":
        process = os.pidfd_open(os.getpid())
        status = os.open("/proc/self/status", os.O_RDONLY | os.O_CLOEXEC)
        kept = (process, status, abort)
        try:
            return subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _PROGRAM, *map(str, kept)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd="/",
                pass_fds=kept,
                start_new_session=True,
            )
        finally:
            os.close(status)
            os.close(process)

    def close(self) -> None:
        """End it: the mount has ended, or is about to."""
        child, self._child = self._child, None
        if child is not None:
            child.kill()
            child.wait()
