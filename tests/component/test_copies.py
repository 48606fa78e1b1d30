"""Copies inside a mount, as ``cp`` makes them: by the digest, without reading a byte."""

import contextlib
import os
import random
from pathlib import Path

import pytest
import trio

from jfs.config import WriteSettings
from jfs.errors import AccessDenied, ChangedElsewhere, Stale
from jfs.extents import Extent, MiB
from jfs.server import EmbeddedServer, Fault
from jfs.vfs.filesystem import Filesystem
from jfs.vfs.namespace.inodes import ROOT
from jfs.vfs.writing.journal import Journal
from tests.component.composed import block_store, composed, content, find
from tests.component.server_requests import REPO, Requests
from tests.component.test_writing import DATA, ME, kept, writing

ALL = 1 << 40  # cp asks for as much as there is
COPY = f"/{REPO}/copy*"  # with its properties


@pytest.fixture
def ask(server: EmbeddedServer) -> Requests:
    server.deploy(REPO, "f", DATA, {"env": ["production"]})
    return Requests(server)


class Copy:
    """A source and a target, both open, as ``cp`` has them."""

    def __init__(self, fs: Filesystem, source: int, target: int) -> None:
        self._fs, self.source, self.target = fs, source, target

    async def run(self, size: int = ALL, start: int = 0, to: int | None = None) -> int | None:
        to = start if to is None else to
        return await self._fs.copies.copy(self.source, start, self.target, to, size)

    async def read(self, size: int = len(DATA), start: int = 0) -> bytes:
        return bytes(await self._fs.read(self.target, Extent(start, start + size)))

    async def close(self) -> None:
        try:
            await self._fs.flush(self.target)
        finally:
            await self._fs.release(self.target)
            await self._fs.release(self.source)


async def opened(fs: Filesystem, source: str = "f", target: str = "copy") -> Copy:
    """Open both; the target is made, or emptied."""
    handle = (await fs.open(await find(fs, source), os.O_RDONLY)).handle
    flags = os.O_RDWR | os.O_TRUNC
    made, _ = await fs.create(ROOT, target, 0o644, flags, ME)
    return Copy(fs, handle, made.handle)


def content_requests(ask: Requests) -> dict[str, int]:
    return {route: n for route, n in ask.server.stats.by_route.items() if "content" in route}


async def test_a_copy_moves_no_bytes(ask: Requests, staging: Path) -> None:
    async with writing(ask, staging) as fs:
        copy = await opened(fs)
        ask.server.stats.reset()
        assert await copy.run() == len(DATA)
        assert await copy.run(start=len(DATA)) == 0
        await copy.close()
        assert content_requests(ask) == {"PUT content": 1}
        assert ask.server.stats.bytes_received == 0
        assert await content(fs, "copy") == DATA
        assert ask.content("copy") == DATA
        assert ask.properties("copy") == {}  # as cp does it
    assert kept(staging) == []


async def test_a_copy_of_a_copy_in_pieces(ask: Requests, staging: Path) -> None:
    """Pieces come in order, as large as the program likes, and overlap if it repeats one."""
    async with writing(ask, staging) as fs:
        first = await opened(fs)
        assert await first.run()
        second = Copy(fs, first.target, (await opened(fs, target="copy2")).target)
        ask.server.stats.reset()
        for start in (0, 100_000, 50_000, 150_000):
            assert await second.run(100_000, start) == 100_000
        assert await second.run(start=250_000) == len(DATA) - 250_000
        await fs.flush(second.target)
        await first.close()
        assert content_requests(ask) == {"PUT content": 2}
        assert ask.server.stats.bytes_received == 0
        assert [ask.content(name) for name in ("copy", "copy2")] == [DATA, DATA]
        await fs.release(second.target)
    assert kept(staging) == []


async def test_a_copy_is_read_before_it_is_closed(ask: Requests, staging: Path) -> None:
    async with writing(ask, staging) as fs:
        copy = await opened(fs)
        assert await copy.run(200_000) == 200_000
        assert await copy.read() == DATA[:200_000]
        assert await copy.read(1000, 199_500) == DATA[199_500:200_000]
        assert (await fs.getattr(await find(fs, "copy"))).size == 200_000
        await copy.close()
        assert ask.content("copy") == DATA[:200_000]  # the beginning of something is sent


async def test_a_copy_that_is_changed_is_a_file_like_any_other(
    ask: Requests, staging: Path
) -> None:
    want = bytearray(DATA)
    async with writing(ask, staging) as fs:
        copy = await opened(fs)
        assert await copy.run()
        await fs.write(copy.target, 1000, b"changed")
        want[1000:1007] = b"changed"
        assert await copy.read() == want
        await fs.flush(copy.target)
        assert ask.content("copy") == want
        assert await copy.run() == len(DATA)  # once more, over all of it
        assert await copy.read() == DATA
        await copy.close()
        assert ask.content("copy") == DATA
    assert kept(staging) == []


