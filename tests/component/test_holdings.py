"""Names that the kernel holds are given back when memory is tight, and asked for again."""

import os
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import trio
import trio.testing

from jfs import memory
from jfs.vfs.filesystem import Filesystem
from jfs.vfs.namespace.inodes import ROOT
from tests.component.test_filesystem import TREE, filesystem
from tests.component.test_huge_folders import COUNT, BigServer, TreeServer, entries


@pytest.fixture(autouse=True)
def _no_limit_stays() -> Iterator[None]:
    yield
    memory.follow(None)


class Kernel:
    """Forgets a file whose name it is told to drop, a moment later, as the kernel does."""

    def __init__(self) -> None:
        self.held: dict[int, dict[str, int]] = {}  # numbers, by folder and name
        self.dropped: set[tuple[int, str]] = set()
        self._told: list[tuple[int, str]] = []

    def drop_entry(self, parent: int, name: str) -> bool:
        self.dropped.add((parent, name))
        self._told.append((parent, name))
        return True

    def drop_attributes(self, ino: int) -> bool:
        return True

    def drop_pages(self, ino: int) -> bool:
        return True

    async def forget(self, filesystem: Filesystem) -> None:
        """Send FORGETs, until cancelled."""
        while True:
            told, self._told = self._told, []
            for parent, name in told:
                number = self.held[parent].pop(name, None)
                if number is not None:  # it may be told twice
                    filesystem.forget(number, 1)
            await trio.sleep(0.1)


async def until(there: Callable[[], bool]) -> None:
    while not there():  # noqa: ASYNC110 - by a virtual clock
        await trio.sleep(1)


async def test_names_are_given_back_when_memory_is_tight(
    autojump_clock: trio.testing.MockClock,
) -> None:
    server, kernel = BigServer(), Kernel()
    async with filesystem(server, notifier=kernel) as fs, trio.open_nursery() as nursery:
        nursery.start_soon(kernel.forget, fs)
        big = (await fs.lookup(ROOT, "big")).ino
        handle = await fs.opendir(big)
        held = dict(zip(server.names, await entries(fs, handle), strict=True))
        kernel.held[big] = held
        fs.releasedir(handle)
        opened = await fs.open(held[server.names[0]], os.O_RDONLY)
        nursery.start_soon(fs.holdings.watch)
        await trio.sleep(10)
        assert kernel.dropped == set()  # there is room
        memory.follow(memory.resident())
        await until(lambda: fs.holdings.figures()["inodes"] < 10)
        # Not what is open, nor its folder.
        assert kernel.dropped == {(big, name) for name in server.names[1:]}
        assert (await fs.getattr(big)).ino == big
        assert (await fs.lookup(big, server.names[0])).ino == held[server.names[0]]
        assert (await fs.lookup(big, server.names[1])).size == 1
        await fs.release(opened.handle)
        nursery.cancel_scope.cancel()


async def test_who_reads_a_folder_meanwhile_gets_every_entry() -> None:
    server = BigServer()
    async with filesystem(server) as fs:
        big = (await fs.lookup(ROOT, "big")).ino
        handle = await fs.opendir(big)
        await fs.holdings.shed()
        assert len(await entries(fs, handle)) == COUNT
        fs.releasedir(handle)


async def test_a_small_folder_is_packed_when_memory_is_tight() -> None:
    server = BigServer()
    server.names = server.names[:500]
    async with filesystem(server) as fs:
        big = (await fs.lookup(ROOT, "big")).ino
        handle = await fs.opendir(big)
        held = dict(zip(server.names, await entries(fs, handle), strict=True))
        fs.releasedir(handle)
        opened = await fs.open(held[server.names[3]], os.O_RDONLY)
        await fs.holdings.pack()
        assert len(fs._tree.inodes) <= 4  # the folders, and what is open
        handle = await fs.opendir(big)
        assert set(await entries(fs, handle)) == set(held.values())
        fs.releasedir(handle)
        assert len(fs._tree.inodes) <= 4
        assert (await fs.getattr(held[server.names[7]])).size == 1
        assert (await fs.lookup(big, server.names[3])).ino == held[server.names[3]]
        assert server.asked["list"] == 1
        await fs.release(opened.handle)


async def test_what_was_listed_longest_ago_is_given_back_first(
    autojump_clock: trio.testing.MockClock,
) -> None:
    server, kernel = TreeServer(), Kernel()
    tree = replace(TREE, entry_ttl_s=1e9, attr_ttl_s=1e9)  # the clock runs on while a thread works
    async with filesystem(server, tree, notifier=kernel) as fs, trio.open_nursery() as nursery:
        nursery.start_soon(kernel.forget, fs)
        big = (await fs.lookup(ROOT, "big")).ino

        async def walk(number: int) -> int:
            folder = (await fs.lookup(big, f"d{number}")).ino
            handle = await fs.opendir(folder)
            numbers = await entries(fs, handle)
            fs.releasedir(handle)
            kernel.held[folder] = dict(zip(server.names, numbers, strict=False))
            return folder

        folders = [await walk(number) for number in range(server.folders)]
        asked = server.asked["list"]
        half = server.folders // 2
        await fs.holdings.shed(0.5)
        assert {parent for parent, _ in kernel.dropped} == set(folders[:half])
        await fs.holdings.pack()
        # The kernel holds every folder still, and those in which nothing is known are rows.
        assert len(fs._tree.inodes) <= half + 3
        assert fs.holdings.figures()["inodes"] == half * 1000 + server.folders + 2
        assert [await walk(number) for number in range(half, server.folders)] == folders[half:]
        assert server.asked["list"] == asked
        assert (await fs.lookup(folders[0], server.names[1])).size == 1
        assert await walk(0) == folders[0]
        assert server.asked["list"] == asked + 1
        nursery.cancel_scope.cancel()
