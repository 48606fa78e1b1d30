"""Writing through the facade: what close says, what the server has, what the journal keeps."""

import contextlib
import fcntl
import hashlib
import os
import random
import struct
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from jfs.config import WriteSettings
from jfs.errors import (
    AccessDenied,
    AlreadyExists,
    BadHandle,
    Conflict,
    FileTooLarge,
    InvalidArgument,
    InvalidName,
    IsADirectory,
    JfsError,
    NameTooLong,
    NoEntry,
    NotADirectory,
    NotEmpty,
    NotPermitted,
    QuotaExceeded,
    ReadOnly,
    Replaced,
    Stale,
)
from jfs.extents import Extent
from jfs.server import EmbeddedServer, Fault
from jfs.vfs.attributes.stat import Caller, Change
from jfs.vfs.filesystem import Filesystem
from jfs.vfs.namespace.inodes import ROOT
from jfs.vfs.writing.journal import Journal
from jfs.vfs.writing.records import Record, State
from tests.component.composed import block_store, composed, content, find, names
from tests.component.server_requests import REPO, Requests

ME = Caller(os.getuid(), os.getgid())
PATH = f"/{REPO}/f"
FAULTY = f"{PATH}*"  # with the properties that it is sent with


@asynccontextmanager
async def writing(
    ask: Requests, staging: Path, *, source: str = REPO, deadline_s: float = 60, **modes: bool
) -> AsyncIterator[Filesystem]:
    settings = WriteSettings(staging, **modes)  # type: ignore[arg-type]  # the modes are flags
    async with composed(ask.server, source, writes=settings, deadline_s=deadline_s) as fs:
        yield fs


async def put(fs: Filesystem, path: str, data: bytes, *, piece: int = 100_000) -> None:
    """Write a file as ``open(path, "wb")`` does; raises what ``close`` would report."""
    folder, _, name = path.rpartition("/")
    opened, _ = await fs.create(await find(fs, folder), name, 0o644, os.O_WRONLY | os.O_TRUNC, ME)
    try:
        for offset in range(0, len(data), piece):
            await fs.write(opened.handle, offset, data[offset : offset + piece])
        await fs.flush(opened.handle)
    finally:
        await fs.release(opened.handle)


def kept(staging: Path) -> list[tuple[Record, bytes]]:
    """Return what the journal has, as after the end of the mount."""
    found = []
    for entry in Journal(staging).left_behind():
        found.append((entry.record, os.pread(entry.file, 1 << 24, 0)))
        entry.close()
    return found


DATA = random.Random(1).randbytes(300_000)


async def test_a_file_is_on_the_server_when_it_is_closed(ask: Requests, staging: Path) -> None:
    async with writing(ask, staging) as fs:
        opened, attributes = await fs.create(ROOT, "f", 0o644, os.O_WRONLY, ME)
        await fs.write(opened.handle, 0, DATA)
        assert ask.get(PATH).status == 404  # visible only when it is complete
        assert (await names(fs, ""))["f"] == attributes.ino  # here it is
        await fs.flush(opened.handle)
        assert ask.get(PATH).body == DATA
        await fs.release(opened.handle)
        assert (await fs.getattr(attributes.ino)).size == len(DATA)
        assert await content(fs, "f") == DATA
    assert kept(staging) == []


async def test_what_was_uploaded_is_read_from_the_cache(
    ask: Requests, staging: Path, tmp_path: Path
) -> None:
    store = block_store(tmp_path / "cache")
    settings = WriteSettings(staging)
    async with composed(ask.server, REPO, store=store, writes=settings) as fs:
        await put(fs, "f", DATA)
        ask.server.stats.reset()
        assert await content(fs, "f") == DATA
        assert ask.server.stats.bytes_sent == 0
    store.close()


async def test_what_was_in_memory_is_not_read_once_it_is_written(
    ask: Requests, staging: Path
) -> None:
    data = random.Random(5).randbytes(3_000_000)
    ask.server.deploy(REPO, "f", data)
    async with writing(ask, staging) as fs:
        ino = await find(fs, "/f")
        reader = (await fs.open(ino, os.O_RDONLY)).handle
        extent = Extent(0, 1000)
        assert await fs.read(reader, extent) == data[:1000]
        assert fs.read_at_once(reader, extent) == data[:1000]
        assert fs.read_at_once(reader + 1, extent) is None
        writer = (await fs.open(ino, os.O_RDWR)).handle
        await fs.write(writer, 0, b"new")
        assert fs.read_at_once(reader, extent) is None
        assert await fs.read(reader, extent) == b"new" + data[3:1000]
        await fs.flush(writer)
        for handle in (writer, reader):
            await fs.release(handle)


