"""Small writes, done while their request waits: as any other, whatever comes beside them."""

import os
import random
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
import trio.testing

from jfs.config import WriteSettings
from jfs.errors import FileTooLarge
from jfs.extents import Extent
from jfs.server import Fault
from jfs.vfs.filesystem import Caller, Change, Filesystem
from jfs.vfs.namespace.inodes import ROOT
from jfs.vfs.writing.hand import Hand
from tests.component.composed import composed, find
from tests.component.server_requests import REPO, Requests

ME = Caller(os.getuid(), os.getgid())


async def made(fs: Filesystem, name: str, flags: int = os.O_WRONLY) -> int:
    return (await fs.create(ROOT, name, 0o644, flags, ME))[0].handle


async def at_once(fs: Filesystem, handle: int, offset: int, data: bytes) -> bool:
    """Whether it was written without its handler, at once or a little later; without an error."""
    answered = trio.Event()

    def answer(error: Exception | None) -> None:
        assert error is None
        answered.set()

    if not fs.small_writes.write(handle, offset, data, answer):
        return False
    await answered.wait()
    return True


async def test_a_small_write_is_done_at_once(ask: Requests) -> None:
    rng = random.Random(4)
    async with composed(ask.server, REPO) as fs:
        handle = await made(fs, "f")
        expected, count, ino = bytearray(), 0, await find(fs, "f")
        for _ in range(300):
            offset = rng.choice([len(expected), len(expected), rng.randrange(len(expected) + 100)])
            data = rng.randbytes(rng.choice([1, 512, 4096, 100_000]))
            if await at_once(fs, handle, offset, data):
                count += 1
            else:  # a disk under load is left alone for a while
                await fs.write(handle, offset, data)
            expected.extend(bytes(max(0, offset + len(data) - len(expected))))
            expected[offset : offset + len(data)] = data
            assert (await fs.getattr(ino)).size == len(expected)
            if rng.random() < 0.02:
                size = rng.randrange(len(expected))
                await fs.setattr(ino, Change(size=size), handle)
                del expected[size:]
        assert count
        assert bytes(await fs.read(handle, Extent(0, len(expected) + 1))) == expected
        await fs.flush(handle)
        await fs.release(handle)
    assert ask.get(f"/{REPO}/f").body == expected


async def test_what_takes_more_is_left_to_the_handler(ask: Requests) -> None:
    ask.server.deploy(REPO, "there", b"what was there")
    async with composed(ask.server, REPO) as fs:
        ino = await find(fs, "there")
        reading = (await fs.open(ino, os.O_RDONLY)).handle
        writing = (await fs.open(ino, os.O_WRONLY)).handle
        assert not await at_once(fs, reading, 0, b"x")  # the handler says what is wrong with it
        assert not await at_once(fs, 12345, 0, b"x")
        assert not await at_once(fs, writing, 0, b"x")  # what is there is fetched first
        await fs.write(writing, 0, b"X")
        await fs.fsync(writing)
        assert not await at_once(fs, writing, 1, b"y")  # the journal is told that it changes again
        await fs.write(writing, 1, b"Y")
        await fs.flush(writing)
        for handle in (reading, writing):
            await fs.release(handle)
        user = Caller(12345, 12345)
        opened, _ = await fs.create(ROOT, "of a user", 0o4755, os.O_WRONLY, user)
        assert not await at_once(fs, opened.handle, 0, b"x")  # its setuid bit falls
        await fs.write(opened.handle, 0, b"x")
        assert (await fs.getattr(await find(fs, "of a user"))).mode & 0o7000 == 0
        await fs.release(opened.handle)
    assert ask.get(f"/{REPO}/there").body == b"XYat was there"


async def test_no_small_write_slips_into_an_upload(ask: Requests) -> None:
    """While a file is uploaded its writes wait, as ever."""
    async with composed(ask.server, REPO) as fs:
        handle = await made(fs, "f")
        await fs.write(handle, 0, b"1" * 300_000)
        held = ask.server.faults.add(Fault.hold(f"/{REPO}/f", method="PUT"))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fs.fsync, handle)
            await trio.to_thread.run_sync(held.wait_hit)
            assert not await at_once(fs, handle, 300_000, b"2")
            nursery.start_soon(fs.write, handle, 300_000, b"2")
            await trio.testing.wait_all_tasks_blocked()
            assert not await at_once(fs, handle, 300_000, b"3")
            held.release()
        assert ask.get(f"/{REPO}/f").body == b"1" * 300_000
        await fs.flush(handle)
        await fs.release(handle)
    assert ask.get(f"/{REPO}/f").body == b"1" * 300_000 + b"2"


