"""The reader above its seams: an in-memory source that can be slow, fail, or change."""

import hashlib
import random
import threading
from array import array
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from jfs.config import ReadSettings
from jfs.errors import DeadlineExceeded, ProtocolViolation, Stale, Unavailable
from jfs.extents import Extent, KiB, MiB
from jfs.memory import Budget
from jfs.metrics import Metrics
from jfs.model import ArtifactVersion, ContentKey, RepoPath
from jfs.protocols import Sink
from jfs.vfs.reading.reader import ContentReader, DataPlane

SETTINGS = ReadSettings(memory_bytes=8 * MiB, segment_bytes=1 * MiB, window_bytes=4 * MiB)


class MemorySource:
    """A ``RangeSource`` over bytes; *before* runs in the worker thread ahead of every fetch."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.fetched: list[Extent] = []
        self.before: Callable[[Extent], None] = lambda _: None
        self._lock = threading.Lock()

    def fetch(self, version: ArtifactVersion, extent: Extent, sink: Sink) -> None:
        with self._lock:
            self.fetched.append(extent)
        self.before(extent)
        position = extent.start
        while position < extent.stop:
            buffer = sink.buffer()
            count = min(len(buffer), 100_000)
            buffer[:count] = self.content[position : position + count]
            sink.advance(count)
            position += count

    def close(self) -> None:
        pass


def version_of(content: bytes) -> ArtifactVersion:
    digest = hashlib.sha256(content).hexdigest()
    key = ContentKey(f"sha256:{digest}", len(content))
    return ArtifactVersion(RepoPath("repo", "file"), key, None)


@asynccontextmanager
async def reading(
    source: MemorySource, settings: ReadSettings = SETTINGS
) -> AsyncIterator[ContentReader]:
    async with trio.open_nursery() as nursery:
        plane = DataPlane(source, None, settings, Metrics(), nursery, fetches=4)
        reader = await plane.open(version_of(source.content))
        yield reader
        await reader.close()


def content(size: int) -> bytes:
    return random.Random(size).randbytes(size)


@pytest.mark.parametrize("size", [1, 64 * KiB - 1, 64 * KiB, 64 * KiB + 1, 3 * MiB + 17])
async def test_a_sequential_reader_gets_the_file(size: int) -> None:
    source = MemorySource(content(size))
    async with reading(source) as reader:
        got = bytearray()
        while data := await reader.read(Extent(len(got), len(got) + 100 * KiB)):
            got += data
    assert got == source.content


async def test_random_reads_get_their_bytes_under_memory_pressure() -> None:
    source = MemorySource(content(40 * MiB))
    choose = random.Random(1)

    async def one(reader: ContentReader) -> None:
        for _ in range(30):
            start = choose.randrange(40 * MiB)
            stop = start + choose.randrange(1, 3 * MiB)
            assert await reader.read(Extent(start, stop)) == source.content[start:stop]

    async with reading(source) as reader, trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(one, reader)


async def test_many_readers_of_the_same_bytes_cost_one_fetch() -> None:
    source = MemorySource(content(64 * KiB))
    started, go = threading.Event(), threading.Event()

    def hold(_: Extent) -> None:
        started.set()
        assert go.wait(30)

    source.before = hold
    results: list[bytes] = []

    async def one(reader: ContentReader) -> None:
        results.append(bytes(await reader.read(Extent(0, 64 * KiB))))

    async with reading(source) as reader, trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(one, reader)
        await trio.to_thread.run_sync(started.wait, 30)
        await trio.testing.wait_all_tasks_blocked()
        go.set()
    assert results == [source.content] * 8
    assert len(source.fetched) == 1


async def test_a_failed_fetch_fails_its_read_and_the_next_tries_again() -> None:
    source = MemorySource(content(64 * KiB))

    def fail(_: Extent) -> None:
        raise ProtocolViolation("garbage")

    source.before = fail
    async with reading(source) as reader:
        with pytest.raises(ProtocolViolation):
            await reader.read(Extent(0, 10))
        source.before = lambda _: None
        assert await reader.read(Extent(0, 10)) == source.content[:10]


async def test_a_failed_read_ahead_does_not_fail_the_reader() -> None:
    source = MemorySource(content(16 * MiB))

    def fail(extent: Extent) -> None:
        if extent.start >= 4 * MiB:
            raise Unavailable("down")

    source.before = fail
    async with reading(source) as reader:
        for start in range(0, 4 * MiB, MiB):
            data = await reader.read(Extent(start, start + MiB))
            assert data == source.content[start : start + MiB]


async def test_what_is_in_memory_is_read_at_once_and_nothing_else() -> None:
    source = MemorySource(content(4 * MiB + 5))
    first, tail = Extent(0, 64 * KiB), Extent(4 * MiB, 5 * MiB)
    async with reading(source) as reader:
        assert reader.read_at_once(first) is None
        assert source.fetched == []
        for extent in (first, tail):
            assert await reader.read(extent) == source.content[extent.start : extent.stop]
            assert reader.read_at_once(extent) == source.content[extent.start : extent.stop]
        assert reader.read_at_once(Extent(5 * MiB, 6 * MiB)) is None

        def replaced(_: Extent) -> None:
            raise Stale("other content")

        source.before = replaced
        with pytest.raises(Stale):
            await reader.read(Extent(2 * MiB, 2 * MiB + 10))
        assert reader.read_at_once(first) is None


async def test_a_stream_that_is_read_at_once_is_read_ahead_of() -> None:
    source = MemorySource(content(24 * MiB))
    async with reading(source) as reader:
        for start in range(0, 24 * MiB, 256 * KiB):
            extent = Extent(start, start + 256 * KiB)
            data = reader.read_at_once(extent)
            if data is None:
                data = memoryview(await reader.read(extent))
            assert data == source.content[extent.start : extent.stop]
            await trio.lowlevel.checkpoint()
    assert len(source.fetched) < 60  # of 96 READs


async def test_once_stale_always_stale() -> None:
    source = MemorySource(content(2 * MiB))
    async with reading(source) as reader:
        assert await reader.read(Extent(0, 10)) == source.content[:10]

        def replaced(_: Extent) -> None:
            raise Stale("other content")

        source.before = replaced
        with pytest.raises(Stale):
            await reader.read(Extent(MiB, MiB + 10))
        source.before = lambda _: None
        with pytest.raises(Stale):
            await reader.read(Extent(0, 10))


async def test_a_read_that_gets_no_bytes_fails_in_time(
    autojump_clock: trio.testing.MockClock,
) -> None:
    source = MemorySource(content(64 * KiB))
    go = threading.Event()
    source.before = lambda _: go.wait() and None
    async with reading(source) as reader:
        with pytest.raises(DeadlineExceeded):
            await reader.read(Extent(0, 10))
        go.set()


async def test_an_internal_error_ends_in_the_read(expected_logs: list[str]) -> None:
    expected_logs.append("fetch failed")
    source = MemorySource(content(64 * KiB))

    def bug(_: Extent) -> None:
        raise ZeroDivisionError

    source.before = bug
    async with reading(source) as reader:
        with pytest.raises(Exception, match="ZeroDivisionError"):
            await reader.read(Extent(0, 10))


class StuckDisk:
    """A ``BlockStore`` with nothing in it, whose disk takes nothing before it is let go."""

    block_size = 32 * KiB

    def __init__(self) -> None:
        self.go = threading.Event()
        self.took = 0  # bytes
        self._lock = threading.Lock()

    def open(self, content: ContentKey) -> "StuckDisk":
        return self

    def missing(self, extent: Extent) -> list[Extent]:
        return [extent]

    def read_into(self, extent: Extent, buffer: memoryview) -> bool:
        return False

    def read_resident(self, extent: Extent) -> memoryview | None:
        return None

    def publish(
        self, start: int, data: memoryview, words: object = None, *, stays: bool = False
    ) -> bool:
        self.go.wait()
        with self._lock:
            self.took += len(data)
        return True

    def claim(self, extent: Extent) -> AbstractContextManager[None] | None:
        return nullcontext()

    def checksum(self, block: memoryview, number: int) -> int:
        return number + 1

    def adopt(self, content: ContentKey, staged: Path, words: "array[int] | None" = None) -> bool:
        return False

    def rejections(self, content: ContentKey) -> int:
        return 0

    def close(self) -> None:
        pass


async def test_a_disk_that_stands_still_holds_up_no_read(expected_logs: list[str]) -> None:
    expected_logs.append("disk took nothing for 0.05 s: reading past it")
    expected_logs.append("has not answered for 0.05 s")  # on a busy machine no disk does
    source, disk = MemorySource(content(40 * MiB)), StuckDisk()
    settings = replace(SETTINGS, disk_patience_s=0.05)
    async with trio.open_nursery() as nursery:
        plane = DataPlane(source, disk, settings, Metrics(), nursery, fetches=4)
        reader = await plane.open(version_of(source.content))
        try:
            await _read_to_the_end(reader, source)
        finally:
            disk.go.set()
        await reader.close()


async def _read_to_the_end(reader: ContentReader, source: MemorySource) -> None:
    for start in range(0, len(source.content), MiB):
        data = await reader.read(Extent(start, start + MiB))
        assert data == source.content[start : start + MiB]


async def test_a_disk_that_is_slower_than_the_network_slows_no_reader() -> None:
    """What it has no time for is dropped: here it has taken nothing when all is read."""
    source, disk, metrics = MemorySource(content(40 * MiB)), StuckDisk(), Metrics()
    settings = replace(SETTINGS, disk_slack_s=0.0, disk_patience_s=600.0)
    budget = Budget(settings.memory_bytes)
    async with trio.open_nursery() as nursery:
        plane = DataPlane(source, disk, settings, metrics, nursery, fetches=4, budget=budget)
        reader = await plane.open(version_of(source.content))
        try:
            await _read_to_the_end(reader, source)
        finally:
            disk.go.set()
        await reader.close()
    assert metrics.snapshot()["cache_dropped_bytes"] >= 40 * MiB - budget.bound
    assert budget.most <= budget.bound
    assert disk.took <= budget.bound


async def test_a_disk_that_is_as_fast_as_the_network_takes_everything(
    mock_clock: trio.testing.MockClock,  # it stands: nobody waits too long
) -> None:
    source, disk, metrics = MemorySource(content(40 * MiB)), StuckDisk(), Metrics()
    disk.go.set()
    async with trio.open_nursery() as nursery:
        plane = DataPlane(source, disk, SETTINGS, metrics, nursery, fetches=4)
        reader = await plane.open(version_of(source.content))
        await _read_to_the_end(reader, source)
        await reader.close()
    assert "cache_dropped_bytes" not in metrics.snapshot()
    assert disk.took >= 40 * MiB
