"""The server is killed under a mount: what was known is there, and heals when it is back."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

from jfs.server import EmbeddedServer
from tests.conftest import REPO
from tests.mount.conftest import Mounter

EXPECTED = ["cannot be asked, serving what was known before", " is down: ", "retr"]
LARGE = os.urandom(1 << 16) * 16


def output(*command: str) -> str:
    """Run a command to its end; far below the deadline of one request, of which it makes many."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=40)
    assert done.returncode == 0, done.stderr
    return done.stdout


def shown(root: Path) -> list[str]:
    """Everything that somebody who works with the mount looks at."""
    return [
        output("ls", "-lR", "--time-style=full-iso", str(root)),
        output("cat", str(root / "m/v1/large.bin"), str(root / "m/v2/b.bin")),
        output("getfattr", "-d", "--absolute-names", str(root / "m/v1/large.bin")),
        output("ls", "-l", str(root / ".by/stage=gold/m/v1")),
        os.readlink(root / "m/@latest"),
        os.readlink(root / "m/@stage=gold"),
    ]


def test_what_is_known_outlives_the_server(server: EmbeddedServer, mounter: Mounter) -> None:
    server.deploy(REPO, "m/v1/large.bin", LARGE.hex().encode(), {"stage": ["gold"]})
    server.deploy(REPO, "m/v2/b.bin", b"small\n", {"stage": ["new"]})
    # A listing is asked for at every use, and nothing is believed longer.
    options = ("--attr-ttl=0", "--negative-ttl=0")
    mounted = mounter(f"{server.url}/{REPO}", *options, JF_ACCESS_TOKEN=server.token)
    root = mounted.root
    shown(root)  # how many folders are in one is known once it was listed
    before = shown(root)
    assert os.getxattr(root / "m/v2/b.bin", "user.jfs.state") == b"clean"
    assert not (root / "m/v2/config.json").exists()
    server.stop()
    for _ in range(3):
        assert shown(root) == before
        assert output("df", str(root))
    assert os.getxattr(root / "m/v2/b.bin", "user.jfs.state") == b"stale"
    assert not (root / "m/v2/config.json").exists()  # its whole folder was listed
    server.start()
    server.deploy(REPO, "m/v2/b.bin", b"other\n", {"stage": ["gold"]})
    server.deploy(REPO, "m/v3/c.bin", b"c\n")

    def healed() -> bool:
        return (root / "m/v2/b.bin").read_bytes() == b"other\n" and (root / "m/v3").is_dir()

    until(healed)
    assert os.getxattr(root / "m/v2/b.bin", "user.jfs.state") == b"clean"
    assert os.readlink(root / "m/@latest") == "v3"
    assert os.listdir(root / ".by/stage=gold/m/v2") == ["b.bin"]
    mounted.stop(expected=EXPECTED)
    lines = mounted.log_after().splitlines()
    assert len([line for line in lines if EXPECTED[0] in line]) == 1


def until(condition: Callable[[], bool]) -> None:
    """Try again and again; the timeout of the test is the limit."""
    while not condition():
        os.sched_yield()
