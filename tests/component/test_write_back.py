"""--write-back through the facade: what close promises, what waits, what becomes of it."""

import errno
import hashlib
import os
import random
import resource
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from jfs.config import WriteSettings
from jfs.errors import JfsError, NoEntry, NotPermitted, ServerDown, Stale, Unavailable
from jfs.extents import Extent
from jfs.model import RepoPath
from jfs.server import Fault
from jfs.vfs.attributes.stat import Caller, Change
from jfs.vfs.files.queue import may_pass
from jfs.vfs.filesystem import Filesystem
from jfs.vfs.namespace.inodes import ROOT
from jfs.vfs.writing import recovery
from jfs.vfs.writing.area import StagingArea
from jfs.vfs.writing.journal import Entry, Journal
from jfs.vfs.writing.records import Record, State
from jfs.vfs.writing.staging import StagingFile
from tests.component.composed import composed, content, find, names
from tests.component.server_requests import REPO, Requests

ME = Caller(os.getuid(), os.getgid())
ONE, TWO = random.Random(1).randbytes(300_000), random.Random(2).randbytes(200_000)
OLD = b"what the server had"
AT_ONCE = {"settling_s": 0.0, "retry_s": (0.01, 0.05)}
NEVER = {"settling_s": 3600.0}
OUTAGE = ["serving what was known before", "cannot be asked", "is down"]


@asynccontextmanager
async def behind(
    ask: Requests, staging: Path, *, source: str = REPO, **settings: object
) -> AsyncIterator[Filesystem]:
    """A mount with --write-back; it knows its root."""
    writes = WriteSettings(staging, write_back=True, **{**AT_ONCE, **settings})  # type: ignore[arg-type]
    async with composed(ask.server, source, writes=writes, patience_s=0.1) as fs:
        yield fs


def down(ask: Requests) -> None:
    """Let every request fail, as when nobody is there."""
    ask.server.faults.add(Fault.cut("*"))


async def put(fs: Filesystem, name: str, data: bytes, *, folder: int = ROOT, flags: int = 0) -> int:
    """Write a file as ``cp`` does, and close it; return its inode number."""
    try:
        ino = (await fs.lookup(folder, name)).ino
        handle = (await fs.open(ino, os.O_WRONLY | os.O_TRUNC)).handle
    except NoEntry:
        how = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | flags
        opened, attributes = await fs.create(folder, name, 0o644, how, ME)
        handle, ino = opened.handle, attributes.ino
    for offset in range(0, len(data), 100_000):
        await fs.write(handle, offset, data[offset : offset + 100_000])
    await fs.flush(handle)
    await fs.release(handle)
    return ino


