"""Proofs on a real mount: kills while the cache fills, small disks, eviction, crowds of readers."""

import hashlib
import mmap
import os
import random
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from jfs.server import EmbeddedServer, Fault
from tests.mount.conftest import Mounter
from tests.mount.hammer import write_content
from tests.mount.mounting import Mounted

pytestmark = [pytest.mark.fuse, pytest.mark.timeout(1800)]  # the whole proofs take minutes

REPO = "ml-models-local"
MiB = 1024 * 1024
Scale = Callable[[int, int], int]
_WATCHDOG_S = 300


def digest(path: Path) -> str:
    """Read a file from its start to its end, in a process of its own."""
    done = subprocess.run(
        ["sha256sum", str(path)], capture_output=True, text=True, check=True, timeout=_WATCHDOG_S
    )
    return done.stdout.split()[0].lstrip("\\")


def mount(server: EmbeddedServer, mounter: Mounter, *options: str, name: str = "mnt") -> Mounted:
    return mounter(f"{server.url}/{REPO}", *options, name=name, JF_ACCESS_TOKEN=server.token)


def test_a_daemon_killed_while_it_fills_its_cache(
    server: EmbeddedServer, mounter: Mounter, scale: Scale
) -> None:
    """Whatever a kill leaves behind, the next mount on that cache reads right bytes."""
    choose = random.Random(11)
    for _ in range(scale(3, 200)):
        data = choose.randbytes(12 * MiB)
        server.deploy(REPO, "f", data)
        server.stats.reset()
        victim = mount(server, mounter)
        reader = subprocess.Popen(["cat", str(victim.root / "f")], stdout=subprocess.DEVNULL)
        limit = choose.randrange(len(data))
        while server.stats.bytes_sent < limit:
            assert victim.process.poll() is None
        victim.kill()
        reader.wait(_WATCHDOG_S)
        successor = mount(server, mounter)
        assert digest(successor.root / "f") == hashlib.sha256(data).hexdigest()
        successor.stop()


@pytest.mark.parametrize(
    ("options", "counter"), [((), "reads_beside"), (("--native", "off"), "reads_at_once")]
)
def test_what_is_in_memory_is_answered_at_once(
    server: EmbeddedServer, mounter: Mounter, options: Sequence[str], counter: str
) -> None:
    """A stream, and what the kernel has dropped again: READs that need no task."""
    data = random.Random(13).randbytes(8 * MiB + 77)
    server.deploy(REPO, "f", data)
    mounted = mount(server, mounter, *options)
    with (mounted.root / "f").open("rb", buffering=0) as file:
        for _ in range(2):
            read = b"".join(os.pread(file.fileno(), MiB, at * MiB) for at in range(9))
            assert read == data
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    stats = (mounted.root / ".jfs" / "stats").read_text()
    (count,) = re.findall(rf"counters\.{counter} (\d+)", stats)
    assert int(count) >= 1
    mounted.stop()


@pytest.mark.parametrize("options", [(), ("--native", "off")])
def test_whoever_reads_sees_what_was_written(
    server: EmbeddedServer, mounter: Mounter, options: Sequence[str]
) -> None:
    """A handle whose READs are answered from memory, and one through which the file is changed."""
    choose = random.Random(17)
    data = bytearray(choose.randbytes(3 * MiB))
    for name in "ab":
        server.deploy(REPO, name, bytes(data))
    mounted = mount(server, mounter, *options)
    for name in "ab":
        path, expected = mounted.root / name, bytearray(data)
        with path.open("rb", buffering=0) as reader:
            for at in range(0, len(data), MiB):
                assert os.pread(reader.fileno(), MiB, at) == expected[at : at + MiB]
            with path.open("r+b", buffering=0) as writer:
                for _ in range(8):
                    at, piece = choose.randrange(len(data) - 9000), choose.randbytes(9000)
                    os.pwrite(writer.fileno(), piece, at)
                    expected[at : at + len(piece)] = piece
                    os.posix_fadvise(reader.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                    start = max(0, at - 5000)
                    assert (
                        os.pread(reader.fileno(), 20_000, start)
                        == (expected[start : start + 20_000])
                    )
            os.posix_fadvise(reader.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            assert b"".join(iter(lambda: reader.read(MiB), b"")) == expected
    mounted.stop()


@pytest.mark.parametrize("options", [(), ("--native", "off")])
def test_a_crowd_of_readers_of_one_file(
    server: EmbeddedServer, mounter: Mounter, options: Sequence[str]
) -> None:
    """In order and at random, by read(2) and by mapping, with the page cache and without."""
    size = 9 * MiB + 4321
    data = random.Random(19).randbytes(size)
    server.deploy(REPO, "f", data)
    mounted = mount(server, mounter, *options)
    path = mounted.root / "f"
    wrong: list[str] = []

    def check(what: str, at: int, got: bytes) -> None:
        if got != data[at : at + len(got)] or not got:
            wrong.append(f"{what} at {at}: {len(got)}")

    def in_order(piece: int) -> None:
        with path.open("rb", buffering=0) as file:
            at = 0
            while got := file.read(piece):
                check("in order", at, got)
                at += len(got)
            assert at == size

    def direct() -> None:
        file = os.open(path, os.O_RDONLY | os.O_DIRECT)
        with mmap.mmap(-1, MiB) as buffer:
            for at in range(0, size, MiB):
                count = os.preadv(file, [buffer], at)
                check("direct", at, buffer[:count])
        os.close(file)

    def at_random(seed: int) -> None:
        choose = random.Random(seed)
        with path.open("rb", buffering=0) as file:
            for _ in range(60):
                at = choose.randrange(size)
                check("at random", at, os.pread(file.fileno(), choose.choice([1, 4096, MiB]), at))
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    def mapped() -> None:
        # A process: a page fault holds its interpreter's lock, which the server needs, too.
        script = "import mmap, sys; f = open(sys.argv[1]); m = mmap.mmap(f.fileno(), 0, prot=1)"
        hashed = "; import hashlib; print(hashlib.sha256(m).hexdigest())"
        done = subprocess.run(
            [sys.executable, "-c", script + hashed, str(path)],
            capture_output=True,
            text=True,
            timeout=_WATCHDOG_S,
        )
        if done.stdout.strip() != hashlib.sha256(data).hexdigest():
            wrong.append(f"mapped: {done.stderr}")

    readers = [
        *(threading.Thread(target=in_order, args=(piece,)) for piece in (MiB, 100_000)),
        *(threading.Thread(target=at_random, args=(seed,)) for seed in (1, 2)),
        threading.Thread(target=direct),
        threading.Thread(target=mapped),
    ]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join(_WATCHDOG_S)
    assert wrong == []
    assert not any(reader.is_alive() for reader in readers)
    mounted.stop()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(disk)], check=True)
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_what_is_received_with_the_native_part_is_right_without_it(
    server: EmbeddedServer, mounter: Mounter
) -> None:
    """Over a line that is cut; the second mount asks for nothing, and verifies every block."""
    data = random.Random(15).randbytes(8 * MiB + 77)
    server.deploy(REPO, "f", data)
    server.faults.add(Fault.drop(f"/{REPO}/f", after_bytes=700_000, times=3))
    mounted = mount(server, mounter)
    assert digest(mounted.root / "f") == hashlib.sha256(data).hexdigest()
    mounted.stop()
    server.stats.reset()
    mounted = mount(server, mounter, "--native", "off", "--verify-reads")
    assert digest(mounted.root / "f") == hashlib.sha256(data).hexdigest()
    assert server.stats.bytes_sent < 64 * 1024
    mounted.stop()


