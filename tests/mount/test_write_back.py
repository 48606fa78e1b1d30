"""``jfs mount --write-back``: what close has promised comes to the server, whatever ends."""

import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from jfs.server import EmbeddedServer, Fault
from tests.component.server_requests import REPO, Requests
from tests.mount.conftest import Mounter
from tests.mount.mounting import Mounted, run_jfs

pytestmark = pytest.mark.fuse

DATA = os.urandom(3 << 20)


def behind(server: EmbeddedServer, mounter: Mounter, *options: str, name: str = "mnt") -> Mounted:
    environ = {"JF_ACCESS_TOKEN": server.token}
    return mounter(f"{server.url}/{REPO}", "--write-back", *options, name=name, **environ)


def wait_for(server: EmbeddedServer, path: str, data: bytes) -> None:
    """Wait until the server has a file with these bytes; it must never have others."""
    ask = Requests(server)
    while (answer := ask.get(f"/{REPO}/{path}")).status != 200:
        time.sleep(0.02)
    assert answer.body == data


def queue(tmp_path: Path) -> list[dict[str, Any]]:
    done = run_jfs("recover", "ls", "--json", "--cache-dir", str(tmp_path / "cache"))
    assert done.returncode == 0, done.stderr
    rows: list[dict[str, Any]] = json.loads(done.stdout)
    return rows


def test_what_was_closed_is_uploaded_by_the_next_mount(
    server: EmbeddedServer, mounter: Mounter, tmp_path: Path
) -> None:
    """``cp`` and ``mv`` succeed while no upload gets through; kill -9; the next mount goes on."""
    source = tmp_path / "source"
    source.write_bytes(DATA)
    server.deploy(REPO, "model", b"old", {"env": ["production"]})
    mounted = behind(server, mounter)
    assert os.listdir(mounted.root) == ["model"]
    server.faults.add(Fault.status(503, method="PUT"))
    subprocess.run(["cp", source, mounted.root / "f"], check=True)
    os.setxattr(mounted.root / "f", "user.stage", b"1")
    subprocess.run(["cp", source, mounted.root / "model.tmp"], check=True)
    subprocess.run(["mv", mounted.root / "model.tmp", mounted.root / "model"], check=True)
    assert sorted(os.listdir(mounted.root)) == ["f", "model"]
    assert os.getxattr(mounted.root / "f", "user.jfs.state") == b"pending"
    assert (mounted.root / "model").read_bytes() == DATA
    rows = {row["path"]: row for row in queue(tmp_path)}
    assert {(row["state"], row["in_use"]) for row in rows.values()} == {("pending", True)}
    assert rows.keys() == {f"{REPO}/f", f"{REPO}/model"}
    mounted.kill()
    assert {row["in_use"] for row in queue(tmp_path)} == {False}
    server.faults.clear()
    again = behind(server, mounter)
    wait_for(server, "f", DATA)
    while Requests(server).get(f"/{REPO}/model").body != DATA:
        time.sleep(0.02)
    assert Requests(server).properties("f") == {"stage": ["1"]}
    assert Requests(server).properties("model") == {"env": ["production"]}
    assert Requests(server).get(f"/{REPO}/model.tmp").status == 404
    while queue(tmp_path):
        time.sleep(0.02)
    assert os.getxattr(again.root / "f", "user.jfs.state") == b"clean"
    assert (again.root / "f").read_bytes() == DATA
