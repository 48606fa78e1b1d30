"""Whole contents: in the cache, and verified, before an open is answered (``--fetch whole``)."""

import contextlib
import errno
import hashlib
import os
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from jfs.cache import DiskBlockStore
from jfs.config import CacheSettings, Fetch, ReadSettings
from jfs.errors import DeadlineExceeded, IntegrityError, JfsError, errno_of
from jfs.extents import Extent, KiB, MiB
from jfs.metrics import Metrics
from jfs.model import ArtifactVersion, ContentKey, RepoPath
from jfs.server import EmbeddedServer, Fault
from jfs.vfs.filesystem import Filesystem
from jfs.vfs.reading.bringing import arrived
from jfs.vfs.reading.reader import DataPlane
from tests.component.composed import block_store, composed, find
from tests.component.server_requests import Requests
from tests.component.test_passing import Kernel

REPO = "ml-models-local"
DATA = random.Random(7).randbytes(9 * MiB + 321)
KEY = ContentKey(f"sha256:{hashlib.sha256(DATA).hexdigest()}", len(DATA))
READS = ReadSettings(fetch=Fetch.WHOLE, segment_bytes=MiB, window_bytes=4 * MiB)


class Bench:
    """A filesystem whose opens wait; ``f`` is on its server."""

    def __init__(self, filesystem: Filesystem, store: DiskBlockStore, kernel: Kernel) -> None:
        self.filesystem = filesystem
        self.store = store
        self.kernel = kernel

    async def open(self, flags: int = os.O_RDONLY, name: str = "f") -> int:
        return (await self.filesystem.open(await find(self.filesystem, name), flags)).handle

    async def close(self, *handles: int) -> None:
        for handle in handles:
            await self.filesystem.release(handle)

    async def read(self, handle: int, extent: Extent) -> bytes:
        return bytes(await self.filesystem.read(handle, extent))

    def fetches(self) -> list[dict[str, object]]:
        files = self.filesystem.holdings.fetches()["files"]
        assert isinstance(files, list)
        return files

    def missing(self) -> int:
        content = self.store.inspect(KEY)
        try:
            return sum(run.size for run in content.missing(Extent(0, len(DATA))))
        finally:
            content.close()


@pytest.fixture
def store(tmp_path: Path) -> DiskBlockStore:
    return block_store(tmp_path / "cache")


@asynccontextmanager
async def bench(
    server: EmbeddedServer,
    store: DiskBlockStore,
    *,
    patience_s: float | None = None,
    idle_s: float = 30,
) -> AsyncIterator[Bench]:
    server.deploy(REPO, "f", DATA)
    kernel = Kernel()
    async with composed(
        server,
        REPO,
        store=store,
        backings=kernel,
        reads=READS,
        patience_s=patience_s,
        idle_s=idle_s,
    ) as filesystem:
        yield Bench(filesystem, store, kernel)
    assert not kernel.has
    store.close()


async def test_an_open_waits_for_the_whole_and_the_kernel_reads_it(
    server: EmbeddedServer, store: DiskBlockStore
) -> None:
    async with bench(server, store) as here:
        ino = await find(here.filesystem, "f")
        await here.filesystem.getattr(ino)
        server.stats.reset()
        assert server.stats.bytes_sent == 0
        handle = await here.open()
        assert here.missing() == 0
        assert list(here.kernel.has.values()) == [DATA]
        assert here.fetches() == []
        sent = Requests(server).sent()
        assert len(DATA) <= sent < len(DATA) + 64 * KiB
        again = await here.open()
        assert len(here.kernel.has) == 1
        await here.close(handle, again)
        assert server.stats.bytes_sent - sent < 64 * KiB


@pytest.mark.parametrize(
    "flags", [os.O_WRONLY, os.O_RDWR, os.O_RDWR | os.O_NONBLOCK, os.O_NONBLOCK, os.O_DIRECT]
)
async def test_who_does_not_want_to_wait_does_not(
    server: EmbeddedServer, store: DiskBlockStore, flags: int
) -> None:
    async with bench(server, store) as here:
        server.stats.reset()
        await here.close(await here.open(flags))
        assert server.stats.bytes_sent < 64 * KiB


