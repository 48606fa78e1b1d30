"""A server that sends other bytes than its checksum says: found out, asked again, refused."""

import hashlib
import random
from pathlib import Path

import pytest
import trio

from jfs.cache import DiskBlockStore
from jfs.errors import IntegrityError
from jfs.extents import Extent, MiB
from jfs.model import ContentKey
from jfs.server import EmbeddedServer
from jfs.server.http.faults import Fault
from jfs.vfs.filesystem import Filesystem
from jfs.vfs.namespace.inodes import ROOT
from tests.component.composed import block_store, composed
from tests.conftest import REPO

DATA = random.Random(1).randbytes(MiB + 17)
KEY = ContentKey(f"sha256:{hashlib.sha256(DATA).hexdigest()}", len(DATA))


async def read(filesystem: Filesystem, handle: int) -> bytes:
    got = bytearray()
    while data := await filesystem.read(handle, Extent(len(got), len(got) + 256 * 1024)):
        got += data
    return bytes(got)


async def completed(store: DiskBlockStore, key: ContentKey = KEY) -> None:
    """Return when every block is on disk: that is behind the reader."""
    content = store.inspect(key)
    with trio.fail_after(30):
        while content.missing(Extent(0, key.size)):
            await trio.lowlevel.checkpoint()
    content.close()


@pytest.mark.parametrize("cached", [True, False])
async def test_nobody_gets_a_wrong_byte_of_small_content(
    server: EmbeddedServer, tmp_path: Path, cached: bool
) -> None:
    server.deploy(REPO, "f", DATA[:MiB])
    fault = server.faults.add(Fault.corrupt(f"/{REPO}/f", offset=MiB - 1, method="GET", times=1))
    store = block_store(tmp_path / "cache") if cached else None
    async with composed(server, REPO, store=store) as filesystem:
        ino = (await filesystem.lookup(ROOT, "f")).ino
        handle = (await filesystem.open(ino, 0)).handle
        assert await filesystem.read(handle, Extent(5, 9)) == DATA[5:9]  # asked again: it was once
        assert fault.hits == 1
        assert await read(filesystem, handle) == DATA[:MiB]
    if store is not None:
        store.close()


async def test_small_content_that_stays_wrong_is_refused_until_it_is_right(
    server: EmbeddedServer,
) -> None:
    server.deploy(REPO, "f", DATA[:1000])
    server.faults.add(Fault.corrupt(f"/{REPO}/f", method="GET"))
    async with composed(server, REPO) as filesystem:
        handle = (await filesystem.open((await filesystem.lookup(ROOT, "f")).ino, 0)).handle
        with pytest.raises(IntegrityError, match="do not match its checksum"):
            await filesystem.read(handle, Extent(0, 10))
        server.faults.clear()
        assert await read(filesystem, handle) == DATA[:1000]


@pytest.mark.parametrize("times", [1, None])
async def test_wrong_bytes_are_found_out(
    server: EmbeddedServer, tmp_path: Path, expected_logs: list[str], times: int | None
) -> None:
    expected_logs += ["does not match its checksum: dropped"]
    server.deploy(REPO, "f", DATA)
    server.faults.add(Fault.corrupt(f"/{REPO}/f", offset=5, method="GET", times=times))
    store = block_store(tmp_path / "cache")
    async with composed(server, REPO, store=store) as filesystem:
        ino = (await filesystem.lookup(ROOT, "f")).ino
        handle = (await filesystem.open(ino, 0)).handle
        assert await read(filesystem, handle) != DATA  # nobody can know yet
        await completed(store)
        assert not await trio.to_thread.run_sync(store.verify, KEY)
        with pytest.raises(IntegrityError):
            await filesystem.read(handle, Extent(0, 10))
        again = await filesystem.open(ino, 0)
        assert not again.keep_cache  # the kernel's pages are as wrong
        if times is None:
            await read(filesystem, again.handle)
            await completed(store)
            assert not await trio.to_thread.run_sync(store.verify, KEY)
            with pytest.raises(IntegrityError, match="keeps sending"):
                await filesystem.open(ino, 0)
        else:
            assert await read(filesystem, again.handle) == DATA
            await completed(store)
            assert await trio.to_thread.run_sync(store.verify, KEY)
            assert (await filesystem.open(ino, 0)).keep_cache
    store.close()
