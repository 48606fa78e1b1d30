"""A mount that is killed at any moment, while a program of this tree writes to it."""

import os
import random
import subprocess
import sys
import time
from collections.abc import Callable

from tests.mount.mounting import Mounted, clean_environ
from tests.processes import killed

_WRITER = """
import importlib, os, sys
root, last, module, name = sys.argv[1:]
step = getattr(importlib.import_module(module), name)
os.chdir(root)  # it stays in the mount, also when that is dead and taken away
number = int(last)
while True:
    number += 1
    step("f", number)
    print(number, flush=True)
"""


def kill_beside(
    mounted: Mounted,
    step: Callable[[str, int], object],
    last: int,
    *,
    choose: random.Random,
    most: int,
) -> int:
    """Kill a mount while a process makes one step after the other; return the last that was made.

    Args:
        step: a function of a module, called with the path of a file and the number of the step.
        last: the number of the step before the first.
        most: fewer steps than these are waited for.
    """
    started = subprocess.Popen(
        [sys.executable, "-c", _WRITER, mounted.root, str(last), step.__module__, step.__name__],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # ENOTCONN, in the end
        env={**clean_environ(), "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    with killed(started) as writer:
        assert writer.stdout is not None
        for _ in range(choose.randrange(1, most)):
            last = int(writer.stdout.readline())
        time.sleep(choose.random() * 0.02)  # somewhere in the next one
        mounted.kill()
        for line in writer.stdout:
            last = int(line)
    return last
