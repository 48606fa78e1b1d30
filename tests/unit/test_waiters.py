"""Who waits for an answer, and was told to end."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from jfs.mount.waiters import Told, Wait, Waiting, told, waiting
from tests.processes import killed


def test_who_is_gone_waits_for_nothing() -> None:
    with subprocess.Popen(["true"]) as process:
        process.wait()
    mine = threading.get_native_id()
    assert told([process.pid, mine, 0]) == {
        process.pid: Told.GONE,
        mine: Told.NOTHING,
        0: Told.UNKNOWN,  # of another PID namespace
    }


@pytest.mark.parametrize(
    ("call", "seen"),
    [
        ("os.read(0, 300_000)", Waiting(Wait.CALL, 300_000, 0)),
        ("time.sleep(60)", Waiting(Wait.UNKNOWN)),
    ],
)
def test_the_call_of_who_waits_in_one_says_how_much_it_reads(call: str, seen: Waiting) -> None:
    command = [sys.executable, "-c", f"import os, time; print(flush=True); {call}"]
    pipe = subprocess.PIPE
    with killed(subprocess.Popen(command, stdin=pipe, stdout=pipe)) as process:
        assert process.stdout is not None
        process.stdout.readline()
        while waiting(process.pid) != seen:  # or the test takes too long
            assert process.poll() is None
            os.sched_yield()
    assert waiting(process.pid).what is Wait.UNKNOWN  # it is gone


def test_a_read_of_nothing_is_of_a_thread_of_the_kernel() -> None:
    """Those of loop devices and NFS servers have zeros there; here is a program that waits so."""
    wait = "os.read(ctypes.CDLL(None).inotify_init(), 0)"
    command = [sys.executable, "-c", f"import ctypes, os; {wait}"]
    with killed(subprocess.Popen(command)) as process:
        place = Path(f"/proc/{process.pid}/syscall")
        said: list[bytes] = []
        while said[:1] not in ([b"0"], [b"63"]) or said[3] != b"0x0":  # or the test takes too long
            assert process.poll() is None
            os.sched_yield()
            said = place.read_bytes().split()
        while (seen := waiting(process.pid)).what is Wait.NOTHING:
            os.sched_yield()
    assert seen == Waiting(Wait.UNKNOWN)
