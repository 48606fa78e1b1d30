"""The digest and the sums of a staged file are those of its bytes, however it was written."""

import hashlib
import itertools
import os
import random
import threading
import time
from array import array
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from jfs.cache import DiskBlockStore
from jfs.cache.blockmap import checksum
from jfs.config import CacheSettings, WriteSettings
from jfs.extents import KiB, MiB
from jfs.metrics import Metrics
from jfs.model import ContentKey, RepoPath
from jfs.vfs.writing.area import StagingArea
from jfs.vfs.writing.hashing import Blocks, RunningHash
from jfs.vfs.writing.staging import StagingFile

BLOCK = CacheSettings(Path()).block_size


class Staged:
    """A file that is written as a mount does it, and what it ought to hold."""

    def __init__(self, path: Path, hashers: ThreadPoolExecutor) -> None:
        self.file = os.open(path, os.O_RDWR | os.O_CREAT)
        self.hash = RunningHash(hashers, self.file, Blocks(BLOCK, checksum))
        self.data = bytearray()

    def write(self, offset: int, data: bytes) -> None:
        os.pwrite(self.file, data, offset)
        self.hash.wrote(offset, len(data))
        self.data.extend(bytes(max(0, offset + len(data) - len(self.data))))
        self.data[offset : offset + len(data)] = data

    def truncate(self, size: int) -> None:
        os.ftruncate(self.file, size)
        self.hash.cut(size)
        del self.data[size:]
        self.data.extend(bytes(size - len(self.data)))

    def check(self) -> str:
        digest = self.hash.digest(len(self.data))
        assert digest == hashlib.sha256(self.data).hexdigest()
        words = self.hash.sums(len(self.data), digest)
        assert words in (None, sums(self.data))
        return digest


@pytest.fixture
def staged(tmp_path: Path) -> Iterator[Staged]:
    with ThreadPoolExecutor(2) as hashers:
        made = Staged(tmp_path / "staged", hashers)
        yield made
        made.hash.end()
        os.close(made.file)


def sums(data: bytes | bytearray) -> "array[int]":
    view = memoryview(data)
    starts = enumerate(range(0, len(data), BLOCK))
    return array("Q", (checksum(view[at : at + BLOCK], number) for number, at in starts))


@pytest.mark.parametrize("seed", range(6))
def test_any_order_of_writes_gives_the_digest_of_what_is_there(staged: Staged, seed: int) -> None:
    rng = random.Random(seed)
    source = rng.randbytes(3 * MiB)
    for _ in range(60):
        size = rng.choice([1, 4 * KiB, 100 * KiB, MiB, 3 * MiB])
        match rng.randrange(8):
            case 0:
                staged.write(rng.randrange(len(staged.data) + 1), source[:size])
            case 1:
                staged.truncate(rng.randrange(len(staged.data) + 2 * MiB))
            case 2:
                staged.write(0, source[:100])  # a header
            case 3:
                staged.check()
            case _:
                staged.write(len(staged.data), source[-size:])
        if len(staged.data) > 24 * MiB:
            staged.truncate(rng.choice([0, MiB, 5]))
    staged.check()


def test_what_was_written_front_to_back_has_its_sums(staged: Staged) -> None:
    data = random.Random(1).randbytes(5 * MiB + 12345)
    for start in range(0, len(data), 10 * KiB):
        staged.write(start, data[start : start + 10 * KiB])
    digest = staged.check()
    assert staged.hash.sums(len(data), digest) == sums(data)
    assert staged.hash.sums(len(data), hashlib.sha256().hexdigest()) is None
    staged.write(len(data), b"more")
    assert staged.hash.sums(len(data), digest) == sums(data)  # of what had this digest
    staged.check()


def test_a_header_that_is_written_last_begins_nothing_anew(staged: Staged) -> None:
    """As far as the last MiB goes: nothing of a small file is hashed before its close."""
    staged.write(0, bytes(900 * KiB))
    staged.write(0, b"the length is known now")
    assert staged.hash.sums(0, hashlib.sha256().hexdigest()) is not None  # nothing is hashed yet
    staged.check()


