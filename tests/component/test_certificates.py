"""Certificates that we trust and that we show, from whichever option or variable, and rotated."""

import logging
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from jfs.artifactory import Access, ArtifactoryClient
from jfs.artifactory.trust import Trust
from jfs.config import ServerSettings
from jfs.errors import ConfigError
from jfs.metrics import Metrics
from jfs.server import EmbeddedServer, TlsFiles
from tests.component.composed import server_settings
from tests.component.test_proxies import use_everything
from tests.component.test_tls import refusals
from tests.conftest import REPO
from tests.mount.commands import run_here


def signed(directory: Path, name: str) -> TlsFiles:
    """A certificate of a client, which is its own authority."""
    files = TlsFiles(directory / f"{name}.pem", directory / f"{name}.key")
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-nodes", "-subj", f"/CN={name}", "-keyout", str(files.key)),
            *("-out", str(files.certificate)),
        ],
        check=True,
        capture_output=True,
    )
    return files


@pytest.fixture(scope="module")
def ann(tmp_path_factory: pytest.TempPathFactory) -> TlsFiles:
    return signed(tmp_path_factory.mktemp("ann"), "ann")


@pytest.fixture(scope="module")
def ben(tmp_path_factory: pytest.TempPathFactory) -> TlsFiles:
    return signed(tmp_path_factory.mktemp("ben"), "ben")


def joined(directory: Path, files: TlsFiles) -> Path:
    """Certificate and key in one file."""
    both = directory / "both.pem"
    both.write_bytes(files.key.read_bytes() + files.certificate.read_bytes())
    return both


async def test_a_client_certificate_lets_us_in(
    certificate: TlsFiles, ann: TlsFiles, tmp_path: Path
) -> None:
    """Both planes and uploads; certificate and key in one file or in two."""
    files = replace(certificate, clients=ann.certificate)
    with EmbeddedServer(tmp_path / "server", tls=files) as server:
        server.create_repository(REPO)
        settings = replace(server_settings(server), ca_file=certificate.certificate)
        both = joined(tmp_path, ann)
        await use_everything(replace(settings, client_cert=both), tmp_path)
        two = replace(settings, client_cert=ann.certificate, client_key=ann.key)
        await use_everything(two, tmp_path)


def test_commands_show_it(certificate: TlsFiles, ann: TlsFiles, tmp_path: Path) -> None:
    files = replace(certificate, clients=ann.certificate)
    with EmbeddedServer(tmp_path / "server", tls=files) as server:
        server.create_repository(REPO)
        server.deploy(REPO, "a", b"x")
        ca_file = ("--ca-file", str(certificate.certificate))
        both = joined(tmp_path, ann)
        assert "a" in run_here(server, "ls", REPO, *ca_file, "--client-cert", str(both)).split()
        two = ("--client-cert", str(ann.certificate), "--client-key", str(ann.key))
        assert "a" in run_here(server, "ls", REPO, *ca_file, *two).split()


