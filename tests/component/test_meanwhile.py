"""What others change on the server between an open here and the close."""

import os
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from jfs.config import WriteSettings
from jfs.errors import ChangedElsewhere, Replaced, Stale, Unavailable
from jfs.extents import Extent
from jfs.server import Fault
from jfs.vfs.attributes.stat import Change
from jfs.vfs.filesystem import Filesystem
from jfs.vfs.namespace.inodes import ROOT
from jfs.vfs.writing.records import State
from tests.component.composed import TREE, close, composed, content, find, names
from tests.component.server_requests import REPO, Requests
from tests.component.test_company import outcomes
from tests.component.test_writing import DATA, ME, PATH, kept, writing

MINE, OTHERS = b"mine\n", b"made by the other node\n"


async def opened_by_name(fs: Filesystem, name: str, flags: int) -> int:
    """Open as the kernel does: an inode that is another's by now makes it look again."""
    for _ in range(2):
        try:
            return (await fs.open((await fs.lookup(ROOT, name, 7)).ino, flags, 7)).handle
        except Replaced:
            # LOOKUP_REVAL asks for every name, whatever the kernel believes.
            continue
    raise AssertionError("replaced twice")


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_RDWR | os.O_APPEND])
async def test_a_removed_file_that_is_open_is_not_opened_by_its_name_again(
    ask: Requests, staging: Path, flags: int
) -> None:
    """Until UNLINK is answered the kernel opens the inode by the name that it believes in."""
    ask.put(PATH, DATA)
    async with writing(ask, staging) as fs:
        inode = (await fs.lookup(ROOT, "f")).ino
        first = (await fs.open(inode, os.O_RDONLY, 7)).handle
        await fs.unlink(ROOT, "f")
        with pytest.raises(Replaced):
            await fs.open(inode, flags, 8)
        again = (await fs.open(inode, flags, 8)).handle  # /proc/self/fd/N: no lookup in between
        assert await fs.read(again, Extent(0, len(DATA))) == DATA
        for handle in (first, again):
            await close(fs, handle)


@pytest.mark.parametrize("listed", [False, True])
async def test_making_a_name_that_another_node_made_opens_it(
    ask: Requests, staging: Path, listed: bool
) -> None:
    async with writing(ask, staging) as fs:
        if listed:
            await names(fs, "")
        else:
            with pytest.raises(Exception, match="f"):
                await fs.lookup(ROOT, "f")
        ask.server.deploy(REPO, "f", OTHERS)
        opened, attributes = await fs.create(ROOT, "f", 0o644, os.O_WRONLY, ME)
        assert attributes.size == len(OTHERS)
        await fs.write(opened.handle, len(OTHERS), MINE)
        await close(fs, opened.handle)
    assert ask.get(PATH).body == OTHERS + MINE
    assert kept(staging) == []


async def _append(fs: Filesystem) -> None:
    handle = await opened_by_name(fs, "f", os.O_WRONLY)
    size = (await fs.lookup(ROOT, "f")).size
    await fs.write(handle, size, MINE)
    await close(fs, handle)


async def _change_a_part(fs: Filesystem) -> None:
    handle = await opened_by_name(fs, "f", os.O_RDWR)
    await fs.write(handle, 0, b"MA")
    await close(fs, handle)


async def _truncate(fs: Filesystem) -> None:
    for _ in range(2):
        try:
            await fs.setattr((await fs.lookup(ROOT, "f", 7)).ino, Change(size=4), None, 7)
        except Replaced:
            continue
        return


async def _empty(fs: Filesystem) -> None:
    handle = await opened_by_name(fs, "f", os.O_WRONLY | os.O_TRUNC)
    await close(fs, handle)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (_append, OTHERS + MINE),
        (_change_a_part, b"MA" + OTHERS[2:]),
        (_truncate, OTHERS[:4]),
        (_empty, b""),
    ],
)
async def test_opening_for_writing_asks_what_is_there(
    ask: Requests,
    staging: Path,
    change: Callable[[Filesystem], Awaitable[None]],
    expected: bytes,
) -> None:
    """Whatever was believed, and read, a moment ago."""
    ask.server.deploy(REPO, "f", b"first")
    async with writing(ask, staging) as fs:
        assert await content(fs, "f") == b"first"
        ask.server.deploy(REPO, "f", OTHERS)
        await change(fs)
        assert ask.get(PATH).body == expected
        assert await content(fs, "f") == expected
    assert kept(staging) == []