def test_a_file_far_larger_than_the_cache_disk(
    server: EmbeddedServer, mounter: Mounter, scale: Scale, small_disk: Path, tmp_path: Path
) -> None:
    path = tmp_path / "big"
    write_content(path, scale(200, 1024) * MiB // 4096)
    server.deploy(REPO, "big", path)
    mounted = mount(server, mounter, "--cache-dir", str(small_disk / "cache"))
    for _ in range(2):
        assert digest(mounted.root / "big") == digest(path)
        Path("/proc/sys/vm/drop_caches").write_text("1")
    mounted.stop(expected=["reading past the cache", "No space left"])


def test_eviction_under_readers(
    server: EmbeddedServer, mounter: Mounter, scale: Scale, tmp_path: Path
) -> None:
    """Four readers of four files, in a cache that holds one and a half of them."""
    names = ["a", "b", "c", "d"]
    expected = {}
    for name in names:
        data = random.Random(name).randbytes(16 * MiB)
        expected[name] = hashlib.sha256(data).hexdigest()
        server.deploy(REPO, name, data)
    mounted = mount(server, mounter, "--cache-size", "24M")
    wrong: list[str] = []

    def reader(seed: int) -> None:
        choose = random.Random(seed)
        for _ in range(scale(3, 60)):
            name = choose.choice(names)
            if digest(mounted.root / name) != expected[name]:
                wrong.append(name)
            with (mounted.root / name).open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    threads = [threading.Thread(target=reader, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(_WATCHDOG_S)
        assert not thread.is_alive()
    assert not wrong
    used = sum(path.stat().st_blocks * 512 for path in tmp_path.glob("cache/??/*"))
    assert used <= 24 * MiB


def test_no_two_readers_wait_for_each_other(
    server: EmbeddedServer, mounter: Mounter, scale: Scale, tmp_path: Path
) -> None:
    """Map, read, re-open and drop the same file from many threads of several processes."""
    path = tmp_path / "f"
    write_content(path, 64 * MiB // 4096)
    server.deploy(REPO, "f", path)
    mounted = mount(server, mounter)
    rounds = scale(40, 3000)
    hammers = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "tests.mount.hammer"),
                *(str(mounted.root / "f"), str(rounds), str(seed)),
            ],
            stderr=subprocess.PIPE,
            text=True,
        )
        for seed in range(3)
    ]
    try:
        for hammer in hammers:
            _, said = hammer.communicate(timeout=10 * _WATCHDOG_S)  # the watchdog
            assert hammer.returncode == 0, said
    finally:
        for hammer in hammers:
            hammer.kill()


@pytest.mark.parametrize("fetch", ["auto", "whole"])
def test_a_crowd_costs_one_download(server: EmbeddedServer, mounter: Mounter, fetch: str) -> None:
    """Eight readers through two mounts of one node: the server sends the file once."""
    data = random.Random(2).randbytes(24 * MiB)
    server.deploy(REPO, "f", data)
    mounts = [mount(server, mounter, "--fetch", fetch, name=name) for name in ("one", "other")]
    server.stats.reset()
    readers = [
        subprocess.Popen(["sha256sum", str(mounted.root / "f")], stdout=subprocess.PIPE, text=True)
        for mounted in mounts
        for _ in range(4)
    ]
    for reader in readers:
        said, _ = reader.communicate(timeout=_WATCHDOG_S)
        assert said.startswith(hashlib.sha256(data).hexdigest())
    assert server.stats.bytes_sent <= 1.01 * len(data)
