"""Where a content can be read now, asked by its checksum."""

import hashlib
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from jfs.artifactory import ArtifactoryClient
from jfs.errors import Unavailable
from jfs.metrics import Metrics
from jfs.model import ArtifactVersion, ContentKey, RepoPath, passing_name
from jfs.server import EmbeddedServer, Fault
from tests.component.composed import server_settings
from tests.conftest import REPO

DATA = b"weights of the first version"
SHA1 = hashlib.sha1(DATA).hexdigest()
SHA256 = hashlib.sha256(DATA).hexdigest()
VERSION = ArtifactVersion(RepoPath(REPO, "m/w.bin"), ContentKey(f"sha256:{SHA256}", 28), SHA1)
OLD = ArtifactVersion(RepoPath(REPO, "m/w.bin"), ContentKey(f"sha1:{SHA1}", 28), SHA1)


@pytest.fixture
async def client(server: EmbeddedServer) -> AsyncIterator[ArtifactoryClient]:
    client = ArtifactoryClient(server_settings(server, deadline_s=5), Metrics())
    yield client
    await client.aclose()


@pytest.mark.parametrize("version", [VERSION, OLD], ids=["sha256", "sha1"])
async def test_the_nearest_place_is_found(
    server: EmbeddedServer, client: ArtifactoryClient, version: ArtifactVersion
) -> None:
    assert await client.locate(version) is None
    server.create_repository("archive")
    server.deploy("archive", "a;b/old #1.bin", DATA)
    server.deploy(REPO, "m/w.bin", b"other weights of the same si")
    assert await client.locate(version) == RepoPath("archive", "a;b/old #1.bin")
    server.deploy(REPO, "z/copy.bin", DATA)
    assert await client.locate(version) == RepoPath(REPO, "z/copy.bin")
    server.deploy(REPO, "m/w.bin", DATA)
    assert await client.locate(version) == version.path


@pytest.mark.parametrize("code", [403, 400, 404])
async def test_who_may_not_ask_in_aql_asks_as_of_old(
    server: EmbeddedServer, client: ArtifactoryClient, code: int
) -> None:
    server.faults.add(Fault.status(code, "/api/search/aql"))
    assert await client.locate(VERSION) is None
    server.deploy(REPO, "a;b/old #1.bin", DATA)
    assert await client.locate(VERSION) == RepoPath(REPO, "a;b/old #1.bin")
    server.faults.add(Fault.status(code, "/api/search/checksum"))
    assert await client.locate(VERSION) is None


@pytest.mark.parametrize("as_of_old", [False, True])
async def test_what_is_on_its_way_to_its_place_is_no_place(
    server: EmbeddedServer, client: ArtifactoryClient, as_of_old: bool
) -> None:
    if as_of_old:
        server.faults.add(Fault.status(403, "/api/search/aql"))
    server.deploy(REPO, passing_name("0" * 8, "1" * 16), DATA)
    assert await client.locate(VERSION) is None
    server.deploy(REPO, "w.bin", DATA)
    assert await client.locate(VERSION) == RepoPath(REPO, "w.bin")


async def test_an_outage_is_not_nowhere(server: EmbeddedServer) -> None:
    server.faults.add(Fault.status(503, "/api/search/*"))
    client = ArtifactoryClient(server_settings(server, deadline_s=0.3), Metrics())
    with pytest.raises(Unavailable):
        await client.locate(VERSION)
    await client.aclose()


async def test_only_what_the_user_may_read(tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path / "server", users={"ann": [f"rw@{REPO}"]}) as server:
        server.create_repository(REPO)
        server.create_repository("secret")
        server.deploy("secret", "w.bin", DATA)
        settings = server_settings(server, token=server.token_of("ann"))
        client = ArtifactoryClient(settings, Metrics())
        assert await client.locate(VERSION) is None
        server.deploy(REPO, "w.bin", DATA)
        assert await client.locate(VERSION) == RepoPath(REPO, "w.bin")
        await client.aclose()


async def test_a_remote_repository_has_it_in_its_cache(
    server: EmbeddedServer, client: ArtifactoryClient, tmp_path: Path
) -> None:
    with EmbeddedServer(tmp_path / "upstream", anonymous=True) as upstream:
        upstream.create_repository("up")
        upstream.deploy("up", "m/w.bin", DATA)
        server.create_repository("far", upstream=f"{upstream.url}/up")
        await client.stat(RepoPath("far", "m/w.bin"))  # the server fetches it
    version = replace(VERSION, path=RepoPath("far", "m/gone.bin"))
    assert await client.locate(version) == RepoPath("far-cache", "m/w.bin")
