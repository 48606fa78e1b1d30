"""GET and HEAD of content, and who may ask (artifactory-rest 1.2, 3)."""

import base64
import hashlib
import re
from email.utils import formatdate, parsedate_to_datetime
from pathlib import Path

import pytest

from jfs.extents import GiB, MiB
from jfs.server import EmbeddedServer
from tests.component.server_requests import REPO, Requests, connected

BODY = bytes(range(256)) * 40
SHA1 = hashlib.sha1(BODY).hexdigest()
FILE = f"/{REPO}/llm/v1/model.safetensors"


@pytest.fixture
def ask(server: EmbeddedServer) -> Requests:
    server.deploy(REPO, "llm/v1/model.safetensors", BODY)
    return Requests(server)


def test_a_file_with_every_header(ask: Requests) -> None:
    for reply in (ask.get(FILE), ask.head(FILE)):
        assert reply.status == 200
        headers = dict(reply.headers)
        assert abs(parsedate_to_datetime(headers.pop("Last-Modified")).timestamp()) > 0
        assert headers.pop("Date")
        assert headers == {
            "Server": "Artifactory/7.55.14",
            "X-JFrog-Version": "Artifactory/7.55.14 75514900",
            "X-Artifactory-Node-Id": "jfs",
            "ETag": SHA1,  # bare, no quotes
            "X-Checksum-Sha1": SHA1,
            "X-Checksum-Sha256": hashlib.sha256(BODY).hexdigest(),
            "X-Checksum-Md5": hashlib.md5(BODY).hexdigest(),
            "Accept-Ranges": "bytes",
            "X-Artifactory-Filename": "model.safetensors",
            "Content-Disposition": 'attachment; filename="model.safetensors"; '
            "filename*=UTF-8''model.safetensors",
            "Content-Type": "application/octet-stream",
            "Content-Length": str(len(BODY)),
        }
    assert ask.get(FILE).body == BODY
    assert ask.head(FILE).body == b""


@pytest.mark.parametrize(
    ("value", "start", "stop"),
    [("0-10", 0, 11), ("100-", 100, len(BODY)), ("-5", len(BODY) - 5, len(BODY))],
)
def test_one_range(ask: Requests, value: str, start: int, stop: int) -> None:
    reply = ask.get(FILE, Range=f"bytes={value}")
    assert reply.status == 206
    assert reply.headers["Content-Range"] == f"bytes {start}-{stop - 1}/{len(BODY)}"
    assert reply.headers["ETag"] == SHA1
    assert reply.body == BODY[start:stop]


def test_several_ranges(ask: Requests) -> None:
    reply = ask.get(FILE, Range="bytes=0-3,10-12")
    assert reply.status == 206
    found = re.fullmatch(r"multipart/byteranges; boundary=(\w+)", reply.headers["Content-Type"])
    assert found
    parts = reply.body.split(f"\r\n--{found[1]}".encode())
    assert parts[0] == b""
    assert parts[-1] == b"--\r\n"
    assert [part.partition(b"\r\n\r\n")[2] for part in parts[1:-1]] == [BODY[:4], BODY[10:13]]
    assert f"Content-Range: bytes 10-12/{len(BODY)}".encode() in parts[2]


def test_a_range_outside(ask: Requests) -> None:
    ask.server.deploy(REPO, "empty", b"")
    for path, value, size in ((FILE, "99999-", len(BODY)), (f"/{REPO}/empty", "0-", 0)):
        reply = ask.get(path, Range=f"bytes={value}")
        assert reply.status == 416
        assert reply.headers["Content-Range"] == f"bytes */{size}"
        assert reply.body == b""


def test_ranges_that_are_not_honoured(ask: Requests) -> None:
    assert ask.get(FILE, Range="bytes").status == 200
    assert ask.head(FILE, Range="bytes=0-1").status == 200
    assert ask.get(FILE, Range="bytes=0-1", If_Range=f'"{SHA1}"').status == 200
    assert ask.get(FILE, Range="bytes=0-1", If_Range=SHA1).status == 206