async def test_known_content_is_deployed_by_checksum(ask: Requests, staging: Path) -> None:
    ask.server.deploy(REPO, "known", DATA)
    async with writing(ask, staging) as fs:
        await names(fs, "")
        ask.server.stats.reset()
        await put(fs, "again", DATA)
        assert ask.server.stats.bytes_received == 0
    assert ask.get(f"/{REPO}/again").body == DATA


@pytest.mark.parametrize("size", [0, 1, 4095, 32 * 1024, 100_001])
async def test_sizes(ask: Requests, staging: Path, size: int) -> None:
    async with writing(ask, staging) as fs:
        await put(fs, "f", DATA[:size])
    assert ask.get(PATH).body == DATA[:size]


async def test_out_of_order_with_holes(ask: Requests, staging: Path) -> None:
    expected = bytearray(250_000)
    choose = random.Random(3)
    async with writing(ask, staging) as fs:
        opened, _ = await fs.create(ROOT, "f", 0o644, os.O_RDWR, ME)
        for _ in range(40):
            offset, piece = choose.randrange(240_000), choose.randbytes(10_000)
            await fs.write(opened.handle, offset, piece)
            expected[offset : offset + 10_000] = piece
        got = bytes(await fs.read(opened.handle, Extent(0, 1 << 20)))
        end = len(got)
        assert got == expected[:end]
        assert not any(expected[end:])
        await fs.flush(opened.handle)
        await fs.release(opened.handle)
    assert ask.get(PATH).body == expected[:end]


async def test_append_and_truncate_fetch_what_stays(ask: Requests, staging: Path) -> None:
    ask.server.deploy(REPO, "f", DATA, {"env": ["production"], "note": ["a,b", "c;d"]})
    async with writing(ask, staging) as fs:
        ino = await find(fs, "f")
        opened = await fs.open(ino, os.O_WRONLY | os.O_APPEND)
        await fs.write(opened.handle, len(DATA), b"more")
        await fs.flush(opened.handle)
        await fs.release(opened.handle)
        assert ask.get(PATH).body == DATA + b"more"
        await fs.setattr(ino, Change(size=1000))
        assert ask.get(PATH).body == DATA[:1000]
        await fs.setattr(ino, Change(size=2000))
        assert ask.get(PATH).body == DATA[:1000] + bytes(1000)
        await fs.setattr(ino, Change(size=0))
        assert ask.get(PATH).body == b""
    # An overwrite keeps the properties, whatever is in them.
    assert ask.properties("f") == {"env": ["production"], "note": ["a,b", "c;d"]}


async def test_opening_for_writing_alone_changes_nothing(ask: Requests, staging: Path) -> None:
    ask.server.deploy(REPO, "f", DATA)
    async with writing(ask, staging) as fs:
        opened = await fs.open(await find(fs, "f"), os.O_RDWR)
        ask.server.stats.reset()
        await fs.flush(opened.handle)
        await fs.release(opened.handle)
        assert ask.server.stats.requests == 0


async def test_two_handles_see_each_other(ask: Requests, staging: Path) -> None:
    ask.server.deploy(REPO, "f", DATA)
    async with writing(ask, staging) as fs:
        ino = await find(fs, "f")
        reader = await fs.open(ino, os.O_RDONLY)
        writer = await fs.open(ino, os.O_RDWR)
        await fs.write(writer.handle, 10, b"changed")
        assert (
            bytes(await fs.read(reader.handle, Extent(0, 20)))
            == DATA[:10] + b"changed" + (DATA[17:20])
        )
        with pytest.raises(BadHandle):
            await fs.write(reader.handle, 0, b"x")
        await fs.release(writer.handle)  # the last stores of a mapping come without a FLUSH
        assert ask.get(PATH).body[10:17] == b"changed"
        assert bytes(await fs.read(reader.handle, Extent(10, 17))) == b"changed"
        await fs.release(reader.handle)


async def test_an_unlinked_file_is_never_uploaded(ask: Requests, staging: Path) -> None:
    async with writing(ask, staging) as fs:
        opened, _ = await fs.create(ROOT, "f", 0o600, os.O_RDWR, ME)
        await fs.write(opened.handle, 0, DATA)
        await fs.unlink(ROOT, "f")
        await fs.write(opened.handle, 0, b"more")
        assert bytes(await fs.read(opened.handle, Extent(0, 10))) == b"more" + DATA[4:10]
        ask.server.stats.reset()
        await fs.flush(opened.handle)
        await fs.release(opened.handle)
        assert ask.server.stats.requests == 0
        with pytest.raises(NoEntry):
            await fs.lookup(ROOT, "f")
    assert kept(staging) == []


