"""Downloads behind a redirect: the bytes of storage belong to the version, or they are refused."""

import base64
import contextlib
import hashlib
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from jfs.artifactory import HttpRangeSource
from jfs.errors import AccessDenied, JfsError, ProtocolViolation, Stale, Unavailable
from jfs.extents import Extent, KiB, MiB
from jfs.metrics import Metrics
from jfs.model import ArtifactVersion, ContentKey, RepoPath
from jfs.server import EmbeddedServer, Fault
from tests.component.composed import block_store, composed, find, server_settings
from tests.component.test_client import client_of, settings_of
from tests.component.test_ranges import Collector
from tests.conftest import REPO

PATH = "a b/m;1.bin"
ITEM = f"/{REPO}/{PATH}"
STORED = f"/bucket/{REPO}/{PATH}"
SIZE = 256 * KiB
OLD, NEW = bytes(SIZE), b"\1" * SIZE
PART = Extent(100 * KiB, 101 * KiB)


def version_of(content: bytes, path: str = PATH) -> ArtifactVersion:
    key = ContentKey(f"sha256:{hashlib.sha256(content).hexdigest()}", len(content))
    return ArtifactVersion(RepoPath(REPO, path), key, hashlib.sha1(content).hexdigest())


@pytest.fixture
def source(server: EmbeddedServer) -> Iterator[HttpRangeSource]:
    server.deploy(REPO, PATH, OLD)
    settings = replace(server_settings(server, deadline_s=0.5), idle_timeout_s=20)
    source = HttpRangeSource(settings, Metrics())
    yield source
    source.close()


def fetch(
    source: HttpRangeSource, version: ArtifactVersion | None = None, extent: Extent = PART
) -> bytes:
    sink = Collector(extent)
    try:
        source.fetch(version or version_of(OLD), extent, sink)
    except JfsError:
        assert sink.data == b"", "bytes that nothing vouches for"
        raise
    return sink.data


Shape = Callable[[], Fault]
NAMED: dict[str, Shape] = {
    "stated": lambda: Fault.redirect(ITEM),
    "silent": lambda: Fault.redirect(ITEM, silent=True),
    "relative": lambda: Fault.redirect(ITEM, relative=True),
    "head too": lambda: Fault.redirect(ITEM, method="*"),
}
OPAQUE: dict[str, Shape] = {
    "opaque": lambda: Fault.redirect(ITEM, opaque=True),
    "opaque, silent": lambda: Fault.redirect(ITEM, opaque=True, silent=True),
    "opaque, head too": lambda: Fault.redirect(ITEM, opaque=True, silent=True, method="*"),
}
SHAPES = NAMED | OPAQUE


