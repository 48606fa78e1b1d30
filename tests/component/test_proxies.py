"""Both planes by way of a proxy, and past it."""

import hashlib
import io
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from jfs.artifactory import ArtifactoryClient, HttpRangeSource
from jfs.config import ServerSettings
from jfs.errors import AccessDenied, ConfigError, DeadlineExceeded, RemoteError, Unavailable
from jfs.extents import Extent
from jfs.metrics import Metrics
from jfs.model import ArtifactVersion, Checksums, ContentKey, Deployment, FileInfo, RepoPath
from jfs.server import EmbeddedServer, TlsFiles
from tests.component.composed import server_settings
from tests.component.proxy import forward_proxy
from tests.component.test_ranges import Collector
from tests.conftest import REPO
from tests.mount.commands import run_here

DATA = b"weights" * 1000
SUMS = Checksums(hashlib.sha256(DATA).hexdigest(), hashlib.sha1(DATA).hexdigest())
PATH = RepoPath(REPO, "m/w.bin")
VERSION = ArtifactVersion(PATH, ContentKey(f"sha256:{SUMS.sha256}", len(DATA)), SUMS.sha1)
BASIC = "Basic YW5uOmh1bnRlcjI="  # ann:hunter2


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


@asynccontextmanager
async def client_of(settings: ServerSettings) -> AsyncIterator[ArtifactoryClient]:
    client = ArtifactoryClient(settings, Metrics())
    yield client
    await client.aclose()


def fetch(settings: ServerSettings) -> bytes:
    source = HttpRangeSource(settings, Metrics())
    sink = Collector(Extent(7, 700))
    try:
        source.fetch(VERSION, Extent(7, 700), sink)
    finally:
        source.close()
    return sink.data


