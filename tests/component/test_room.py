"""Room on the staging directory's disk, a real one that is small: tmpfs."""

import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from jfs.config import WriteSettings
from jfs.errors import Unsupported
from jfs.extents import Extent, MiB
from jfs.vfs.attributes.stat import Change
from jfs.vfs.filesystem import Filesystem
from jfs.vfs.namespace.inodes import ROOT
from jfs.vfs.writing.journal import Journal
from tests.component.composed import close, composed, find, names
from tests.component.server_requests import REPO, Requests
from tests.component.test_writing import ME, kept, put, writing

SIZE = 8 * MiB  # of the disk
HALF = random.Random(1).randbytes(SIZE // 2)
KEEP_SIZE, PUNCH_HOLE, COLLAPSE, ZERO = 1, 2, 8, 16
FULL = "No space left"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "disk"
    place.mkdir()
    options = f"size={SIZE},nr_inodes=40,mode=700"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "x", place], check=True)
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def used(disk: Path) -> int:
    status = os.statvfs(disk)
    return (status.f_blocks - status.f_bfree) * status.f_frsize


async def made(fs: Filesystem, name: str = "f") -> int:
    opened, _ = await fs.create(ROOT, name, 0o644, os.O_RDWR, ME)
    return opened.handle


async def test_room_is_kept_for_who_asks_for_it(ask: Requests, disk: Path) -> None:
    async with writing(ask, disk) as fs:
        first, second = await made(fs), await made(fs, "second")
        await fs.reserving.reserve(first, 0, 0, 5 * MiB)
        assert used(disk) >= 5 * MiB
        assert (await fs.getattr(await find(fs, "f"))).size == 5 * MiB
        with pytest.raises(OSError, match=FULL):  # before a byte is written
            await fs.reserving.reserve(second, 0, 0, 5 * MiB)
        with pytest.raises(OSError, match=FULL):
            await fs.reserving.reserve(second, KEEP_SIZE, 0, 5 * MiB)
        with pytest.raises(OSError, match=FULL):
            await fs.setattr(await find(fs, "second"), Change(size=5 * MiB), second)
        await fs.reserving.reserve(second, KEEP_SIZE, 0, 2 * MiB)
        await fs.write(second, 0, b"second")  # none of that is a write that has failed
        await fs.write(first, 3, b"written")
        await close(fs, first)
        await close(fs, second)
    assert ask.content("f") == bytes(3) + b"written" + bytes(5 * MiB - 10)
    assert ask.content("second") == b"second"
    assert kept(disk) == []
    assert used(disk) < MiB