async def test_a_removed_file_is_read_to_its_end_by_who_has_it_open(
    ask: Requests, staging: Path
) -> None:
    ask.server.deploy(REPO, "f", DATA)
    ask.server.deploy(REPO, "g", b"other")
    async with writing(ask, staging) as fs:
        ino = await find(fs, "f")
        opened = await fs.open(ino, os.O_RDONLY)
        await fs.rename(ROOT, "g", ROOT, "f", 0)
        assert bytes(await fs.read(opened.handle, Extent(0, len(DATA)))) == DATA
        assert (await fs.getattr(ino)).nlink == 0
        assert await content(fs, "f") == b"other"
        await fs.release(opened.handle)


async def test_a_rename_takes_open_files_along(ask: Requests, staging: Path) -> None:
    ask.server.deploy(REPO, "d/read", DATA)
    async with writing(ask, staging) as fs:
        reader = await fs.open(await find(fs, "d/read"), os.O_RDONLY)
        new, _ = await fs.create(await find(fs, "d"), "new", 0o644, os.O_WRONLY, ME)
        await fs.write(new.handle, 0, b"new")
        await fs.rename(ROOT, "d", ROOT, "e", 0)
        assert bytes(await fs.read(reader.handle, Extent(0, len(DATA)))) == DATA
        await fs.flush(new.handle)
        await fs.release(new.handle)
        await fs.release(reader.handle)
    assert ask.tree() == {"/e": -1, "/e/new": 3, "/e/read": len(DATA)}


# names


async def test_names_change_on_the_server(ask: Requests, staging: Path) -> None:
    ask.server.deploy(REPO, "a/f", b"f", {"env": ["production"]})
    async with writing(ask, staging) as fs:
        a = await find(fs, "a")
        b = (await fs.mkdir(ROOT, "b", 0o755, ME)).ino
        assert ask.tree() == {"/a": -1, "/a/f": 1, "/b": -1}
        with pytest.raises(AlreadyExists):
            await fs.mkdir(ROOT, "b", 0o755, ME)
        await fs.rename(a, "f", b, "g", 0)
        # The server prunes what a move leaves empty; here a folder stays until it is removed.
        assert ask.tree() == {"/a": -1, "/b": -1, "/b/g": 1}
        assert ask.properties("b/g") == {"env": ["production"]}
        with pytest.raises(NotEmpty):
            await fs.rmdir(ROOT, "b")
        with pytest.raises(NotADirectory):
            await fs.rmdir(b, "g")
        with pytest.raises(IsADirectory):
            await fs.unlink(ROOT, "b")
        await fs.rmdir(ROOT, "a")
        await fs.unlink(b, "g")
        await fs.rmdir(ROOT, "b")
        assert ask.tree() == {}
        for act in (fs.unlink, fs.rmdir):
            with pytest.raises(NoEntry):
                await act(ROOT, "b")


async def test_a_folder_never_nests(ask: Requests, staging: Path) -> None:
    ask.server.deploy(REPO, "d/f", b"f")
    async with writing(ask, staging) as fs:
        await names(fs, "")
        assert ask.put(f"/{REPO}/e/").status == 201  # by somebody else: not known here
        await fs.rename(ROOT, "d", ROOT, "e", 0)
        assert ask.tree() == {"/e": -1, "/e/f": 1}
        assert ask.put(f"/{REPO}/g/h").status == 201
        with pytest.raises(NotEmpty):
            await fs.rename(ROOT, "e", ROOT, "g", 0)
        with pytest.raises(IsADirectory):
            await fs.rename(await find(fs, "e"), "f", ROOT, "g", 0)
        with pytest.raises(NotADirectory):
            await fs.rename(ROOT, "g", await find(fs, "e"), "f", 0)
        assert ask.tree() == {"/e": -1, "/e/f": 1, "/g": -1, "/g/h": 0}


async def test_flags_of_a_rename(ask: Requests, staging: Path) -> None:
    ask.server.deploy(REPO, "a", b"a")
    async with writing(ask, staging) as fs:
        await names(fs, "")
        ask.server.deploy(REPO, "b", b"b")  # since then
        with pytest.raises(AlreadyExists):
            await fs.rename(ROOT, "a", ROOT, "b", 1)
        with pytest.raises(InvalidArgument):
            await fs.rename(ROOT, "a", ROOT, "b", 2)  # RENAME_EXCHANGE
        await fs.rename(ROOT, "a", ROOT, "c", 1)
    assert ask.tree() == {"/b": 1, "/c": 1}