def test_conditional_requests(ask: Requests) -> None:
    reply = ask.get(FILE, If_None_Match=SHA1)
    assert (reply.status, reply.body) == (304, b"")
    assert reply.headers["X-Checksum-Sha1"] == SHA1
    assert ask.head(FILE, If_None_Match=SHA1).status == 304
    assert ask.get(FILE, If_None_Match=f'"{SHA1}"').status == 200
    modified = ask.head(FILE).headers["Last-Modified"]
    assert ask.get(FILE, If_Modified_Since=modified).status == 304
    assert ask.get(FILE, If_Modified_Since=formatdate(0, usegmt=True)).status == 200


def test_folders(ask: Requests) -> None:
    for method in ("GET", "HEAD"):
        reply = ask(method, f"/{REPO}/llm")
        assert reply.status == 302
        assert reply.headers["Location"] == f"{ask.server.url}/{REPO}/llm/"
    page = ask.get(f"/{REPO}/llm/")
    assert page.status == 200
    assert page.headers["Content-Type"].startswith("text/html")
    assert b'<a href="./v1/">v1/</a>' in page.body
    assert ask.head(f"/{REPO}/llm/").status == 200
    assert ask.get(f"/list/{REPO}/llm/").body == page.body
    assert ask.get(f"/{REPO}/").status == 200


def test_names_that_need_encoding(ask: Requests) -> None:
    ask.server.deploy(REPO, "a b/ü;+%.bin", b"x")
    encoded = f"/{REPO}/a%20b/%C3%BC%3B+%25.bin"
    reply = ask.get(encoded)
    assert reply.body == b"x"
    assert reply.headers["X-Artifactory-Filename"] == "%C3%BC%3B%2B%25.bin"
    info = ask.get(f"/api/storage{encoded}").json()
    assert info["path"] == "/a b/ü;+%.bin"
    assert info["downloadUri"] == f"{ask.server.url}{encoded}"
    assert ask.get(f"/api/storage/{REPO}/a%20b").json()["children"] == [
        {"uri": "/ü;+%.bin", "folder": False}
    ]
    page = ask.get(f"/{REPO}/a%20b/").body.decode()
    assert 'href="./%C3%BC%3B+%25.bin"' in page


def test_checksum_side_files(ask: Requests) -> None:
    for kind in ("sha1", "sha256", "md5"):
        reply = ask.get(f"{FILE}.{kind}")
        assert reply.status == 200
        assert reply.headers["Content-Type"] == "application/x-checksum"
        assert reply.body.decode() == hashlib.new(kind, BODY).hexdigest()
    assert ask.get(f"/{REPO}/llm.sha1").status == 404
    assert "/model.safetensors.sha1" not in ask.tree("/llm/v1")


def test_what_is_missing(ask: Requests) -> None:
    assert ask.get(f"/{REPO}/nope").message == "File not found."
    assert ask.get("/nope/x").message == (
        "Failed to find the repository 'nope' specified in the request."
    )
    assert ask.get(f"{FILE}/").status == 404
    assert ask.head(f"/{REPO}/nope").status == 404
    assert ask.get("/api/nope").message == "Not Found"
    refused = ask.post(f"/{REPO}/x")
    assert refused.status == 405
    assert refused.headers["Allow"] == "GET, PUT, DELETE"


def test_a_content_type_by_property_and_a_mandatory_one(ask: Requests) -> None:
    ask.server.deploy(REPO, "a.json", b"{}")
    assert ask.get(f"/{REPO}/a.json").headers["Content-Type"] == "application/json"
    ask.server.set_properties(REPO, "a.json", {"artifactory.content-type": ["x/y"], "env": ["p"]})
    assert ask.get(f"/{REPO}/a.json").headers["Content-Type"] == "x/y"
    assert ask.get(f"/{REPO}/a.json;env+=p").status == 200
    assert ask.get(f"/{REPO}/a.json;env+=q").status == 404
    assert ask.get(f"/{REPO}/a.json;env=q").status == 200


