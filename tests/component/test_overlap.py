"""A large new file is on its way to the server while it is still being written."""

import os
import random
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from jfs.config import WriteSettings
from jfs.errors import JfsError
from jfs.extents import GiB, KiB, MiB
from jfs.model import RepoPath, is_passing
from jfs.server import Fault
from jfs.vfs.attributes.stat import Caller, Change
from jfs.vfs.filesystem import Filesystem
from jfs.vfs.namespace.inodes import ROOT
from jfs.vfs.writing.leftovers import Leftovers
from tests.component.composed import block_store, close, composed, find, names
from tests.component.server_requests import REPO, Requests

ME = Caller(os.getuid(), os.getgid())
PASSING = f"/{REPO}/.jfs-staging-*"
DATA = random.Random(7).randbytes(2 * MiB)
_PIECE = 128 * KiB


@asynccontextmanager
async def mounted(
    ask: Requests, staging: Path, *, source: str = REPO, **options: object
) -> AsyncIterator[Filesystem]:
    modes: dict[str, bool] = {
        name: bool(options.pop(name))
        for name in ("overlap", "no_delete", "write_back", "last_writer_wins")
        if name in options
    }
    settings = WriteSettings(staging, overlap_from=512 * KiB, **modes)  # type: ignore[arg-type]
    async with composed(ask.server, source, writes=settings, **options) as fs:  # type: ignore[arg-type]
        yield fs


async def begun(fs: Filesystem, name: str = "f", data: bytes = DATA) -> int:
    """Write all of a file front to back; return its handle."""
    opened, _ = await fs.create(ROOT, name, 0o644, os.O_WRONLY, ME)
    for offset in range(0, len(data), _PIECE):
        await fs.write(opened.handle, offset, data[offset : offset + _PIECE])
    return opened.handle


async def until(condition: Callable[[], bool]) -> None:
    """Look again and again, for as long as a test may take."""
    while not condition():  # noqa: ASYNC110 - the server does not tell
        await trio.sleep(0.002)


def received(ask: Requests) -> int:
    return ask.server.stats.bytes_received


def left(ask: Requests) -> list[str]:
    """Return the passing names that are on the server."""
    rows = ask("GET", f"/api/storage/{REPO}?list&deep=1").json()["files"]
    return [row["uri"] for row in rows if is_passing(row["uri"].rpartition("/")[2])]


def notes(staging: Path, pattern: str = "*.passing") -> list[Path]:
    """Return what is in the staging directory; by default what is noted of names."""
    return list(staging.glob(pattern))


def killed(staging: Path, url: str) -> str:
    """Note a name as a mount does that is killed then; return it."""
    script = (
        "import sys; from pathlib import Path; from jfs.model import RepoPath; "
        "from jfs.vfs.writing.leftovers import Leftovers; _, staging, url, repo = sys.argv; "
        "print(Leftovers(Path(staging), url).note(RepoPath(repo)).path.name)"
    )
    command = [sys.executable, "-c", script, str(staging), url, REPO]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


async def test_it_is_on_its_way_before_it_is_closed(ask: Requests, staging: Path) -> None:
    async with mounted(ask, staging) as fs:
        handle = await begun(fs)
        await until(lambda: received(ask) >= len(DATA))  # all of it, and it is open yet
        assert ask.get(f"/{REPO}/f").status == 404
        await close(fs, handle)
        assert ask.get(f"/{REPO}/f").body == DATA
        assert received(ask) == len(DATA)  # once
        await until(lambda: not left(ask))
    assert not notes(staging, "*")


async def test_what_is_written_late_is_sent_at_the_end(ask: Requests, staging: Path) -> None:
    """Out of order, behind a hole, and truncated to be longer: what is in order goes ahead."""
    expected = bytearray(DATA + bytes(200_000))
    expected[len(DATA) + 100_000 :] = b"x" * 100_000
    async with mounted(ask, staging) as fs:
        handle = await begun(fs)
        await fs.write(handle, len(DATA) + 100_000, b"x" * 100_000)
        await until(lambda: received(ask) >= len(DATA))
        await close(fs, handle)
        assert received(ask) == len(expected)
    assert ask.get(f"/{REPO}/f").body == expected


