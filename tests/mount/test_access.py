"""Certificates, netrc and the place of a service, as a daemon and its commands find them."""

import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from jfs.server import EmbeddedServer, TlsFiles
from tests.component.test_certificates import joined, signed
from tests.conftest import REPO
from tests.mount.mounting import JFS, clean_environ


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    root = tmp_path / "root"
    root.mkdir()
    yield root
    subprocess.run(["fusermount3", "-uzq", str(root)], check=False)


def test_a_daemon_finds_files_that_were_named_from_elsewhere(
    certificate: TlsFiles, root: Path, tmp_path: Path
) -> None:
    """It changes its directory; what names are relative to is where it was started."""
    ann = signed(tmp_path, "ann")
    joined(tmp_path, ann)
    (tmp_path / "ca.pem").write_bytes(certificate.certificate.read_bytes())
    environ = {
        **clean_environ(),
        "REQUESTS_CA_BUNDLE": "ca.pem",
        "NETRC": "netrc",
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }

    def jfs(*arguments: str) -> str:
        done = subprocess.run(
            [*JFS, *arguments],
            cwd=tmp_path,
            env=environ,
            check=False,
            capture_output=True,
            text=True,
            timeout=40,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    tls = replace(certificate, clients=ann.certificate)
    with EmbeddedServer(tmp_path / "server", tls=tls) as server:
        server.create_repository(REPO)
        server.deploy(REPO, "m/a", b"content")
        (tmp_path / "netrc").write_text(f"machine 127.0.0.1 login admin password {server.token}\n")
        options = ("--client-cert", "both.pem", "--daemon", "--log-file", "log")
        jfs("mount", f"{server.url}#{REPO}", str(root), *options)
        assert (root / "m" / "a").read_bytes() == b"content"
        (root / "m" / "b").write_bytes(b"written")
        shown = jfs("ls", str(root / "m"), "--client-cert", "both.pem")
        assert {"a", "b"} <= set(shown.split())
        jfs("umount", str(root))
    assert server.token not in (tmp_path / "log").read_text()
