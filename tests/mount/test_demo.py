"""``jfs demo`` as a person runs it: it works, it ends, and it leaves nothing behind."""

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from jfs.cli import tour
from jfs.cli.demo import REPOSITORY
from jfs.server import EmbeddedServer
from jfs.server.samples import seed
from tests.mount.mounting import JFS, clean_environ

pytestmark = pytest.mark.fuse

_DEADLINE_S = 120


class Demo:
    """A running ``jfs demo`` with a temporary directory and a command line of its own."""

    def __init__(self, tmp_path: Path, *arguments: str) -> None:
        self.temporary = tmp_path / "tmp"
        self.temporary.mkdir(exist_ok=True)
        self.process = subprocess.Popen(
            [*JFS, "demo", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # The mark finds what the demo started, however it was started and reparented.
            env={**clean_environ(), "TMPDIR": str(self.temporary), "COLUMNS": "80"},
        )

    def until(self, line: str) -> str:
        """Read its output until a line holds *line*."""
        assert self.process.stdout is not None
        read = []
        for text in self.process.stdout:
            read.append(text)
            if line in text:
                return "".join(read)
        raise AssertionError(f"no {line!r} in {''.join(read)}, but {self.process.communicate()}")

    def end(self, number: int | None = None) -> tuple[int, str, str]:
        """Wait for its end, after a signal if one is given; return code, output and errors."""
        if number is not None:
            self.process.send_signal(number)
        output, errors = self.process.communicate(timeout=_DEADLINE_S)
        return self.process.returncode, output, errors

    def processes(self) -> dict[int, list[str]]:
        """Return the living processes that carry its environment, and their command lines."""
        mark = b"TMPDIR=" + os.fsencode(self.temporary)
        found = {}
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                if mark in (entry / "environ").read_bytes().split(b"\0"):
                    line = (entry / "cmdline").read_bytes()
                    found[int(entry.name)] = os.fsdecode(line).split("\0")
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue
        return found

    def child(self, command: str) -> int:
        (pid,) = (pid for pid, line in self.processes().items() if command in line)
        return pid

    def assert_nothing_left(self) -> None:
        deadline = time.monotonic() + _DEADLINE_S
        while (
            left := self.processes()
        ):  # who survives a mount that was killed sees it a moment later
            assert time.monotonic() < deadline, left
        mounts = Path("/proc/self/mountinfo").read_bytes()  # others may be named by any bytes
        assert os.fsencode(self.temporary.parent) not in mounts
        assert not list(self.temporary.iterdir())


Starter = Callable[..., Demo]


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Starter]:
    """Start demos; each is checked to have left nothing."""
    started: list[Demo] = []

    def start(*arguments: str) -> Demo:
        started.append(Demo(tmp_path, *arguments))
        return started[-1]

    yield start
    for one in started:
        if one.process.poll() is None:
            one.end(signal.SIGTERM)
    for one in started:
        one.assert_nothing_left()


def test_check_runs_every_step(demo: Starter, tmp_path: Path) -> None:
    mountpoint = tmp_path / "made" / "models"
    code, output, errors = demo("--check", str(mountpoint)).end()
    assert code == 0, output + errors
    assert output.count("ok  ") == 12
    assert "12 of 12 steps ok" in output
    assert errors == ""
    assert not mountpoint.parent.exists()  # made by the demo, so removed by it


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it(demo: Starter, tmp_path: Path, number: int) -> None:
    mountpoint = tmp_path / "models"
    mountpoint.mkdir()
    running = demo(str(mountpoint))
    printed = running.until("Ctrl-C ends")
    assert os.path.ismount(mountpoint)
    assert "sha256sum" in printed
    code, output, errors = running.end(number)
    assert (code, errors) == (0, ""), output
    assert mountpoint.is_dir()  # was there before
    assert not list(mountpoint.iterdir())


def test_what_is_printed_can_be_pasted(demo: Starter, tmp_path: Path) -> None:
    running = demo(str(tmp_path / "mo dels"))
    printed = running.until("Ctrl-C ends")
    commands = re.findall(r"^# .*\n(.*)\n", printed, re.MULTILINE)
    assert len(commands) == 12
    for command in commands:
        subprocess.run(["/bin/sh", "-c", command], check=True, timeout=60, capture_output=True)


def test_no_secret_in_any_command_line(demo: Starter, tmp_path: Path) -> None:
    running = demo(str(tmp_path / "models"))
    running.until("Ctrl-C ends")
    (token_file,) = running.temporary.glob("jfs-demo-*/data/admin.token")
    token = token_file.read_text().strip()
    assert len(token) > 20
    assert token_file.stat().st_mode & 0o077 == 0
    lines = running.processes()
    assert len(lines) in (3, 4)  # demo, server, mount, and who would cut its connection
    assert not any(token in word for line in lines.values() for word in line)


