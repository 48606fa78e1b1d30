"""A mount in 256 MiB, with much to know, much open, and a disk that is slow.

Where this machine lets us, the kernel holds it to that, and says whether it had to kill anybody.
"""

import hashlib
import os
import random
import re
import resource
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from jfs.server import EmbeddedServer
from tests.conftest import REPO
from tests.mount.conftest import Mounter
from tests.mount.mounting import Mounted, run_jfs
from tests.weather.disks import Disk
from tests.weather.group import Group, limited

pytestmark = [pytest.mark.fuse, pytest.mark.timeout(3000)]

MiB = 1 << 20
LIMIT = 256 * MiB
Scale = Callable[[int, int], int]


@pytest.fixture
def group(tmp_path: Path) -> Iterator[Group | None]:
    with limited(f"jfs-{tmp_path.name}", LIMIT) as made:
        yield made


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    made = Disk(tmp_path)
    yield made
    made.end()


def under(group: Group | None) -> tuple[str, ...]:
    return () if group is None else group.under


def holds(mounted: Mounted, group: Group | None) -> None:
    """Nobody was killed, nothing failed, and it took no more than it may."""
    status = Path(f"/proc/{mounted.process.pid}/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found
    most = int(found[1]) << 10
    print(f"\nat most {most / MiB:.0f} MiB; with what the kernel caches for it {_peak(group)}")
    assert most < LIMIT
    mounted.stop()
    assert group is None or group.killed == 0


def _peak(group: Group | None) -> str:
    return "?" if group is None or group.peak is None else f"{group.peak / MiB:.0f} MiB"


def test_properties_of_a_large_folder_and_many_open_files(
    server: EmbeddedServer, mounter: Mounter, group: Group | None, scale: Scale
) -> None:
    count, opened = scale(250, 100_000), scale(100, 10_000)
    for number in range(count):
        properties = {"env": ["production" if number % 3 else "staging"], "n": [str(number % 100)]}
        server.deploy(REPO, f"big/f{number:06}", b"%d" % number * 50, properties)
    mounted = mounter(
        f"{server.url}/{REPO}",
        *("--attr-ttl", "600"),  # a server that is as slow as this machine is asked once
        under=under(group),
        JF_ACCESS_TOKEN=server.token,
    )
    big = mounted.root / "big"
    command = ["getfattr", "--recursive", "--dump", "--absolute-names", str(big)]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert said.count('user.env="staging"') == len(range(0, count, 3))
    assert said.count('user.n="') == count
    found = [name for _, _, names in os.walk(mounted.root / ".by/env=staging") for name in names]
    assert sorted(found) == [f"f{number:06}" for number in range(0, count, 3)]
    assert os.readlink(big / "@n=7") == f"f{max(range(7, count, 100)):06}"
    assert run_jfs("refresh", str(mounted.root)).returncode == 0
    assert len(os.listdir(big)) == count  # beside what was known
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        with ExitStack() as files:
            most = range(min(opened, hard - 500))
            held = [files.enter_context((big / f"f{n:06}").open("rb", 0)) for n in most]
            for number, file in enumerate(held):
                assert file.read(4096) == b"%d" % number * 50
            for number, file in enumerate(held):  # from the cache, whose descriptors are fewer
                assert os.pread(file.fileno(), 4096, 0) == b"%d" % number * 50
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    holds(mounted, group)


def test_a_slow_disk_behind_a_fast_network(
    server: EmbeddedServer, mounter: Mounter, group: Group | None, disk: Disk, scale: Scale
) -> None:
    """What the disk has not taken yet is in memory: readers wait for it, or read past it."""
    size = scale(4 * MiB, 400 * MiB)
    piece = random.Random(1).randbytes(MiB)
    for name in "abc":
        server.deploy(REPO, name, (name.encode() + piece[1:]) * (size // MiB))
    mounted = mounter(
        f"{server.url}/{REPO}",
        *("--cache-dir", str(disk.place / "cache")),
        under=under(group),
        JF_ACCESS_TOKEN=server.token,
    )
    disk.fail(write="slow")

    def read(name: str) -> str:
        digest = hashlib.sha256()
        with (mounted.root / name).open("rb", 0) as file:
            while data := file.read(MiB):
                digest.update(data)
        return digest.hexdigest()

    with ThreadPoolExecutor(3) as readers:
        found = dict(zip("abc", readers.map(read, "abc"), strict=True))
    for name, digest in found.items():
        right = hashlib.sha256((name.encode() + piece[1:]) * (size // MiB)).hexdigest()
        assert digest == right
    disk.fail()
    holds(mounted, group)