async def test_one_fetch_for_all_who_wait(server: EmbeddedServer, store: DiskBlockStore) -> None:
    """It goes on as long as anybody waits, and ends with the last of them."""
    async with bench(server, store) as here:
        server.deploy(REPO, "same", DATA)
        server.stats.reset()
        hold = server.faults.add(Fault.hold(f"/{REPO}/*", method="GET"))
        scopes = [trio.CancelScope() for _ in range(4)]
        handles: list[int] = []

        async def run(scope: trio.CancelScope, name: str) -> None:
            with scope:
                handles.append(await here.open(name=name))

        async with trio.open_nursery() as nursery:
            for scope, name in zip(scopes, ("f", "f", "same", "same"), strict=True):
                nursery.start_soon(run, scope, name)
            while [fetch["waiting"] for fetch in here.fetches()] != [4]:
                await trio.lowlevel.checkpoint()
            (fetch,) = here.fetches()
            assert fetch["total"] == len(DATA)
            scopes[0].cancel()
            while here.fetches()[0]["waiting"] != 3:
                await trio.lowlevel.checkpoint()
            hold.release()
            server.faults.clear()
        assert len(handles) == 3
        assert server.stats.bytes_sent < len(DATA) + 128 * KiB
        await here.close(*handles)


async def test_who_is_interrupted_leaves_no_fetch(
    server: EmbeddedServer, store: DiskBlockStore
) -> None:
    async with bench(server, store) as here:
        hold = server.faults.add(Fault.hold(f"/{REPO}/f", method="GET"))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(here.open)
            while not here.fetches():
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
        assert here.fetches() == []
        hold.release()
        server.faults.clear()
        handle = await here.open()
        assert here.missing() == 0
        await here.close(handle)


FAILURES = {
    "refused": (Fault.status(403, f"/{REPO}/f"), errno.EACCES),
    "down": (Fault.status(503, f"/{REPO}/f"), errno.EIO),
    "cut": (Fault.drop(f"/{REPO}/f", after=2, after_bytes=1000), errno.EIO),
    "stalls": (Fault.stall(f"/{REPO}/f", after=2, after_bytes=1000), errno.ETIMEDOUT),
}


@pytest.mark.parametrize("why", FAILURES)
async def test_an_open_that_cannot_be_served_says_why(
    server: EmbeddedServer, store: DiskBlockStore, why: str
) -> None:
    """With the errno that a READ would have had; what was received is kept."""
    idle_s = 1.5 if why == "stalls" else 30
    async with bench(server, store, patience_s=0.2, idle_s=idle_s) as here:
        ino = await find(here.filesystem, "f")
        fault, number = FAILURES[why]
        server.faults.add(replace(fault))
        with pytest.raises(JfsError) as raised:
            await here.filesystem.open(ino, os.O_RDONLY)
        assert errno_of(raised.value) == number
        assert here.fetches() == []
        while why in ("cut", "stalls") and here.missing() == len(DATA):
            await trio.lowlevel.checkpoint()  # it is written behind
        server.faults.release_all()
        server.faults.clear()
        handle = None
        while handle is None:  # once the server is found to be up again
            with contextlib.suppress(JfsError):
                handle = await here.open()
            await trio.sleep(0.001)
        await here.close(handle)


async def test_what_is_cached_is_read_while_the_server_is_down(
    server: EmbeddedServer, store: DiskBlockStore
) -> None:
    content = store.open(KEY)
    assert content.publish(0, memoryview(DATA)[:MiB])
    content.close()
    async with bench(server, store, patience_s=0.2) as here:
        await find(here.filesystem, "f")
        server.faults.add(Fault.status(503))
        handle = await here.open()
        assert await here.read(handle, Extent(5, 100)) == DATA[5:100]
        with pytest.raises(JfsError):
            await here.read(handle, Extent(5 * MiB, 5 * MiB + 10))
        await here.close(handle)
        server.faults.clear()


