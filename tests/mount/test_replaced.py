"""Artifacts that others replace, seen through the kernel: its names, sizes, pages and mappings."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from jfs.server import EmbeddedServer
from tests.component.server_requests import REPO, Requests
from tests.mount.conftest import MountedServer, Mounter
from tests.mount.mounting import Mounted, run_jfs
from tests.processes import killed

pytestmark = pytest.mark.fuse
OLD = b"".join(b"old %011d\n" % number for number in range(40_000))
NEW = b"new\n" * 20


@pytest.fixture
def ask(mounted: MountedServer) -> Requests:
    mounted.server.deploy(REPO, "d/f", OLD)
    return Requests(mounted.server)


def stay(server: EmbeddedServer, mounter: Mounter) -> Mounted:
    """Mount so that the kernel believes names and attributes for as long as it likes."""
    ttl = ("--attr-ttl", "600", "--entry-ttl", "600")
    return mounter(f"{server.url}/{REPO}", *ttl, name="stays", JF_ACCESS_TOKEN=server.token)


def read(path: Path) -> bytes:
    return subprocess.run(["cat", str(path)], capture_output=True, check=True, timeout=30).stdout


@pytest.mark.parametrize("sizes", [(NEW, OLD), (OLD, NEW), (NEW, NEW.upper())])
def test_no_version_is_cut_or_read_by_the_size_of_another(
    server: EmbeddedServer, mounter: Mounter, sizes: tuple[bytes, bytes]
) -> None:
    """The kernel keeps the size that it was told; a listing tells us of another one meanwhile."""
    first, second = sizes
    server.deploy(REPO, "d/f", first)
    for number in range(6):
        server.deploy(REPO, f"d/{number}", b"x")
    root = stay(server, mounter).root
    assert (root / "d/f").stat().st_size == len(first)
    server.deploy(REPO, "d/f", second)
    for number in range(6):  # the fourth name makes the folder be listed
        assert (root / f"d/{number}").exists()
    assert read(root / "d/f") == second
    assert (root / "d/f").stat().st_size == len(second)


# A process of its own: a page fault holds the interpreter's lock, which the server needs.
_READER = """
import mmap, os, sys
path, size = sys.argv[1], int(sys.argv[2])
file = os.open(path, os.O_RDONLY)
inode = os.fstat(file).st_ino
mapped = mmap.mmap(file, size, prot=mmap.PROT_READ)
old = [os.pread(file, 4096, 0), mapped[100_000:100_010]]
print("open", flush=True)
sys.stdin.readline()
assert os.stat(path).st_ino != inode
status = os.fstat(file)
assert (status.st_ino, status.st_size) == (inode, size), status
whole = os.pread(file, size + 1, 0)
assert mapped[:] == whole
assert old == [whole[:4096], whole[100_000:100_010]]
again = os.open(f"/proc/self/fd/{file}", os.O_RDONLY)
assert os.read(again, size + 1) == whole
sys.stdout.buffer.write(whole)
"""


def test_a_new_open_leaves_old_handles_and_mappings_alone(
    mounted: MountedServer, ask: Requests
) -> None:
    path = mounted.root / "d/f"
    started = subprocess.Popen(
        [sys.executable, "-c", _READER, str(path), str(len(OLD))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with killed(started) as reader:
        assert reader.stdout is not None
        assert reader.stdout.readline() == b"open\n"
        ask.server.deploy(REPO, "d/copy", OLD)
        ask.server.deploy(REPO, "d/f", NEW)
        assert run_jfs("refresh", str(mounted.root)).returncode == 0
        assert path.read_bytes() == NEW
        # What was there goes on: its size, its pages, and what nobody had read so far.
        assert reader.communicate(b"\n", timeout=30)[0] == OLD
    assert reader.returncode == 0
    assert path.read_bytes() == NEW


def test_a_link_to_an_open_file_works_when_its_name_is_gone(
    mounted: MountedServer, ask: Requests
) -> None:
    file = os.open(mounted.root / "d/f", os.O_RDONLY)
    assert os.read(file, 10) == OLD[:10]
    ask.server.delete(REPO, "d/f")
    assert run_jfs("refresh", str(mounted.root)).returncode == 0
    with pytest.raises(FileNotFoundError):
        (mounted.root / "d/f").read_bytes()
    again = os.open(f"/proc/self/fd/{file}", os.O_RDONLY)
    assert os.read(again, 10) == OLD[:10]
    os.close(again)
    os.close(file)


def test_what_another_mount_wrote_is_appended_to(server: EmbeddedServer, mounter: Mounter) -> None:
    """Although this one believes the name missing, or has read what was there before."""
    other = mounter(f"{server.url}/{REPO}", name="other", JF_ACCESS_TOKEN=server.token).root
    root = stay(server, mounter).root
    ask = Requests(server)
    assert not (root / "log").exists()
    for number, text in enumerate((b"one\n", b"two\n", b"three\n")):
        with (other if number % 2 == 0 else root).joinpath("log").open("ab") as log:
            log.write(text)
    assert ask.get(f"/{REPO}/log").body == b"one\ntwo\nthree\n"
    os.truncate(root / "log", 4)
    assert ask.get(f"/{REPO}/log").body == b"one\n"
    with (root / "log").open("r+b") as log:
        log.write(b"ONE")
    assert ask.get(f"/{REPO}/log").body == b"ONE\n"


def test_who_was_overtaken_is_told_and_keeps_his_bytes(
    mounted: MountedServer, ask: Requests
) -> None:
    path = mounted.root / "d/f"
    file = os.open(path, os.O_WRONLY | os.O_TRUNC)
    os.write(file, b"mine")
    ask.server.deploy(REPO, "d/f", NEW)
    with pytest.raises(OSError, match="Stale file handle"):
        os.close(file)
    assert ask.get(f"/{REPO}/d/f").body == NEW
    assert path.read_bytes() == NEW
    told = [line for line in mounted.mount.log().splitlines() if "ChangedElsewhere" in line]
    assert len(told) == 1, told
    mounted.mount.stop(expected=["ChangedElsewhere"])
    staging = mounted.root.parent / "cache" / "staging"
    listed = run_jfs("recover", "ls", "--cache-dir", str(staging.parent)).stdout
    assert "d/f" in listed
    assert "was changed on the server" in " ".join(listed.split())
