"""Users beside the administrator, and what their rights let them do (artifactory-rest 1, 4-8)."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from jfs.errors import ConfigError
from jfs.server import EmbeddedServer
from tests.component.server_requests import REPO, Reply, Requests

OTHER = "secret-local"
INFO = f"/api/storage/{REPO}/d/f"
USERS = {
    "reader": "r@ml-*",
    "writer": "rw@ml-*",
    "tagger": "rwn@ml-*",
    "owner": ["rwnd@ml-*", "r@secret-*"],
    "boss": "m@ml-*",
    "nobody": "rwnd@elsewhere",
}


@pytest.fixture
def served(tmp_path: Path) -> Iterator[EmbeddedServer]:
    with EmbeddedServer(tmp_path / "server", users=USERS) as server:
        server.create_repository(REPO)
        server.create_repository(OTHER)
        server.deploy(REPO, "d/f", b"old", {"k": ["v"]})
        server.deploy(OTHER, "s", b"secret")
        yield server


def sha256(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def level(reply: Reply) -> tuple[int, str, str]:
    (message,) = reply.json()["messages"]
    return reply.status, message["level"], message["message"]


def test_tokens_are_files_of_their_owner(served: EmbeddedServer, tmp_path: Path) -> None:
    for name in ("admin", *USERS):
        path = tmp_path / "server" / f"{name}.token"
        assert path.stat().st_mode & 0o777 == 0o600
        assert path.read_text().strip() == served.token_of(name)
    assert len({served.token_of(name) for name in USERS}) == len(USERS)
    assert served.token == served.token_of("admin")
    with pytest.raises(KeyError):
        served.token_of("jack")
    token = served.token_of("reader")
    served.stop()
    with EmbeddedServer(tmp_path / "server", users={"reader": "r"}) as again:
        assert again.token_of("reader") == token
        dismissed = Requests(again)
        text = (tmp_path / "server" / "owner.token").read_text().strip()
        dismissed.authorization = {"Authorization": f"Bearer {text}"}
        assert dismissed.get(f"/{REPO}/d/f").status == 401


def test_reading(served: EmbeddedServer) -> None:
    reader = Requests(served, "reader")
    assert reader.get(f"/{REPO}/d/f").body == b"old"
    assert reader.get(INFO).status == 200
    for path in (f"/{OTHER}/s", f"/{OTHER}/nope", f"/list/{OTHER}/s"):
        item = path.rpartition("/")[2]
        for _ in range(2):
            refused = reader.get(path)
            assert refused.status == 403
            assert refused.message == (
                f"Download request for repo:path '{OTHER}:{item}' is forbidden for user: 'reader'."
            )
        Requests(served).get(path)  # what others have read is not given either
    for query in ("", "?list", "?properties", "?stats", "?lastModified"):
        refused = reader.get(f"/api/storage/{OTHER}/s{query}")
        assert refused.status == 403
        assert refused.message == f"Request for '{OTHER}:s' is forbidden for user: 'reader'."
    assert reader.head(f"/{OTHER}/s").status == 403
    assert reader.get("/nope/x").status == 404
    assert reader.get("/api/storage/nope").status == 404


def test_a_remote_repository_is_not_made_to_fetch(served: EmbeddedServer) -> None:
    served.create_repository("ml-far", upstream="http://127.0.0.1:9/x")
    nobody = Requests(served, "nobody")
    for key in ("ml-far", "ml-far-cache"):
        assert nobody.get(f"/{key}/x").status == 403
        assert nobody.get(f"/api/storage/{key}").status == 403
        assert Requests(served, "reader").get(f"/api/storage/{key}").status == 200


def test_deploys(served: EmbeddedServer) -> None:
    reader, writer = Requests(served, "reader"), Requests(served, "writer")
    for path in ("new", "new/", "d/f.sha1"):
        refused = reader.put(f"/{REPO}/{path}", b"x")
        assert refused.status == 403
        name = path.rstrip("/")
        assert refused.message == (
            f"The user: 'reader' is not permitted to deploy '{name}' into '{REPO}:{name}'."
        )
    assert reader.put("/nope/x", b"x").status == 404
    assert writer.put(f"/{OTHER}/x", b"x").status == 403
    made = writer.put(f"/{REPO}/new;k=v", b"x")
    assert (made.status, made.json()["createdBy"]) == (201, "writer")
    assert Requests(served).properties("new") == {}  # no right to annotate: dropped
    assert writer.put(f"/{REPO}/folder/;k=v").status == 201
    assert Requests(served).properties("folder") == {}
    Requests(served, "tagger").put(f"/{REPO}/tagged;k=v", b"x")
    assert Requests(served).properties("tagged") == {"k": ["v"]}
    stated = {"X-Artifactory-Created-By": "jane"}  # for administrators only
    assert writer("PUT", f"/{REPO}/mine", b"x", stated).json()["createdBy"] == "writer"


def test_overwrites(served: EmbeddedServer) -> None:
    writer, owner = Requests(served, "writer"), Requests(served, "owner")
    message = (
        f"Not enough permissions to delete/overwrite artifact '{REPO}:d/f' "
        "(user: 'writer' needs DELETE permission)."
    )
    for body in (b"new", b"old"):  # without checksums even the same bytes are an overwrite
        refused = writer.put(f"/{REPO}/d/f", body)
        assert (refused.status, refused.message) == (403, message)
    refused = writer.put(f"/{REPO}/d/f", b"new", X_Checksum_Sha256=sha256(b"new"))
    assert (refused.status, refused.message) == (403, message)
    assert writer.put(f"/{REPO}/d/f", b"old", X_Checksum_Sha256=sha256(b"old")).status == 201
    sha1 = hashlib.sha1(b"old").hexdigest()
    assert writer.put(f"/{REPO}/d/f", b"old", X_Checksum_Sha1=sha1).status == 201
    assert writer.put(f"/{REPO}/d/f", b"lie", X_Checksum_Sha1=sha1).status == 409
    writer.put(f"/{REPO}/other", b"other")
    known = {"X-Checksum-Deploy": "true", "X-Checksum-Sha256": sha256(b"other")}
    assert writer("PUT", f"/{REPO}/d/f", headers=known).message == message
    assert writer.get(f"/{REPO}/d/f").body == b"old"
    assert owner.properties("d/f") == {"k": ["v"]}
    assert owner("PUT", f"/{REPO}/d/f", headers=known).status == 201
    assert owner.put(f"/{REPO}/d/f", b"new").status == 201
    assert owner.get(f"/{REPO}/d/f").body == b"new"


def test_a_checksum_gives_nobody_what_they_cannot_read(served: EmbeddedServer) -> None:
    known = {"X-Checksum-Deploy": "true", "X-Checksum-Sha256": sha256(b"secret")}
    refused = Requests(served, "writer")("PUT", f"/{REPO}/mine", headers=known)
    assert refused.status == 404
    assert refused.message == (
        f"Checksum deploy failed. No existing file with sha256: {sha256(b'secret')}"
    )
    assert Requests(served, "owner")("PUT", f"/{REPO}/mine", headers=known).status == 201


def test_properties(served: EmbeddedServer) -> None:
    writer, tagger = Requests(served, "writer"), Requests(served, "tagger")
    props = {"props": {"k": "w"}}
    for refused in (
        writer.put(f"{INFO}?properties=k=w"),
        writer.delete(f"{INFO}?properties=k"),
        writer.patch(f"/api/metadata/{REPO}/d/f", props),
        writer.delete(f"/api/metadata/{REPO}/d/f"),
    ):
        assert refused.status == 403
        assert "(user: 'writer' needs ANNOTATE permission)" in refused.message
    assert writer.properties("d/f") == {"k": ["v"]}
    assert tagger.patch(f"/api/metadata/{REPO}/d/f", props).status == 204
    assert tagger.put(f"{INFO}?properties=l=1").status == 204
    assert tagger.properties("d/f") == {"k": ["w"], "l": ["1"]}
    assert tagger.patch("/api/metadata/nope/x", props).status == 404


def test_deletes(served: EmbeddedServer) -> None:
    tagger, owner = Requests(served, "tagger"), Requests(served, "owner")
    refused = tagger.delete(f"/{REPO}/d")
    assert refused.status == 403
    assert refused.message == (
        "Not enough permissions to delete/overwrite all artifacts under 'd' "
        "(user: 'tagger' needs DELETE permission)."
    )
    assert owner.delete(f"/{REPO}/d/f").status == 204
    assert owner.delete(f"/{OTHER}/s").status == 403
    assert owner.delete(f"/{REPO}/").status == 403  # the root is for whoever manages
    assert Requests(served, "boss").delete(f"/{REPO}/").status == 204


@pytest.mark.parametrize("action", ["copy", "move"])
def test_transfers(served: EmbeddedServer, action: str) -> None:
    reader, tagger = Requests(served, "reader"), Requests(served, "tagger")
    owner = Requests(served, "owner")
    served.deploy(REPO, "there", b"there")
    before = owner.tree()
    for who, source, to, status, part in (
        (tagger, f"{OTHER}/s", f"{REPO}/s", 403, f"permissions to read '{OTHER}:s'"),
        (reader, f"{REPO}/d/f", f"{REPO}/g", 403, "not permitted to deploy 'g' into"),
        (owner, f"{REPO}/d/f", f"{OTHER}/g", 403, "not permitted to deploy 'g' into"),
    ):
        for dry in ("", "&dry=1"):
            found = level(who.post(f"/api/{action}/{source}?to={to}{dry}"))
            assert found[:2] == (status, "ERROR")
            assert part in found[2]
    onto = level(tagger.post(f"/api/{action}/{REPO}/d/f?to={REPO}/there"))
    without = level(tagger.post(f"/api/{action}/{REPO}/d/f?to={REPO}/g"))
    if action == "copy":
        assert onto[:2] == (401, "ERROR")
        assert f"permissions to override '{REPO}:there'. Needs delete permissions." in onto[2]
        assert without[:2] == (200, "INFO")
    else:
        for found in (onto, without):
            assert found[:2] == (403, "ERROR")
            assert f"permissions to move '{REPO}:d/f'. Needs delete permissions." in found[2]
        assert owner.tree() == before
    assert level(owner.post(f"/api/{action}/{REPO}/d/f?to={REPO}/there"))[0] == 200
    # What a user may read but not delete can be copied, and that is all.
    status = level(owner.post(f"/api/{action}/{OTHER}/s?to={REPO}/s"))[0]
    assert status == (200 if action == "copy" else 403)


def test_searches_show_what_can_be_read(served: EmbeddedServer) -> None:
    tagger, owner = Requests(served, "tagger"), Requests(served, "owner")
    query = b'items.find({"name":{"$match":"*"}})'
    repos = [row["repo"] for row in tagger.post("/api/search/aql", query).json()["results"]]
    assert repos == [REPO]
    both = owner.post("/api/search/aql", query + b'.include("repo","path","name","property")')
    assert {row["repo"]: "properties" in row for row in both.json()["results"]} == {
        REPO: True,
        OTHER: False,
    }
    refused = tagger.post("/api/search/aql", query + b'.include("name")')
    assert refused.status == 400
    assert "demands the following fields: repo, path and name" in refused.message
    assert Requests(served).post("/api/search/aql", query + b'.include("name")').status == 200
    found = tagger.get(f"/api/search/checksum?sha256={sha256(b'secret')}").json()
    assert found == {"results": []}


def test_repositories(served: EmbeddedServer) -> None:
    reader, boss = Requests(served, "reader"), Requests(served, "boss")
    assert [row["key"] for row in reader.get("/api/repositories").json()] == [REPO]
    assert Requests(served, "nobody").get("/api/repositories").json() == []
    assert len(Requests(served, "owner").get("/api/repositories").json()) == 2
    assert reader.get(f"/api/repositories/{REPO}").status == 200
    assert reader.get(f"/api/repositories/{OTHER}").status == 403
    for who, key in ((reader, "ml-x"), (Requests(served, "owner"), "ml-x"), (boss, "x")):
        assert who.put(f"/api/repositories/{key}", b'{"rclass":"local"}').status == 403
    assert boss.put("/api/repositories/ml-x", b'{"rclass":"local"}').status == 200
    assert boss.post("/api/repositories/ml-x", b'{"notes":"n"}').status == 200
    assert boss.post(f"/api/repositories/{OTHER}", b'{"notes":"n"}').status == 403
    assert boss.put("/ml-x/a;k=v", b"x").status == 201  # to manage is to do everything else
    assert boss.delete("/api/repositories/ml-x").status == 200
    assert reader.delete(f"/api/repositories/{REPO}").status == 403
    assert boss.get("/api/storageinfo").status == 403  # manages some, not all


def test_who_manages_everything_is_an_administrator(tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path / "s", users={"root": "m"}) as server:
        assert Requests(server, "root").get("/api/storageinfo").status == 200
        assert Requests(server, "root").put("/api/repositories/x", b"").status == 200


@pytest.mark.parametrize(
    ("users", "message"),
    [
        ({"a b": "r"}, "--user 'a b': a name is made of letters"),
        ({"../x": "r"}, "a name is made of letters"),
        ({"admin": "r"}, "--user admin: is a user already"),
        ({"anonymous": "r"}, "is a user already"),
        ({"ann": "rx"}, "--user ann=rx: 'x' is no right"),
        ({"ann": ""}, "--user ann=: gives no right"),
        ({"ann": ["r", "@x"]}, "--user ann=@x: gives no right"),
        ({"ann": "r@"}, "--user ann=r@: the glob after '@' is missing"),
    ],
)
def test_users_that_make_no_sense(
    tmp_path: Path, users: dict[str, str | list[str]], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        EmbeddedServer(tmp_path / "s", users=users)
    assert message in str(caught.value)


def test_anonymous_visitors_beside_users(tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path / "s", users={"ann": "r"}, anonymous=True) as server:
        server.create_repository(REPO)
        ask = Requests(server, "ann")
        assert ask.put(f"/{REPO}/a", b"x").status == 403
        ask.authorization = {}
        assert ask.put(f"/{REPO}/a", b"x").status == 201
        assert ask.put("/api/repositories/x").status == 403
        assert ask.delete(f"/{REPO}/").status == 403
        assert json.loads(ask.get("/api/repositories").body)[0]["key"] == REPO
