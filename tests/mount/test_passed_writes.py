"""What is made in a mount is written by the kernel itself, where it can (Linux 6.9, root).

Everything holds without that, too: each test runs on both roads.
"""

import ctypes
import json
import mmap
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from jfs.server import EmbeddedServer
from jfs.vfs.writing.journal import Journal
from tests.component.server_requests import REPO, Requests
from tests.mount.conftest import Mounter
from tests.mount.mounting import Mounted

pytestmark = pytest.mark.fuse
DATA = random.Random(8).randbytes(300_000)


class Node:
    def __init__(self, mounted: Mounted, server: EmbeddedServer) -> None:
        self.mounted = mounted
        self.root = mounted.root
        self.ask = Requests(server)

    @property
    def passed(self) -> int:
        """How many files the kernel was given to write."""
        stats = json.loads((self.root / ".jfs/stats.json").read_text())
        return int(stats["counters"].get("passthrough_writes", 0))

    def stored(self, name: str) -> bytes:
        return self.ask.get(f"/{REPO}/{name}").body


@pytest.fixture(scope="module", params=["auto", "off"])
def mount(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Node]:
    """One mount for all of them, on each road."""
    folder = tmp_path_factory.mktemp("passed")
    (folder / "mnt").mkdir()
    with EmbeddedServer(folder / "server") as server:
        server.create_repository(REPO)
        mounted = Mounted(
            f"{server.url}/{REPO}",
            folder / "mnt",
            environ={"JF_ACCESS_TOKEN": server.token},
            cache=folder / "cache",
            options=("--passthrough", request.param),
        )
        node = Node(mounted, server)
        yield node
        mounted.stop()
        mounted.close()


@pytest.fixture
def node(mount: Node) -> Iterator[Node]:
    yield mount
    for path in mount.root.iterdir():
        path.unlink()


def test_what_is_made_is_written_by_the_kernel_where_it_can(node: Node) -> None:
    before = node.passed
    small_writes(node.root / "f", DATA, 1000)
    stats = json.loads((node.root / ".jfs/stats.json").read_text())
    assert node.passed - before == (stats["passthrough"]["state"] == "on")
    assert (node.root / "f").read_bytes() == node.stored("f") == DATA


def small_writes(path: Path, data: bytes, size: int = 4096) -> None:
    with path.open("wb", buffering=0) as file:
        for start in range(0, len(data), size):
            file.write(data[start : start + size])


def test_whoever_opens_what_the_kernel_writes_sees_it_and_may_write(node: Node) -> None:
    path = node.root / "f"
    writer = os.open(path, os.O_WRONLY | os.O_CREAT)
    os.write(writer, DATA)
    assert os.stat(path).st_size == os.fstat(writer).st_size == len(DATA)
    reader, both = os.open(path, os.O_RDONLY), os.open(path, os.O_RDWR)
    more = os.open(path, os.O_WRONLY | os.O_APPEND)
    assert os.pread(reader, 1 << 20, 0) == os.pread(both, 1 << 20, 0) == DATA
    with mmap.mmap(reader, 0, prot=mmap.PROT_READ) as mapped:
        os.pwrite(writer, b"by the kernel", 10)
        os.pwrite(both, b"by us", 100_000)
        os.write(more, b"at the end")
        expected = bytearray(DATA + b"at the end")
        expected[10:23], expected[100_000:100_005] = b"by the kernel", b"by us"
        assert os.pread(reader, 1 << 20, 0) == os.pread(both, 1 << 20, 0) == expected
        assert mapped[:] == expected[: len(DATA)]
    os.ftruncate(writer, 200_000)
    del expected[200_000:]
    assert os.pread(reader, 1 << 20, 0) == expected
    os.close(writer)
    assert node.ask.get(f"/{REPO}/f").status == 404  # others can write yet
    with mmap.mmap(both, 0) as mapped:
        os.close(both)
        mapped[50:54] = b"last"
        expected[50:54] = b"last"
        assert os.pread(reader, 1 << 20, 0) == expected
    os.close(more)
    os.close(os.open(path, os.O_WRONLY))  # after whatever went on behind
    assert node.stored("f") == expected
    assert os.pread(reader, 1 << 20, 0) == expected
    again = os.open(path, os.O_RDWR)  # while a handle of then is open
    os.pwrite(again, b"anew", 0)
    os.close(again)
    expected[:4] = b"anew"
    assert node.stored("f") == path.read_bytes() == expected
    os.close(reader)


