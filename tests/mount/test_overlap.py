"""A large file is on its way while it is written: through TLS, and in a mount that is killed."""

import hashlib
import os
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from jfs.extents import MiB
from jfs.model import is_passing
from jfs.server import EmbeddedServer, Fault, TlsFiles
from tests.component.server_requests import REPO, Requests
from tests.mount.conftest import Mounter
from tests.mount.mounting import Mounted, run_jfs

pytestmark = pytest.mark.fuse
PASSING = f"/{REPO}/.jfs-staging-*"
_SIZE = 66 * MiB  # it begins at 64
_DEADLINE_S = 30


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A file of which no two pieces are alike."""
    file = tmp_path / "source"
    with file.open("wb") as opened:
        for number in range(_SIZE // MiB):
            opened.write(number.to_bytes(8, "big") * (MiB // 8))
    return file


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def there(ask: Requests, path: str) -> str | None:
    return ask("HEAD", path).headers.get("x-checksum-sha256")


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)  # the server does not tell


def passing(ask: Requests) -> list[str]:
    rows = ask("GET", f"/api/storage/{REPO}?list&deep=1").json()["files"]
    return [row["uri"] for row in rows if is_passing(row["uri"].strip("/"))]


def mount(mounter: Mounter, server: EmbeddedServer, *options: str, **environ: str) -> Mounted:
    address = f"{server.url}/{REPO}"
    return mounter(address, *options, JF_ACCESS_TOKEN=server.token, **environ)


def test_a_large_file_is_on_its_way_while_it_is_written(
    tls_server: EmbeddedServer, certificate: TlsFiles, mounter: Mounter, source: Path
) -> None:
    """Through TLS, where nothing can be sent by sendfile, and no early answer be seen."""
    server = tls_server
    mounted = mount(mounter, server, "--ca-file", str(certificate.certificate))
    with source.open("rb") as data, (mounted.root / "f").open("wb", buffering=0) as file:
        while piece := data.read(MiB):
            file.write(piece)
        until(lambda: server.stats.bytes_received >= 64 * MiB)
        assert os.listdir(mounted.root) == ["f"]
    assert server.stats.bytes_received == _SIZE
    assert os.getxattr(mounted.root / "f", "user.jfs.sha256").decode() == digest(source)


def test_a_mount_that_is_killed_loses_nothing_and_leaves_nothing(
    server: EmbeddedServer, mounter: Mounter, source: Path, tmp_path: Path
) -> None:
    """One file is in its place, and its other name is not removed yet; one is being written."""
    ask = Requests(server)
    refused = server.faults.add(Fault.status(503, PASSING, method="DELETE", after=1))
    mounted = mount(mounter, server)
    subprocess.run(["cp", source, mounted.root / "f"], check=True, timeout=_DEADLINE_S)
    assert there(ask, f"/{REPO}/f") == digest(source)
    server.stats.reset()
    with source.open("rb") as data:
        data.seek(1)
        expected = hashlib.sha256()
        file = os.open(mounted.root / "g", os.O_WRONLY | os.O_CREAT)
        while piece := data.read(MiB):
            expected.update(piece)
            os.write(file, piece)
    until(lambda: server.stats.bytes_received >= MiB)
    mounted.kill()
    with pytest.raises(OSError, match="not connected"):
        os.close(file)
    assert len(passing(ask)) == 1  # that of f; half a file is nothing
    staging = tmp_path / "cache" / "staging"
    server.faults.remove(refused)

    mounted = mount(mounter, server, "--no-overlap-uploads")
    until(lambda: not list(staging.glob("*.passing")))
    assert not passing(ask)
    (staged,) = staging.glob("*.data")
    assert re.search(r"overlap\W+False", (mounted.root / ".jfs" / "config").read_text())
    mounted.stop(expected=["were not uploaded"])
    cache = ("--cache-dir", str(tmp_path / "cache"))
    said = run_jfs("recover", "retry", *cache, staged.stem, JF_ACCESS_TOKEN=server.token)
    assert said.returncode == 0, said.stderr
    assert there(ask, f"/{REPO}/g") == expected.hexdigest()
