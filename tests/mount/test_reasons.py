"""The reason is where the user is: a line in the log, ``.jfs/``, an attribute; on a real mount."""

import errno
import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from jfs.server import Fault
from tests.mount.conftest import MountedServer

pytestmark = pytest.mark.fuse

REPO = "ml-models-local"
POLICY = "blocked by policy 'no-critical'"


def test_a_burst_of_refusals_is_a_line_and_a_count(mounted: MountedServer) -> None:
    """Many files of one folder are blocked: the log names one, and how often."""
    for number in range(40):
        mounted.server.deploy(REPO, f"m/f{number}.bin", b"x")
    os.listdir(mounted.root / "m")
    body = json.dumps({"errors": [{"status": 403, "message": f"Artifact m/f.bin {POLICY}"}]})
    mounted.server.faults.add(Fault.status(403, f"/{REPO}/m/*", body=body.encode()))
    for _ in range(3):
        for number in range(40):
            with pytest.raises(PermissionError):
                (mounted.root / "m" / f"f{number}.bin").read_bytes()
    said = [line for line in mounted.mount.log().splitlines() if POLICY in line]
    assert len(said) == 1, said
    assert f"WARNING jfs.vfs.refusals: read {REPO}/m/f0.bin: AccessDenied: EACCES: 403" in said[0]
    told = (mounted.root / ".jfs" / "errors").read_text().splitlines()
    assert len(told) == 40
    assert f"read {REPO}/m/f39.bin: EACCES: 403: Artifact m/f.bin {POLICY}" in told[-1]
    assert re.search(r"\([3-9] times\)$", told[-1])  # the kernel tries a page twice
    last = os.getxattr(mounted.root / "m" / "f7.bin", "user.jfs.last_error").decode()
    assert POLICY in last
    mounted.mount.stop(expected=[POLICY])
    said = [line for line in mounted.mount.log_after().splitlines() if POLICY in line]
    assert len(said) == 2
    assert re.search(r"\(… \d{3} times in \d+ s\)$", said[1])


def test_the_mount_says_what_it_is(mounted: MountedServer) -> None:
    (mounted.root / "f").write_bytes(b"written")
    room = mounted.root / ".jfs"
    assert ".jfs" not in os.listdir(mounted.root)
    assert set(os.listdir(room)) == {"config", "errors", "stats", "stats.json"}
    before = mounted.server.stats.requests
    held = mounted.server.faults.add(Fault.hold("*"))
    figures = json.loads((room / "stats.json").read_text())
    assert figures["mount"]["source"] == f"{mounted.server.url}/{REPO}"
    assert figures["mount"]["pid"] == mounted.mount.process.pid
    assert figures["memory"]["resident_bytes"] > 1 << 20
    assert figures["descriptors"]["open"] < figures["descriptors"]["limit"]
    assert figures["counters"]["requests"] > 0
    assert figures["server"]["state"] == "up"
    assert figures["uploads"]["pending"] == 0
    lines = dict(line.split(" ", 1) for line in (room / "stats").read_text().splitlines())
    assert lines["mount.mountpoint"] == str(mounted.root)
    settings = (room / "config").read_text()
    assert f"server.url {mounted.server.url}" in settings
    assert "tree.entry_ttl_s 10.0" in settings
    assert "server.credentials.token ***" in settings
    for name in os.listdir(room):
        assert mounted.server.token not in (room / name).read_text()
    for command in (("cat",), ("wc", "-c"), ("tail", "-n", "1"), ("tar", "-cf", "/dev/null")):
        subprocess.run([*command, str(room / "stats")], check=True, capture_output=True)
    assert mounted.server.stats.requests == before
    held.release()
    mounted.server.faults.clear()


def test_nothing_is_written_to_it(mounted: MountedServer) -> None:
    room = mounted.root / ".jfs"
    for change in (
        lambda: (room / "errors").write_text("x"),
        lambda: (room / "new").write_text("x"),
        lambda: os.unlink(room / "stats"),
        lambda: os.rename(room / "stats", room / "other"),
        lambda: os.mkdir(room / "folder"),
    ):
        with pytest.raises(OSError, match=r".") as raised:
            change()
        assert raised.value.errno == errno.EROFS
    with pytest.raises(PermissionError):
        os.chmod(room / "errors", 0o777)
    with pytest.raises(PermissionError):
        os.setxattr(room / "errors", "user.x", b"1")


def test_a_token_is_in_no_line_of_the_log(mounted: MountedServer) -> None:
    """Also where the server repeats what it was sent, and signs addresses."""
    token = mounted.server.token
    body = f"Authorization: Bearer {token} for https://s3/b?X-Amz-Signature=0123456789abcdef"
    mounted.server.deploy(REPO, "f", b"1")
    mounted.server.faults.add(Fault.status(403, f"/{REPO}/f", body=body.encode()))
    with pytest.raises(PermissionError):
        (mounted.root / "f").read_bytes()
    shown = (mounted.root / ".jfs" / "errors").read_text()
    shown += os.getxattr(mounted.root / "f", "user.jfs.last_error").decode() + mounted.mount.log()
    assert "Bearer ***" in shown
    assert token not in shown
    assert "0123456789abcdef" not in shown
    mounted.mount.stop(expected=["AccessDenied"])


def test_reports_are_not_in_the_way_of_tools(mounted: MountedServer) -> None:
    (mounted.root / "f").write_bytes(b"1")
    found = subprocess.run(
        ["find", str(mounted.root)], capture_output=True, text=True, check=True
    ).stdout.split()
    assert {Path(path).name for path in found} == {mounted.root.name, "f"}