async def state(fs: Filesystem, ino: int) -> str:
    return (await fs.getxattr(ino, b"user.jfs.state")).decode()


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what happens behind."""
    with trio.fail_after(20):
        while not condition():  # noqa: ASYNC110 - there is nothing to be told by
            await trio.sleep(0.005)


async def uploaded(fs: Filesystem) -> None:
    await until(lambda: not fs.behind.state.pending)


def journal(staging: Path) -> list[tuple[Record, bytes]]:
    """What is in the journal, as of now, in the order of its paths."""
    found = []
    for seen in Journal(staging).survey():
        data = (staging / f"{seen.name}.data").read_bytes()
        found.append((seen.record, data))
    return sorted(found, key=lambda each: (str(each[0].path), each[0].created_ns))


def files(staging: Path, pattern: str) -> list[Path]:
    return sorted(staging.glob(pattern))


async def test_close_waits_for_this_disk_alone(
    ask: Requests, staging: Path, expected_logs: list[str]
) -> None:
    """The server is down: close returns, the bytes are read, listed, kept; then they are up."""
    expected_logs += OUTAGE
    async with behind(ask, staging) as fs:
        await names(fs, "")
        down(ask)
        ino = await put(fs, "f", ONE, flags=os.O_EXCL)
        await fs.setxattr(ino, b"user.env", b"staging")
        assert await state(fs, ino) == "pending"
        assert (await fs.getattr(ino)).size == len(ONE)
        assert await content(fs, "f") == ONE
        assert await names(fs, "") == {"f": ino}
        ((record, data),) = journal(staging)
        assert (record.state, record.path.path, data) == (State.PENDING, "f", ONE)
        assert record.properties == {"env": ("staging",)}
        ask.server.faults.clear()
        await uploaded(fs)
        assert ask.get(f"/{REPO}/f").body == ONE
        assert ask.properties("f") == {"env": ["staging"]}
        assert await state(fs, ino) == "clean"
        assert (await fs.lookup(ROOT, "f")).ino == ino
        assert await content(fs, "f") == ONE
    assert journal(staging) == []


async def test_the_next_mount_goes_on(
    ask: Requests, staging: Path, expected_logs: list[str]
) -> None:
    """What waits is shown and read by the next mount, with the server down too, and uploaded."""
    expected_logs += OUTAGE
    ask.server.deploy(REPO, "d/old", OLD, {"env": ["production"]})
    ask.server.deploy(REPO, "d/other", b"")
    async with behind(ask, staging, **NEVER) as fs:
        await names(fs, "d")
        new = await put(fs, "new", ONE, folder=await find(fs, "d"))
        await fs.setxattr(new, b"user.stage", b"1")
        old = await put(fs, "old", TWO, folder=await find(fs, "d"))
        times = (await fs.getattr(new)).mtime_ns, (await fs.getattr(old)).mtime_ns
    ask.server.faults.add(Fault.status(507, method="PUT"))
    async with behind(ask, staging, **NEVER) as fs:
        await names(fs, "d")
        down(ask)
        assert (await names(fs, "d")).keys() == {"new", "old", "other"}
        for name, ino, data, mtime_ns in (
            ("new", new, ONE, times[0]),
            ("old", old, TWO, times[1]),
        ):
            found = await fs.lookup(await find(fs, "d"), name)
            assert (found.ino, found.size) == (ino, len(data))
            assert abs(found.mtime_ns - mtime_ns) < 2_000_000_000
            assert await state(fs, ino) == "pending"
            assert await content(fs, f"d/{name}") == data
        assert await fs.getxattr(new, b"user.stage") == b"1"
        ask.server.faults.clear()
        fs.behind.wake()
        await uploaded(fs)
        assert await fs.getxattr(old, b"user.env") == b"production"
    assert ask.get(f"/{REPO}/d/new").body == ONE
    assert ask.get(f"/{REPO}/d/old").body == TWO
    assert ask.properties("d/new") == {"stage": ["1"]}
    assert ask.properties("d/old") == {"env": ["production"]}
    assert journal(staging) == []


async def test_only_the_last_content_is_uploaded(ask: Requests, staging: Path) -> None:
    async with behind(ask, staging, **NEVER) as fs:
        ino = await put(fs, "f", ONE)
        assert await put(fs, "f", TWO) == ino
        assert await put(fs, "f", ONE[:1000]) == ino
        assert [data for _, data in journal(staging)] == [ONE[:1000]]
        ask.server.stats.reset()
        fs.behind.wake()
        await uploaded(fs)
        assert ask.server.stats.bytes_received < 1001
    assert ask.get(f"/{REPO}/f").body == ONE[:1000]


async def test_what_close_has_promised_outlives_what_is_written_over_it(
    ask: Requests, staging: Path
) -> None:
    """A mount that dies while newer content is written uploads what was closed last."""
    async with behind(ask, staging, **NEVER) as fs:
        ino = await put(fs, "f", ONE)
        handle = (await fs.open(ino, os.O_WRONLY)).handle
        await fs.write(handle, 5, b"half of it")
        assert (await fs.read(handle, Extent(0, 15))) == ONE[:5] + b"half of it"
        states = {record.state: data for record, data in journal(staging)}
        assert states[State.PENDING] == ONE
        assert states[State.WRITING][:15] == ONE[:5] + b"half of it"
    async with behind(ask, staging) as fs:
        await uploaded(fs)
        assert await content(fs, "f") == ONE
    assert ask.get(f"/{REPO}/f").body == ONE
    ((record, _),) = journal(staging)
    assert record.state is State.WRITING


async def test_what_was_closed_waits_also_while_newer_content_is_written(
    ask: Requests, staging: Path
) -> None:
    """``jfs umount --wait`` waits for it: it is on no server, and its successor may come late."""
    held = ask.server.faults.add(Fault.stall(f"/{REPO}/f", method="PUT", times=1))
    async with behind(ask, staging) as fs:
        ino = await put(fs, "f", ONE)
        await trio.to_thread.run_sync(held.wait_hit)
        handle = (await fs.open(ino, os.O_WRONLY | os.O_TRUNC)).handle
        await fs.write(handle, 0, TWO)
        await until(lambda: not fs.behind.state.uploading)  # it was cut
        waiting = fs.behind.state
        assert (waiting.pending, waiting.size) == (1, len(ONE))
        assert waiting.oldest_ns == journal(staging)[0][0].queued_ns
        held.release()
        await fs.flush(handle)
        await fs.release(handle)
        await uploaded(fs)
        assert ask.get(f"/{REPO}/f").body == TWO


async def test_an_upload_is_cut_by_who_writes_anew(ask: Requests, staging: Path) -> None:
    """Whoever writes waits for no upload, and what it left on the server is no conflict."""
    held = ask.server.faults.add(Fault.stall(f"/{REPO}/f", method="PUT", after=1, times=1))
    async with behind(ask, staging) as fs:
        ino = await put(fs, "f", ONE)
        await trio.to_thread.run_sync(held.wait_hit)
        assert ask.get(f"/{REPO}/f").body == ONE  # its answer has not come
        with trio.fail_after(10):
            await put(fs, "f", TWO)
        held.release()
        await uploaded(fs)
        assert await state(fs, ino) == "clean"
        assert await content(fs, "f") == TWO
    assert ask.get(f"/{REPO}/f").body == TWO
    assert journal(staging) == []


async def test_names_of_what_waits_change_without_the_server(
    ask: Requests, staging: Path, expected_logs: list[str]
) -> None:
    """Programs save under another name and rename: that works in an outage, and survives it."""
    expected_logs += OUTAGE
    ask.server.deploy(REPO, "model", OLD, {"env": ["production"]})
    async with behind(ask, staging, **NEVER) as fs:
        await names(fs, "")
        down(ask)
        await put(fs, "model.tmp", ONE)
        await fs.rename(ROOT, "model.tmp", ROOT, "model", 0)
        await put(fs, "other.tmp", ONE)
        await fs.rename(ROOT, "other.tmp", ROOT, "other", 0)
        await put(fs, "over", b"never uploaded")
        await put(fs, "over.tmp", TWO)
        await fs.rename(ROOT, "over.tmp", ROOT, "over", 0)
        await put(fs, "gone", TWO)
        await fs.unlink(ROOT, "gone")
        assert await content(fs, "model") == ONE
    left = {record.path.path: data for record, data in journal(staging)}
    assert left == {"model": ONE, "other": ONE, "over": TWO}
    ask.server.faults.clear()
    async with behind(ask, staging) as fs:
        await uploaded(fs)
        assert (await names(fs, "")).keys() == left.keys()
    assert {name: ask.get(f"/{REPO}/{name}").body for name in left} == left
    assert ask.properties("model") == {"env": ["production"]}
    assert ask.get(f"/{REPO}/model.tmp").status == 404


async def test_removing_what_the_server_has_needs_the_server(
    ask: Requests, staging: Path, expected_logs: list[str]
) -> None:
    expected_logs += OUTAGE
    ask.server.deploy(REPO, "f", OLD)
    async with behind(ask, staging, **NEVER) as fs:
        await names(fs, "")
        ino = await put(fs, "f", ONE)
        down(ask)
        with pytest.raises(Unavailable):
            await fs.unlink(ROOT, "f")
        with pytest.raises(JfsError):
            await fs.rename(ROOT, "f", ROOT, "g", 0)
        assert await state(fs, ino) == "pending"
        assert await content(fs, "f") == ONE
        ask.server.faults.clear()
        with trio.fail_after(30):
            while True:
                try:
                    await fs.unlink(ROOT, "f")
                except ServerDown:  # until a probe has found that it is up
                    await trio.lowlevel.checkpoint()
                else:
                    break
        assert await names(fs, "") == {}
    assert ask.get(f"/{REPO}/f").status == 404
    assert journal(staging) == []


async def test_fsync_waits_for_the_server(
    ask: Requests, staging: Path, expected_logs: list[str]
) -> None:
    expected_logs += OUTAGE
    async with behind(ask, staging, **NEVER) as fs:
        await names(fs, "")
        opened, attributes = await fs.create(ROOT, "f", 0o644, os.O_RDWR, ME)
        await fs.write(opened.handle, 0, ONE)
        await fs.fsync(opened.handle)
        assert ask.get(f"/{REPO}/f").body == ONE
        await fs.write(opened.handle, 0, TWO)
        down(ask)
        with pytest.raises(Unavailable):
            await fs.fsync(opened.handle)
        await fs.flush(opened.handle)
        assert await state(fs, attributes.ino) == "pending"
        with pytest.raises(Unavailable):
            await fs.fsync(opened.handle)
        assert await state(fs, attributes.ino) == "pending"
        ask.server.faults.clear()
        while True:  # a mount finds out in the background that the server is back
            try:
                await fs.fsync(opened.handle)
                break
            except ServerDown:
                await trio.sleep(0.02)
        assert await state(fs, attributes.ino) == "clean"
        await fs.release(opened.handle)
        await uploaded(fs)
    assert ask.get(f"/{REPO}/f").body == TWO + ONE[len(TWO) :]
    assert journal(staging) == []


def test_a_disk_here_that_fails_is_no_refusal() -> None:
    """The journal could not note a try, or the bytes not be read: what is queued waits for that."""
    assert may_pass(OSError(errno.ENOSPC, "No space left on device"))
    assert may_pass(OSError(errno.EIO, "Input/output error"))
    assert may_pass(OSError(errno.EROFS, "Read-only file system"))
    assert not may_pass(OSError(errno.EBADF, "Bad file descriptor"))


@pytest.mark.parametrize(
    ("fault", "comes_through"),
    [
        pytest.param(fault, through, id=name)
        for name, fault, through in (
            ("403", lambda: Fault.status(403, f"/{REPO}/f", method="PUT"), False),
            ("409", lambda: Fault.status(409, f"/{REPO}/f", method="PUT"), False),
            ("413 twice", lambda: Fault.status(413, f"/{REPO}/f", method="PUT", times=2), True),
            ("401 thrice", lambda: Fault.status(401, f"/{REPO}/f", method="PUT", times=3), True),
            ("503", lambda: Fault.status(503, f"/{REPO}/f", method="PUT", times=9), True),
            ("hotel", lambda: Fault.garbage(f"/{REPO}/f", method="PUT", times=3), True),
        )
    ],
)
async def test_what_is_refused_for_good_is_given_up(
    ask: Requests,
    staging: Path,
    fault: Callable[[], Fault],
    comes_through: bool,
    expected_logs: list[str],
) -> None:
    """One line in the log, its reason in the journal; what may pass is tried until it does."""
    async with behind(ask, staging) as fs:
        await names(fs, "")
        ask.server.faults.add(fault())
        await put(fs, "f", ONE)
        if not comes_through:
            expected_logs.append(f"{REPO}/f: not uploaded, see `jfs recover ls`")
        await uploaded(fs)
        ask.server.faults.clear()
        assert fs.behind.state.refused == (0 if comes_through else 1)
        if comes_through:
            assert await content(fs, "f") == ONE
        else:
            with pytest.raises(NoEntry):
                await fs.lookup(ROOT, "f")
    if comes_through:
        assert ask.get(f"/{REPO}/f").body == ONE
        assert journal(staging) == []
        return
    ((record, data),) = journal(staging)
    assert (record.state, data) == (State.FAILED, ONE)
    assert record.error


async def test_an_older_content_never_replaces_a_newer_one(
    ask: Requests, staging: Path, expected_logs: list[str]
) -> None:
    """What came to the server meanwhile stays, also if the mount that queued it has died."""
    expected_logs.append("not uploaded, see `jfs recover ls`")
    ask.server.deploy(REPO, "f", OLD)
    async with behind(ask, staging, **NEVER) as fs:
        await names(fs, "")
        await put(fs, "f", ONE)
        await put(fs, "new", ONE)
    ask.server.deploy(REPO, "f", b"somebody else's")
    ask.server.deploy(REPO, "new", b"somebody else's")
    async with behind(ask, staging) as fs:
        await uploaded(fs)
        ino = (await fs.lookup(ROOT, "f")).ino
        assert b"was changed on the server" in await fs.getxattr(ino, b"user.jfs.last_error")
        assert await content(fs, "f") == b"somebody else's"
    assert ask.get(f"/{REPO}/f").body == b"somebody else's"
    assert ask.get(f"/{REPO}/new").body == b"somebody else's"
    assert [(record.state, data) for record, data in journal(staging)] == [
        (State.FAILED, ONE),
        (State.FAILED, ONE),
    ]


async def test_a_mount_takes_over_what_another_has_left(ask: Requests, staging: Path) -> None:
    """An entry has one owner; when that has gone, a mount that runs takes it, of its place only."""
    ask.server.create_repository("other-local")
    ask.server.deploy(REPO, "d/f", OLD)
    async with behind(ask, staging, adopt_s=0.02) as second:
        await names(second, "d")
        known = await find(second, "d/f")
        async with (
            behind(ask, staging, source="", **NEVER) as first,
            composed(ask.server, "other-local", writes=WriteSettings(staging, adopt_s=0.01)),
        ):
            await put(first, "f", ONE, folder=await find(first, f"{REPO}/d"))
            assert (await second.lookup(await find(second, "d"), "f")).ino == known
            await trio.sleep(0.1)
            assert not second.behind.state.pending
        await until(lambda: not journal(staging))
        assert await find(second, "d/f") != known  # other content is another inode
        assert await content(second, "d/f") == ONE
    assert ask.get(f"/{REPO}/d/f").body == ONE


async def test_the_end_tries_once_more(
    ask: Requests, staging: Path, expected_logs: list[str]
) -> None:
    expected_logs += OUTAGE
    async with behind(ask, staging, **NEVER) as fs:
        await names(fs, "")
        await put(fs, "f", ONE)
        await put(fs, "g", ONE)
        with trio.fail_after(10):
            await fs.drain()
        assert ask.get(f"/{REPO}/f").body == ask.get(f"/{REPO}/g").body == ONE
        down(ask)
        await put(fs, "h", ONE)
        with trio.fail_after(10):
            await fs.drain()  # in vain, and it does not wait for the server
    assert [record.path.path for record, _ in journal(staging)] == ["h"]


async def test_a_full_queue_uploads_as_files_are_closed(
    ask: Requests, staging: Path, expected_logs: list[str]
) -> None:
    expected_logs += OUTAGE
    async with behind(ask, staging, queue_most=1, **NEVER) as fs:
        await names(fs, "")
        await put(fs, "f", ONE)
        await put(fs, "g", ONE)
        assert ask.get(f"/{REPO}/f").status == 404
        assert ask.get(f"/{REPO}/g").body == ONE
        down(ask)
        with pytest.raises(Unavailable):
            await put(fs, "h", ONE)
        ask.server.faults.clear()
        fs.behind.wake()
        await uploaded(fs)
    assert ask.get(f"/{REPO}/f").body == ONE


async def test_one_file_that_fails_holds_up_no_other(ask: Requests, staging: Path) -> None:
    ask.server.create_repository("other-local")
    async with behind(ask, staging, source="") as fs:
        await names(fs, "")
        ask.server.faults.add(Fault.status(500, f"/{REPO}/bad", method="PUT"))
        ask.server.faults.add(Fault.cut("/other-local/*", method="PUT"))
        here, there = await find(fs, REPO), await find(fs, "other-local")
        await put(fs, "bad", ONE, folder=here)
        await put(fs, "f", ONE, folder=there)
        for number in range(10):
            await put(fs, f"good{number}", ONE, folder=here)
            await until(lambda: fs.behind.state.pending == 2 and bool(fs.behind.state.error))
        ask.server.faults.clear()
        await uploaded(fs)
    assert journal(staging) == []


async def test_a_failed_write_shows_what_was_closed_before(ask: Requests, staging: Path) -> None:
    """Half a file, on a disk that is full: what close has promised is still there, and goes up."""
    async with behind(ask, staging, **NEVER) as fs:
        ino = await put(fs, "f", ONE)
        handle = (await fs.open(ino, os.O_WRONLY | os.O_TRUNC)).handle
        await fs.write(handle, 0, TWO)
        with pytest.raises(JfsError):  # beyond the disk
            await fs.write(handle, 1 << 60, b"x")
        file = fs._files.find(fs._tree.find(ino))
        assert file is not None
        file.broken = OSError(28, "no space left")
        with pytest.raises(OSError, match="no space"):
            await fs.flush(handle)
        await fs.release(handle)
        assert await content(fs, "f") == ONE
        assert await state(fs, ino) == "pending"
        fs.behind.wake()
        await uploaded(fs)
    assert ask.get(f"/{REPO}/f").body == ONE
    ((record, _),) = journal(staging)  # what there is of the rest, until its room is wanted
    assert record.half


async def test_a_time_that_is_set_after_close_goes_along(ask: Requests, staging: Path) -> None:
    """As rsync, tar and cp -p do it; it survives the mount."""
    async with behind(ask, staging, **NEVER) as fs:
        ino = await put(fs, "f", ONE)
        await fs.setattr(ino, Change(mtime_ns=1_500_000_000_000_000_000))
        ask.server.faults.add(Fault.status(507, method="PUT"))
    async with behind(ask, staging) as fs:
        assert (await fs.lookup(ROOT, "f")).mtime_ns == 1_500_000_000_000_000_000
        ask.server.faults.clear()
        await uploaded(fs)
    assert (
        ask.get(f"/api/storage/{REPO}/f").json()["lastModified"].startswith("2017-07-14T02:40:00")
    )


REFUSED = random.Random(3).randbytes(1000)


def left_by_a_crash(staging: Path, server: str) -> dict[str, bytes]:
    """Leave in the journal what a mount leaves that dies between any two steps.

    Returns:
        What close has promised of each file: that comes to the server, whole.
    """
    area = StagingArea(WriteSettings(staging, write_back=True), server)
    made: list[Entry] = []
    pending: dict[str, object] = {"state": State.PENDING, "queued_ns": 1}

    def note(file: StagingFile, record: dict[str, object]) -> StagingFile:
        assert file.entry is not None
        file.entry.update(**record)
        made.append(file.entry)
        return file

    def staged(name: str, data: bytes, **record: object) -> StagingFile:
        file = area.new(RepoPath(REPO, name), None, made=True)
        file.write(0, data)
        return note(file, record)

    def newer(older: StagingFile, size: int, **record: object) -> None:
        note(area.successor(older, size), record)

    staged("unclosed", REFUSED)  # its data is on disk, its promise is not
    staged("kept", ONE, **pending)
    newer(staged("beside", ONE, **pending), 1000)  # newer content is being written
    newer(staged("both", ONE, **pending), 10, **pending)  # and promised: the older is still there
    newer(staged("synced", ONE, **pending), 20, state=State.DEPLOYING)  # and uploaded by fsync
    staged("adopted", ONE, **pending)  # it is on the server, and its data in the cache
    made[-1].data_path.unlink()
    staged("over", REFUSED, **pending)  # a rename that is noted, over what still is there
    over = {"path": RepoPath(REPO, "over"), "supersedes": (made[-1].name,)}
    note(staged("over.tmp", TWO, **pending), over)
    staged("damaged", ONE, **pending)
    (staging / f"{made[-1].name}.json.new").write_text("{half of a rec")
    for entry in made:
        entry.close()
    area.close()
    return {
        "kept": ONE,
        "beside": ONE,
        "damaged": ONE,
        "both": ONE[:10],
        "synced": ONE[:20],
        "over": TWO,
    }


async def test_a_mount_that_dies_between_any_two_steps(ask: Requests, staging: Path) -> None:
    promised = await trio.to_thread.run_sync(left_by_a_crash, staging, ask.server.url)
    async with behind(ask, staging) as fs:
        await uploaded(fs)
        assert (await names(fs, "")).keys() == promised.keys()
        for name, data in promised.items():
            assert await content(fs, name) == data
    for name, data in promised.items():
        assert ask.get(f"/{REPO}/{name}").body == data
    assert ask.get(f"/{REPO}/unclosed").status == 404
    assert {(record.path.path, record.state) for record, _ in journal(staging)} == {
        ("unclosed", State.WRITING),
        ("beside", State.WRITING),
    }


async def test_what_was_saved_by_rename_is_saved_so_again(ask: Requests, staging: Path) -> None:
    """A file that waits in the place of the server's is replaced by the next save."""
    ask.server.deploy(REPO, "f", OLD)
    async with behind(ask, staging, **NEVER) as fs:
        for data in (ONE, TWO):
            await put(fs, "f.tmp", data)
            await fs.rename(ROOT, "f.tmp", ROOT, "f", 0)
            assert await content(fs, "f") == data
        fs.behind.wake()
        await uploaded(fs)
    assert ask.get(f"/{REPO}/f").body == TWO
    assert journal(staging) == []