async def test_a_small_write_onto_a_full_disk_is_refused_and_nothing_is_uploaded(
    ask: Requests, tmp_path: Path
) -> None:
    staging = tmp_path / "full"
    staging.mkdir(mode=0o700)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m,mode=700", "x", staging], check=True)
    try:
        (staging / "other").write_bytes(bytes(600_000))
        async with composed(ask.server, REPO, writes=WriteSettings(staging)) as fs:
            handle = await made(fs, "f")
            answers: list[Exception | None] = []
            data = random.Random(1).randbytes(200_000)
            for number in range(5):
                if not fs.small_writes.write(handle, number * 200_000, data, answers.append):
                    try:
                        await fs.write(handle, number * 200_000, data)
                    except OSError as error:  # the disk was slow a moment ago
                        answers.append(error)
            with pytest.raises(OSError, match="No space left"):
                await fs.flush(handle)
            assert any("No space left" in str(error) for error in answers)
            await fs.release(handle)
    finally:
        subprocess.run(["umount", "-l", staging], check=True)
    assert ask.get(f"/{REPO}/f").status == 404


def test_a_call_that_takes_long_is_waited_for_elsewhere() -> None:
    hand, go = Hand(), threading.Event()
    done: list[bool] = []

    def call(wait: bool) -> Callable[[], None]:
        def run() -> None:
            if wait:
                go.wait()
            done.append(wait)

        return run

    assert hand.is_free
    task = hand.do(call(True))
    assert task is not None
    assert done == []
    assert not hand.is_free
    go.set()
    task.wait()
    task.wait()  # as often as one likes
    assert done == [True]
    assert not hand.is_free  # for a while
    hand.close()


def test_a_call_that_ends_just_when_it_is_given_up_takes_nobody_for_ever() -> None:
    def run() -> None:  # past the moment that it has, and keeps the interpreter's lock
        end = time.monotonic() + 0.006
        while time.monotonic() < end:
            pass

    hands = [Hand() for _ in range(8)]
    for hand in hands:
        if (task := hand.do(run)) is not None:
            task.wait()
    while not all(hand.is_free for hand in hands):  # it rests for a while
        time.sleep(0.01)
    for hand in hands:
        hand.close()


def test_many_calls_that_take_nearly_too_long_leave_the_loop_to_others() -> None:
    clock = [1.0]
    hand = Hand(lambda: clock[0])

    def call() -> None:
        clock[0] += 0.002

    while hand.do(call) is not None:  # this machine was slow itself
        while not hand.is_free:
            clock[0] += 1
    assert not hand.is_free
    clock[0] += 0.007
    assert not hand.is_free
    clock[0] += 0.002
    assert hand.is_free
    hand.close()


class Kernel:
    """Takes files to write, and notes how many it has."""

    is_on = True

    def __init__(self) -> None:
        self.has: set[int] = set()

    def open(self, file: int) -> int | None:
        return None

    def open_to_write(self, file: int) -> int | None:
        self.has.add(len(self.has) + 1)
        return len(self.has)

    def close(self, number: int) -> None:
        self.has.remove(number)


async def test_who_writes_little_at_a_time_is_learnt(ask: Requests) -> None:
    """What the kernel shall write itself: see ``files.passed``."""
    kernel = Kernel()
    async with composed(ask.server, REPO, backings=kernel) as fs:
        pid, names = os.getpid(), iter(range(10_000))

        async def passes(ending: str, flags: int = os.O_WRONLY, mode: int = 0o644) -> bool:
            name = f"{next(names)}{ending}"
            opened, _ = await fs.create(ROOT, name, mode, flags, ME)
            passed = fs.small_writes.passes(opened.handle, flags, mode, pid)
            assert len(kernel.has) == passed
            if not passed and ending == ".pt":
                for number in range(200):  # a busy disk is left alone: not all of them count
                    await at_once(fs, opened.handle, number * 100, bytes(100))
            await fs.unlink(ROOT, name)  # nothing is uploaded
            await fs.release(opened.handle)
            assert not kernel.has
            return passed

        assert await passes(".tar")
        assert not await passes(".tar", os.O_RDWR)
        assert not await passes(".tar", os.O_WRONLY | os.O_DIRECT)
        assert not await passes(".tar", mode=0o4755)
        assert not await passes(".pt")
        with trio.fail_after(30):
            while not await passes(".pt"):  # until enough was seen
                await trio.lowlevel.checkpoint()
        kernel.is_on = False
        assert not await passes(".tar")


