"""Ctrl-C in any command: one line on standard error and exit code 130, whatever it waits for."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from jfs.server import EmbeddedServer
from jfs.server.http.faults import Fault
from tests.mount.conftest import Mounter
from tests.mount.mounting import JFS, clean_environ

pytestmark = pytest.mark.fuse

_DEADLINE_S = 50


@contextlib.contextmanager
def started(server: EmbeddedServer, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [*JFS, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**clean_environ(), "JF_ACCESS_TOKEN": server.token, "JF_URL": server.url},
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def interrupt(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=_DEADLINE_S)
    assert (process.returncode, errors) == (130, "jfs: interrupted\n"), process.args


@pytest.mark.parametrize(
    "command",
    [
        "ls ml-models-local",
        "warm --cache-dir {place}/cache ml-models-local",
        "mount --cache-dir {place}/cache {url}/ml-models-local {place}/mnt",
        "mount --daemon --log-file {place}/log --cache-dir {place}/cache "
        "{url}/ml-models-local {place}/mnt",
    ],
)
def test_a_server_that_does_not_answer_holds_no_command(
    server: EmbeddedServer, tmp_path: Path, command: str
) -> None:
    (tmp_path / "mnt").mkdir()
    fault = server.faults.add(Fault.hold("*"))
    arguments = [part.format(place=tmp_path, url=server.url) for part in command.split()]
    with started(server, *arguments) as process:
        fault.wait_hit()
        interrupt(process)
    fault.release()
    assert not os.path.ismount(tmp_path / "mnt")


def test_content_that_does_not_come_holds_no_warm(server: EmbeddedServer, tmp_path: Path) -> None:
    """Its threads wait for the network: they are cut."""
    server.deploy("ml-models-local", "a", bytes(1000))
    fault = server.faults.add(Fault.hold("/ml-models-local/a"))
    with started(server, "warm", "--cache-dir", str(tmp_path), "ml-models-local") as process:
        fault.wait_hit()
        interrupt(process)
    fault.release()


def test_a_mount_that_does_not_answer_holds_no_command(
    server: EmbeddedServer, mounter: Mounter
) -> None:
    mount = mounter(f"{server.url}/ml-models-local", JF_ACCESS_TOKEN=server.token)
    mount.process.send_signal(signal.SIGSTOP)
    try:
        with started(server, "refresh", str(mount.root)) as process:
            while "fuse" not in wait_channels(process.pid):
                assert process.poll() is None
                os.sched_yield()
            interrupt(process)
    finally:
        mount.process.send_signal(signal.SIGCONT)


def wait_channels(pid: int) -> str:
    """Return where the threads of a process wait in the kernel."""
    stacks = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):
            stacks.append((task / "stack").read_text())
    return "".join(stacks)


def test_while_modules_are_loaded(tmp_path: Path) -> None:
    """One that waits while it is loaded stands before the real one."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "click.py").write_text(f"open({str(tmp_path / 'fifo')!r}).read()")
    paths = f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"
    process = subprocess.Popen(
        [*JFS, "ls"],
        stderr=subprocess.PIPE,
        text=True,
        env={**clean_environ(), "PYTHONPATH": paths},
    )
    with (tmp_path / "fifo").open("w"):  # returns when it is being read
        interrupt(process)
