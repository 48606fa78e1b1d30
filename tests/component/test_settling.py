"""--settle through the facade: what is opened again and again waits until it rests."""

import contextlib
import errno
import json
import os
import random
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from jfs.config import WriteSettings
from jfs.errors import JfsError, NoEntry, NotEmpty, QuotaExceeded, Replaced
from jfs.extents import Extent
from jfs.server import Fault
from jfs.vfs.attributes.stat import Caller, Change
from jfs.vfs.filesystem import Filesystem
from jfs.vfs.namespace.inodes import ROOT
from jfs.vfs.writing.journal import Journal
from jfs.vfs.writing.records import State
from tests.component.composed import composed, content, find, names
from tests.component.server_requests import REPO, Requests

ME = Caller(os.getuid(), os.getgid())
OUTAGE = ["serving what was known before", "cannot be asked", "is down"]
PATH = f"/{REPO}/f"


@asynccontextmanager
async def settling(ask: Requests, staging: Path, **settings: object) -> AsyncIterator[Filesystem]:
    given = {"settle_s": 2.0, "retry_s": (1.0, 1.0), **settings}
    writes = WriteSettings(staging, **given)  # type: ignore[arg-type]
    async with composed(ask.server, REPO, writes=writes, patience_s=0.1) as fs:
        yield fs


async def put(
    fs: Filesystem,
    name: str,
    data: bytes,
    offset: int | None = None,
    flags: int = 0,
    parent: int = ROOT,
) -> int:
    """Open a file, make it if it is not there, write at an offset or its end, close it."""
    try:
        attributes = await fs.lookup(parent, name)
        try:
            handle = (await fs.open(attributes.ino, os.O_RDWR | flags)).handle
        except Replaced:  # the kernel looks again
            attributes = await fs.lookup(parent, name)
            handle = (await fs.open(attributes.ino, os.O_RDWR | flags)).handle
    except NoEntry:
        opened, attributes = await fs.create(parent, name, 0o644, os.O_RDWR, ME)
        handle = opened.handle
    try:
        end = (await fs.getattr(attributes.ino)).size
        await fs.write(handle, end if offset is None else offset, data)
        await fs.flush(handle)
    finally:
        await fs.release(handle)
    return attributes.ino


async def waiting(fs: Filesystem, name: str = "f") -> bytes:
    """Have a file wait, whose closes until then are on the server; return its content."""
    for data in (b"one", b"two", b"three"):
        ino = await put(fs, name, data)
    assert await state(fs, ino) == "pending"
    return b"onetwothree"


async def waiting_no_more(fs: Filesystem) -> bytes:
    """As ``waiting``, where nothing waits."""
    for data in (b"one", b"two", b"three"):
        await put(fs, "f", data)
    return b"onetwothree"


async def healed(fs: Filesystem) -> None:
    """Wait for what is tried again, on a clock that goes."""
    with trio.fail_after(30):
        while fs.behind.state.pending:
            fs.behind.wake()
            await trio.sleep(0.01)


