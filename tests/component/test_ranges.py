"""The data plane in all weathers, against the embedded server."""

import hashlib
import random
import threading
from array import array
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import xxhash

from jfs.artifactory import HttpRangeSource
from jfs.config import Credentials, Secret, ServerSettings
from jfs.credentials import credentials_from
from jfs.errors import AccessDenied, ProtocolViolation, RemoteError, Stale, Unavailable
from jfs.extents import Extent, KiB, MiB
from jfs.metrics import Metrics
from jfs.model import ArtifactVersion, ContentKey, RepoPath
from jfs.native import receiving
from jfs.server import EmbeddedServer, Fault
from jfs.server.http.faults import Kind
from tests.conftest import REPO

CONTENT = random.Random(3).randbytes(3 * MiB + 77)
EVERYTHING = Extent(0, len(CONTENT))
BLOCK = 32 * KiB


class Collector:
    """A sink that takes what it gets, and refuses more than was asked for."""

    def __init__(self, extent: Extent) -> None:
        self._buffer = memoryview(bytearray(extent.size))
        self._filled = 0
        self.arrival = receiving.arrival(extent.start)
        self.run = receiving.run(self._buffer, extent.start, BLOCK, self.arrival)

    def buffer(self) -> memoryview:
        assert self._filled < len(self._buffer), "more than was asked for"
        return self._buffer[self._filled :]

    def advance(self, count: int) -> None:
        assert 0 < count <= len(self._buffer) - self._filled
        self._filled += count

    @property
    def data(self) -> bytes:
        """What came; all of it was told of, and is summed right."""
        data = bytes(self._buffer[: self._filled])
        if self.run is not None and (sums := self.run.sums()) is not None:
            assert self.arrival is not None
            assert self.arrival.filled >= self._filled
            first = self.run.first
            assert sums == array(
                "Q",
                [
                    xxhash.xxh3_64_intdigest(data[at : at + BLOCK], first + number)
                    for number, at in enumerate(range(0, len(data), BLOCK))
                ],
            )
        return data


def settings_of(server: EmbeddedServer) -> ServerSettings:
    credentials = Credentials(token=Secret(server.token))
    return ServerSettings(
        server.url, credentials, idle_timeout_s=5, connect_timeout_s=5, request_deadline_s=5
    )


@pytest.fixture
def version(server: EmbeddedServer) -> ArtifactVersion:
    server.deploy(REPO, "a b/m;1.bin", CONTENT)
    content = ContentKey(f"sha256:{hashlib.sha256(CONTENT).hexdigest()}", len(CONTENT))
    sha1 = hashlib.sha1(CONTENT).hexdigest()
    return ArtifactVersion(RepoPath(REPO, "a b/m;1.bin"), content, sha1)


@pytest.fixture
def source(server: EmbeddedServer) -> Iterator[HttpRangeSource]:
    source = HttpRangeSource(settings_of(server), Metrics())
    yield source
    source.close()


Fetch = Callable[[Extent], bytes]


@pytest.fixture
def fetch(source: HttpRangeSource, version: ArtifactVersion) -> Fetch:
    def run(extent: Extent) -> bytes:
        sink = Collector(extent)
        source.fetch(version, extent, sink)
        return sink.data

    return run


@pytest.mark.usefixtures("road")
@pytest.mark.parametrize(
    "extent",
    [EVERYTHING, Extent(0, 1), Extent(len(CONTENT) - 1, len(CONTENT)), Extent(65_536, 131_072)],
)
def test_it_gets_what_it_asks_for(fetch: Fetch, extent: Extent) -> None:
    assert fetch(extent) == CONTENT[extent.start : extent.stop]


def test_connections_are_reused(server: EmbeddedServer, fetch: Fetch) -> None:
    for start in range(0, 10 * KiB, KiB):
        assert fetch(Extent(start, start + KiB)) == CONTENT[start : start + KiB]
    assert server.stats.requests == 10