@pytest.mark.parametrize("how", ["made", "changed", "removed"])
async def test_what_others_did_meanwhile_is_not_overwritten(
    ask: Requests, staging: Path, how: str
) -> None:
    if how != "made":
        ask.server.deploy(REPO, "f", b"first")
    async with writing(ask, staging) as fs:
        flags = os.O_WRONLY | os.O_TRUNC
        if how == "made":
            opened, _ = await fs.create(ROOT, "f", 0o644, flags, ME)
            handle = opened.handle
        else:
            handle = await opened_by_name(fs, "f", flags)
        await fs.write(handle, 0, DATA)
        if how == "removed":
            ask.server.delete(REPO, "f")
        else:
            ask.server.deploy(REPO, "f", OTHERS)
        with pytest.raises(ChangedElsewhere, match=f"was {how} .* is kept"):
            await fs.fsync(handle)
        with pytest.raises(ChangedElsewhere):
            await close(fs, handle)
        # Who looks now sees what the others did.
        assert await names(fs, "") == ({} if how == "removed" else await names(fs, ""))
        if how != "removed":
            assert await content(fs, "f") == OTHERS
    assert ask.get(PATH).status == (404 if how == "removed" else 200)
    ((record, data),) = kept(staging)
    assert record.state is State.FAILED
    assert f"was {how}" in record.error
    assert data == DATA


async def test_the_last_writer_wins_who_asked_for_it(ask: Requests, staging: Path) -> None:
    ask.server.deploy(REPO, "f", b"first", properties={"env": ("production",)})
    async with writing(ask, staging, last_writer_wins=True) as fs:
        for meanwhile in (lambda: ask.server.deploy(REPO, "f", OTHERS), lambda: None):
            handle = await opened_by_name(fs, "f", os.O_WRONLY | os.O_TRUNC)
            await fs.write(handle, 0, DATA)
            meanwhile()
            await names(fs, "")
            await close(fs, handle)
            assert ask.get(PATH).body == DATA
            assert await content(fs, "f") == DATA
    assert kept(staging) == []


async def test_a_writer_of_an_old_version_does_not_overwrite_the_new_one(
    ask: Requests, staging: Path
) -> None:
    """It opened without changing anything; by the time it writes, the name is another inode's."""
    ask.server.deploy(REPO, "f", b"first")
    ask.server.deploy(REPO, "copy", b"first")
    async with writing(ask, staging) as fs:
        handle = await opened_by_name(fs, "f", os.O_RDWR)
        ask.server.deploy(REPO, "f", OTHERS)
        await fs.refresh(ROOT)
        assert await content(fs, "f") == OTHERS
        await fs.write(handle, 0, b"F")
        assert bytes(await fs.read(handle, Extent(0, 9))) == b"First"
        assert await content(fs, "f") == OTHERS
        with pytest.raises(ChangedElsewhere):
            await close(fs, handle)
        assert await content(fs, "f") == OTHERS
    assert [data for _, data in kept(staging)] == [b"First"]


async def test_a_removed_name_takes_writers_of_older_content_with_it(
    ask: Requests, staging: Path
) -> None:
    ask.server.deploy(REPO, "f", b"first")
    async with writing(ask, staging, last_writer_wins=True) as fs:
        handle = await opened_by_name(fs, "f", os.O_RDWR)
        await fs.write(handle, 0, b"F")
        await fs.fsync(handle)
        ask.server.deploy(REPO, "f", OTHERS)
        await fs.refresh(ROOT)
        assert await content(fs, "f") == OTHERS
        await fs.write(handle, 0, b"f")
        await fs.unlink(ROOT, "f")
        await close(fs, handle)
    assert ask.tree() == {}
    assert kept(staging) == []