async def test_promotion_is_a_move_between_repositories(ask: Requests, staging: Path) -> None:
    ask.server.create_repository("prod")
    ask.server.deploy(REPO, "bert/2.0.0/m", DATA, {"approved-by": ["alice"]})
    async with writing(ask, staging, source="") as fs:
        prod = (await fs.mkdir(await find(fs, "prod"), "bert", 0o755, ME)).ino
        ask.server.stats.reset()
        await fs.rename(await find(fs, f"{REPO}/bert"), "2.0.0", prod, "2.0.0", 0)
        assert ask.server.stats.bytes_received == 0
        assert await content(fs, "prod/bert/2.0.0/m") == DATA
        assert ask.get("/prod/bert/2.0.0/m").body == DATA
        reply = ask.get("/api/storage/prod/bert/2.0.0/m?properties")
        assert reply.json()["properties"] == {"approved-by": ["alice"]}
        for act in (
            lambda: fs.mkdir(ROOT, "new-repository", 0o755, ME),
            lambda: fs.rmdir(ROOT, "prod"),
            lambda: fs.rename(ROOT, "prod", ROOT, "other", 0),
            lambda: fs.create(ROOT, "file", 0o644, os.O_WRONLY, ME),
        ):
            with pytest.raises(NotPermitted):
                await act()


async def test_a_symbolic_link_is_stored_as_the_jf_command_does(
    ask: Requests, staging: Path
) -> None:
    async with writing(ask, staging) as fs:
        made = await fs.symlink(ROOT, "current", "2.0.0/model.bin", ME)
        assert await fs.readlink(made.ino) == "2.0.0/model.bin"
        with pytest.raises(AlreadyExists):
            await fs.symlink(ROOT, "current", "x", ME)
        with pytest.raises(NameTooLong):
            await fs.symlink(ROOT, "long", "x" * 4001, ME)
        assert await fs.listxattr(made.ino) == []
    assert ask.properties("current") == {"symlink.dest": ["2.0.0/model.bin"]}
    assert ask.get(f"/{REPO}/current").body == b""
    async with writing(ask, staging) as fs:  # another mount: a listing, and a name by itself
        assert await fs.readlink((await names(fs, ""))["current"]) == "2.0.0/model.bin"
    async with writing(ask, staging) as fs:
        assert await fs.readlink((await fs.lookup(ROOT, "current")).ino) == "2.0.0/model.bin"
        with pytest.raises(InvalidArgument):
            await fs.readlink(ROOT)


async def test_what_artifactory_cannot_hold(ask: Requests, staging: Path) -> None:
    async with writing(ask, staging) as fs:
        for name in ("a*b", 'q"', " edge", "m.sha256", "...", "b\\s"):
            with pytest.raises(InvalidName):
                await put(fs, name, b"")
            with pytest.raises(InvalidName):
                await fs.mkdir(ROOT, name, 0o755, ME)
        with pytest.raises(NameTooLong):
            await put(fs, "n" * 256, b"")
        for mode in (0o20644, 0o60644, 0o10644, 0o140644):  # devices, pipe, socket
            with pytest.raises(NotPermitted):
                await fs.mknod(ROOT, "node", mode, ME)
        assert (await fs.mknod(ROOT, "plain", 0o100644, ME)).size == 0
    assert ask.tree() == {"/plain": 0}
    assert kept(staging) == []


async def test_exclusive_creation_asks_the_server(ask: Requests, staging: Path) -> None:
    async with writing(ask, staging) as fs:
        with pytest.raises(NoEntry):
            await fs.lookup(ROOT, "lock")
        ask.server.deploy(REPO, "lock", b"")  # by another node, a moment ago
        with pytest.raises(AlreadyExists):
            await fs.create(ROOT, "lock", 0o644, os.O_WRONLY | os.O_EXCL, ME)


# attributes


