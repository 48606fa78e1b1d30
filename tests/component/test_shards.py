"""Shards of a model that is being read whole are fetched ahead of its reader."""

import hashlib
import json
import logging
import os
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, closing
from dataclasses import replace
from pathlib import Path

import pytest
import trio
import trio.testing

from jfs.cache import DiskBlockStore
from jfs.config import CacheSettings, Fetch, ReadSettings
from jfs.extents import Extent, KiB, MiB
from jfs.metrics import Metrics
from jfs.model import ContentKey
from jfs.server import EmbeddedServer, Fault
from jfs.vfs.filesystem import Filesystem
from jfs.vfs.reading.intent import Coverage, Foreground
from tests.component.composed import TREE, block_store, composed, find
from tests.component.server_requests import REPO, Requests

SIZE = 2 * MiB
NAMES = [f"model-{number:05}-of-00004.safetensors" for number in range(1, 5)]
ALL = Extent(0, SIZE)
ONE_BY_ONE = ReadSettings(shards_bytes=0)


class Model:
    """Four shards on a server, and what a cache has of them."""

    def __init__(self, server: EmbeddedServer, store: DiskBlockStore) -> None:
        self.server = server
        self.store = store
        self.keys: dict[str, ContentKey] = {}
        self.contents: dict[str, bytes] = {}

    def deploy(self, *names: str, size: int = SIZE) -> None:
        for name in names:
            content = self.contents[name] = os.urandom(size)
            digest = hashlib.sha256(content).hexdigest()
            self.server.deploy(REPO, f"m/{name}", content)
            self.keys[name] = ContentKey(f"sha256:{digest}", size)

    def cached(self) -> list[str]:
        """Names of the shards that are cached whole, and of no others is anything."""
        found = []
        for name, key in self.keys.items():
            with closing(self.store.inspect(key)) as content:
                missing = sum(run.size for run in content.missing(Extent(0, key.size)))
            assert missing in (0, key.size), name
            if not missing:
                found.append(name)
        return sorted(found)

    @asynccontextmanager
    async def mounted(
        self, reads: ReadSettings, metrics: Metrics | None = None
    ) -> AsyncIterator[Filesystem]:
        """What is begun meanwhile comes to its end: the names are known, and not asked for."""
        async with composed(
            self.server, REPO, store=self.store, reads=reads, metrics=metrics
        ) as filesystem:
            for name in self.keys:
                await find(filesystem, f"m/{name}")
            yield filesystem

    async def read(self, *reads: tuple[str, Extent], settings: ReadSettings) -> list[str]:
        """Read through a mount, and return what is cached when all that began has ended."""
        async with self.mounted(settings) as filesystem:
            for name, extent in reads:
                await look(filesystem, f"m/{name}", extent.pieces(256 * KiB))
        return self.cached()


async def look(filesystem: Filesystem, path: str, reads: Iterable[Extent]) -> None:
    handle = (await filesystem.open(await find(filesystem, path), 0)).handle
    for extent in reads:
        assert await filesystem.read(handle, extent)
    await filesystem.release(handle)


@pytest.fixture
def model(server: EmbeddedServer, tmp_path: Path) -> Iterator[Model]:
    with closing(block_store(tmp_path / "cache")) as store:
        made = Model(server, store)
        made.deploy(*NAMES)
        yield made


async def test_who_reads_the_first_shard_whole_has_the_next_one_fetched(model: Model) -> None:
    assert await model.read((NAMES[0], ALL), settings=ONE_BY_ONE) == NAMES[:2]


async def test_who_goes_on_has_two_fetched(model: Model) -> None:
    reads = [(name, ALL) for name in NAMES[:2]]
    assert await model.read(*reads, settings=ONE_BY_ONE) == NAMES


async def test_who_waits_for_the_whole_first_shard_has_the_next_one_fetched(model: Model) -> None:
    """Then the kernel reads it itself: no READ of it comes here."""
    whole = replace(ONE_BY_ONE, fetch=Fetch.WHOLE)
    assert await model.read((NAMES[0], Extent(0, 8)), settings=whole) == NAMES[:2]


async def test_small_shards_are_all_fetched(model: Model) -> None:
    assert await model.read((NAMES[0], ALL), settings=ReadSettings()) == NAMES


async def test_a_small_shard_with_a_part_in_the_cache_is_asked_for_once(model: Model) -> None:
    """It is fetched whole, to be held against its digest: not once for each hole."""
    model.deploy(*NAMES, size=MiB)
    second, block = NAMES[1], model.store.block_size
    with closing(model.store.open(model.keys[second])) as content:
        assert content.publish(block, memoryview(model.contents[second])[block : 2 * block])
        assert len(content.missing(Extent(0, MiB))) == 2
    first = NAMES[0], Extent(0, MiB)
    assert await model.read(first, settings=ONE_BY_ONE) == NAMES[:2]
    assert 2 * MiB <= Requests(model.server).sent() < 3 * MiB


async def test_nothing_is_fetched_ahead_if_that_is_not_wanted(model: Model) -> None:
    off = ReadSettings(prefetch_shards=False)
    assert await model.read((NAMES[0], ALL), settings=off) == NAMES[:1]


async def test_a_shard_that_is_read_by_itself_is_no_sign(model: Model) -> None:
    assert await model.read((NAMES[1], ALL), settings=ReadSettings()) == NAMES[1:2]