async def test_an_upload_whose_answer_was_lost_is_our_own(ask: Requests, staging: Path) -> None:
    async with writing(ask, staging, deadline_s=0.5) as fs:
        opened, _ = await fs.create(ROOT, "f", 0o644, os.O_WRONLY, ME)
        await fs.write(opened.handle, 0, b"one")
        lost = ask.server.faults.add(Fault.drop(f"{PATH}*", method="PUT"))
        with pytest.raises(Exception, match="f"):
            await fs.fsync(opened.handle)
        assert lost.hits
        ask.server.faults.clear()
        assert ask.get(PATH).body == b"one"
        await fs.write(opened.handle, 3, b"two")
        await close(fs, opened.handle)
    assert ask.get(PATH).body == b"onetwo"
    assert kept(staging) == []


@pytest.mark.parametrize("theirs", [MINE, OTHERS])
async def test_a_move_that_somebody_else_made_is_not_taken_for_ours(
    ask: Requests, staging: Path, theirs: bytes
) -> None:
    """Who finds the source gone after an answer that failed looks at what is at the new name."""
    ask.server.deploy(REPO, "f", MINE)
    async with writing(ask, staging) as fs:
        assert await content(fs, "f") == MINE
        refused = ask.server.faults.add(Fault.status(503, "/api/move/*", times=1))
        looks = ask.server.faults.add(Fault.hold(f"/api/storage{PATH}", times=1))
        async with outcomes(fs.rename(ROOT, "f", ROOT, "g", 0)) as said:
            await trio.to_thread.run_sync(looks.wait_hit)
            assert refused.hits
            await trio.to_thread.run_sync(ask.delete, PATH)
            ask.server.deploy(REPO, "g", theirs)
            looks.release()
        assert await content(fs, "g") == theirs
        assert [type(each) for each in said] == [type(None) if theirs == MINE else Unavailable]


async def test_a_reader_goes_on_with_its_version(ask: Requests, staging: Path) -> None:
    """From where the server has the same content, once its name has other; else ESTALE."""
    ask.server.deploy(REPO, "f", DATA)
    ask.server.deploy(REPO, "copy", DATA)
    ask.server.deploy(REPO, "g", DATA[::-1])
    async with writing(ask, staging) as fs:
        old = {name: await opened_by_name(fs, name, os.O_RDONLY) for name in "fg"}
        inodes = {name: (await fs.lookup(ROOT, name)).ino for name in "fg"}
        for name in "fg":
            ask.server.deploy(REPO, name, OTHERS)
        await fs.refresh(ROOT)
        for name in "fg":
            assert await content(fs, name) == OTHERS
            assert (await fs.lookup(ROOT, name)).ino != inodes[name]
            was = await fs.getattr(inodes[name])
            assert (was.size, was.nlink) == (len(DATA), 0)
        got = b"".join(
            [
                bytes(await fs.read(old["f"], Extent(at, at + 65536)))
                for at in range(0, 300_000, 65536)
            ]
        )
        assert got == DATA
        for _ in range(2):
            with pytest.raises(Stale):
                await fs.read(old["g"], Extent(0, 10))
        for handle in old.values():
            await fs.release(handle)
        assert await find(fs, "f") != inodes["f"]


@pytest.mark.parametrize("gone", ["believed", "expired"])
async def test_who_opens_what_others_removed_looks_again(
    ask: Requests, staging: Path, gone: str
) -> None:
    """``open(…, O_CREAT)`` of a name that the kernel believes in is no ENOENT: it makes it."""
    ask.server.deploy(REPO, "f", b"first")
    async with writing(ask, staging) as fs:
        ino = (await fs.lookup(ROOT, "f", 7)).ino
        ask.server.delete(REPO, "f")
        if gone == "expired":  # then the kernel asks for its attributes first
            await fs.refresh(ROOT)
            with pytest.raises(Replaced):
                await fs.getattr(ino)
        with pytest.raises(Replaced):
            await fs.open(ino, os.O_WRONLY | os.O_TRUNC, 7)
        opened, _ = await fs.create(ROOT, "f", 0o644, os.O_WRONLY | os.O_TRUNC, ME)
        await fs.write(opened.handle, 0, MINE)
        await close(fs, opened.handle)
    assert ask.get(PATH).body == MINE


