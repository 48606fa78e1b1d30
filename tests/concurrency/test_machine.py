"""The machine: nobody sees what never was, nothing is lost, nothing hangs.

``JFS_MACHINE_MINUTES`` and ``JFS_MACHINE_SEED`` say how long and which; a failure names its seed.
"""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from jfs.server import EmbeddedServer
from tests.concurrency.book import Plan, chosen
from tests.concurrency.machine import Machine

pytestmark = pytest.mark.fuse

_SLICE = Plan(ttls=(0.0, 10.0), hands=2, steps=25, kills=0.5, weather=0.0)
_WHOLE = Plan(ttls=(0.0, 0.3, 10.0), hands=3, steps=60, kills=0.3, weather=0.3)
_SLICE_ROUNDS = 2


@pytest.mark.timeout(4000)
def test_several_mounts_and_what_happens_elsewhere(
    server: EmbeddedServer, tmp_path: Path, scale: Callable[[float, float], float]
) -> None:
    minutes, seed = chosen("JFS_MACHINE", scale(0, 60))
    end = time.monotonic() + 60 * minutes
    with Machine(tmp_path, server, seed, _WHOLE if minutes else _SLICE) as machine:
        while machine.rounds < _SLICE_ROUNDS or time.monotonic() < end:
            machine.run_round()
    print(f"seed {seed}: {machine.rounds} rounds, {dict(machine.book.counts)}")
