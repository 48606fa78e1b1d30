"""What comes between a question to the local disk and its answer: a cache that opens slowly."""

import os
import threading
from pathlib import Path

import pytest
import trio
import trio.testing

from jfs.cache import DiskBlockStore
from jfs.cache.content import DiskContent
from jfs.config import CacheSettings, WriteSettings
from jfs.extents import Extent
from jfs.metrics import Metrics
from jfs.model import ContentKey
from jfs.vfs.filesystem import Filesystem
from jfs.vfs.namespace.inodes import ROOT
from tests.component.composed import composed
from tests.component.server_requests import REPO, Requests
from tests.component.test_writing import put


class GatedStore(DiskBlockStore):
    """A block cache whose contents are opened when the gate is open."""

    def __init__(self, directory: Path) -> None:
        super().__init__(CacheSettings(directory, free_floor_bytes=0), Metrics())
        self.gate = threading.Event()
        self.gate.set()
        self.waits = threading.Event()

    def open(self, content: ContentKey) -> DiskContent:
        if not self.gate.is_set():
            self.waits.set()
            self.gate.wait(30)
        return super().open(content)

    async def until_it_waits(self) -> None:
        await trio.to_thread.run_sync(self.waits.wait, limiter=trio.CapacityLimiter(1))
        self.waits.clear()


@pytest.fixture
def store(tmp_path: Path) -> GatedStore:
    return GatedStore(tmp_path / "cache")


def descriptors() -> set[str]:
    return {os.path.realpath(f"/proc/self/fd/{each}") for each in os.listdir("/proc/self/fd")}


async def open_but_unread(fs: Filesystem, data: bytes) -> int:
    """Have a file open that was written here a moment ago: nobody has opened its content yet."""
    await put(fs, "f", b"first")
    ino = (await fs.lookup(ROOT, "f")).ino
    handle = (await fs.open(ino, os.O_RDONLY)).handle
    await put(fs, "f", data)
    return handle


async def test_content_that_is_opened_slowly_does_not_stand_for_what_was_written_since(
    ask: Requests, store: GatedStore, tmp_path: Path
) -> None:
    writes = WriteSettings(tmp_path / "staging")
    async with composed(ask.server, REPO, store=store, writes=writes) as fs:
        handle = await open_but_unread(fs, b"second")
        async with trio.open_nursery() as nursery:
            store.gate.clear()
            nursery.start_soon(fs.read, handle, Extent(0, 9))
            await store.until_it_waits()
            await put(fs, "f", b"third.")
            store.gate.set()
        assert bytes(await fs.read(handle, Extent(0, 9))) == b"third."
        await fs.release(handle)


async def test_who_closes_while_content_is_kept_for_him_leaves_nothing_behind(
    ask: Requests, store: GatedStore, tmp_path: Path
) -> None:
    writes = WriteSettings(tmp_path / "staging")
    ask.server.deploy(REPO, "g", b"new")
    async with composed(ask.server, REPO, store=store, writes=writes) as fs:
        before = descriptors()
        handle = await open_but_unread(fs, b"second")
        async with trio.open_nursery() as nursery:
            store.gate.clear()
            nursery.start_soon(fs.rename, ROOT, "g", ROOT, "f", 0)
            await store.until_it_waits()
            await fs.release(handle)
            store.gate.set()
        assert ask.get(f"/{REPO}/f").body == b"new"
        # What is closed in the background has been.
        await trio.testing.wait_all_tasks_blocked(0.02)
        own = (str(tmp_path / "cache"), str(tmp_path / "staging"))
        assert not [path for path in descriptors() - before if path.startswith(own)]