async def test_modes_and_times_are_kept_while_the_mount_lives(ask: Requests, staging: Path) -> None:
    async with writing(ask, staging) as fs:
        opened, made = await fs.create(ROOT, "f", 0o100755, os.O_WRONLY, ME)
        await fs.write(opened.handle, 0, DATA)
        mtime = 1_600_000_000_123_456_789
        await fs.setattr(made.ino, Change(mtime_ns=mtime, atime_ns=5), opened.handle)
        await fs.flush(opened.handle)
        await fs.release(opened.handle)
        # The server keeps whole seconds of a time that was set before the upload.
        assert ask.get(f"/api/storage/{REPO}/f").json()["lastModified"] == (
            "2020-09-13T12:26:40.000Z"
        )
        fs.forget(made.ino, 2)
        found = await fs.lookup(ROOT, "f")
        assert (found.mode & 0o7777, found.mtime_ns, found.atime_ns) == (0o755, mtime, 5)
        await fs.setattr(found.ino, Change(mode=0o640, uid=7, gid=8))
        await fs.rename(ROOT, "f", ROOT, "g", 0)
        found = await fs.lookup(ROOT, "g")
        assert (found.mode & 0o7777, found.uid, found.gid) == (0o640, 7, 8)
        assert found.mtime_ns == mtime


async def test_attributes_that_are_set_while_a_file_is_written(
    ask: Requests, staging: Path
) -> None:
    async with writing(ask, staging) as fs:
        opened, made = await fs.create(ROOT, "f", 0o644, os.O_WRONLY, ME)
        await fs.write(opened.handle, 0, DATA)
        await fs.setxattr(made.ino, b"user.env", b"staging,\\,odd;")
        assert await fs.getxattr(made.ino, b"user.env") == b"staging,\\,odd;"
        assert await fs.getxattr(made.ino, b"user.jfs.state") == b"dirty"
        with pytest.raises(NotPermitted):
            await fs.setxattr(made.ino, b"user.symlink.dest", b"x")
        await fs.flush(opened.handle)
        assert await fs.getxattr(made.ino, b"user.jfs.state") == b"clean"
        await fs.release(opened.handle)
        assert await fs.getxattr(made.ino, b"user.env") == b"staging,\\,odd;"
    assert ask.properties("f") == {"env": ["staging", ",odd;"]}


async def test_upload_properties_go_with_every_file(ask: Requests, staging: Path) -> None:
    settings = WriteSettings(staging, {"build.name": ("train",), "env": ("staging",)})
    ask.server.deploy(REPO, "old", b"1", {"env": ["production"], "team": ["nlp"]})
    async with composed(ask.server, REPO, writes=settings) as fs:
        await put(fs, "new", DATA)
        await put(fs, "old", DATA)
    assert ask.properties("new") == {"build.name": ["train"], "env": ["staging"]}
    assert ask.properties("old") == {
        "build.name": ["train"],
        "env": ["staging"],
        "team": ["nlp"],
    }


async def test_a_file_that_takes_the_place_of_a_tagged_one_keeps_the_tags(
    ask: Requests, staging: Path
) -> None:
    ask.server.deploy(REPO, "f", b"old", {"env": ["production"]})
    async with writing(ask, staging) as fs:
        await put(fs, "f.tmp", b"new")
        await fs.rename(ROOT, "f.tmp", ROOT, "f", 0)
        assert ask.properties("f") == {"env": ["production"]}
        await put(fs, "tagged", b"newer")
        await fs.setxattr(await find(fs, "tagged"), b"user.env", b"staging")
        await fs.rename(ROOT, "tagged", ROOT, "f", 0)  # what has tags of its own keeps those
    assert ask.properties("f") == {"env": ["staging"]}
    assert ask.get(PATH).body == b"newer"


# modes


async def test_no_overwrite(ask: Requests, staging: Path) -> None:
    ask.server.deploy(REPO, "f", b"released")
    async with writing(ask, staging, no_overwrite=True) as fs:
        ino = await find(fs, "f")
        for flags in (os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_TRUNC):
            with pytest.raises(NotPermitted):
                await fs.open(ino, flags)
        with pytest.raises(NotPermitted):
            await fs.setattr(ino, Change(size=0))
        await put(fs, "new", b"1")
        with pytest.raises(AlreadyExists):
            await fs.rename(ROOT, "new", ROOT, "f", 0)
        await fs.setxattr(ino, b"user.env", b"production")  # tags are no content
        opened, _ = await fs.create(ROOT, "twice", 0o644, os.O_WRONLY, ME)
        await fs.write(opened.handle, 0, b"1")
        await fs.fsync(opened.handle)
        await fs.write(opened.handle, 1, b"2")  # the same open file goes on
        await fs.flush(opened.handle)
        await fs.release(opened.handle)
        late, _ = await fs.create(ROOT, "late", 0o644, os.O_WRONLY, ME)
        await fs.write(late.handle, 0, b"mine")
        ask.server.deploy(REPO, "late", b"theirs")
        with pytest.raises(AlreadyExists):
            await fs.flush(late.handle)
        await fs.release(late.handle)
    assert ask.get(PATH).body == b"released"
    assert ask.get(f"/{REPO}/twice").body == b"12"
    assert ask.get(f"/{REPO}/late").body == b"theirs"
    assert [data for _, data in kept(staging)] == [b"mine"]


