"""Maps of cached contents: large, damaged, written by several processes; and what is open."""

import contextlib
import hashlib
import os
import random
import resource
import shutil
import sys
import threading
from array import array
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jfs import descriptors
from jfs.cache import DiskBlockStore, inventory
from jfs.cache.blockmap import BlockMap, map_length
from jfs.cache.content import DiskContent
from jfs.cache.files import EntryFiles
from jfs.cache.filesystem import Abilities
from jfs.config import CacheSettings
from jfs.errors import CacheError
from jfs.extents import Extent, GiB, KiB, MiB
from jfs.metrics import Metrics
from jfs.model import ContentKey

BLOCK = 32 * KiB


def key_of(content: bytes) -> ContentKey:
    return ContentKey(f"sha256:{hashlib.sha256(content).hexdigest()}", len(content))


def content_of(size: int) -> bytes:
    return random.Random(size).randbytes(size)


def some_key(number: int, size: int) -> ContentKey:
    return ContentKey(f"sha256:{number:064x}", size)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[DiskBlockStore]:
    made = DiskBlockStore(CacheSettings(tmp_path / "cache", free_floor_bytes=0), Metrics())
    yield made
    made.close()


def read(cached: DiskContent, extent: Extent) -> bytes | None:
    buffer = memoryview(bytearray(extent.size))
    return bytes(buffer) if cached.read_into(extent, buffer) else None