@pytest.mark.parametrize("how", ["header", "truncate", "truncate and write"])
async def test_what_changes_after_it_was_sent_is_uploaded_as_it_is(
    ask: Requests, staging: Path, how: str
) -> None:
    """As writers of archives do, which patch their header at the end."""
    async with mounted(ask, staging) as fs:
        handle = await begun(fs)
        await until(lambda: received(ask) >= len(DATA))
        expected = DATA
        if how == "header":
            await fs.write(handle, 10, b"header")
            expected = DATA[:10] + b"header" + DATA[16:]
        else:
            await fs.setattr(await find(fs, "f"), Change(size=1000), handle)
            expected = DATA[:1000]
            if how == "truncate and write":
                await fs.write(handle, 1000, b"more" * 300_000)
                expected += b"more" * 300_000
        await close(fs, handle)
        assert ask.get(f"/{REPO}/f").body == expected
        await until(lambda: not left(ask))


async def test_kinds_of_files_that_are_rewritten_are_sent_in_vain_once(
    ask: Requests, staging: Path
) -> None:
    async with mounted(ask, staging) as fs:
        for name in ("a.h5", "b.h5"):
            ask.server.stats.reset()
            handle = await begun(fs, name)
            if name == "a.h5":
                await until(lambda: received(ask) >= MiB)
            await fs.write(handle, 8, name.encode())
            await close(fs, handle)
            assert ask.get(f"/{REPO}/{name}").body == DATA[:8] + name.encode() + DATA[12:]
        assert received(ask) == len(DATA)
        handle = await begun(fs, "c.bin", DATA[1:])  # another kind
        await until(lambda: received(ask) >= 2 * len(DATA) - 1)
        await close(fs, handle)


async def test_who_seeks_back_in_what_is_not_sent_yet_disturbs_nothing(
    ask: Requests, staging: Path
) -> None:
    stalled = ask.server.faults.add(Fault.hold(PASSING, method="PUT"))
    async with mounted(ask, staging) as fs:
        handle = await begun(fs)
        await trio.to_thread.run_sync(stalled.wait_hit)
        await fs.write(handle, len(DATA) - 10, b"0123456789")
        ask.server.faults.remove(stalled)
        await close(fs, handle)
    assert ask.get(f"/{REPO}/f").body == DATA[:-10] + b"0123456789"


async def test_content_that_the_server_has_is_cut(ask: Requests, staging: Path) -> None:
    ask.server.deploy(REPO, "known", DATA)
    ask.server.faults.add(Fault.hold(PASSING, method="PUT", after=1))  # the first asks for rights
    async with mounted(ask, staging) as fs:
        await close(fs, await begun(fs))  # does not wait for what is held
        assert ask.get(f"/{REPO}/f").body == DATA


async def test_content_that_this_node_has_seen_sends_nothing(
    ask: Requests, staging: Path, tmp_path: Path
) -> None:
    store = block_store(tmp_path / "cache")
    async with mounted(ask, staging, store=store) as fs:
        await close(fs, await begun(fs))
        ask.server.stats.reset()
        await close(fs, await begun(fs, "again"))
        assert received(ask) == 0
        # what begins otherwise is on its way
        handle = await begun(fs, "other", DATA[1:])
        await until(lambda: received(ask) >= len(DATA) - 1)
        await close(fs, handle)
    store.close()
    assert ask.get(f"/{REPO}/again").body == DATA
    assert ask.get(f"/{REPO}/other").body == DATA[1:]


_FAULTS: dict[str, Callable[[], Fault]] = {
    "no right": lambda: Fault.status(403, PASSING, method="PUT"),
    "quota": lambda: Fault.status(413, PASSING, method="PUT", early=True, after=1),
    "no room": lambda: Fault.status(507, PASSING, method="PUT", after=1),
    "busy": lambda: Fault.status(
        429, PASSING, method="PUT", after=1, times=1, headers={"Retry-After": "1"}
    ),
    "down": lambda: Fault.status(503, PASSING, method="PUT", after=1),
    "conflict": lambda: Fault.status(409, PASSING, method="PUT", after=1),
    "cut": lambda: Fault.cut(PASSING, method="PUT", after=1, after_bytes=MiB),
    "answer lost": lambda: Fault.drop(PASSING, method="PUT", after=1),
    "garbage": lambda: Fault.garbage(PASSING, method="PUT", after=1),
    "wrong checksums": lambda: Fault.wrong_checksums(PASSING, method="PUT", after=1),
    "may not remove": lambda: Fault.status(403, PASSING, method="DELETE"),
    "removed later": lambda: Fault.status(503, PASSING, method="DELETE", after=1, times=1),
}