async def test_a_save_replaces_one_whose_answer_was_lost(ask: Requests, staging: Path) -> None:
    """What the server got of a file that waits still is ours: the next save is no conflict."""
    held = ask.server.faults.add(Fault.stall(f"/{REPO}/f", method="PUT", after=1, times=1))
    async with behind(ask, staging) as fs:
        await put(fs, "f", ONE)
        await trio.to_thread.run_sync(held.wait_hit)
        handle = (await fs.open(await find(fs, "f"), os.O_WRONLY)).handle
        await fs.write(handle, 0, b"x")  # cuts the upload
        assert ask.get(f"/{REPO}/f").body == ONE
        await put(fs, "f.tmp", TWO)
        await fs.rename(ROOT, "f.tmp", ROOT, "f", 0)
        await fs.release(handle)
        held.release()
        await uploaded(fs)
    assert ask.get(f"/{REPO}/f").body == TWO
    assert journal(staging) == []


async def test_what_cannot_be_looked_at_once_is_taken_over_later(
    ask: Requests, staging: Path, expected_logs: list[str]
) -> None:
    """A disk that refuses one thing for a moment costs nothing that earlier mounts have left."""
    expected_logs.append("what earlier mounts left cannot be looked at")
    async with behind(ask, staging, **NEVER) as fs:
        await put(fs, "f", ONE)
        await put(fs, "g", TWO)
    last = files(staging, "*.json")[-1]
    (blocked := last.with_name(f"{last.name}.new")).mkdir()
    async with behind(ask, staging, adopt_s=0.02) as fs:
        blocked.rmdir()
        await until(lambda: not journal(staging))
    assert ask.get(f"/{REPO}/f").body == ONE
    assert ask.get(f"/{REPO}/g").body == TWO