@pytest.mark.parametrize("known", [False, True])
async def test_a_name_that_others_remove_while_it_is_opened_is_made(
    ask: Requests, staging: Path, known: bool
) -> None:
    ask.server.deploy(REPO, "f", b"first")
    async with writing(ask, staging) as fs:
        if known:
            await fs.lookup(ROOT, "f")
        # Without a lookup before, the first question is whether it is there.
        held = Fault.hold(f"/api/storage/{REPO}/f", after=0 if known else 1, times=1)
        ask.server.faults.add(held)

        async def remove() -> None:
            await trio.to_thread.run_sync(held.wait_hit)
            ask.server.delete(REPO, "f")
            held.release()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(remove)
            opened, _ = await fs.create(ROOT, "f", 0o644, os.O_WRONLY | os.O_TRUNC, ME)
        await fs.write(opened.handle, 0, MINE)
        await close(fs, opened.handle)
    assert ask.get(PATH).body == MINE


async def _unlink(fs: Filesystem) -> None:
    await fs.unlink(ROOT, "f")


async def _rename_over(fs: Filesystem) -> None:
    await fs.rename(ROOT, "g", ROOT, "f", 0)


@pytest.mark.parametrize("change", [_unlink, _rename_over])
async def test_what_nobody_can_read_any_more_keeps_no_name_from_changing(
    ask: Requests, staging: Path, change: Callable[[Filesystem], Awaitable[None]]
) -> None:
    """Its readers would have been kept a copy; they are told instead."""
    ask.server.deploy(REPO, "f", DATA)
    ask.server.deploy(REPO, "g", MINE)
    async with writing(ask, staging) as fs:
        handle = await opened_by_name(fs, "f", os.O_RDONLY)
        ask.server.deploy(REPO, "f", OTHERS)
        await change(fs)
        with pytest.raises(Stale):
            await fs.read(handle, Extent(0, 10))
        await fs.release(handle)
    assert ask.get(PATH).status == (404 if change is _unlink else 200)


async def test_properties_are_not_set_on_what_took_the_name(ask: Requests, staging: Path) -> None:
    ask.server.deploy(REPO, "f", b"first")
    async with writing(ask, staging) as fs:
        ino = (await fs.lookup(ROOT, "f")).ino
        handle = (await fs.open(ino, os.O_RDONLY)).handle
        ask.server.deploy(REPO, "f", OTHERS)
        await fs.refresh(ROOT)
        assert (await fs.lookup(ROOT, "f")).ino != ino
        with pytest.raises(Replaced):
            await fs.setxattr(ino, b"user.env", b"production")
        await fs.release(handle)
        for change in (fs.listxattr(ino), fs.getxattr(ino, b"user.jfs.sha256"), fs.getattr(ino)):
            with pytest.raises(Replaced):
                await change
        with pytest.raises(Replaced):
            await fs.setattr(ino, Change(mode=0o600))
    assert ask.properties("f") == {}


async def test_a_target_that_comes_and_goes_while_it_is_asked_for_is_no_obstacle(
    ask: Requests, staging: Path
) -> None:
    ask.server.deploy(REPO, "g", MINE)
    nothing_believed = replace(TREE, entry_ttl_s=0, attr_ttl_s=0, negative_ttl_s=0)
    async with composed(
        ask.server, REPO, tree=nothing_believed, writes=WriteSettings(staging)
    ) as fs:
        # Missing; there, when the server itself is asked; missing again.
        asked = [
            ask.server.faults.add(Fault.hold(f"/api/storage/{REPO}/f", after=1, times=1))
            for _ in range(2)
        ]

        async def others() -> None:
            for fault in asked:
                await trio.to_thread.run_sync(fault.wait_hit)
                if fault is asked[0]:
                    ask.server.deploy(REPO, "f", OTHERS)
                else:
                    ask.server.delete(REPO, "f")
                fault.release()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(others)
            await fs.rename(ROOT, "g", ROOT, "f", 0)
    assert ask.get(PATH).body == MINE
