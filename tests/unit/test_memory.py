"""One budget of memory for everything that is buffered, which the sum never passes."""

import ctypes
import hashlib
import mmap
import random
import threading

import pytest
import trio
import trio.testing

from jfs import memory
from jfs.config import ReadSettings
from jfs.extents import Extent, KiB, MiB
from jfs.memory import Budget
from jfs.metrics import Metrics
from jfs.model import ArtifactVersion, ContentKey, RepoPath
from jfs.protocols import Sink
from jfs.vfs.reading.reader import ContentReader, DataPlane
from jfs.vfs.reading.segments import Segment, SegmentOwner, SegmentPool


def test_the_sum_stays_within_the_bound() -> None:
    budget = Budget(100)
    assert budget.take(60)
    assert not budget.take(41)
    assert budget.take(40)
    assert (budget.held, budget.most) == (100, 100)
    budget.give(60)
    assert budget.held == 40


def test_a_process_with_little_room_left_buffers_less() -> None:
    budget = Budget(100)
    memory.follow(memory.resident())
    try:
        assert budget.take(60)  # one at least
        assert not budget.take(1)
        budget.give(60)
        assert budget.take(20)
        assert not budget.take(20)
        memory.follow(4 * memory.resident())
        assert budget.take(80)
    finally:
        memory.follow(None)


def test_who_keeps_memory_is_asked_for_it() -> None:
    budget = Budget(100)
    kept = [50, 50]
    asked = []

    def give_back(wanted: int) -> None:
        asked.append(wanted)
        budget.give(kept.pop())

    for size in kept:
        assert budget.take(size)
    budget.add_keeper(give_back)
    assert budget.take(30)
    assert (asked, kept, budget.held) == ([30], [50], 80)
    assert not budget.take(200)


def test_who_waits_is_woken_once() -> None:
    budget = Budget(10)
    woken: list[int] = []
    assert budget.take(10)
    budget.when_given(lambda: woken.append(1))
    budget.give(5)
    budget.give(5)
    assert woken == [1]


def test_many_threads_never_pass_the_bound() -> None:
    budget = Budget(1000)

    def work(seed: int) -> None:
        choose = random.Random(seed)
        for _ in range(500):
            size = choose.randrange(1, 400)
            if budget.take(size):
                assert budget.held <= budget.bound
                budget.give(size)

    workers = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(30)
    assert budget.held == 0
    assert budget.most <= budget.bound


class Owner(SegmentOwner):
    """Keeps every segment that it gets, and lets go of what the pool wants back."""

    def __init__(self, pool: SegmentPool) -> None:
        self.pool = pool
        self.discarded: list[Segment] = []

    def discard(self, segment: Segment) -> None:
        self.discarded.append(segment)
        self.pool.free(segment)


async def test_spare_buffers_and_finished_segments_count() -> None:
    budget = Budget(8 * MiB)
    pool = SegmentPool(budget, MiB, several=False)
    owner = Owner(pool)
    segments = [pool.allocate(Extent(0, MiB - number), "repo") for number in range(8)]
    assert budget.held == 8 * MiB  # by their buffers, not by what is in them
    assert pool.allocate(Extent(0, 1), "repo") is None
    for segment in segments:
        assert segment is not None
        pool.keep(segment, owner)
    assert budget.held == 8 * MiB
    small = [pool.allocate(Extent(0, 100 * KiB), "repo") for _ in range(12)]
    assert None not in small
    assert len(owner.discarded) == 2  # no more than had to go
    assert budget.most <= budget.bound


async def test_a_repository_that_hangs_leaves_memory_to_others() -> None:
    pool = SegmentPool(Budget(8 * MiB), MiB, several=True)
    hanging = []
    while (segment := pool.allocate(Extent(0, MiB), "bad")) is not None:
        hanging.append(segment)
    assert len(hanging) == 6
    assert pool.allocate(Extent(0, MiB), "good") is not None
    assert pool.allocate(Extent(0, MiB), "bad") is None
    pool.free(hanging[0])
    assert pool.allocate(Extent(0, MiB), "bad") is not None


