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
from jfs.vfs.filesystem import REFRESH
from tests.conftest import REPO
from tests.mount.conftest import Mounter
from tests.mount.mounting import Mounted
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


def test_much_to_know_and_much_open(
    server: EmbeddedServer, mounter: Mounter, group: Group | None, scale: Scale
) -> None:
    count, opened = scale(200, 100_000), scale(100, 10_000)
    for number in range(count):
        properties = {"env": ["production" if number % 3 else "staging"], "n": [str(number % 100)]}
        server.deploy(REPO, f"big/f{number:06}", b"%d" % number * 50, properties)
    mounted = mounter(
        f"{server.url}/{REPO}",
        *("--attr-ttl", "600"),  # a server that is as slow as this machine is asked once
        under=under(group),
        JF_ACCESS_TOKEN=server.token,
    )
    see_properties(mounted.root, count)
    os.getxattr(mounted.root, REFRESH)
    assert len(os.listdir(mounted.root / "big")) == count  # beside what was known
    read_many(mounted.root / "big", opened)
    holds(mounted, group)


def test_a_slow_disk_behind_a_fast_network(
    server: EmbeddedServer, mounter: Mounter, group: Group | None, disk: Disk, scale: Scale
) -> None:
    size = scale(3 * MiB, 400 * MiB)
    for name in "abc":
        server.deploy(REPO, name, large(name, size))
    mounted = mounter(
        f"{server.url}/{REPO}",
        *("--cache-dir", str(disk.place / "cache")),
        under=under(group),
        JF_ACCESS_TOKEN=server.token,
    )
    (mounted.root / "a").stat()
    disk.fail(write="slow")  # what it has not taken yet is in memory
    with ThreadPoolExecutor(3) as readers:
        found = readers.map(lambda name: digest_of(mounted.root / name), "abc")
        for name, digest in zip("abc", found, strict=True):
            assert digest == hashlib.sha256(large(name, size)).hexdigest()
    disk.fail()
    holds(mounted, group)


def large(name: str, size: int) -> bytes:
    piece = random.Random(1).randbytes(MiB)
    return (name.encode() + piece[1:]) * (size // MiB)


def see_properties(root: Path, count: int) -> None:
    """By file, by query, by selector."""
    command = ["getfattr", "--recursive", "--dump", "--absolute-names", str(root / "big")]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert said.count('user.env="staging"') == len(range(0, count, 3))
    assert said.count('user.n="') == count
    found = [name for _, _, names in os.walk(root / ".by/env=staging") for name in names]
    assert sorted(found) == [f"f{number:06}" for number in range(0, count, 3)]
    assert os.readlink(root / "big/@n=7") == f"f{max(range(7, count, 100)):06}"


def read_many(folder: Path, count: int) -> None:
    """Open so many files, or as many as we may, and read them twice while all are open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        with ExitStack() as files:
            most = range(min(count, hard - 500))
            held = [files.enter_context((folder / f"f{n:06}").open("rb", 0)) for n in most]
            for _ in range(2):  # then from the cache, whose descriptors are fewer
                for number, file in enumerate(held):
                    assert os.pread(file.fileno(), 4096, 0) == b"%d" % number * 50
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def digest_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb", 0) as file:
        while data := file.read(MiB):
            digest.update(data)
    return digest.hexdigest()
