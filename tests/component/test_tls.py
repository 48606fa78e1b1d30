"""What TLS refuses is said in one line that names the reason, by every command."""

import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from jfs.artifactory import ArtifactoryClient, HttpRangeSource
from jfs.artifactory.exchange import clock_remark
from jfs.config import ServerSettings
from jfs.errors import ConfigError, Untrusted
from jfs.extents import Extent
from jfs.metrics import Metrics
from jfs.model import ArtifactVersion, ContentKey, RepoPath
from jfs.server import EmbeddedServer, TlsFiles
from tests.component.composed import server_settings
from tests.component.test_ranges import Collector
from tests.conftest import REPO
from tests.mount.commands import run_here

COMMANDS = [
    ["ls", f"{REPO}/m"],
    ["find", REPO, "--prop", "a=b"],
    ["props", "get", f"{REPO}/m"],
    ["props", "set", f"{REPO}/m", "a=b"],
    ["cp", f"{REPO}/m", f"{REPO}/n"],
    ["mv", f"{REPO}/m", f"{REPO}/n"],
    ["promote", f"{REPO}/m", f"{REPO}/n"],
    ["warm", f"{REPO}/m"],
    ["build", "show", "b", "1"],
]


def test_commands_say_what_to_do(tls_server: EmbeddedServer, tmp_path: Path) -> None:
    for arguments in COMMANDS:
        said = run_here(tls_server, *arguments, code=2, XDG_CACHE_HOME=str(tmp_path))
        assert "its certificate is not trusted (self-signed certificate)" in said
        assert "--ca-file" in said
        assert tls_server.url in said


def signed_certificate(directory: Path, *options: str) -> TlsFiles:
    files = TlsFiles(directory / "cert.pem", directory / "key.pem")
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-nodes", "-subj", "/CN=x", "-keyout", str(files.key), "-out"),
            *(str(files.certificate), *options),
        ],
        check=True,
        capture_output=True,
    )
    return files


async def refusals(settings: ServerSettings) -> str:
    """What the start, the control plane and the bulk plane say: one reason."""
    settings = replace(settings, request_deadline_s=5, connect_timeout_s=5, idle_timeout_s=5)
    client = ArtifactoryClient(settings, Metrics())
    with pytest.raises(ConfigError) as start:
        await client.check()
    await client.aclose()
    client = ArtifactoryClient(settings, Metrics())  # the first one knows by now, and asks no more
    with pytest.raises(Untrusted) as control:
        await client.stat(RepoPath(REPO, "f"))
    await client.aclose()
    source = HttpRangeSource(settings, Metrics())
    version = ArtifactVersion(RepoPath(REPO, "f"), ContentKey("sha1:" + "0" * 40, 9), None)
    with pytest.raises(Untrusted) as bulk:
        source.fetch(version, Extent(0, 9), Collector(Extent(0, 9)))
    source.close()
    assert control.value.message == bulk.value.message
    assert control.value.message in str(start.value)
    return control.value.message


async def test_an_expired_certificate(tmp_path: Path) -> None:
    files = signed_certificate(tmp_path, "-addext", "subjectAltName=IP:127.0.0.1")
    subprocess.run(
        [
            *("openssl", "x509", "-in", str(files.certificate), "-signkey", str(files.key)),
            *("-days", "-1", "-out", str(files.certificate)),
        ],
        check=True,
        capture_output=True,
    )
    with EmbeddedServer(tmp_path / "server", tls=files) as server:
        settings = replace(server_settings(server), ca_file=files.certificate)
        assert "has expired by the clock of this machine (20" in await refusals(settings)


def test_a_clock_that_is_surely_wrong_is_named() -> None:
    installed = datetime(2026, 7, 1, tzinfo=UTC)
    assert "(1970-01-01), which is wrong" in clock_remark(
        datetime(1970, 1, 1, tzinfo=UTC), installed
    )
    assert "wrong" not in clock_remark(datetime(2026, 6, 30, 12, tzinfo=UTC), installed)


async def test_a_certificate_for_another_name(tmp_path: Path) -> None:
    files = signed_certificate(tmp_path, "-addext", "subjectAltName=DNS:art.example")
    with EmbeddedServer(tmp_path / "server", tls=files) as server:
        settings = replace(server_settings(server), ca_file=files.certificate)
        said = await refusals(settings)
    assert "for another name (IP address mismatch" in said
    assert "is the address right?" in said


async def test_https_to_an_http_server(server: EmbeddedServer) -> None:
    settings = server_settings(server)
    said = await refusals(replace(settings, url=settings.url.replace("http:", "https:")))
    assert "is it an http:// server?" in said


@contextmanager
def speaking_tls(answer: bytes) -> Iterator[int]:
    """A server that answers plain HTTP as servers with TLS do."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                connection, _ = listener.accept()
                with connection:
                    if not connection.recv(4096):
                        return
                    connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        port = listener.getsockname()[1]
        yield port
        socket.create_connection(("127.0.0.1", port)).close()
        thread.join()


@pytest.mark.parametrize(
    "answer",
    [
        b"\x15\x03\x01\x00\x02\x02\x46",
        b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 103\r\n\r\n"
        b"<html><head><title>400 The plain HTTP request was sent to HTTPS port</title></head>"
        b"<body></body></html>",
        b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n",
    ],
    ids=["alert", "nginx", "go"],
)
async def test_http_to_an_https_server(answer: bytes) -> None:
    with speaking_tls(answer) as port:
        said = await refusals(ServerSettings(f"http://127.0.0.1:{port}/artifactory"))
    assert "is it an https:// server?" in said


async def test_http_to_a_server_that_hangs_up(tls_server: EmbeddedServer) -> None:
    url = tls_server.url.replace("https:", "http:")
    client = ArtifactoryClient(ServerSettings(url), Metrics())
    with pytest.raises(ConfigError, match="is it an https:// server"):
        await client.check()
    await client.aclose()