@pytest.mark.parametrize("size", [MiB, 700 * KiB, 300 * KiB])
async def test_what_was_read_gives_its_buffer_before_fresh_memory_is_taken(size: int) -> None:
    budget = Budget(8 * MiB)
    pool = SegmentPool(budget, MiB, several=False)
    owner = Owner(pool)
    unread = pool.allocate(Extent(0, size), "repo")
    assert unread is not None
    pool.keep(unread, owner)
    held = budget.held
    for number in range(1, 20):
        segment = pool.allocate(Extent(number * size, (number + 1) * size), "repo")
        assert segment is not None
        pool.keep(segment, owner)
        segment.is_read = True
        pool.unused(segment, is_kept=True)
    assert budget.most == 2 * held
    assert unread not in owner.discarded


async def test_what_is_written_past_the_page_cache_begins_at_a_page() -> None:
    pool = SegmentPool(Budget(64 * MiB), 8 * MiB, several=False)
    for size in (256 * KiB, MiB + 1, 3 * MiB, 5 * MiB, 8 * MiB):
        segment = pool.allocate(Extent(0, size), "repo")
        assert segment is not None
        assert ctypes.addressof(ctypes.c_char.from_buffer(segment.view)) % mmap.PAGESIZE == 0


async def test_a_writer_gets_what_readers_only_keep() -> None:
    budget = Budget(8 * MiB)
    pool = SegmentPool(budget, MiB, several=False)
    owner = Owner(pool)
    segments = [pool.allocate(Extent(0, MiB), "repo") for _ in range(8)]
    for segment in segments:
        assert segment is not None
        pool.keep(segment, owner)
    assert segments[0] is not None
    owner.discard(segments[0])  # leaves a spare buffer
    assert await trio.to_thread.run_sync(budget.take, MiB)  # at once
    # A segment is not the budget's to take: the event loop gives it up, which runs no callback
    # before we wait for something. From another thread this could be overtaken by that.
    assert not budget.take(MiB)
    while not await trio.to_thread.run_sync(budget.take, MiB):  # it is given up soon
        await trio.lowlevel.checkpoint()
    assert budget.most <= budget.bound


class Source:
    """A ``RangeSource`` over bytes that gives nothing before it is let go."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.go = threading.Event()

    def fetch(self, version: ArtifactVersion, extent: Extent, sink: Sink) -> None:
        assert self.go.wait(30)
        position = extent.start
        while position < extent.stop:
            buffer = sink.buffer()
            count = min(len(buffer), 100_000)
            buffer[:count] = self.content[position : position + count]
            sink.advance(count)
            position += count

    def close(self) -> None:
        pass


async def test_reads_that_find_no_memory_wait_and_are_served() -> None:
    """Four times as many READs at once as there is memory for, and read-ahead besides."""
    content = random.Random(3).randbytes(16 * MiB)
    digest = hashlib.sha256(content).hexdigest()
    version = ArtifactVersion(RepoPath("repo", "f"), ContentKey(f"sha256:{digest}", 16 * MiB), None)
    budget = Budget(4 * MiB)
    source = Source(content)
    settings = ReadSettings(memory_bytes=1, segment_bytes=4 * MiB, window_bytes=8 * MiB)
    right = []

    async def read(reader: ContentReader, start: int) -> None:
        got = bytes(await reader.read(Extent(start, start + MiB)))
        right.append(got == content[start : start + MiB])

    async with trio.open_nursery() as nursery:
        plane = DataPlane(source, None, settings, Metrics(), nursery, fetches=2, budget=budget)
        reader = await plane.open(version)
        async with trio.open_nursery() as readers:
            for start in range(0, 16 * MiB, MiB):
                readers.start_soon(read, reader, start)
            await trio.testing.wait_all_tasks_blocked()
            assert budget.held > 0
            source.go.set()
        await reader.close()
    assert right == [True] * 16
    assert budget.most <= budget.bound
