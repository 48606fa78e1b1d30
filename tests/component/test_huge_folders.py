"""Folders of many entries: taken over, read, refreshed and given back without stopping the loop."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest
import trio

from jfs.errors import NoEntry
from jfs.model import Checksums, EntryInfo, FileInfo, FolderInfo, RepoPath
from jfs.packed import Packed
from jfs.vfs.filesystem import Filesystem
from jfs.vfs.freshness import PIECE
from jfs.vfs.namespace.inodes import ROOT
from tests.component.test_filesystem import MemoryServer, filesystem

COUNT = 8 * PIECE
BIG = RepoPath("r", "big")


class BigServer(MemoryServer):
    """As ``MemoryServer``, with one big folder."""

    def __init__(self) -> None:
        super().__init__()
        self.names = [f"shard-{number:06}" for number in range(COUNT)]

    async def stat(self, path: RepoPath) -> EntryInfo:
        return FolderInfo(path, 0) if path == BIG else _file(path)

    async def list_children(
        self, path: RepoPath, known: Packed | None = None
    ) -> Sequence[EntryInfo]:
        if path != BIG:
            return [FolderInfo(BIG, 0)]
        self._note("list")
        return [_file(BIG.child(name)) for name in self.names]


def _file(path: RepoPath) -> FileInfo:
    return FileInfo(path, 1, Checksums(sha256="0" * 64), 0)


class Turns:
    """Counts how often other tasks get their turn."""

    def __init__(self) -> None:
        self.count = 0

    async def run(self) -> None:
        while True:
            self.count += 1
            await trio.lowlevel.checkpoint()


@asynccontextmanager
async def big_folder() -> AsyncIterator[tuple[BigServer, Filesystem, int, Turns]]:
    server, turns = BigServer(), Turns()
    async with filesystem(server) as fs, trio.open_nursery() as nursery:
        nursery.start_soon(turns.run)
        yield server, fs, (await fs.lookup(ROOT, "big")).ino, turns
        nursery.cancel_scope.cancel()


async def entries(fs: Filesystem, handle: int) -> list[int]:
    """Read a folder to its end as the kernel does: every entry is looked up."""
    found, position = [], 0
    while some := fs.readdir(handle, position):
        for _, attributes, position in some:  # noqa: B007 - the next position
            fs.remember(attributes.ino)
            found.append(attributes.ino)
        await trio.lowlevel.checkpoint()
    return found


async def test_other_requests_get_their_turn_meanwhile() -> None:
    async with big_folder() as (_, fs, big, turns):
        before = turns.count
        handle = await fs.opendir(big)
        assert turns.count - before >= COUNT // PIECE
        found = await entries(fs, handle)
        assert len(set(found)) == COUNT
        fs.releasedir(handle)
        before = turns.count
        await fs.refresh(ROOT)
        assert turns.count - before >= COUNT // PIECE
        for ino in found:
            fs.forget(ino, 1)
        before = turns.count
        fs.forget(big, 1)
        inodes = fs._tree.inodes
        assert len(inodes) >= COUNT - 2 * PIECE  # the rest is dropped bit by bit
        while len(inodes) > 1:
            await trio.lowlevel.checkpoint()
        assert turns.count - before >= (COUNT - 2 * PIECE) // PIECE


async def test_who_comes_back_to_a_folder_that_is_being_dropped_finds_it_whole() -> None:
    async with big_folder() as (server, fs, big, _):
        fs.releasedir(await fs.opendir(big))
        fs.forget(big, 1)
        again = (await fs.lookup(ROOT, "big")).ino
        handle = await fs.opendir(again)
        assert len(await entries(fs, handle)) == COUNT
        await fs.lookup(again, server.names[-1])
        assert server.asked["list"] == 2


async def test_changes_while_a_listing_is_taken_over_are_kept() -> None:
    async with big_folder() as (server, fs, big, _):
        known = [(await fs.lookup(big, name)).ino for name in server.names[:3]]
        tree = fs._tree
        folder = tree.find(big)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fs.opendir, big)
            while len(folder.dentries) < COUNT // 2:
                await trio.lowlevel.checkpoint()
            assert len(folder.dentries) < COUNT
            # The kernel forgets what is in the part that was taken over, and in the other.
            for ino in known:
                fs.forget(ino, 1)
            tree.removed(tree.find(known[0]))
            late = tree.made(
                folder, server.names[-1], _file(BIG.child(server.names[-1])), local=True
            )
            tree.made(folder, "new", _file(BIG.child("new")), local=False)
        handle = await fs.opendir(big)
        assert server.asked["list"] == 1
        assert set(folder.dentries) == {*server.names[1:], "new"}
        assert folder.dentries[server.names[-1]] is late
        assert len(await entries(fs, handle)) == COUNT
        with pytest.raises(NoEntry):
            await fs.lookup(big, server.names[0])


class TreeServer(BigServer):
    """As ``BigServer``, with so many folders of 1000 in the big one."""

    folders = 24

    async def stat(self, path: RepoPath) -> EntryInfo:
        return _file(path) if path.name.startswith("shard") else FolderInfo(path, 0)

    async def list_children(
        self, path: RepoPath, known: Packed | None = None
    ) -> Sequence[EntryInfo]:
        if path == BIG:
            return [FolderInfo(BIG.child(f"d{number}"), 0) for number in range(self.folders)]
        if path.parent != BIG:
            return await super().list_children(path, known)
        self._note("list")
        return [_file(path.child(name)) for name in self.names[:1000]]


async def test_a_tree_of_many_small_folders_becomes_few_objects() -> None:
    server = TreeServer()
    async with filesystem(server) as fs:
        big = (await fs.lookup(ROOT, "big")).ino
        most = 0
        numbers: list[list[int]] = [[], []]
        for found in numbers:
            for folder in range(server.folders):
                ino = (await fs.lookup(big, f"d{folder}")).ino
                handle = await fs.opendir(ino)
                found += await entries(fs, handle)
                fs.releasedir(handle)
                for name in server.names[:1000]:
                    assert (await fs.lookup(ino, name)).size == 1
                most = max(most, len(fs._tree.inodes))
        assert len(set(numbers[0])) == server.folders * 1000
        assert numbers[0] == numbers[1]
        assert most < 20_000
        assert fs.holdings.figures()["inodes"] > server.folders * 1000  # the kernel has them all
        for ino in numbers[0]:
            fs.forget(ino, 4)
        assert fs.holdings.figures()["inodes"] <= most
