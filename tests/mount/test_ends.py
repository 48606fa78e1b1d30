"""The end of a mount: in time, whoever waits for whatever, and nothing stays behind."""

import contextlib
import fcntl
import os
import re
import signal
import subprocess
import sys
import termios
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from jfs.server import EmbeddedServer
from jfs.server.http.faults import Fault
from tests.mount.conftest import MountedServer, Mounter
from tests.mount.mounting import JFS, clean_environ, is_zombie
from tests.processes import killed
from tests.weather.disks import Disk

pytestmark = pytest.mark.fuse

_DEADLINE_S = 50
# Numbers of system calls on x86-64 and arm64.
_WRITEV = {20, 66}  # by which a notification goes to the kernel
_STAT = {4, 262, 332, 79, 291}
_OPENAT = {257, 56}


def in_call(pid: int, numbers: set[int]) -> int:
    """Return how many threads of a process are inside one of these system calls."""
    count = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError, ValueError):
            count += int((task / "syscall").read_text().split()[0]) in numbers
    return count


def test_the_end_answers_whoever_waits(mounted: MountedServer) -> None:
    """A lookup holds its folder's lock, for which a refresh waits inside the kernel."""
    mounted.server.deploy("ml-models-local", "dir/known", b"x")
    mounted.server.deploy("ml-models-local", "big", bytes(10 << 20))
    (mounted.root / "dir" / "known").stat()
    names = mounted.server.faults.add(Fault.hold("/api/storage/*/dir/slow"))
    bodies = mounted.server.faults.add(Fault.hold("/ml-models-local/big"))
    waiting = [
        subprocess.Popen(["stat", str(mounted.root / "dir" / "slow")], stderr=subprocess.DEVNULL),
        subprocess.Popen(["cat", str(mounted.root / "big")], stderr=subprocess.DEVNULL),
        subprocess.Popen(
            [sys.executable, "-c", _TOUCH, str(mounted.root / "big")], stderr=subprocess.DEVNULL
        ),
    ]
    names.wait_hit()
    bodies.wait_hit()
    refresh = subprocess.Popen([*JFS, "refresh", str(mounted.root)], stderr=subprocess.DEVNULL)
    while refresh.poll() is None and not in_call(mounted.mount.process.pid, _WRITEV):
        os.sched_yield()
    mounted.mount.process.send_signal(signal.SIGTERM)
    assert mounted.mount.process.wait(_DEADLINE_S) == 0
    assert not os.path.ismount(mounted.root)
    # Nobody waits for the dead, although the server still answers nobody.
    codes = [process.wait(_DEADLINE_S) for process in (*waiting, refresh)]
    assert codes[:2] == [1, 1]
    assert codes[2] == -signal.SIGBUS
    assert codes[3] in (0, 1)
    names.release()
    bodies.release()
    mounted.mount.stop()


_TOUCH = """
import mmap, sys
with open(sys.argv[1], "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as pages:
    pages[5 << 20]
"""


def test_a_second_signal_waits_for_no_upload(server: EmbeddedServer, mounter: Mounter) -> None:
    mount = mounter(
        f"{server.url}/ml-models-local", "--drain-timeout", "600", JF_ACCESS_TOKEN=server.token
    )
    fault = server.faults.add(Fault.hold("/ml-models-local/f", method="PUT"))
    copy = subprocess.Popen(
        ["dd", f"of={mount.root / 'f'}", "bs=1M", "count=1", "if=/dev/zero"],
        stderr=subprocess.DEVNULL,
    )
    fault.wait_hit()
    mount.process.send_signal(signal.SIGTERM)
    while "ending: SIGTERM" not in mount.log():
        os.sched_yield()
    mount.process.send_signal(signal.SIGTERM)
    assert mount.process.wait(_DEADLINE_S) == 0
    assert copy.wait(_DEADLINE_S) == 1
    mount.stop(expected=["uploads did not end within", "was not closed"])


_LOOK = """
import os, sys, threading
for name in os.listdir(sys.argv[1]):
    threading.Thread(target=os.stat, args=(f"{sys.argv[1]}/{name}",)).start()
"""


def test_requests_that_hang_in_one_repository_leave_room_for_others(
    server: EmbeddedServer, mounter: Mounter
) -> None:
    """More of them than there are threads in any pool, and than tasks by pyfuse3's default."""
    server.create_repository("other")
    server.deploy("other", "file", b"x")
    count = 540
    for number in range(count):
        server.deploy("ml-models-local", f"f{number}", b"x")
    mount = mounter(
        server.url, "--attr-ttl", "0", "--entry-ttl", "60", JF_ACCESS_TOKEN=server.token
    )
    root = mount.root
    assert len(os.listdir(root / "ml-models-local")) == count
    with (root / "other" / "file").open("rb") as cached:
        assert cached.read() == b"x"
    fault = server.faults.add(Fault.hold("/api/storage/ml-models-local/*"))
    look = subprocess.Popen(
        [sys.executable, "-c", _LOOK, str(root / "ml-models-local")], stderr=subprocess.DEVNULL
    )
    fault.wait_hit()
    while in_call(look.pid, _STAT) < count:
        assert look.poll() is None
        os.sched_yield()
    for command in (["cat", root / "other" / "file"], ["stat", root], ["stat", "-f", root]):
        subprocess.run(command, check=True, timeout=_DEADLINE_S, stdout=subprocess.DEVNULL)
    mount.stop(expected=["cannot be asked, serving what was known before"])  # if it took a while
    look.wait(_DEADLINE_S)  # every one of them has been answered, that there is no mount
    fault.release()


