"""Who waits for an answer, and was told to end."""

import subprocess
import threading

from jfs.mount.waiters import Fault, Told, fault_of, told


def test_who_is_gone_waits_for_nothing() -> None:
    with subprocess.Popen(["true"]) as process:
        process.wait()
    mine = threading.get_native_id()
    assert told([process.pid, mine, 0]) == {
        process.pid: Told.GONE,
        mine: Told.NOTHING,
        0: Told.UNKNOWN,  # of another PID namespace
    }


def test_who_waits_in_a_system_call_has_touched_no_page() -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        try:
            assert fault_of(process.pid) in (Fault.NONE, Fault.NOTHING)  # it may be about to
        finally:
            process.kill()
    assert fault_of(process.pid) is Fault.NONE  # it is gone
