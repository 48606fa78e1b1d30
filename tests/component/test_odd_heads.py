"""A file that only the head of its content describes: odd heads hide nothing that can be known."""

import hashlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from jfs.artifactory import ArtifactoryClient
from jfs.errors import NotFound, ProtocolViolation, Unavailable
from jfs.metrics import Metrics
from jfs.model import FileInfo, FolderInfo, RepoPath
from jfs.server import EmbeddedServer, Fault
from tests.component.composed import composed, content, server_settings

DATA = bytes(range(256)) * 100
SHA256, SHA1 = hashlib.sha256(DATA).hexdigest(), hashlib.sha1(DATA).hexdigest()
PATH = RepoPath("far", "org/m;1/w.bin")
ITEM = "/far/org/m;1/w.bin"
STORED = "/bucket/far/org/m;1/w.bin"
KEPT = "/api/storage/far-cache/*"
UNSTATED = {f"X-Checksum-{name}": "" for name in ("Sha256", "Sha1", "Md5")}


@pytest.fixture
def remote(server: EmbeddedServer, tmp_path: Path) -> Iterator[EmbeddedServer]:
    """A server with a remote repository ``far`` that has cached nothing."""
    with EmbeddedServer(tmp_path / "upstream", anonymous=True) as upstream:
        upstream.create_repository("up")
        upstream.deploy("up", PATH.path, DATA)
        upstream.deploy("up", "org/empty.bin", b"")
        server.create_repository("far", upstream=f"{upstream.url}/up")
        yield server


@pytest.fixture
async def client(remote: EmbeddedServer) -> AsyncIterator[ArtifactoryClient]:
    client = ArtifactoryClient(server_settings(remote, deadline_s=0.5), Metrics())
    yield client
    await client.aclose()


async def described(client: ArtifactoryClient, path: RepoPath = PATH) -> FileInfo:
    info = await client.stat(path)
    assert isinstance(info, FileInfo)
    return info


async def test_a_head_that_says_everything(
    remote: EmbeddedServer, client: ArtifactoryClient
) -> None:
    info = await described(client)
    assert (info.size, info.checksums.sha256, info.checksums.sha1) == (len(DATA), SHA256, SHA1)
    assert info.modified_ns > 0
    assert remote.stats.by_route["HEAD content"] == 1
    assert "GET content" not in remote.stats.by_route
    with pytest.raises(NotFound):
        await client.stat(RepoPath("far", "org/absent.bin"))


async def test_a_head_without_a_usable_length(
    remote: EmbeddedServer, client: ArtifactoryClient
) -> None:
    """One byte is asked for; nothing else is needed."""
    # Until one is cached, api/storage does not know it: each round is the first for its file.
    remote.faults.add(Fault.status(404, KEPT))
    remote.faults.add(Fault.status(404, f"/api/storage{ITEM}"))
    for fault in (
        Fault.chunked(ITEM, method="HEAD"),
        Fault.gzip(ITEM, method="HEAD"),
        Fault.status(405, ITEM, method="HEAD"),
        Fault.status(400, ITEM, method="HEAD"),
        Fault.redirect(ITEM, method="*"),
        Fault.redirect(ITEM, method="*", silent=True),
    ):
        remote.stats.reset()
        remote.faults.add(fault)
        if fault.method == "*":
            remote.faults.add(Fault.status(403, STORED, method="HEAD"))
        info = await described(client)
        assert info.size == len(DATA), fault
        assert fault.silent or info.checksums.sha256 == SHA256
        assert remote.stats.bytes_sent < 4000
        fault.path = "/none"


async def test_the_server_is_asked_what_it_has_kept(
    remote: EmbeddedServer, client: ArtifactoryClient
) -> None:
    """Where neither the head nor the first byte tells."""
    remote.faults.add(Fault.status(404, f"/api/storage{ITEM}"))
    remote.faults.add(Fault.status(404, KEPT, times=1))
    for fault in (
        Fault.gzip(ITEM),
        Fault.chunked(ITEM),
        Fault.set_headers(UNSTATED, ITEM),
        Fault.set_headers({"X-Checksum-Sha256": "junk", **UNSTATED}, ITEM, method="HEAD"),
        Fault.set_headers({"Content-Range": "bytes 0-0/*"}, ITEM, method="GET"),
    ):
        remote.faults.add(fault)
        info = await described(client)
        assert (info.size, info.checksums.sha256) == (len(DATA), SHA256), fault
        fault.path = "/none"


async def test_headers_as_other_servers_write_them(
    remote: EmbeddedServer, client: ArtifactoryClient
) -> None:
    remote.faults.add(Fault.status(404, "/api/storage/far*"))
    for headers in (
        {"X-Checksum-Sha256": SHA256.upper()},
        {"X-Checksum-Sha256": f'"{SHA256}"', "Last-Modified": "yesterday"},
        {"X-Checksum-Sha256": f"{SHA256}, {SHA256}"},
        {"ETag": f'W/"{SHA1}"', **UNSTATED},
        {"ETag": f'"{SHA1.upper()}"', **UNSTATED},
        {"ETag": f'"{SHA1}-gzip"', **UNSTATED},
    ):
        fault = remote.faults.add(Fault.set_headers(headers, ITEM))
        info = await described(client)
        assert info.size == len(DATA)
        assert info.checksums.sha256 == SHA256 or info.checksums.sha1 == SHA1
        fault.path = "/none"


async def test_an_empty_file_has_no_first_byte(
    remote: EmbeddedServer, client: ArtifactoryClient
) -> None:
    remote.faults.add(Fault.chunked("/far/*", method="HEAD"))
    assert (await described(client, RepoPath("far", "org/empty.bin"))).size == 0


async def test_a_size_that_nobody_knows(remote: EmbeddedServer, client: ArtifactoryClient) -> None:
    remote.faults.add(Fault.status(404, "/api/storage/far*"))
    remote.faults.add(Fault.chunked(ITEM, method="HEAD"))
    remote.faults.add(Fault.gzip(ITEM))
    with pytest.raises(ProtocolViolation, match="names no size"):
        await client.stat(PATH)


async def test_storage_that_has_nothing_is_no_missing_file(
    remote: EmbeddedServer, client: ArtifactoryClient
) -> None:
    remote.faults.add(Fault.redirect(ITEM, method="*"))
    remote.faults.add(Fault.status(404, STORED))
    with pytest.raises(Unavailable, match="storage has not got"):
        await client.stat(PATH)


async def test_a_head_that_leads_to_a_page_is_a_folder(
    remote: EmbeddedServer, client: ArtifactoryClient
) -> None:
    location = f"{remote.url}/far/org/"
    remote.faults.add(Fault.status(302, "/far/org", headers={"Location": location}))
    remote.faults.add(Fault.garbage("/far/org/"))
    assert isinstance(await client.stat(RepoPath("far", "org")), FolderInfo)


async def test_a_file_behind_a_proxy_that_says_no_length_is_read(remote: EmbeddedServer) -> None:
    remote.faults.add(Fault.chunked("/far/*", method="HEAD"))
    async with composed(remote, "far") as filesystem:
        assert await content(filesystem, PATH.path) == DATA
