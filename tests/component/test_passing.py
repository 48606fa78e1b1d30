"""Which opens the kernel is given a file for: here somebody who notes what it would get."""

import hashlib
import itertools
import os
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from jfs.cache import DiskBlockStore
from jfs.errors import Replaced
from jfs.extents import Extent, MiB
from jfs.model import ContentKey
from jfs.server import EmbeddedServer
from jfs.vfs.filesystem import Change, Filesystem
from tests.component.composed import block_store, composed, find

REPO = "ml-models-local"
DATA = random.Random(1).randbytes(2 * MiB)
KEY = ContentKey(f"sha256:{hashlib.sha256(DATA).hexdigest()}", len(DATA))


class Kernel:
    """Takes files, and notes which."""

    def __init__(self) -> None:
        self.is_on = True
        self.refuses = False
        self.has: dict[int, bytes] = {}
        self._numbers = itertools.count(1)
        self.given = 0

    def open(self, file: int) -> int | None:
        if self.refuses:
            return None
        self.given = number = next(self._numbers)
        self.has[number] = os.pread(file, 1 << 30, 0)
        return number

    def open_to_write(self, file: int) -> int | None:
        return self.open(file)

    def close(self, number: int) -> None:
        del self.has[number]


class Bench:
    """A filesystem with one file, ``f``, that is in the cache."""

    def __init__(self, filesystem: Filesystem, kernel: Kernel, store: DiskBlockStore) -> None:
        self.filesystem = filesystem
        self.kernel = kernel
        self.store = store

    async def find(self) -> int:
        return await find(self.filesystem, "f")

    async def open(self, ino: int, flags: int = os.O_RDONLY) -> tuple[int, int]:
        """Return a handle, and what the kernel is to read for it."""
        handle = (await self.filesystem.open(ino, flags)).handle
        return handle, self.filesystem.holdings.backing_of(handle)[0]

    async def close(self, *handles: int) -> None:
        for handle in handles:
            await self.filesystem.release(handle)


def fill(store: DiskBlockStore, *, verified: bool = True) -> None:
    opened = store.open(KEY)
    assert opened.publish(0, memoryview(DATA))
    opened.close()
    if verified:
        assert store.verify(KEY)


@pytest.fixture
async def bench(server: EmbeddedServer, tmp_path: Path) -> AsyncIterator[Bench]:
    server.deploy(REPO, "f", DATA)
    store, kernel = block_store(tmp_path / "cache"), Kernel()
    async with composed(server, REPO, store=store, backings=kernel) as filesystem:
        yield Bench(filesystem, kernel, store)
    assert not kernel.has
    store.close()


async def test_one_file_for_all_handles_of_an_inode(bench: Bench) -> None:
    fill(bench.store)
    ino = await bench.find()
    first, number = await bench.open(ino)
    second, same = await bench.open(ino)
    assert bench.kernel.has == {number: DATA}
    assert same == number
    await bench.close(first)
    assert bench.kernel.has == {number: DATA}
    assert await bench.filesystem.read(second, Extent(0, 10)) == DATA[:10]  # readahead(2) asks us
    await bench.close(second)
    assert bench.kernel.has == {}
    third, other = await bench.open(ino)
    assert other not in (0, number)
    await bench.close(third)


@pytest.mark.parametrize("why", ["off", "refused", "cold", "not verified", "other handles"])
async def test_what_comes_here_as_ever(bench: Bench, why: str) -> None:
    bench.kernel.is_on = why != "off"
    bench.kernel.refuses = why == "refused"
    if why == "not verified":
        bench.store.close()  # or it is verified while we look
    ino = await bench.find()
    opened = [await bench.open(ino)] if why == "other handles" else []
    if why != "cold":
        fill(bench.store, verified=why != "not verified")
    opened.append(await bench.open(ino))
    assert [number for _, number in opened] == [0] * len(opened)
    for handle, _ in opened:
        assert await bench.filesystem.read(handle, Extent(5, 10)) == DATA[5:10]
    await bench.close(*(handle for handle, _ in opened))
    assert bench.kernel.given == 0
    if why == "other handles":  # with them gone
        handle, number = await bench.open(ino)
        assert number
        await bench.close(handle)


@pytest.mark.parametrize(
    "flags", [os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_TRUNC, os.O_RDONLY | os.O_DIRECT]
)
async def test_who_cannot_read_so_gets_another_inode(bench: Bench, flags: int) -> None:
    fill(bench.store)
    ino = await bench.find()
    reader, number = await bench.open(ino)
    before = await bench.filesystem.getattr(ino)
    with pytest.raises(Replaced):
        await bench.open(ino, flags)
    other = await bench.find()  # as the kernel does when it hears that
    assert other != ino
    after = await bench.filesystem.getattr(other)
    assert (after.size, after.mtime_ns, after.mode) == (before.size, before.mtime_ns, before.mode)
    handle, none = await bench.open(other, flags)
    assert none == 0
    with pytest.raises(Replaced):
        await bench.open(ino)
    again, same = await bench.open(ino)  # not by its name: /proc/self/fd/N
    assert same == number
    assert (await bench.filesystem.getattr(ino)).size == before.size
    await bench.close(handle, reader, again)
    assert bench.kernel.has == {}
    last, none = await bench.open(other)  # never again: it may be written again
    assert none == 0
    await bench.close(last)


async def test_a_truncate_by_name_finds_another_inode(bench: Bench) -> None:
    fill(bench.store)
    ino = await bench.find()
    reader, _ = await bench.open(ino)
    with pytest.raises(Replaced):
        await bench.filesystem.setattr(ino, Change(size=10), None)
    other = await bench.find()
    assert (await bench.filesystem.setattr(other, Change(size=10), None)).size == 10
    assert (await bench.filesystem.getattr(ino)).size == len(DATA)
    await bench.close(reader)


async def test_a_file_that_was_changed_is_given_to_nobody_more(bench: Bench) -> None:
    fill(bench.store)
    ino = await bench.find()
    reader, _ = await bench.open(ino)
    content = bench.store.inspect(KEY)
    whole = content.whole()
    assert whole is not None
    while whole.is_right():  # the clock of old kernels ticks
        os.pwrite(whole.file, b"damaged", 0)
    whole.close()
    content.close()
    with pytest.raises(Replaced):
        await bench.open(ino)
    await bench.close(reader)


async def test_an_open_that_is_let_go_keeps_nothing(bench: Bench) -> None:
    fill(bench.store)
    ino = await bench.find()
    handles: list[int] = []

    async def run() -> None:
        handles.append((await bench.open(ino))[0])

    for checkpoints in range(12):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            for _ in range(checkpoints):
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
        await bench.close(*handles)
        handles.clear()
        while bench.kernel.has:  # what was begun is ended behind
            await trio.lowlevel.checkpoint()
    handle, number = await bench.open(ino)
    assert bench.kernel.has == {number: DATA}
    await bench.close(handle)
