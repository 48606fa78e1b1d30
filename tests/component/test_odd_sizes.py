"""Memory limits and read-aheads that are no multiples of anything: blocks stay whole."""

import hashlib
import random
from dataclasses import replace
from pathlib import Path

import pytest

from jfs.cache import DiskBlockStore
from jfs.config import CacheSettings, Fetch, ReadSettings, fit_to_memory
from jfs.extents import Extent, KiB, MiB
from jfs.metrics import Metrics
from jfs.model import ContentKey
from jfs.server import EmbeddedServer
from tests.component.composed import composed, find

REPO = "ml-models-local"
DATA = random.Random(11).randbytes(9 * MiB + 321)
KEY = ContentKey(f"sha256:{hashlib.sha256(DATA).hexdigest()}", len(DATA))
# What a container of "500M" has by the kernel: whole pages.
CONTAINER = 500_000_000 // 4096 * 4096


@pytest.mark.parametrize("fetch", list(Fetch))
@pytest.mark.parametrize(
    "reads",
    [
        fit_to_memory(ReadSettings(), CONTAINER),
        fit_to_memory(ReadSettings(), 301 * MiB),
        ReadSettings(window_bytes=1_000_000),
        ReadSettings(window_bytes=0),
        ReadSettings(memory_bytes=5_000_001),
    ],
    ids=["500M", "301Mi", "read-ahead", "no read-ahead", "memory"],
)
async def test_whatever_the_sizes_each_byte_is_fetched_once_and_kept(
    server: EmbeddedServer, tmp_path: Path, reads: ReadSettings, fetch: Fetch
) -> None:
    server.deploy(REPO, "f", DATA)
    metrics = Metrics()
    store = DiskBlockStore(
        CacheSettings(tmp_path / "cache", budget_bytes=64 * MiB, free_floor_bytes=0), metrics
    )
    async with composed(server, REPO, store=store, reads=replace(reads, fetch=fetch)) as filesystem:
        handle = (await filesystem.open(await find(filesystem, "f"), 0)).handle
        for piece in Extent(0, len(DATA)).pieces(MiB):
            assert bytes(await filesystem.read(handle, piece)) == DATA[piece.start : piece.stop]
        await filesystem.release(handle)
    content = store.inspect(KEY)
    try:
        assert content.missing(Extent(0, len(DATA))) == []
        assert b"".join(bytes(piece) for piece in content.read_all()) == DATA
    finally:
        content.close()
        store.close()
    assert metrics.snapshot().get("cache_corrupt_blocks", 0) == 0
    assert server.stats.bytes_sent < len(DATA) + 64 * KiB