async def test_what_was_given_up_is_not_uploaded_by_who_has_it_open(
    ask: Requests, staging: Path, expected_logs: list[str]
) -> None:
    """Its bytes are in the journal: what the handle would stage again are not those."""
    ask.server.deploy(REPO, "f", OLD)
    expected_logs.append(f"{REPO}/f: not uploaded, see `jfs recover ls`")
    async with behind(ask, staging) as fs:
        ask.server.faults.add(Fault.status(403, f"/{REPO}/f", method="PUT"))
        other = (await fs.open(await find(fs, "f"), os.O_RDWR)).handle
        await fs.flush(other)  # a copy of its descriptor is left
        await put(fs, "f", ONE[: len(OLD)])
        await uploaded(fs)
        ask.server.faults.clear()
        ask.server.stats.reset()
        for last_words in (fs.fsync, fs.flush):
            with pytest.raises(Stale):
                await last_words(other)
        await fs.release(other)
        await uploaded(fs)
        assert ask.server.stats.bytes_received == 0
    ((record, data),) = journal(staging)
    assert (record.state, data) == (State.FAILED, ONE[: len(OLD)])


async def test_a_mount_drops_what_is_its_own(ask: Requests, staging: Path) -> None:
    """``jfs recover drop`` tells every mount; another that shares the directory leaves it be."""
    async with behind(ask, staging, **NEVER) as first, behind(ask, staging, **NEVER) as second:
        await put(first, "f", ONE)
        (waiting,) = Journal(staging).survey()
        Journal(staging).want_no_more(waiting.name)
        assert await second.behind.look() == 0
        assert await first.behind.look() == 0
    assert journal(staging) == []
    assert not files(staging, "*.drop")


