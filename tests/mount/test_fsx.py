"""The bytes of one file, changed at random in a mount as in a plain directory."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.component.server_requests import Requests
from tests.mount.conftest import MountedServer
from tests.mount.suites.running import check

pytestmark = pytest.mark.fuse

_PROGRAM = Path(__file__).with_name("fsx.py")


def test_a_file_that_is_changed_at_random(
    mounted: MountedServer, tmp_path: Path, scale: Callable[[int, int], int]
) -> None:
    """``JFS_FSX_SEED`` begins with another run: the one that a failure names."""
    first, runs = int(os.environ.get("JFS_FSX_SEED", "1")), scale(1, 200)
    for seed in range(first, first + runs):
        (plain := tmp_path / f"plain{seed}").mkdir()
        (place := mounted.root / str(seed)).mkdir()
        command = [sys.executable, _PROGRAM, seed, scale(60, 500), plain, place]
        words = [str(word) for word in command]
        check(words, Path("/"), deadline_s=50, log=tmp_path / f"log{seed}")
        ask = Requests(mounted.server)
        for path in plain.iterdir():
            assert ask.content(f"{seed}/{path.name}") == path.read_bytes(), (seed, path.name)
