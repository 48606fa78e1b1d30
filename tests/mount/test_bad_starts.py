"""Starts in bad weather: from what is known, offline, and waiting for the server."""

import contextlib
import errno
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from jfs.server import EmbeddedServer, Fault
from tests.component.server_requests import Requests
from tests.conftest import REPO
from tests.mount.conftest import Mounter
from tests.mount.mounting import JFS, Mounted, clean_environ, run_jfs
from tests.processes import killed
from tests.weather.disks import Disk

STARTS = "starting with what was known at"
DOWN = "cannot be asked, serving what was known before|is down"
CONTENT, OTHER = os.urandom(300_000), os.urandom(200_000)

pytestmark = pytest.mark.fuse


def until(condition: Callable[[], object], what: str) -> None:
    """Wait for something that takes as long as the machine takes."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


@pytest.fixture
def warm(server: EmbeddedServer, mounter: Mounter) -> EmbeddedServer:
    """A server that is down, of which an earlier mount has read everything."""
    server.deploy(REPO, "m/v1/model.bin", CONTENT, {"env": ["production"]})
    server.deploy(REPO, "m/v1/half.bin", CONTENT[::-1])
    server.deploy(REPO, "m/v2/model.bin", OTHER)
    mount = remount(mounter, server, "--read-only")
    assert everything(mount.root) == {"m/v1/model.bin": CONTENT, "m/v2/model.bin": OTHER}
    assert os.listxattr(mount.root / "m/v1/model.bin") == ["user.env"]
    assert sorted(os.listdir(mount.root / "m/@env=production")) == ["half.bin", "model.bin"]
    mount.stop()
    server.stop()
    return server


def everything(root: Path) -> dict[str, bytes]:
    """Read all but ``half.bin``, by listing."""
    return {
        str(Path(folder, name).relative_to(root)): Path(folder, name).read_bytes()
        for folder, _, names in os.walk(root)
        for name in names
        if name != "half.bin"
    }


def remount(mounter: Mounter, server: EmbeddedServer, *options: str) -> Mounted:
    return mounter(f"{server.url}/{REPO}", *options, JF_ACCESS_TOKEN=server.token)


def test_a_mount_starts_with_what_is_known_and_heals(
    warm: EmbeddedServer, tmp_path: Path, mounter: Mounter
) -> None:
    mount = remount(mounter, warm, "--attr-ttl", "0.2")
    model = mount.root / "m/v1/model.bin"
    assert re.search(STARTS, mount.log())
    assert set(everything(mount.root)) == {"m/v1/model.bin", "m/v2/model.bin"}
    assert model.read_bytes() == CONTENT
    assert os.getxattr(model, "user.env") == b"production"
    assert os.getxattr(model, "user.jfs.state") == b"stale"
    assert sorted(os.listdir(mount.root / "m/@env=production")) == ["half.bin", "model.bin"]
    with pytest.raises(FileNotFoundError):
        os.stat(mount.root / "m/v1/adapter_config.json")
    warm.start()
    warm.deploy(REPO, "m/v1/model.bin", b"replaced")
    warm.deploy(REPO, "m/v3/model.bin", b"new")
    until(lambda: model.read_bytes() == b"replaced", "the old content is shown still")
    until(lambda: "v3" in os.listdir(mount.root / "m"), "what is new is not shown")
    (mount.root / "m/written.bin").write_bytes(b"w")  # and it is written to as ever
    assert Requests(warm).get(f"/{REPO}/m/written.bin").body == b"w"
    mount.stop(expected=[STARTS, DOWN])


def test_what_a_killed_daemon_has_kept_is_known(
    server: EmbeddedServer, tmp_path: Path, mounter: Mounter
) -> None:
    server.deploy(REPO, "m/model.bin", CONTENT)
    first = remount(mounter, server)
    assert everything(first.root) == {"m/model.bin": CONTENT}
    metadata = tmp_path / "cache/metadata"
    until(lambda: _holds(metadata, b"model.bin"), "nothing is kept while the mount runs")
    first.kill()
    server.stop()
    second = remount(mounter, server)
    assert everything(second.root) == {"m/model.bin": CONTENT}
    second.stop(expected=[STARTS, DOWN])
    assert {path.stat().st_mode & 0o777 for path in metadata.iterdir()} == {0o600}
    assert metadata.stat().st_mode & 0o777 == 0o700
    kept = b"".join(path.read_bytes() for path in metadata.iterdir())
    assert server.token.encode() not in kept


def test_an_interrupted_upload_is_taken_up_once_the_server_is_back(
    server: EmbeddedServer, tmp_path: Path, mounter: Mounter
) -> None:
    first = remount(mounter, server)
    fault = server.faults.add(Fault.hold(f"/{REPO}/m.bin", method="PUT"))
    write = "import sys; open(sys.argv[1], 'wb').write(b'x' * 9)"
    command = [sys.executable, "-c", write, first.root / "m.bin"]
    with killed(subprocess.Popen(command, stderr=subprocess.DEVNULL)):
        fault.wait_hit()
        metadata = tmp_path / "cache/metadata"
        until(lambda: _holds(metadata, REPO.encode()), "nothing is kept while the mount runs")
        first.kill()
    server.faults.clear()
    server.stop()
    second = remount(mounter, server, "--retry-for", "0", "--negative-ttl", "0")
    assert re.search(STARTS, second.log())
    server.start()
    until(lambda: os.path.exists(second.root / "m.bin"), "it is not uploaded")
    assert Requests(server).get(f"/{REPO}/m.bin").body == b"x" * 9
    second.stop(expected=[STARTS, DOWN])


def _holds(directory: Path, text: bytes) -> bool:
    """Whether a database has it, and would not take it back: its journal is empty."""
    with contextlib.suppress(OSError):
        written = any(text in path.read_bytes() for path in directory.glob("*.sqlite3"))
        return written and not any(path.stat().st_size for path in directory.glob("*-journal"))
    return False


def test_offline_asks_nobody(warm: EmbeddedServer, mounter: Mounter) -> None:
    with socket.create_server(("127.0.0.1", warm.port)) as listener:
        mount = remount(mounter, warm, "--offline", "--stale-if-error", "0")
        assert everything(mount.root)["m/v2/model.bin"] == OTHER
        model = mount.root / "m/v1/model.bin"
        assert os.getxattr(model, "user.env") == b"production"
        os.statvfs(mount.root)
        for refused, code in (
            (lambda: (mount.root / "m/v2/unknown/x").read_bytes(), errno.ENOENT),
            (lambda: (mount.root / "m/new.bin").write_bytes(b"x"), errno.EROFS),
            (lambda: model.unlink(), errno.EROFS),
            (lambda: os.setxattr(model, "user.env", b"x"), errno.EROFS),
            (lambda: os.getxattr(model, "user.jfs.downloads"), errno.EIO),
            (lambda: (mount.root / "m/v1/half.bin").read_bytes(), errno.EIO),
        ):
            with pytest.raises(OSError, match=re.escape(os.strerror(code))):
                refused()
        asked, _, _ = select.select([listener], [], [], 0)
        assert not asked, "it has connected"
        told = mount.root / ".jfs"
        assert "is not asked: mount without --offline" in (told / "errors").read_text()
        assert "server.state offline" in (told / "stats").read_text().splitlines()
        assert not re.search(DOWN, mount.log())
        mount.stop(expected=["offline"])


def test_offline_needs_something_that_is_known(
    warm: EmbeddedServer, tmp_path: Path, mounter: Mounter
) -> None:
    (tmp_path / "empty").mkdir()
    arguments = ["mount", f"{warm.url}/{REPO}", str(tmp_path / "empty"), "--offline"]
    for options, token in ((["--cache-dir", str(tmp_path / "other")], warm.token), ([], "another")):
        options = options or ["--cache-dir", str(tmp_path / "cache")]
        ended = run_jfs(*arguments, *options, JF_ACCESS_TOKEN=token)
        assert ended.returncode == 2
        assert "nothing is known of" in ended.stderr
        assert "without --offline" in ended.stderr


def test_refused_credentials_are_an_error_whatever_is_known(
    warm: EmbeddedServer, tmp_path: Path
) -> None:
    warm.start()
    warm.faults.add(Fault.status(401))
    (tmp_path / "refused").mkdir()
    ended = run_jfs(
        *("mount", f"{warm.url}/{REPO}", str(tmp_path / "refused")),
        *("--cache-dir", str(tmp_path / "cache"), "--wait-for-server"),
        JF_ACCESS_TOKEN=warm.token,
    )
    assert ended.returncode == 2
    assert "is not accepted" in ended.stderr


def start(source: str, root: Path, *options: str, **environ: str) -> "subprocess.Popen[str]":
    """Start a mount that may have to wait, with a cache of its own."""
    root.mkdir()
    cache = ["--cache-dir", str(root.with_name("cache"))]
    return subprocess.Popen(
        [*JFS, "mount", source, str(root), *cache, *options],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**clean_environ(), **environ},
        text=True,
    )


def test_a_start_waits_for_the_server_and_says_so(server: EmbeddedServer, tmp_path: Path) -> None:
    """By default under systemd."""
    server.stop()
    address, root = str(tmp_path / "notify"), tmp_path / "mnt"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind(address)
        notify.settimeout(30)
        environ = {"JF_ACCESS_TOKEN": server.token, "NOTIFY_SOCKET": address}
        process = start(f"{server.url}/{REPO}", root, **environ)
        try:
            status, extend = notify.recv(4096).decode().splitlines()
            assert status.startswith(f"STATUS=waiting for {server.url}: ")
            assert "nothing listens there" in status
            assert int(extend.removeprefix("EXTEND_TIMEOUT_USEC=")) > 60_000_000
            assert not os.path.ismount(root)
            server.start()
            lines: list[str] = []
            while "READY=1" not in lines:
                lines = notify.recv(4096).decode().splitlines()
            assert os.path.ismount(root)
        finally:
            process.send_signal(signal.SIGTERM)
            _, log = process.communicate(timeout=30)
    assert process.returncode == 0
    assert len(re.findall("waiting for the server, for 0 s so far: ", log)) == 1
    assert server.token not in log


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_wait_at_once(
    server: EmbeddedServer, tmp_path: Path, number: signal.Signals
) -> None:
    server.stop()
    process = start(f"{server.url}/{REPO}", tmp_path / "mnt", "-o", "wait_for_server")
    assert process.stderr is not None
    log = iter(process.stderr.readline, "")
    assert any("waiting for the server" in line for line in log)
    process.send_signal(number)
    process.communicate(timeout=30)
    assert process.returncode == 128 + number


def test_the_wait_has_an_end(server: EmbeddedServer, tmp_path: Path) -> None:
    server.stop()
    started = {
        name: start(f"{server.url}/{REPO}", tmp_path / name, *options)
        for name, options in (
            ("some", ["-o", "wait_for_server=0.3"]),
            ("none", ["--wait-for-server=0"]),
            ("default", []),
        )
    }
    for name, process in started.items():
        _, log = process.communicate(timeout=30)
        assert process.returncode == 2
        assert "nothing listens there" in log
        assert ("waiting for the server" in log) is (name == "some")
        assert ("(waited " in log) is (name == "some")


@pytest.mark.parametrize("source", ["missing-local", f"{REPO}/missing"])
def test_a_mistake_is_not_waited_for(server: EmbeddedServer, tmp_path: Path, source: str) -> None:
    environ = {"JF_ACCESS_TOKEN": server.token}
    process = start(f"{server.url}/{source}", tmp_path / "mnt", "--wait-for-server", **environ)
    _, log = process.communicate(timeout=30)
    assert process.returncode == 2
    assert "no such" in log


# A start that stands still is given up soon.
_SOON = """
import jfs.cli.standstill
jfs.cli.standstill.LIMIT_S = 0.5
"""


def test_a_start_on_a_disk_that_hangs_ends_and_says_which(
    server: EmbeddedServer, disk: Disk, tmp_path: Path
) -> None:
    (tmp_path / "mnt").mkdir()
    (tmp_path / "sitecustomize.py").write_text(_SOON)
    (disk.backing / "cache").mkdir(0o700)
    disk.fail(all="hang")
    command = [*JFS, "mount", f"{server.url}/{REPO}", str(tmp_path / "mnt")]
    started = subprocess.Popen(
        [*command, "--cache-dir", str(disk.place / "cache")],
        env={
            **clean_environ(),
            "JF_ACCESS_TOKEN": server.token,
            "PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}",
        },
        stderr=subprocess.PIPE,
        text=True,
    )
    with killed(started) as start:
        assert start.stderr
        try:
            said = start.stderr.readline()
        finally:
            disk.fail()  # until then its thread waits in the kernel
        assert said.startswith(f"jfs: {disk.place / 'cache'}: has not answered")
        assert start.stderr.readlines() == []
        assert start.wait(30) == 2
    assert not os.path.ismount(tmp_path / "mnt")