async def test_what_nobody_wants_is_not_taken_over(ask: Requests, staging: Path) -> None:
    """Its mount ended before it heard of it: the next one drops it, and shows it to nobody."""
    async with behind(ask, staging, **NEVER) as fs:
        await put(fs, "f", ONE)
        await put(fs, "g", TWO)
        (name,) = [seen.name for seen in Journal(staging).survey() if seen.record.path.path == "f"]
        Journal(staging).want_no_more(name)
    async with behind(ask, staging) as fs:
        await uploaded(fs)
        assert (await names(fs, "")).keys() == {"g"}
    assert ask.get(f"/{REPO}/f").status == 404
    assert journal(staging) == []
    assert not files(staging, "*.drop")


async def test_what_was_queued_after_a_wish_to_drop_is_not_dropped(
    ask: Requests, staging: Path
) -> None:
    """``jfs recover drop`` means what it was told of, not what was saved over it meanwhile."""
    async with behind(ask, staging, **NEVER) as fs:
        ino = await put(fs, "f", ONE)
        file = fs._files.find(fs._tree.find(ino))
        assert file is not None
        assert file.staged is not None
        older = file.staged.entry
        assert older is not None
        await put(fs, "f", TWO)
        await fs._files.discard(file, older)
        assert await state(fs, ino) == "pending"
        assert await content(fs, "f") == TWO
    assert [(record.state, data) for record, data in journal(staging)] == [(State.PENDING, TWO)]