async def use_everything(settings: ServerSettings, folder: Path) -> None:
    """Upload, look, read."""
    (folder / "w.bin").write_bytes(DATA)
    with io.FileIO(folder / "w.bin") as file:
        async with client_of(settings) as client:
            await client.check()
            await client.deploy(Deployment(PATH, len(DATA), SUMS), file.fileno())
            info = await client.stat(PATH)
    assert isinstance(info, FileInfo)
    assert info.size == len(DATA)
    assert fetch(settings) == DATA[7:700]


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
async def test_http_by_a_proxy(
    server: EmbeddedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    """Only the proxy knows the host; both planes and uploads go there, with credentials."""
    settings = replace(server_settings(server), url="http://art.invalid/artifactory")
    with forward_proxy({"art.invalid": server.port}, authorization=BASIC) as proxy:
        monkeypatch.setenv(variable, f"http://ann:hunter2@127.0.0.1:{proxy.port}")
        await use_everything(settings, tmp_path)
    assert {"GET", "PUT"} == set(proxy.seen)


async def test_https_through_a_tunnel(
    tls_server: EmbeddedServer,
    certificate: TlsFiles,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = replace(
        server_settings(tls_server),
        url=f"https://localhost:{tls_server.port}/artifactory",
        ca_file=certificate.certificate,
    )
    with forward_proxy({"localhost": tls_server.port}, authorization=BASIC) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"ann:hunter2@127.0.0.1:{proxy.port}")
        await use_everything(settings, tmp_path)
    assert set(proxy.seen) == {"CONNECT"}


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_a_proxy_that_is_reached_by_tls(
    server: EmbeddedServer,
    tls_server: EmbeddedServer,
    certificate: TlsFiles,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    scheme: str,
) -> None:
    """TLS to the proxy, and for an https server TLS inside of it."""
    behind = tls_server if scheme == "https" else server
    settings = replace(
        server_settings(behind),
        url=f"{scheme}://localhost:{behind.port}/artifactory",
        ca_file=certificate.certificate,
    )
    hosts = {"localhost": behind.port}
    with forward_proxy(hosts, authorization=BASIC, tls=certificate) as proxy:
        monkeypatch.setenv("ALL_PROXY", f"https://ann:hunter2@127.0.0.1:{proxy.port}")
        await use_everything(settings, tmp_path)
    assert set(proxy.seen) == ({"CONNECT"} if scheme == "https" else {"GET", "PUT"})


@pytest.mark.parametrize("encrypted", [False, True])
async def test_a_proxy_that_dies_on_the_way(
    tls_server: EmbeddedServer,
    certificate: TlsFiles,
    monkeypatch: pytest.MonkeyPatch,
    encrypted: bool,
) -> None:
    """In the middle of a body: what is missing comes by the next connection."""
    tls_server.deploy(REPO, PATH.path, DATA)
    settings = replace(
        server_settings(tls_server),
        url=f"https://localhost:{tls_server.port}/artifactory",
        ca_file=certificate.certificate,
    )
    hosts = {"localhost": tls_server.port}
    tls = certificate if encrypted else None
    sink = Collector(Extent(0, len(DATA)))
    # The handshake has 1.2 kB, the file 7 kB.
    with forward_proxy(hosts, dies_after=5000, tls=tls) as proxy:
        scheme = "https" if encrypted else "http"
        monkeypatch.setenv("ALL_PROXY", f"{scheme}://127.0.0.1:{proxy.port}")
        source = HttpRangeSource(settings, Metrics())
        source.fetch(VERSION, Extent(0, len(DATA)), sink)
        source.close()
    assert sink.data == DATA
    assert proxy.seen == ["CONNECT", "CONNECT"]


@pytest.mark.parametrize("no_proxy", ["127.0.0.0/8,fd07::/64", "[::1],127.0.0.1", "*"])
async def test_past_the_proxy(
    server: EmbeddedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_proxy: str
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("NO_PROXY", no_proxy)
    await use_everything(server_settings(server), tmp_path)


async def failures(settings: ServerSettings) -> tuple[RemoteError, RemoteError, ConfigError]:
    """What the control plane, the bulk plane and the start say."""
    settings = replace(settings, retries_s=0.1, jobs_retries_s=0.1)
    async with client_of(settings) as client:
        with pytest.raises(RemoteError) as control:
            await client.stat(PATH)
        with pytest.raises(ConfigError) as start:
            await client.check()
    with pytest.raises(RemoteError) as bulk:
        fetch(settings)
    for caught in (control, start, bulk):
        assert "hunter2" not in str(caught.value)
    return control.value, bulk.value, start.value


async def test_a_proxy_that_wants_other_credentials(
    server: EmbeddedServer,
    tls_server: EmbeddedServer,
    certificate: TlsFiles,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with forward_proxy({}, authorization="Basic other") as proxy:
        for name in ("HTTP_PROXY", "HTTPS_PROXY"):
            monkeypatch.setenv(name, f"http://ann:hunter2@127.0.0.1:{proxy.port}")
        for each in (server, tls_server):
            settings = replace(server_settings(each), ca_file=certificate.certificate)
            control, bulk, start = await failures(settings)
            assert isinstance(control, AccessDenied)
            assert isinstance(bulk, AccessDenied)
            for error in (control, bulk, start):
                assert "the proxy wants other credentials" in str(error)


async def test_a_proxy_that_fails(
    tls_server: EmbeddedServer, certificate: TlsFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = replace(server_settings(tls_server), ca_file=certificate.certificate)
    with forward_proxy({}, refusal=502) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"http://ann:hunter2@127.0.0.1:{proxy.port}")
        for error in await failures(settings):
            assert "the proxy answers 502" in str(error)
    for error in await failures(settings):  # it is gone
        assert f"the proxy http://127.0.0.1:{proxy.port} cannot be reached" in str(error)


async def test_a_proxy_that_is_not_trusted(
    server: EmbeddedServer, certificate: TlsFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    with forward_proxy({}, tls=certificate) as proxy:
        monkeypatch.setenv("HTTP_PROXY", f"https://ann:hunter2@127.0.0.1:{proxy.port}")
        for error in await failures(server_settings(server)):
            assert "its certificate is not trusted" in str(error)


async def test_a_proxy_whose_name_nobody_knows(
    server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://proxy.invalid:3128")
    for error in await failures(server_settings(server)):
        assert "the proxy http://proxy.invalid:3128 cannot be reached: its name" in str(error)


async def test_a_proxy_that_says_nothing(
    tls_server: EmbeddedServer, certificate: TlsFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = replace(
        server_settings(tls_server),
        ca_file=certificate.certificate,
        connect_timeout_s=0.3,
        idle_timeout_s=0.3,
    )
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{silent.getsockname()[1]}")
        control, bulk, _ = await failures(settings)
        assert isinstance(control, Unavailable)
        assert isinstance(bulk, DeadlineExceeded)


def test_a_proxy_that_cannot_be_used(
    server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "socks5://ann:hunter2@127.0.0.1:1080")
    with pytest.raises(ConfigError, match="socks5://"):
        ArtifactoryClient(server_settings(server), Metrics())
    with pytest.raises(ConfigError, match="socks5://"):
        fetch(server_settings(server))


def test_commands_say_what_is_wrong_with_a_proxy(server: EmbeddedServer, tmp_path: Path) -> None:
    for value in ("socks5://ann:hunter2@p:1080", "http://ann:hunter2@[bad", "ftp://hunter2@p"):
        environ = {"http_proxy": value, "XDG_CACHE_HOME": str(tmp_path)}
        for arguments in (["ls", REPO], ["warm", REPO], ["props", "get", REPO]):
            said = run_here(server, *arguments, code=2, **environ)
            assert "http_proxy: " in said
            assert "hunter2" not in said
