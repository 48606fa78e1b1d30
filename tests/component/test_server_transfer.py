"""Copy and move (artifactory-rest 8)."""

from pathlib import Path

import pytest

from jfs.server import EmbeddedServer
from tests.component.server_requests import REPO, Requests


@pytest.fixture
def ask(server: EmbeddedServer) -> Requests:
    server.deploy(REPO, "a/b/m.onnx", b"weights", {"env": ["prod", "dev"]})
    server.deploy(REPO, "a/c.json", b"{}")
    return Requests(server)


def transfer(ask: Requests, action: str, source: str, to: str, query: str = "") -> tuple[int, str]:
    reply = ask.post(f"/api/{action}/{REPO}/{source}?to={to}{query}")
    (message,) = reply.json()["messages"]
    assert message["level"] == ("INFO" if reply.status == 200 else "ERROR")
    return reply.status, message["message"]


def test_copies(ask: Requests) -> None:
    status, text = transfer(ask, "copy", "a", f"/{REPO}/x/y")
    assert status == 200
    assert text == (
        f"copying {REPO}:a to {REPO}:x/y completed successfully, "
        "2 artifacts and 2 folders were copied"
    )
    assert ask.tree("/x/y") == {"/b": -1, "/b/m.onnx": 7, "/c.json": 2}
    assert ask.properties("x/y/b/m.onnx") == {"env": ["prod", "dev"]}
    old, new = (ask.get(f"/api/storage/{REPO}/{each}/c.json").json() for each in ("a", "x/y"))
    assert (old["created"], old["lastModified"]) == (new["created"], new["lastModified"])
    # Into a folder that exists: inside it.
    transfer(ask, "copy", "a/c.json", f"{REPO}/x")
    assert ask.get(f"/{REPO}/x/c.json").body == b"{}"
    # Onto a file: overwritten.
    transfer(ask, "copy", "a/b/m.onnx", f"{REPO}/x/c.json")
    assert ask.get(f"/{REPO}/x/c.json").body == b"weights"
    assert transfer(ask, "copy", "a", f"{REPO}/dry", "&dry=1")[1].startswith("Dry run for copying")
    assert ask.get(f"/api/storage/{REPO}/dry").status == 404


def test_moves(ask: Requests) -> None:
    transfer(ask, "move", "a", f"{REPO}/z")
    assert ask.tree() == {"/z": -1, "/z/b": -1, "/z/b/m.onnx": 7, "/z/c.json": 2}
    assert ask.properties("z/b/m.onnx") == {"env": ["prod", "dev"]}
    ask.put(f"/{REPO}/t/z/b/old", b"x")
    transfer(ask, "move", "z", f"{REPO}/t")  # nests, and merges with what is there
    assert ask.tree() == {
        "/t": -1,
        "/t/z": -1,
        "/t/z/b": -1,
        "/t/z/b/m.onnx": 7,
        "/t/z/b/old": 1,
        "/t/z/c.json": 2,
    }
    ask.server.create_repository("other")
    transfer(ask, "move", "t/z/c.json", "other/ü.json".replace("ü", "%C3%BC"))
    assert ask.get("/other/%C3%BC.json").body == b"{}"
    assert ask.get(f"/{REPO}/t/z/c.json").status == 404


@pytest.mark.parametrize(
    ("source", "to", "status"),
    [
        ("nope", f"{REPO}/x", 404),
        ("a", "nope/x", 404),
        ("a", f"{REPO}/a", 400),
        ("a", f"{REPO}/a/b", 400),
        ("a", f"{REPO}/file", 400),
        ("a", f"{REPO}/file/x", 400),
        ("", f"{REPO}/x", 400),
    ],
)
def test_transfers_that_are_refused(ask: Requests, source: str, to: str, status: int) -> None:
    ask.put(f"/{REPO}/file", b"x")
    before = ask.tree()
    for action in ("copy", "move"):
        assert transfer(ask, action, source, to)[0] == status
    assert ask.tree() == before
    assert ask.post(f"/api/copy/{REPO}/a").status == 400


def test_an_overwrite_leaves_nothing_of_what_was_there(ask: Requests) -> None:
    for action, name in (("copy", "m.onnx"), ("move", "m.onnx")):
        ask.put(f"/{REPO}/x;old=1;env=old", b"other")
        ask.get(f"/{REPO}/x")
        assert transfer(ask, action, f"a/b/{name}", f"{REPO}/x")[0] == 200
        assert ask.get(f"/{REPO}/x").body == b"weights"
        assert ask.properties("x") == {"env": ["prod", "dev"]}
    ask.put(f"/{REPO}/plain", b"plain")
    transfer(ask, "move", "plain", f"{REPO}/x")
    assert ask.properties("x") == {}


