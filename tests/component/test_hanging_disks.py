"""A disk that hangs holds up no reader for long, and is used again once it answers."""

import hashlib
import random
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import trio

from jfs.cache import DiskBlockStore
from jfs.config import CacheSettings, ReadSettings
from jfs.extents import Extent, MiB
from jfs.metrics import Metrics
from jfs.model import ArtifactVersion, ContentKey, RepoPath
from jfs.protocols import Sink
from jfs.vfs.reading.reader import DataPlane
from tests.weather.disks import Disk

pytestmark = pytest.mark.fuse  # the disk is one

_PATIENCE_S = 0.3
_SIZE = 6 * MiB


class Source:
    """A server that has everything at once. Counts what it sends."""

    def __init__(self) -> None:
        self.sent = 0

    def fetch(self, version: ArtifactVersion, extent: Extent, sink: Sink) -> None:
        data = memoryview(content(int(version.path.path)))[extent.start : extent.stop]
        while data:
            buffer = sink.buffer()
            count = min(len(buffer), len(data))
            buffer[:count] = data[:count]
            sink.advance(count)
            data = data[count:]
            self.sent += count

    def close(self) -> None:
        pass


@cache
def content(number: int) -> bytes:
    return random.Random(number).randbytes(_SIZE)


def version(number: int) -> ArtifactVersion:
    digest = hashlib.sha256(content(number)).hexdigest()
    key = ContentKey(f"sha256:{digest}", _SIZE)
    return ArtifactVersion(RepoPath("repo", str(number)), key, None)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    made = Disk(tmp_path)
    yield made
    made.end()


@pytest.mark.parametrize(
    "hangs", [("all",), ("read",), ("write", "fsync"), ("open", "lookup", "getattr")]
)
async def test_a_disk_that_hangs_holds_up_no_reader(
    disk: Disk, hangs: tuple[str, ...], expected_logs: list[str]
) -> None:
    expected_logs += ["the disk of the cache has not answered for 0.3 s", "disk took nothing for"]
    source = Source()
    settings = replace(ReadSettings(), disk_patience_s=_PATIENCE_S, memory_bytes=32 * MiB)
    where = CacheSettings(disk.place / "cache", free_floor_bytes=0)
    store = await trio.to_thread.run_sync(DiskBlockStore, where, Metrics())
    async with trio.open_nursery() as nursery:
        plane = DataPlane(source, store, settings, Metrics(), nursery, fetches=4)

        async def read(number: int) -> None:
            reader = await plane.open(version(number))
            for extent in Extent(0, _SIZE).pieces(MiB):
                assert (
                    bytes(await reader.read(extent)) == content(number)[extent.start : extent.stop]
                )
            await reader.close()

        async def is_cached(number: int) -> bool:
            before = source.sent
            await read(number)
            return source.sent == before

        await read(1)
        while not await is_cached(1):  # what is received is written behind
            pass
        held = await plane.open(version(2))
        assert bytes(await held.read(Extent(0, 10))) == content(2)[:10]
        await trio.to_thread.run_sync(lambda: disk.fail(**dict.fromkeys(hangs, "hang")))
        try:
            with trio.fail_after(20):
                for number in (1, 3, 1, 4):
                    await read(number)
                for extent in Extent(0, _SIZE).pieces(MiB):
                    assert bytes(await held.read(extent)) == content(2)[extent.start : extent.stop]
        finally:
            await trio.to_thread.run_sync(disk.fail)
        with trio.fail_after(30):
            while not await is_cached(5):
                pass
        await held.close()
        with trio.fail_after(20):
            await trio.to_thread.run_sync(store.close)
