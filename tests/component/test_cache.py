"""The block cache: right bytes or a miss, whatever its files, disk or writers do."""

import hashlib
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jfs.cache import DiskBlockStore, eviction
from jfs.cache.blockmap import entry_name
from jfs.cache.content import DiskContent
from jfs.cache.lastuse import LastUse
from jfs.cache.verification import Verifier
from jfs.config import CacheSettings
from jfs.errors import CacheError
from jfs.extents import Extent, ExtentSet, GiB, KiB, MiB
from jfs.metrics import Metrics
from jfs.model import ContentKey
from tests.component import cache_filler

BLOCK = 32 * KiB


def key_of(content: bytes) -> ContentKey:
    return ContentKey(f"sha256:{hashlib.sha256(content).hexdigest()}", len(content))


def content_of(size: int) -> bytes:
    return random.Random(size).randbytes(size)


Opener = Callable[..., DiskBlockStore]


@pytest.fixture
def open_store(tmp_path: Path) -> Iterator[Opener]:
    stores: list[DiskBlockStore] = []

    def make(
        directory: Path = tmp_path / "cache",
        *,
        budget: int = GiB,
        floor: int = 0,
        now: Callable[[], int] = time.time_ns,
    ) -> DiskBlockStore:
        chosen = CacheSettings(directory, budget_bytes=budget, free_floor_bytes=floor)
        stores.append(DiskBlockStore(chosen, Metrics(), now=now))
        return stores[-1]

    yield make
    for store in stores:
        store.close()


def read(cached: DiskContent, extent: Extent) -> bytes | None:
    buffer = memoryview(bytearray(extent.size))
    return bytes(buffer) if cached.read_into(extent, buffer) else None