async def state(fs: Filesystem, ino: int) -> str:
    return (await fs.getxattr(ino, b"user.jfs.state")).decode()


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what happens behind; the clock stands still."""
    while not condition():
        await trio.lowlevel.checkpoint()


async def uploaded(fs: Filesystem, clock: MockClock, after_s: float = 2.0) -> None:
    clock.jump(after_s)
    await until(lambda: not fs.behind.state.pending)


def journal(staging: Path) -> list[tuple[State, bytes]]:
    """What is in the journal, as of now, by age."""
    found = sorted(Journal(staging).survey(), key=lambda each: each.record.created_ns)
    return [(each.record.state, (staging / f"{each.name}.data").read_bytes()) for each in found]


def files(staging: Path) -> set[str]:
    """Say of which kinds the files in the journal are, each of which there must be one of."""
    found = [path.suffix for path in staging.iterdir()]
    assert len(found) == len(set(found))
    return set(found)


def boot_of(staging: Path, change: str | None = None) -> str:
    """Return what the only record says of the run of the machine; let it say something else."""
    (path,) = staging.glob("*.json")
    record = json.loads(path.read_text())
    if change is not None:
        path.write_text(json.dumps({**record, "boot": change}))
    return str(record["boot"])


def blocked(staging: Path, kind: str = "*.undo") -> Callable[[], object]:
    """Let what was kept of the only file be unreadable; return what ends that."""
    (path,) = staging.glob(kind)
    moved = path.rename(staging / "away")
    path.mkdir()

    def end() -> None:
        path.rmdir()
        moved.rename(path)

    return end


def die(fs: Filesystem) -> None:
    """Let the end of the mount upload nothing: its process was killed."""
    assert fs._files.queue is not None
    fs._files.queue._closed = True
    fs._files._writer = None


async def test_a_log_that_is_opened_for_each_line_is_uploaded_when_it_rests(
    ask: Requests, staging: Path, mock_clock: MockClock
) -> None:
    """The first two closes upload; what comes soon after waits, and is read here as it is."""
    async with settling(ask, staging) as fs:
        lines = [b'{"step": %d, "loss": 0.123456789}\n' % step for step in range(200)]
        ino = await put(fs, "f", lines[0])
        assert ask.get(PATH).body == lines[0]
        await put(fs, "f", lines[1])
        assert ask.get(PATH).body == b"".join(lines[:2])
        ask.server.stats.reset()
        for line in lines[2:]:
            mock_clock.jump(0.01)
            await put(fs, "f", line)
        whole = b"".join(lines)
        assert ask.server.stats.bytes_received == 0
        assert ask.server.stats.requests <= 2  # what was there when the third one opened it
        assert await state(fs, ino) == "pending"
        assert (await fs.getattr(ino)).size == len(whole)
        assert await content(fs, "f") == whole
        assert fs.behind.state.pending == 1
        mock_clock.jump(1.9)
        await put(fs, "f", b"last\n")  # it has not rested
        await uploaded(fs, mock_clock)
        assert ask.get(PATH).body == whole + b"last\n"
        assert ask.server.stats.bytes_received <= 1.05 * len(whole)
        assert await state(fs, ino) == "clean"
        assert await content(fs, "f") == whole + b"last\n"
    assert journal(staging) == []


async def test_every_close_uploads_what_is_opened_later_or_with_settle_0(
    ask: Requests, staging: Path, mock_clock: MockClock
) -> None:
    async with settling(ask, staging) as fs:
        for count in range(1, 6):
            await put(fs, "f", b"x")
            assert ask.get(PATH).body == b"x" * count
            mock_clock.jump(2.1)
    async with settling(ask, staging, settle_s=0.0) as fs:
        for count in range(1, 6):
            await put(fs, "g", b"x")
            assert ask.get(f"/{REPO}/g").body == b"x" * count


async def test_tensors_that_are_added_one_by_one_are_one_upload(
    ask: Requests, staging: Path, mock_clock: MockClock
) -> None:
    """As onnx saves external data: "ab" to make the file, then "r+b" and a seek for each."""
    choose = random.Random(1)
    async with settling(ask, staging) as fs:
        whole = b""
        await put(fs, "f", b"")
        ask.server.stats.reset()
        for _ in range(64):
            tensor = choose.randbytes(20_000)
            await put(fs, "f", tensor, len(whole))
            whole += tensor
        await uploaded(fs, mock_clock)
        assert ask.get(PATH).body == whole
        assert ask.server.stats.bytes_received <= 1.05 * len(whole)


async def test_parts_that_come_in_any_order_are_one_upload(
    ask: Requests, staging: Path, mock_clock: MockClock
) -> None:
    """As downloaders do it, into a file that is as long as it will be; each part is written once.

    What was promised before is kept without a copy of the file for each.
    """
    choose = random.Random(2)
    whole, part = choose.randbytes(1_280_000), 20_000
    async with settling(ask, staging) as fs:
        ino = await put(fs, "f", whole[:part], 0)
        await fs.setattr(ino, Change(size=len(whole)))
        ask.server.stats.reset()
        offsets = list(range(part, len(whole), part))
        choose.shuffle(offsets)
        for offset in offsets:
            await put(fs, "f", whole[offset : offset + part], offset)
            assert files(staging) == {".data", ".json"}
        await uploaded(fs, mock_clock)
        assert ask.get(PATH).body == whole
        assert ask.server.stats.bytes_received <= 1.05 * len(whole)


async def test_a_file_that_is_emptied_and_written_again_and_again(
    ask: Requests, staging: Path, mock_clock: MockClock
) -> None:
    async with settling(ask, staging) as fs:
        await waiting(fs)
        ask.server.stats.reset()
        for number in range(50):
            await put(fs, "f", b"status %d" % number, 0, os.O_TRUNC)
        assert files(staging) == {".data", ".json"}
        await uploaded(fs, mock_clock)
        assert ask.get(PATH).body == b"status 49"
        assert ask.server.stats.bytes_received < 20


async def test_fsync_uploads_what_waits(
    ask: Requests, staging: Path, mock_clock: MockClock
) -> None:
    """Through a handle to read, too, as ``sync FILE`` and ``jfs sync-file`` have it."""
    async with settling(ask, staging) as fs:
        data = await waiting(fs)
        ino = await find(fs, "f")
        handle = (await fs.open(ino, os.O_RDONLY)).handle
        ask.server.faults.add(Fault.status(507, PATH, method="PUT"))
        with pytest.raises(JfsError):
            await fs.fsync(handle)
        assert await state(fs, ino) == "pending"
        ask.server.faults.clear()
        await fs.fsync(handle)
        assert ask.get(PATH).body == data
        assert await state(fs, ino) == "clean"
        await fs.release(handle)
        ask.server.stats.reset()
        await uploaded(fs, mock_clock)
        assert ask.server.stats.requests == 0
    assert journal(staging) == []


async def test_fsync_of_what_is_written_again_uploads_that(
    ask: Requests, staging: Path, mock_clock: MockClock
) -> None:
    async with settling(ask, staging) as fs:
        await waiting(fs)
        handle = (await fs.open(await find(fs, "f"), os.O_RDWR)).handle
        await fs.write(handle, 0, b"ONE")
        await fs.fsync(handle)
        assert ask.get(PATH).body == b"ONEtwothree"
        await fs.write(handle, 3, b"TWO")
        die(fs)
    async with settling(ask, staging) as fs:
        assert await content(fs, "f") == b"ONEtwothree"
        await until(lambda: not fs.behind.state.pending)
    assert ask.get(PATH).body == b"ONEtwothree"
    assert journal(staging) == [(State.WRITING, b"ONETWOthree")]


async def test_a_rename_uploads_first_and_once(
    ask: Requests, staging: Path, mock_clock: MockClock
) -> None:
    """Save-by-rename of what was written in pieces: the new name is whole from the first moment."""
    ask.server.deploy(REPO, "model", b"old", {"env": ["production"]})
    async with settling(ask, staging) as fs:
        await names(fs, "")
        data = await waiting(fs, "model.tmp")
        ask.server.faults.add(Fault.status(413, f"/{REPO}/model.tmp", method="PUT"))
        with pytest.raises(QuotaExceeded):
            await fs.rename(ROOT, "model.tmp", ROOT, "model", 0)
        assert ask.get(f"/{REPO}/model").body == b"old"
        assert await content(fs, "model.tmp") == data
        ask.server.faults.clear()
        deploys = ask.server.faults.add(Fault.set_headers({}, f"/{REPO}/*", method="PUT"))
        await fs.rename(ROOT, "model.tmp", ROOT, "model", 0)
        assert ask.get(f"/{REPO}/model").body == data
        assert ask.properties("model") == {"env": ["production"]}
        await uploaded(fs, mock_clock)
        assert deploys.hits == 1
        assert await state(fs, await find(fs, "model")) == "clean"
    assert journal(staging) == []


async def test_the_rename_of_a_folder_uploads_what_waits_in_it(
    ask: Requests, staging: Path, mock_clock: MockClock
) -> None:
    ask.server.deploy(REPO, "d/f", b"one")
    async with settling(ask, staging) as fs:
        ino = await find(fs, "d/f")
        for offset in range(3):
            handle = (await fs.open(ino, os.O_WRONLY)).handle
            await fs.write(handle, 3 + offset, b"+")
            await fs.flush(handle)
            await fs.release(handle)
        assert await state(fs, ino) == "pending"
        await fs.rename(ROOT, "d", ROOT, "e", 0)
        assert ask.get(f"/{REPO}/e/f").body == b"one+++"


async def test_what_is_removed_or_replaced_while_it_waits_is_never_uploaded(
    ask: Requests, staging: Path, mock_clock: MockClock
) -> None:
    async with settling(ask, staging) as fs:
        await waiting(fs, "gone")
        await waiting(fs, "over")
        await put(fs, "other", b"other")
        ask.server.stats.reset()
        await fs.unlink(ROOT, "gone")
        await fs.rename(ROOT, "other", ROOT, "over", 0)
        await uploaded(fs, mock_clock)
        assert ask.server.stats.bytes_received == 0
        assert await names(fs, "") == {"over": await find(fs, "over")}
    assert ask.get(f"/{REPO}/gone").status == 404
    assert ask.get(f"/{REPO}/over").body == b"other"
    assert journal(staging) == []


async def test_properties_and_times_of_what_waits_are_kept(
    ask: Requests, staging: Path, mock_clock: MockClock
) -> None:
    async with settling(ask, staging) as fs:
        data = await waiting(fs)
        ino = await find(fs, "f")
        await fs.setxattr(ino, b"user.env", b"production")
        await fs.setattr(ino, Change(mtime_ns=1_500_000_000_000_000_000))
        assert await fs.getxattr(ino, b"user.env") == b"production"
        await uploaded(fs, mock_clock)
        assert ask.get(PATH).body == data
        assert ask.properties("f") == {"env": ["production"]}
        assert await fs.getxattr(ino, b"user.env") == b"production"
    told = ask.get(f"/api/storage/{REPO}/f").json()["lastModified"]
    assert told.startswith("2017-07-14T02:40:00")


async def test_what_never_rests_is_uploaded_now_and_then(
    ask: Requests, staging: Path, mock_clock: MockClock
) -> None:
    """A close that comes a minute after the first that waited uploads; a large file's later."""
    async with settling(ask, staging, settle_rate=100) as fs:
        data = await waiting(fs)
        for _ in range(59):
            mock_clock.jump(1)
            await put(fs, "f", b".")
        assert ask.get(PATH).body == data[:6]
        mock_clock.jump(1)
        await put(fs, "f", b".")
        assert ask.get(PATH).body == data + b"." * 60
        await put(fs, "g", b"x" * 10_000)
        for second in range(1, 99):
            await put(fs, "g", b".")
            mock_clock.jump(1)
            assert len(ask.get(f"/{REPO}/g").body) == 10_001, second
        for _ in range(10):
            await put(fs, "g", b".")
            mock_clock.jump(1)
        assert len(ask.get(f"/{REPO}/g").body) > 10_090


