"""A disk that hangs holds up no reader for long, and is used again once it answers."""

import functools
import hashlib
import itertools
import os
import random
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import trio

from jfs import waiting
from jfs.cache import DiskBlockStore
from jfs.config import CacheSettings, Credentials, ReadSettings, Secret, WriteSettings
from jfs.errors import Stale
from jfs.extents import Extent, MiB
from jfs.metrics import Metrics
from jfs.model import ArtifactVersion, Checksums, ContentKey, FileInfo, RepoPath
from jfs.protocols import Sink
from jfs.server import EmbeddedServer, Fault
from jfs.vfs.filesystem import Caller, Change
from jfs.vfs.freshness import Asked
from jfs.vfs.kept.keeper import Keeper
from jfs.vfs.namespace.inodes import ROOT
from jfs.vfs.reading.reader import DataPlane
from jfs.vfs.writing.area import StagingArea
from jfs.vfs.writing.journal import Journal
from tests.component.composed import composed, find, names
from tests.component.composed import content as everything
from tests.component.server_requests import Requests
from tests.conftest import REPO
from tests.weather.disks import Disk

pytestmark = pytest.mark.fuse  # the disk is one

ME = Caller(os.getuid(), os.getgid())
_PATIENCE_S = 0.3
_SIZE = 3 * MiB


class Source:
    """A server that has everything at once. Counts what it sends."""

    def __init__(self) -> None:
        self.sent = 0

    def fetch(self, version: ArtifactVersion, extent: Extent, sink: Sink) -> None:
        data = memoryview(content(int(version.path.path)))[extent.start : extent.stop]
        while data:
            buffer = sink.buffer()
            count = min(len(buffer), len(data))
            buffer[:count] = data[:count]
            sink.advance(count)
            data = data[count:]
            self.sent += count

    def close(self) -> None:
        pass


@functools.cache
def content(number: int) -> bytes:
    return random.Random(number).randbytes(_SIZE)


def version(number: int) -> ArtifactVersion:
    digest = hashlib.sha256(content(number)).hexdigest()
    key = ContentKey(f"sha256:{digest}", _SIZE)
    return ArtifactVersion(RepoPath("repo", str(number)), key, None)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    made = Disk(tmp_path)
    yield made
    made.end()


async def test_a_disk_that_hangs_holds_up_no_reader(
    disk: Disk, expected_logs: list[str], scale: Callable[[int, int], int]
) -> None:
    expected_logs += ["the disk of the cache has not answered for 0.3 s", "disk took nothing for"]
    source = Source()
    settings = replace(ReadSettings(), disk_patience_s=_PATIENCE_S, memory_bytes=32 * MiB)
    where = CacheSettings(disk.place / "cache", free_floor_bytes=0)
    store = await trio.to_thread.run_sync(DiskBlockStore, where, Metrics())
    async with trio.open_nursery() as nursery:
        plane = DataPlane(source, store, settings, Metrics(), nursery, fetches=4)

        async def read(number: int) -> None:
            reader = await plane.open(version(number))
            for extent in Extent(0, _SIZE).pieces(MiB):
                assert (
                    bytes(await reader.read(extent)) == content(number)[extent.start : extent.stop]
                )
            await reader.close()

        async def is_cached(number: int) -> bool:
            before = source.sent
            await read(number)
            return source.sent == before

        async def cache(number: int) -> None:
            with trio.fail_after(30):
                while not await is_cached(number):  # what is received is written behind
                    pass

        numbers = itertools.count()
        kinds = ("all",), ("write", "fsync"), ("read",), ("open", "lookup", "getattr")
        for hangs in kinds[: scale(2, len(kinds))]:
            known, other, another, late, half = itertools.islice(numbers, 5)
            await cache(known)
            held = await plane.open(version(half))
            assert bytes(await held.read(Extent(0, 10))) == content(half)[:10]
            await trio.to_thread.run_sync(partial(disk.fail, **dict.fromkeys(hangs, "hang")))
            try:
                with trio.fail_after(20):
                    for number in (known, other, known, another):
                        await read(number)
                    for extent in Extent(0, _SIZE).pieces(MiB):
                        right = content(half)[extent.start : extent.stop]
                        assert bytes(await held.read(extent)) == right
                    await held.close()
            finally:
                await trio.to_thread.run_sync(disk.fail)
            await cache(late)
        with trio.fail_after(20):
            await trio.to_thread.run_sync(store.close)


