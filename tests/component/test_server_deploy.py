"""PUT and DELETE of content (artifactory-rest 4, 5)."""

import hashlib
import socket
import threading
from email.utils import parsedate_to_datetime
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from jfs.extents import MiB
from tests.component.server_requests import REPO, Requests, connected


def sums(body: bytes) -> dict[str, str]:
    return {name: hashlib.new(name, body).hexdigest() for name in ("sha1", "md5", "sha256")}


def contents(tmp_path: Path) -> list[str]:
    """Name what lies in the filestore; nothing else may lie around."""
    assert list((tmp_path / "server" / "incoming").iterdir()) == []
    return sorted(path.name for path in (tmp_path / "server" / "filestore").glob("??/*"))


def test_the_answer_to_a_deploy(ask: Requests) -> None:
    body = b"weights"
    reply = ask.put(f"/{REPO}/a/b/m.onnx", body, X_Checksum_Sha1=sums(body)["sha1"])
    assert reply.status == 201
    url = f"{ask.server.url}/{REPO}/a/b/m.onnx"
    assert reply.headers["Location"] == url
    assert reply.headers["X-Checksum-Sha256"] == sums(body)["sha256"]
    assert reply.headers["Content-Type"] == (
        "application/vnd.org.jfrog.artifactory.storage.ItemCreated+json"
    )
    document = reply.json()
    created = document.pop("created")
    assert document == {
        "repo": REPO,
        "path": "/a/b/m.onnx",
        "createdBy": "admin",
        "downloadUri": url,
        "mimeType": "application/octet-stream",
        "size": "7",  # a string
        "checksums": sums(body),
        "originalChecksums": {"sha1": sums(body)["sha1"], "sha256": sums(body)["sha256"]},
        "uri": url,
    }
    assert ask.get(f"/api/storage/{REPO}/a/b/m.onnx").json()["created"] == created
    assert b'"size" : "7"' in reply.body  # printed as real servers do
    assert ask.get(f"/{REPO}/a/b/m.onnx").body == body


@pytest.mark.parametrize(
    "header", ["X-Checksum-Sha1", "X-Checksum-Sha256", "X-Checksum-Md5", "X-Checksum"]
)
def test_a_wrong_checksum_stores_nothing(ask: Requests, tmp_path: Path, header: str) -> None:
    name = header.rpartition("-")[2].lower()
    wrong = "0" * len(sums(b"").get(name, "x" * 64))
    reply = ask("PUT", f"/{REPO}/d/a", b"body", {header: wrong})
    assert reply.status == 409
    assert "rejected the artifact" in reply.message
    assert ask.get(f"/{REPO}/d/a").status == 404
    assert ask.tree() == {}
    assert contents(tmp_path) == []


def test_a_checksum_that_is_none(ask: Requests) -> None:
    assert ask.put(f"/{REPO}/a", b"x", X_Checksum_Sha1="abc").status == 400
    assert ask.put(f"/{REPO}/a", b"x", X_Checksum_Sha1="").status == 201


def test_checksum_deploy(ask: Requests, tmp_path: Path) -> None:
    known = sums(b"known")
    ask.put(f"/{REPO}/a", b"known")
    for path, headers in (
        ("b", {"X-Checksum-Sha256": known["sha256"]}),
        ("c", {"X-Checksum-Sha1": known["sha1"]}),
        ("d", {"X-Checksum": known["sha256"]}),
        ("e", {"X-Checksum-Sha1": known["sha1"], "X-Checksum-Md5": known["md5"]}),
    ):
        reply = ask(
            "PUT", f"/{REPO}/x/{path};k=v", headers={"X-Checksum-Deploy": "true", **headers}
        )
        assert reply.status == 201
        assert reply.json()["checksums"] == known
        assert ask.get(f"/{REPO}/x/{path}").body == b"known"
        assert ask.properties(f"x/{path}") == {"k": ["v"]}
    assert contents(tmp_path) == [known["sha256"]]

    unknown = ask.put(f"/{REPO}/z", X_Checksum_Deploy="true", X_Checksum_Sha256="0" * 64)
    assert unknown.status == 404
    assert unknown.message.startswith("Checksum deploy failed. No existing file with sha256: 000")
    for headers in ({}, {"X-Checksum-Md5": known["md5"]}):
        reply = ask("PUT", f"/{REPO}/z", headers={"X-Checksum-Deploy": "true", **headers})
        assert reply.status == 400
    assert ask.put(f"/{REPO}/z", b"normal", X_Checksum_Deploy="false").status == 201


