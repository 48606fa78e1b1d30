"""Rename, unlink, create and close of one path come one after the other, whatever is under way."""

import os
import random
import threading
from contextlib import suppress
from pathlib import Path

import pytest
import trio
import trio.testing

from jfs import threads
from jfs.errors import AccessDenied, JfsError, NoEntry, Replaced
from jfs.extents import Extent
from jfs.server import Fault
from jfs.vfs.filesystem import Filesystem
from jfs.vfs.namespace.inodes import ROOT
from jfs.vfs.writing.journal import Journal
from tests.component.composed import close, content, find, names
from tests.component.server_requests import REPO, Requests
from tests.component.test_writing import DATA, ME, PATH, kept, put, writing


async def hit(fault: Fault) -> None:
    await trio.to_thread.run_sync(fault.wait_hit, limiter=trio.CapacityLimiter(1))


async def test_what_is_renamed_stays_known_though_the_kernel_forgets_it_meanwhile(
    ask: Requests, staging: Path
) -> None:
    """Somebody looks the old name up, which is another's by then; the first inode is forgotten."""
    ask.server.deploy(REPO, "a", b"old")
    async with writing(ask, staging) as fs:
        ino = (await fs.lookup(ROOT, "a")).ino
        async with trio.open_nursery() as nursery:
            move = ask.server.faults.add(Fault.hold("/api/move/*"))
            nursery.start_soon(fs.rename, ROOT, "a", ROOT, "b", 0)
            await hit(move)
            ask.server.deploy(REPO, "a", b"newer")
            await fs.refresh(ROOT)
            assert (await fs.lookup(ROOT, "a")).ino != ino
            fs.forget(ino, 1)
            move.release()
        assert (await fs.lookup(ROOT, "b")).ino in (await names(fs, "")).values()
        await fs.refresh(ROOT)
        assert set(await names(fs, "")) == {"b"}
        assert await content(fs, "b") == b"newer"


async def test_a_close_beside_a_rename_goes_to_the_new_name(ask: Requests, staging: Path) -> None:
    ask.server.deploy(REPO, "r/a", b"old")
    async with writing(ask, staging) as fs, trio.open_nursery() as nursery:
        folder = await find(fs, "r")
        ino = (await fs.lookup(folder, "a")).ino
        move = ask.server.faults.add(Fault.hold("/api/move/*"))
        nursery.start_soon(fs.rename, folder, "a", folder, "b", 0)
        await hit(move)
        opened = await fs.open(ino, os.O_WRONLY | os.O_TRUNC)
        await fs.write(opened.handle, 0, b"new")
        nursery.start_soon(close, fs, opened.handle)
        await trio.testing.wait_all_tasks_blocked(0.02)
        move.release()
    assert ask.tree("/r") == {"/b": 3}
    assert ask.get(f"/{REPO}/r/b").body == b"new"
    assert kept(staging) == []


async def test_a_rename_beside_a_close_takes_what_was_closed(ask: Requests, staging: Path) -> None:
    async with writing(ask, staging) as fs, trio.open_nursery() as nursery:
        opened, _ = await fs.create(ROOT, "f", 0o644, os.O_WRONLY, ME)
        await fs.write(opened.handle, 0, DATA)
        upload = ask.server.faults.add(Fault.hold(f"{PATH}*", method="PUT"))
        nursery.start_soon(close, fs, opened.handle)
        await hit(upload)
        nursery.start_soon(fs.rename, ROOT, "f", ROOT, "g", 0)
        await trio.testing.wait_all_tasks_blocked(0.02)
        upload.release()
    assert ask.tree() == {"/g": len(DATA)}
    assert ask.get(f"/{REPO}/g").body == DATA


async def test_a_folder_that_is_renamed_takes_uploads_below_along(
    ask: Requests, staging: Path
) -> None:
    async with writing(ask, staging) as fs, trio.open_nursery() as nursery:
        folder = (await fs.mkdir(ROOT, "d", 0o755, ME)).ino
        early, _ = await fs.create(folder, "early", 0o644, os.O_WRONLY, ME)
        late, _ = await fs.create(folder, "late", 0o644, os.O_WRONLY, ME)
        upload = ask.server.faults.add(Fault.hold(f"/{REPO}/d/early*", method="PUT"))
        move = ask.server.faults.add(Fault.hold("/api/move/*"))
        nursery.start_soon(close, fs, early.handle)
        await hit(upload)
        nursery.start_soon(fs.rename, ROOT, "d", ROOT, "e", 0)
        await trio.testing.wait_all_tasks_blocked(0.02)
        assert not move.hits  # it waits for the upload
        upload.release()
        await hit(move)
        await fs.write(late.handle, 0, b"late")
        nursery.start_soon(close, fs, late.handle)
        await trio.testing.wait_all_tasks_blocked(0.02)
        move.release()
    assert ask.tree() == {"/e": -1, "/e/early": 0, "/e/late": 4}
    assert kept(staging) == []