async def test_no_delete(ask: Requests, staging: Path) -> None:
    ask.server.deploy(REPO, "d/f", b"1")
    async with writing(ask, staging, no_delete=True) as fs:
        d = await find(fs, "d")
        await fs.mkdir(ROOT, "empty", 0o755, ME)
        for act in (
            lambda: fs.unlink(d, "f"),
            lambda: fs.rmdir(ROOT, "empty"),
            lambda: fs.rename(d, "f", ROOT, "g", 0),
        ):
            with pytest.raises(NotPermitted):
                await act()
        await put(fs, "d/f", b"2")  # content may change
    assert ask.get(f"/{REPO}/d/f").body == b"2"


# refusals and weather


REFUSALS = [
    (413, QuotaExceeded),
    (507, QuotaExceeded),
    (403, AccessDenied),
    (401, AccessDenied),
    (405, ReadOnly),
    (404, ReadOnly),
    (409, Conflict),
]


@pytest.mark.parametrize(("status", "error"), REFUSALS)
@pytest.mark.parametrize("old", [None, b"old"])
async def test_a_refusal_is_what_close_says(
    ask: Requests, staging: Path, status: int, error: type[JfsError], old: bytes | None
) -> None:
    if old is not None:
        ask.server.deploy(REPO, "f", old)
    async with writing(ask, staging) as fs:
        await names(fs, "")
        ask.server.faults.add(Fault.status(status, PATH, method="PUT"))
        with pytest.raises(error):
            await put(fs, "f", DATA)
        ask.server.faults.clear()
        # What the mount shows is what the server has.
        if old is None:
            with pytest.raises(NoEntry):
                await fs.lookup(ROOT, "f")
        else:
            assert await content(fs, "f") == old
    assert ask.get(PATH).status == (404 if old is None else 200)
    ((record, data),) = kept(staging)
    assert (record.state, record.path.path, data) == (State.FAILED, "f", DATA)
    assert record.error


# A checksum deploy and a body are each met at every step; the upload gets through, or its failure
# is told, and what is on the server is the old content or the new one, whole.
WEATHER = [
    ("drop the first answer", lambda: Fault.drop(FAULTY, method="PUT", times=1), True),
    ("drop the second answer", lambda: Fault.drop(FAULTY, method="PUT", times=1, after=1), True),
    ("cut the first", lambda: Fault.cut(FAULTY, method="PUT", times=1), True),
    ("cut inside of the body", lambda: Fault.cut(FAULTY, after_bytes=50_000, method="PUT"), False),
    (
        "cut the body once",
        lambda: Fault.cut(FAULTY, after_bytes=50_000, method="PUT", times=1, after=1),
        True,
    ),
    ("503 three times", lambda: Fault.status(503, FAULTY, method="PUT", times=3), True),
    ("503 for the body", lambda: Fault.status(503, FAULTY, method="PUT", times=1, after=1), True),
    ("503 for ever", lambda: Fault.status(503, FAULTY, method="PUT"), False),
    (
        "503 without reading the body",
        lambda: Fault.status(503, FAULTY, method="PUT", early=True, after=1, times=1),
        True,
    ),
    ("429", lambda: Fault.status(429, FAULTY, method="PUT", times=2), True),
    ("409 once", lambda: Fault.status(409, FAULTY, method="PUT", times=1), True),
    ("garbage", lambda: Fault.garbage(FAULTY, method="PUT"), False),
    ("other checksums", lambda: Fault.wrong_checksums(FAULTY, method="PUT"), False),
    ("no properties", lambda: Fault.status(500, "*f", method="GET"), False),
]


@pytest.mark.parametrize(
    ("fault", "comes_through"),
    [pytest.param(fault, through, id=name) for name, fault, through in WEATHER],
)
async def test_weather_at_every_step_of_a_deploy(
    ask: Requests,
    staging: Path,
    fault: "type[Fault]",
    comes_through: bool,
    expected_logs: list[str],
) -> None:
    expected_logs += ["serving what was known before"]
    ask.server.deploy(REPO, "f", b"old", {"env": ["production"]})
    async with writing(ask, staging, deadline_s=3) as fs:
        await names(fs, "")
        ask.server.faults.add(fault())
        try:
            await put(fs, "f", DATA)
            told = False
        except JfsError:
            told = True
        ask.server.faults.clear()
    there = ask.get(PATH).body
    assert there in (b"old", DATA)
    assert told is not comes_through
    if not told:
        assert there == DATA
        assert ask.properties("f") == {"env": ["production"]}
        assert kept(staging) == []
    else:
        assert [data for _, data in kept(staging)] == [DATA]