@pytest.mark.parametrize("what", _FAULTS)
async def test_whatever_becomes_of_it_the_file_is_uploaded(
    ask: Requests, staging: Path, what: str
) -> None:
    """The first file that is on its way asks first whether its name can be removed again."""
    fault = ask.server.faults.add(_FAULTS[what]())
    async with mounted(ask, staging) as fs:
        await close(fs, await begun(fs))
        assert ask.get(f"/{REPO}/f").body == DATA
        if fault.method == "DELETE" or fault.code == 403:
            await close(fs, await begun(fs, "g", DATA[1:]))
            assert ask.get(f"/{REPO}/g").body == DATA[1:]
    assert fault.hits


async def test_a_server_that_falls_silent_is_given_up_in_time(ask: Requests, staging: Path) -> None:
    ask.server.faults.add(Fault.stall(PASSING, method="PUT", after=1))
    async with mounted(ask, staging, idle_s=1) as fs:
        await close(fs, await begun(fs))
        assert ask.get(f"/{REPO}/f").body == DATA
        ask.server.faults.clear()


@pytest.mark.parametrize("method", ["PUT", "DELETE"])
async def test_nodes_that_try_at_the_same_moment_do_without_it_for_one_file(
    ask: Requests, staging: Path, method: str
) -> None:
    busy = ask.server.faults.add(Fault.status(409, PASSING, method=method))
    async with mounted(ask, staging) as fs:
        await close(fs, await begun(fs))
        assert busy.hits
        ask.server.faults.clear()
        handle = await begun(fs, "g", DATA[1:])
        await until(lambda: received(ask) >= 2 * len(DATA) - 1)  # it is open yet
        await close(fs, handle)
    assert ask.get(f"/{REPO}/g").body == DATA[1:]
    assert not left(ask)


async def test_where_nothing_may_be_removed_nothing_large_is_left(
    ask: Requests, staging: Path
) -> None:
    ask.server.faults.add(Fault.status(403, PASSING, method="DELETE"))
    async with mounted(ask, staging) as fs:
        await close(fs, await begun(fs))
        ask.server.stats.reset()
        await close(fs, await begun(fs, "g", DATA[1:]))
        assert ask.server.stats.by_route["PUT content"] == 2  # asked, then sent: as ever
    rows = ask("GET", f"/api/storage/{REPO}?list&deep=1").json()["files"]
    assert [row["size"] for row in rows if is_passing(row["uri"].strip("/"))] == [0]


@pytest.mark.parametrize("mode", [{"overlap": False}, {"no_delete": True}, {"write_back": True}])
async def test_it_is_uploaded_at_the_end_where_that_is_wanted(
    ask: Requests, staging: Path, mode: dict[str, bool]
) -> None:
    async with mounted(ask, staging, **mode) as fs:
        ask.server.stats.reset()
        handle = await begun(fs)
        assert not ask.server.stats.by_route["PUT content"]
        await close(fs, handle)


async def test_an_older_content_that_is_added_to_is_uploaded_at_the_end(
    ask: Requests, staging: Path
) -> None:
    ask.server.deploy(REPO, "f", DATA)
    async with mounted(ask, staging) as fs:
        ino = await find(fs, "f")
        opened = await fs.open(ino, os.O_WRONLY)
        ask.server.stats.reset()
        await fs.write(opened.handle, len(DATA), b"more")
        await close(fs, opened.handle)
        assert ask.server.stats.by_route["PUT content"] == 2
        # emptied first, it is new
        opened = await fs.open(ino, os.O_WRONLY | os.O_TRUNC)
        ask.server.stats.reset()
        for offset in range(0, len(DATA), _PIECE):
            await fs.write(opened.handle, offset, DATA[1:][offset : offset + _PIECE])
        await until(lambda: received(ask) > MiB)
        await close(fs, opened.handle)
    assert ask.get(f"/{REPO}/f").body == DATA[1:]