async def test_what_never_rests_in_an_outage_waits_on(
    ask: Requests, staging: Path, expected_logs: list[str]
) -> None:
    expected_logs += OUTAGE
    async with settling(ask, staging, settle_s=3600.0, settle_most_s=0.0) as fs:
        data = await waiting_no_more(fs)
        assert ask.get(PATH).body == data  # each close uploads: it waits too long at once
        ino = await find(fs, "f")
        handle = (await fs.open(ino, os.O_RDWR)).handle
        await fs.write(handle, 0, b"ONE")
        ask.server.faults.add(Fault.cut("*"))
        await fs.flush(handle)
        assert await state(fs, ino) == "pending"
        await fs.release(handle)
        ask.server.faults.clear()
        await healed(fs)
    assert ask.get(PATH).body == b"ONE" + data[3:]
    assert journal(staging) == []


async def test_a_refusal_of_what_waits_is_told(
    ask: Requests, staging: Path, expected_logs: list[str]
) -> None:
    """By the close that uploads since it never rests; and as of all that is uploaded behind."""
    expected_logs.append(f"{REPO}/f: not uploaded, see `jfs recover ls`")
    async with settling(ask, staging, settle_s=3600.0, settle_most_s=0.0) as fs:
        data = await waiting_no_more(fs)
        ask.server.faults.add(Fault.status(403, PATH, method="PUT"))
        with pytest.raises(JfsError):
            await put(fs, "f", b"four")
        await healed(fs)
        assert await content(fs, "f") == data
        assert await fs.getxattr(await find(fs, "f"), b"user.jfs.last_error")
    assert journal(staging) == [(State.FAILED, data + b"four")]