@pytest.mark.parametrize("action", ["copy", "move"])
def test_times_are_carried_over_and_downloads_are_not(ask: Requests, action: str) -> None:
    old = {"Last-Modified": "Tue, 01 Jan 2019 00:00:00 GMT", "X-Artifactory-Created-By": "jane"}
    ask("PUT", f"/{REPO}/s/f", b"f", old)
    before = ask.get(f"/api/storage/{REPO}/s/f").json()
    ask.get(f"/{REPO}/s/f")
    transfer(ask, action, "s/f", f"{REPO}/t")
    after = ask.get(f"/api/storage/{REPO}/t").json()
    for key in ("created", "createdBy", "lastModified", "modifiedBy", "checksums"):
        assert after[key] == before[key]
    assert ask.get(f"/api/storage/{REPO}/t?stats").json()["downloadCount"] == 0


def test_what_comes_later_does_not_inherit_downloads(ask: Requests) -> None:
    ask.put(f"/{REPO}/last", b"1")
    ask.get(f"/{REPO}/last")
    ask.delete(f"/{REPO}/last")
    ask.put(f"/{REPO}/new", b"2")
    assert ask.get(f"/api/storage/{REPO}/new?stats").json()["downloadCount"] == 0


def test_a_move_removes_the_folders_that_it_empties(ask: Requests) -> None:
    transfer(ask, "copy", "a/b/m.onnx", f"{REPO}/kept/deep/m.onnx")
    transfer(ask, "move", "a/b/m.onnx", f"{REPO}/m.onnx")
    assert ask.get(f"/api/storage/{REPO}/a/b").status == 404
    assert ask.get(f"/api/storage/{REPO}/a").status == 200  # holds another file
    assert transfer(ask, "move", "a/c.json", f"{REPO}/c.json", "&dry=1")[0] == 200
    assert ask.get(f"/api/storage/{REPO}/a").status == 200
    transfer(ask, "move", "a/c.json", f"{REPO}/c.json")
    transfer(ask, "move", "kept/deep", f"{REPO}/deep")
    assert ask.tree() == {"/c.json": 2, "/deep": -1, "/deep/m.onnx": 7, "/m.onnx": 7}
    ask.server.create_repository("other")
    for name in ("c.json", "m.onnx", "deep"):
        transfer(ask, "move", name, f"other/{name}")
    assert ask.tree() == {}
    assert ask.get(f"/api/storage/{REPO}").status == 200  # the root stays


def test_a_folder_that_exists_gets_a_folder_inside(ask: Requests) -> None:
    ask.put(f"/{REPO}/there/")
    transfer(ask, "move", "a", f"{REPO}/there/")
    assert ask.tree() == {
        "/there": -1,
        "/there/a": -1,
        "/there/a/b": -1,
        "/there/a/b/m.onnx": 7,
        "/there/a/c.json": 2,
    }
    ask.server.create_repository("other")
    transfer(ask, "copy", "there/a", "other")  # the root of a repository is a folder
    assert ask.get("/other/a/c.json").body == b"{}"


def test_options_of_the_query(ask: Requests) -> None:
    for number, query in enumerate(("&suppressLayouts=0&failFast=1", "&suppressLayouts=1&dry=0")):
        for slash in ("", "/"):
            name = f"c{number}{len(slash)}"
            assert transfer(ask, "copy", "a/c.json", f"{slash}{REPO}/{name}", query)[0] == 200
            assert ask.get(f"/{REPO}/{name}").body == b"{}"


def test_refusals_of_places(ask: Requests, tmp_path: Path) -> None:
    ask.server.create_repository("far", upstream="http://127.0.0.1:9/x")
    ask.put(f"/{REPO}/a/file", b"x")
    before = ask.tree()
    for action in ("copy", "move"):
        assert transfer(ask, action, "a", "far/x")[0] == 400
        assert transfer(ask, action, "a", "far-cache/x")[0] == 400
        assert transfer(ask, action, "a/file", f"{REPO}/a")[0] == 400  # inside: onto itself
        assert transfer(ask, action, "a/file", f"{REPO}/a/file")[0] == 400
        # A folder of the source stands where the target, merged, has a file.
    ask.put(f"/{REPO}/t/a/b", b"a file")
    assert transfer(ask, "move", "a", f"{REPO}/t")[0] == 400
    assert ask.get(f"/{REPO}/a/c.json").status == 200  # all or nothing
    assert {key: size for key, size in ask.tree().items() if not key.startswith("/t")} == before


def test_the_rules_of_the_target_repository(ask: Requests) -> None:
    ask.put("/api/repositories/picky", b'{"rclass":"local","includesPattern":"**/*.onnx"}')
    assert transfer(ask, "copy", "a/b/m.onnx", "picky/m.onnx")[0] == 200
    assert transfer(ask, "copy", "a", "picky/a")[0] == 403
    assert ask.get("/api/storage/picky/a").status == 404
    ask.put("/api/repositories/black", b'{"rclass":"local","blackedOut":true}')
    assert transfer(ask, "copy", "a", "black/a")[0] == 404
