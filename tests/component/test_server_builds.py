"""``api/build`` (artifactory-rest 11)."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from jfs.server import EmbeddedServer
from tests.component.server_requests import Reply, Requests

MEDIA_TYPE = "application/vnd.org.jfrog.artifactory+json"
STARTED = "2024-02-24T21:20:59.999+0400"
NAMES = ["train", "train on gpu", "team/train", "ü:1", "...", "a%2Fb;c", " edge "]


def info(name: str, number: str, started: str = STARTED, **more: object) -> dict[str, object]:
    return {"version": "1.0.1", "name": name, "number": number, "started": started, **more}


def publish(ask: Requests, document: Mapping[str, object], query: str = "") -> Reply:
    body = json.dumps(document).encode()
    return ask.put(f"/api/build{query}", body, Content_Type=MEDIA_TYPE)


def encoded(name: str) -> str:
    return "".join(f"%{byte:02X}" for byte in name.encode())


@pytest.mark.parametrize("name", NAMES)
def test_a_build_is_published_and_read(ask: Requests, name: str) -> None:
    document = info(name, "7/é", modules=[{"id": "m", "artifacts": [{"name": "a", "sha1": "0"}]}])
    reply = publish(ask, document, "?project=x")
    assert (reply.status, reply.body) == (204, b"")
    assert ask.get(f"/api/build/{encoded(name)}/{encoded('7/é')}").json()["buildInfo"] == document
    runs = ask.get(f"/api/build/{encoded(name)}?project=x").json()
    assert runs["buildsNumbers"] == [
        {"uri": "/7%2F%C3%A9", "started": "2024-02-24T17:20:59.999+0000"}
    ]
    assert runs["uri"].startswith(f"{ask.server.url}/api/build/")
    (row,) = ask.get("/api/build").json()["builds"]
    assert row["lastStarted"] == "2024-02-24T17:20:59.999+0000"
    assert ask.get(f"/api/build{row['uri']}").json() == runs


def test_runs_of_a_build(ask: Requests) -> None:
    publish(ask, info("b", "1", "2024-01-01T00:00:00.000Z"))
    publish(ask, info("b", "2", "2024-01-02T00:00:00.000Z"))
    publish(ask, info("b", "1", "2024-01-03T00:00:00.000Z", retried=True))
    publish(ask, info("other", "1"))
    rows = ask.get("/api/build/b").json()["buildsNumbers"]
    assert [(row["uri"], row["started"][:10]) for row in rows] == [
        ("/1", "2024-01-03"),
        ("/2", "2024-01-02"),
        ("/1", "2024-01-01"),
    ]
    assert ask.get("/api/build/b/1").json()["buildInfo"]["retried"] is True
    assert [row["uri"] for row in ask.get("/api/build").json()["builds"]] == ["/b", "/other"]
    # The same run once more replaces it.
    publish(ask, info("b", "2", "2024-01-02T00:00:00.000Z", again=1))
    assert ask.get("/api/build/b/2").json()["buildInfo"]["again"] == 1
    assert len(ask.get("/api/build/b").json()["buildsNumbers"]) == 3


def test_what_is_not_there(ask: Requests) -> None:
    assert ask.get("/api/build").message == "No builds were found"
    assert ask.get("/api/build/b").message == "No build was found for build name: b"
    publish(ask, info("b", "1"))
    assert ask.get("/api/build/b/2").message == (
        "No build was found for build name: b, build number: 2"
    )
    assert ask.get("/api/build/b/1/2").status == 404
    assert ask.get("/api/build/nope").status == 404


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({}, "lacks, as text: name, number, started"),
        ({"name": "b", "number": "1"}, "lacks, as text: started"),
        ({"name": "", "number": 1, "started": STARTED}, "lacks, as text: name, number"),
        (info("b", "1", "yesterday"), "'started' is not like"),
        ([], "not a JSON object"),
    ],
)
def test_builds_that_make_no_sense(ask: Requests, document: object, message: str) -> None:
    reply = ask.put("/api/build", json.dumps(document).encode())
    assert reply.status == 400
    assert message in reply.message
    assert ask.put("/api/build", b"{").status == 400
    assert publish(ask, info("b" * 300, "1")).status == 400
    assert ask.get("/api/build").status == 404


def test_builds_are_artifacts_and_survive(tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path / "s") as server:
        ask = Requests(server)
        publish(ask, info("b c", "1"))
        found = ask.post("/api/search/aql", b'items.find({"@build.name":"b c"})').json()["results"]
        assert [(row["repo"], row["path"]) for row in found] == [
            ("artifactory-build-info", "b%20c")
        ]
        assert ask.get("/api/repositories/artifactory-build-info").json()["rclass"] == "local"
    with EmbeddedServer(tmp_path / "s") as server:
        assert Requests(server).get("/api/build/b%20c/1").json()["buildInfo"] == info("b c", "1")


def test_a_deploy_into_the_repository_is_a_build(ask: Requests) -> None:
    body = json.dumps(info("b", "1")).encode()
    assert ask.put("/artifactory-build-info/any/where.json", body).status == 201
    assert ask.get("/api/build/b/1").json()["buildInfo"] == info("b", "1")


def test_deletes(ask: Requests) -> None:
    for number in ("1", "2", "3", "4"):
        publish(ask, info("b x", number))
    assert ask.delete("/api/build/b%20x").status == 400
    assert ask.delete("/api/build/b%20x/1").status == 400
    assert ask.delete("/api/build/b%20x?buildNumbers=1&artifacts=1").status == 400
    assert ask.delete("/api/build/b%20x?buildNumbers=9").status == 404
    reply = ask.delete("/api/build/b%20x?buildNumbers=1,3,9&artifacts=0&project=p")
    assert reply.status == 200
    assert b"deleted successfully: b x#1, b x#3" in reply.body
    rows = ask.get("/api/build/b%20x").json()["buildsNumbers"]
    assert sorted(row["uri"] for row in rows) == ["/2", "/4"]
    assert ask.delete("/api/build/b%20x?deleteAll=1").status == 200
    assert ask.get("/api/build").status == 404
    assert ask.get("/api/storage/artifactory-build-info").json()["children"] == []


def test_rights(tmp_path: Path) -> None:
    users = {"reader": "r", "writer": "rwn", "owner": "rwnd", "other": "rwnd@ml-*"}
    with EmbeddedServer(tmp_path / "s", users=users) as server:
        by = {name: Requests(server, name) for name in users}
        for name in ("reader", "other"):
            assert publish(by[name], info("b", "1")).status in (403, 404)
        assert publish(by["writer"], info("b", "1")).status == 204
        assert publish(by["writer"], info("b", "1", more=1)).status == 403
        assert publish(by["owner"], info("b", "1", more=1)).status == 204
        assert by["reader"].get("/api/build/b/1").status == 200
        for path in ("", "/b", "/b/1"):
            assert by["other"].get(f"/api/build{path}").status == 403
        assert by["writer"].delete("/api/build/b?deleteAll=1").status == 403
        assert by["owner"].delete("/api/build/b?deleteAll=1").status == 200