async def _hang(disk: Disk, **faults: str) -> None:
    """Let the disk hang, and be given up soon; on a busy machine a healthy one is waited for."""
    waiting.use_patience(_PATIENCE_S)
    await trio.to_thread.run_sync(lambda: disk.fail(**faults))


async def _answer(disk: Disk) -> None:
    """Let the disk answer again, and return when what was stuck has come back."""
    await trio.to_thread.run_sync(disk.fail)
    with trio.fail_after(30):
        while waiting.staging_disk().hangs:
            await trio.lowlevel.checkpoint()
    waiting.use_patience(60)


async def test_a_staging_disk_that_hangs_fails_writes_in_time(
    server: EmbeddedServer, disk: Disk, expected_logs: list[str]
) -> None:
    """What was refused is not uploaded, whatever a thread does once the disk answers again."""
    expected_logs += ["the staging directory's disk has not answered for 0.3 s", "not uploaded"]
    server.deploy(REPO, "there", b"there" * 1000)
    server.deploy(REPO, "changed", b"before" * 1000)
    async with composed(server, REPO, writes=WriteSettings(disk.place / "staging")) as fs:

        async def made(name: str) -> int:
            return (await fs.create(ROOT, name, 0o644, os.O_WRONLY, ME))[0].handle

        half, emptied, whole = [await made(name) for name in ("half", "emptied", "whole")]
        changed = (await fs.open(await find(fs, "changed"), os.O_WRONLY)).handle
        for handle in (half, emptied, whole):
            await fs.write(handle, 0, b"1" * 100_000)
        await _hang(disk, all="hang")
        refused: list[Callable[[], Awaitable[object]]] = [
            lambda: fs.write(half, 100_000, b"2" * 100_000),
            lambda: fs.flush(half),
            lambda: fs.write(emptied, 50_000, b"2" * 100_000),
            lambda: fs.write(changed, 0, b"after"),
            lambda: made("new"),
            lambda: fs.flush(whole),
        ]
        with trio.fail_after(30):
            for call in refused:
                with pytest.raises(OSError, match=r"has not answered for 0\.3 s"):
                    await call()
            await fs.release(half)
            assert await everything(fs, "there") == b"there" * 1000
            await fs.rename(ROOT, "there", ROOT, "moved", 0)
        await _answer(disk)
        with trio.fail_after(30):
            await fs.setattr(await find(fs, "emptied"), Change(size=0), emptied)
            await fs.write(emptied, 0, b"3" * 70_000)
            for handle in (emptied, changed, whole):
                await fs.flush(handle)
                await fs.release(handle)
            again = await made("half")
            await fs.write(again, 0, b"4")
            await fs.flush(again)
            await fs.release(again)
    ask = Requests(server)
    stored = {name: ask.get(f"/{REPO}/{name}") for name in ("emptied", "whole", "half", "changed")}
    assert stored["emptied"].body == b"3" * 70_000
    assert stored["whole"].body == b"1" * 100_000
    assert stored["half"].body == b"4"
    assert stored["changed"].body == b"before" * 1000
    assert ask.get(f"/{REPO}/new").status == 404


