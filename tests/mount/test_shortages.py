"""A mount that lacks something: descriptors, a private directory, space for its cache."""

import errno
import os
import resource
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from threading import Barrier

import pytest

from jfs.server import EmbeddedServer
from tests.mount.conftest import MountedServer, Mounter
from tests.mount.mounting import JFS, clean_environ

pytestmark = pytest.mark.fuse

REPO = "ml-models-local"
MiB = 1024 * 1024


def leave_descriptors(mounted: MountedServer, count: int) -> int:
    """Let the daemon open so many more; return its limit."""
    pid = mounted.mount.process.pid
    limit = max(int(name) for name in os.listdir(f"/proc/{pid}/fd")) + count
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (limit, limit))
    return limit


def test_the_limit_of_descriptors_is_raised(mounted: MountedServer) -> None:
    soft, hard = resource.prlimit(mounted.mount.process.pid, resource.RLIMIT_NOFILE)
    assert soft == min(hard, 1 << 20)


def test_more_files_are_open_than_there_are_descriptors(mounted: MountedServer) -> None:
    for number in range(200):
        mounted.server.deploy(REPO, f"m/f{number}", b"%d" % number * 1000)
    leave_descriptors(mounted, 100)
    with ExitStack() as opened:
        files = [
            opened.enter_context((mounted.root / "m" / f"f{number}").open("rb"))
            for number in range(200)
        ]
        for number, file in enumerate(files):
            assert file.read() == b"%d" % number * 1000


def test_a_write_without_a_descriptor_says_so(mounted: MountedServer) -> None:
    (mounted.root / "before").write_bytes(b"1")  # its connection is kept
    limit = leave_descriptors(mounted, 30)
    refused = None
    with ExitStack() as opened:
        try:
            for number in range(60):
                file = opened.enter_context((mounted.root / f"f{number}").open("wb"))
                file.write(b"%d" % number)
        except OSError as error:
            refused = error.errno
    assert refused == errno.EMFILE
    (mounted.root / "after").write_bytes(b"2")
    assert (mounted.root / "after").read_bytes() == b"2"
    said = [line for line in mounted.mount.log().splitlines() if "WARNING" in line]
    assert len(said) == 1
    assert f"the limit of this process is {limit}: raise the hard limit" in said[0]
    mounted.mount.stop(expected=["no file descriptor is left"])


@pytest.mark.parametrize("limit", [128, 40])
def test_many_readers_under_a_low_limit(
    server: EmbeddedServer, mounter: Mounter, limit: int
) -> None:
    """60 files of several repositories at once: fewer descriptors, and every byte is right."""
    repos = [f"r{number}" for number in range(6)]
    for repo in repos:
        server.create_repository(repo)
    contents = {}
    for number in range(60):
        path = f"{repos[number % 6]}/m/f{number}"
        contents[path] = b"%d." % number * 100_000
        server.deploy(*path.split("/", 1), contents[path])
    under = ("prlimit", f"--nofile={limit}:{limit}")
    mounted = mounter(server.url, under=under, JF_ACCESS_TOKEN=server.token)
    (said,) = [line for line in mounted.log().splitlines() if "WARNING" in line]
    assert f"only {limit} file descriptors" in said
    assert "raise the hard limit" in said
    with ThreadPoolExecutor(60) as readers:
        together = Barrier(60)

        def read(path: str) -> bytes:
            together.wait()
            return (mounted.root / path).read_bytes()

        found = dict(zip(contents, readers.map(read, contents), strict=True))
    assert found == contents
    (mounted.root / "r0" / "new").write_bytes(b"new")
    assert (mounted.root / "r0" / "new").read_bytes() == b"new"
    mounted.stop(expected=["only .* file descriptors", "no file descriptor is left"])


def test_a_limit_that_is_too_low_for_any_mount_is_said(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    (tmp_path / "mnt").mkdir()
    command = [*JFS, "mount", "--daemon", "--log-file", str(tmp_path / "log"), server.url]
    ended = subprocess.run(
        ["prlimit", "--nofile=31:31", *command, str(tmp_path / "mnt")],
        env={**clean_environ(), "JF_ACCESS_TOKEN": server.token, "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 2
    (said,) = ended.stderr.splitlines()
    assert "only 31 file descriptors, and 32 are the least: raise the hard limit" in said


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[Path]:
    """An emptyDir of 64 MiB in memory: open to everybody, and a mount point."""
    place = tmp_path / "volume"
    place.mkdir()
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m,mode=0777", "tmpfs", str(place)], check=True
    )
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_an_open_volume_is_cache_and_staging_directory(
    server: EmbeddedServer, mounter: Mounter, volume: Path
) -> None:
    server.deploy(REPO, "f", bytes(3 * MiB))
    options = ("--cache-dir", str(volume), "--staging-dir", str(volume))
    mounted = mounter(f"{server.url}/{REPO}", *options, JF_ACCESS_TOKEN=server.token)
    assert (mounted.root / "f").read_bytes() == bytes(3 * MiB)
    (mounted.root / "g").write_bytes(b"written")
    mounted.stop()
    (inside,) = volume.iterdir()
    assert inside.stat().st_mode & 0o777 == 0o700
    server.stats.reset()
    mounted = mounter(f"{server.url}/{REPO}", *options, JF_ACCESS_TOKEN=server.token)
    assert (mounted.root / "f").read_bytes() == bytes(3 * MiB)
    assert server.stats.bytes_sent < MiB


def test_a_disk_without_space_for_a_cache_is_said_once(
    server: EmbeddedServer, mounter: Mounter, volume: Path
) -> None:
    (volume / "others").write_bytes(bytes(60 * MiB))
    server.deploy(REPO, "f", bytes(9 * MiB))
    mounted = mounter(
        f"{server.url}/{REPO}", "--cache-dir", str(volume), JF_ACCESS_TOKEN=server.token
    )
    assert (mounted.root / "f").read_bytes() == bytes(9 * MiB)
    (said,) = [line for line in mounted.log().splitlines() if "WARNING" in line]
    assert "4.0 MiB of 64.0 MiB are free, and 6.4 MiB are left to others" in said
    mounted.stop(expected=["nothing more is cached"])