def shapes(some: dict[str, Shape]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("shape", some.values(), ids=some.keys())


@shapes(SHAPES)
def test_bytes_come_from_storage(
    server: EmbeddedServer, source: HttpRangeSource, shape: Shape
) -> None:
    server.faults.add(shape())
    for extent in Extent(0, SIZE).pieces(64 * KiB):
        assert fetch(source, extent=extent) == OLD[extent.start : extent.stop]
    # 4 ranges, and one more where the first answer tells that addresses name nothing.
    assert 4 <= server.stats.by_route["GET signed"] <= 5


def test_a_location_is_used_again(server: EmbeddedServer, source: HttpRangeSource) -> None:
    fault = server.faults.add(Fault.redirect(ITEM))
    for extent in Extent(0, SIZE).pieces(64 * KiB):
        fetch(source, extent=extent)
    assert fault.hits == 1


@shapes(SHAPES)
def test_a_replaced_artifact_never_mixes(
    server: EmbeddedServer, source: HttpRangeSource, shape: Shape
) -> None:
    """The old version is read on while its location lives, or is stale; the new one is new."""
    fault = shape()
    fault.uses = 2
    server.faults.add(fault)
    assert fetch(source) == OLD[: PART.size]
    server.deploy(REPO, PATH, NEW)
    with contextlib.suppress(Stale):
        assert fetch(source) == OLD[: PART.size]
    assert fetch(source, version_of(NEW)) == NEW[: PART.size]
    with pytest.raises(Stale):
        fetch(source)


@contextlib.contextmanager
def fetching(source: HttpRangeSource, version: ArtifactVersion) -> Iterator[list[object]]:
    """Fetch in a thread; what came of it is in the list afterwards."""
    result: list[object] = []

    def run() -> None:
        try:
            result.append(fetch(source, version))
        except Exception as error:
            result.append(type(error))

    thread = threading.Thread(target=run)
    thread.start()
    yield result
    thread.join(30)
    assert not thread.is_alive()


@shapes({name: SHAPES[name] for name in ("stated", "silent", "opaque", "opaque, silent")})
@pytest.mark.parametrize("pinned", [OLD, NEW], ids=["old pinned", "new pinned"])
def test_a_deploy_between_redirect_and_storage(
    server: EmbeddedServer, source: HttpRangeSource, shape: Shape, pinned: bytes
) -> None:
    server.faults.add(shape())
    hold = server.faults.add(Fault.hold(STORED, times=1))
    with fetching(source, version_of(pinned)) as result:
        if pinned is OLD:
            hold.wait_hit()
        server.deploy(REPO, PATH, NEW)
        hold.release()
    assert result[0] in (Stale, pinned[: PART.size])


def test_a_deploy_between_storage_and_the_question(
    server: EmbeddedServer, source: HttpRangeSource
) -> None:
    """The question comes last: what storage sent before the deploy is not believed any more."""
    server.faults.add(Fault.redirect(ITEM, opaque=True, silent=True))
    hold = server.faults.add(Fault.hold(ITEM, method="HEAD", times=1))
    with fetching(source, version_of(OLD)) as result:
        hold.wait_hit()
        server.deploy(REPO, PATH, NEW)
        hold.release()
    assert result == [Stale]


def test_a_redirect_to_another_version(server: EmbeddedServer, source: HttpRangeSource) -> None:
    """As behind a cache that keeps redirects: it is asked for the bytes themselves."""
    server.deploy(REPO, "other", NEW)
    server.faults.add(Fault.redirect(ITEM, to=f"{REPO}/other", silent=True))
    assert fetch(source) == OLD[: PART.size]
    server.faults.clear()
    server.faults.add(Fault.redirect(ITEM, to=f"{REPO}/other"))
    assert fetch(source) == OLD[: PART.size]


def test_a_redirect_that_states_other_content(
    server: EmbeddedServer, source: HttpRangeSource
) -> None:
    for headers in (
        {"X-Checksum-Sha256": hashlib.sha256(NEW).hexdigest().upper()},
        {"ETag": f'"{hashlib.sha1(NEW).hexdigest()}"'},
        {"ETag": f'W/"{hashlib.sha1(NEW).hexdigest().upper()}"'},
    ):
        server.faults.add(Fault.redirect(ITEM, headers=headers))
        with pytest.raises(Stale):
            fetch(source)
        server.faults.clear()


def in_base64(digest: "hashlib._Hash") -> str:
    return base64.b64encode(digest.digest()).decode()


def test_storage_that_states_the_checksum_needs_no_question(
    server: EmbeddedServer, source: HttpRangeSource
) -> None:
    fault = server.faults.add(Fault.redirect(ITEM, opaque=True, silent=True))
    headers = {"x-amz-checksum-sha256": in_base64(hashlib.sha256(OLD))}
    server.faults.add(Fault.set_headers(headers, STORED))
    assert fetch(source) == OLD[: PART.size]
    assert fetch(source) == OLD[: PART.size]
    assert fault.hits == 1
    assert "HEAD content" not in server.stats.by_route


CONTRADICTIONS = [
    {"x-amz-checksum-sha256": in_base64(hashlib.sha256(NEW))},
    {"x-amz-checksum-sha1": in_base64(hashlib.sha1(NEW))},
    {"X-Checksum-Sha1": hashlib.sha1(NEW).hexdigest()},
    {"ETag": f'"{hashlib.sha1(NEW).hexdigest()}"'},
    {"x-goog-hash": f"crc32c=AAAAAA==,md5={in_base64(hashlib.md5(NEW))}"},
    {"Content-Range": f"bytes {PART.start}-{PART.stop - 1}/{SIZE + 1}"},
]


@pytest.mark.parametrize("first", [True, False], ids=["first", "kept"])
def test_storage_that_contradicts_is_stale(
    server: EmbeddedServer, source: HttpRangeSource, first: bool
) -> None:
    for headers in CONTRADICTIONS:
        server.faults.add(Fault.redirect(ITEM))
        if not first:
            assert fetch(source) == OLD[: PART.size]
        server.faults.add(Fault.set_headers(headers, STORED))
        with pytest.raises(Stale):
            fetch(source)
        server.faults.clear()


def test_what_storage_says_of_something_else_is_no_contradiction(
    server: EmbeddedServer, source: HttpRangeSource
) -> None:
    for headers in (
        {"ETag": ""},
        {"ETag": f'"{hashlib.md5(NEW).hexdigest()}"'},  # with encryption it is no md5
        {"ETag": f'"{hashlib.md5(OLD).hexdigest()}-17"'},
        {"ETag": 'W/"5f-18c2"'},
        {"x-amz-checksum-sha256": in_base64(hashlib.sha256(NEW)) + "-2"},
        {
            "x-amz-checksum-sha256": in_base64(hashlib.sha256(NEW)),
            "x-amz-checksum-type": "COMPOSITE",
        },
        {"x-goog-hash": "crc32c=AAAAAA=="},
    ):
        server.faults.add(Fault.redirect(ITEM))
        server.faults.add(Fault.set_headers(headers, STORED))
        assert fetch(source) == OLD[: PART.size]
        server.faults.clear()


def test_storage_with_another_length(server: EmbeddedServer, source: HttpRangeSource) -> None:
    server.deploy(REPO, "other", NEW + b"1")
    server.faults.add(Fault.redirect(ITEM))
    server.faults.add(Fault.other_content(f"{REPO}/other"))
    with pytest.raises(Stale):
        fetch(source)


def test_an_expired_location_is_asked_for_once_more(
    server: EmbeddedServer, source: HttpRangeSource
) -> None:
    for code, asked in ((400, 2), (403, 1), (404, 1), (410, 1)):  # a new one, then kept ones
        fault = server.faults.add(Fault.redirect(ITEM))
        server.faults.add(Fault.status(code, STORED, times=1))
        assert fetch(source) == OLD[: PART.size]
        assert fault.hits == asked
        server.faults.clear()


def test_locations_that_are_never_good_end(server: EmbeddedServer, source: HttpRangeSource) -> None:
    fault = server.faults.add(Fault.redirect(ITEM, expired=True))
    with pytest.raises(AccessDenied, match="storage refuses") as caught:
        fetch(source)
    assert fault.hits == 2
    assert "Signature" not in str(caught.value)
    server.faults.clear()
    server.faults.add(Fault.redirect(ITEM))
    server.faults.add(Fault.status(404, STORED))
    with pytest.raises(Unavailable, match="storage has not got"):
        fetch(source)


def test_a_redirect_on_the_server_itself(server: EmbeddedServer, source: HttpRangeSource) -> None:
    """Credentials go along, and nothing is asked without them later."""
    server.deploy(REPO, "real.bin", OLD)
    location = {"Location": f"/artifactory/{REPO}/real.bin"}
    server.faults.add(Fault.status(302, ITEM, headers=location))
    for _ in range(2):
        assert fetch(source) == OLD[: PART.size]
    assert server.stats.requests == 4
    server.deploy(REPO, "real.bin", NEW)
    with pytest.raises(Stale):
        fetch(source)


def test_a_redirect_to_itself_ends(server: EmbeddedServer, source: HttpRangeSource) -> None:
    fault = server.faults.add(Fault.status(302, ITEM, headers={"Location": "#"}))
    with pytest.raises(ProtocolViolation, match="too many redirects"):
        fetch(source)
    assert fault.hits < 10


@pytest.mark.parametrize("host", ["...", "a..b", "a" * 64 + ".example"])
async def test_a_redirect_to_what_can_be_no_host(
    server: EmbeddedServer, source: HttpRangeSource, host: str
) -> None:
    server.faults.add(Fault.status(302, headers={"Location": f"http://{host}/x"}))
    with pytest.raises(ProtocolViolation, match="without a usable Location"):
        fetch(source)
    async with client_of(settings_of(server)) as client:
        with pytest.raises(ProtocolViolation, match="without a usable Location"):
            await client.stat(RepoPath(REPO, "w.bin"))


def test_a_name_that_is_a_checksum_vouches_for_nothing(
    server: EmbeddedServer, source: HttpRangeSource
) -> None:
    path = f"blobs/{hashlib.sha256(OLD).hexdigest()}"
    server.deploy(REPO, path, OLD)
    server.faults.add(Fault.redirect(f"/{REPO}/blobs/*", opaque=True, silent=True))
    assert fetch(source, version_of(OLD, path)) == OLD[: PART.size]
    server.deploy(REPO, path, NEW)
    with pytest.raises(Stale):
        fetch(source, version_of(OLD, path))


def test_an_artifact_that_goes_is_stale(server: EmbeddedServer, source: HttpRangeSource) -> None:
    server.faults.add(Fault.redirect(ITEM, opaque=True, silent=True))
    hold = server.faults.add(Fault.hold(ITEM, method="HEAD", times=1))
    with fetching(source, version_of(OLD)) as result:
        hold.wait_hit()
        server.delete(REPO, PATH)
        hold.release()
    assert result == [Stale]


@shapes({name: SHAPES[name] for name in ("stated", "opaque, silent")})
async def test_the_cache_holds_one_version(
    server: EmbeddedServer, tmp_path: Path, shape: Shape
) -> None:
    """What an old handle reads after a replacement is the old version, in the cache too."""
    size = 8 * MiB
    old, new = bytes(size), b"\1" * size
    server.deploy(REPO, PATH, old)
    server.faults.add(shape())
    store = block_store(tmp_path / "cache")
    far = Extent(6 * MiB, 6 * MiB + 64 * KiB)
    async with composed(server, REPO, store=store) as filesystem:
        handle = (await filesystem.open(await find(filesystem, PATH), 0)).handle
        assert bytes(await filesystem.read(handle, Extent(0, 4 * KiB))) == old[: 4 * KiB]
        server.deploy(REPO, PATH, new)
        with contextlib.suppress(Stale):
            assert bytes(await filesystem.read(handle, far)) == old[: far.size]
        await filesystem.release(handle)
    content = store.open(version_of(old).content)
    buffer = memoryview(bytearray(far.size))
    if await trio.to_thread.run_sync(content.read_into, far, buffer):
        assert bytes(buffer) == old[: far.size]
    content.close()
    store.close()


def test_storage_out_of_reach(server: EmbeddedServer, source: HttpRangeSource) -> None:
    """Behind a firewall, or with a certificate of its own: Artifactory sends the bytes itself."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    location = f"http://127.0.0.1:{port}/filestore/{hashlib.sha1(OLD).hexdigest()}"
    server.faults.add(Fault.status(302, ITEM, headers={"Location": location}, times=1))
    assert fetch(source) == OLD[: PART.size]
    server.faults.add(Fault.status(302, ITEM, headers={"Location": location}))
    with pytest.raises(Unavailable, match="nothing listens"):
        fetch(source)


UNSTATED = {"ETag": "", "X-Checksum-Sha1": "", "X-Checksum-Sha256": "", "X-Checksum-Md5": ""}


def test_bytes_that_nothing_is_said_about(server: EmbeddedServer, source: HttpRangeSource) -> None:
    """A proxy takes the headers away: what the item is now is asked, once the answer has come."""
    server.faults.add(Fault.set_headers(UNSTATED, ITEM))
    assert fetch(source) == OLD[: PART.size]
    hold = server.faults.add(Fault.hold(f"/api/storage{ITEM}", times=1))
    with fetching(source, version_of(OLD)) as result:
        hold.wait_hit()
        server.deploy(REPO, PATH, NEW)
        hold.release()
    assert result == [Stale]
    assert fetch(source, version_of(NEW)) == NEW[: PART.size]
    server.faults.add(Fault.wrong_checksums(f"/api/storage{ITEM}"))
    with pytest.raises(Stale):
        fetch(source, version_of(NEW))
    server.faults.clear()
    server.faults.add(Fault.set_headers(UNSTATED, ITEM))
    server.faults.add(Fault.garbage(f"/api/storage{ITEM}", body=b'{"size": "262144"}'))
    with pytest.raises(ProtocolViolation, match="states no checksum"):
        fetch(source, version_of(NEW))
