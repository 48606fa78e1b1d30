"""``--fetch whole`` on a real mount: an open returns when the file is here.

What can go wrong is in ``tests/component/test_fetching.py``.
"""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.filesize import decimal

from jfs.extents import MiB
from jfs.server import EmbeddedServer, Fault
from tests.component.server_requests import Requests
from tests.mount.conftest import Mounter
from tests.mount.mounting import Mounted, run_jfs

pytestmark = pytest.mark.fuse
REPO = "ml-models-local"
DATA = random.Random(5).randbytes(6 * MiB + 77)


def mount(server: EmbeddedServer, mounter: Mounter, *options: str) -> Mounted:
    return mounter(
        f"{server.url}/{REPO}", "--fetch", "whole", *options, JF_ACCESS_TOKEN=server.token
    )


def figures(mounted: Mounted) -> dict[str, dict[str, object]]:
    found: dict[str, dict[str, object]] = json.loads((mounted.root / ".jfs/stats.json").read_text())
    return found


def fetches(mounted: Mounted) -> list[dict[str, Any]]:
    found = figures(mounted)["fetches"]["files"]
    assert isinstance(found, list)
    return found


@pytest.mark.parametrize("passthrough", ["auto", "off"])
def test_an_open_waits_for_the_whole_file(
    server: EmbeddedServer, mounter: Mounter, tmp_path: Path, passthrough: str
) -> None:
    """A look at it fetches nothing; after the open nobody asks the server for bytes of it."""
    server.deploy(REPO, "f", DATA)
    mounted = mount(server, mounter, "--passthrough", passthrough)
    path = mounted.root / "f"
    server.stats.reset()
    assert os.stat(path).st_size == len(DATA)
    os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))
    assert server.stats.bytes_sent < MiB
    file = os.open(path, os.O_RDONLY)
    assert Requests(server).sent() >= len(DATA)
    server.faults.add(Fault.status(503, f"/{REPO}/f"))
    checked = subprocess.run(["sha256sum", str(path)], capture_output=True, text=True, check=True)
    assert checked.stdout.startswith(hashlib.sha256(DATA).hexdigest())
    subprocess.run(["cp", str(path), str(tmp_path / "copy")], check=True)
    assert (tmp_path / "copy").read_bytes() == DATA
    assert os.pread(file, 100, MiB) == DATA[MiB : MiB + 100]
    os.close(file)
    told = figures(mounted)
    passes = told["passthrough"]["state"] == "on"
    assert told["counters"].get("passthrough_opens", 0) == (3 if passes else 0)


def test_status_shows_what_is_fetched_and_who_waits_is_interrupted(
    server: EmbeddedServer, mounter: Mounter
) -> None:
    server.deploy(REPO, "f", DATA)
    mounted = mount(server, mounter)
    # Bytes count by the MiB that a receive waits for.
    stall = server.faults.add(Fault.stall(f"/{REPO}/f", after_bytes=2 * MiB))
    opener = subprocess.Popen([sys.executable, "-c", f"open({str(mounted.root / 'f')!r})"])
    while not sum(fetch["bytes"] for fetch in fetches(mounted)):
        assert opener.poll() is None
    told = json.loads(run_jfs("status", "--json", str(mounted.root)).stdout)
    (fetch,) = told[0]["fetches"]
    assert fetch["path"] == f"{REPO}/f"
    assert 0 < fetch["bytes"] < fetch["total"] == len(DATA)
    assert fetch["waiting"] == 1
    said = run_jfs("status", str(mounted.root)).stdout
    amount = f"{decimal(fetch['bytes'])} of {decimal(fetch['total'])}"
    assert f"fetching {REPO}/f: {amount}" in said
    opener.send_signal(signal.SIGKILL)
    opener.wait(30)
    while fetches(mounted):
        assert mounted.process.poll() is None
    stall.release()
    server.faults.clear()
    assert (mounted.root / "f").read_bytes() == DATA