async def test_small_content_is_sent_as_often_as_it_takes(ask: Requests, staging: Path) -> None:
    """One refusal in ten is bad weather: of 10,000 uploads one or two meet four in a row."""
    for _ in range(4):
        # The question whether it is known is answered, and the body refused.
        ask.server.faults.add(Fault.set_headers({"X-Day": "fair"}, PATH, method="PUT", times=1))
        ask.server.faults.add(Fault.status(503, PATH, method="PUT", times=1))
    async with writing(ask, staging) as fs:
        await put(fs, "f", DATA)
    assert ask.get(PATH).body == DATA


async def test_an_upload_whose_answer_is_lost_is_not_sent_twice(
    ask: Requests, staging: Path
) -> None:
    """The answer is lost, the upload is not: the second question finds it there."""
    fault = ask.server.faults.add(Fault.drop(PATH, method="PUT", times=1, after=1))
    async with writing(ask, staging) as fs:
        ask.server.stats.reset()
        await put(fs, "f", DATA)
        assert fault.hits == 1
        assert ask.server.stats.bytes_received == len(DATA)  # once
    assert ask.get(PATH).body == DATA


async def test_a_drain_ends_with_the_last_upload(ask: Requests, staging: Path) -> None:
    """Also when one began after the drain did."""
    first = ask.server.faults.add(Fault.stall(PATH, method="PUT", times=1))
    second = ask.server.faults.add(Fault.stall(f"/{REPO}/g", method="PUT", times=1))
    async with writing(ask, staging) as fs:
        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(put, fs, "f", DATA)
                await trio.to_thread.run_sync(first.wait_hit)
                nursery.start_soon(fs.drain)
                nursery.start_soon(put, fs, "g", DATA)
                await trio.to_thread.run_sync(second.wait_hit)
                first.release()
                second.release()
    assert ask.get(f"/{REPO}/g").body == DATA


async def test_a_failed_fsync_is_made_good_by_the_next_close(ask: Requests, staging: Path) -> None:
    fault = Fault.status(413, PATH, method="PUT", times=2)
    async with writing(ask, staging) as fs:
        opened, _ = await fs.create(ROOT, "f", 0o644, os.O_WRONLY, ME)
        await fs.write(opened.handle, 0, DATA)
        ask.server.faults.add(fault)
        with pytest.raises(QuotaExceeded):
            await fs.fsync(opened.handle)
        ask.server.faults.clear()
        await fs.flush(opened.handle)
        await fs.release(opened.handle)
    assert ask.get(PATH).body == DATA
    assert kept(staging) == []


async def test_a_failure_that_no_close_could_tell(
    ask: Requests, staging: Path, expected_logs: list[str]
) -> None:
    """A mapping outlives close(): what its last stores meet is kept where it can be found."""
    expected_logs.append("not uploaded")
    ask.server.deploy(REPO, "f", b"old")
    async with writing(ask, staging) as fs:
        ino = await find(fs, "f")
        opened = await fs.open(ino, os.O_RDWR)
        await fs.flush(opened.handle)  # close()
        await fs.write(opened.handle, 0, b"new")  # the page that was still dirty
        ask.server.faults.add(Fault.status(403, PATH, method="PUT"))
        await fs.release(opened.handle)
        assert b"403" in await fs.getxattr(await find(fs, "f"), b"user.jfs.last_error")
        assert await content(fs, "f") == b"old"
    assert [data for _, data in kept(staging)] == [b"new"]


async def test_the_bytes_of_a_failed_upload_are_on_disk(ask: Requests, staging: Path) -> None:
    async with writing(ask, staging) as fs:
        ask.server.faults.add(Fault.status(413, PATH, method="PUT"))
        opened, _ = await fs.create(ROOT, "f", 0o644, os.O_WRONLY, ME)
        await fs.write(opened.handle, 0, DATA)
        data = only(staging, "*.data")
        # Where the file system has no delayed allocation (tmpfs) there is nothing to see.
        assert is_delayed(data) or not is_delayed(control(staging))
        with pytest.raises(QuotaExceeded):
            await fs.flush(opened.handle)
        assert not is_delayed(data)
        assert not is_delayed(only(staging, "*.json"))
        await fs.release(opened.handle)


def only(directory: Path, pattern: str) -> Path:
    (found,) = directory.glob(pattern)
    return found