async def test_a_name_that_is_removed_while_it_is_uploaded_is_gone(
    ask: Requests, staging: Path
) -> None:
    async with writing(ask, staging) as fs, trio.open_nursery() as nursery:
        opened, _ = await fs.create(ROOT, "f", 0o644, os.O_WRONLY, ME)
        await fs.write(opened.handle, 0, DATA)
        upload = ask.server.faults.add(Fault.hold(f"{PATH}*", method="PUT"))
        nursery.start_soon(close, fs, opened.handle)
        await hit(upload)
        nursery.start_soon(fs.unlink, ROOT, "f")
        await trio.testing.wait_all_tasks_blocked(0.02)
        upload.release()
    assert ask.tree() == {}
    assert kept(staging) == []


async def test_an_inode_that_lost_its_name_is_not_opened_again(
    ask: Requests, staging: Path
) -> None:
    """The kernel had looked the name up before it was removed: what is written would come back."""
    ask.server.deploy(REPO, "f", b"old")
    async with writing(ask, staging) as fs:
        ino = (await fs.lookup(ROOT, "f")).ino
        await fs.unlink(ROOT, "f")
        with pytest.raises(Replaced):
            await fs.open(ino, os.O_WRONLY | os.O_TRUNC)
        with pytest.raises(NoEntry):
            await fs.lookup(ROOT, "f")
    assert ask.tree() == {}


async def test_who_opens_a_name_does_not_get_what_lost_it_to_a_rename(
    ask: Requests, staging: Path
) -> None:
    """Somebody has it open still: what is written there goes with it."""
    ask.server.deploy(REPO, "f", b"old")
    ask.server.deploy(REPO, "g", b"new")
    async with writing(ask, staging) as fs:
        ino = (await fs.lookup(ROOT, "f", 7)).ino
        reader = (await fs.open(ino, os.O_RDONLY, 8)).handle
        await fs.rename(ROOT, "g", ROOT, "f", 0)
        with pytest.raises(Replaced):
            await fs.open(ino, os.O_WRONLY | os.O_TRUNC, 7)
        await fs.release(reader)
    assert ask.get(PATH).body == b"new"


async def test_who_was_refused_for_good_does_not_come_again(ask: Requests, staging: Path) -> None:
    """The kernel tries an open twice. What it opens after that, it opens by name once more."""
    for text in (b"first", b"second", b"third"):
        ask.server.deploy(REPO, text.decode(), text)
    async with writing(ask, staging) as fs:

        async def take_the_name(name: str) -> int:
            ino = (await fs.lookup(ROOT, "f", 7)).ino
            await fs.open(ino, os.O_RDONLY, 8)
            await fs.rename(ROOT, name, ROOT, "f", 0)
            return ino

        await fs.rename(ROOT, "first", ROOT, "f", 0)
        first = await take_the_name("second")
        with pytest.raises(Replaced):
            await fs.open(first, os.O_RDWR, 7)
        second = await take_the_name("third")
        for _ in range(2):
            with pytest.raises(Replaced):
                await fs.open(second, os.O_RDWR, 7)


async def test_a_name_that_the_kernel_forgets_while_it_is_made_is_known(
    ask: Requests, staging: Path
) -> None:
    """It had looked the name up, by another thread: it is opened, and emptied on this disk."""
    ask.server.deploy(REPO, "f", b"old")
    made: list[int] = []
    async with writing(ask, staging) as fs, trio.open_nursery() as nursery:
        ino = (await fs.lookup(ROOT, "f")).ino
        ask.server.stats.reset()

        async def make() -> None:
            opened, attributes = await fs.create(ROOT, "f", 0o644, os.O_WRONLY | os.O_TRUNC, ME)
            made.append(attributes.ino)
            await close(fs, opened.handle)

        free = threading.Event()
        for _ in range(32):  # as many as touch the disk at a time
            nursery.start_soon(threads.on_disk, free.wait)
        nursery.start_soon(make)
        while not ask.server.stats.requests:
            await trio.testing.wait_all_tasks_blocked(0.02)
        await trio.testing.wait_all_tasks_blocked(0.02)
        fs.forget(ino, 1)
        free.set()
        while not made:
            await trio.testing.wait_all_tasks_blocked(0.02)
        assert (await fs.getattr(made[0])).size == 0
        assert (await fs.lookup(ROOT, "f")).ino == made[0]
    assert ask.get(PATH).body == b""