async def test_an_outage_lets_it_wait_and_it_heals(
    ask: Requests, staging: Path, expected_logs: list[str]
) -> None:
    """What was tried and failed may wait for long: it is on disk for good then."""
    expected_logs += OUTAGE
    async with settling(ask, staging, settle_s=3600.0, retry_s=(0.01, 0.01)) as fs:
        data = await waiting(fs)
        ask.server.faults.add(Fault.cut("*"))
        assert boot_of(staging)
        fs.behind.wake()
        while boot_of(staging):  # noqa: ASYNC110 - there is nothing to be told by
            await trio.sleep(0.01)
        assert await state(fs, await find(fs, "f")) == "pending"
        await put(fs, "f", b"four")
        ask.server.faults.clear()
        await healed(fs)
    assert ask.get(PATH).body == data + b"four"
    assert journal(staging) == []


async def test_a_write_that_the_disk_refuses_leaves_what_was_closed(
    ask: Requests, staging: Path, mock_clock: MockClock
) -> None:
    async with settling(ask, staging) as fs:
        data = await waiting(fs)
        ino = await find(fs, "f")
        handle = (await fs.open(ino, os.O_RDWR)).handle
        await fs.write(handle, 1, b"half of it, and longer")
        file = fs._files.find(fs._tree.find(ino))
        assert file is not None
        file.broken = OSError(errno.ENOSPC, "no space left")
        with pytest.raises(OSError, match="no space"):
            await fs.flush(handle)
        await fs.release(handle)
        assert await content(fs, "f") == data
        assert await state(fs, ino) == "pending"
        await uploaded(fs, mock_clock)
    assert ask.get(PATH).body == data
    assert journal(staging) == []