@pytest.mark.parametrize(("command", "name"), [("serve", "the server"), ("mount", "the mount")])
def test_a_child_that_dies_is_named(demo: Starter, tmp_path: Path, command: str, name: str) -> None:
    running = demo(str(tmp_path / "models"))
    running.until("Ctrl-C ends")
    os.kill(running.child(command), signal.SIGKILL)
    code, _, errors = running.end()
    assert code == 1
    assert errors.startswith(f"jfs: {name} was killed by SIGKILL")


def test_umount_from_elsewhere_ends_it(demo: Starter, tmp_path: Path) -> None:
    running = demo(str(tmp_path / "models"))
    running.until("Ctrl-C ends")
    subprocess.run([*JFS, "umount", str(tmp_path / "models")], check=True, timeout=60)
    code, _, errors = running.end()
    assert (code, errors) == (0, "")


def test_a_user_inside_does_not_hold_it(demo: Starter, tmp_path: Path) -> None:
    mountpoint = tmp_path / "models"
    running = demo(str(mountpoint))
    running.until("Ctrl-C ends")
    (model,) = mountpoint.glob("vision/*/1.1.0/model.onnx")
    held = os.open(model, os.O_RDONLY)
    assert os.read(held, 1)
    code, _, errors = running.end(signal.SIGINT)
    with pytest.raises(OSError, match="not connected"):  # the file's, not the directory's
        os.close(held)
    assert (code, errors) == (0, "")
    assert not mountpoint.exists()


def test_data_is_kept(demo: Starter, tmp_path: Path) -> None:
    data, mountpoint = tmp_path / "data", tmp_path / "models"
    for _ in range(2):
        code, output, errors = demo("--check", "--data", str(data), str(mountpoint)).end()
        assert code == 0, output + errors
        assert any(data.iterdir())


def test_a_step_that_fails_is_told(demo: Starter, tmp_path: Path) -> None:
    data = tmp_path / "data"
    with EmbeddedServer(data) as server:
        assert seed(server, REPOSITORY)
        server.deploy(REPOSITORY, tour.CANCER, b"not a model")
    code, output, errors = demo("--check", "--data", str(data), str(tmp_path / "models")).end()
    assert (code, errors) == (1, "")
    assert re.findall("^failed  .*", output, re.MULTILINE) == [
        "failed  Map the tensors of a safetensors file",
        "failed  Everything that is approved for production",  # other bytes: its properties went
    ]
    assert "10 of 12 steps ok" in output


def test_data_that_is_someone_elses_is_left_alone(demo: Starter, tmp_path: Path) -> None:
    data = tmp_path / "data"
    with EmbeddedServer(data) as server:
        server.create_repository(REPOSITORY)
        server.deploy(REPOSITORY, "mine/model.bin", b"x")
        assert not seed(server, REPOSITORY)
    refuse(demo, "--data", str(data), str(tmp_path / "models"), says="something else")
    with EmbeddedServer(data) as server:
        assert not seed(server, REPOSITORY)
    assert not (tmp_path / "models").exists()


def test_a_frozen_server_does_not_hold_it(demo: Starter, tmp_path: Path) -> None:
    running = demo(str(tmp_path / "models"))
    running.until("Ctrl-C ends")
    os.kill(running.child("serve"), signal.SIGSTOP)
    code, _, errors = running.end(signal.SIGINT)
    assert (code, errors) == (0, "")


def test_an_interrupted_start_leaves_nothing(demo: Starter, tmp_path: Path) -> None:
    running = demo(str(tmp_path / "models"))
    deadline = time.monotonic() + _DEADLINE_S
    while not any("serve" in line for line in running.processes().values()):
        assert time.monotonic() < deadline
        os.sched_yield()
    code, _, errors = running.end(signal.SIGINT)
    assert (code, errors) == (130, "jfs: interrupted\n")
    assert not (tmp_path / "models").exists()


def refuse(demo: Starter, *arguments: str, says: str) -> None:
    code, output, errors = demo(*arguments).end()
    assert (code, output) == (2, "")
    assert says in errors
    assert len(errors.splitlines()) == 1


def test_mountpoint_is_a_file(demo: Starter, tmp_path: Path) -> None:
    (tmp_path / "models").write_text("x")
    refuse(demo, str(tmp_path / "models"), says="not a directory")
    assert (tmp_path / "models").read_text() == "x"


def test_mountpoint_is_below_a_file(demo: Starter, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    refuse(demo, str(tmp_path / "file" / "models"), says="file")


def test_mountpoint_is_not_empty(demo: Starter, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "file").write_text("x")
    refuse(demo, str(tmp_path / "models"), says="not empty")
    assert (tmp_path / "models" / "file").read_text() == "x"


def test_data_in_the_mountpoint(demo: Starter, tmp_path: Path) -> None:
    models = tmp_path / "models"
    refuse(demo, "--data", str(models / "data"), str(models), says="--data")
    assert not models.exists()


def test_port_in_use(demo: Starter, tmp_path: Path) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refuse(demo, "--port", str(port), str(tmp_path / "models"), says=str(port))
    assert not (tmp_path / "models").exists()