@pytest.mark.parametrize("offset", [0, 5000])
async def test_a_file_that_is_emptied_after_a_write_that_failed_is_whole_again(
    ask: Requests, staging: Path, offset: int
) -> None:
    """What a program does on a disk that is full: it makes room, empties the file, begins anew."""
    async with behind(ask, staging) as fs:
        opened, attributes = await fs.create(ROOT, "f", 0o644, os.O_WRONLY | os.O_CREAT, ME)
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))  # the disk takes no byte
        try:
            with pytest.raises(OSError, match="too large"):
                await fs.write(opened.handle, offset, ONE)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert (await fs.getattr(attributes.ino)).size == 0
        await fs.setattr(attributes.ino, Change(size=0), opened.handle)
        await fs.write(opened.handle, 0, TWO)
        await fs.flush(opened.handle)
        await fs.release(opened.handle)
        await uploaded(fs)
    assert ask.get(f"/{REPO}/f").body == TWO


async def test_properties_that_a_deploy_does_not_carry_outlive_a_try_that_failed(
    ask: Requests, staging: Path
) -> None:
    """The first try put the bytes there, which drops them; the next has to know them still."""
    ask.server.deploy(REPO, "f", OLD, {"note": ["a;b"], "env": ["production"]})
    fails = ask.server.faults.add(Fault.status(503, f"*/{REPO}/f*", method="PATCH"))
    async with behind(ask, staging) as fs:
        await names(fs, "")
        await put(fs, "f", ONE)
        await until(lambda: bool(fs.behind.state.error))
        assert ask.get(f"/{REPO}/f").body == ONE
        ask.server.faults.remove(fails)
        fs.behind.wake()
        await uploaded(fs)
    assert ask.properties("f") == {"note": ["a;b"], "env": ["production"]}


