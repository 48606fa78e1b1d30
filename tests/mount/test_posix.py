"""What POSIX asks, on a real mount: system calls answer as they do in a plain directory."""

import sys
from pathlib import Path

import pytest

from jfs.server import EmbeddedServer
from tests.component.server_requests import REPO, Requests
from tests.mount.conftest import MountedServer, Mounter
from tests.mount.suites.running import check

pytestmark = pytest.mark.fuse

_DEADLINE_S = 40
_PROGRAM = Path(__file__).with_name("posix_steps.py")


def _results(directory: Path, log: Path) -> list[str]:
    directory.mkdir()
    command = [sys.executable, _PROGRAM, directory]
    return check(command, Path("/"), deadline_s=_DEADLINE_S, log=log).splitlines()


def test_system_calls_answer_as_in_a_plain_directory(
    server: EmbeddedServer, mounter: Mounter, tmp_path: Path
) -> None:
    """Names too long, refused renames, O_TRUNC, setgid, setuid, times, files without a name."""
    source = f"{server.url}/{REPO}"
    root = mounter(source, "--allow-other", JF_ACCESS_TOKEN=server.token).root
    expected = _results(tmp_path / "plain", tmp_path / "plain.log")
    assert len(expected) > 80
    found = _results(root / "steps", tmp_path / "mount.log")
    assert found == expected


def test_space_is_made_by_writing(mounted: MountedServer, tmp_path: Path) -> None:
    """fallocate(2) cannot be answered; what falls back, as glibc and tools do, has its file."""
    script = "fallocate -x -l 300000 f; fallocate -l 1 g && exit 1; stat -c %s f g"
    said = check(["sh", "-c", script], mounted.root, deadline_s=_DEADLINE_S, log=tmp_path / "log")
    assert said.splitlines() == [
        "fallocate: fallocate failed: Operation not supported",
        "300000",
        "0",
    ]
    assert Requests(mounted.server).get(f"/{REPO}/f").body == bytes(300_000)