def test_a_reader_sees_a_change_at_once(ask: Requests) -> None:
    for text in (b"one", b"two", b"three"):
        ask.server.deploy(REPO, "a", text)
        assert ask.get(f"/{REPO}/a").body == text
        assert ask.get(f"/{REPO}/a").body == text  # from what is remembered
    ask.server.delete(REPO, "a")
    assert ask.get(f"/{REPO}/a").status == 404


def test_a_reader_keeps_what_it_opened(ask: Requests) -> None:
    body = bytes(16 * MiB)
    ask.server.deploy(REPO, "big", body)
    with connected(ask.server.url) as connection:
        connection.request("GET", f"/artifactory/{REPO}/big", headers=ask.authorization)
        response = connection.getresponse()
        first = response.read(10)
        ask.server.delete(REPO, "big")
        assert first + response.read() == body
    assert ask.get(f"/{REPO}/big").status == 404


def test_a_kept_alive_connection(ask: Requests) -> None:
    with connected(ask.server.url) as connection:
        socket = None
        for start in range(0, 100, 10):
            connection.request(
                "GET",
                f"/artifactory{FILE}",
                headers={**ask.authorization, "Range": f"bytes={start}-{start + 9}"},
            )
            assert connection.getresponse().read() == BODY[start : start + 10]
            assert socket in (None, connection.sock)
            socket = connection.sock


def test_a_huge_sparse_file(ask: Requests, tmp_path: Path) -> None:
    huge = tmp_path / "huge"
    with huge.open("wb") as file:
        file.truncate(10 * GiB)
        file.seek(10 * GiB - 4)
        file.write(b"tail")
    ask.server.deploy(REPO, "huge", huge, sha256="ab" * 32)
    reply = ask.head(f"/{REPO}/huge")
    assert reply.headers["Content-Length"] == str(10 * GiB)
    assert reply.headers["X-Checksum-Sha256"] == "ab" * 32
    assert "X-Checksum-Md5" not in reply.headers
    assert ask.get(f"/{REPO}/huge", Range="bytes=-6").body == b"\0\0tail"
    assert ask.get(f"/api/storage/{REPO}/huge").json()["size"] == str(10 * GiB)


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def test_credentials(ask: Requests) -> None:
    token = ask.server.token
    good: list[dict[str, str]] = [
        {"Authorization": f"Bearer {token}"},
        {"Authorization": f"bearer {token}"},
        {"Authorization": basic("admin", token)},
        {"X-JFrog-Art-Api": token},
    ]
    bad: list[tuple[dict[str, str], str]] = [
        ({}, "Authentication is required"),
        ({"Authorization": "Basic Og=="}, "Authentication is required"),
        ({"Authorization": "Bearer nope"}, "Bad Credentials"),
        ({"Authorization": "Basic %%%"}, "Bad Credentials"),
        ({"Authorization": basic("admin", "password")}, "Bad Credentials"),
        ({"Authorization": f"Digest {token}"}, "Bad Credentials"),
        ({"X-JFrog-Art-Api": "AKCp8"}, "Bad Credentials"),
    ]
    for headers in good:
        ask.authorization = headers
        assert ask.get(FILE).status == 200
    for headers, text in bad:
        ask.authorization = headers
        for method, path in (
            ("GET", FILE),
            ("GET", f"/api/storage/{REPO}"),
            ("PUT", f"/{REPO}/new"),
            ("DELETE", FILE),
            ("GET", "/api/system/version"),
        ):
            reply = ask(method, path, b"x" if method == "PUT" else None)
            assert reply.status == 401
            assert reply.message == text
            assert reply.headers["WWW-Authenticate"] == 'Basic realm="Artifactory Realm"'
        ping = ask.get("/api/system/ping")
        assert (ping.status, ping.body) == (200, b"OK")
    ask.authorization = good[0]
    assert sorted(ask.tree()) == ["/llm", "/llm/v1", "/llm/v1/model.safetensors"]


def test_the_token_is_the_owners_secret(server: EmbeddedServer, tmp_path: Path) -> None:
    path = tmp_path / "server" / "admin.token"
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.read_text().strip() == server.token
    assert len(server.token) >= 32