async def test_a_copy_over_a_file_keeps_its_properties(ask: Requests, staging: Path) -> None:
    ask.server.deploy(REPO, "copy", b"older", {"stage": ["candidate"]})
    async with writing(ask, staging) as fs:
        copy = await opened(fs)
        assert await copy.run() == len(DATA)
        await copy.close()
    assert ask.content("copy") == DATA
    assert ask.properties("copy") == {"stage": ["candidate"]}


async def test_what_cannot_be_told_by_its_digest_is_left_to_the_kernel(
    ask: Requests, staging: Path
) -> None:
    async with writing(ask, staging) as fs:
        copy = await opened(fs)
        assert await copy.run(100, start=5) is None  # the middle of an artifact
        assert await copy.run(100, start=0, to=7) is None
        await fs.write(copy.target, 0, b"x" * 1000)
        assert await copy.run(100) is None  # a part of what is there
        assert await fs.copies.copy(copy.target, 0, copy.target, 2000, 10) is None  # itself
        assert await copy.read() == b"x" * 1000
        await copy.close()


async def test_a_copy_over_what_waits_is_made_at_once(ask: Requests, staging: Path) -> None:
    """Also where the file is opened again and again: it has no bytes that could wait."""
    settings = WriteSettings(staging, settle_s=60)
    async with composed(ask.server, REPO, writes=settings) as fs:
        for number in range(4):
            handle = (await opened(fs)).target
            await fs.write(handle, 0, b"%d" % number)
            await fs.flush(handle)
            await fs.release(handle)
        copy = await opened(fs)
        ask.server.stats.reset()
        assert await copy.run() == len(DATA)
        await copy.close()
        assert content_requests(ask) == {"PUT content": 1}
        assert ask.server.stats.bytes_received == 0
        assert ask.content("copy") == DATA
    assert kept(staging) == []


async def test_with_write_back_the_bytes_are_on_this_disk(ask: Requests, staging: Path) -> None:
    async with writing(ask, staging, write_back=True) as fs:
        copy = await opened(fs)
        assert await copy.run() is None
        await copy.close()


async def test_what_is_staged_is_copied_on_this_disk(ask: Requests, staging: Path) -> None:
    """What was written here and is on no server yet: whole, in pieces, and in the middle."""
    new = random.Random(2).randbytes(400_000)
    async with writing(ask, staging) as fs:
        made, _ = await fs.create(ROOT, "new", 0o644, os.O_RDWR, ME)
        await fs.write(made.handle, 0, new)
        copy = await opened(fs, target="copy")
        one = Copy(fs, made.handle, copy.target)
        ask.server.stats.reset()
        assert await one.run(300_000) == 300_000
        assert await one.run(ALL, 300_000) == 100_000
        assert await one.run(ALL, 400_000) == 0
        assert await copy.read(len(new)) == new
        assert await one.run(1000, start=5000, to=100) == 1000
        want = new[:100] + new[5000:6000] + new[1100:]
        assert await copy.read(len(new)) == want
        assert ask.server.stats.requests == 0
        await copy.close()
        assert ask.content("copy") == want
        await fs.flush(made.handle)
        await fs.release(made.handle)
        assert ask.content("new") == new
    assert kept(staging) == []


async def test_content_that_the_server_does_not_know_by_its_digest_is_sent(
    ask: Requests, staging: Path
) -> None:
    ask.server.faults.add(Fault.status(404, COPY, method="PUT", times=1))
    async with writing(ask, staging) as fs:
        copy = await opened(fs)
        assert await copy.run() == len(DATA)
        await copy.close()
        assert await content(fs, "copy") == DATA
    assert ask.content("copy") == DATA
    assert kept(staging) == []


async def test_what_others_put_there_while_a_copy_is_fetched_is_not_overwritten(
    ask: Requests, staging: Path
) -> None:
    ask.server.faults.add(Fault.status(404, COPY, method="PUT", times=1))
    held = ask.server.faults.add(Fault.hold(f"/{REPO}/f", method="GET"))
    async with writing(ask, staging) as fs, trio.open_nursery() as nursery:
        copy = await opened(fs)
        assert await copy.run() == len(DATA)

        async def close() -> None:
            with pytest.raises(Stale):
                await copy.close()

        nursery.start_soon(close)
        await trio.to_thread.run_sync(held.wait_hit)
        ask.server.deploy(REPO, "copy", b"theirs")
        held.release()
    assert ask.content("copy") == b"theirs"