async def test_what_others_put_there_meanwhile_is_not_overwritten(
    ask: Requests, staging: Path
) -> None:
    async with mounted(ask, staging) as fs:
        handle = await begun(fs)
        await until(lambda: received(ask) >= len(DATA))
        ask.server.deploy(REPO, "f", b"theirs")
        with pytest.raises(JfsError):
            await close(fs, handle)
        assert ask.get(f"/{REPO}/f").body == b"theirs"
        await until(lambda: not left(ask))


async def test_what_others_put_there_while_the_rest_is_sent_is_not_overwritten(
    ask: Requests, staging: Path
) -> None:
    held = ask.server.faults.add(Fault.hold(PASSING, method="PUT", after=1))
    async with mounted(ask, staging) as fs, trio.open_nursery() as nursery:
        handle = await begun(fs)
        await trio.to_thread.run_sync(held.wait_hit)

        async def close_it() -> None:
            with pytest.raises(JfsError):
                await close(fs, handle)

        nursery.start_soon(close_it)
        # asked for rights, and by checksum; what is held does not count yet
        await until(lambda: ask.server.stats.by_route["PUT content"] >= 2)
        ask.server.deploy(REPO, "f", b"theirs")
        ask.server.faults.remove(held)
    assert ask.get(f"/{REPO}/f").body == b"theirs"


async def test_what_others_put_there_before_it_is_sent_once_more_is_not_overwritten(
    ask: Requests, staging: Path
) -> None:
    """What was on its way is of no use, and all is sent anew: a while after it was looked."""
    held = ask.server.faults.add(Fault.hold(f"/{REPO}/f", method="PUT", times=1))
    ask.server.faults.add(Fault.wrong_checksums(PASSING, method="PUT", after=1))
    async with mounted(ask, staging) as fs, trio.open_nursery() as nursery:
        handle = await begun(fs)

        async def close_it() -> None:
            with pytest.raises(JfsError):
                await close(fs, handle)

        nursery.start_soon(close_it)
        await trio.to_thread.run_sync(held.wait_hit)  # whether the server has the content
        ask.server.deploy(REPO, "f", b"theirs")
        held.release()
    assert ask.get(f"/{REPO}/f").body == b"theirs"


async def test_a_file_that_is_removed_while_it_is_written_leaves_nothing(
    ask: Requests, staging: Path
) -> None:
    async with mounted(ask, staging) as fs:
        handle = await begun(fs)
        await until(lambda: received(ask) >= len(DATA))
        await fs.unlink(ROOT, "f")
        await close(fs, handle)
        await until(lambda: not left(ask) and not notes(staging))
    assert ask.get(f"/{REPO}/f").status == 404


async def test_nobody_sees_it(ask: Requests, staging: Path) -> None:
    name = f".jfs-staging-{'0' * 8}-{'1' * 16}"
    ask.server.deploy(REPO, name, b"of somebody")
    async with mounted(ask, staging) as fs:
        assert name not in await names(fs, "")
        with pytest.raises(JfsError):
            await find(fs, name)
        with pytest.raises(JfsError):
            await fs.create(ROOT, name, 0o644, os.O_WRONLY, ME)


async def test_the_end_of_a_mount_leaves_nothing(ask: Requests, staging: Path) -> None:
    async with mounted(ask, staging) as fs:
        await begun(fs)
        await until(lambda: received(ask) >= len(DATA))
    assert not left(ask)
    assert not notes(staging)


async def test_what_a_mount_that_was_killed_has_left_is_removed_by_the_next(
    ask: Requests, staging: Path
) -> None:
    """By the notes of this node: what others have there is theirs."""
    os.mkdir(staging, 0o700)
    ours = killed(staging, ask.server.url)
    alive = Leftovers(staging, ask.server.url).note(RepoPath(REPO))
    elsewhere = Leftovers(staging, "https://other.example").note(RepoPath(REPO))
    elsewhere.close()
    (staging / "0123456789abcdef.passing").write_text('{"server": "')  # cut off by a crash
    theirs = f".jfs-staging-{'0' * 8}-{'1' * 16}"
    for name in (ours, theirs, alive.path.name, elsewhere.path.name):
        ask.server.deploy(REPO, name, b"left")
    async with mounted(ask, staging):
        await until(lambda: f"/{ours}" not in left(ask))
        await until(lambda: len(notes(staging)) == 2)
    assert sorted(left(ask)) == sorted(
        f"/{name}" for name in (theirs, alive.path.name, elsewhere.path.name)
    )
    alive.remove()


