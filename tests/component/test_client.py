"""The control plane against the embedded server, and the mapping of errors."""

import datetime
import hashlib
import inspect
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
import trio

from jfs.artifactory import ArtifactoryClient
from jfs.artifactory.exchange import failure, mapped, next_hop
from jfs.config import Credentials, Secret, ServerSettings
from jfs.errors import (
    AccessDenied,
    ConfigError,
    DeadlineExceeded,
    NotFound,
    NotReachable,
    ProtocolViolation,
    RateLimited,
    RemoteError,
    Unavailable,
)
from jfs.metrics import Metrics
from jfs.model import Criteria, FileInfo, FolderInfo, RepoPath
from jfs.server import EmbeddedServer, Fault, TlsFiles
from tests.component.composed import server_settings
from tests.conftest import REPO


def settings_of(server: EmbeddedServer) -> ServerSettings:
    credentials = Credentials(token=Secret(server.token))
    return ServerSettings(
        server.url, credentials, idle_timeout_s=5, connect_timeout_s=5, request_deadline_s=5
    )


@asynccontextmanager
async def client_of(settings: ServerSettings) -> AsyncIterator[ArtifactoryClient]:
    client = ArtifactoryClient(settings, Metrics())
    try:
        yield client
    finally:
        await client.aclose()


async def test_stat_and_list(server: EmbeddedServer) -> None:
    server.deploy(REPO, "nlp/m;1/w #1.bin", b"weights")
    async with client_of(settings_of(server)) as client:
        assert [row.key for row in await client.repositories()] == [REPO]
        info = await client.stat(RepoPath(REPO, "nlp/m;1/w #1.bin"))
        assert isinstance(info, FileInfo)
        assert (info.size, info.checksums.sha256, info.checksums.sha1) == (
            7,
            hashlib.sha256(b"weights").hexdigest(),
            hashlib.sha1(b"weights").hexdigest(),
        )
        age = datetime.datetime.now(datetime.UTC).timestamp() - info.modified_ns / 1e9
        assert -1 < age < 60
        listed = await client.list_children(RepoPath(REPO, "nlp/m;1"))
        assert [(row.path, row.version, row.modified_ns) for row in listed] == [  # type: ignore[union-attr]
            (info.path, info.version, info.modified_ns)
        ]
        (folder,) = await client.list_children(RepoPath(REPO))
        assert isinstance(folder, FolderInfo)
        assert folder.path == RepoPath(REPO, "nlp")
        (repo,) = await client.list_children(RepoPath(""))
        assert repo.path == RepoPath(REPO)
        with pytest.raises(NotFound):
            await client.stat(RepoPath(REPO, "absent"))
        with pytest.raises(NotFound):
            await client.list_children(RepoPath(REPO, "absent"))


async def test_a_refused_listing_falls_back_and_is_remembered(server: EmbeddedServer) -> None:
    server.deploy(REPO, "d/a", b"1")
    server.deploy(REPO, "d/e/b", b"2")
    # What an Artifactory without a Pro licence, or an anonymous user, is told. The first request
    # of each pair is the listing.
    server.faults.add(Fault.status(403, "/api/storage/*", times=1))
    async with client_of(settings_of(server)) as client:
        for _ in range(2):
            rows = {row.path.name: row for row in await client.list_children(RepoPath(REPO, "d"))}
            assert set(rows) == {"a", "e"}
            assert isinstance(rows["a"], FileInfo)
            assert rows["a"].size == 1
    assert server.stats.requests == 1 + 1 + 2 + 2  # the list of repositories first, once


async def test_what_hangs_keeps_its_own_kind_waiting(server: EmbeddedServer) -> None:
    """Requests about one repository, or about none, take no places of others."""
    server.deploy(REPO, "a", b"1")
    server.create_repository("bad")
    holds = [server.faults.add(Fault.hold(path)) for path in ("/api/search/*", "/api/storage/bad*")]
    async with client_of(server_settings(server)) as client, trio.open_nursery() as nursery:
        await client.repositories()
        for number in range(40):
            nursery.start_soon(client.search, Criteria(RepoPath("")))
            nursery.start_soon(client.stat, RepoPath("bad", f"n{number}"))
        for hold in holds:
            await trio.to_thread.run_sync(hold.wait_hit)
        assert (await client.stat(RepoPath(REPO, "a"))).path.name == "a"
        assert len(await client.repositories()) == 2
        nursery.cancel_scope.cancel()
        for hold in holds:
            hold.release()


