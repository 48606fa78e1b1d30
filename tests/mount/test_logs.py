"""Output that goes nowhere, and logs that are rotated: the mount works on."""

import errno
import json
import logging
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from jfs import logs
from jfs.server import EmbeddedServer
from tests.component.server_requests import Requests
from tests.mount.mounting import JFS, Mounted, clean_environ, is_zombie, run_jfs
from tests.weather.disks import Disk

pytestmark = pytest.mark.fuse

_DEADLINE_S = 50


def record(text: str) -> logging.LogRecord:
    return logging.makeLogRecord({"msg": text, "levelno": logging.DEBUG, "levelname": "DEBUG"})


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of one page: whatever is on it, it is full soon."""
    place = tmp_path / "disk"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", str(place)], check=True)
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_what_a_full_disk_has_cost_is_said_when_it_has_room_again(small_disk: Path) -> None:
    output = logs.Output(small_disk / "log")
    output.emit(record("before"))
    output.flush()
    (small_disk / "log").write_bytes(bytes(4096))
    for number in range(3):
        output.emit(record(f"lost {number}"))
    output.flush()
    (small_disk / "log").write_bytes(b"")
    output.emit(record("after"))
    output.emit(record("and on"))
    output.flush()
    assert (small_disk / "log").read_text().splitlines() == [
        f"3 messages before this one were lost: {os.strerror(errno.ENOSPC)}",
        "after",
        "and on",
    ]


def test_a_reader_that_has_gone_costs_messages_and_one_that_comes_back_is_told(
    tmp_path: Path,
) -> None:
    os.mkfifo(tmp_path / "fifo")
    reader = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    output = logs.Output(descriptor=os.open(tmp_path / "fifo", os.O_WRONLY))
    os.close(reader)
    output.emit(record("lost"))
    output.flush()
    reader = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    output.emit(record("after"))
    output.flush()
    lost = f"1 messages before this one were lost: {os.strerror(errno.EPIPE)}"
    assert os.read(reader, 1000).decode().splitlines() == [lost, "after"]
    os.close(reader)


def test_a_reader_that_stands_still_keeps_nobody_waiting() -> None:
    reader, writer = os.pipe()
    output = logs.Output(descriptor=writer)
    for _ in range(2500):  # far more than a pipe and the backlog hold
        output.emit(record("x" * 100))
    read = b""
    while b"lost" not in read:
        read += os.read(reader, 1 << 20)
        output.emit(record("more"))
    assert re.search(rb"\n\d+ messages before this one were lost: nobody read them", read)
    os.close(reader)


def test_a_disk_that_hangs_keeps_nobody_waiting_and_is_told_what_it_has_cost(disk: Disk) -> None:
    output = logs.Output(disk.place / "log")
    output.emit(record("before"))
    disk.fail(all="hang")
    for number in range(2500):
        output.emit(record(f"meanwhile {number}"))
    output.settle()
    output.flush()
    disk.fail()
    lines: list[str] = []
    while not any("lost" in line for line in lines):
        output.emit(record("after"))
        lines = (disk.place / "log").read_text().splitlines()
    assert lines[:3] == ["before", "meanwhile 0", "meanwhile 1"]
    lost = next(line for line in lines if "lost" in line)
    assert re.search(r"^\d+ messages before this one were lost: the disk did not take them$", lost)


def test_a_log_on_a_disk_that_hangs_can_be_had_elsewhere(disk: Disk, tmp_path: Path) -> None:
    """As whoever rotates logs does it: another file at its place, and SIGHUP."""
    place = tmp_path / "log"
    place.symlink_to(disk.place / "log")
    output = logs.Output(place)
    disk.fail(all="hang")
    output.emit(record("written once the disk answers"))
    output.emit(record("before"))
    place.unlink()
    output.reopen()
    output.emit(record("after"))
    output.flush()
    assert place.read_text().splitlines() == ["before", "after"]
    disk.fail()


def test_what_was_lost_is_said_once_though_two_files_are_written_to(tmp_path: Path) -> None:
    """The old file by a thread that stands still in it, and the one that took its place."""
    place, pipe = tmp_path / "log", tmp_path / "pipe"
    os.mkfifo(pipe)
    with open(os.open(pipe, os.O_RDONLY | os.O_NONBLOCK), "rb", buffering=0) as reader:
        place.symlink_to("/dev/full")
        output = logs.Output(place)
        output.emit(record("lost"))
        output.flush()
        place.unlink()
        place.symlink_to(pipe)
        output.reopen()
        output.emit(record("more than a pipe takes" * 100_000))
        os.set_blocking(reader.fileno(), True)
        begun = reader.read(100)
        place.unlink()
        output.reopen()
        output.emit(record("after"))
        output.flush()
        held = reader.readall()  # until the thread has closed it
    output.emit(record("and on"))
    output.flush()
    assert begun.startswith(b"1 messages before this one were lost: ")
    assert held.endswith(b"pipe takes\n")
    assert place.read_text().splitlines() == ["after", "and on"]


def test_a_mount_whose_log_is_on_a_disk_that_hangs_works_on_and_ends(
    server: EmbeddedServer, disk: Disk, tmp_path: Path
) -> None:
    (tmp_path / "mnt").mkdir()
    mounted = Mounted(
        f"{server.url}/ml-models-local",
        tmp_path / "mnt",
        environ={"JF_ACCESS_TOKEN": server.token},
        cache=tmp_path / "cache",
        options=("-v", "--log-file", str(disk.place / "log")),
    )
    try:
        disk.fail(all="hang")
        for number in range(20):
            with pytest.raises(OSError, match="Invalid argument"):
                os.setxattr(mounted.root, f"user.a/{number}", b"x")  # which is logged
        (mounted.root / "f").write_bytes(b"written")
        assert Requests(server).get("/ml-models-local/f").body == b"written"
        mounted.process.send_signal(signal.SIGTERM)
        while os.path.ismount(mounted.root):
            os.sched_yield()
        # A thread that waits for the disk keeps a zombie, until the disk answers.
        while mounted.process.poll() is None and not is_zombie(mounted.process.pid):
            os.sched_yield()
        disk.fail()
        assert mounted.process.wait(_DEADLINE_S) == 0
    finally:
        disk.fail()
        mounted.kill()
    assert "user.a/0" in (disk.place / "log").read_text()


def test_a_message_is_one_line_whatever_it_names(tmp_path: Path) -> None:
    output = logs.set_up(file=tmp_path / "log")
    name = os.fsdecode(b"a\nb\r\x1b[2J\xff \xc3\xa9")
    logging.getLogger("jfs.test").info("%s", name)
    output.flush()
    logging.getLogger().handlers.remove(output)
    (line,) = (tmp_path / "log").read_text().splitlines()
    assert line.endswith(r"INFO jfs.test: a\nb\r\x1b[2J\udcff é")


def test_a_mount_works_on_wherever_its_output_goes(server: EmbeddedServer, tmp_path: Path) -> None:
    """Closed from the start, on a full disk, and a pipe that nobody reads any more."""
    gone, pipe = os.pipe()
    os.close(gone)
    full = os.open("/dev/full", os.O_WRONLY)
    log = ("--log-file", "/dev/full")
    ways: dict[str, tuple[str, int, tuple[str, ...]]] = {
        "closed": ("exec <&- >&- 2>&-", full, ()),
        "full": (":", full, ()),
        "gone": (":", pipe, ()),
        "log": (":", full, log),
        "daemon": (":", full, ("--daemon", *log)),
    }
    processes = {}
    try:
        for way, (redirect, out, options) in ways.items():
            (tmp_path / way).mkdir()
            processes[way] = subprocess.Popen(
                [
                    *("sh", "-c", f'{redirect}; exec "$@"', "sh", *JFS, "mount", "-v", *options),
                    *(f"{server.url}/ml-models-local", str(tmp_path / way)),
                    *("--cache-dir", str(tmp_path / f"cache-{way}")),
                ],
                stdout=out,
                stderr=out,
                env={**clean_environ(), "JF_ACCESS_TOKEN": server.token},
            )
        os.close(full)
        os.close(pipe)
        ask = Requests(server)
        for way, process in processes.items():
            root = tmp_path / way
            while not os.path.ismount(root):
                assert process.poll() in (None, 0), way
                os.sched_yield()
            with pytest.raises(OSError, match="Invalid argument"):
                os.setxattr(root, "user.a/b", b"x")  # which is logged
            (root / way).write_bytes(b"written")
            assert ask.get(f"/ml-models-local/{way}").body == b"written"
    finally:
        for way in processes:
            run_jfs("umount", "--lazy", str(tmp_path / way))
    assert {process.wait(_DEADLINE_S) for process in processes.values()} == {0}


def test_sighup_opens_the_log_again_and_reads_credentials_again(
    server: EmbeddedServer, tmp_path: Path, expected_logs: list[str]
) -> None:
    configuration = tmp_path / "jfrog-cli.conf.v6"

    def configure(token: str) -> None:
        fresh = tmp_path / "fresh"
        entry = {"serverId": "here", "artifactoryUrl": server.url, "accessToken": token}
        fresh.write_text(json.dumps({"servers": [entry]}))
        fresh.rename(configuration)

    configure(server.token)
    root, log = tmp_path / "mnt", tmp_path / "log"
    root.mkdir()
    started = run_jfs(
        *("mount", "--daemon", "--log-file", str(log), "--cache-dir", str(tmp_path / "cache")),
        *("--attr-ttl", "0", "here:ml-models-local", str(root)),
        JFROG_CLI_HOME_DIR=str(tmp_path),
    )
    assert started.returncode == 0, started
    (pid,) = (
        int(entry.name)
        for entry in Path("/proc").glob("[0-9]*")
        if os.fsencode(root) in (entry / "cmdline").read_bytes().split(b"\0")
    )
    try:
        for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGPIPE):
            os.kill(pid, number)
        os.listdir(root)
        log.rename(tmp_path / "log.1")
        configure("no-longer-valid")
        os.kill(pid, signal.SIGHUP)
        while not log.exists() or "SIGHUP" not in log.read_text():
            os.sched_yield()
        with pytest.raises(PermissionError):
            os.listdir(root)
        assert "AccessDenied" in log.read_text()
        configure(server.token)
        os.kill(pid, signal.SIGHUP)
        while log.read_text().count("SIGHUP") < 2:
            os.sched_yield()
        assert os.listdir(root) == []
    finally:
        assert run_jfs("umount", str(root)).returncode == 0
    assert "SIGHUP" not in (tmp_path / "log.1").read_text()


def test_a_log_that_cannot_be_opened_again_in_time_does_not_keep_the_mount(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    """Who opens a FIFO waits for its reader, as who opens a file on a disk that hangs."""
    root, log = tmp_path / "mnt", tmp_path / "log"
    root.mkdir()
    mount = Mounted(
        f"{server.url}/ml-models-local",
        root,
        environ={"JF_ACCESS_TOKEN": server.token},
        cache=tmp_path / "cache",
        options=["--log-file", str(log)],
    )
    log.rename(tmp_path / "log.1")
    os.mkfifo(log)
    mount.process.send_signal(signal.SIGHUP)
    mount.stop()
    assert "ending: SIGTERM" in (tmp_path / "log.1").read_text()


def test_what_nobody_reads_is_no_traceback() -> None:
    """`jfs ls | head`, and a disk that is full."""
    gone, pipe = os.pipe()
    os.close(gone)
    for out, says in ((pipe, ""), (os.open("/dev/full", os.O_WRONLY), "No space left")):
        result = subprocess.run(
            [sys.executable, "-m", "jfs", "--help"],
            stdout=out,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
        os.close(out)
        assert result.returncode == 1
        assert len(result.stderr.splitlines()) == bool(says)
        assert says in result.stderr
