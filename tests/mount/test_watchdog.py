"""A mount that does not answer: noticed from outside of its event loop, said, ended."""

import os
import re
import socket
import subprocess
from pathlib import Path

import pytest

from jfs.server import EmbeddedServer
from jfs.server.http.faults import Fault
from tests.component.server_requests import REPO
from tests.mount.conftest import Mounter
from tests.mount.mounting import run_jfs

pytestmark = pytest.mark.fuse

_DEADLINE_S = 50

# Blocks the event loop for good, once somebody writes into the pipe.
_HANG = """
import os, threading, time
def hang_here(*_):
    time.sleep(3600)
def wait():
    open(os.environ["HANG"]).read()
    import pyfuse3, trio
    trio.from_thread.run_sync(hang_here, trio_token=pyfuse3.trio_token)
if "HANG" in os.environ:
    threading.Thread(target=wait, daemon=True).start()
"""


@pytest.fixture
def manager(tmp_path: Path) -> "socket.socket":
    """What systemd listens on."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    listener.bind(str(tmp_path / "notify"))
    listener.settimeout(_DEADLINE_S)
    return listener


def heard(manager: socket.socket, text: str) -> None:
    """Return when it was told *text*."""
    while text not in manager.recv(1000).decode():
        pass


def test_a_loop_that_hangs_is_said_and_ended(
    server: EmbeddedServer, mounter: Mounter, tmp_path: Path, manager: socket.socket
) -> None:
    server.deploy(REPO, "f", b"x")
    (tmp_path / "sitecustomize.py").write_text(_HANG)
    os.mkfifo(tmp_path / "hang")
    with manager:
        mount = mounter(
            f"{server.url}/{REPO}",
            *("--watchdog", "3"),
            JF_ACCESS_TOKEN=server.token,
            HANG=str(tmp_path / "hang"),
            PYTHONPATH=f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}",
            NOTIFY_SOCKET=str(tmp_path / "notify"),
            WATCHDOG_USEC="500000",
        )
        heard(manager, "READY=1")
        heard(manager, "WATCHDOG=1")
        (tmp_path / "hang").write_text("now")
        look = subprocess.Popen(["stat", str(mount.root / "f")], stderr=subprocess.PIPE)
        heard(manager, "STATUS=does not answer")
        assert mount.process.wait(_DEADLINE_S) == 1
        last = b""
        manager.setblocking(False)
        while True:
            try:
                last = manager.recv(1000)
            except BlockingIOError:
                break
            assert b"WATCHDOG=1" not in last
        assert b"STOPPING=1" in last
    # Whoever waited has an answer, and the place is a plain directory again.
    assert b"connection abort" in look.communicate(timeout=_DEADLINE_S)[1]
    assert look.returncode == 1
    assert not os.path.ismount(mount.root)
    log = mount.log_after()
    assert re.search(r"ERROR jfs.mount.watchdog: the mount has not answered for \d+ s", log)
    assert "in hang_here" in log  # of a thread
    assert re.search(r"Task pyfuse-\d+", log)
    assert re.search(r"CRITICAL .* it is cut off and ends with exit code 1", log)


def test_a_server_that_hangs_is_no_mount_that_hangs(
    server: EmbeddedServer, mounter: Mounter, tmp_path: Path, manager: socket.socket
) -> None:
    """The mount says that it is well while others wait for the server: so it is not restarted."""
    with manager:
        mount = mounter(
            f"{server.url}/{REPO}",
            JF_ACCESS_TOKEN=server.token,
            NOTIFY_SOCKET=str(tmp_path / "notify"),
            WATCHDOG_USEC="400000",
        )
        heard(manager, "READY=1")
        fault = server.faults.add(Fault.hold(f"/api/storage/{REPO}/f"))
        look = subprocess.Popen(["stat", str(mount.root / "f")], stderr=subprocess.DEVNULL)
        fault.wait_hit()
        for _ in range(4):  # from the second on the kernel was asked
            heard(manager, "WATCHDOG=1")
        fault.release()
        assert look.wait(_DEADLINE_S) == 1
        mount.stop(expected=["cannot be asked", "NOTIFY_SOCKET"])  # nobody listens any more


def test_a_watchdog_can_be_switched_off(server: EmbeddedServer, mounter: Mounter) -> None:
    mount = mounter(
        f"{server.url}/{REPO}", "--watchdog", "0", JF_ACCESS_TOKEN=server.token, name="never"
    )
    assert run_jfs("umount", str(mount.root)).returncode == 0
    mount.stop()
