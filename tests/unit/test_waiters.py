"""Who waits for an answer, and was told to end."""

import os
import subprocess
import sys
import threading

import pytest

from jfs.mount.waiters import Told, Wait, Waiting, told, waiting


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
        ("os.read(0, 300_000)", Waiting(Wait.CALL, 300_000)),
        ("time.sleep(60)", Waiting(Wait.UNKNOWN)),
    ],
)
def test_the_call_of_who_waits_in_one_says_how_much_it_reads(call: str, seen: Waiting) -> None:
    command = [sys.executable, "-c", f"import os, time; print(flush=True); {call}"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe) as process:
        assert process.stdout is not None
        process.stdout.readline()
        while waiting(process.pid) != seen:  # or the test takes too long
            os.sched_yield()
        process.kill()
    assert waiting(process.pid).what is Wait.UNKNOWN  # it is gone
