"""Who waits for an answer, and was told to end."""

import subprocess
import threading

from jfs.mount.waiters import Told, told


def test_who_is_gone_waits_for_nothing() -> None:
    with subprocess.Popen(["true"]) as process:
        process.wait()
    mine = threading.get_native_id()
    assert told([process.pid, mine, 0]) == {
        process.pid: Told.GONE,
        mine: Told.NOTHING,
        0: Told.UNKNOWN,  # of another PID namespace
    }