def test_stores_through_a_mapping_after_the_last_close_are_uploaded(node: Node) -> None:
    """Python's mmap keeps a copy of the descriptor: C's does not."""
    path, expected = node.root / "f", bytearray(DATA)
    writer = os.open(path, os.O_WRONLY | os.O_CREAT)
    os.write(writer, DATA)
    both = os.open(path, os.O_RDWR)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long)
    libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
    readable_writable = mmap.PROT_READ | mmap.PROT_WRITE
    mapped = libc.mmap(None, len(DATA), readable_writable, mmap.MAP_SHARED, both, 0)
    ctypes.memmove(mapped + 10, b"before", 6)
    expected[10:16] = b"before"
    os.close(writer)
    os.close(both)
    assert node.stored("f") == expected
    for number in range(10):  # whatever goes on behind its close is over by now
        (node.root / f"other {number}").write_bytes(b"1")
    ctypes.memmove(mapped + 20, b"after", 5)
    expected[20:25] = b"after"
    assert path.read_bytes() == expected
    libc.munmap(mapped, len(DATA))
    deadline = time.monotonic() + 30
    while node.stored("f") != expected:  # nobody waits for it
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert path.read_bytes() == expected


def test_who_reads_a_log_sees_what_is_added_by_whoever_opens_it_again(node: Node) -> None:
    path, expected = node.root / "log", b""
    first = os.open(path, os.O_WRONLY | os.O_CREAT)
    reader = os.open(path, os.O_RDONLY)
    os.write(first, b"0\n")
    os.close(first)
    expected = b"0\n"
    for number in range(1, 5):
        with path.open("ab", buffering=0) as log:
            log.write(line := b"%d\n" % number)
        expected += line
        assert os.pread(reader, 100, 0) == path.read_bytes() == expected
        assert os.fstat(reader).st_ino == path.stat().st_ino
    os.close(reader)


def test_whoever_maps_a_file_that_is_written_anew_sees_what_is_in_it(node: Node) -> None:
    """Beside a handle of when the kernel wrote itself: it insists on the file of then."""
    path = node.root / "f"
    small_writes(path, DATA[:8])
    path.unlink()
    first = os.open(path, os.O_WRONLY | os.O_CREAT)
    os.write(first, DATA[:8])
    reader = os.open(path, os.O_RDONLY)
    os.close(first)
    for expected in (DATA[:5000], DATA[7:]):
        with path.open("wb") as file:  # the same inode, as for who reads a log
            file.write(expected)
            file.flush()
            os.fsync(file)
        for each in (os.open(path, os.O_RDONLY), os.dup(reader)):
            assert os.pread(each, 1 << 20, 0) == expected
            assert mapped(each) == expected
            os.close(each)
        assert node.stored("f") == expected
    with path.open("r+b", buffering=0) as both:
        both.write(b"and by whoever reads, too")
        os.fsync(both)
    assert path.read_bytes() == node.stored("f") == b"and by whoever reads, too" + expected[25:]
    os.close(reader)
    with path.open("rb") as last:
        assert path.read_bytes() == mapped(last.fileno()) == node.stored("f")


def mapped(file: int) -> bytes:
    """Return what a mapping shows, in a child: SIGBUS would end us."""
    program = "import mmap, sys; sys.stdout.buffer.write(mmap.mmap(0, 0, prot=mmap.PROT_READ)[:])"
    return subprocess.run(
        [sys.executable, "-c", program], stdin=file, stdout=subprocess.PIPE, check=True
    ).stdout


def test_fsync_uploads_and_what_is_written_later_is_not_lost(node: Node) -> None:
    path = node.root / "f"
    file = os.open(path, os.O_WRONLY | os.O_CREAT)
    for size in (1, 5000, 100_000):
        os.pwrite(file, DATA[:size], 0)
        os.fsync(file)
        assert node.stored("f") == DATA[:size]
    os.pwrite(file, b"X", 50_000)  # as long as before, and within the same tick perhaps
    os.close(file)
    assert node.stored("f") == DATA[:50_000] + b"X" + DATA[50_001:100_000]


