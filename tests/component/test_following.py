"""What is likely to be read whole is fetched whole, behind its reader (``--fetch auto``)."""

import hashlib
import os
import random
from dataclasses import replace
from pathlib import Path

import pytest
import trio
import trio.testing

from jfs.cache import Notes
from jfs.config import Fetch, ReadSettings
from jfs.extents import Extent, KiB, MiB
from jfs.metrics import Metrics
from jfs.model import ContentKey
from jfs.server import EmbeddedServer
from tests.component.composed import block_store, composed, find

REPO = "ml-models-local"
SIZE = 6 * MiB
READS = ReadSettings(segment_bytes=MiB, window_bytes=2 * MiB, prefetch_shards=False)
WHOLE = Extent(0, SIZE)
FAR = Extent(4 * MiB, 5 * MiB)  # more than a header
OLD, OTHER_OLD = "llm/v1/model-1-of-2.st", "llm/v1/tokenizer.json"
NEW, NEXT_NEW = "llm/v2/model-1-of-13.st", "llm/v2/model-2-of-13.st"


class Node:
    """A node: its cache, and what it remembers; mounts come and go."""

    def __init__(self, server: EmbeddedServer, directory: Path) -> None:
        self.server = server
        self.directory = directory
        self.store = block_store(directory)
        self.keys: dict[str, ContentKey] = {}
        for path in (OLD, OTHER_OLD, NEW, NEXT_NEW):
            data = random.Random(path).randbytes(SIZE)
            server.deploy(REPO, path, data)
            self.keys[path] = ContentKey(f"sha256:{hashlib.sha256(data).hexdigest()}", SIZE)

    def missing(self, path: str) -> int:
        content = self.store.inspect(self.keys[path])
        try:
            return sum(run.size for run in content.missing(WHOLE))
        finally:
            content.close()

    async def read(
        self, path: str, *extents: Extent, until: int | None = None, fetch: Fetch = Fetch.AUTO
    ) -> bool:
        """Read in a mount of its own, and wait until no more than *until* bytes are missing.

        Returns:
            Whether it was to be fetched behind its reader.
        """
        metrics = Metrics()
        async with composed(
            self.server,
            REPO,
            store=self.store,
            reads=replace(READS, fetch=fetch),
            notes=Notes(self.directory),
            metrics=metrics,
        ) as filesystem:
            handle = (await filesystem.open(await find(filesystem, path), os.O_RDONLY)).handle
            for extent in extents:
                for piece in extent.pieces(256 * KiB):
                    await filesystem.read(handle, piece)
            while until is not None and self.missing(path) > until:
                await trio.lowlevel.checkpoint()
            await filesystem.release(handle)
        counters = metrics.snapshot()
        if until is not None:
            assert counters["followed_bytes"] > SIZE // 2
        return counters.get("followed_files", 0) > 0


@pytest.fixture
def node(server: EmbeddedServer, tmp_path: Path) -> Node:
    return Node(server, tmp_path / "cache")


async def test_what_was_read_whole_is_fetched_whole_in_its_next_version(node: Node) -> None:
    """Also by a mount that begins later; most of it, in any order, counts as the whole."""
    await node.read(OLD, Extent(3 * MiB, 6 * MiB), Extent(0, 2 * MiB))
    assert await node.read(NEW, FAR, until=0)


@pytest.mark.parametrize("why", ["a header", "only others", "lazy", "read in part since"])
async def test_what_is_not_likely_is_not_fetched(node: Node, why: str) -> None:
    await node.read(OLD if why != "only others" else OTHER_OLD, WHOLE)
    if why == "read in part since":
        await node.read(NEXT_NEW, FAR)  # of v2 that counts, whatever became of v1
    extent = Extent(0, 512 * KiB) if why == "a header" else FAR
    fetch = Fetch.LAZY if why == "lazy" else Fetch.AUTO
    assert not await node.read(NEW, extent, fetch=fetch)
    assert node.missing(NEW) > 3 * MiB


def test_what_two_processes_note_is_never_torn(tmp_path: Path) -> None:
    """Where they disagree it is no; what was noted long ago is dropped."""
    one, other = Notes(tmp_path), Notes(tmp_path)
    assert one.load() == {}
    one.keep("a" * 32, True)
    other.keep("b" * 32, False)
    one.keep("c" * 32, True)
    other.keep("c" * 32, False)
    assert one.load() == {"a" * 32: True, "b" * 32: False, "c" * 32: False}
    (tmp_path / "habits" / ("c" * 32 + "-1")).touch()
    (tmp_path / "habits" / "something else").touch()
    assert other.load()["c" * 32] is False
    for number in range(4100):
        one.keep(f"{number:032x}", True)
    assert len(one.load()) == 4096
    assert len(list((tmp_path / "habits").iterdir())) <= 4098
