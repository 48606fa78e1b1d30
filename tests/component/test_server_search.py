"""``api/search``: AQL as the vendor's CLI and libraries write it (artifactory-rest 10 and 12.4)."""

import pytest

from jfs.server import EmbeddedServer
from tests.component.server_requests import REPO, Requests


@pytest.fixture
def ask(server: EmbeddedServer) -> Requests:
    server.create_repository("other-local")
    approved = {"env": ["production"], "approved-by": ["alice"]}
    server.deploy(REPO, "nlp/bert/1.0/model.bin", b"a" * 100, {"env": ["staging"]})
    server.deploy(REPO, "nlp/bert/2.0/model.bin", b"b" * 200, approved)
    server.deploy(REPO, "nlp/bert/2.0/notes [1].txt", b"n")
    server.deploy(REPO, "vision/yolo/1/yolo.pt", b"c" * 300, {"env": ["production", "staging"]})
    server.deploy(REPO, "top.bin", b"t")
    server.deploy("other-local", "nlp/bert/9.0/model.bin", b"z", {"env": ["production"]})
    return Requests(server)


def names(ask: Requests, query: str) -> list[str]:
    reply = ask.post("/api/search/aql", query.encode())
    assert reply.status == 200, reply.body
    document = reply.json()
    rows = document["results"]
    assert document["range"]["total"] == len(rows)
    return [f"{row['repo']}/{row['path']}/{row['name']}" for row in rows]


def places(ask: Requests, criteria: str) -> set[str]:
    found = names(ask, f"items.find({criteria})")
    return {name.removeprefix(f"{REPO}/") for name in found if name.startswith(REPO)}


V1, V2 = "nlp/bert/1.0/model.bin", "nlp/bert/2.0/model.bin"
NOTES, YOLO, TOP = "nlp/bert/2.0/notes [1].txt", "vision/yolo/1/yolo.pt", "./top.bin"
ALL = {V1, V2, NOTES, YOLO, TOP}


@pytest.mark.parametrize(
    ("criteria", "expected"),
    [
        ("", ALL),
        ("{}", ALL),
        ('{"repo":"ml-models-local"}', ALL),
        ('{"repo":{"$eq":"nope"}}', set()),
        ('{"path":"nlp/bert/2.0"}', {V2, NOTES}),
        ('{"path":{"$match":"nlp/*"}}', {V1, V2, NOTES}),
        ('{"path":{"$nmatch":"nlp/*"}}', {YOLO, TOP}),
        ('{"path":"."}', {TOP}),
        ('{"path":{"$ne":"."}}', ALL - {TOP}),
        ('{"name":{"$match":"*[1]*"}}', {NOTES}),
        ('{"name":{"$match":"?odel.bin"}}', {V1, V2}),
        ('{"name":{"$matchic":"MODEL.*"}}', {V1, V2}),
        ('{"name":{"$eqic":"Yolo.PT"}}', {YOLO}),
        ('{"size":{"$gt":100}}', {V2, YOLO}),
        ('{"size":{"$gte":"100","$lt":300}}', {V1, V2}),
        ('{"size":1}', {NOTES, TOP}),
        ('{"@env":"production"}', {V2, YOLO}),
        ('{"@env":{"$match":"prod*"}}', {V2, YOLO}),
        ('{"@env":"*"}', {V1, V2, YOLO}),
        ('{"@env":{"$ne":"production"}}', {V1, NOTES, TOP}),
        ('{"@env":{"$nmatch":"prod*"}}', {V1, NOTES, TOP}),
        ('{"@env":null}', {NOTES, TOP}),
        ('{"@env":{"$ne":null}}', {V1, V2, YOLO}),
        ('{"@*":"alice"}', {V2}),
        ('{"@approved*":"alice"}', {V2}),
        ('{"$and":[{"@env":"production"},{"@approved-by":"alice"}]}', {V2}),
        ('{"$and":[{"@env":"production"},{"@env":"staging"}]}', {YOLO}),
        ('{"@env":"production","@approved-by":{"$ne":"alice"}}', {YOLO}),
        ('{"property.key":"approved-by"}', {V2}),
        ('{"$msp":[{"property.key":"env"},{"property.value":"alice"}]}', set()),
        ('{"property.key":"env","property.value":"alice"}', {V2}),
        ('{"$msp":[{"@env":{"$match":"p*"}},{"@env":{"$match":"*n"}}]}', {V2, YOLO}),
        ('{"$or":[{"name":"top.bin"},{"name":"yolo.pt"}]}', {YOLO, TOP}),
        # one key twice: both hold
        (
            '{"$or":[{"path":"nlp/bert/2.0"},{"path":"nlp/bert/1.0"}],'
            '"$or":[{"name":"model.bin"}],"@env":"staging"}',
            {V1},
        ),
        ('{"name":"top.bin"},{"size":1}', {TOP}),
        ('{"type":"folder","name":"bert"}', {"nlp/bert"}),
        ('{"type":"any","path":"nlp"}', {"nlp/bert"}),
        ('{"type":"any","path":".","name":{"$ne":"."}}', {"./nlp", "./vision", TOP}),
        ('{"depth":1}', {TOP}),
        ('{"created":{"$last":"1d"}}', ALL),
        ('{"created":{"$before":"1minutes"}}', set()),
        ('{"modified":{"$gt":"2020-01-01"}}', ALL),
        ('{"modified":{"$gt":"2999-01-01T00:00:00.000Z"}}', set()),
        ('{"created_by":"admin"}', ALL),
        ('{"stat.downloads":{"$gt":0}}', set()),
    ],
)
def test_criteria(ask: Requests, criteria: str, expected: set[str]) -> None:
    assert places(ask, criteria) == expected