@pytest.mark.parametrize("code", [500, 502, 503, 429])
async def test_a_passing_failure_is_retried(server: EmbeddedServer, code: int) -> None:
    server.deploy(REPO, "a", b"1")
    server.faults.add(Fault.status(code, times=2))
    async with client_of(settings_of(server)) as client:
        assert (await client.stat(RepoPath(REPO, "a"))).path.name == "a"


async def test_an_outage_is_never_a_missing_file(server: EmbeddedServer) -> None:
    settings = replace(settings_of(server), request_deadline_s=0.3)
    server.faults.add(Fault.status(500))
    async with client_of(settings) as client:
        with pytest.raises(Unavailable):
            await client.stat(RepoPath(REPO, "a"))
    server.faults.clear()
    server.faults.add(Fault.stall())
    async with client_of(settings) as client:
        with pytest.raises(DeadlineExceeded):
            await client.stat(RepoPath(REPO, "a"))


@pytest.mark.parametrize(
    "body",
    [
        b"<html>",
        b"[]",
        b"{}",
        b'{"size": "-1"}',
        b'{"size": "many", "checksums": {}}',
        b'{"children": {}}',
        b'{"size": "1", "lastModified": "yesterday"}',
        b"\xff\xfe",
        b"[" * 100_000,
    ],
)
async def test_garbage_is_no_answer(server: EmbeddedServer, body: bytes) -> None:
    # What may be the beginning of an answer was cut off, and is asked for again.
    refused = Unavailable if body == b"[" * 100_000 else ProtocolViolation
    server.faults.add(Fault.garbage(body=body))
    async with client_of(settings_of(server)) as client:
        if body != b'{"children": {}}':  # a folder, whose children nobody reads here
            with pytest.raises(refused):
                await client.stat(RepoPath(REPO, "a"))
        with pytest.raises(refused):
            await client.list_children(RepoPath(REPO))


async def test_impossible_names_are_hidden(
    server: EmbeddedServer, expected_logs: list[str]
) -> None:
    expected_logs.append("4 names are hidden")
    names = ["..", "a/b", "x\\u0000", "n" * 300, "good"]
    rows = ",".join(f'{{"uri": "/{name}", "size": -1, "folder": true}}' for name in names)
    server.faults.add(Fault.garbage(body=f'{{"files": [{rows}]}}'.encode()))
    async with client_of(settings_of(server)) as client:
        (entry,) = await client.list_children(RepoPath(REPO))
    assert entry.path.name == "good"


async def test_a_wrong_token_is_denied_and_not_shown(server: EmbeddedServer) -> None:
    settings = replace(settings_of(server), credentials=Credentials(token=Secret("hunter2")))
    async with client_of(settings) as client:
        with pytest.raises(AccessDenied) as caught:
            await client.stat(RepoPath(REPO, "a"))
        assert "hunter2" not in str(caught.value)
        with pytest.raises(ConfigError, match="not accepted"):
            await client.check()
    async with client_of(replace(settings, credentials=Credentials())) as client:
        with pytest.raises(ConfigError, match="JF_ACCESS_TOKEN"):
            await client.check()


@pytest.mark.parametrize(
    "credentials",
    [
        lambda token: Credentials(token=Secret(token)),
        lambda token: Credentials(user="admin", password=Secret(token)),
    ],
)
async def test_every_kind_of_credentials(server: EmbeddedServer, credentials: object) -> None:
    assert callable(credentials)
    settings = replace(settings_of(server), credentials=credentials(server.token))
    async with client_of(settings) as client:
        await client.check()


async def test_what_is_no_artifactory_is_said_to_be_none(server: EmbeddedServer) -> None:
    async with client_of(settings_of(server)) as client:
        for fault in (Fault.garbage(), Fault.status(404)):
            server.faults.add(fault)
            with pytest.raises(ConfigError, match="not an Artifactory"):
                await client.check()
            server.faults.clear()


@pytest.mark.parametrize("verb", ["delete", "move"])
async def test_what_is_made_a_moment_after_it_was_missing_makes_no_repository_read_only(
    server: EmbeddedServer, verb: str
) -> None:
    async with client_of(settings_of(server)) as client:
        await client.repositories()
        held = server.faults.add(Fault.hold(f"/api/storage/{REPO}/f", times=1))
        path = RepoPath(REPO, "f")

        async def make() -> None:
            await trio.to_thread.run_sync(held.wait_hit)
            server.deploy(REPO, "f", b"made by another")
            held.release()

        change = client.delete(path) if verb == "delete" else client.move(path, RepoPath(REPO, "g"))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(make)
            with pytest.raises(NotFound):
                await change
            held.reached.set()  # nobody asked whether it is there


