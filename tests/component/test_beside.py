"""READs of a filesystem that are answered beside the interpreter, and when they no longer are."""

import hashlib
import os
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

from jfs.cache import DiskBlockStore
from jfs.errors import IntegrityError, Stale
from jfs.extents import Extent, KiB, MiB
from jfs.model import ContentKey
from jfs.server import EmbeddedServer
from jfs.server.http.faults import Fault
from jfs.vfs.attributes.stat import Change
from jfs.vfs.filesystem import Filesystem
from tests.component.composed import block_store, composed, find
from tests.component.test_wrong_bytes import completed
from tests.conftest import REPO
from tests.fakekernel import READ, Kernel

_DATA = random.Random(23).randbytes(3 * MiB + 5)
_EXTENT = Extent(MiB, MiB + 64 * KiB)


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    kernel = Kernel()
    yield kernel
    kernel.close()


@dataclass
class _Opened:
    """A file that is read through one handle."""

    fs: Filesystem
    kernel: Kernel
    ino: int
    handle: int
    unique: int = 2

    async def read(self) -> bytes:
        return bytes(await self.fs.read(self.handle, _EXTENT))

    def is_beside(self, expected: bytes = _DATA) -> bool:
        """Whether a READ is answered beside the interpreter."""
        self.unique += 2
        self.kernel.read(self.unique, _EXTENT.start, _EXTENT.size, self.handle)
        if not self.kernel.is_answered():
            assert self.kernel.passed_on()[:2] == (READ, self.unique)
            return False
        assert self.kernel.answer(self.unique) == expected[_EXTENT.start : _EXTENT.stop]
        return True


@asynccontextmanager
async def reading(
    server: EmbeddedServer, kernel: Kernel, store: DiskBlockStore | None = None
) -> AsyncIterator[_Opened]:
    server.deploy(REPO, "f", _DATA)
    kernel.replies.hear()
    async with composed(server, REPO, replies=kernel.replies, store=store) as fs:
        ino = await find(fs, "/f")
        opened = _Opened(fs, kernel, ino, (await fs.open(ino, os.O_RDONLY)).handle)
        assert not opened.is_beside()  # nobody has said that it may be
        assert await opened.read() == _DATA[_EXTENT.start : _EXTENT.stop]
        assert opened.is_beside()
        yield opened


async def test_a_handle_that_is_closed(server: EmbeddedServer, kernel: Kernel) -> None:
    async with reading(server, kernel) as opened:
        other = (await opened.fs.open(opened.ino, os.O_RDONLY)).handle
        await opened.fs.read(other, _EXTENT)
        await opened.fs.release(opened.handle)
        assert not opened.is_beside()
        opened.handle = other
        assert opened.is_beside()
        await opened.fs.release(other)
        assert not opened.is_beside()


async def test_a_file_that_is_written(server: EmbeddedServer, kernel: Kernel) -> None:
    async with reading(server, kernel) as opened:
        writer = (await opened.fs.open(opened.ino, os.O_RDWR)).handle
        assert opened.is_beside()
        await opened.fs.write(writer, _EXTENT.start, b"new")
        assert not opened.is_beside()
        assert (await opened.read())[:5] == b"new" + _DATA[_EXTENT.start + 3 : _EXTENT.start + 5]
        assert not opened.is_beside()
        await opened.fs.flush(writer)
        for handle in (writer, opened.handle):
            await opened.fs.release(handle)


async def test_a_file_that_is_truncated(server: EmbeddedServer, kernel: Kernel) -> None:
    async with reading(server, kernel) as opened:
        writer = (await opened.fs.open(opened.ino, os.O_RDWR)).handle
        await opened.fs.setattr(opened.ino, Change(size=_EXTENT.start + 10), writer)
        assert not opened.is_beside()
        assert await opened.read() == _DATA[_EXTENT.start : _EXTENT.start + 10]
        await opened.fs.flush(writer)
        for handle in (writer, opened.handle):
            await opened.fs.release(handle)


async def test_a_content_that_turns_out_to_be_wrong(
    server: EmbeddedServer, kernel: Kernel, tmp_path: Path, expected_logs: list[str]
) -> None:
    expected_logs += ["does not match its checksum: dropped"]
    store = block_store(tmp_path / "cache")
    async with reading(server, kernel, store) as opened:
        server.faults.add(Fault.corrupt(f"/{REPO}/f", offset=5, method="GET"))
        for start in range(0, len(_DATA), MiB):
            await opened.fs.read(opened.handle, Extent(start, start + MiB))
        content = ContentKey(f"sha256:{hashlib.sha256(_DATA).hexdigest()}", len(_DATA))
        await completed(store, content)
        assert opened.is_beside()
        assert not await trio.to_thread.run_sync(store.verify, content)
        assert not opened.is_beside()
        with pytest.raises(IntegrityError):
            await opened.read()
        assert not opened.is_beside()
    store.close()


async def test_what_was_refused_is_seen_to_succeed(
    server: EmbeddedServer, kernel: Kernel, expected_logs: list[str]
) -> None:
    expected_logs += ["stat .* of something else", "read .* of this"]
    async with reading(server, kernel) as opened:
        refused = opened.fs.boundary.refused
        refused("getattr", (opened.ino, None), Stale("of something else"))
        assert opened.is_beside()
        refused("read", (opened.handle, 0, 1), Stale("of this"))
        assert not opened.is_beside()
        await opened.read()
        assert not opened.is_beside()
        opened.fs.boundary.answered("read", (opened.handle, 0, 1))
        await opened.read()
        assert opened.is_beside()