@pytest.mark.parametrize("code", [401, 403, 405, 423])
async def test_what_the_server_refuses_to_remove_is_tried_again_by_each_mount(
    ask: Requests, staging: Path, code: int
) -> None:
    """With other rights, or once the repository may be written to again."""
    os.mkdir(staging, 0o700)
    ours = killed(staging, ask.server.url)
    ask.server.deploy(REPO, ours, b"left")
    refused = ask.server.faults.add(Fault.status(code, f"/{REPO}/{ours}", method="DELETE"))
    async with mounted(ask, staging) as fs:
        await until(lambda: refused.hits > 0)
        await close(fs, await begun(fs))
    assert left(ask) == [f"/{ours}"]
    ask.server.faults.clear()
    async with mounted(ask, staging):
        await until(lambda: not left(ask) and not notes(staging))


async def test_what_may_come_late_is_removed_by_the_next_mount(
    ask: Requests, staging: Path
) -> None:
    """All of it was sent, and no answer came: what is not there now may be there in a moment."""
    lost = ask.server.faults.add(Fault.cut(PASSING, method="PUT", after=1, after_bytes=GiB))
    async with mounted(ask, staging) as fs:
        await close(fs, await begun(fs))
    assert lost.hits == 1
    (note,) = notes(staging)
    name = f".jfs-staging-{Leftovers(staging, '').node}-{note.stem}"
    ask.server.deploy(REPO, name, DATA)
    async with mounted(ask, staging):
        await until(lambda: not left(ask) and not notes(staging))
    assert ask.get(f"/{REPO}/f").body == DATA


async def test_a_few_at_a_time(ask: Requests, staging: Path) -> None:
    async with mounted(ask, staging) as fs:
        handles = [await begun(fs, f"f{number}", DATA[number:]) for number in range(5)]
        for handle in handles:
            await close(fs, handle)
    for number in range(5):
        assert ask.get(f"/{REPO}/f{number}").body == DATA[number:]


async def test_a_folder_that_is_mounted_holds_the_names(ask: Requests, staging: Path) -> None:
    ask.server.deploy(REPO, "a/b/x", b"x")
    held = ask.server.faults.add(Fault.hold(f"/{REPO}/a/b/.jfs-staging-*", method="PUT"))
    async with mounted(ask, staging, source=f"{REPO}/a/b") as fs:
        handle = await begun(fs)
        await trio.to_thread.run_sync(held.wait_hit)
        ask.server.faults.remove(held)
        await close(fs, handle)
    assert ask.get(f"/{REPO}/a/b/f").body == DATA


@pytest.mark.parametrize("seed", range(4))
async def test_whatever_is_written_while_it_is_sent_is_what_the_server_gets(
    ask: Requests, staging: Path, seed: int
) -> None:
    """In order, back and forth, cut and made longer; with and without fsync, and a server that
    breaks off at random."""
    choose = random.Random(seed)
    ask.server.faults.add(
        Fault.cut(PASSING, method="PUT", after_bytes=700 * KiB, share=0.2, after=1)
    )
    async with mounted(ask, staging) as fs:
        for number in range(2):
            expected = bytearray()
            opened, attributes = await fs.create(ROOT, f"f{number}", 0o644, os.O_RDWR, ME)
            for _ in range(choose.randrange(4, 14)):
                what = choose.random()
                data = choose.randbytes(choose.choice((1000, _PIECE, MiB)))
                in_order = what < 0.8
                place = len(expected) if in_order else choose.randrange(len(expected) + _PIECE)
                if what < 0.9:
                    await fs.write(opened.handle, place, data)
                    expected.extend(bytes(max(0, place - len(expected))))
                    expected[place : place + len(data)] = data
                else:
                    await fs.setattr(attributes.ino, Change(size=place), opened.handle)
                    expected.extend(bytes(max(0, place - len(expected))))
                    del expected[place:]
                if choose.random() < 0.1:
                    await fs.fsync(opened.handle)
                    assert ask.get(f"/{REPO}/f{number}").body == expected
                if choose.random() < 0.3:
                    await trio.sleep(0.002)  # lets the sender go ahead
            await close(fs, opened.handle)
            assert ask.get(f"/{REPO}/f{number}").body == expected
        await until(lambda: not left(ask))
