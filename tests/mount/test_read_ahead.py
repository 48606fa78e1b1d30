"""What the kernel asks of a mount beyond what its programs read."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.mount.conftest import MountedServer

pytestmark = pytest.mark.fuse

REPO = "ml-models-local"
MiB = 1024 * 1024
_PREAD = """
import os, sys
file = os.open(sys.argv[1], os.O_RDONLY)
assert len(os.pread(file, int(sys.argv[3]), int(sys.argv[2]))) == int(sys.argv[3])
"""


def pread(path: Path, start: int, size: int) -> None:
    subprocess.run([sys.executable, "-c", _PREAD, str(path), str(start), str(size)], check=True)


def test_a_piece_that_is_read_once_costs_little_more_than_itself(mounted: MountedServer) -> None:
    """The kernel, left alone, asks for half as much again.

    On a machine so slow that the server looks far it may cost a quarter more, and no more.
    """
    mounted.server.deploy(REPO, "piece", bytes(48 * MiB))
    before = mounted.server.stats.bytes_sent
    pread(mounted.root / "piece", 37 * MiB, 4 * MiB)
    mounted.mount.stop()  # what was begun for it has ended
    sent = mounted.server.stats.bytes_sent - before
    assert 4 * MiB <= sent < 5.25 * MiB


def test_a_stream_is_read_to_its_end(mounted: MountedServer) -> None:
    """Also where the kernel is told in the middle of it that it may ask ahead."""
    data = os.urandom(MiB) * 80
    mounted.server.deploy(REPO, "stream", data)
    assert (mounted.root / "stream").read_bytes() == data
