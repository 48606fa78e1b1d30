"""Large bodies, which are received past the HTTP framework."""

import contextlib
import hashlib
import random
import socket
import threading
from email.message import Message
from http.client import HTTPResponse
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from jfs.extents import MiB
from jfs.server import Fault
from jfs.server.http.intake import LARGE
from jfs.server.routes import upload
from tests.component.server_requests import REPO, Requests

BODY = random.Random(1).randbytes(LARGE + 5 * MiB + 12_345)
PATH = f"/{REPO}/d/big"
_DEADLINE_S = 30


def contents(tmp_path: Path) -> list[str]:
    assert list((tmp_path / "server" / "incoming").iterdir()) == []
    return [path.name for path in (tmp_path / "server" / "filestore").glob("??/*")]


class Upload:
    """A PUT of ``BODY`` by hand."""

    def __init__(self, ask: Requests, *headers: str) -> None:
        parts = urlsplit(ask.server.url)
        self.socket = socket.create_connection((parts.hostname, parts.port), _DEADLINE_S)
        lines = [
            f"PUT /artifactory{PATH} HTTP/1.1",
            "Host: x",
            f"Content-Length: {len(BODY)}",
            f"Authorization: Bearer {ask.server.token}",
            *headers,
        ]
        self.socket.sendall("\r\n".join([*lines, "", ""]).encode())

    def answer(self) -> tuple[int, Message]:
        """Read the answer and the end of the connection."""
        with self.socket:
            response = HTTPResponse(self.socket)
            response.begin()
            response.read()
            assert self.socket.recv(1) == b""
            return response.status, response.headers


@pytest.mark.parametrize("piece", [10_000_000, 1_234_567, len(BODY)])
def test_a_large_body(ask: Requests, tmp_path: Path, piece: int) -> None:
    ask.server.stats.reset()
    sending = Upload(ask)
    for start in range(0, len(BODY), piece):
        sending.socket.sendall(BODY[start : start + piece])
    status, headers = sending.answer()
    assert status == 201
    assert headers["Connection"] == "close"
    assert headers["X-Checksum-Sha256"] == hashlib.sha256(BODY).hexdigest()
    assert ask.server.stats.bytes_received == len(BODY)
    assert ask.get(PATH).body == BODY
    info = ask.get(f"/api/storage{PATH}").json()
    assert info["checksums"] == {
        name: hashlib.new(name, BODY).hexdigest() for name in ("sha1", "md5", "sha256")
    }
    assert contents(tmp_path) == [info["checksums"]["sha256"]]


def test_a_large_body_that_is_held_back(ask: Requests) -> None:
    upload = Upload(ask, "Expect: 100-continue")
    assert upload.socket.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
    upload.socket.sendall(BODY)
    assert upload.answer()[0] == 201
    assert ask.get(PATH).body == BODY


def test_a_smaller_body_keeps_its_connection(ask: Requests) -> None:
    assert ask.put(f"/{REPO}/small", b"x" * 3 * MiB).headers["Connection"] is None


def test_large_bodies_side_by_side(ask: Requests) -> None:
    bodies = [bytes([number]) * len(BODY) for number in range(3)]
    statuses: list[int] = []

    def put(number: int) -> None:
        statuses.append(ask.put(f"/{REPO}/{number}", bodies[number]).status)

    threads = [threading.Thread(target=put, args=(number,)) for number in range(len(bodies))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(_DEADLINE_S)
    assert statuses == [201] * len(bodies)
    for number, body in enumerate(bodies):
        assert ask.get(f"/{REPO}/{number}").body == body


def test_a_wrong_checksum_is_heard_of(ask: Requests, tmp_path: Path) -> None:
    upload = Upload(ask, f"X-Checksum-Sha1: {'0' * 40}")
    upload.socket.sendall(BODY)
    assert upload.answer()[0] == 409
    assert ask.tree() == {}
    assert contents(tmp_path) == []


@pytest.mark.parametrize("sent", [LARGE, len(BODY) - 1])
@pytest.mark.parametrize("closed", [True, False])
def test_a_large_upload_that_breaks_off_leaves_nothing(
    ask: Requests, tmp_path: Path, sent: int, closed: bool
) -> None:
    sending = Upload(ask)
    sending.socket.sendall(BODY[:sent])
    if closed:
        sending.socket.close()
    ask.server.stop()  # while the other one still sends
    sending.socket.close()
    assert contents(tmp_path) == []
    ask.server.start()
    assert ask.tree() == {}


def test_a_client_that_falls_silent(ask: Requests, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload, "BODY_IDLE_S", 0.2)
    sending = Upload(ask)
    sending.socket.sendall(BODY[: len(BODY) // 2])
    assert sending.answer()[0] == 408
    assert ask.tree() == {}


def test_a_large_upload_that_is_never_answered(ask: Requests) -> None:
    ask.server.faults.add(Fault.drop(method="PUT", times=1))
    sending = Upload(ask)
    sending.socket.sendall(BODY)
    with sending.socket, contextlib.suppress(ConnectionResetError):
        assert sending.socket.recv(1) == b""
    assert ask.get(PATH).body == BODY
