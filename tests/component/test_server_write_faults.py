"""Planned faults of requests that change something: what has been done when they go wrong."""

import http.client
import socket
import threading
from collections.abc import Callable
from http.client import BadStatusLine
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from jfs.extents import MiB
from jfs.server import EmbeddedServer, Fault, FaultPlan
from tests.component.server_requests import REPO, Reply, Requests

BODY = bytes(range(256)) * 4096
_DEADLINE_S = 30

Change = Callable[[Requests], Reply]


@pytest.fixture
def ask(server: EmbeddedServer) -> Requests:
    server.deploy(REPO, "old", b"old", {"k": ["v"]})
    return Requests(server)


CHANGES: dict[str, Change] = {
    "deploy": lambda ask: ask.put(f"/{REPO}/new", BODY),
    "mkdir": lambda ask: ask.put(f"/{REPO}/folder/"),
    "delete": lambda ask: ask.delete(f"/{REPO}/old"),
    "move": lambda ask: ask.post(f"/api/move/{REPO}/old?to={REPO}/moved"),
    "patch": lambda ask: ask.patch(f"/api/metadata/{REPO}/old", {"props": {"k": "w"}}),
}


def state(ask: Requests) -> tuple[object, ...]:
    return ask.tree(), ask.properties("old"), ask.properties("moved")


@pytest.fixture(params=list(CHANGES))
def change(request: pytest.FixtureRequest) -> Change:
    return CHANGES[request.param]


def breaks(change: Change, ask: Requests) -> None:
    with pytest.raises((ConnectionError, BadStatusLine, http.client.ResponseNotReady)):
        change(ask)


def test_a_connection_that_is_cut_before_anything_is_done(ask: Requests, change: Change) -> None:
    before = state(ask)
    methods = "[PD]*"
    fault = ask.server.faults.add(Fault.cut(method=methods, times=1))
    breaks(change, ask)
    assert fault.hits == 1
    assert state(ask) == before
    assert change(ask).status < 300
    assert state(ask) != before


def test_a_connection_that_is_cut_when_all_is_done(ask: Requests, change: Change) -> None:
    before = state(ask)
    ask.server.faults.add(Fault.drop(method="[PD]*", times=1))
    breaks(change, ask)
    assert state(ask) != before


def held(ask: Requests, change: Change, fault: Fault) -> tuple[threading.Thread, list[Reply]]:
    replies: list[Reply] = []
    thread = threading.Thread(target=lambda: replies.append(change(ask)))
    ask.server.faults.add(fault)
    thread.start()
    fault.wait_hit()
    return thread, replies


def test_an_answer_that_stalls(ask: Requests, change: Change) -> None:
    before = state(ask)
    fault = Fault.stall(method="[PD]*", times=1)
    thread, replies = held(ask, change, fault)
    assert state(ask) != before  # done, and not yet answered
    assert replies == []
    fault.release()
    thread.join(_DEADLINE_S)
    assert replies[0].status < 300


def test_a_request_that_is_held(ask: Requests, change: Change) -> None:
    before = state(ask)
    fault = Fault.hold(method="[PD]*", times=1)
    thread, replies = held(ask, change, fault)
    assert state(ask) == before  # nothing is done yet
    assert replies == []
    fault.release()
    thread.join(_DEADLINE_S)
    assert replies[0].status < 300
    assert state(ask) != before


def test_a_stop_does_not_do_what_is_held(ask: Requests, change: Change) -> None:
    before = state(ask)
    failures: list[Exception] = []

    def one() -> None:
        try:
            change(ask)
        except (OSError, http.client.HTTPException) as error:
            failures.append(error)

    fault = ask.server.faults.add(Fault.hold(method="[PD]*"))
    thread = threading.Thread(target=one)
    thread.start()
    fault.wait_hit()
    ask.server.stop()
    thread.join(_DEADLINE_S)
    assert len(failures) == 1
    ask.server.faults.clear()
    ask.server.start()
    assert state(ask) == before


def test_a_move_that_is_held_happens_without_its_client(ask: Requests) -> None:
    fault = ask.server.faults.add(Fault.hold(method="POST"))
    parts = urlsplit(ask.server.url)
    with socket.create_connection((parts.hostname, parts.port), _DEADLINE_S) as connection:
        connection.sendall(
            f"POST /artifactory/api/move/{REPO}/old?to={REPO}/late HTTP/1.1\r\nHost: x\r\n"
            f"Authorization: Bearer {ask.server.token}\r\nContent-Length: 0\r\n\r\n".encode()
        )
        fault.wait_hit()
    fault.release()
    while "/late" not in ask.tree():  # a hang is the failure
        pass