def in_a_child(work: Callable[[], None]) -> int:
    """Run *work* in a process of its own; return its exit code, negative for a signal."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def bytes_read() -> int:
    """Bytes that this thread got from read calls so far."""
    lines = Path("/proc/thread-self/io").read_text().splitlines()
    return int(dict(line.split(": ") for line in lines)["rchar"])


@pytest.mark.parametrize("complete", [False, True])
def test_opening_a_large_content_reads_little_of_its_map(
    store: DiskBlockStore, complete: bool
) -> None:
    key = some_key(1, 140 * GiB)
    cached = store.open(key)
    if complete:
        length = map_length(key, BLOCK)
        with cached.map_path.open("r+b") as file:
            file.seek(4096)
            file.write(b"\1" * (length - 4096))
    cached.close()
    before = bytes_read()
    cached = store.open(key)
    assert cached.missing(Extent(70 * GiB, 70 * GiB + MiB)) == (
        [] if complete else [Extent(70 * GiB, 70 * GiB + MiB)]
    )
    assert bytes_read() - before < MiB
    if not complete:
        assert cached.map_path.stat().st_blocks * 512 <= 64 * KiB
    cached.close()


words = st.lists(
    st.one_of(
        st.just(0),
        st.integers(1, 2**64 - 1),
        st.sampled_from([1, 1 << 56, 255 << 56, 1 << 8, 1 << 48]),  # with long runs of zero bytes
    ),
    min_size=1,
    max_size=60,
)


@given(words, st.integers(1, 40))
def test_a_map_agrees_with_a_list(
    tmp_path_factory: pytest.TempPathFactory, given_words: list[int], repeat: int
) -> None:
    every = given_words * repeat
    path = tmp_path_factory.mktemp("map") / "folder" / "x.map"
    key = some_key(2, len(every) * BLOCK - 5)
    blocks = BlockMap.open(path, key, BLOCK)
    blocks.set(0, array("Q", every))
    absent = [number for number, word in enumerate(every) if not word]
    whole = range(len(every))
    assert blocks.words(whole) == every
    assert blocks.present() == len(every) - len(absent)
    assert blocks.first_absent() == (absent[0] if absent else len(every))
    assert [number for run in blocks.missing(whole) for number in run] == absent
    assert all(a.stop < b.start for a, b in pairwise(blocks.missing(whole)))
    assert blocks.present_bytes() == sum(
        blocks.extent_of(number).size for number, word in enumerate(every) if word
    )
    blocks.close()


@pytest.mark.parametrize("size", [0, 1, 100, 4096, 4096 + 9, 4096 + 20 * 8])
def test_a_truncated_map_kills_nobody(
    store: DiskBlockStore, size: int, expected_logs: list[str]
) -> None:
    expected_logs.append("is damaged: made anew")
    content = content_of(64 * BLOCK)
    everything = Extent(0, len(content))

    def work() -> None:
        cached = store.open(key_of(content))
        cached.publish(0, memoryview(content))
        os.truncate(cached.map_path, size)  # a repair of the disk, a failing one
        for _ in range(2):
            got = read(cached, everything)
            assert got is None, "what is not noted is there"
            assert sum(run.size for run in cached.missing(everything)) >= 40 * BLOCK
            cached.read_resident(Extent(0, BLOCK))
            cached.verified  # noqa: B018 - must not kill
            cached.close()
            cached = store.open(key_of(content))
            assert not cached.verified
        for _ in range(2):  # half a word is a wrong one, which the first read finds out
            for run in cached.missing(everything):
                assert cached.publish(run.start, memoryview(content)[run.start : run.stop])
            got = read(cached, everything)
        assert got == content
        cached.close()

    assert in_a_child(work) == 0


def test_a_map_that_was_cut_while_it_is_open_is_filled_again(store: DiskBlockStore) -> None:
    content = content_of(64 * BLOCK)
    cached = store.open(key_of(content))
    assert cached.publish(0, memoryview(content)[:MiB])
    os.truncate(cached.map_path, 0)
    assert cached.missing(Extent(0, MiB)) == [Extent(0, MiB)]
    assert cached.publish(0, memoryview(content)[:MiB])
    assert read(cached, Extent(0, 5)) == content[:5]
    cached.close()


def test_a_map_of_another_content_is_no_map(store: DiskBlockStore, tmp_path: Path) -> None:
    """A huge size in a damaged header, say, must not keep `jfs cache ls` busy for ever."""
    cached = store.open(some_key(3, MiB))
    cached.close()
    with cached.map_path.open("r+b") as file:
        file.seek(16)
        file.write((2**60).to_bytes(8, "little"))
    assert list(inventory(tmp_path / "cache")) == []


def test_a_flag_that_one_process_sets_is_not_undone_by_another(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "x.map"
    ours = BlockMap.open(path, some_key(4, MiB), BLOCK)
    child = os.fork()
    if child == 0:
        theirs = BlockMap.open(path, some_key(4, MiB), BLOCK)
        while True:
            theirs.set_verified(1)
            theirs.set_unverified()
    try:
        for number in range(20_000):
            ours.pinned = bool(number % 2)
            assert ours.pinned == bool(number % 2)
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)
        ours.close()


def test_two_processes_publish_neighbouring_blocks(store: DiskBlockStore) -> None:
    content = content_of(512 * BLOCK)
    ours = store.open(key_of(content))

    def publish(cached: DiskContent, first: int) -> None:
        for number in range(first, 512, 2):
            block = memoryview(content)[number * BLOCK : (number + 1) * BLOCK]
            assert cached.publish(number * BLOCK, block)

    child = os.fork()
    if child == 0:
        try:
            publish(store.open(key_of(content)), 1)
            os._exit(0)
        finally:
            os._exit(1)
    publish(ours, 0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert ours.missing(Extent(0, len(content))) == []
    assert read(ours, Extent(0, len(content))) == content
    ours.close()


class _Shelf:
    """The store of one content, whose verifier only takes notes."""

    def __init__(self, path: Path) -> None:
        self.abilities = Abilities()
        self.metrics = Metrics()
        self.block_size = BLOCK
        self.done: list[ContentKey] = []
        self._path = path

    def open_files(self, content: ContentKey, *, wait: bool) -> EntryFiles:
        data = self._path.with_suffix(".data")
        blocks = BlockMap.open(self._path, content, BLOCK)
        return EntryFiles(self._path, data, blocks, os.open(data, os.O_RDWR | os.O_CREAT, 0o600))

    def content(self, key: ContentKey) -> DiskContent:
        return DiskContent(key, self.open_files(key, wait=True), self, is_use=True)

    def opened(self, content: DiskContent) -> None: ...
    def closed(self, content: DiskContent) -> None: ...
    def written(self, size: int) -> None: ...

    def room(self, size: int) -> bool:
        return True

    def failed(self, error: OSError) -> None:
        raise error

    def worked(self) -> None:
        pass

    def completed(self, content: ContentKey) -> None:
        self.done.append(content)

    def used(self, entry: int) -> None:
        pass

    def may_hold(self, count: int) -> bool:
        return True


@given(st.permutations(range(12)), st.integers(0, 12))
def test_the_end_of_a_download_is_noticed_in_whatever_order_blocks_come(
    tmp_path_factory: pytest.TempPathFactory, order: list[int], ours: int
) -> None:
    """Some blocks are published here and the others by another process; who comes last tells."""
    content = content_of(11 * BLOCK + 7)
    key = key_of(content)
    shelf = _Shelf(tmp_path_factory.mktemp("entry") / "folder" / "x.map")
    here, there = shelf.content(key), shelf.content(key)
    for position, number in enumerate(order):
        assert shelf.done == []
        cached = here if position < ours else there
        data = memoryview(content)[number * BLOCK : (number + 1) * BLOCK]
        assert cached.publish(number * BLOCK, data)
    here.close()
    there.close()
    assert shelf.done
    assert set(shelf.done) == {key}


def test_what_is_open_is_not_evicted(tmp_path: Path) -> None:
    settings = CacheSettings(tmp_path / "cache", free_floor_bytes=0, budget_bytes=4 * MiB)
    store = DiskBlockStore(settings, Metrics())
    one, other = content_of(3 * MiB), random.Random(1).randbytes(3 * MiB)
    # Neither is ever complete, or the verifier would open it.
    opened = store.open(some_key(6, 4 * MiB))
    for extent in Extent(0, len(one)).pieces(MiB):
        assert opened.publish(extent.start, memoryview(one)[extent.start : extent.stop])
    second = store.open(some_key(7, 4 * MiB))
    published = [
        second.publish(extent.start, memoryview(other)[extent.start : extent.stop])
        for extent in Extent(0, 3 * MiB).pieces(MiB)
    ]
    assert not all(published)
    assert opened.missing(Extent(0, len(one))) == []
    assert read(opened, Extent(0, len(one))) == one
    opened.close()  # from now on it may go
    assert second.publish(2 * MiB, memoryview(other)[2 * MiB :])
    used = sum(path.stat().st_blocks * 512 for path in tmp_path.glob("cache/??/*"))
    assert used <= 4 * MiB
    second.close()
    store.close()


@pytest.fixture
def few_descriptors() -> Iterator[int]:
    """Leave this process 120 descriptors."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    left = 120
    limit = max(int(name) for name in os.listdir("/proc/self/fd")) + left
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    yield left
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def descriptors_open() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_an_open_content_has_two_descriptors(store: DiskBlockStore) -> None:
    before = descriptors_open()
    cached = store.open(some_key(5, 2 * MiB))
    assert cached.publish(0, memoryview(bytes(MiB)))
    assert descriptors_open() - before <= 2
    cached.close()
    assert descriptors_open() == before


