"""Processes that a test starts are gone when it ends, however it ends."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import AnyStr


@contextmanager
def killed(process: subprocess.Popen[AnyStr]) -> Iterator[subprocess.Popen[AnyStr]]:
    """Kill it on the way out, if it runs still.

    ``with Popen(…)`` alone waits for it there, without a deadline: a test that fails while its
    process waits for something would hang for ever, whatever its time-out.
    """
    with process:
        try:
            yield process
        finally:
            process.kill()