async def test_a_staging_disk_that_hangs_fails_an_upload_that_is_under_way_in_time(
    server: EmbeddedServer, disk: Disk, expected_logs: list[str]
) -> None:
    """The rest of a large file is read by who sends it, once it is closed."""
    expected_logs += ["the staging directory's disk has not answered for 0.3 s"]
    passing = f"/{REPO}/.jfs-staging-*"
    held = server.faults.add(Fault.hold(passing, method="PUT", after=1))
    asked = server.faults.add(Fault.hold(f"/{REPO}/f", method="PUT", times=1))
    settings = WriteSettings(disk.place / "staging", overlap_from=MiB)
    async with composed(server, REPO, writes=settings) as fs:
        handle = (await fs.create(ROOT, "f", 0o644, os.O_WRONLY, ME))[0].handle
        data = content(1) + content(2) + content(3)
        for offset in range(0, len(data), 131072):
            await fs.write(handle, offset, data[offset : offset + 131072])
        await trio.to_thread.run_sync(held.wait_hit)

        async def flush() -> None:
            with trio.fail_after(30), pytest.raises(OSError, match=r"has not answered for 0\.3 s"):
                await fs.flush(handle)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(flush)
            await trio.to_thread.run_sync(asked.wait_hit)  # whether the server has it
            await _hang(disk, all="hang")
            server.faults.clear()
        await _answer(disk)
        with trio.fail_after(30):
            await fs.flush(handle)
            await fs.release(handle)
    assert Requests(server).get(f"/{REPO}/f").body == data


async def test_a_cache_that_hangs_keeps_no_large_file_from_being_written_and_sent(
    server: EmbeddedServer, disk: Disk, tmp_path: Path
) -> None:
    """Whether it has the beginning of the file is not known then."""
    where = CacheSettings(disk.place / "cache", free_floor_bytes=0)
    store = await trio.to_thread.run_sync(DiskBlockStore, where, Metrics())
    settings = WriteSettings(tmp_path / "staging", overlap_from=MiB)
    async with composed(server, REPO, writes=settings, store=store) as fs:
        handle = (await fs.create(ROOT, "f", 0o644, os.O_WRONLY, ME))[0].handle
        await trio.to_thread.run_sync(partial(disk.fail, all="hang"))
        try:
            with trio.fail_after(30):
                await fs.write(handle, 0, content(1))
                while server.stats.bytes_received < _SIZE:  # noqa: ASYNC110 - it does not tell
                    await trio.sleep(0.01)
                await fs.write(handle, _SIZE, b"more")
        finally:
            await trio.to_thread.run_sync(disk.fail)
        await fs.flush(handle)
        await fs.release(handle)
    assert Requests(server).get(f"/{REPO}/f").body == content(1) + b"more"
    await trio.to_thread.run_sync(store.close)


async def test_a_cache_that_hangs_fails_no_write(
    server: EmbeddedServer, disk: Disk, tmp_path: Path, expected_logs: list[str]
) -> None:
    """What was uploaded is not taken in then; what was asked of it comes in once it answers."""
    expected_logs += ["to take in what was uploaded, has not answered", "not taken into the cache"]
    where = CacheSettings(disk.place / "cache", free_floor_bytes=0)
    store = await trio.to_thread.run_sync(DiskBlockStore, where, Metrics())
    settings = WriteSettings(tmp_path / "staging", overlap_from=MiB)
    reads = replace(ReadSettings(), disk_patience_s=_PATIENCE_S)
    async with composed(server, REPO, writes=settings, store=store, reads=reads) as fs:

        async def made(name: str) -> None:
            handle = (await fs.create(ROOT, name, 0o644, os.O_WRONLY, ME))[0].handle
            await fs.write(handle, 0, name.encode())
            await fs.flush(handle)
            await fs.release(handle)

        await trio.to_thread.run_sync(partial(disk.fail, all="hang"))
        try:
            with trio.fail_after(30):
                for name in ("asked", "spared"):
                    await made(name)
            assert not waiting.staging_disk().hangs
            kept = [each.record.path.name for each in Journal(settings.staging).survey()]
            assert kept == ["asked"]
        finally:
            await trio.to_thread.run_sync(disk.fail)
        with trio.fail_after(30):
            while Journal(settings.staging).survey():  # noqa: ASYNC110 - it does not tell
                await trio.sleep(0.01)
    for name in ("asked", "spared"):
        assert Requests(server).get(f"/{REPO}/{name}").body == name.encode()
    with trio.fail_after(30):
        await trio.to_thread.run_sync(store.close)


