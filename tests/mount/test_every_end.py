"""Every way to end a mount, with whatever inside, while the server is stopped: bounded.

The limit is ``--drain-timeout`` and what the end itself may take (``serving.END_S``).
"""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from jfs.mount.serving import END_S
from jfs.mount.table import mounts
from jfs.vfs.writing.journal import Journal
from tests.component.server_requests import REPO
from tests.component.test_server_runs import Served, serve
from tests.mount.conftest import Mounter
from tests.mount.mounting import JFS, Mounted, clean_environ

pytestmark = pytest.mark.fuse

_DRAIN_S = 1
_SLACK_S = 10  # of a loaded machine
_READ = """
import sys
with open("big", "rb") as file:
    print("ready", flush=True)
    sys.stdin.read()
    file.read()
"""
_WRITE = """
import os, sys
file = os.open("new", os.O_WRONLY | os.O_CREAT)
os.write(file, b"written")
print("ready", flush=True)
sys.stdin.read()
os.close(file)
"""
_STAY = """
import signal, sys
print("ready", flush=True)
sys.stdin.read()
signal.pause()
"""
_USES = {"reader": _READ, "upload": _WRITE, "shell": _STAY}
_COMMANDS = {
    "umount": ["umount"],
    "fusermount3 -u": ["fusermount3", "-u"],
    "jfs umount": [*JFS, "umount"],
    "umount -l": ["umount", "-l"],
    "jfs umount --lazy": [*JFS, "umount", "--lazy"],
}
_SIGNALS = {
    "SIGTERM": [signal.SIGTERM],
    "SIGINT": [signal.SIGINT],
    "SIGTERM twice": [signal.SIGTERM, signal.SIGTERM],
}
_ALL = [(way, use) for way in (*_SIGNALS, *_COMMANDS) for use in ("nobody", *_USES)]
_SLICE = [("SIGTERM", "reader"), ("SIGTERM twice", "upload"), ("umount -l", "shell")]


def use(kind: str, root: Path) -> "subprocess.Popen[str] | None":
    """Start somebody inside, who goes on once its input ends."""
    if kind == "nobody":
        return None
    process = subprocess.Popen(
        [sys.executable, "-I", "-c", _USES[kind]],
        cwd=root,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("fate", [signal.SIGSTOP, signal.SIGKILL])
def test_every_end_is_bounded(
    mounter: Mounter, tmp_path: Path, scale: Callable[[object, object], object], fate: int
) -> None:
    rows = scale(_SLICE if fate == signal.SIGSTOP else _SLICE[1:2], _ALL)
    assert isinstance(rows, list)
    for number, (way, kind) in enumerate(rows):
        _end(mounter, tmp_path / str(number), way, kind, fate)


def _end(mounter: Mounter, place: Path, way: str, kind: str, fate: int) -> None:
    place.mkdir()
    with serve(place / "server", "--repo", REPO, "--json") as (server, ready):
        served = Served(ready)
        assert served.put(f"/{REPO}/big", os.urandom(1 << 20)).status == 201
        mount = mounter(
            f"{served.url}/{REPO}",
            *("--drain-timeout", str(_DRAIN_S), "--staging-dir", str(place / "staging")),
            name=f"mnt-{place.name}-{fate}",
            JF_ACCESS_TOKEN=served.token,
        )
        user = use(kind, mount.root)
        server.send_signal(fate)
        if user is not None and user.stdin is not None:
            user.stdin.close()
        try:
            _ends(mount, way, kind, user)
        finally:
            if user is not None:
                user.kill()
                user.wait(_SLACK_S)
                assert user.stdout
                user.stdout.close()
        assert mount.process.wait(_DRAIN_S + END_S + _SLACK_S) == 0, (way, kind)
        left = [os.pread(entry.file, 100, 0) for entry in Journal(place / "staging").left_behind()]
        assert left == ([b"written"] if kind == "upload" else []), (way, kind)


def _ends(mount: Mounted, way: str, kind: str, user: "subprocess.Popen[str] | None") -> None:
    if way in _COMMANDS:
        command = [*_COMMANDS[way], str(mount.root)]
        result = subprocess.run(
            command, check=False, capture_output=True, timeout=_SLACK_S, env=clean_environ()
        )
        lazy = way in ("umount -l", "jfs umount --lazy")
        assert (result.returncode == 0) == (lazy or kind == "nobody"), (way, kind, result)
        if result.returncode == 0:
            # Once whoever is inside has gone.
            assert str(mount.root) not in [entry.mountpoint for entry in mounts()]
            return
    for number in _SIGNALS.get(way, [signal.SIGTERM]):
        mount.process.send_signal(number)
    # Nobody inside keeps it.
    assert mount.process.wait(_DRAIN_S + END_S + _SLACK_S) == 0, (way, kind)
    assert str(mount.root) not in [entry.mountpoint for entry in mounts()]