async def test_an_upload_under_way_is_cut_by_who_writes_again(
    ask: Requests, staging: Path, mock_clock: MockClock
) -> None:
    async with settling(ask, staging) as fs:
        data = await waiting(fs)
        held = ask.server.faults.add(Fault.stall(PATH, method="PUT", times=1))
        mock_clock.jump(2)
        await trio.to_thread.run_sync(held.wait_hit)
        await put(fs, "f", b"four")
        held.release()
        await uploaded(fs, mock_clock)
    assert ask.get(PATH).body == data + b"four"
    assert journal(staging) == []


@pytest.mark.parametrize("seed", range(6))
async def test_what_close_has_promised_outlives_what_is_written_into_it(
    ask: Requests, staging: Path, mock_clock: MockClock, seed: int
) -> None:
    """A mount that dies while newer content is written: the next uploads what was closed last."""
    choose = random.Random(seed)
    async with settling(ask, staging) as fs:
        shown = bytearray(await waiting(fs))
        promised, sessions = bytes(shown), choose.randrange(1, 5)
        for session in range(sessions):
            handle = (await fs.open(await find(fs, "f"), os.O_RDWR)).handle
            for _ in range(choose.randrange(1, 8)):
                offset, size = choose.randrange(3000), choose.randrange(2000)
                if choose.random() < 0.3:
                    await fs.setattr(await find(fs, "f"), Change(size=offset), handle)
                    shown[offset:] = bytes(max(0, offset - len(shown)))
                    continue
                data = bytes(size) if choose.random() < 0.2 else choose.randbytes(size)
                await fs.write(handle, offset, data)
                if data:
                    shown[len(shown) :] = bytes(max(0, offset - len(shown)))
                    shown[offset : offset + size] = data
            got = await fs.read(handle, Extent(0, 1 << 20))
            assert bytes(got) == bytes(shown)
            if session + 1 < sessions or choose.random() < 0.3:
                await fs.flush(handle)
                promised = bytes(shown)
                await fs.release(handle)
        die(fs)
    async with settling(ask, staging) as fs:
        assert await content(fs, "f") == promised
        await until(lambda: not fs.behind.state.pending)
        assert await content(fs, "f") == promised
    assert ask.get(PATH).body == promised
    left = [(State.WRITING, bytes(shown))] if bytes(shown) != promised else []
    assert [each for each in journal(staging) if each[1] != promised] == left


