"""Queries whose results the server trims: what is shown is whole, or it is an error."""

import json
from collections.abc import Sequence

import pytest
import trio

from jfs.artifactory import ArtifactoryClient
from jfs.errors import JfsError, ProtocolViolation
from jfs.model import Criteria, FileInfo, Match, RepoPath
from jfs.server import EmbeddedServer, Fault
from tests.component.composed import composed, find, names, server_settings
from tests.component.server_requests import Requests
from tests.component.test_client import client_of, settings_of
from tests.conftest import REPO

FOLDERS, FILES = 4, 5


@pytest.fixture
def models(server: EmbeddedServer) -> EmbeddedServer:
    for folder in range(FOLDERS):
        for file in range(FILES):
            several = [f"{folder}", "x,y", "ü"]
            properties = {"env": ["production"], "n": [f"{folder}.{file}"], "many": several}
            server.deploy(REPO, f"m/v{folder}/f{file}", b"x" * file, properties)
    server.deploy(REPO, "m/v9 (a)/Größe [1]", b"1", {"env": ["production"]})
    server.deploy(REPO, "at the root", b"1", {"env": ["production"]})
    server.deploy(REPO, "other", b"1", {"env": ["staging"]})
    return server


async def found(client: ArtifactoryClient, *, plain: bool = False) -> dict[str, Match]:
    scope = Criteria(RepoPath(REPO), (("env", "production"),), plain=plain)
    matches: Sequence[Match] = await client.search(scope)
    by_path = {match.info.path.path: match for match in matches}
    assert len(by_path) == len(matches)  # nothing twice
    return by_path


@pytest.mark.parametrize("limit", [1, 3, 22, 66])
async def test_results_are_whole_with_every_property(models: EmbeddedServer, limit: int) -> None:
    async with client_of(settings_of(models)) as client:
        whole = await found(client)
        assert len(whole) == FOLDERS * FILES + 2
        models.limit_queries(limit)
        assert await found(client) == whole
        plain = await found(client, plain=True)
        assert {path: match.info.path for path, match in plain.items()} == {
            path: match.info.path for path, match in whole.items()
        }


@pytest.mark.parametrize("limit", [1, 4])
async def test_everything_that_asks_shows_the_whole(models: EmbeddedServer, limit: int) -> None:
    models.limit_queries(limit)
    async with composed(models, REPO) as fs:
        shown = await names(fs, ".by/env=production/m")
        assert set(shown) == {"v0", "v1", "v2", "v3", "v9 (a)"}
        assert set(await names(fs, ".by/env=production/m/v2")) == {f"f{n}" for n in range(FILES)}
        newest = (await fs.lookup(await find(fs, "m"), "@env=production")).ino
        assert await fs.readlink(newest) == "v3"
        for name, ino in (await names(fs, "m/v1")).items():
            assert await fs.getxattr(ino, b"user.n") == f"1.{name[1:]}".encode()
            assert await fs.getxattr(ino, b"user.many") == "1,x\\,y,ü".encode()


async def test_a_whole_server_is_asked_repository_by_repository(models: EmbeddedServer) -> None:
    models.create_repository("a-second")
    models.deploy("a-second", "m/v0/f0", b"1", {"env": ["production"]})
    async with client_of(settings_of(models)) as client:
        criteria = Criteria(RepoPath(""), (("env", "production"),), kind="any")
        whole = {match.info.path for match in await client.search(criteria)}
        assert RepoPath("a-second", "m/v0/f0") in whole
        models.limit_queries(4)
        assert {match.info.path for match in await client.search(criteria)} == whole


async def test_what_changes_meanwhile_hides_and_doubles_nothing(models: EmbeddedServer) -> None:
    """Pages begin behind an item, not at a number: a removed one shifts no other."""
    models.limit_queries(6)
    async with client_of(server_settings(models)) as client:
        result: dict[str, Match] = {}
        hold = models.faults.add(Fault.hold("/api/search/aql", after=2, times=1))

        async def ask() -> None:
            result.update(await found(client, plain=True))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await trio.to_thread.run_sync(hold.wait_hit)
            models.delete(REPO, "m/v0/f0")
            models.delete(REPO, "m/v0/f1")
            models.deploy(REPO, "m/a/new", b"1", {"env": ["production"]})
            hold.release()
        assert {f"m/v{n}/f{m}" for n in range(1, FOLDERS) for m in range(FILES)} <= set(result)
        assert len(result) <= FOLDERS * FILES + 2 + 1


def answer(rows: int, **span: object) -> bytes:
    results = [
        {"repo": REPO, "path": "m/v0", "name": f"f{n}", "type": "file", "size": n}
        for n in range(rows)
    ]
    document = {"results": results, "range": {"start_pos": 0, "end_pos": rows, **span}}
    return json.dumps(document).encode()