async def test_what_the_kernel_forgets_while_it_is_uploaded_is_found_again(
    ask: Requests, staging: Path
) -> None:
    """The last stores of a mapping are uploaded by RELEASE, which nobody waits for."""
    ask.server.deploy(REPO, "f", b"old")
    async with writing(ask, staging) as fs, trio.open_nursery() as nursery:
        ino = (await fs.lookup(ROOT, "f")).ino
        opened = await fs.open(ino, os.O_RDWR)
        await fs.write(opened.handle, 0, b"new")
        upload = ask.server.faults.add(Fault.hold(f"{PATH}*", method="PUT"))
        nursery.start_soon(fs.release, opened.handle)
        await hit(upload)
        fs.forget(ino, 1)
        upload.release()
        while ask.get(PATH).body != b"new":
            await trio.testing.wait_all_tasks_blocked(0.02)
        await trio.testing.wait_all_tasks_blocked(0.02)
        for _ in range(2):
            assert (await fs.getattr((await fs.lookup(ROOT, "f")).ino)).size == 3
        assert await content(fs, "f") == b"new"


async def test_what_the_kernel_forgets_while_it_is_renamed_is_found_again(
    ask: Requests, staging: Path
) -> None:
    """It had looked up what was there before: it knows nothing of what is renamed."""
    ask.server.deploy(REPO, "f", b"old")
    async with writing(ask, staging) as fs:
        async with trio.open_nursery() as nursery:
            move = ask.server.faults.add(Fault.hold("/api/move/*"))
            nursery.start_soon(fs.rename, ROOT, "f", ROOT, "g", 0)
            await hit(move)
            fs.forget((await fs.lookup(ROOT, "f")).ino, 1)
            move.release()
        assert (await fs.getattr((await fs.lookup(ROOT, "g")).ino)).size == 3
        assert await content(fs, "g") == b"old"


async def test_a_removal_that_is_refused_changes_nothing(
    ask: Requests, staging: Path, expected_logs: list[str]
) -> None:
    ask.server.deploy(REPO, "f", b"old")
    async with writing(ask, staging) as fs:
        ino = (await fs.lookup(ROOT, "f")).ino
        opened = await fs.open(ino, os.O_RDWR)
        ask.server.faults.add(Fault.status(403, PATH, method="DELETE"))
        with pytest.raises(AccessDenied):
            await fs.unlink(ROOT, "f")
        assert (await fs.lookup(ROOT, "f")).ino == ino
        await fs.write(opened.handle, 3, b"er")
        await close(fs, opened.handle)
        assert await content(fs, "f") == b"older"
    assert ask.get(PATH).body == b"older"
    assert kept(staging) == []


async def test_three_who_read_remove_and_make_one_name(ask: Requests, staging: Path) -> None:
    """Whatever comes in between: what is left at the end is one whole file, or none."""
    rounds = 25
    choose = random.Random(5)

    async def read(fs: Filesystem) -> None:
        handle = (await fs.open((await fs.lookup(ROOT, "f")).ino, os.O_RDONLY)).handle
        data = bytes(await fs.read(handle, Extent(0, 100)))
        await fs.release(handle)
        assert data in (b"", b"foo\n")

    async def work(fs: Filesystem) -> None:
        for _ in range(rounds):
            for step in (read, remove, make):
                with suppress(JfsError):
                    await step(fs)
                for _ in range(choose.randrange(3)):
                    await trio.lowlevel.checkpoint()

    async def remove(fs: Filesystem) -> None:
        await fs.unlink(ROOT, "f")

    async def make(fs: Filesystem) -> None:
        try:
            handle = (
                await fs.open((await fs.lookup(ROOT, "f")).ino, os.O_WRONLY | os.O_TRUNC)
            ).handle
        except JfsError:
            opened, _ = await fs.create(ROOT, "f", 0o644, os.O_WRONLY, ME)
            handle = opened.handle
        await fs.write(handle, 0, b"foo\n")
        await close(fs, handle)

    async with writing(ask, staging) as fs:
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(work, fs)
        with suppress(NoEntry):
            await fs.unlink(ROOT, "f")
        assert await names(fs, "") == {}
        assert Journal(staging).survey() == []  # while the mount lives, too
        await put(fs, "f", b"at last")
        assert await content(fs, "f") == b"at last"
    assert ask.get(PATH).body == b"at last"
    assert kept(staging) == []


async def test_a_reader_that_closes_beside_the_writer_leaves_nothing_behind(
    ask: Requests, staging: Path
) -> None:
    async with writing(ask, staging) as fs:
        for _ in range(10):
            opened, attributes = await fs.create(ROOT, "f", 0o644, os.O_WRONLY, ME)
            reader = await fs.open(attributes.ino, os.O_RDONLY)
            await fs.write(opened.handle, 0, b"data")
            await fs.flush(opened.handle)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(fs.release, opened.handle)
                nursery.start_soon(fs.release, reader.handle)
            assert Journal(staging).survey() == []
            await fs.unlink(ROOT, "f")