class Raw:
    """A PUT of ``BODY`` by hand, which sends as much of it as it likes."""

    def __init__(self, ask: Requests, *, expect: bool = False) -> None:
        parts = urlsplit(ask.server.url)
        self.socket = socket.create_connection((parts.hostname, parts.port), _DEADLINE_S)
        lines = [
            f"PUT /artifactory/{REPO}/new HTTP/1.1",
            "Host: x",
            f"Content-Length: {len(BODY)}",
            f"Authorization: Bearer {ask.server.token}",
            *(["Expect: 100-continue"] if expect else []),
        ]
        self.socket.sendall("\r\n".join([*lines, "", ""]).encode())

    def rest(self) -> bytes:
        """Read to the end of the connection."""
        answer = b""
        with self.socket:
            try:
                while data := self.socket.recv(1 << 16):
                    answer += data
            except ConnectionResetError:
                pass
        return answer


@pytest.mark.parametrize("expect", [False, True])
@pytest.mark.parametrize("after_bytes", [0, 1, 300_000, len(BODY)])
def test_a_connection_that_is_cut_in_the_middle_of_a_body(
    ask: Requests, tmp_path: Path, after_bytes: int, expect: bool
) -> None:
    stats = ask.server.stats
    ask.server.faults.add(Fault.cut(f"/{REPO}/*", method="PUT", after_bytes=after_bytes, times=1))
    stats.reset()
    raw = Raw(ask, expect=expect)
    if expect and after_bytes:
        assert raw.socket.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
    raw.socket.sendall(BODY[:after_bytes])
    assert raw.rest() == b""  # without an answer
    assert stats.bytes_received == after_bytes
    assert ask.tree() == {"/old": 3}
    assert list((tmp_path / "server" / "incoming").iterdir()) == []


def test_a_body_that_is_shorter_than_where_it_is_cut(ask: Requests) -> None:
    ask.server.faults.add(Fault.cut(after_bytes=2 * len(BODY), times=1))
    breaks(CHANGES["deploy"], ask)
    assert ask.tree() == {"/old": 3}


@pytest.mark.parametrize("code", [409, 413, 503])
def test_statuses_do_nothing(ask: Requests, change: Change, code: int) -> None:
    before = state(ask)
    ask.server.faults.add(Fault.status(code, method="[PD]*", times=1))
    reply = change(ask)
    assert (reply.status, reply.message) == (code, "A fault was planned.")
    assert state(ask) == before


@pytest.mark.parametrize("code", [413, 503])
def test_a_status_before_the_body_has_come(ask: Requests, code: int) -> None:
    ask.server.stats.reset()
    ask.server.faults.add(Fault.status(code, method="PUT", early=True, times=1))
    raw = Raw(ask)
    answer = raw.rest()  # which ends, though no byte of the body was sent
    assert answer.startswith(f"HTTP/1.1 {code} ".encode())
    assert b"connection: close" in answer.lower()
    assert ask.server.stats.bytes_received == 0
    assert ask.tree() == {"/old": 3}


def test_a_status_closes_early_only_where_it_says_so(ask: Requests) -> None:
    ask.server.faults.add(Fault.status(503, method="PUT", times=1))
    raw = Raw(ask)
    raw.socket.sendall(BODY)
    assert raw.socket.recv(100).startswith(b"HTTP/1.1 503 ")
    raw.socket.close()
    assert ask.server.stats.bytes_received == len(BODY)


def test_a_deploy_that_states_wrong_checksums(ask: Requests) -> None:
    ask.server.faults.add(Fault.wrong_checksums(method="PUT", times=1))
    reply = ask.put(f"/{REPO}/new", BODY)
    assert reply.status == 201
    wrong = {"sha1": "0" * 40, "md5": "0" * 32, "sha256": "0" * 64}
    assert reply.json()["checksums"] == wrong
    assert reply.headers["X-Checksum-Sha256"] == "0" * 64
    assert ask.get(f"/{REPO}/new").body == BODY
    ask.server.faults.add(Fault.wrong_checksums(method="POST", times=1))
    query = b'items.find({"name":"new"}).include("repo","path","name","actual_sha1","sha256")'
    (row,) = ask.post("/api/search/aql", query).json()["results"]
    assert (row["actual_sha1"], row["sha256"]) == (wrong["sha1"], wrong["sha256"])


def test_faults_of_writes_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "faults.json"
    path.write_text(
        '[{"kind": "cut", "offset": 5, "method": "PUT"}, {"kind": "hold", "method": "POST"},'
        ' {"kind": "status", "code": 413, "early": true}]'
    )
    plan = FaultPlan.load(path)
    found = [plan.match(method, "/r/a") for method in ("PUT", "POST", "DELETE")]
    assert [fault and fault.kind for fault in found] == ["cut", "hold", "status"]
    assert found[2]
    assert found[2].early


def test_a_large_body_meets_an_early_answer(ask: Requests) -> None:
    """A client that goes on sending may hear of it only by a reset, as behind a real proxy."""
    ask.server.faults.add(Fault.status(413, method="PUT", early=True, times=1))
    try:
        status = ask.put(f"/{REPO}/new", bytes(8 * MiB)).status
    except (ConnectionError, BadStatusLine):
        status = 413
    assert status == 413
    assert ask.tree() == {"/old": 3}