@pytest.mark.parametrize(
    "span",
    [
        {"total": 3, "notification": "AQL query reached the search hard limit"},
        {"total": 7},
        {"total": "7"},
        {"total": 3, "limit": 3},
        {"total": 3, "end_pos": 5},
    ],
)
async def test_what_stays_trimmed_is_an_error(models: EmbeddedServer, span: object) -> None:
    assert isinstance(span, dict)
    models.faults.add(Fault.garbage("/api/search/aql", body=answer(3, **span)))
    async with client_of(settings_of(models)) as client:
        with pytest.raises(ProtocolViolation, match="trims"):
            await client.search(Criteria(RepoPath(REPO)))
        requests = models.stats.requests
        assert requests <= 4
    async with composed(models, REPO) as fs:
        for path in (".by/env=production/m", "m/@env=production"):
            with pytest.raises(JfsError) as caught:
                await names(fs, path)
            assert "trims" in str(caught.value)


async def test_rows_that_lack_within_a_page_are_missed(models: EmbeddedServer) -> None:
    """A page that is not the first rows in order: the total says that some lack at the end."""
    some, none = answer(3, total=7), answer(0, total=0)
    for body in (some, some, none, some, none):  # asked at once, then in pages, twice
        models.faults.add(Fault.garbage("/api/search/aql", body=body, times=1))
    async with client_of(settings_of(models)) as client:
        with pytest.raises(ProtocolViolation, match="trims"):
            await client.search(Criteria(RepoPath(REPO), plain=True))


async def test_nothing_but_a_notification_is_an_error(models: EmbeddedServer) -> None:
    nothing = answer(0, total=0, notification="trimmed")
    models.faults.add(Fault.garbage("/api/search/aql", body=nothing))
    async with client_of(settings_of(models)) as client:
        with pytest.raises(ProtocolViolation, match="trims"):
            await client.search(Criteria(RepoPath(REPO)))


async def test_pages_that_are_refused_are_an_error(models: EmbeddedServer) -> None:
    models.limit_queries(3)
    models.faults.add(Fault.status(400, "/api/search/aql", after=1))
    async with client_of(settings_of(models)) as client:
        with pytest.raises(ProtocolViolation, match=r"trims query results.*400"):
            await found(client)


@pytest.mark.parametrize("span", [{}, {"total": 3}, {"total": 3, "limit": 500_000}, None])
async def test_what_is_whole_is_asked_for_once(models: EmbeddedServer, span: object) -> None:
    body = answer(3, **span) if isinstance(span, dict) else answer(3).replace(b'"range"', b'"r"')
    models.faults.add(Fault.garbage("/api/search/aql", body=body))
    async with client_of(settings_of(models)) as client:
        await client.repositories()
        models.stats.reset()
        matches = await client.search(Criteria(RepoPath(REPO)))
        assert [each.info.size for each in matches if isinstance(each.info, FileInfo)] == [0, 1, 2]
        assert models.stats.requests == 1


async def test_a_total_may_count_properties(models: EmbeddedServer) -> None:
    """One row for each property: more than there are items, and the result is whole."""
    row = {"repo": REPO, "path": "m", "type": "file", "size": 1}
    pairs = [{"key": "a", "value": "1"}, {"key": "b", "value": "2"}]
    rows = [{**row, "name": "f0", "properties": pairs}, {**row, "name": "f1", "properties": pairs}]
    joined = {"results": rows, "range": {"start_pos": 0, "end_pos": 2, "total": 4}}
    plain = {"results": [{**row, "name": "f0"}, {**row, "name": "f1"}], "range": {"total": 2}}
    for document in (joined, plain, joined):  # everything; a page of items; their properties
        body = json.dumps(document).encode()
        models.faults.add(Fault.garbage("/api/search/aql", body=body, times=1))
    async with client_of(settings_of(models)) as client:
        matches = await client.search(Criteria(RepoPath(REPO)))
        assert [match.properties for match in matches] == [{"a": ("1",), "b": ("2",)}] * 2


def test_the_server_trims_as_real_ones_do(models: EmbeddedServer) -> None:
    ask = Requests(models)
    models.limit_queries(4)

    def query(chain: str) -> dict[str, object]:
        text = f'items.find({{"repo":"{REPO}"}}){chain}'
        document: dict[str, object] = ask.post("/api/search/aql", text.encode()).json()
        return document

    plain = query('.include("repo","path","name")')
    assert isinstance(plain["results"], list)
    assert len(plain["results"]) == 4
    assert isinstance(plain["range"], dict)
    assert (plain["range"]["total"], plain["range"]["limit"]) == (4, 4)
    assert "trimmed" in str(plain["range"]["notification"])
    assert "notification" not in json.dumps(query('.include("repo","path","name").limit(4)'))
    assert "notification" in json.dumps(query('.include("repo","path","name").limit(5)'))
    joined = query('.include("repo","path","name","property")')["results"]
    assert isinstance(joined, list)
    assert sum(len(row.get("properties", [1])) for row in joined) == 4
