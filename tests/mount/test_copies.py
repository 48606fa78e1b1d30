"""Copies inside a real mount, by the programs and libraries that make them."""

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.component.server_requests import REPO, Requests
from tests.mount.conftest import MountedServer
from tests.mount.suites.running import check

pytestmark = pytest.mark.fuse

_DEADLINE_S = 40
_BYTES = random.Random(3)
# What programs do that copy in pieces: Go and Rust ask for a GiB at a time, others for less.
_IN_PIECES = """
import os, sys
source, target = os.open(sys.argv[1], os.O_RDONLY), os.open(sys.argv[2], os.O_RDWR | os.O_CREAT)
while os.copy_file_range(source, target, 300_000):
    print(len(os.pread(target, 1 << 24, 0)))
os.close(target)
"""


def test_copies_in_a_mount_move_no_bytes(mounted: MountedServer, tmp_path: Path) -> None:
    server, root = mounted.server, mounted.root
    contents = {f"d/{number}": _BYTES.randbytes(size) for number, size in enumerate((1, 70_000))}
    contents["model"] = _BYTES.randbytes(3_000_000)
    for name, data in contents.items():
        server.deploy(REPO, name, data, {"env": ["production"]})
    ask = Requests(server)
    server.stats.reset()
    log = tmp_path / "log"
    script = "cp model copy; cp -p model again; cp -a d e; cp copy again; install model installed"
    check(["sh", "-ec", script], root, deadline_s=_DEADLINE_S, log=log)
    assert "GET content" not in server.stats.by_route
    in_pieces = [sys.executable, "-c", _IN_PIECES, str(root / "model"), str(root / "pieces")]
    said = check(in_pieces, Path("/"), deadline_s=_DEADLINE_S, log=log).split()
    assert said == [str(size) for size in range(300_000, 3_000_001, 300_000)]
    assert server.stats.bytes_received < 1000, server.stats.as_dict()  # questions, for cp -a
    for name in ("copy", "again", "installed", "pieces"):
        assert ask.content(name) == contents["model"], name
    for number in range(2):
        assert ask.content(f"e/{number}") == contents[f"d/{number}"]
    assert ask.properties("copy") == {}
    assert ask.properties("e/1") == {"env": ["production"]}


def test_a_copy_of_what_is_being_written_and_over_what_is_mapped(mounted: MountedServer) -> None:
    data = _BYTES.randbytes(500_000)
    root = mounted.root
    with open(root / "new", "w+b") as source:
        source.write(data)
        source.flush()
        subprocess.run(["cp", root / "new", root / "copy"], check=True, timeout=_DEADLINE_S)
        assert (root / "copy").read_bytes() == data
        source.seek(1000)
        source.write(b"changed")
    with open(root / "copy", "r+b") as target, open(root / "new", "rb") as source:
        assert target.read() == data  # its pages are in memory
        target.seek(0)
        while os.copy_file_range(source.fileno(), target.fileno(), 1 << 30):
            pass
        assert os.pread(target.fileno(), len(data), 0)[1000:1007] == b"changed"
    assert Requests(mounted.server).content("copy") == (root / "new").read_bytes()
