"""What POSIX asks of modes, owners, times and names, through the facade."""

import os
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from jfs.config import WriteSettings
from jfs.errors import NameTooLong, NoEntry, NotPermitted, ReadOnly
from jfs.server import EmbeddedServer
from jfs.vfs.attributes.stat import Caller, Change
from jfs.vfs.filesystem import Attributes, Filesystem
from jfs.vfs.namespace.inodes import ROOT
from tests.component.composed import composed, content, find, names
from tests.component.server_requests import REPO, Requests

ME = Caller(os.getuid(), os.getgid())
USER = Caller(65534, 65533)


async def make(
    fs: Filesystem, name: str, mode: int = 0o644, caller: Caller = ME, parent: int = ROOT
) -> Attributes:
    """Make a file that holds ``x``, and close it."""
    opened, made = await fs.create(parent, name, stat.S_IFREG | mode, os.O_WRONLY, caller)
    await fs.write(opened.handle, 0, b"x")
    await fs.flush(opened.handle)
    await fs.release(opened.handle)
    return await fs.getattr(made.ino)


def shown(attributes: Attributes) -> Attributes:
    """Return them without what goes by the clock."""
    return replace(attributes, entry_ttl_s=0, attr_ttl_s=0)


async def write(fs: Filesystem, ino: int, caller: Caller, flags: int = os.O_WRONLY) -> Attributes:
    """Open and write a byte, as a process of *caller*."""
    opened = await fs.open(ino, flags, caller.pid, caller.uid)
    await fs.write(opened.handle, 0, b"y")
    await fs.flush(opened.handle)
    await fs.release(opened.handle)
    return await fs.getattr(ino)


async def test_a_name_that_is_too_long_is_said_to_be(server: EmbeddedServer) -> None:
    note = "v" * 300
    server.deploy(REPO, "model/f", b"1", {"note": [note]})
    async with composed(server, REPO) as fs:
        server.stats.reset()
        for name in ("n" * 256, "ü" * 128, "n" * 300 + "*"):
            with pytest.raises(NameTooLong):
                await fs.lookup(ROOT, name)
            with pytest.raises(NameTooLong):
                await fs.unlink(ROOT, name)
            with pytest.raises(NameTooLong):
                await fs.rmdir(ROOT, name)
            with pytest.raises(NameTooLong):
                await fs.rename(ROOT, name, ROOT, "n", 0)
        assert server.stats.requests == 0
        await names(fs, "")  # whether the folder was listed or not
        with pytest.raises(NameTooLong):
            await fs.lookup(ROOT, "n" * 256)
        for name in ("n" * 255, "ü" * 127, "n*"):
            with pytest.raises(NoEntry):
                await fs.lookup(ROOT, name)
        found = await fs.lookup(ROOT, f"@note={note}")  # a selector may be longer than a name
        assert stat.S_ISLNK(found.mode)


async def test_a_folder_with_setgid_hands_on_its_group(ask: Requests) -> None:
    async with composed(ask.server, REPO) as fs:
        folder = await fs.mkdir(ROOT, "shared", 0o755, ME)
        await fs.setattr(folder.ino, Change(gid=1234))
        plain = await make(fs, "plain", 0o644, USER, folder.ino)
        assert (plain.uid, plain.gid) == (USER.uid, USER.gid)
        await fs.setattr(folder.ino, Change(mode=0o2775))
        for caller in (ME, USER):
            name = f"of {caller.uid}"
            file = await make(fs, f"f {name}", 0o640, caller, folder.ino)
            node = await fs.mknod(folder.ino, f"n {name}", stat.S_IFREG | 0o600, caller)
            below = await fs.mkdir(folder.ino, f"d {name}", 0o700, caller)
            link = await fs.symlink(folder.ino, f"l {name}", "plain", caller)
            assert [each.gid for each in (file, node, below, link)] == [1234] * 4
            assert stat.S_IMODE(file.mode) == 0o640
            assert stat.S_IMODE(node.mode) == 0o600
            assert stat.S_IMODE(below.mode) == 0o2700
            deeper = await fs.mkdir(below.ino, "e", 0o755, caller)
            assert (deeper.gid, stat.S_IMODE(deeper.mode)) == (1234, 0o2755)
        assert file.uid == USER.uid
        outside = await fs.mkdir(ROOT, "outside", 0o755, USER)
        assert (outside.gid, stat.S_IMODE(outside.mode)) == (USER.gid, 0o755)