def test_an_fsync_beside_somebody_who_writes_uploads_what_is_whole(node: Node) -> None:
    """Several tries, if need be: what is sent is what was hashed, or nothing."""
    path, rng, end = node.root / "f", random.Random(2), threading.Event()
    file = os.open(path, os.O_WRONLY | os.O_CREAT)
    os.write(file, DATA)

    def write() -> None:
        while not end.wait(0.002):
            os.pwrite(file, rng.randbytes(100), rng.randrange(len(DATA) - 100))

    thread = threading.Thread(target=write)
    thread.start()
    try:
        os.fsync(file)
    except OSError:
        pass  # said, and not half done
    finally:
        end.set()
        thread.join()
    expected = path.read_bytes()
    os.close(file)
    assert node.stored("f") == expected


def test_times_and_names_of_what_the_kernel_writes(node: Node) -> None:
    path = node.root / "f"
    file = os.open(path, os.O_WRONLY | os.O_CREAT)
    os.utime(path, ns=(5, 10**18))
    os.write(file, b"1")
    assert os.stat(path).st_mtime_ns > 10**18  # as of the write
    os.utime(file, ns=(5, 10**18 + 7))
    os.rename(path, node.root / "g")
    assert os.stat(node.root / "g").st_mtime_ns == 10**18 + 7
    os.close(file)
    assert os.stat(node.root / "g").st_mtime_ns == 10**18 + 7
    assert node.stored("g") == b"1"
    gone = os.open(node.root / "gone", os.O_WRONLY | os.O_CREAT)
    os.write(gone, b"1")
    reader = os.open(node.root / "gone", os.O_RDONLY)
    os.unlink(node.root / "gone")
    os.write(gone, b"2")
    assert (os.pread(reader, 10, 0), os.fstat(gone).st_size) == (b"12", 2)
    os.close(gone)
    os.close(reader)
    assert node.ask.get(f"/{REPO}/gone").status == 404


def test_what_the_kernel_has_written_outlives_the_mount(
    server: EmbeddedServer, mounter: Mounter, tmp_path: Path
) -> None:
    """A writer of its own: it holds the descriptor while the mount is killed, and writes on.

    As long as it can, the kernel keeps the file as the mount had opened it, with its lock: what it
    writes into is nobody's to be uploaded, or removed.
    """
    mounted = mounter(f"{server.url}/{REPO}", JF_ACCESS_TOKEN=server.token)
    script = """if True:
        import os, sys
        file = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT)
        os.write(file, b"1" * 70_000)
        print("written", flush=True)
        input()
        try:
            print(os.write(file, b"2"), flush=True)
        except OSError:
            print("refused", flush=True)
        input()
    """
    writer = subprocess.Popen(
        [sys.executable, "-c", script, mounted.root / "f"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert writer.stdin is not None
    assert writer.stdout is not None
    assert writer.stdout.readline()
    mounted.kill()
    (data,) = tmp_path.glob("**/staging/**/*.data")
    journal = Journal(data.parent)
    writer.stdin.write(b"\n")
    writer.stdin.flush()
    writes_on = writer.stdout.readline() != b"refused\n"
    if writes_on:
        assert list(journal.left_behind()) == []
    writer.communicate(b"\n", timeout=30)
    while not (left := list(journal.left_behind())):  # the kernel lets go of it behind
        os.sched_yield()
    assert [entry.size for entry in left] == [70_000 + writes_on]
    left[0].close()


def test_who_copies_and_who_writes_large_files_comes_here(node: Node, tmp_path: Path) -> None:
    """Their bytes are hashed, and sent, while they come."""
    before = node.passed
    (tmp_path / "source").write_bytes(DATA)
    subprocess.run(["cp", tmp_path / "source", node.root / "copy"], check=True)
    small_writes(node.root / "weights.safetensors", b"\x02\0\0\0\0\0\0\0{}")
    direct = os.open(node.root / "direct", os.O_WRONLY | os.O_CREAT | os.O_DIRECT)
    os.close(direct)
    assert node.passed == before
    assert node.stored("copy") == DATA
    small_writes(node.root / "first.bin", DATA * 3)  # 220 writes: whoever makes such writes little
    small_writes(node.root / "second.bin", DATA)
    assert node.passed - before in (0, 1)  # on a busy disk not all of them are counted
    assert (node.stored("first.bin"), node.stored("second.bin")) == (DATA * 3, DATA)