async def test_one_file_that_cannot_be_put_back_holds_up_no_other(
    ask: Requests, staging: Path, mock_clock: MockClock, expected_logs: list[str]
) -> None:
    expected_logs.append("cannot be put back yet")
    async with settling(ask, staging) as fs:
        for name in "fg":
            await waiting(fs, name)
        handle = (await fs.open(await find(fs, "f"), os.O_RDWR)).handle
        await fs.write(handle, 0, b"newer")
        die(fs)
    kept = blocked(staging)
    async with settling(ask, staging) as fs:
        await until(lambda: not fs.behind.state.pending)
        assert ask.get(f"/{REPO}/g").body == b"onetwothree"
        assert await content(fs, "f") == b"onetwo"
        kept()
        assert await fs.behind.look() == 1
        await until(lambda: not fs.behind.state.pending)
    assert ask.get(PATH).body == b"onetwothree"
    assert journal(staging) == [(State.WRITING, b"newerothree")]


async def test_what_was_not_on_disk_when_the_machine_stopped_waits_for_a_person(
    ask: Requests, staging: Path, mock_clock: MockClock
) -> None:
    async with settling(ask, staging) as fs:
        data = await waiting(fs)
        die(fs)
    assert boot_of(staging, "another")
    async with settling(ask, staging) as fs:
        assert fs.behind.state.pending == 0
        assert await content(fs, "f") == data[:6]
    ((state, kept),) = journal(staging)
    assert (state, kept) == (State.FAILED, data)
    assert ask.get(PATH).body == data[:6]


async def test_the_end_of_a_mount_uploads_what_waits(
    ask: Requests, staging: Path, mock_clock: MockClock
) -> None:
    async with settling(ask, staging) as fs:
        data = await waiting(fs)
        await fs.drain()
        assert ask.get(PATH).body == data
    assert journal(staging) == []


async def test_the_next_mount_that_may_write_goes_on(
    ask: Requests, staging: Path, mock_clock: MockClock
) -> None:
    async with settling(ask, staging) as fs:
        data = await waiting(fs)
        die(fs)
    async with composed(ask.server, REPO, read_only=True) as fs:
        assert await content(fs, "f") == data[:6]
    async with settling(ask, staging, settle_s=0.0) as fs:
        assert await content(fs, "f") == data
        await until(lambda: not fs.behind.state.pending)
    assert ask.get(PATH).body == data