@pytest.mark.parametrize(
    ("mode", "left"), [(0o4755, 0o755), (0o2755, 0o755), (0o6777, 0o777), (0o6744, 0o744)]
)
async def test_setuid_falls_when_a_user_writes(ask: Requests, mode: int, left: int) -> None:
    async with composed(ask.server, REPO) as fs:
        made = await make(fs, "f")
        await fs.setattr(made.ino, Change(mode=mode))
        assert stat.S_IMODE((await write(fs, made.ino, ME)).mode) == mode, "root may"
        opened = await fs.open(made.ino, os.O_RDWR, USER.pid, USER.uid)
        assert stat.S_IMODE((await fs.getattr(made.ino)).mode) == mode, "opening changes nothing"
        before = await fs.getattr(made.ino)
        await fs.write(opened.handle, 0, b"z")
        after = await fs.getattr(made.ino)
        assert stat.S_IMODE(after.mode) == left
        assert after.ctime_ns > before.ctime_ns
        await fs.release(opened.handle)
        await fs.setattr(made.ino, Change(mode=mode))
        opened = await fs.open(made.ino, os.O_WRONLY | os.O_TRUNC, USER.pid, USER.uid)
        assert stat.S_IMODE((await fs.getattr(made.ino)).mode) == left, "emptying is writing"
        await fs.release(opened.handle)


async def test_reading_with_o_trunc_empties_the_file(ask: Requests) -> None:
    """Linux does so for every file system, although POSIX leaves it open."""
    for name in ("f", "g"):
        ask.server.deploy(REPO, name, b"something")
    async with composed(ask.server, REPO) as fs:
        opened = await fs.open(await find(fs, "f"), os.O_RDONLY | os.O_TRUNC)
        assert ask.get(f"/{REPO}/f").body == b""
        await fs.release(opened.handle)
        assert await content(fs, "f") == b""
        flags = os.O_RDONLY | os.O_TRUNC | os.O_CREAT
        opened, _ = await fs.create(ROOT, "g", 0o644, flags, ME)
        assert ask.get(f"/{REPO}/g").body == b""
        await fs.release(opened.handle)
    ask.server.deploy(REPO, "f", b"something")
    async with composed(ask.server, REPO, read_only=True) as fs:
        with pytest.raises(ReadOnly):
            await fs.open(await find(fs, "f"), os.O_RDONLY | os.O_TRUNC)
    assert ask.get(f"/{REPO}/f").body == b"something"


async def test_the_ctime_is_that_of_the_last_change(ask: Requests) -> None:
    ask.server.deploy(REPO, "f", b"1", {"env": ["staging"]})
    async with composed(ask.server, REPO) as fs:
        folder = await fs.mkdir(ROOT, "d", 0o755, ME)
        for ino in (await find(fs, "f"), folder.ino):
            found = await fs.getattr(ino)
            mtime_ns, latest = found.mtime_ns, found.ctime_ns
            for change in (
                Change(mode=0o600),
                Change(uid=7),
                Change(atime_ns=1),
                b"user.env",
                None,
                ("f", "g") if ino != folder.ino else ("d", "e"),
            ):
                match change:
                    case Change():
                        await fs.setattr(ino, change)
                    case bytes():
                        await fs.setxattr(ino, change, b"production")
                    case None:
                        await fs.removexattr(ino, b"user.env")
                    case (old, new):
                        await fs.rename(ROOT, old, ROOT, new, 0)
                found = await fs.getattr(ino)
                assert found.ctime_ns > latest, change
                latest = found.ctime_ns
            assert found.mtime_ns == mtime_ns, "none of them changed content or names in it"
            assert found.atime_ns == 1


@pytest.mark.parametrize("how", ["unlink", "rename"])
async def test_what_lost_its_name_keeps_its_attributes_to_itself(ask: Requests, how: str) -> None:
    async with composed(ask.server, REPO) as fs:
        first = await make(fs, "f", 0o600)
        opened = await fs.open(first.ino, os.O_RDWR)
        second = await make(fs, "g", 0o664)
        if how == "unlink":
            await fs.unlink(ROOT, "f")
            second = await make(fs, "f", 0o664)
        else:
            await fs.rename(ROOT, "g", ROOT, "f", 0)
        old, new = await fs.getattr(first.ino), await fs.getattr(second.ino)
        assert (stat.S_IMODE(old.mode), stat.S_IMODE(new.mode)) == (0o600, 0o664)
        assert (old.nlink, old.mtime_ns) == (0, first.mtime_ns)
        await fs.setattr(first.ino, Change(mode=0o4711, uid=9), opened.handle)
        await fs.write(opened.handle, 0, b"more")
        old = await fs.getattr(first.ino)
        assert (stat.S_IMODE(old.mode), old.uid, old.size) == (0o4711, 9, 4)
        assert old.mtime_ns > first.mtime_ns
        assert shown(await fs.getattr(second.ino)) == shown(new)
        await fs.release(opened.handle)
        assert shown(await fs.getattr(second.ino)) == shown(new)


async def test_no_overwrite_holds_against_o_trunc(ask: Requests, tmp_path: Path) -> None:
    ask.server.deploy(REPO, "f", b"1")
    settings = WriteSettings(tmp_path / "staging", no_overwrite=True)
    async with composed(ask.server, REPO, writes=settings) as fs:
        with pytest.raises(NotPermitted):
            await fs.open(await find(fs, "f"), os.O_RDONLY | os.O_TRUNC)
    assert ask.get(f"/{REPO}/f").body == b"1"
