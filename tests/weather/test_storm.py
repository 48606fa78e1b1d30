"""The storm: whatever the server does, nobody sees what never was, and nothing is lost or stuck.

``JFS_STORM_MINUTES`` and ``JFS_STORM_SEED`` say how long and which; a failure names its seed.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from jfs.server import EmbeddedServer
from tests.concurrency.book import chosen
from tests.weather.storm import PLAN, Storm

pytestmark = pytest.mark.fuse

_SLICE = replace(PLAN, seconds=5.0, hands=3, kills=1.0)


@pytest.mark.timeout(1500)
def test_random_faults_under_mixed_load(
    server: EmbeddedServer, tmp_path: Path, scale: Callable[[float, float], float]
) -> None:
    minutes, seed = chosen("JFS_STORM", scale(0, 10))
    end = time.monotonic() + 60 * minutes
    with Storm(tmp_path, server, seed, PLAN if minutes else _SLICE) as storm:
        while not storm.rounds or time.monotonic() < end:
            storm.run_round()
    healed = max(storm.healed_s)
    peaks = ", ".join(f"{name} {peak >> 20} MiB" for name, peak in storm.peaks.items())
    cuts = sum(node.cuts for node in storm.nodes)
    print(f"seed {seed}: {storm.rounds} rounds, healed within {healed:.1f} s, peaks {peaks}")
    print(dict(storm.book.counts))
    assert not cuts, "killed daemons whose connection did not end with them"
