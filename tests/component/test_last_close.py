"""Several writable handles of one file: the last close uploads, once, and has the verdict."""

import errno
import os
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from jfs.config import WriteSettings
from jfs.errors import QuotaExceeded
from jfs.extents import Extent
from jfs.server import Fault
from jfs.vfs.attributes.stat import Caller, Change
from jfs.vfs.filesystem import Filesystem
from jfs.vfs.namespace.inodes import ROOT
from jfs.vfs.writing.journal import Journal
from jfs.vfs.writing.records import State
from tests.component.composed import close, composed, find
from tests.component.server_requests import REPO, Requests

ME = Caller(os.getuid(), os.getgid())
DATA = random.Random(1).randbytes(400_000)


@asynccontextmanager
async def writing(ask: Requests, staging: Path) -> AsyncIterator[Filesystem]:
    async with composed(ask.server, REPO, writes=WriteSettings(staging)) as fs:
        yield fs


async def opened(fs: Filesystem, name: str, count: int) -> list[int]:
    """Make a file; return handles of it."""
    first, attributes = await fs.create(ROOT, name, 0o644, os.O_RDWR, ME)
    more = [(await fs.open(attributes.ino, os.O_WRONLY)).handle for _ in range(count - 1)]
    return [first.handle, *more]


async def test_parts_that_are_written_through_handles_of_their_own_are_one_upload(
    ask: Requests, staging: Path
) -> None:
    """As downloaders do it, with a thread for each part."""
    async with writing(ask, staging) as fs:
        handles = await opened(fs, "f", 8)
        ask.server.stats.reset()
        part = len(DATA) // len(handles)

        async def write(number: int) -> None:
            for offset in range(number * part, (number + 1) * part, 10_000):
                await fs.write(handles[number], offset, DATA[offset : offset + 10_000])
            await close(fs, handles[number])

        async with trio.open_nursery() as nursery:
            for number in range(len(handles)):
                nursery.start_soon(write, number)
        assert ask.get(f"/{REPO}/f").body == DATA
        assert ask.server.stats.bytes_received <= 1.05 * len(DATA)


async def test_the_verdict_is_of_the_last_close(ask: Requests, staging: Path) -> None:
    async with writing(ask, staging) as fs:
        one, two = await opened(fs, "f", 2)
        await fs.write(one, 0, DATA)
        ask.server.faults.add(Fault.status(413, f"/{REPO}/f", method="PUT"))
        ask.server.stats.reset()
        await close(fs, one)  # staged and journalled
        assert not ask.server.stats.bytes_received
        ((record, size),) = [(seen.record, seen.size) for seen in Journal(staging).survey()]
        assert (record.state, size) == (State.WRITING, len(DATA))
        with pytest.raises(QuotaExceeded):
            await fs.flush(two)
        await fs.release(two)
    ((record, size),) = [(seen.record, seen.size) for seen in Journal(staging).survey()]
    assert (record.state, size) == (State.FAILED, len(DATA))


async def test_a_close_that_uploads_nothing_says_what_is_known_to_be_lost(
    ask: Requests, staging: Path
) -> None:
    async with writing(ask, staging) as fs:
        one, two = await opened(fs, "f", 2)
        await fs.write(one, 0, DATA)
        file = fs._files.find(fs._tree.find(await find(fs, "f")))
        assert file is not None
        file.broken = OSError(errno.ENOSPC, "no space left")
        with pytest.raises(OSError, match="no space"):
            await fs.flush(one)
        with pytest.raises(OSError, match="no space"):
            await fs.flush(two)
        await fs.release(one)
        await fs.release(two)
        assert ask.get(f"/{REPO}/f").status == 404


async def test_a_reader_does_not_keep_a_close_from_uploading(ask: Requests, staging: Path) -> None:
    async with writing(ask, staging) as fs:
        (writer,) = await opened(fs, "f", 1)
        reader = (await fs.open(await find(fs, "f"), os.O_RDONLY)).handle
        await fs.write(writer, 0, DATA)
        await close(fs, writer)
        assert ask.get(f"/{REPO}/f").body == DATA
        assert bytes(await fs.read(reader, Extent(0, 1000))) == DATA[:1000]
        await fs.release(reader)


async def test_a_handle_that_was_closed_and_not_released_counts_no_more(
    ask: Requests, staging: Path
) -> None:
    """The kernel sends RELEASE behind; a mapping keeps it for as long as it lives."""
    async with writing(ask, staging) as fs:
        one, two = await opened(fs, "f", 2)
        await fs.flush(one)
        await fs.write(two, 0, DATA)
        await close(fs, two)
        assert ask.get(f"/{REPO}/f").body == DATA
        await fs.write(one, 0, b"a store of the mapping")
        await fs.release(one)
        assert ask.get(f"/{REPO}/f").body[:22] == b"a store of the mapping"


async def test_what_fsync_has_uploaded_no_close_uploads_again(ask: Requests, staging: Path) -> None:
    """Its verdict holds for later closes; one that failed is made good by the last."""
    async with writing(ask, staging) as fs:
        one, two = await opened(fs, "f", 2)
        await fs.write(one, 0, DATA)
        await fs.fsync(one)
        assert ask.get(f"/{REPO}/f").body == DATA
        ask.server.stats.reset()
        await close(fs, one)
        await fs.fsync(two)
        assert ask.server.stats.requests == 0
        await fs.write(two, 0, b"x")
        refused = ask.server.faults.add(Fault.status(413, f"/{REPO}/f", method="PUT"))
        for verdict in (fs.fsync, fs.flush):
            hits = refused.hits
            with pytest.raises(QuotaExceeded):
                await verdict(two)
            assert refused.hits > hits
        ask.server.faults.clear()
        await fs.flush(two)
        assert ask.get(f"/{REPO}/f").body == b"x" + DATA[1:]
        await fs.release(two)


async def test_truncating_by_name_waits_for_who_has_the_file_open(
    ask: Requests, staging: Path
) -> None:
    async with writing(ask, staging) as fs:
        (one,) = await opened(fs, "f", 1)
        await fs.write(one, 0, DATA)
        ino = await find(fs, "f")
        await fs.setattr(ino, Change(size=1000))
        assert ask.get(f"/{REPO}/f").status == 404
        await close(fs, one)
        assert ask.get(f"/{REPO}/f").body == DATA[:1000]
        await fs.setattr(ino, Change(size=10))
        assert ask.get(f"/{REPO}/f").body == DATA[:10]