async def test_what_waits_for_its_upload_has_its_room_already(ask: Requests, disk: Path) -> None:
    """Newer content is written into it: there is room for what comes to it, which is enough."""
    settings = WriteSettings(disk, settle_s=1000.0)
    async with composed(ask.server, REPO, writes=settings) as fs:
        handle = await made(fs)
        for start in range(0, len(HALF), len(HALF) // 4):
            await fs.write(handle, start, HALF[start : start + len(HALF) // 4])
            await close(fs, handle)
            handle = (await fs.open(await find(fs, "f"), os.O_RDWR)).handle
        assert fs.behind.state.pending == 1
        await fs.reserving.reserve(handle, KEEP_SIZE, 0, SIZE - MiB)
        assert used(disk) >= SIZE - MiB
        await fs.reserving.reserve(handle, 0, 0, len(HALF))
        with pytest.raises(OSError, match=FULL):
            await fs.reserving.reserve(handle, KEEP_SIZE, 0, SIZE)
        assert used(disk) < len(HALF) + MiB
        assert fs.behind.state.pending == 1  # none of that has changed it
        await fs.fsync(handle)
        await close(fs, handle)
    assert ask.content("f") == HALF
    assert kept(disk) == []


async def test_bytes_are_made_zeros(ask: Requests, disk: Path) -> None:
    ask.server.deploy(REPO, "f", HALF)
    want = bytearray(HALF)
    async with writing(ask, disk) as fs:
        handle = (await fs.open(await find(fs, "f"), os.O_RDWR)).handle
        await fs.reserving.reserve(handle, PUNCH_HOLE | KEEP_SIZE, len(HALF), 100)  # beyond the end
        await fs.reserving.reserve(handle, 0, 0, 100)  # there is so much
        assert used(disk) == 0  # nothing has changed
        for mode, start in (PUNCH_HOLE | KEEP_SIZE, 5000), (ZERO, 2_000_001):
            await fs.reserving.reserve(handle, mode, start, 300_000)
            want[start : start + 300_000] = bytes(300_000)
        await fs.reserving.reserve(handle, ZERO, len(HALF) - 10, 20)
        want[-10:] = bytes(20)
        assert bytes(await fs.read(handle, Extent(0, SIZE))) == want
        for mode in (COLLAPSE, 32, 64, PUNCH_HOLE, 128):
            with pytest.raises(Unsupported):
                await fs.reserving.reserve(handle, mode, 0, 4096)
        await close(fs, handle)
    assert ask.content("f") == want


async def test_what_does_not_fit_is_not_fetched(
    ask: Requests, disk: Path, expected_logs: list[str]
) -> None:
    expected_logs.append("are to be replaced, and the staging directory's disk has no room for as")
    ask.server.deploy(REPO, "f", HALF)
    (disk / "other").write_bytes(HALF + bytes(MiB))
    async with writing(ask, disk) as fs:
        handle = (await fs.open(await find(fs, "f"), os.O_RDWR)).handle
        ask.server.stats.reset()
        with pytest.raises(OSError, match=FULL):
            await fs.reserving.reserve(handle, KEEP_SIZE, 0, 100)  # it is about to be changed
        with pytest.raises(OSError, match=FULL):
            await fs.write(handle, 0, b"1")
        assert ask.server.stats.requests == 0
        opened = await fs.open(await find(fs, "f"), os.O_WRONLY | os.O_TRUNC)
        await fs.write(opened.handle, 0, b"short")  # who empties a file may write less
        await close(fs, opened.handle)
        await fs.release(handle)
    assert ask.content("f") == b"short"


async def test_half_a_file_is_listed_until_its_room_is_wanted(
    ask: Requests, disk: Path, expected_logs: list[str]
) -> None:
    expected_logs.append("has no room for as")
    ask.server.deploy(REPO, "known", HALF)
    async with writing(ask, disk) as fs:
        (disk / "other").write_bytes(HALF + bytes(MiB))
        handle = await made(fs)
        await fs.write(handle, 0, HALF[: 2 * MiB])
        with pytest.raises(OSError, match=FULL):
            await fs.write(handle, 2 * MiB, HALF)
        with pytest.raises(OSError, match=FULL):
            await close(fs, handle)
        (half,) = Journal(disk).survey()
        assert half.record.half
        assert half.record.path.name == "f"
        assert FULL in half.record.error
        assert half.size >= 2 * MiB
        assert "f" not in await names(fs, "")
        os.truncate(disk / "other", len(HALF))
        opened = await fs.open(await find(fs, "known"), os.O_WRONLY | os.O_TRUNC)
        await close(fs, opened.handle)  # nobody knows whether it will be as large again
        (disk / "other").unlink()
        await put(fs, "small", b"1")
        assert len(Journal(disk).survey()) == 1
        await put(fs, "g", HALF + HALF[: 3 * MiB])
        assert Journal(disk).survey() == []
    assert ask.tree() == {"/g": len(HALF) + 3 * MiB, "/small": 1, "/known": 0}


async def test_a_file_that_cannot_be_made_leaves_no_name(ask: Requests, disk: Path) -> None:
    async with writing(ask, disk) as fs:
        with ExitStack() as stack:
            for number in range(os.statvfs(disk).f_ffree):
                stack.callback((disk / str(number)).unlink, missing_ok=True)
                (disk / str(number)).touch()
            for left in range(2):  # room for nothing, for the bytes but not for their record
                with pytest.raises(OSError, match=FULL):
                    await made(fs, f"f{left}")
                assert await names(fs, "") == {}
                (disk / str(left)).unlink()
        await put(fs, "f0", b"1")
    assert kept(disk) == []


@pytest.mark.parametrize("mode", [0o700, 0o777])
async def test_a_staging_directory_that_was_removed_is_made_again(
    ask: Requests, tmp_path: Path, mode: int, expected_logs: list[str]
) -> None:
    expected_logs.append("its staged file was removed")
    staging = tmp_path / "deep" / "staging"
    staging.mkdir(parents=True)
    staging.chmod(mode)
    async with writing(ask, staging) as fs:
        handles = [await made(fs, name) for name in ("open", "deployed")]
        for handle in handles:
            await fs.write(handle, 0, b"before")
        await fs.fsync(handles[1])
        shutil.rmtree(tmp_path / "deep")
        for handle in handles:
            await fs.write(handle, 6, b" and after")
            await close(fs, handle)
        await put(fs, "new", b"new")
        place = staging if mode == 0o700 else staging / f"jfs-{os.geteuid()}"
        assert place.stat().st_mode & 0o777 == 0o700
    assert ask.content("open") == ask.content("deployed") == b"before and after"
    assert ask.content("new") == b"new"