async def test_wrong_bytes_are_never_opened(
    server: EmbeddedServer, store: DiskBlockStore, expected_logs: list[str]
) -> None:
    """Fetched once more; right then, or EIO."""
    expected_logs.append("does not match its checksum")
    async with bench(server, store) as here:
        once = server.faults.add(Fault.corrupt(f"/{REPO}/f", times=1))
        handle = await here.open()
        assert list(here.kernel.has.values()) == [DATA]
        assert once.hits == 1
        await here.close(handle)


async def test_a_server_that_keeps_sending_wrong_bytes_is_refused(
    server: EmbeddedServer, store: DiskBlockStore, expected_logs: list[str]
) -> None:
    expected_logs.append("does not match its checksum")
    async with bench(server, store) as here:
        server.faults.add(Fault.corrupt(f"/{REPO}/f"))
        with pytest.raises(IntegrityError):
            await here.open()
        assert here.missing() == len(DATA)


@pytest.mark.parametrize("why", ["larger than all", "others hold the room"])
async def test_what_does_not_fit_is_read_as_it_comes(
    server: EmbeddedServer, tmp_path: Path, expected_logs: list[str], why: str
) -> None:
    expected_logs.append("the cache does not take all of it")
    budget = 6 * MiB if why == "larger than all" else 12 * MiB
    settings = CacheSettings(tmp_path / "cache", budget, free_floor_bytes=0)
    store = DiskBlockStore(settings, Metrics())
    other = store.open(ContentKey(f"sha256:{'a' * 64}", 8 * MiB))
    if why != "larger than all":
        assert other.publish(0, memoryview(bytes(8 * MiB)))
    async with bench(server, store) as here:
        handle = await here.open()
        assert not here.kernel.has
        assert await here.read(handle, Extent(7 * MiB, 7 * MiB + 10)) == DATA[7 * MiB :][:10]
        await here.close(handle)
    other.close()


async def test_what_is_here_already_is_not_fetched_again(
    server: EmbeddedServer, store: DiskBlockStore
) -> None:
    content = store.open(KEY)
    assert content.publish(2 * MiB, memoryview(DATA)[2 * MiB :])
    content.close()
    async with bench(server, store) as here:
        server.stats.reset()
        handle = await here.open()
        assert server.stats.bytes_sent < 2 * MiB + 64 * KiB
        assert list(here.kernel.has.values()) == [DATA]
        await here.close(handle)


class _Silent:
    """A source that nobody asks."""

    def fetch(self, *_: object) -> None:
        raise AssertionError

    def close(self) -> None:
        pass


@pytest.mark.parametrize(("step", "comes"), [(MiB, True), (MiB - 1, False)])
async def test_what_comes_slowly_is_waited_for_and_what_stands_still_is_not(
    autojump_clock: object, step: int, comes: bool
) -> None:
    """A MiB in the time of a READ is enough, however long all of it takes."""
    version = ArtifactVersion(RepoPath(REPO, "f"), KEY, None)
    async with trio.open_nursery() as nursery:
        settings = ReadSettings(deadline_s=10)
        plane = DataPlane(_Silent(), None, settings, Metrics(), nursery, fetches=1)
        reader = await plane.open(version)
        segment = plane.pool.allocate(Extent(0, 8 * MiB), REPO)
        assert segment is not None

        async def fill() -> None:
            for filled in range(step, 8 * MiB + step, step):
                await trio.sleep(9)
                segment.progress(min(filled, 8 * MiB))

        nursery.start_soon(fill)
        with contextlib.nullcontext() if comes else pytest.raises(DeadlineExceeded):
            await arrived(segment, plane, reader)
        assert (segment.filled == 8 * MiB) == comes
        nursery.cancel_scope.cancel()
