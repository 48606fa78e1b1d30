"""``jfs mount --write-back``: what close has promised comes to the server, whatever ends."""

import contextlib
import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jfs.cli.main import main
from jfs.server import EmbeddedServer, Fault
from tests.component.server_requests import REPO, Requests
from tests.mount.conftest import Mounter
from tests.mount.killing import kill_beside
from tests.mount.mounting import Mounted, clean_environ

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
    listed = jfs("recover", "ls", "--json", "--cache-dir", str(tmp_path / "cache"))
    rows: list[dict[str, Any]] = json.loads(listed)
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


def jfs(*arguments: str, code: int = 0) -> str:
    """Run a command in this process; return all that it printed."""
    printed = io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(printed),
        contextlib.redirect_stderr(printed),
    ):
        patch.setattr("os.environ", clean_environ())
        patch.setattr(sys, "argv", ["jfs", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
    assert ended.value.code == code, printed.getvalue()
    return printed.getvalue()


def test_the_queue_is_seen_and_dealt_with(
    server: EmbeddedServer, mounter: Mounter, tmp_path: Path
) -> None:
    """``jfs status``, ``recover`` and ``umount --wait`` beside a mount that cannot upload."""
    mounted = behind(server, mounter)
    root, cache = str(mounted.root), ("--cache-dir", str(tmp_path / "cache"))
    refusal = server.faults.add(Fault.status(507, method="PUT"))
    for name in ("one", "two"):
        (mounted.root / name).write_bytes(DATA)
    refusal.wait_hit()
    (row,) = json.loads(jfs("status", "--json", root))
    assert (row["state"], row["pid"], row["mountpoint"]) == ("answers", mounted.process.pid, root)
    assert (row["uploads"]["pending"], row["uploads"]["failed"]) == (2, 0)
    assert row["uploads"]["pending_bytes"] == 2 * len(DATA)
    assert f"2 ({2 * len(DATA) / 1e6:.1f} MB)" in jfs("status", root)
    rows = {row["path"].partition("/")[2]: row for row in queue(tmp_path)}
    assert {row["state"] for row in rows.values()} == {"pending"}
    one, two = rows["one"]["id"], rows["two"]["id"]
    assert "507" in jfs("recover", "retry", *cache, one, code=1)
    assert "tried" in jfs("recover", "ls", *cache)
    jfs("recover", "export", *cache, one, str(tmp_path / "copy"))
    assert (tmp_path / "copy").read_bytes() == DATA
    jfs("recover", "drop", *cache, "--yes", two)
    assert os.listdir(root) == ["one"]
    assert "1 file waits" in jfs("umount", "--wait=0.1", root, code=1)
    assert os.path.ismount(root)
    server.faults.clear()
    assert "1 file waits" in jfs("umount", "--wait", root)
    assert Requests(server).get(f"/{REPO}/one").body == DATA
    assert Requests(server).get(f"/{REPO}/two").status == 404
    assert queue(tmp_path) == []
    assert mounted.process.wait(20) == 0
    assert "nothing of jfs is mounted there" in jfs("status", root, code=2)


def test_what_waits_is_left_to_the_next_mount_and_said(
    server: EmbeddedServer, mounter: Mounter, tmp_path: Path
) -> None:
    mounted = behind(server, mounter, "--drain-timeout", "5")
    server.faults.add(Fault.status(507, method="PUT"))
    (mounted.root / "f").write_bytes(DATA)
    assert "1 file waits for the server" in jfs("umount", str(mounted.root))
    assert mounted.process.wait(20) == 0  # it tried once more, and waited no longer
    assert [(row["path"], row["in_use"]) for row in queue(tmp_path)] == [(f"{REPO}/f", False)]


def test_a_mount_that_hangs_or_is_dead_is_said_so(server: EmbeddedServer, mounter: Mounter) -> None:
    mounted = behind(server, mounter)
    mounted.process.send_signal(signal.SIGSTOP)
    try:
        patience = ("--timeout", "0.5")
        (row,) = json.loads(jfs("status", "--json", *patience, str(mounted.root), code=1))
        assert row["state"] == "does not answer"
    finally:
        mounted.process.send_signal(signal.SIGCONT)
    mounted.process.kill()
    mounted.process.wait(20)
    (row,) = json.loads(jfs("status", "--json", str(mounted.root), code=1))
    assert row["state"] == "dead"
    mounted.kill()


def test_cp_and_mv_while_the_server_is_down(
    server: EmbeddedServer, mounter: Mounter, tmp_path: Path
) -> None:
    """Programs save as usual; the mount finds out by itself that the server is back."""
    source = tmp_path / "source"
    source.write_bytes(DATA)
    server.deploy(REPO, "model", b"old", {"env": ["production"]})
    for name in ("before", "mnt"):  # what was known is kept at the end of a mount at the latest
        mounted = behind(server, mounter, name=name)
        assert os.listdir(mounted.root) == ["model"]
        if name == "before":
            mounted.stop()
    server.stop()
    subprocess.run(["cp", source, mounted.root / "f"], check=True)
    subprocess.run(["cp", source, mounted.root / "model.tmp"], check=True)
    subprocess.run(["mv", mounted.root / "model.tmp", mounted.root / "model"], check=True)
    assert sorted(os.listdir(mounted.root)) == ["f", "model"]
    assert os.getxattr(mounted.root / "model", "user.jfs.state") == b"pending"
    assert (mounted.root / "model").read_bytes() == DATA
    mounted.kill()
    mounted = behind(server, mounter, name="again")  # the node has started anew, in the outage
    assert sorted(os.listdir(mounted.root)) == ["f", "model"]
    assert os.getxattr(mounted.root / "model", "user.jfs.state") == b"pending"
    assert (mounted.root / "model").read_bytes() == DATA
    server.start()
    wait_for(server, "f", DATA)
    while Requests(server).get(f"/{REPO}/model").body != DATA:
        time.sleep(0.02)
    assert Requests(server).properties("model") == {"env": ["production"]}
    while queue(tmp_path):
        time.sleep(0.02)
    mounted.stop(expected=["is down", "cannot be asked", "starting with what was known"])


def version(number: int) -> bytes:
    """The content of one version of a file: it says which, in every part."""
    return b"%08d" % number * (1 + number * 7919 % 60_000)


def close_version(path: str, number: int) -> None:
    """Replace a file by one version."""
    with open(path, "wb") as file:
        file.write(version(number))


@pytest.mark.timeout(3600)
def test_no_version_is_lost_by_a_mount_that_is_killed(
    server: EmbeddedServer, mounter: Mounter, tmp_path: Path, scale: Callable[[int, int], int]
) -> None:
    """Versions of a file are closed one after the other, the mount killed at any moment.

    The next one brings to the server the last that was closed, whole, or the one after it, whose
    close had no time to return; never an older one.
    """
    choose = random.Random(7)
    last = 0
    for turn in range(scale(2, 100)):
        if choose.random() < 0.5:
            server.faults.add(Fault.status(503, f"/{REPO}/f*", method="PUT", after=last % 3))
        mounted = behind(server, mounter, name=f"mnt{turn}")
        last = kill_beside(mounted, close_version, last, choose=choose, most=30)
        server.faults.clear()
        mounted = behind(server, mounter, name=f"again{turn}")
        jfs("umount", "--wait", str(mounted.root))
        assert mounted.process.wait(30) == 0
        there = Requests(server).get(f"/{REPO}/f").body
        number = int(there[:8])
        assert there == version(number)
        assert number in (last, last + 1)
        last = number
        for row in queue(tmp_path):  # half of a version that was being written
            assert row["state"] == "writing"
            jfs("recover", "drop", "--yes", "--cache-dir", str(tmp_path / "cache"), row["id"])