def test_matrix_parameters_and_redeploys(ask: Requests) -> None:
    path = f"/{REPO}/m"
    ask.put(f"{path};env=dev;env=prod;v=a%2Cb", b"one")
    assert ask.properties("m") == {"env": ["dev", "prod"], "v": ["a,b"]}
    ask.put(path, b"one")
    assert ask.properties("m") == {"env": ["dev", "prod"], "v": ["a,b"]}  # same bytes: kept
    ask.put(f"{path};k=v", b"one")
    assert ask.properties("m") == {"k": ["v"]}  # given ones replace the set
    ask.get(path)
    ask.put(path, b"two")
    assert ask.properties("m") == {}  # other bytes: gone
    assert ask.get(f"/api/storage/{REPO}/m?stats").json()["downloadCount"] == 0
    ask.put(f"{path};k=w", b"three")
    assert ask.properties("m") == {"k": ["w"]}
    assert ask.put(f"{path};1k=w", b"four").status == 400
    assert ask.get(path).body == b"three"


def test_an_overwrite_keeps_who_created_it(ask: Requests) -> None:
    old = "Tue, 01 Jan 2019 00:00:00 GMT"
    stated = {
        "X-Artifactory-Created": "1500000000000",
        "X-Artifactory-Created-By": "jane",
        "X-Artifactory-Modified-By": "joe",
    }
    ask("PUT", f"/{REPO}/a", b"one", {"Last-Modified": old, **stated})
    info = ask.get(f"/api/storage/{REPO}/a").json()
    assert info["lastModified"] == "2019-01-01T00:00:00.000Z"
    assert (info["createdBy"], info["modifiedBy"]) == ("jane", "joe")
    assert info["created"] == "2017-07-14T02:40:00.000Z"
    assert ask.head(f"/{REPO}/a").headers["Last-Modified"] == old
    ask.put(f"/{REPO}/a", b"two")
    again = ask.get(f"/api/storage/{REPO}/a").json()
    assert (again["created"], again["createdBy"]) == (info["created"], "jane")
    assert again["modifiedBy"] == "admin"
    assert again["lastModified"] > info["lastModified"]


def test_empty_files_and_folders(ask: Requests) -> None:
    assert ask.put(f"/{REPO}/empty").json()["checksums"]["sha1"] == sums(b"")["sha1"]
    assert ask.get(f"/{REPO}/empty").body == b""
    for _ in range(2):  # one that exists is made again
        reply = ask.put(f"/{REPO}/a/b/;k=v", b"ignored")
        assert reply.status == 201
        document = reply.json()
        assert list(document) == ["repo", "path", "created", "createdBy", "uri"]
        assert document["path"] == "/a/b/"
        assert document["uri"] == f"{ask.server.url}/{REPO}/a/b/"
    assert ask.properties("a/b") == {"k": ["v"]}
    assert ask.tree() == {"/a": -1, "/a/b": -1, "/empty": 0}


def test_what_is_in_the_way(ask: Requests) -> None:
    ask.put(f"/{REPO}/file", b"x")
    ask.put(f"/{REPO}/folder/")
    for path in ("folder", "file/below", "file/below/deep/", "file/"):
        assert ask.put(f"/{REPO}/{path}", b"x").status == 409
    assert ask.tree() == {"/file": 1, "/folder": -1}


def test_where_nothing_can_be_written(ask: Requests) -> None:
    reply = ask.put("/nope/a", b"x" * MiB)
    assert reply.status == 404
    assert reply.message == "Could not find a local repository named nope to deploy to."
    assert ask.put("/api/a", b"x").status == 404
    assert ask.put(f"/{REPO}/%2e%2e/a", b"x").status == 400
    assert ask.put(f"/{REPO}/a.zip", b"x", X_Explode_Archive="true").status == 400


def test_checksum_side_files_are_not_stored(ask: Requests) -> None:
    ask.put(f"/{REPO}/a", b"body")
    assert ask.put(f"/{REPO}/a.sha1", sums(b"body")["sha1"].encode()).status == 201
    assert ask.put(f"/{REPO}/a.md5", b"0" * 32).status == 409
    assert ask.put(f"/{REPO}/a.sha256", b"0" * 2000).status == 409
    assert ask.put(f"/{REPO}/b.sha256", b"0" * 64).status == 404
    assert ask.tree() == {"/a": 4}


def test_a_chunked_upload(ask: Requests) -> None:
    pieces = [bytes([number]) * 70_000 for number in range(30)]
    with connected(ask.server.url) as connection:
        connection.request(
            "PUT", f"/artifactory/{REPO}/c", iter(pieces), ask.authorization, encode_chunked=True
        )
        response = connection.getresponse()
        assert (response.status, bool(response.read())) == (201, True)
    assert ask.get(f"/{REPO}/c").body == b"".join(pieces)


def test_deletes(ask: Requests, tmp_path: Path) -> None:
    for path in ("a/b/c", "a/b/d", "a-b", "a0"):
        ask.put(f"/{REPO}/{path}", path.encode())
    ask.put(f"/{REPO}/copy", b"a/b/c")
    reply = ask.delete(f"/{REPO}/a/b/c")
    assert (reply.status, reply.body) == (204, b"")
    assert ask.get(f"/{REPO}/copy").body == b"a/b/c"  # content that another item names stays
    assert ask.delete(f"/{REPO}/a/").status == 204
    assert ask.tree() == {"/a-b": 3, "/a0": 2, "/copy": 5}
    assert ask.delete(f"/{REPO}/a").message == (
        f"Could not locate artifact '{REPO}:a' (Nothing to delete)."
    )
    unknown = ask.delete("/nope/a")
    assert (unknown.status, unknown.body) == (404, b"")
    assert len(contents(tmp_path)) == 3
    assert ask.delete(f"/{REPO}/").status == 204
    assert ask.tree() == {}
    assert contents(tmp_path) == []
    assert ask.put(f"/{REPO}/again", b"x").status == 201


