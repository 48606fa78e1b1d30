"""What a server refuses to take: by quota, by a repository's configuration (artifactory-rest 4)."""

import hashlib
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from jfs.extents import KiB
from jfs.server import EmbeddedServer
from jfs.server.store.patterns import accepts
from jfs.server.wire.answers import ApiError
from tests.component.server_requests import REPO, Requests, connected

QUOTA = 1000 * KiB


@pytest.fixture
def ask(tmp_path: Path) -> Iterator[Requests]:
    with EmbeddedServer(tmp_path / "server", quota_bytes=QUOTA) as server:
        server.create_repository(REPO)
        yield Requests(server)


def contents(tmp_path: Path) -> int:
    assert list((tmp_path / "server" / "incoming").iterdir()) == []
    return sum(path.stat().st_size for path in (tmp_path / "server" / "filestore").glob("??/*"))


def test_a_quota(ask: Requests, tmp_path: Path) -> None:
    first = b"1" * 600 * KiB
    assert ask.put(f"/{REPO}/first", first).status == 201
    refused = ask.put(f"/{REPO}/d/second", b"2" * 600 * KiB)
    assert refused.status == 413
    assert refused.message.startswith("Datastore disk usage is too high")
    assert ask.tree() == {"/first": len(first)}
    assert contents(tmp_path) == len(first)
    # Content that is here takes no room, however it comes.
    digest = hashlib.sha256(first).hexdigest()
    assert ask.put(f"/{REPO}/again", first, X_Checksum_Sha256=digest).status == 201
    known = ask.put(f"/{REPO}/known", X_Checksum_Deploy="true", X_Checksum_Sha256=digest)
    assert known.status == 201
    ask.post(f"/api/copy/{REPO}/first?to={REPO}/copy")
    assert ask.put(f"/{REPO}/exactly", b"3" * 400 * KiB).status == 201
    assert ask.put(f"/{REPO}/empty").status == 201
    assert ask.put(f"/{REPO}/more", b"x").status == 413
    assert ask.put(f"/{REPO}/folder/").status == 201
    assert contents(tmp_path) == QUOTA
    ask.delete(f"/{REPO}/exactly")
    assert ask.put(f"/{REPO}/more", b"x").status == 201


def test_a_body_of_unknown_length_meets_the_quota(ask: Requests, tmp_path: Path) -> None:
    pieces = [bytes([number]) * 100 * KiB for number in range(12)]
    with connected(ask.server.url) as connection:
        connection.request(
            "PUT", f"/artifactory/{REPO}/c", iter(pieces), ask.authorization, encode_chunked=True
        )
        assert connection.getresponse().status == 413
    assert ask.tree() == {}
    assert contents(tmp_path) == 0


def test_the_quota_is_known_before_the_body(ask: Requests) -> None:
    parts = urlsplit(ask.server.url)
    with socket.create_connection((parts.hostname, parts.port), timeout=30) as connection:
        connection.sendall(
            f"PUT /artifactory/{REPO}/a HTTP/1.1\r\nHost: x\r\n"
            f"Content-Length: {QUOTA + 1}\r\nExpect: 100-continue\r\n"
            f"Authorization: Bearer {ask.server.token}\r\n\r\n".encode()
        )
        answer = b""
        while data := connection.recv(1000):
            answer += data
    assert answer.startswith(b"HTTP/1.1 413 ")


def test_a_quota_holds_for_seeding_too(ask: Requests) -> None:
    with pytest.raises(ApiError, match="Datastore disk usage is too high"):
        ask.server.deploy(REPO, "a", b"x" * (QUOTA + 1))


def test_a_repository_that_is_blacked_out(ask: Requests) -> None:
    ask.put(f"/{REPO}/a", b"x")
    ask.post(f"/api/repositories/{REPO}", b'{"blackedOut":true}')
    for path in ("a", "b", "folder/"):
        refused = ask.put(f"/{REPO}/{path}", b"x")
        assert refused.status == 404
        assert f"The repository '{REPO}' is blacked out" in refused.message
    assert ask.tree() == {"/a": 1}
    ask.post(f"/api/repositories/{REPO}", b'{"blackedOut":false}')
    assert ask.put(f"/{REPO}/b", b"x").status == 201


def test_patterns_of_a_repository(ask: Requests) -> None:
    config = b'{"includesPattern":"models/**/*,*.json","excludesPattern":"**/*.tmp,models/old/"}'
    ask.post(f"/api/repositories/{REPO}", config)
    taken = ("models/a", "models/x/y/b", "c.json")
    refused = ("a", "x/c.json", "models/a.tmp", "models/x/b.tmp", "models/old/a")
    for path in taken:
        assert ask.put(f"/{REPO}/{path}", b"x").status == 201
    for path in refused:
        reply = ask.put(f"/{REPO}/{path}", b"x")
        assert reply.status == 409
        assert "due to its configured include/exclude patterns settings" in reply.message
    assert [path for path, size in ask.tree().items() if size >= 0] == sorted(
        f"/{path}" for path in taken
    )


@pytest.mark.parametrize(
    ("pattern", "path", "taken"),
    [
        ("**/*", "a/b", True),
        ("**", "a", True),
        ("", "a", True),
        ("a/**", "a/b/c", True),
        ("a/**", "b/a/c", False),
        ("*.bin", "x/a.bin", False),
        ("**/*.bin", "a.bin", True),
        ("a?c", "abc", True),
        ("a?c", "a/c", False),
        ("a.c", "abc", False),
        ("x, y/", "y/z", True),
    ],
)
def test_the_language_of_patterns(pattern: str, path: str, taken: bool) -> None:
    assert accepts({"includesPattern": pattern}, path) is taken


def test_checksums_that_the_server_makes_itself(ask: Requests) -> None:
    policy = b'{"checksumPolicyType":"server-generated-checksums"}'
    ask.post(f"/api/repositories/{REPO}", policy)
    assert ask.put(f"/{REPO}/a", b"x", X_Checksum_Sha1="0" * 40).status == 201
    assert ask.get(f"/{REPO}/a").body == b"x"