def test_closing_the_terminal_of_a_foreground_mount_ends_it(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    root = tmp_path / "mnt"
    root.mkdir()
    ours, its = os.openpty()
    process = subprocess.Popen(
        [
            *(*JFS, "mount", f"{server.url}/ml-models-local", str(root)),
            *("--cache-dir", str(tmp_path / "cache"), "--log-file", str(tmp_path / "log")),
        ],
        stdin=its,
        stdout=its,
        stderr=its,
        start_new_session=True,
        preexec_fn=_own_terminal,
        env={**clean_environ(), "JF_ACCESS_TOKEN": server.token},
    )
    os.close(its)
    assert b"mounted at" in os.read(ours, 1000)
    os.close(ours)
    assert process.wait(_DEADLINE_S) == 0
    assert not os.path.ismount(root)
    assert "ending: SIGHUP" in (tmp_path / "log").read_text()


def _own_terminal() -> None:
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def test_an_end_leaves_alone_who_has_its_device_by_now(
    server: EmbeddedServer, mounter: Mounter
) -> None:
    """The kernel gives the number of a mount that has gone to the next one, of anybody."""
    source = f"{server.url}/ml-models-local"
    first = mounter(source, name="first", JF_ACCESS_TOKEN=server.token)
    device = os.stat(first.root).st_dev
    first.process.send_signal(signal.SIGSTOP)
    subprocess.run(["fusermount3", "-uz", str(first.root)], check=True)
    others = []
    for number in range(8):  # somebody else on this machine may be faster
        others.append(mounter(source, name=f"other{number}", JF_ACCESS_TOKEN=server.token))
        if os.stat(others[-1].root).st_dev == device:
            break
    first.process.send_signal(signal.SIGCONT)
    assert first.process.wait(30) == 0
    for other in others:
        assert os.path.ismount(other.root)
        assert os.listdir(other.root) == []


# The end stops the event loop for good.
_HANG = """
import time
from jfs.mount.session import Session
async def end(self):
    time.sleep(3600)
Session.end = end
"""
_SOON = """
import jfs.mount.serving
jfs.mount.serving.END_S = 1.0
"""


def test_an_end_that_hangs_says_where_it_hangs_and_is_over(
    server: EmbeddedServer,
    mounter: Mounter,
    tmp_path: Path,
    scale: Callable[[str, str], str],
    disk: Disk,  # gone before the mount is
) -> None:
    """And the cache's disk hangs: not even SIGKILL ends a thread that waits for it."""
    server.deploy("ml-models-local", "f", bytes(1 << 20))
    (tmp_path / "sitecustomize.py").write_text(_HANG + scale(_SOON, ""))
    mount = mounter(
        f"{server.url}/ml-models-local",
        *("--cache-dir", str(disk.place / "cache")),
        JF_ACCESS_TOKEN=server.token,
        PYTHONPATH=f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}",
    )
    disk.fail(all="hang")
    reader = subprocess.Popen(["cat", str(mount.root / "f")], stderr=subprocess.DEVNULL)
    while not in_call(mount.process.pid, _OPENAT):
        os.sched_yield()
    mount.process.send_signal(signal.SIGTERM)
    if not scale(_SOON, ""):  # else there is not much between the two
        assert reader.wait(_DEADLINE_S) == 1
        assert not os.path.ismount(mount.root)
    while not re.search(r"Timeout \(0:00:\d\d\)!", mount.log()):
        threading.Event().wait(0.02)
    disk.fail()
    assert mount.process.wait(_DEADLINE_S) == 1
    assert reader.wait(_DEADLINE_S) == 1
    assert "in end" in mount.log_after()
    # What is read, or what was left over, whichever was first.
    assert re.search(r'File ".*/jfs/(cache|vfs)/.*\.py", line \d+ in ', mount.log_after())


def test_an_end_that_hangs_is_over_also_if_the_log_hangs(
    server: EmbeddedServer, disk: Disk, tmp_path: Path
) -> None:
    """Nothing of it can be written, and threads that wait for the disk stay until it answers."""
    (tmp_path / "sitecustomize.py").write_text(_HANG + _SOON)
    root = tmp_path / "mnt"
    root.mkdir()
    with (disk.place / "log").open("w") as log:
        started = subprocess.Popen(
            [
                *(*JFS, "mount", f"{server.url}/ml-models-local", str(root)),
                *("-v", "--cache-dir", str(tmp_path / "cache")),
            ],
            stdout=subprocess.PIPE,
            stderr=log,
            env={
                **clean_environ(),
                "JF_ACCESS_TOKEN": server.token,
                "PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}",
            },
        )
        with killed(started) as mount:
            assert mount.stdout
            assert b"mounted at" in mount.stdout.readline()
            try:
                disk.fail(all="hang")
                mount.send_signal(signal.SIGTERM)
                while mount.poll() is None and not is_zombie(mount.pid):
                    threading.Event().wait(0.02)
            finally:
                disk.fail()  # before the log is closed, which the disk has to answer, too
            assert mount.wait(_DEADLINE_S) == 1
    assert not os.path.ismount(root)
