"""A mount that does not answer: noticed from outside of its event loop, said, ended."""

import contextlib
import os
import re
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from jfs.mount.looks import Looker, ustat_number
from jfs.mount.table import mount_at
from jfs.server import EmbeddedServer
from jfs.server.http.faults import Fault
from tests.component.server_requests import REPO
from tests.mount import namespaces
from tests.mount.conftest import Mounter
from tests.mount.mounting import Mounted, run_jfs
from tests.weather.disks import Disk

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
    return listening(tmp_path / "notify")


def listening(place: Path) -> socket.socket:
    """What systemd listens on."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    listener.bind(str(place))
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


# Never answers a STATFS as long as there is the file.
_FORGET = """
import os
if "FORGET" in os.environ:
    import trio
    from jfs.fuse import Operations
    answer = Operations.statfs
    async def statfs(self, ctx):
        while os.path.exists(os.environ["FORGET"]):
            await trio.sleep(0.01)
        return await answer(self, ctx)
    Operations.statfs = statfs
"""
_FUSECTL = "/sys/fs/fuse/connections"
_SETUPS = {
    "seen": f"mountpoint -q {_FUSECTL} || mount -t fusectl none {_FUSECTL}",
    "blind": f"! mountpoint -q {_FUSECTL} || umount {_FUSECTL}",
}


def test_requests_that_nobody_answers_end_it_whether_the_kernel_shows_them_or_not(
    server: EmbeddedServer,
    mounter: Mounter,
    tmp_path: Path,
    scale: Callable[[list[str], list[str]], list[str]],
) -> None:
    """The event loop runs: what is seen through fusectl, and without it."""
    (tmp_path / "sitecustomize.py").write_text(_FORGET)
    forget = tmp_path / "forget"
    with contextlib.ExitStack() as ends:
        mounts = [
            _forgetful(ends, kernel, server, mounter, tmp_path, forget)
            for kernel in scale(["seen"], ["seen", "blind"])
        ]
        forget.touch()
        looks = [
            subprocess.Popen(
                [*namespaces.inside(mount.process.pid), "stat", "-f", str(mount.root)],
                stderr=subprocess.PIPE,
            )
            for mount, _ in mounts
        ]
        for look, (mount, told) in zip(looks, mounts, strict=True):
            heard(told, "STATUS=does not answer")
            heard(told, "STATUS=ended")
            assert b"connection abort" in look.communicate(timeout=_DEADLINE_S)[1]
            assert mount.process.wait(_DEADLINE_S) == 1
            assert "it is cut off and ends with exit code 1" in mount.log_after()


def _forgetful(
    ends: contextlib.ExitStack,
    kernel: str,
    server: EmbeddedServer,
    mounter: Mounter,
    tmp_path: Path,
    forget: Path,
) -> tuple[Mounted, socket.socket]:
    """Mount in a namespace; return what systemd would listen on, too."""
    place = tmp_path / kernel
    place.mkdir()
    ends.callback(namespaces.leave, place)
    told = ends.enter_context(listening(tmp_path / f"{kernel}.notify"))
    mount = mounter(
        f"{server.url}/{REPO}",
        *("--watchdog", "3"),
        name=f"mnt-{kernel}",
        under=namespaces.namespace(place, _SETUPS[kernel]),
        JF_ACCESS_TOKEN=server.token,
        FORGET=str(forget),
        PYTHONPATH=f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}",
        NOTIFY_SOCKET=str(tmp_path / f"{kernel}.notify"),
    )
    heard(told, "READY=1")
    return mount, told


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    made = Disk(tmp_path)
    yield made
    made.end()


def test_a_mount_above_that_hangs_is_no_mount_that_hangs(
    server: EmbeddedServer, disk: Disk, mounter: Mounter, tmp_path: Path, manager: socket.socket
) -> None:
    """The path of the mountpoint leads through it. And no look keeps anybody from unmounting."""
    (disk.place / "inner").mkdir()
    (tmp_path / "link").symlink_to(disk.place / "inner")  # its log shall lie beside this
    with manager:
        mount = mounter(
            f"{server.url}/{REPO}",
            name="link",
            JF_ACCESS_TOKEN=server.token,
            NOTIFY_SOCKET=str(tmp_path / "notify"),
            WATCHDOG_USEC="100000",
        )
        heard(manager, "READY=1")
        disk.fail(all="hang")
        try:
            for _ in range(20):  # in between the kernel was asked
                heard(manager, "WATCHDOG=1")
        finally:
            disk.fail()
        entry = mount_at(mount.root)
        assert entry is not None
        lookers = [Looker(entry.device, number) for number in (ustat_number(), None)]
        mount.process.send_signal(signal.SIGSTOP)
        for looker in lookers:
            looker.begin()
            while looker.is_answered(0.01):  # until the child has asked
                assert looker.is_looking
        mount.process.send_signal(signal.SIGCONT)
        for looker in lookers:
            assert looker.is_answered(_DEADLINE_S)
        subprocess.run(["umount", str(mount.root.resolve())], check=True)
        for looker in lookers:
            looker.begin()
            while looker.is_looking:
                assert looker.is_answered(_DEADLINE_S)
            looker.close()
        mount.stop(expected=["NOTIFY_SOCKET"])  # nobody listens any more