class Upload:
    """A PUT by hand, which can stop anywhere."""

    def __init__(self, ask: Requests, path: str, size: int) -> None:
        parts = urlsplit(ask.server.url)
        self.socket = socket.create_connection((parts.hostname, parts.port), timeout=30)
        head = (
            f"PUT /artifactory/{REPO}/{path} HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\n"
            f"Authorization: Bearer {ask.server.token}\r\nExpect: 100-continue\r\n\r\n"
        )
        self.socket.sendall(head.encode())
        # The server asks for the body when it is ready to write it down.
        assert self.socket.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"

    def end(self, data: bytes) -> bytes:
        self.socket.sendall(data)
        answer = self.socket.recv(100)
        self.socket.close()
        return answer


def test_an_upload_is_visible_whole_or_not_at_all(ask: Requests, tmp_path: Path) -> None:
    upload = Upload(ask, "a", 8 * MiB)
    upload.socket.sendall(b"1" * 3 * MiB)
    assert ask.get(f"/{REPO}/a").status == 404
    ask.put(f"/{REPO}/a", b"another")
    assert ask.get(f"/{REPO}/a").body == b"another"
    assert upload.end(b"1" * 5 * MiB).startswith(b"HTTP/1.1 201 ")
    assert ask.get(f"/{REPO}/a").body == b"1" * 8 * MiB
    assert len(contents(tmp_path)) == 1


def test_an_upload_that_breaks_off_leaves_nothing(ask: Requests, tmp_path: Path) -> None:
    upload = Upload(ask, "a", 8 * MiB)
    upload.socket.sendall(b"1" * 3 * MiB)
    upload.socket.close()
    ask.server.stop()  # waits for what is in flight
    assert contents(tmp_path) == []
    ask.server.start()
    assert ask.get(f"/{REPO}/a").status == 404


def test_a_refused_upload_is_not_asked_for_its_body(ask: Requests) -> None:
    parts = urlsplit(ask.server.url)
    with socket.create_connection((parts.hostname, parts.port), timeout=30) as connection:
        connection.sendall(
            b"PUT /artifactory/nope/a HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n"
            + f"Authorization: Bearer {ask.server.token}\r\n".encode()
            + b"Expect: 100-continue\r\n\r\n"
        )
        answer = b""
        while data := connection.recv(1000):
            answer += data
    assert answer.startswith(b"HTTP/1.1 404 ")


def test_many_puts_to_one_path(ask: Requests, tmp_path: Path) -> None:
    bodies = [bytes([number]) * (300_000 + number) for number in range(8)]
    barrier = threading.Barrier(len(bodies))
    statuses: list[int] = []

    def put(body: bytes) -> None:
        barrier.wait(30)
        statuses.append(ask.put(f"/{REPO}/d/a;k={body[0]}", body).status)

    threads = [threading.Thread(target=put, args=(body,)) for body in bodies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert statuses == [201] * len(bodies)
    winner = ask.get(f"/{REPO}/d/a").body
    assert winner in bodies
    assert ask.properties("d/a") == {"k": [str(winner[0])]}
    assert contents(tmp_path) == [hashlib.sha256(winner).hexdigest()]


def test_a_date_that_is_none_is_ignored(ask: Requests) -> None:
    ask("PUT", f"/{REPO}/a", b"x", {"Last-Modified": "yesterday"})
    shown = ask.head(f"/{REPO}/a").headers["Last-Modified"]
    assert parsedate_to_datetime(shown).year >= 2024


def test_a_date_of_a_checksum_deploy(ask: Requests) -> None:
    old = "Tue, 01 Jan 2019 00:00:00 GMT"
    ask.put(f"/{REPO}/a", b"x", Last_Modified=old)
    known = {"X-Checksum-Deploy": "true", "X-Checksum-Sha256": sums(b"x")["sha256"]}
    newer = "Wed, 01 Jan 2020 00:00:00 GMT"
    ask("PUT", f"/{REPO}/b", headers={**known, "Last-Modified": newer})
    assert ask.head(f"/{REPO}/a").headers["Last-Modified"] == old
    assert ask.head(f"/{REPO}/b").headers["Last-Modified"] == newer
    ask("PUT", f"/{REPO}/a", headers={**known, "Last-Modified": newer})
    assert ask.get(f"/api/storage/{REPO}/a").json()["lastModified"] == "2020-01-01T00:00:00.000Z"