def data_of(staging: Path) -> Path:
    """Where the only file lies that is staged: what the kernel writes, it writes there."""
    [path] = staging.glob("*.data")
    return path


async def passed(fs: Filesystem, name: str) -> int:
    handle = await made(fs, name)
    assert fs.small_writes.passes(handle, os.O_WRONLY, 0o644, os.getpid())
    return handle


async def test_who_writes_on_after_the_end_of_the_mount_writes_to_a_file_that_is_kept(
    ask: Requests, tmp_path: Path
) -> None:
    """The kernel lets him, though all that he had written was on the server."""
    staging = tmp_path / "staging"
    async with composed(ask.server, REPO, writes=WriteSettings(staging), backings=Kernel()) as fs:
        handle = await passed(fs, "f")
        kernel = os.open(data_of(staging), os.O_WRONLY)
        os.write(kernel, b"sent")
        await fs.fsync(handle)
    os.write(kernel, b", and not")
    os.close(kernel)
    assert ask.get(f"/{REPO}/f").body == b"sent"
    assert data_of(staging).read_bytes() == b"sent, and not"


async def test_what_the_kernel_makes_larger_than_the_disk_is_refused(
    ask: Requests, tmp_path: Path
) -> None:
    """A hole costs the disk nothing: no write is refused, and hashing it would take hours."""
    staging = tmp_path / "staging"
    async with composed(ask.server, REPO, writes=WriteSettings(staging), backings=Kernel()) as fs:
        handle = await passed(fs, "f")
        status = os.statvfs(staging)
        os.truncate(data_of(staging), status.f_blocks * status.f_frsize + 1)
        with pytest.raises(FileTooLarge):
            await fs.flush(handle)
        await fs.release(handle)
    assert ask.get(f"/{REPO}/f").status == 404


async def test_a_file_is_taken_back_from_the_kernel_whoever_closes_at_the_same_time(
    ask: Requests,
) -> None:
    kernel = Kernel()
    async with composed(ask.server, REPO, backings=kernel) as fs:
        writing = await passed(fs, "f")
        reading = (await fs.open(await find(fs, "f"), os.O_RDONLY)).handle
        await fs.write(writing, 0, b"1")
        held = ask.server.faults.add(Fault.hold(f"/{REPO}/f", method="PUT"))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fs.release, writing)
            await trio.to_thread.run_sync(held.wait_hit)
            await fs.release(reading)
            assert not kernel.has
            held.release()
    assert ask.get(f"/{REPO}/f").body == b"1"


async def test_setuid_falls_when_a_user_has_the_kernel_write(ask: Requests, tmp_path: Path) -> None:
    staging = tmp_path / "staging"
    writes = WriteSettings(staging)
    async with composed(ask.server, REPO, writes=writes, backings=Kernel()) as fs:
        for caller, left in ((Caller(12345, 12345), 0o755), (ME, 0o4755)):
            opened, found = await fs.create(ROOT, "f", 0o755, os.O_WRONLY, caller)
            assert fs.small_writes.passes(opened.handle, os.O_WRONLY, 0o755, os.getpid())
            with data_of(staging).open("r+b", buffering=0) as kernel:
                kernel.write(b"before")
                await fs.setattr(found.ino, Change(mode=0o4755), opened.handle)
                assert (await fs.getattr(found.ino)).mode & 0o7777 == 0o4755
                kernel.write(b"after")
            await fs.flush(opened.handle)
            assert (await fs.getattr(found.ino)).mode & 0o7777 == left
            await fs.unlink(ROOT, "f")
            await fs.release(opened.handle)