async def test_headers_of_all_and_a_half_of_one_are_no_sign(
    server: EmbeddedServer, model: Model
) -> None:
    before = server.stats.bytes_sent
    half = Extent(0, SIZE // 2)
    async with model.mounted(ReadSettings()) as filesystem:
        for name in NAMES:
            await look(filesystem, f"m/{name}", [Extent(0, 8)])
        await look(filesystem, f"m/{NAMES[0]}", half.pieces(256 * KiB))
    assert server.stats.bytes_sent - before < SIZE


async def test_an_index_says_which_shards_there_are(server: EmbeddedServer, model: Model) -> None:
    names = ["b.safetensors", "a.safetensors", "c.safetensors"]
    model.deploy(*names)
    index = {"weight_map": {f"tensor.{number}": name for number, name in enumerate(names)}}
    server.deploy(REPO, "m/model.safetensors.index.json", json.dumps(index).encode())
    metrics = Metrics()
    async with model.mounted(ReadSettings(), metrics) as filesystem:
        await look(filesystem, "m/model.safetensors.index.json", [Extent(0, 4096)])
        while True:
            if "described_files" in metrics.snapshot():
                break
            await trio.sleep(0.002)
        await look(filesystem, "m/a.safetensors", ALL.pieces(256 * KiB))
    assert model.cached() == ["a.safetensors", "b.safetensors", "c.safetensors"]


@pytest.mark.parametrize("size", [SIZE, 64 * KiB])
async def test_a_shard_that_cannot_be_read_ends_it_without_a_word(
    server: EmbeddedServer, model: Model, caplog: pytest.LogCaptureFixture, size: int
) -> None:
    model.deploy(*NAMES, size=size)
    server.faults.add(Fault.status(403, method="GET", path=f"/{REPO}/m/{NAMES[2]}"))
    with caplog.at_level(logging.INFO):
        first = NAMES[0], Extent(0, size)
        assert await model.read(first, settings=ReadSettings()) == NAMES[:2]
    assert [record for record in caplog.records if record.levelno > logging.INFO] == []


async def test_nothing_is_evicted_for_what_nobody_has_asked_for(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    """Of 12 MiB an eighth is left; beside 9 MiB there is no room for what nobody reads."""
    settings = CacheSettings(tmp_path / "cache", budget_bytes=12 * MiB, free_floor_bytes=0)
    with closing(DiskBlockStore(settings, Metrics())) as store:
        model = Model(server, store)
        model.deploy("other.bin", size=9 * MiB)
        model.deploy(*NAMES)
        whole = Extent(0, 9 * MiB)
        reads = [("other.bin", whole), (NAMES[0], ALL)]
        assert await model.read(*reads, settings=ReadSettings()) == [NAMES[0], "other.bin"]


async def test_a_reader_that_is_at_the_last_shard_while_we_look_for_the_next_one(
    server: EmbeddedServer, model: Model
) -> None:
    """Several threads read a shard each: the last one is done before the second is looked up."""
    tree = replace(TREE, entry_ttl_s=0, attr_ttl_s=0)
    async with composed(server, REPO, store=model.store, tree=tree) as filesystem:
        inodes = [await find(filesystem, f"m/{name}") for name in NAMES]
        handles = [(await filesystem.open(inode, 0)).handle for inode in inodes]
        held = server.faults.add(Fault.hold(path="/api/*"))
        for extent in ALL.pieces(256 * KiB):
            await filesystem.read(handles[0], extent)
        await trio.to_thread.run_sync(held.wait_hit)
        for handle in handles[1:]:
            for extent in ALL.pieces(256 * KiB):
                await filesystem.read(handle, extent)
        held.release()
        for handle in handles:
            await filesystem.release(handle)
    assert model.cached() == NAMES


async def test_whoever_waits_for_bytes_comes_first(server: EmbeddedServer, model: Model) -> None:
    """While a READ waits, nothing is asked for that nobody has asked for."""
    server.deploy(REPO, "m/other.bin", os.urandom(SIZE))
    held = server.faults.add(Fault.hold(path=f"/{REPO}/m/other.bin"))
    metrics = Metrics()
    async with model.mounted(ONE_BY_ONE, metrics) as filesystem, trio.open_nursery() as nursery:
        nursery.start_soon(look, filesystem, "m/other.bin", [Extent(0, 8)])
        await trio.to_thread.run_sync(held.wait_hit)
        await look(filesystem, f"m/{NAMES[0]}", ALL.pieces(256 * KiB))
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert "shard_bytes" not in metrics.snapshot()
        held.release()
    assert metrics.snapshot()["shard_bytes"] == SIZE
    assert model.cached() == NAMES[:2]


def test_each_byte_counts_once() -> None:
    told: list[bool] = []
    coverage = Coverage(64 * MiB, lambda: told.append(True))
    for _ in range(10):
        coverage.note(Extent(0, 47 * MiB))
    assert not told
    coverage.note(Extent(60 * MiB, 64 * MiB))
    coverage.note(Extent(0, 64 * MiB))
    assert told == [True]
    Coverage(1, lambda: told.append(True)).note(Extent(0, 1))
    assert told == [True, True]


async def test_it_is_quiet_only_after_a_while(autojump_clock: trio.testing.MockClock) -> None:
    foreground, turns = Foreground(), []

    async def wait() -> None:
        await foreground.idle()
        turns.append(trio.current_time())

    async with trio.open_nursery() as nursery:
        with foreground:
            nursery.start_soon(wait)
            await trio.sleep(1)
        start = trio.current_time()
        await trio.sleep(0.01)
        with foreground:  # another one soon after
            await trio.sleep(1)
    assert turns[0] > start + 1
    await wait()
    assert turns[1] == turns[0]  # nobody has come since
