"""What POSIX asks, on a real mount: system calls answer as they do in a plain directory."""

import subprocess
import sys
from pathlib import Path

import pytest

from jfs.server import EmbeddedServer, Fault
from tests.component.server_requests import REPO, Requests
from tests.mount.conftest import MountedServer, Mounter
from tests.mount.suites.running import check
from tests.processes import killed

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


def test_space_is_reserved(mounted: MountedServer, tmp_path: Path) -> None:
    """fallocate(2) makes a file longer, never shorter, or zeros; it moves no bytes."""
    log = mounted.root.with_name("mnt.log")
    script = """
    fallocate -l 300000 f; fallocate -l 10 f; stat -c %s f
    fallocate -x -o 5 -l 300000 f; stat -c %s f
    printf abc > g; fallocate -o 1 -l 9 g; od -An -c g
    fallocate -n -l 20 g; stat -c %s g; fallocate -p -l 3 g; od -An -c g
    fallocate -z -o 8 -l 5 g; fallocate -c -l 4096 f || stat -c %s f g
    fallocate -l 9E g || stat -c %s g
    fallocate -l 1 h < /dev/null; python3 -c 'import os
    file = os.open("h", os.O_RDWR); os.unlink("h"); os.posix_fallocate(file, 0, 5000)
    print(os.fstat(file).st_size)'
    """.replace("\n    ", "\n")
    said = check(["sh", "-c", script], mounted.root, deadline_s=_DEADLINE_S, log=tmp_path / "log")
    words = [" ".join(line.split()) for line in said.splitlines() if "fallocate:" not in line]
    shown, zeros = "a b c" + r" \0" * 7, " ".join([r"\0"] * 10)
    sizes = ["300005", "13", "13"]  # of what was refused stays what there was
    assert words == ["300000", "300005", shown, "10", zeros, *sizes, "5000"], log.read_text()
    ask = Requests(mounted.server)
    assert ask.get(f"/{REPO}/f").body == bytes(300_005)
    assert ask.get(f"/{REPO}/g").body == bytes(13)
    assert ask.get(f"/{REPO}/h").status == 404


def test_a_mount_ends_while_space_is_being_reserved(mounted: MountedServer) -> None:
    """What stays of the file is fetched first, and the server hangs."""
    mounted.server.deploy(REPO, "f", b"x" * 100_000)
    hanging = mounted.server.faults.add(Fault.hold(f"/{REPO}/f", method="GET"))
    program = (
        "import os, sys; f = os.open(sys.argv[1], os.O_RDWR); os.posix_fallocate(f, 0, 200000)"
    )
    command = [sys.executable, "-c", program, str(mounted.root / "f")]
    with killed(subprocess.Popen(command, stderr=subprocess.PIPE, text=True)) as process:
        hanging.wait_hit(_DEADLINE_S)
        mounted.mount.stop(expected=["fallocate"])
        mounted.server.faults.release_all()
        _, error = process.communicate(timeout=_DEADLINE_S)
    assert "OSError" in error