async def test_what_two_mounts_append_to_in_turn_is_uploaded_at_each_close(
    ask: Requests, staging: Path, tmp_path: Path, mock_clock: MockClock
) -> None:
    """Each finds what the other wrote, which is another file: no close of it counts."""
    async with settling(ask, staging) as one, settling(ask, tmp_path / "other") as two:
        for turn in range(12):
            fs = one if turn % 2 == 0 else two
            for _ in range(1 + turn % 3 // 2):  # twice in a row, too
                await put(fs, "f", b"%02d\n" % turn)
            assert ask.get(PATH).body.endswith(b"%02d\n" % turn)
    lines = ask.get(PATH).body.split()
    assert sorted(set(lines)) == [b"%02d" % turn for turn in range(12)]
    assert journal(staging) == journal(tmp_path / "other") == []


async def test_others_change_the_artifact_while_it_waits(
    ask: Requests, staging: Path, mock_clock: MockClock, expected_logs: list[str]
) -> None:
    expected_logs.append("not uploaded, see `jfs recover ls`")
    async with settling(ask, staging) as fs:
        data = await waiting(fs)
        ask.server.deploy(REPO, "f", b"somebody else's")
        await uploaded(fs, mock_clock)
    assert ask.get(PATH).body == b"somebody else's"
    assert journal(staging) == [(State.FAILED, data)]


async def test_a_full_queue_uploads_as_files_are_closed(
    ask: Requests, staging: Path, mock_clock: MockClock
) -> None:
    async with settling(ask, staging, queue_most=1) as fs:
        await waiting(fs)
        for count in range(1, 5):
            await put(fs, "g", b"x")
            assert ask.get(f"/{REPO}/g").body == b"x" * count
        await put(fs, "f", b"four")
        assert ask.get(PATH).body == b"onetwothreefour"


async def test_newer_content_that_was_being_uploaded_is_put_back_to_nothing_else(
    ask: Requests, staging: Path, mock_clock: MockClock
) -> None:
    """It was written into what waits at first, and is a file of its own once that was emptied."""
    newer = b"newer, and longer than what waits"
    async with settling(ask, staging) as fs:
        await waiting(fs)
        handle = (await fs.open(await find(fs, "f"), os.O_RDWR)).handle
        await fs.write(handle, 0, b"ONE")
        await fs.setattr(await find(fs, "f"), Change(size=0), handle)
        await fs.write(handle, 0, newer)
        held = ask.server.faults.add(Fault.stall(PATH, method="PUT", times=1))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fs.fsync, handle)
            await trio.to_thread.run_sync(held.wait_hit)
            nursery.cancel_scope.cancel()
        die(fs)
    held.release()
    async with settling(ask, staging) as fs:
        await until(lambda: not fs.behind.state.pending)
    assert ask.get(PATH).body == newer
    assert journal(staging) == []


async def test_what_waits_for_a_server_that_is_down_outlives_an_orderly_end(
    ask: Requests, staging: Path, expected_logs: list[str]
) -> None:
    """Also what was never tried, as others of its repository were in vain: machines restart."""
    expected_logs.extend(OUTAGE)
    async with settling(ask, staging, settle_s=600.0, retry_s=(600.0, 600.0)) as fs:
        data = [await waiting(fs, f"f{number}") for number in range(6)]
        ask.server.faults.add(Fault.cut("*"))
        await fs.drain()
    assert [kept for _, kept in journal(staging)] == data
    assert {each.record.boot for each in Journal(staging).survey()} == {""}


async def test_what_cannot_be_put_back_is_not_uploaded_half(
    ask: Requests, staging: Path, mock_clock: MockClock, expected_logs: list[str]
) -> None:
    async with settling(ask, staging) as fs:
        data = await waiting(fs)
        handle = (await fs.open(await find(fs, "f"), os.O_RDWR)).handle
        await fs.write(handle, 0, b"ONE")
        end = blocked(staging, "*.json")
        with pytest.raises(IsADirectoryError):
            await fs.setattr(await find(fs, "f"), Change(size=0), handle)
        end()
        with pytest.raises(IsADirectoryError):
            await fs.flush(handle)
        await fs.release(handle)
        assert await content(fs, "f") == data
        await uploaded(fs, mock_clock)
    assert ask.get(PATH).body == data