def test_threads_share_a_source(source: HttpRangeSource, version: ArtifactVersion) -> None:
    wrong: list[int] = []

    def run(seed: int) -> None:
        choose = random.Random(seed)
        for _ in range(20):
            start = choose.randrange(len(CONTENT) - 1)
            extent = Extent(start, choose.randrange(start + 1, len(CONTENT)))
            sink = Collector(extent)
            source.fetch(version, extent, sink)
            if sink.data != CONTENT[extent.start : extent.stop]:
                wrong.append(seed)

    threads = [threading.Thread(target=run, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.usefixtures("road")
@pytest.mark.parametrize(
    "weather",
    [
        lambda: Fault.drop(f"/{REPO}/*", times=2),
        lambda: Fault.drop(f"/{REPO}/*", after_bytes=100_000, times=3),
        lambda: Fault.drop(f"/{REPO}/*", after_bytes=700_000, times=2),
        lambda: Fault.short(f"/{REPO}/*", size=100_000, times=3),
        lambda: Fault.short(f"/{REPO}/*", size=700_000, times=2),
        lambda: Fault.status(503, f"/{REPO}/*", times=2),
        lambda: Fault.status(429, f"/{REPO}/*", times=1, headers={"Retry-After": "0"}),
        lambda: Fault.ignore_range(f"/{REPO}/*"),
        lambda: Fault.gzip(f"/{REPO}/*"),
        lambda: Fault.redirect(f"/{REPO}/*"),
        lambda: Fault.redirect(f"/{REPO}/*", uses=1),
    ],
    ids=[
        "refuse",
        "cut",
        "cut late",
        "short",
        "short late",
        "503",
        "429",
        "200",
        "gzip",
        "302",
        "302 for one use",
    ],
)
def test_normal_weather_costs_no_byte(
    server: EmbeddedServer, fetch: Fetch, weather: Callable[[], Fault]
) -> None:
    fault = server.faults.add(weather())
    for extent in (Extent(1_000, 2_000_000), Extent(2_000_000, len(CONTENT))):
        assert fetch(extent) == CONTENT[extent.start : extent.stop]
    assert fault.hits > 0


@pytest.mark.parametrize("kind", [Fault.ignore_range, Fault.gzip])
def test_a_server_without_ranges_sends_the_file_once(
    server: EmbeddedServer, fetch: Fetch, kind: Callable[[str], Fault]
) -> None:
    """The first answer tells; from then on one body serves every piece, in any order of asking."""
    server.faults.add(kind(f"/{REPO}/*"))
    pieces = list(EVERYTHING.pieces(256 * KiB))
    assert fetch(pieces[0]) == CONTENT[: 256 * KiB]
    got: dict[int, bytes] = {}

    def one(extent: Extent) -> None:
        got[extent.start] = fetch(extent)

    threads = [threading.Thread(target=one, args=(piece,)) for piece in pieces[1:4]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert all(got[piece.start] == CONTENT[piece.start : piece.stop] for piece in pieces[1:4])
    before = server.stats.bytes_sent
    for piece in pieces[4:]:
        assert fetch(piece) == CONTENT[piece.start : piece.stop]
    # What the sockets held back at most: the rest of the bodies that were open already, and one.
    assert server.stats.bytes_sent - before < len(CONTENT) + 2 * MiB
    assert server.stats.requests <= 6


@pytest.mark.usefixtures("road")
def test_a_cut_body_is_taken_up_where_it_ended(server: EmbeddedServer, fetch: Fetch) -> None:
    server.faults.add(Fault.drop(f"/{REPO}/*", after_bytes=MiB, times=1))
    assert fetch(EVERYTHING) == CONTENT
    assert server.stats.requests == 2
    assert server.stats.bytes_sent < len(CONTENT) + 512 * KiB


@pytest.mark.usefixtures("road")
def test_a_server_that_sends_less_than_was_asked_for_is_asked_for_the_rest(
    server: EmbeddedServer, fetch: Fetch
) -> None:
    """RFC 9110, 15.3.7: it may; some proxies answer so much of a range at most."""
    fault = server.faults.add(Fault(Kind.WRONG_RANGE, path=f"/{REPO}/*", offset=700_000))
    server.stats.reset()
    extent = Extent(1_000, 2_000_000)
    assert fetch(extent) == CONTENT[extent.start : extent.stop]
    assert fault.hits == 3
    assert server.stats.bytes_sent < extent.size + 64 * KiB


@pytest.mark.parametrize(
    ("weather", "error"),
    [
        (lambda: Fault.wrong_etag(f"/{REPO}/*"), Stale),
        (lambda: Fault.wrong_checksums(f"/{REPO}/*"), Stale),
        (lambda: Fault.wrong_content_range(f"/{REPO}/*"), ProtocolViolation),
        (lambda: Fault.wrong_content_range(f"/{REPO}/*", value="bytes 1-2/3"), Stale),
        (lambda: Fault.wrong_content_range(f"/{REPO}/*", value="nonsense"), ProtocolViolation),
        (lambda: Fault.status(416, f"/{REPO}/*"), Stale),
        (lambda: Fault.status(404, f"/{REPO}/*"), Stale),
        (lambda: Fault.status(403, f"/{REPO}/*"), AccessDenied),
        (lambda: Fault.garbage(f"/{REPO}/*"), RemoteError),
    ],
    ids=["etag", "sums", "range", "total", "junk", "416", "404", "403", "html"],
)
def test_a_wrong_answer_is_refused_whole(
    server: EmbeddedServer,
    source: HttpRangeSource,
    version: ArtifactVersion,
    weather: Callable[[], Fault],
    error: type[RemoteError],
) -> None:
    server.faults.add(weather())
    sink = Collector(Extent(10, 20))
    with pytest.raises(error) as caught:
        source.fetch(version, Extent(10, 20), sink)
    assert sink.data == b""
    assert server.token not in str(caught.value)


def test_a_block_by_policy_says_why(
    server: EmbeddedServer, source: HttpRangeSource, version: ArtifactVersion
) -> None:
    body = b'{"errors":[{"status":403,"message":"blocked by Xray policy no-pickle"}]}'
    server.faults.add(Fault.status(403, f"/{REPO}/*", body=body))
    with pytest.raises(AccessDenied, match="no-pickle"):
        source.fetch(version, Extent(0, 10), Collector(Extent(0, 10)))


def test_replaced_content_is_stale(
    server: EmbeddedServer, source: HttpRangeSource, version: ArtifactVersion
) -> None:
    server.deploy(REPO, version.path.path, bytes(len(CONTENT)))
    with pytest.raises(Stale):
        source.fetch(version, Extent(0, 10), Collector(Extent(0, 10)))


def test_an_outage_ends_at_the_deadline(server: EmbeddedServer, version: ArtifactVersion) -> None:
    settings = replace(settings_of(server), request_deadline_s=0.3)
    source = HttpRangeSource(settings, Metrics())
    server.stop()
    with pytest.raises(Unavailable):
        source.fetch(version, Extent(0, 10), Collector(Extent(0, 10)))
    source.close()


@pytest.mark.usefixtures("road")
def test_a_server_that_falls_silent_is_asked_for_the_rest(
    server: EmbeddedServer, version: ArtifactVersion
) -> None:
    fault = server.faults.add(Fault.stall(f"/{REPO}/*", after_bytes=MiB, times=1))
    source = HttpRangeSource(replace(settings_of(server), idle_timeout_s=0.2), Metrics())
    sink = Collector(EVERYTHING)
    source.fetch(version, EVERYTHING, sink)
    assert sink.data == CONTENT
    assert server.stats.bytes_sent < len(CONTENT) + 512 * KiB  # what came before is not lost
    fault.release()
    source.close()


@pytest.mark.usefixtures("road")
@pytest.mark.parametrize("after", [None, MiB])
def test_close_wakes_who_is_blocked(
    server: EmbeddedServer, source: HttpRangeSource, version: ArtifactVersion, after: int | None
) -> None:
    fault = server.faults.add(Fault.stall(f"/{REPO}/*", after_bytes=after))
    failures: list[BaseException] = []

    def run() -> None:
        try:
            source.fetch(version, EVERYTHING, Collector(EVERYTHING))
        except Unavailable as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    fault.wait_hit()
    source.close()
    thread.join(30)
    assert not thread.is_alive()
    assert len(failures) == 1


def test_the_token_file_is_read_again(
    server: EmbeddedServer, version: ArtifactVersion, tmp_path: Path
) -> None:
    token_file = tmp_path / "token"
    token_file.write_text("wrong")
    settings = replace(settings_of(server), credentials=credentials_from({}, token_file))
    source = HttpRangeSource(settings, Metrics())
    with pytest.raises(AccessDenied):
        source.fetch(version, Extent(0, 10), Collector(Extent(0, 10)))
    token_file.write_text(server.token + "\n")
    sink = Collector(Extent(0, 10))
    source.fetch(version, Extent(0, 10), sink)
    assert sink.data == CONTENT[:10]
    source.close()