@pytest.mark.parametrize("size", [1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * MiB, 4 * MiB + 4097])
def test_what_is_published_is_read_back_also_after_a_restart(open_store: Opener, size: int) -> None:
    content = content_of(size)
    cached = open_store().open(key_of(content))
    everything = Extent(0, size)
    assert cached.missing(everything) == [everything]
    assert read(cached, everything) is None
    assert cached.publish(0, memoryview(content))
    cached.close()
    again = open_store().open(key_of(content))
    assert again.missing(everything) == []
    assert read(again, everything) == content
    for extent in (Extent(0, 1), Extent(size - 1, size), Extent(size // 3, size // 2 + 1)):
        assert read(again, extent) == content[extent.start : extent.stop]
    again.close()


def test_a_resident_read_is_right_or_none(open_store: Opener) -> None:
    content = content_of(MiB)
    cached = open_store().open(key_of(content))
    assert cached.read_resident(Extent(0, 10)) is None
    cached.publish(0, memoryview(content))
    assert read(cached, Extent(5, BLOCK + 5)) == content[5 : BLOCK + 5]
    resident = cached.read_resident(Extent(5, BLOCK + 5))
    assert resident is None or resident == content[5 : BLOCK + 5]
    cached.close()


blocks = st.integers(0, 15)


@given(st.lists(st.tuples(blocks, blocks), max_size=8), st.tuples(blocks, blocks))
@settings(max_examples=60, deadline=None)
def test_missing_agrees_with_a_set(
    tmp_path_factory: pytest.TempPathFactory,
    published: list[tuple[int, int]],
    question: tuple[int, int],
) -> None:
    size = 15 * BLOCK + 100
    content = content_of(size)
    directory = tmp_path_factory.mktemp("cache", numbered=True) / "cache"
    store = DiskBlockStore(CacheSettings(directory, free_floor_bytes=0), Metrics())
    cached = store.open(key_of(content))
    present = ExtentSet()
    for one, other in published:
        extent = Extent(min(one, other) * BLOCK, (max(one, other) + 1) * BLOCK).clipped(size)
        assert cached.publish(extent.start, memoryview(content)[extent.start : extent.stop])
        present.add(extent)
    asked = Extent(min(question) * BLOCK, max(question) * BLOCK + 1).clipped(size)
    assert cached.missing(asked) == present.missing(asked.aligned(BLOCK, size))
    assert (read(cached, asked) is not None) == present.contains(asked)
    cached.close()
    store.close()


def test_no_flipped_bit_is_ever_served(
    open_store: Opener, scale: Callable[[int, int], int], expected_logs: list[str], tmp_path: Path
) -> None:
    expected_logs += ["does not match its checksum", "is damaged", "made anew"]
    content = content_of(2 * MiB + 33)
    key = key_of(content)
    choose = random.Random(4)
    store = open_store()
    # All but the last block: nobody verifies the whole while we flip its bits.
    everything = Extent(0, 2 * MiB)

    def fill() -> None:
        cached = store.open(key)
        for run in cached.missing(everything):
            cached.publish(run.start, memoryview(content)[run.start : run.stop])
        cached.close()

    fill()
    (data,) = tmp_path.glob("cache/??/*.data")
    (blockmap,) = tmp_path.glob("cache/??/*.map")
    for _ in range(scale(300, 10_000)):
        victim = choose.choice([data, blockmap])
        with victim.open("r+b") as file:
            size = os.fstat(file.fileno()).st_size
            # The map's header page is mostly padding: hit what is used.
            place = choose.randrange(size if victim is data else size - 4096)
            if victim is blockmap:
                place = place + 4096 if choose.random() < 0.9 else choose.randrange(128)
            file.seek(place)
            old = file.read(1)[0]
            file.seek(place)
            file.write(bytes([old ^ (1 << choose.randrange(8))]))
        cached = store.open(key)
        start = choose.randrange(everything.stop)
        for extent in (everything, Extent(start, min(everything.stop, start + 5000))):
            got = read(cached, extent)
            assert got is None or got == content[extent.start : extent.stop]
            resident = cached.read_resident(extent)
            assert resident is None or resident == content[extent.start : extent.stop]
        cached.close()
        fill()


def test_a_killed_writer_leaves_only_right_blocks(
    open_store: Opener, scale: Callable[[int, int], int], tmp_path: Path
) -> None:
    content = cache_filler.content()
    everything = Extent(0, len(content))
    choose = random.Random(9)
    partial = 0
    for attempt in range(scale(6, 200)):
        directory = tmp_path / f"cache{attempt}"
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.component.cache_filler", str(directory)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "filling\n"
        # No wait decides anything: wherever the kill falls, what is left must be right.
        spin = choose.randrange(200_000)
        while spin:
            spin -= 1
        process.kill()
        process.wait()
        process.stdout.close()
        cached = open_store(directory).open(cache_filler.KEY)
        missing = cached.missing(everything)
        partial += bool(missing)
        for extent in everything.pieces(BLOCK):
            got = read(cached, extent)
            if any(run.overlaps(extent) for run in missing):
                assert got is None
            else:
                assert got == content[extent.start : extent.stop]
        cached.close()
    assert partial


def test_two_stores_see_each_others_blocks_at_once(open_store: Opener) -> None:
    content = content_of(MiB)
    one, other = open_store().open(key_of(content)), open_store().open(key_of(content))
    one.publish(0, memoryview(content))
    assert read(other, Extent(0, MiB)) == content
    one.close()
    other.close()


def test_a_claim_excludes_others_and_dies_with_its_holder(open_store: Opener) -> None:
    content = content_of(MiB)
    one, other = open_store().open(key_of(content)), open_store().open(key_of(content))
    claim = one.claim(Extent(0, 2 * BLOCK))
    assert claim is not None
    with claim:
        assert other.claim(Extent(BLOCK, BLOCK + 1)) is None
        assert one.claim(Extent(0, 1)) is None  # also another reader of this process
        beside = other.claim(Extent(2 * BLOCK, 3 * BLOCK))
        assert beside is not None
        with beside:
            pass
    free = other.claim(Extent(0, 2 * BLOCK))
    assert free is not None
    with free:
        pass
    child = os.fork()
    if child == 0:
        held = one.claim(Extent(0, MiB))
        os._exit(0 if held is not None else 1)  # without a word
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    after = other.claim(Extent(0, MiB))
    assert after is not None
    with after:
        pass
    one.close()
    other.close()


def test_the_least_recently_used_goes_first(open_store: Opener, tmp_path: Path) -> None:
    store = open_store(budget=8 * MiB)
    # All but the last block: a complete content would be opened once more, to verify it, and what
    # is open is evicted last.
    contents = [content_of(MiB + 1 + i) for i in range(12)]
    stored = Extent(0, MiB)
    for age, content in enumerate(contents):
        cached = store.open(key_of(content))
        assert cached.publish(0, memoryview(content)[:MiB])
        cached.close()
        os.utime(cached.map_path, (1_000_000 + age, 1_000_000 + age))
    used = sum(path.stat().st_blocks * 512 for path in tmp_path.glob("cache/??/*"))
    assert used <= 8 * MiB
    left = []
    for index, content in enumerate(contents):
        cached = store.open(key_of(content))
        if read(cached, stored) == content[:MiB]:
            left.append(index)
        cached.close()
    assert left == list(range(left[0], 12))


def test_what_is_used_later_goes_later_whatever_the_clock_says(
    open_store: Opener, tmp_path: Path
) -> None:
    """It is set forward and back, by years or by a moment, also between two starts."""
    year, second = 365 * 86400 * 10**9, 10**9
    clock = [time.time_ns()]
    contents = [content_of(BLOCK + i) for i in range(11)]
    jumps = [0, second, 10 * year, second, -10 * year, 0, second, -40 * year, 5, 40 * year, -second]
    store = open_store(now=lambda: clock[0])
    for content, jump in zip(contents, jumps, strict=True):
        clock[0] += jump
        if abs(jump) > year:
            store = open_store(now=lambda: clock[0])
        cached = store.open(key_of(content))
        assert cached.publish(0, memoryview(content)[:BLOCK])
        cached.close()
        if len(content) > BLOCK:  # as who completes it does, by the disk's own clock
            found = store.inspect(key_of(content))
            found.note_verified(1)
            found.close()
    by_use = sorted(eviction.entries(tmp_path / "cache"), key=lambda entry: entry.last_used)
    names = [entry_name(key_of(content)) for content in contents]
    assert [entry.map_path.stem for entry in by_use] == names


def test_a_clock_that_was_ahead_for_a_moment_catches_up(tmp_path: Path) -> None:
    clock = time.time_ns()
    uses = LastUse(tmp_path, lambda: clock)
    entry = tmp_path / "entry"
    entry.touch()
    uses.note(entry)
    clock -= 50_000_000
    for _ in range(100):
        clock += 1_000_000
        before = entry.stat().st_mtime_ns
        uses.note(entry)
        assert entry.stat().st_mtime_ns > before
    assert entry.stat().st_mtime_ns == clock


def test_a_content_beyond_the_budget_is_still_read_right(
    open_store: Opener, tmp_path: Path
) -> None:
    content = content_of(16 * MiB)
    store = open_store(budget=4 * MiB)
    cached = store.open(key_of(content))
    for extent in Extent(0, len(content)).pieces(256 * KiB):
        cached.publish(extent.start, memoryview(content)[extent.start : extent.stop])
        got = read(cached, extent)
        assert got is None or got == content[extent.start : extent.stop]
    used = sum(path.stat().st_blocks for path in tmp_path.glob("cache/??/*")) * 512
    assert used <= 5 * MiB
    cached.close()


def test_eviction_under_readers_serves_no_wrong_byte(open_store: Opener) -> None:
    contents = [content_of(2 * MiB + i) for i in range(6)]
    wrong: list[int] = []

    def work(seed: int) -> None:
        store = open_store(budget=5 * MiB)
        choose = random.Random(seed)
        for _ in range(40):
            content = choose.choice(contents)
            cached = store.open(key_of(content))
            claim = cached.claim(Extent(0, len(content)))
            if claim is not None:
                with claim:
                    for run in cached.missing(Extent(0, len(content))):
                        cached.publish(run.start, memoryview(content)[run.start : run.stop])
            got = read(cached, Extent(0, len(content)))
            if got is not None and got != content:
                wrong.append(seed)
            cached.close()

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "disk"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "jfs-test", str(place)], check=True)
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.mark.fuse  # root, like every mount
def test_a_small_disk_is_enough_for_a_big_content(
    open_store: Opener, small_disk: Path, expected_logs: list[str]
) -> None:
    expected_logs.append("reading past the cache")
    store = open_store(small_disk / "cache", budget=GiB)
    content = content_of(32 * MiB)
    cached = store.open(key_of(content))
    stored = 0
    for extent in Extent(0, len(content)).pieces(MiB):
        piece = memoryview(content)[extent.start : extent.stop]
        stored += cached.publish(extent.start, piece)
        got = read(cached, extent)
        assert got is None or got == piece
    cached.close()
    store.close()  # before the disk goes
    assert stored > 0