async def test_a_property_that_goes_between_two_uploads_of_one_handle_stays_gone(
    ask: Requests, staging: Path
) -> None:
    ask.server.deploy(REPO, "f", OLD, {"env": ["production"]})
    async with behind(ask, staging) as fs:
        handle = (await fs.open(await find(fs, "f"), os.O_WRONLY)).handle
        await fs.write(handle, 0, ONE)
        await fs.fsync(handle)
        assert ask.patch(f"/api/metadata/{REPO}/f", {"props": {"env": None}}).status == 204
        await fs.write(handle, 0, TWO)
        await fs.fsync(handle)
        await fs.release(handle)
    assert ask.properties("f") == {}


@pytest.mark.parametrize("there", [None, b"somebody else's"])
async def test_a_rename_away_from_a_place_leaves_what_somebody_put_there(
    ask: Requests, staging: Path, there: bytes | None
) -> None:
    """It waits in the place of what the server had: that goes, and nothing that came since."""
    ask.server.deploy(REPO, "f", OLD)
    async with behind(ask, staging, **NEVER) as fs:
        await names(fs, "")
        await put(fs, "f.tmp", ONE)
        await fs.rename(ROOT, "f.tmp", ROOT, "f", 0)
        if there is None:
            assert ask.delete(f"/{REPO}/f").status == 204
        else:
            ask.server.deploy(REPO, "f", there)
        await fs.rename(ROOT, "f", ROOT, "g", 0)
        fs.behind.wake()
        await uploaded(fs)
    assert ask.get(f"/{REPO}/g").body == ONE
    found = ask.get(f"/{REPO}/f")
    assert (found.status, found.body) == (200, there) if there else found.status == 404