def certificate(directory: Path) -> TlsFiles:
    files = TlsFiles(directory / "cert.pem", directory / "key.pem")
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"),
            *("-keyout", str(files.key), "-out", str(files.certificate)),
        ],
        check=True,
        capture_output=True,
    )
    return files


async def test_tls_failures_say_what_to_do(tmp_path: Path) -> None:
    files = certificate(tmp_path)
    with EmbeddedServer(tmp_path / "server", tls=files) as server:
        server.create_repository(REPO)
        settings = settings_of(server)
        async with client_of(settings) as client:
            with pytest.raises(ConfigError, match=r"not trusted.*--ca-file"):
                await client.check()
        for trusting in (
            replace(settings, ca_file=files.certificate),
            replace(settings, verify_tls=False),
        ):
            async with client_of(trusting) as client:
                await client.check()
        plain = replace(settings, url=settings.url.replace("https:", "http:"))
        async with client_of(plain) as client:
            with pytest.raises(ConfigError):
                await client.check()


@pytest.mark.parametrize(
    "fault",
    [
        Fault.drop(times=2),
        Fault.cut(times=3),
        Fault.status(503, times=2),
        Fault.status(429, times=1, headers={"Retry-After": "0"}),
        Fault.drop("/api/repositories*", times=2),
    ],
    ids=lambda fault: f"{fault.kind} {fault.path}",
)
async def test_a_server_that_is_there_is_asked_again_at_the_start(
    server: EmbeddedServer, fault: Fault
) -> None:
    server.faults.add(fault)
    async with client_of(settings_of(server)) as client:
        await client.check()
    assert fault.hits == fault.times


async def test_a_server_that_goes_on_hanging_up_is_told_after_a_while(
    server: EmbeddedServer,
) -> None:
    server.faults.add(Fault.drop())
    async with client_of(replace(settings_of(server), retries_s=0.5)) as client:
        with pytest.raises(NotReachable, match=r"is it an https:// server\?"):
            await client.check()


def test_every_exception_of_httpx_is_mapped() -> None:
    request = httpx.Request("GET", "https://u:hunter2@a.example/x?signature=hunter3")
    for name, kind in inspect.getmembers(httpx, inspect.isclass):
        if not issubclass(kind, Exception) or name == "HTTPError":
            continue
        error: Exception
        if issubclass(kind, httpx.HTTPStatusError):
            error = kind("text", request=request, response=httpx.Response(500))
        elif kind in (httpx.StreamConsumed, httpx.ResponseNotRead, httpx.RequestNotRead) or (
            kind is httpx.StreamClosed
        ):
            error = kind()
        else:
            error = kind("text")
        with pytest.raises(RemoteError) as caught, mapped("GET", request.url):
            raise error
        assert "hunter" not in str(caught.value), name


def test_the_time_to_come_back() -> None:
    def after(text: str) -> float | None:
        headers = {"Retry-After": text, "Date": "Sun, 06 Nov 1994 08:49:37 GMT"}
        request = httpx.Request("GET", "https://a.example/x")
        error = failure(httpx.Response(429, headers=headers, request=request), b"")
        assert isinstance(error, RateLimited)
        return error.retry_after_s

    assert after("7") == 7.0
    assert after("Sun, 06 Nov 1994 08:49:47 GMT") == 10.0
    assert after("Sun, 06 Nov 1994 08:00:00 GMT") == 0.0
    assert after("soon") is None


def test_credentials_do_not_follow_to_another_origin() -> None:
    def answer(location: str) -> httpx.Response:
        request = httpx.Request("GET", "https://a.example/artifactory/r/f")
        return httpx.Response(302, headers={"Location": location}, request=request)

    headers = {"Authorization": "Bearer x", "X-JFrog-Art-Api": "x", "Cookie": "x", "Range": "r"}
    assert next_hop(answer("https://s3.example/f?sig=1"), headers)[1] == {"Range": "r"}
    assert next_hop(answer("https://a.example:8443/f"), headers)[1] == {"Range": "r"}
    assert next_hop(answer("/elsewhere"), headers)[1] == headers
    for refused in ("http://a.example/f", "ftp://a.example/f"):
        with pytest.raises(ProtocolViolation):
            next_hop(answer(refused), headers)


def test_an_unusable_ca_file_is_named(tmp_path: Path) -> None:
    ca_file = tmp_path / "ca.pem"
    ca_file.write_text("no certificate")
    settings = ServerSettings("https://a.example/artifactory", ca_file=ca_file)
    with pytest.raises(ConfigError, match=str(ca_file)):
        ArtifactoryClient(settings, Metrics())