async def test_a_staging_disk_that_hangs_holds_up_the_event_loop_for_a_moment_alone(
    server: EmbeddedServer, disk: Disk, expected_logs: list[str]
) -> None:
    """A small write is waited for while its request waits, for milliseconds; then elsewhere."""
    expected_logs += ["the staging directory's disk has not answered for 0.3 s", "not uploaded"]
    async with composed(server, REPO, writes=WriteSettings(disk.place / "staging")) as fs:
        opened, _ = await fs.create(ROOT, "f", 0o644, os.O_WRONLY, ME)
        answers: list[Exception | None] = []
        answered = trio.Event()

        def answer(error: Exception | None) -> None:
            answers.append(error)
            answered.set()

        await fs.write(opened.handle, 0, b"0")
        write = partial(fs.small_writes.write, opened.handle)
        with trio.fail_after(30):
            while not write(0, b"1" * 100_000, answer):
                await trio.lowlevel.checkpoint()  # the disk was slow a moment ago
            await answered.wait()
            await _hang(disk, write="hang")
            answered = trio.Event()
            while not write(100_000, b"2" * 100_000, answer):
                await trio.lowlevel.checkpoint()
            assert answers == [None]
            assert (await fs.getattr(await find(fs, "f"))).size == 100_000  # the loop goes on
            await answered.wait()
            assert "has not answered" in str(answers[1])
            assert not write(0, b"3", answer)
            with pytest.raises(OSError, match="has not answered"):
                await fs.flush(opened.handle)
        await _answer(disk)
        await fs.release(opened.handle)
    assert Requests(server).get(f"/{REPO}/f").status == 404


async def test_the_room_of_a_large_file_is_given_back_beside_the_event_loop(disk: Disk) -> None:
    """Its pages go with its last descriptor, which takes as long as there are many."""
    area = StagingArea(WriteSettings(disk.place / "staging"), "http://s")
    staged = [area.new(RepoPath("repo", "f"), None), area.anonymous()]
    for each in staged:
        each.truncate(64 * MiB)
        each.forget_quietly()
    await trio.to_thread.run_sync(partial(disk.fail, flush="hang"))
    try:
        for each in staged:
            each.close()
    finally:
        await trio.to_thread.run_sync(disk.fail)
    await trio.to_thread.run_sync(area.close)
    with trio.fail_after(30):
        while any(each.file >= 0 for each in staged):  # noqa: ASYNC110 - it does not tell
            await trio.sleep(0.01)


async def test_an_upload_whose_file_cannot_be_read_is_given_up(
    server: EmbeddedServer, disk: Disk, expected_logs: list[str]
) -> None:
    """The server is well, and nobody says otherwise: what others change goes on."""
    expected_logs.append("the staging directory's disk has not answered for 0.3 s")
    server.deploy(REPO, "there", b"there")
    async with composed(server, REPO, writes=WriteSettings(disk.place / "staging")) as fs:
        opened, _ = await fs.create(ROOT, "new", 0o644, os.O_WRONLY, ME)
        await fs.write(opened.handle, 0, b"1" * 500_000)
        await _hang(disk, read="hang")
        with trio.fail_after(30):
            with pytest.raises(OSError, match=r"has not answered for 0\.3 s"):
                await fs.flush(opened.handle)
            await fs.rename(ROOT, "there", ROOT, "moved", 0)
            await fs.symlink(ROOT, "link", "moved", ME)
        await _answer(disk)
        await fs.flush(opened.handle)
        await fs.release(opened.handle)
    assert Requests(server).get(f"/{REPO}/new").body == b"1" * 500_000