async def test_a_rename_of_what_waits_deletes_nothing_where_nothing_is_to_be_deleted(
    ask: Requests, staging: Path
) -> None:
    ask.server.deploy(REPO, "f", OLD)
    async with behind(ask, staging, no_delete=True, **NEVER) as fs:
        await names(fs, "")
        await put(fs, "f.tmp", ONE)
        await fs.rename(ROOT, "f.tmp", ROOT, "f", 0)
        with pytest.raises(NotPermitted):
            await fs.rename(ROOT, "f", ROOT, "g", 0)
        assert await content(fs, "f") == ONE
    assert ask.get(f"/{REPO}/f").body == OLD


async def test_what_was_closed_over_something_queued_waits_for_a_mount_of_its_place(
    ask: Requests, staging: Path
) -> None:
    """Uploaded alone, it would leave what it replaces in the queue, to go up over it later."""
    async with behind(ask, staging, source=f"{REPO}/a", **NEVER) as fs:
        ino = await put(fs, "f", ONE)
        handle = (await fs.open(ino, os.O_WRONLY | os.O_TRUNC)).handle
        await fs.write(handle, 0, TWO)
    (newer,) = Journal(staging).left_behind([State.WRITING])
    newer.update(state=State.DEPLOYING)  # as far as its upload came
    newer.close()
    async with composed(ask.server, f"{REPO}/b", writes=WriteSettings(staging)) as other:
        writing = other._writing
        assert writing is not None
        await recovery.resume(writing.area, other._store, other.claims.held)
    async with behind(ask, staging, source=f"{REPO}/a", last_writer_wins=True) as fs:
        await uploaded(fs)
    assert ask.get(f"/{REPO}/a/f").body == TWO
    assert journal(staging) == []


async def test_what_power_has_cut_does_not_take_the_place_of_what_was_promised(
    ask: Requests, staging: Path
) -> None:
    """What was queued is on this disk; what was being uploaded in its place may not be."""
    held = ask.server.faults.add(Fault.stall(f"/{REPO}/f", method="PUT"))
    async with behind(ask, staging, **NEVER) as fs:
        ino = await put(fs, "f", ONE)
        handle = (await fs.open(ino, os.O_WRONLY | os.O_TRUNC)).handle
        await fs.write(handle, 0, TWO)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fs.fsync, handle)
            await trio.to_thread.run_sync(held.wait_hit)
            nursery.cancel_scope.cancel()
    held.release()
    ask.server.faults.clear()
    (cut,) = [seen for seen in Journal(staging).survey() if seen.record.state is State.DEPLOYING]
    assert cut.record.sha256 == hashlib.sha256(TWO).hexdigest()
    os.truncate(staging / f"{cut.name}.data", 1000)
    async with behind(ask, staging) as fs:
        await uploaded(fs)
    assert ask.get(f"/{REPO}/f").body == ONE
    assert [(record.state, len(data)) for record, data in journal(staging)] == [
        (State.FAILED, 1000)
    ]