async def test_a_folder_in_which_something_waits_is_not_empty(
    ask: Requests, staging: Path, mock_clock: MockClock
) -> None:
    """Also if others have removed from the server all that is there of it."""
    async with settling(ask, staging) as fs:
        folder = (await fs.mkdir(ROOT, "d", 0o755, ME)).ino
        inner = (await fs.mkdir(folder, "inner", 0o755, ME)).ino
        for data in (b"one", b"two", b"three"):
            ino = await put(fs, "f", data, parent=inner)
        assert await state(fs, ino) == "pending"
        assert ask.delete(f"/{REPO}/d/inner").status == 204
        for parent, name in ((folder, "inner"), (ROOT, "d")):
            with pytest.raises(NotEmpty):
                await fs.rmdir(parent, name)
        with contextlib.suppress(NoEntry):  # the server has removed it, too
            await fs.unlink(inner, "f")
    assert journal(staging) == []


async def test_what_fsync_has_uploaded_waits_no_more_and_nor_does_the_rest(
    ask: Requests, staging: Path
) -> None:
    """The repository takes uploads again: nobody waits for the pause after those that failed."""
    async with settling(ask, staging, settle_s=600.0, retry_s=(600.0, 600.0)) as fs:
        for name in ("f", "g"):
            await waiting(fs, name)
        ask.server.faults.add(Fault.status(507, f"/{REPO}/*", method="PUT"))
        await fs.drain()
        assert fs.behind.state.pending == 2
        ask.server.faults.clear()
        opened = await fs.open(await find(fs, "f"), os.O_RDONLY)
        await fs.fsync(opened.handle)
        await fs.release(opened.handle)
        with trio.fail_after(30):
            await until(lambda: not fs.behind.state.pending)
    assert ask.get(f"/{REPO}/g").body == b"onetwothree"


async def test_what_never_rests_is_told_that_there_is_no_room_and_waits_on(
    ask: Requests, staging: Path
) -> None:
    """It may pass, but who writes can do something about it; nothing is lost meanwhile."""
    limits: dict[str, float] = {"settle_s": 3600.0, "settle_most_s": 0.0}
    async with settling(ask, staging, **limits, retry_s=(600.0, 600.0)) as fs:
        data = await waiting_no_more(fs)
        ask.server.faults.add(Fault.status(507, PATH, method="PUT"))
        for line in (b"four", b"five", b"six"):
            with pytest.raises(QuotaExceeded):
                await put(fs, "f", line)
            data += line
            assert await state(fs, await find(fs, "f")) == "pending"
        assert await content(fs, "f") == data
        ask.server.faults.clear()
        await healed(fs)
    assert ask.get(PATH).body == data
    assert journal(staging) == []


@pytest.mark.parametrize("is_told", [False, True])
async def test_what_was_removed_from_the_staging_directory_waits_for_nothing(
    ask: Requests, staging: Path, is_told: bool, expected_logs: list[str]
) -> None:
    """Whatever cleans up there: nobody can promise what would go with this process."""
    expected_logs += ["its staged file was removed", "its journal cannot be written"]
    async with settling(ask, staging, settle_s=3600.0, retry_s=(600.0, 600.0)) as fs:
        data = await waiting(fs)
        if is_told:  # a try that failed: the journal promised it for good
            ask.server.faults.add(Fault.status(507, PATH, method="PUT"))
            await fs.drain()
            ask.server.faults.clear()
        handle = (await fs.open(await find(fs, "f"), os.O_RDWR)).handle
        await fs.write(handle, 0, b"ONE")
        shutil.rmtree(staging)
        ask.server.faults.add(Fault.status(507, PATH, method="PUT", times=1))
        with pytest.raises(QuotaExceeded):
            await fs.flush(handle)
        await fs.release(handle)
        assert await content(fs, "f") == data
        await healed(fs)
        assert ask.get(PATH).body == data
        await put(fs, "f", b"four")
        await healed(fs)
    assert ask.get(PATH).body == data + b"four"
