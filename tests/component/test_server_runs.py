"""How the server starts, ends, is killed, and what it keeps (`jfs serve` as a process, too)."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from jfs.errors import ConfigError
from jfs.extents import GiB, MiB
from jfs.model import Checksums
from jfs.server import EmbeddedServer, TlsFiles
from jfs.server.http.intake import LARGE
from tests.component.server_requests import REPO, Requests, connected

_DEADLINE_S = 30


def contents(directory: Path) -> set[str]:
    return {path.name for path in (directory / "filestore").glob("??/*")}


def test_everything_survives_a_restart(tmp_path: Path) -> None:
    directory = tmp_path / "kept"
    with EmbeddedServer(directory, durable=True) as server:
        server.create_repository(REPO)
        ask = Requests(server)
        ask.put(f"/{REPO}/a/b;k=v;k=w", b"body")
        ask.get(f"/{REPO}/a/b")
        before = ask.get(f"/api/storage/{REPO}/a/b").body
        port = server.port
    with EmbeddedServer(directory, port=port) as server:
        again = Requests(server)
        assert again.authorization == ask.authorization
        assert again.get(f"/api/storage/{REPO}/a/b").body == before
        assert again.get(f"/{REPO}/a/b").body == b"body"
        assert again.properties("a/b") == {"k": ["v", "w"]}
        assert again.get(f"/api/storage/{REPO}/a/b?stats").json()["downloadCount"] == 2


def test_a_stop_and_a_start_keep_the_port(server: EmbeddedServer) -> None:
    server.deploy(REPO, "a", b"x")
    url = server.url
    server.stop()
    server.stop()
    with pytest.raises(OSError, match="refused"):
        Requests(server).get(f"/{REPO}/a")
    with pytest.raises(RuntimeError, match="stopped"):
        server.deploy(REPO, "b", b"x")
    server.start()
    assert server.url == url
    assert Requests(server).get(f"/{REPO}/a").body == b"x"


def test_seeding(server: EmbeddedServer, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"x" * 100_000)
    server.deploy(REPO, "read", source, {"k": ("v",)})
    sums = Checksums("ab" * 32, "cd" * 20, "ef" * 16)
    server.deploy(REPO, "believed", source, checksums=sums)
    ask = Requests(server)
    assert ask.properties("read") == {"k": ["v"]}
    assert ask.get(f"/{REPO}/read").body == source.read_bytes()
    assert ask.head(f"/{REPO}/believed").headers["ETag"] == "cd" * 20
    assert source.stat().st_nlink == 2  # not copied
    server.set_properties(REPO, "read", {"k": [], "l": ["1"]})
    assert ask.properties("read") == {"l": ["1"]}
    assert not server.is_empty(REPO)
    server.delete(REPO, "read")
    server.delete(REPO, "believed")
    assert server.is_empty(REPO)


def test_no_threads_are_left(tmp_path: Path) -> None:
    before = set(threading.enumerate())
    with EmbeddedServer(tmp_path / "s") as server:
        server.create_repository(REPO)
        server.deploy(REPO, "a", b"x" * MiB)
        Requests(server).get(f"/{REPO}/a")
    assert set(threading.enumerate()) == before


def test_what_a_server_cannot_start_on(server: EmbeddedServer, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(ConfigError, match=r"file: cannot be used: "):
        EmbeddedServer(file)
    with pytest.raises(ConfigError, match="another jfs serve uses it"):
        EmbeddedServer(tmp_path / "server")
    with pytest.raises(ConfigError, match=r"others|--allow-remote"):
        EmbeddedServer(tmp_path / "x", host="0.0.0.0")
    busy = EmbeddedServer(tmp_path / "x", port=server.port)
    with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{server.port}: Address"):
        busy.start()
    (tmp_path / "x" / "admin.token").write_text("")
    with pytest.raises(ConfigError, match="is empty"):
        EmbeddedServer(tmp_path / "x")
    (tmp_path / "y").mkdir()
    (tmp_path / "y" / "artifactory.sqlite").write_bytes(b"no database" * 1000)
    with pytest.raises(ConfigError, match="cannot be used: file is not a database"):
        EmbeddedServer(tmp_path / "y")
    with pytest.raises(ConfigError, match="--tls-cert"):
        EmbeddedServer(tmp_path / "z", tls=TlsFiles(file, file))


def test_tls(tls_server: EmbeddedServer, certificate: TlsFiles) -> None:
    body = os.urandom(3 * MiB)
    tls_server.deploy(REPO, "a", body)
    assert tls_server.url.startswith("https://")
    result = subprocess.run(
        [
            *("curl", "-sSf", "--cacert", str(certificate.certificate), "-r", "1-"),
            *("-H", f"Authorization: Bearer {tls_server.token}", f"{tls_server.url}/{REPO}/a"),
        ],
        check=True,
        capture_output=True,
    )
    assert result.stdout == body[1:]
    assert tls_server.stats.bytes_sent == len(body) - 1


# The command


@contextmanager
def serve(
    directory: Path, *options: str, under: Sequence[str] = ()
) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """Run ``jfs serve`` on a free port; return it and its ready line."""
    process = subprocess.Popen(
        [*under, sys.executable, "-m", "jfs", "serve", str(directory), "--port", "0", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    assert process.stderr
    with process.stdout, process.stderr:
        try:
            yield process, process.stdout.readline()
        finally:
            process.kill()
            process.wait(_DEADLINE_S)


class Served(Requests):
    """Requests to a server in another process."""

    def __init__(self, ready: str) -> None:
        document = json.loads(ready)
        self.url: str = document["url"]
        self.token = Path(document["token_file"]).read_text().strip()
        super().__init__(self)  # type: ignore[arg-type] # has url and token, as a server has


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_command_from_its_ready_line_to_its_end(tmp_path: Path, number: int) -> None:
    directory = tmp_path / "new" / "dir"
    with serve(directory, "--repo", REPO, "--repo", "other", "--json") as (process, line):
        ask = Served(line)
        assert [row["key"] for row in ask.get("/api/repositories").json()] == [REPO, "other"]
        ask.put(f"/{REPO}/a", b"x")
        with connected(ask.url) as connection:
            connection.request("GET", "/jfs/stats", headers=ask.authorization)
            stats = json.loads(connection.getresponse().read())
            assert stats["requests"] == 2
            assert stats["bytes_received"] == 1
            assert stats["by_route"] == {"GET api/repositories": 1, "PUT content": 1}
            connection.request("DELETE", "/jfs/stats", headers=ask.authorization)
            assert connection.getresponse().read() == b""
            connection.request("GET", "/jfs/stats", headers=ask.authorization)
            assert json.loads(connection.getresponse().read())["requests"] == 0
            connection.request("GET", "/jfs/stats")
            assert connection.getresponse().status == 401
        process.send_signal(number)
        assert process.wait(_DEADLINE_S) == 0
        assert process.stderr
        assert process.stderr.read() == ""


def test_the_line_for_people(tmp_path: Path) -> None:
    with serve(tmp_path / "d") as (_, line):
        assert line.startswith("jfs: serving http://127.0.0.1:")
        assert line.endswith(f"/artifactory, token in {tmp_path}/d/admin.token\n")


def test_faults_from_a_file(tmp_path: Path) -> None:
    plan = tmp_path / "faults.json"
    plan.write_text('[{"kind": "status", "code": 418, "path": "/r/*"}]')
    options = ("--faults", str(plan), "--repo", "r", "--anonymous", "--json")
    with serve(tmp_path / "d", *options) as (_, line):
        ask = Served(line)
        ask.authorization = {}
        assert ask.get("/r/a").status == 418
        assert ask.get("/api/storage/r").status == 200


def test_users_and_a_quota(tmp_path: Path) -> None:
    users = ("--user", "ann=r", "--user", "ann=wn@ml-*", "--user", "bob=r@other")
    options = ("--repo", REPO, "--repo", "other", "--quota", "1M", "--json")
    with serve(tmp_path / "d", *users, *options) as (_, line):
        ask = Served(line)
        tokens = {name: (tmp_path / "d" / f"{name}.token").read_text() for name in ("ann", "bob")}
        ask.authorization = {"Authorization": f"Bearer {tokens['ann'].strip()}"}
        assert ask.put(f"/{REPO}/a;k=v", bytes(1 * MiB)).status == 201
        assert ask.properties("a") == {"k": ["v"]}
        assert ask.put(f"/{REPO}/b", b"x").status == 413
        assert ask.put("/other/b", b"x").status == 403
        ask.authorization = {"Authorization": f"Bearer {tokens['bob'].strip()}"}
        assert ask.get(f"/{REPO}/a").status == 403
        assert ask.get("/api/storage/other").status == 200


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--host", "0.0.0.0"], "--allow-remote"),
        (["--user", "ann"], "--user ann: give NAME=RIGHTS or NAME=RIGHTS@REPOS"),
        (["--user", "ann=rz@x"], "--user ann=rz@x: 'z' is no right"),
        (["--tls-cert", "x"], "--tls-cert and --tls-key go together"),
        (["--repo", "a b"], "Invalid repository key 'a b'"),
        (["--faults", "/nope"], "--faults /nope: No such file or directory"),
        (["--host", "nowhere.invalid", "--allow-remote"], "cannot listen on nowhere.invalid"),
    ],
)
def test_a_mistake_is_one_line(tmp_path: Path, options: Sequence[str], message: str) -> None:
    with serve(tmp_path / "d", *options) as (process, line):
        assert line == ""
        assert process.wait(_DEADLINE_S) == 2
        assert process.stderr
        text = process.stderr.read()
        assert text.startswith("jfs: ")
        assert text.count("\n") == 1
        assert message in text


def test_a_stop_does_not_wait_for_a_client_that_does_not_read(tmp_path: Path) -> None:
    big = tmp_path / "big"
    with big.open("wb") as file:
        file.truncate(1 * GiB)
    with EmbeddedServer(tmp_path / "d") as server:
        server.create_repository(REPO)
        server.deploy(REPO, "big", big, sha256="ab" * 32)
    with serve(tmp_path / "d", "--json") as (process, line):
        ask = Served(line)
        with connected(ask.url) as connection:
            connection.request("GET", f"/artifactory/{REPO}/big", headers=ask.authorization)
            response = connection.getresponse()
            assert response.read(10) == bytes(10)
            process.terminate()
            assert process.wait(_DEADLINE_S) == 0


def test_memory_does_not_grow_with_bodies(tmp_path: Path, scale: Callable[[int, int], int]) -> None:
    big = tmp_path / "big"
    size = scale(512 * MiB, 20 * GiB)
    with big.open("wb") as file:
        file.truncate(size)
    with EmbeddedServer(tmp_path / "d") as server:
        server.create_repository(REPO)
        server.deploy(REPO, "big", big, sha256="ab" * 32)
    source = tmp_path / "source"
    with source.open("wb") as file:
        file.truncate(scale(96 * MiB, 2 * GiB))
    with serve(tmp_path / "d", "--json") as (process, line):
        ask = Served(line)
        bearer = ("-H", f"Authorization: Bearer {ask.token}")
        for more in (
            ("-o", "/dev/null", f"{ask.url}/{REPO}/big"),
            ("-o", "/dev/null", "-T", str(source), f"{ask.url}/{REPO}/up"),
        ):
            subprocess.run(["curl", "-sSf", *bearer, *more], check=True, stdin=subprocess.DEVNULL)
        status = Path(f"/proc/{process.pid}/status").read_text()
        peak = int(status.partition("VmHWM:")[2].split()[0]) * 1024
        assert peak < 120 * MiB


@pytest.mark.parametrize("size", [12 * MiB, LARGE + 8 * MiB])
def test_a_disk_that_takes_no_more(tmp_path: Path, size: int) -> None:
    under = ("prlimit", f"--fsize={4 * MiB}")
    with serve(tmp_path / "d", "--repo", REPO, "--json", under=under) as (process, line):
        ask = Served(line)
        refused = ask.put(f"/{REPO}/a", bytes(size))
        assert refused.status == 413
        assert refused.message.startswith("Datastore disk usage is too high")
        assert ask.put(f"/{REPO}/b", bytes(1 * MiB)).status == 201
        assert ask.tree() == {"/b": 1 * MiB}
        assert list((tmp_path / "d" / "incoming").iterdir()) == []
        process.terminate()
        assert process.wait(_DEADLINE_S) == 0
        assert process.stderr
        assert "File too large" in process.stderr.read()


def test_damaged_content_is_an_error_of_the_server(
    server: EmbeddedServer, tmp_path: Path, expected_logs: list[str]
) -> None:
    expected_logs.append("its content cannot be read")
    server.deploy(REPO, "a", b"body")
    server.deploy(REPO, "b", b"other")
    for path in (tmp_path / "server" / "filestore").glob("??/*"):
        if path.read_bytes() == b"body":
            path.write_bytes(b"bo")
        else:
            path.unlink()
    ask = Requests(server)
    for name in ("a", "b"):
        assert ask.get(f"/{REPO}/{name}").message == "The content of this artifact is damaged."
        assert ask.get(f"/api/storage/{REPO}/{name}").status == 200


@pytest.mark.parametrize("sent", [0, 3 * MiB, 8 * MiB])
def test_a_kill_during_an_upload_leaves_a_whole_file_or_none(tmp_path: Path, sent: int) -> None:
    directory = tmp_path / "d"
    body = os.urandom(8 * MiB)
    with serve(directory, "--repo", REPO, "--json") as (process, line):
        ask = Served(line)
        ask.put(f"/{REPO}/old;k=v", b"old")
        parts = urlsplit(ask.url)
        with socket.create_connection((parts.hostname, parts.port), _DEADLINE_S) as connection:
            connection.sendall(
                f"PUT /artifactory/{REPO}/new HTTP/1.1\r\nHost: x\r\n"
                f"Content-Length: {len(body)}\r\nAuthorization: Bearer {ask.token}\r\n"
                "Expect: 100-continue\r\n\r\n".encode()
            )
            assert connection.recv(100).startswith(b"HTTP/1.1 100 ")
            assert len(list((directory / "incoming").iterdir())) == 1
            connection.sendall(body[:sent])
            process.kill()
            process.wait(_DEADLINE_S)
    # What a kill between publishing and commit would leave:
    (directory / "filestore" / "00").mkdir(exist_ok=True)
    (directory / "filestore" / "00" / ("00" * 32)).write_bytes(b"orphan")
    with EmbeddedServer(directory) as server:
        ask = Requests(server)
        assert list((directory / "incoming").iterdir()) == []
        reply = ask.get(f"/{REPO}/new")
        assert reply.status == (404 if sent < len(body) else reply.status)
        if reply.status == 200:
            assert reply.body == body
        assert ask.get(f"/{REPO}/old").body == b"old"
        assert ask.properties("old") == {"k": ["v"]}
        assert "00" * 32 not in contents(directory)
        assert len(contents(directory)) == len(ask.tree())