def test_more_contents_are_open_than_there_are_descriptors(
    store: DiskBlockStore, few_descriptors: int
) -> None:
    contents = [content_of(BLOCK + number) for number in range(3 * few_descriptors)]
    cached = [store.open(key_of(content)) for content in contents]
    for each, content in zip(cached, contents, strict=True):
        assert each.publish(0, memoryview(content))
    for each, content in zip(cached, contents, strict=True):
        assert each.missing(Extent(0, len(content))) == []
        assert read(each, Extent(0, len(content))) == content
    for each in cached:
        each.close()
        each.close()
    assert store.metrics.snapshot().get("cache_disk_errors", 0) == 0


def test_a_lack_of_descriptors_is_called_so(
    store: DiskBlockStore,
    few_descriptors: int,
    expected_logs: list[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    expected_logs.append("no file descriptor is left")
    content = content_of(MiB)
    taken = []
    try:
        while True:
            taken.append(os.dup(0))
    except OSError:
        pass
    for _ in range(3):
        with pytest.raises(CacheError):
            store.open(key_of(content))
    for file in taken:
        os.close(file)
    said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(said) == 1, said
    assert f"the limit of this process is {descriptors.limit()}" in said[0]
    assert "ulimit" in said[0]
    cached = store.open(key_of(content))  # at once
    assert cached.publish(0, memoryview(content))
    assert read(cached, Extent(0, MiB)) == content
    cached.close()


@pytest.mark.timeout(1800)  # the whole proof takes minutes
def test_no_wrong_byte_whatever_happens_to_the_files(
    tmp_path: Path,
    few_descriptors: int,
    expected_logs: list[str],
    scale: Callable[[int, int], int],
) -> None:
    """Several threads and stores, few descriptors, a small budget; maps are cut, all is removed."""
    expected_logs += ["is damaged: made anew", "does not match its checksum", "keeps vanishing"]
    contents = [content_of(100 * KiB + 13 * number * KiB + number) for number in range(24)]
    keys = [key_of(content) for content in contents]
    directory = tmp_path / "cache"
    settings = CacheSettings(directory, free_floor_bytes=0, budget_bytes=3 * MiB)
    right: list[bool] = []

    def fetch(cached: DiskContent, content: bytes, extent: Extent) -> None:
        claim = cached.claim(extent)
        if claim is not None:
            with claim:
                for run in cached.missing(extent):
                    cached.publish(run.start, memoryview(content)[run.start : run.stop])

    def work(store: DiskBlockStore, seed: int) -> None:
        choose = random.Random(seed)
        held: list[tuple[DiskContent, bytes]] = []
        for _ in range(scale(300, 5_000)):
            what = choose.random()
            if what < 0.2 or not held:
                number = choose.randrange(len(keys))
                with contextlib.suppress(CacheError):
                    held.append((store.open(keys[number]), contents[number]))
                if len(held) > 20:
                    held.pop(0)[0].close()
                continue
            cached, content = choose.choice(held)
            start = choose.randrange(len(content))
            extent = Extent(start, start + choose.randrange(1, 200 * KiB)).clipped(len(content))
            wanted = content[extent.start : extent.stop]
            if what < 0.7:
                right.append(read(cached, extent) in (None, wanted))
                right.append(cached.read_resident(extent) in (None, wanted))
            elif what < 0.98:
                fetch(cached, content, extent)
            elif what < 0.995:
                with contextlib.suppress(OSError):
                    os.truncate(cached.map_path, choose.choice([0, 50, 4096 + 9, 4096 + 64]))
            else:
                shutil.rmtree(directory, ignore_errors=True)
        for cached, _ in held:
            cached.close()

    stores = [DiskBlockStore(settings, Metrics()) for _ in range(2)]
    before = descriptors_open()
    workers = [
        threading.Thread(target=work, args=(store, seed)) for seed, store in enumerate(stores * 2)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for store in stores:
        store.close()
    assert len(right) > 100
    assert all(right)
    assert descriptors_open() <= before