def test_a_complete_content_is_held_against_its_digest(
    open_store: Opener, expected_logs: list[str]
) -> None:
    expected_logs.append("does not match its checksum: dropped")
    good = content_of(MiB)
    store = open_store()
    for key, left in ((key_of(good), []), (ContentKey("sha256:" + "0" * 64, MiB), [(0, MiB)])):
        cached = store.open(key)
        cached.publish(0, memoryview(good))
        store.verify(key)
        assert cached.missing(Extent(0, MiB)) == left
        assert cached.verified == (not left)
        cached.close()


@pytest.mark.parametrize(
    "digest",
    ["", "sha256:", "sha256:../../../etc/passwd", "md5:" + "0" * 32, "sha256:" + "G" * 64],
)
def test_a_hostile_digest_never_becomes_a_path(open_store: Opener, digest: str) -> None:
    with pytest.raises(CacheError):
        open_store().open(ContentKey(digest, 10))


def test_a_complete_content_is_verified_once_the_data_plane_rests(
    open_store: Opener, tmp_path: Path
) -> None:
    data = content_of(MiB)
    store = open_store()
    cached = store.open(key_of(data))
    cached.publish(0, memoryview(data))
    verifier = Verifier(store.inspect, Metrics(), quiet_s=0)
    verifier.submit(key_of(data))
    deadline = time.monotonic() + 30
    while not cached.verified:
        assert time.monotonic() < deadline
    verifier.close()
    cached.close()