def test_what_the_cli_sends(ask: Requests) -> None:
    """A search with properties, as jf rt search sends it (12.4)."""
    query = (
        'items.find({"$and":[{"@env":"production"}],"path":{"$ne":"."},'
        '"$or":[{"$and":[{"repo":"ml-models-local","path":{"$match":"nlp*"},'
        '"name":{"$match":"*.bin"}}]},'
        '{"$and":[{"repo":"ml-models-local","path":{"$match":"nlp/*"},"name":{"$match":"*"}}]}]'
        '}).include("name","repo","path","actual_md5","actual_sha1","sha256","size","type",'
        '"modified","created","property")'
    )
    reply = ask.post("/api/search/aql", query.encode())
    (row,) = reply.json()["results"]
    assert row["size"] == 200
    assert row["type"] == "file"
    assert len(row["actual_sha1"]) == 40
    assert row["properties"] == [
        {"key": "approved-by", "value": "alice"},
        {"key": "env", "value": "production"},
    ]
    assert reply.json()["range"] == {"start_pos": 0, "end_pos": 1, "total": 1}


def test_order_and_pages(ask: Requests) -> None:
    base = 'items.find({"repo":"ml-models-local"}).include("repo","path","name","size")'
    sorted_names = names(ask, base + '.sort({"$desc":["size"]})')
    assert [name.rpartition("/")[2] for name in sorted_names[:2]] == ["yolo.pt", "model.bin"]
    assert names(ask, base + '.sort({"$desc":["size"]}).offset(1).limit(1)') == sorted_names[1:2]
    assert names(ask, base + '.sort({"$desc":["size"]}).offset(1).transitive().limit(1)')
    reply = ask.post("/api/search/aql", (base + ".limit(2)").encode()).json()
    assert reply["range"] == {"start_pos": 0, "end_pos": 2, "total": 2, "limit": 2}


def test_what_rows_hold(ask: Requests) -> None:
    ask.get(f"/{REPO}/top.bin")

    def row(include: str) -> dict[str, object]:
        query = f'items.find({{"name":"top.bin"}}){include}'
        (found,) = ask.post("/api/search/aql", query.encode()).json()["results"]
        return dict(found)

    assert list(row("")) == [
        *("repo", "path", "name", "type", "size"),
        *("created", "created_by", "modified", "modified_by", "updated"),
    ]
    assert row('.include("name")') == {"name": "top.bin"}
    assert "properties" not in row('.include("name","property")')
    assert row('.include("name","stat")')["stats"][0]["downloads"] == 1  # type: ignore[index]
    assert "repo" in row('.include("stat")')
    assert row('.include("*")')["depth"] == 1


def test_folders_and_roots(ask: Requests) -> None:
    found = names(ask, 'items.find({"type":"folder","repo":"other-local"})')
    assert found == [
        *("other-local/./.", "other-local/./nlp"),
        *("other-local/nlp/bert", "other-local/nlp/bert/9.0"),
    ]


@pytest.mark.parametrize(
    "query",
    [
        "",
        "   ",
        "hello",
        "items",
        "items.find",
        "items.find(",
        'items.find({"a":"b"}',
        'items.find({"repo":})',
        'items.find({"repo":"a" "path":"b"})',
        'items.find({"nonsense":"a"})',
        'items.find({"repo":{"$near":"a"}})',
        'items.find({"size":{"$gt":"many"}})',
        'items.find({"created":{"$last":"soon"}})',
        'items.find().limit(1).include("name")',
        'items.find().include("nonsense")',
        'items.find().include("name").sort({"$asc":["size"]})',
        "items.find().limit(-1)",
        'items.find({"type":"symlink"})',
        "builds.find()",
        "items.find(" + '{"$and":[' * 200,
    ],
)
def test_bad_queries(ask: Requests, query: str) -> None:
    reply = ask.post("/api/search/aql", query.encode())
    assert reply.status == 400
    assert reply.message


def test_a_syntax_error_names_its_place(ask: Requests) -> None:
    reply = ask.post("/api/search/aql", b'items.find({"repo":"a" "path":"b"})')
    assert 'syntax error near the following sub-query: "path"' in reply.message


def test_the_query_may_stand_in_the_address(ask: Requests) -> None:
    reply = ask.post("/api/search/aql?query=items.find(%7B%22name%22:%22top.bin%22%7D)")
    assert len(reply.json()["results"]) == 1


def test_searches_of_old(ask: Requests) -> None:
    def found(address: str) -> list[str]:
        rows = ask.get(f"/api/search/{address}").json()["results"]
        return sorted(row["uri"].partition("/api/storage/")[2] for row in rows)

    assert found(f"artifact?name=YOLO&repos={REPO}") == [f"{REPO}/vision/yolo/1/yolo.pt"]
    assert found("prop?env=production&approved-by=alice") == [f"{REPO}/{V2}"]
    digest = ask.head(f"/{REPO}/top.bin").headers["X-Checksum-Sha256"]
    assert found(f"checksum?sha256={digest}") == [f"{REPO}/top.bin"]
    assert ask.get("/api/search/checksum").status == 400
    assert ask.get("/api/search/artifact").status == 400
    assert ask.get("/api/search/prop").status == 400