async def test_what_is_open_is_removed_and_replaced_whatever_the_staging_disk_does(
    server: EmbeddedServer, disk: Disk, expected_logs: list[str]
) -> None:
    """Who reads it goes on with what is here of it, and gets ESTALE beyond."""
    expected_logs += ["not kept for readers", "has not answered for 0.3 s"]
    faults = [{"all": "EIO"}, {"changes": "EROFS"}, {"write": "ENOSPC"}, {"all": "hang"}]
    for number in range(len(faults)):
        for name in ("removed", "replaced", "new"):
            server.deploy(REPO, f"{name}{number}", f"{name}{number}".encode())
    async with composed(server, REPO, writes=WriteSettings(disk.place / "staging")) as fs:
        for number, fault in enumerate(faults):
            opened = {
                (await fs.open(await find(fs, f"{name}{number}"), os.O_RDONLY)).handle: name
                for name in ("removed", "replaced")
            }
            await _hang(disk, **fault)
            with trio.fail_after(30):
                await fs.unlink(ROOT, f"removed{number}")
                await fs.rename(ROOT, f"new{number}", ROOT, f"replaced{number}", 0)
                for handle, name in opened.items():
                    with suppress(Stale):
                        read = bytes(await fs.read(handle, Extent(0, 100)))
                        assert read == f"{name}{number}".encode()
                    await fs.release(handle)
            await _answer(disk)
            assert await everything(fs, f"replaced{number}") == b"new%d" % number
    ask = Requests(server)
    for number in range(len(faults)):
        assert ask.get(f"/{REPO}/removed{number}").status == 404
        assert ask.get(f"/{REPO}/replaced{number}").body == b"new%d" % number


@pytest.mark.parametrize("fault", [{"unlink": "EIO"}, {"changes": "EROFS"}])
async def test_what_was_removed_while_the_disk_failed_is_not_uploaded_afterwards(
    server: EmbeddedServer, disk: Disk, expected_logs: list[str], fault: dict[str, str]
) -> None:
    expected_logs += ["stays in the journal", "left cannot be looked at"]
    staging = disk.place / "staging"
    writes = WriteSettings(staging, write_back=True, settling_s=3600)
    async with composed(server, REPO, writes=writes) as fs:
        opened, _ = await fs.create(ROOT, "queued", 0o644, os.O_WRONLY, ME)
        await fs.write(opened.handle, 0, b"queued")
        await fs.flush(opened.handle)
        await fs.release(opened.handle)
        assert fs.behind.state.pending == 1
        await trio.to_thread.run_sync(lambda: disk.fail(**fault))
        await fs.unlink(ROOT, "queued")
        assert fs.behind.state.pending == 0
        async with composed(server, REPO, writes=writes) as other:
            await trio.to_thread.run_sync(disk.fail)
            for each in (fs, other):
                assert await each.behind.look() == 0
            assert await names(other, "") == {}
    async with composed(server, REPO, writes=writes) as fs:
        assert fs.behind.state.pending == 0
    assert Requests(server).get(f"/{REPO}/queued").status == 404
    assert Journal(staging).survey() == []


async def test_what_is_kept_for_a_later_start_holds_up_no_answer(
    server: EmbeddedServer, disk: Disk
) -> None:
    credentials = Credentials(token=Secret(server.token))
    root, path = RepoPath(REPO), RepoPath(REPO, "f")
    where = disk.place / "cache"
    asked = FileInfo(path, 5, Checksums(sha256="0" * 64), 0)
    before = Keeper(where, server.url, root, credentials)
    before.named(path, asked, Asked.now())
    assert await before.name(path, lists_all=True) is not None
    await before.close()
    await trio.to_thread.run_sync(lambda: disk.fail(all="hang"))
    keeper = Keeper(where, server.url, root, credentials, patience_s=_PATIENCE_S)
    with trio.fail_after(30):
        for _ in range(100):
            assert await keeper.name(path, lists_all=True) is None
        await keeper.close()
    await trio.to_thread.run_sync(disk.fail)