def test_what_else_goes_wrong_beside_the_writes_keeps_nobody_waiting(tmp_path: Path) -> None:
    """A thread that counts as busy for ever would be waited for at the close."""
    failures: list[Exception] = [MemoryError()]
    failed = threading.Event()

    def once(block: memoryview, number: int) -> int:
        if failures:
            failed.set()
            raise failures.pop()
        return checksum(block, number)

    file = os.open(tmp_path / "staged", os.O_RDWR | os.O_CREAT)
    data = random.Random(2).randbytes(3 * MiB)
    os.pwrite(file, data, 0)
    with ThreadPoolExecutor(1) as hashers:
        running = RunningHash(hashers, file, Blocks(BLOCK, once))
        running.wrote(0, len(data))
        assert failed.wait(30)
        assert running.digest(len(data)) == hashlib.sha256(data).hexdigest()
        running.end()
    os.close(file)


def test_a_disk_that_fails_beside_the_writes_is_asked_again(tmp_path: Path) -> None:
    path = tmp_path / "staged"
    with ThreadPoolExecutor(1) as hashers:
        staged = Staged(path, hashers)
        staged.hash.wrote(0, 5 * MiB)  # the file has none of it
        with pytest.raises(OSError, match="ends before"):
            staged.hash.digest(5 * MiB)
        staged.write(0, random.Random(2).randbytes(5 * MiB))
        staged.check()
        staged.hash.end()
        staged.hash.wrote(5 * MiB, 5 * MiB)
        assert not staged.hash.is_busy  # nobody reads what is about to be closed
    os.close(staged.file)


class _HashesMeanwhile:
    """A follower: once it hears of a change, all is hashed that may be."""

    has_ended = False

    def __init__(self, go_on: threading.Event, staged: StagingFile) -> None:
        self._go_on, self._staged = go_on, staged

    def changed(self, start: int) -> None:
        self._go_on.set()
        while self._staged._hash.is_busy:
            time.sleep(0.001)

    async def finish(self, size: int, sha256: str) -> bool:
        return False

    def give_up(self) -> None:
        pass


def test_a_hole_that_is_punched_while_others_hash_is_in_the_digest(tmp_path: Path) -> None:
    begun, go_on = threading.Event(), threading.Event()

    class Store(DiskBlockStore):
        def checksum(self, data: memoryview, number: int) -> int:
            begun.set()
            assert go_on.wait(30)
            return super().checksum(data, number)

    store = Store(CacheSettings(tmp_path / "cache", free_floor_bytes=0), Metrics())
    area = StagingArea(WriteSettings(tmp_path / "staging"), "https://server.example", store)
    data = random.Random(5).randbytes(5 * MiB)
    staged = area.new(RepoPath("repo", "f"), None)
    staged.write(0, data)
    assert begun.wait(30)  # the first MiB; the others have their turn yet
    staged.overlap = _HashesMeanwhile(go_on, staged)
    staged.zero(2 * MiB, 64 * KiB)
    expected = data[: 2 * MiB] + bytes(64 * KiB) + data[2 * MiB + 64 * KiB :]
    assert staged.sha256() == hashlib.sha256(expected).hexdigest()
    staged.unmake()
    area.close()
    store.close()


def test_what_is_adopted_with_its_sums_is_not_read_again(tmp_path: Path) -> None:
    data = random.Random(3).randbytes(4 * MiB + 5)
    store = DiskBlockStore(CacheSettings(tmp_path / "cache", free_floor_bytes=0), Metrics())
    for with_sums, number in itertools.product((False, True), range(2)):
        content = bytes([number, with_sums]) + data
        key = ContentKey(f"sha256:{hashlib.sha256(content).hexdigest()}", len(content))
        path = tmp_path / "staged"
        path.write_bytes(content)
        before = read_so_far()
        assert store.adopt(key, path, sums(content) if with_sums else None)
        assert (read_so_far() - before < MiB) == with_sums
        assert store.verify(key)
        with_whole = store.open(key)
        assert with_whole.is_verified()
        with_whole.close()
    path.write_bytes(content[:-1])
    other = ContentKey(f"sha256:{hashlib.sha256(b'other').hexdigest()}", len(content))
    assert not store.adopt(other, path, sums(content))  # it is shorter than its sums say
    store.close()


def read_so_far() -> int:
    """Bytes that this process has read, from wherever."""
    return int(Path("/proc/self/io").read_text().split()[1])