@contextmanager
def choosy(context: ssl.SSLContext) -> Iterator[int]:
    """A server that lets nobody in, and says why as TLS does."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                connection, _ = listener.accept()
                with connection:
                    if not connection.recv(1, socket.MSG_PEEK):
                        return
                    # The copy outlives the handshake: closed with bytes unread, it would send a
                    # reset, which overtakes the alert.
                    with connection.dup() as copy:
                        with suppress(ssl.SSLError):
                            context.wrap_socket(connection, server_side=True).close()
                        copy.shutdown(socket.SHUT_WR)
                        while copy.recv(4096):
                            pass

        thread = threading.Thread(target=serve)
        thread.start()
        port = listener.getsockname()[1]
        yield port
        socket.create_connection(("127.0.0.1", port)).close()
        thread.join()


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_who_has_none_or_a_wrong_one_is_told(
    certificate: TlsFiles, ann: TlsFiles, ben: TlsFiles, version: ssl.TLSVersion
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate.certificate, certificate.key)
    context.load_verify_locations(ann.certificate)
    context.verify_mode = ssl.CERT_REQUIRED
    context.maximum_version = version
    with choosy(context) as port:
        settings = ServerSettings(
            f"https://127.0.0.1:{port}/artifactory", ca_file=certificate.certificate
        )
        assert "with --client-cert" in await refusals(settings)
        wrong = replace(settings, client_cert=ben.certificate, client_key=ben.key)
        assert "with --client-cert" in await refusals(wrong)


async def test_a_client_certificate_is_rotated(
    certificate: TlsFiles,
    ann: TlsFiles,
    ben: TlsFiles,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    expected_logs: list[str],
) -> None:
    """First the certificate is replaced, then its key: between them the old pair serves on."""
    expected_logs.append("is not the key of --client-cert .*: what it held before serves on")
    caplog.set_level(logging.INFO, "jfs")
    cert, key = tmp_path / "cert", tmp_path / "key"
    cert.write_bytes(ann.certificate.read_bytes())
    key.write_bytes(ann.key.read_bytes())
    files = replace(certificate, clients=ann.certificate)
    with EmbeddedServer(tmp_path / "server", tls=files) as server:
        server.create_repository(REPO)
        settings = replace(
            server_settings(server),
            ca_file=certificate.certificate,
            client_cert=cert,
            client_key=key,
        )
        access = Access(settings, {})
        client = ArtifactoryClient(settings, Metrics(), access)
        await client.check()
        cert.write_bytes(ben.certificate.read_bytes())
        await client.check()
        await client.aclose()  # a server that stops with connections open leaves warnings behind
        port, directory = server.port, tmp_path / "server"
    assert [record.levelname for record in caplog.records if "key" in record.message] == ["WARNING"]
    key.write_bytes(ben.key.read_bytes())
    files = replace(certificate, clients=ben.certificate)
    with EmbeddedServer(directory, port=port, tls=files):
        client = ArtifactoryClient(settings, Metrics(), access)
        await client.check()
        await client.aclose()
    assert any("can be used again" in record.message for record in caplog.records)


def names_shown(context: ssl.SSLContext, server: ssl.SSLContext) -> bytes | None:
    """Shake hands in memory; return the certificate that the client showed."""
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = context.wrap_bio(down, up, server_hostname="localhost")
    theirs = server.wrap_bio(up, down, server_side=True)
    waiting = [ours, theirs]
    while waiting:
        for each in list(waiting):
            try:
                each.do_handshake()
                waiting.remove(each)
            except ssl.SSLWantReadError:
                pass
    return theirs.getpeercert(binary_form=True)


def shown(trust: Trust, host: str, port: int | None) -> ssl.SSLContext:
    return trust.context(ours=trust.is_of_server(host, port))


def test_only_the_server_itself_sees_it(certificate: TlsFiles, ann: TlsFiles) -> None:
    """Not the storage that a redirect leads to, nor another port."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificate.certificate, certificate.key)
    server.verify_mode = ssl.CERT_OPTIONAL
    server.load_verify_locations(ann.certificate)
    settings = ServerSettings(
        "https://Art.Example/artifactory",
        ca_file=certificate.certificate,
        client_cert=ann.certificate,
        client_key=ann.key,
    )
    trust = Trust(settings, {})
    assert names_shown(shown(trust, "art.example", None), server) is not None
    assert names_shown(shown(trust, "art.example", 443), server) is not None
    assert names_shown(shown(trust, "art.example", 8443), server) is None
    assert names_shown(shown(trust, "s3.example", None), server) is None


def encrypted(directory: Path, files: TlsFiles) -> Path:
    key = directory / "encrypted.key"
    subprocess.run(
        [
            *("openssl", "pkey", "-in", str(files.key), "-aes256", "-passout", "pass:hunter2"),
            *("-out", str(key)),
        ],
        check=True,
        capture_output=True,
    )
    return key


@pytest.mark.parametrize(
    ("cert", "key", "reason"),
    [
        ("absent", None, "--client-cert .*absent: No such file"),
        ("ann.pem", "absent", "--client-key .*absent: No such file"),
        ("ann.pem", None, "--client-cert .*ann.pem: holds no private key: .*--client-key"),
        ("ann.pem", "ben.key", "--client-key .*ben.key: is not the key of --client-cert .*ann.pem"),
        ("ann.pem", "encrypted.key", "--client-key .*encrypted.key: the key is encrypted"),
        ("text", "ann.key", "text.*: not a certificate and a key in PEM"),
        ("ann.pem", "text", "text.*: not a certificate and a key in PEM"),
        (".", None, "--client-cert .*: Is a directory"),
    ],
)
def test_a_client_certificate_that_cannot_be_used(
    ann: TlsFiles, ben: TlsFiles, tmp_path: Path, cert: str, key: str | None, reason: str
) -> None:
    for each in (ann.certificate, ann.key, ben.key):
        (tmp_path / each.name).write_bytes(each.read_bytes())
    (tmp_path / "text").write_text("text")
    encrypted(tmp_path, ann)
    settings = ServerSettings(
        "https://a.example/artifactory",
        client_cert=tmp_path / cert,
        client_key=tmp_path / key if key else None,
    )
    with pytest.raises(ConfigError, match=reason):
        Trust(settings, {})


def test_a_key_without_its_certificate(server: EmbeddedServer) -> None:
    said = run_here(server, "ls", REPO, "--client-key", "/k", code=2)
    assert "give its certificate with --client-cert" in said