def control(directory: Path) -> Path:
    """Return a file that nobody synced."""
    path = directory / "control"
    path.write_bytes(DATA)
    return path


def is_delayed(path: Path) -> bool:
    """Whether bytes of a file have no place on disk yet (ioctl_fiemap(2): DELALLOC)."""
    query = bytearray(struct.pack("=QQIIII", 0, 1 << 62, 0, 0, 64, 0) + bytes(64 * 56))
    with path.open("rb") as file, contextlib.suppress(OSError):
        fcntl.ioctl(file, 0xC020660B, query)
    count = struct.unpack_from("=I", query, 20)[0]
    flags = (struct.unpack_from("=I", query, 32 + 56 * each + 40)[0] for each in range(count))
    return any(flag & 0x4 for flag in flags)


async def test_the_old_readers_of_a_failed_overwrite_are_told(ask: Requests, staging: Path) -> None:
    ask.server.deploy(REPO, "f", b"old")
    async with writing(ask, staging) as fs:
        ino = await find(fs, "f")
        reader = await fs.open(ino, os.O_RDONLY)
        ask.server.faults.add(Fault.status(413, PATH, method="PUT"))
        with pytest.raises(QuotaExceeded):
            await put(fs, "f", b"newer")
        with pytest.raises(Stale):
            await fs.read(reader.handle, Extent(0, 3))
        for _ in range(2):  # fstat goes on
            was = await fs.getattr(ino, 7)
            assert (was.size, was.nlink) == (5, 0)
        with pytest.raises(Replaced):  # a name that the kernel believes in still
            await fs.open(ino, os.O_RDONLY, 7)
        await fs.release(reader.handle)
        with pytest.raises(Replaced):
            await fs.getattr(ino, 8)
        assert await content(fs, "f") == b"old"


async def test_who_may_not_overwrite_is_told(tmp_path: Path, staging: Path) -> None:
    with EmbeddedServer(tmp_path / "s", users={"ann": "rw"}) as server:
        server.create_repository(REPO)
        server.deploy(REPO, "f", b"old")
        ask = Requests(server)
        token = server.token_of("ann")
        async with composed(server, REPO, writes=WriteSettings(staging), token=token) as fs:
            await put(fs, "new", b"1")
            with pytest.raises(AccessDenied):
                await put(fs, "f", b"new")
            with pytest.raises(AccessDenied):
                await fs.unlink(ROOT, "f")
            with pytest.raises(AccessDenied):
                await fs.rename(ROOT, "new", ROOT, "f", 0)
            assert await content(fs, "new") == b"1"
        assert ask.get(PATH).body == b"old"


async def test_a_remote_repository_is_read_only(ask: Requests, staging: Path) -> None:
    ask.server.create_repository("hf", upstream=ask.server.url)
    async with writing(ask, staging, source="") as fs:
        hf = await find(fs, "hf")
        with pytest.raises(ReadOnly):
            await fs.create(hf, "x", 0o644, os.O_WRONLY, ME)
        with pytest.raises(ReadOnly):
            await fs.mkdir(hf, "x", 0o755, ME)


async def test_a_full_staging_disk_is_told(ask: Requests, tmp_path: Path) -> None:
    staging = tmp_path / "full"
    staging.mkdir(mode=0o700)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m,mode=700", "x", staging], check=True)
    try:
        (staging / "other").write_bytes(bytes(600_000))
        async with writing(ask, staging) as fs:
            opened, _ = await fs.create(ROOT, "f", 0o644, os.O_WRONLY, ME)
            with pytest.raises(FileTooLarge):
                await fs.write(opened.handle, 1 << 40, b"x")  # more than the disk could hold
            with pytest.raises(OSError, match="No space left"):
                await fs.write(opened.handle, 0, random.Random(1).randbytes(900_000))
            with pytest.raises(OSError, match="No space left"):
                await fs.flush(opened.handle)  # half a file is not uploaded
            await fs.release(opened.handle)
            await put(fs, "small", b"1")
    finally:
        subprocess.run(["umount", "-l", staging], check=True)
    assert ask.tree() == {"/small": 1}


@pytest.fixture(autouse=True)
def _whole_files_only(ask: Requests) -> Iterator[None]:
    """Whatever a test does: what is on the server is whole."""
    yield
    ask.server.faults.clear()
    for path, size in ask.tree().items():
        if size >= 0:
            body = ask.get(f"/{REPO}{path.replace(' ', '%20')}").body
            sums = ask.get(f"/api/storage/{REPO}{path.replace(' ', '%20')}").json()["checksums"]
            assert hashlib.sha256(body).hexdigest() == sums["sha256"]