async def test_a_copy_is_of_the_version_that_was_opened(ask: Requests, staging: Path) -> None:
    """While the server has it somewhere; else close says so, and nothing is made."""
    ask.server.deploy(REPO, "elsewhere", DATA)
    async with writing(ask, staging) as fs:
        copies = [await opened(fs, target=f"copy{number}") for number in range(2)]
        ask.server.deploy(REPO, "f", b"newer")
        for copy in copies:
            assert await copy.run() == len(DATA)
        await copies[0].close()
        assert ask.content("copy0") == DATA
        for name in ("elsewhere", "copy0"):
            ask.delete(f"/{REPO}/{name}")
        with pytest.raises(Stale):
            await copies[1].close()
        assert ask.content("copy1") is None
    assert kept(staging) == []


async def test_a_source_that_is_removed_before_the_copy_is_closed(
    ask: Requests, staging: Path
) -> None:
    """Who copies has it open still: what was kept for its readers is what is sent."""
    async with writing(ask, staging) as fs:
        copy = await opened(fs)
        assert await copy.run() == len(DATA)
        await fs.unlink(ROOT, "f")
        assert ask.content("f") is None
        assert await copy.read() == DATA
        await copy.close()
    assert ask.content("copy") == DATA
    assert kept(staging) == []


async def test_a_copy_that_is_refused_keeps_nothing_to_recover(
    ask: Requests, staging: Path
) -> None:
    """The source has its bytes; uploaded by ``jfs recover`` it would be an empty file."""
    ask.server.faults.add(Fault.status(403, COPY, method="PUT"))
    async with writing(ask, staging) as fs:
        copy = await opened(fs)
        assert await copy.run() == len(DATA)
        with pytest.raises(AccessDenied):
            await copy.close()
    assert kept(staging) == []


async def test_a_copy_that_was_overtaken_is_told(ask: Requests, staging: Path) -> None:
    async with writing(ask, staging) as fs:
        copy = await opened(fs)
        assert await copy.run()
        ask.server.deploy(REPO, "copy", b"by somebody else")
        with pytest.raises(ChangedElsewhere):
            await copy.close()
    assert ask.content("copy") == b"by somebody else"
    assert kept(staging) == []


async def test_a_mount_that_dies_leaves_no_empty_copy(ask: Requests, staging: Path) -> None:
    async with writing(ask, staging) as fs:
        copy = await opened(fs)
        assert await copy.run()
        for name in os.listdir(staging):  # as whoever comes after a kill finds it
            os.makedirs(staging / "left", mode=0o700, exist_ok=True)
            (staging / "left" / name).write_bytes((staging / name).read_bytes())
        assert len(os.listdir(staging / "left")) == 2
        assert kept(staging / "left") == []
        assert Journal(staging / "left").survey() == []
        assert os.listdir(staging / "left") == []
        await copy.close()


async def test_what_may_not_be_downloaded_is_copied_by_the_server(
    ask: Requests, staging: Path
) -> None:
    """As by ``jfs cp``: what may be deployed, the server decides."""
    ask.server.faults.add(Fault.status(403, f"/{REPO}/f", method="GET"))
    async with writing(ask, staging) as fs:
        copy = await opened(fs)
        assert await copy.run() == len(DATA)
        with pytest.raises(AccessDenied):
            await copy.read()
        await copy.close()
    assert ask.content("copy") == DATA


async def test_what_a_copy_consists_of_is_read_from_the_cache(
    ask: Requests, staging: Path, tmp_path: Path
) -> None:
    with contextlib.closing(block_store(tmp_path / "cache")) as store:
        async with composed(ask.server, REPO, store=store, writes=WriteSettings(staging)) as fs:
            assert await content(fs, "f") == DATA
            copy = await opened(fs)
            assert await copy.run()
            ask.server.stats.reset()
            assert await copy.read() == DATA
            await fs.write(copy.target, len(DATA), b"more")
            assert ask.server.stats.bytes_sent == 0
            await copy.close()
            assert ask.content("copy") == DATA + b"more"


async def test_a_huge_copy_comes_in_pieces_that_the_kernel_can_count(
    ask: Requests, staging: Path, tmp_path: Path
) -> None:
    size, sha256 = 5 * 1024 * MiB, "5" * 64
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(size)
    ask.server.deploy(REPO, "huge", tmp_path / "sparse", sha256=sha256)
    async with writing(ask, staging) as fs:
        copy = await opened(fs, source="huge")
        first = await copy.run()
        assert first
        assert first < 1 << 32  # the answer has 32 bits for it
        assert await copy.run(start=first) == size - first
        await copy.close()
    stored = ask.get(f"/api/storage/{REPO}/copy").json()
    assert (stored["checksums"]["sha256"], int(stored["size"])) == (sha256, size)
