"""The mount beside a plain directory: the same calls, the same results, the same on the server."""

import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from jfs.server import EmbeddedServer
from tests.conftest import REPO
from tests.mount.conftest import Mounter
from tests.mount.mounting import clean_environ

_WHOLE = 10_000


@pytest.mark.fuse
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", ["1", "2", "3", "random"])
def test_a_mount_behaves_like_a_directory(
    seed: str,
    server: EmbeddedServer,
    mounter: Mounter,
    tmp_path: Path,
    scale: Callable[[int, int], int],
) -> None:
    passes = "off" if seed == "3" else "auto"  # whether the kernel reads and writes itself
    mounted = mounter(f"{server.url}/{REPO}", "--passthrough", passes, JF_ACCESS_TOKEN=server.token)
    steps = scale(500, _WHOLE)
    if seed == "random":
        # New ones in the whole proof; the gate runs the same in every run.
        seed = str(scale(4, random.SystemRandom().randrange(1 << 32)))
    plain = tmp_path / "plain"
    plain.mkdir()
    result = subprocess.run(
        [sys.executable, "-m", "tests.model.driver", mounted.root, plain, str(steps), seed],
        capture_output=True,
        text=True,
        check=False,
        env={
            **clean_environ(),
            "JFS_URL": server.url,
            "JFS_TOKEN": server.token,
            "PYTHONPATH": os.pathsep.join(sys.path),
        },
    )
    assert result.returncode == 0, result.stderr[-8000:]