# whose certificates are trusted


def folder(name: str, file: str) -> Callable[[Path, TlsFiles], Mapping[str, str]]:
    def make(tmp_path: Path, good: TlsFiles) -> Mapping[str, str]:
        (tmp_path / "certs").mkdir()
        (tmp_path / "certs" / file).write_bytes(good.certificate.read_bytes())
        (tmp_path / "certs" / "server.key").write_bytes(good.key.read_bytes())
        (tmp_path / "certs" / "README").write_text("text")
        return {name: str(tmp_path / "certs")}

    return make


GOOD: dict[str, Callable[[Path, TlsFiles], Mapping[str, str]]] = {
    "requests": lambda _, good: {
        "REQUESTS_CA_BUNDLE": str(good.certificate),
        "CURL_CA_BUNDLE": "/absent",
        "SSL_CERT_FILE": "/absent",
    },
    "curl": lambda _, good: {
        "REQUESTS_CA_BUNDLE": "",
        "CURL_CA_BUNDLE": str(good.certificate),
        "SSL_CERT_FILE": "/absent",
    },
    "openssl": lambda _, good: {"SSL_CERT_FILE": str(good.certificate)},
    "both of openssl": lambda tmp_path, good: {
        "SSL_CERT_FILE": str(signed(tmp_path, "other").certificate),
        "SSL_CERT_DIR": f"{tmp_path}/none:{good.certificate.parent}",
    },
    "a folder of any names": folder("REQUESTS_CA_BUNDLE", "ca"),
    "a folder of hashes": folder("SSL_CERT_DIR", "5ed36f99.0"),
    "a folder as kubelet makes it": folder("SSL_CERT_DIR", "..data"),
}


@pytest.mark.parametrize("given", GOOD)
async def test_where_authorities_are_found(
    tls_server: EmbeddedServer, certificate: TlsFiles, tmp_path: Path, given: str
) -> None:
    settings = server_settings(tls_server)
    (tmp_path / "none").mkdir()
    access = Access(settings, GOOD[given](tmp_path, certificate))
    client = ArtifactoryClient(settings, Metrics(), access)
    await client.check()
    await client.aclose()


@pytest.mark.parametrize(
    ("name", "path", "reason"),
    [
        ("REQUESTS_CA_BUNDLE", "absent", "absent: No such file"),
        ("CURL_CA_BUNDLE", "text", "text: not a file of PEM certificates"),
        ("SSL_CERT_FILE", "absent", "absent: No such file"),
        ("SSL_CERT_DIR", "absent", "absent: No such file"),
        ("SSL_CERT_DIR", "none", "none: holds no PEM certificates"),
    ],
)
def test_authorities_that_cannot_be_used(tmp_path: Path, name: str, path: str, reason: str) -> None:
    (tmp_path / "text").write_text("text")
    (tmp_path / "none").mkdir()
    environ = {name: str(tmp_path / path)}
    with pytest.raises(ConfigError, match=f"{name} .*{reason}"):
        Trust(ServerSettings("https://a.example/artifactory"), environ)
    # a server that is asked without TLS does not care, until it redirects to one with it
    trust = Trust(ServerSettings("http://a.example/artifactory"), environ)
    with pytest.raises(ConfigError, match=f"{name} .*{reason}"):
        trust.context(ours=False)


async def test_an_option_is_nearer_than_variables(
    tls_server: EmbeddedServer, certificate: TlsFiles
) -> None:
    settings = replace(server_settings(tls_server), ca_file=certificate.certificate)
    environ = {"REQUESTS_CA_BUNDLE": "/absent", "SSL_CERT_FILE": "/absent"}
    client = ArtifactoryClient(settings, Metrics(), Access(settings, environ))
    await client.check()
    await client.aclose()


async def test_authorities_are_rotated(
    tls_server: EmbeddedServer, certificate: TlsFiles, ann: TlsFiles, tmp_path: Path
) -> None:
    """Connections that were made before are not used any more."""
    ca_file = tmp_path / "ca.pem"
    ca_file.write_bytes(certificate.certificate.read_bytes())
    settings = replace(server_settings(tls_server), ca_file=ca_file)
    access = Access(settings, {})
    client = ArtifactoryClient(settings, Metrics(), access)
    await client.check()
    ca_file.write_bytes(ann.certificate.read_bytes())
    with pytest.raises(ConfigError, match="not trusted"):
        await client.check()
    await client.aclose()
    ca_file.write_bytes(certificate.certificate.read_bytes())
    client = ArtifactoryClient(settings, Metrics(), access)  # who has not seen an outage
    await client.check()
    await client.aclose()
