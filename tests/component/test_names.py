"""Every name that Artifactory accepts round-trips; what it or Linux forbids never does harm."""

import os
import time
import unicodedata
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jfs.errors import NameTooLong, NoEntry
from jfs.model import is_too_long, problem_with_name
from jfs.server import EmbeddedServer
from jfs.vfs.attributes.stat import Caller, Change
from jfs.vfs.filesystem import Filesystem
from jfs.vfs.namespace.inodes import ROOT
from tests.component.composed import TREE, composed, content, find, names
from tests.component.server_requests import REPO, Requests

ME = Caller(os.getuid(), os.getgid())
NAMES = [
    *("a b", "p%20q", "100%", "x#y", "am&per", "k+l", "s;t=u", "e=mc2", "at@sign", "@", "@x=y"),
    *("it's", "(1)", "[x]", "{y}", "~", "$HOME", "!", "a:b", ":", ",", "<tag>", "^", "`"),
    *("ü", unicodedata.normalize("NFD", "ü"), "日本語", "🤖", "\u200b", ".hidden", "...a", "-rf"),
    *("x" * 255, "é" * 127, "a\tb", "a\nb", "con", "%2e%2e", "%00", "%3F"),
    *("model.SHA256", "sha256", "%2A", "api", "list", "simple"),
]
_FORBIDDEN = [
    *("a*b", "a?b", 'a"b', "a|b", "a\\b", " a", "a ", "\ta", "...", "&"),
    *("m.sha1", "m.md5", "m.sha256", "x" * 256, "é" * 128),
]


@pytest.mark.parametrize("name", NAMES)
async def test_a_name_round_trips(server: EmbeddedServer, name: str) -> None:
    server.deploy(REPO, f"d/{name}/{name}", name.encode(), {"k": [name]})
    async with composed(server, REPO) as fs:
        assert set(await names(fs, "d")) == {name}
        assert set(await names(fs, f"d/{name}")) == {name}
        assert await content(fs, f"d/{name}/{name}") == name.encode()
        assert await fs.getxattr(await find(fs, f"d/{name}/{name}"), b"user.k") != b""
    async with composed(server, REPO) as fs:  # by name, without a listing
        ino = await find(fs, f"d/{name}/{name}")
        await fs.setxattr(ino, b"user.seen", b"1")
        assert await fs.getxattr(ino, b"user.seen") == b"1"
    async with composed(server, f"{REPO}/d/{name}") as fs:  # as the root of a mount
        assert set(await names(fs, "")) == {name}


@pytest.mark.parametrize("name", _FORBIDDEN)
async def test_a_forbidden_name_is_not_there_and_nobody_is_asked(
    server: EmbeddedServer, name: str
) -> None:
    assert problem_with_name(name) is not None
    async with composed(server, REPO) as fs:
        server.stats.reset()
        with pytest.raises(NameTooLong if is_too_long(name) else NoEntry):
            await fs.lookup(ROOT, name)
    assert server.stats.requests == 0


def test_what_we_forbid_is_what_the_server_forbids(server: EmbeddedServer) -> None:
    ask = Requests(server)
    for name in ("a%2Ab", "a%3Fb", "a%22b", "a%7Cb", "a%5Cb", "%20a", "a%20", "...", "%26"):
        assert ask.put(f"/{REPO}/{name}", b"x").status == 400, name


_ANY = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="/\0"), min_size=1, max_size=40
).filter(lambda name: problem_with_name(name) is None and not name.endswith(":properties"))


@settings(max_examples=30, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(_ANY, min_size=1, max_size=4), st.lists(_ANY, min_size=1, max_size=5, unique=True))
def test_any_names_round_trip(
    tmp_path_factory: pytest.TempPathFactory, folders: list[str], files: list[str]
) -> None:
    base: Path = tmp_path_factory.mktemp("server", numbered=True)
    folder = "/".join(folders)
    with EmbeddedServer(base) as server:
        server.create_repository(REPO)
        for name in files:
            server.deploy(REPO, f"{folder}/{name}", name.encode())

        async def check() -> None:
            async with composed(server, REPO) as fs:
                assert set(await names(fs, folder)) == set(files)
                for name in files:
                    assert await content(fs, f"{folder}/{name}") == name.encode()

        trio.run(check)


@asynccontextmanager
async def changed_times(fs: Filesystem, *folders: int) -> AsyncIterator[None]:
    """Check that what is done meanwhile changes the times of folders."""
    before = [await fs.getattr(ino) for ino in folders]
    yield
    for old, ino in zip(before, folders, strict=True):
        new = await fs.getattr(ino)
        assert new.mtime_ns > old.mtime_ns
        assert new.ctime_ns == new.mtime_ns


async def test_the_times_of_a_folder_follow_its_names(server: EmbeddedServer) -> None:
    """Python's imports, make and backup tools look for new files when the mtime has changed."""
    async with composed(server, REPO, tree=replace(TREE, attr_ttl_s=0)) as fs:
        folder = (await fs.mkdir(ROOT, "d", 0o755, ME)).ino
        other = (await fs.mkdir(ROOT, "e", 0o755, ME)).ino

        async with changed_times(fs, folder):
            opened, made = await fs.create(folder, "new", 0o644, os.O_WRONLY, ME)
        async with changed_times(fs, folder):
            await fs.mkdir(folder, "sub", 0o755, ME)
        async with changed_times(fs, folder):
            await fs.symlink(folder, "link", "new", ME)
        quiet = await fs.getattr(folder)
        await fs.write(opened.handle, 0, b"x")
        await fs.flush(opened.handle)
        await fs.release(opened.handle)
        await fs.setattr(made.ino, Change(mode=0o600))
        assert (await fs.getattr(folder)).mtime_ns == quiet.mtime_ns, "no name has changed"
        async with changed_times(fs, folder, other):
            await fs.rename(folder, "new", other, "new", 0)
        async with changed_times(fs, other):
            await fs.rename(other, "new", other, "newer", 0)
        async with changed_times(fs, other):
            await fs.unlink(other, "newer")
        async with changed_times(fs, folder):
            await fs.rmdir(folder, "sub")
        # What somebody sets stays until the next change (cp -a, tar, rsync).
        await fs.setattr(folder, Change(mtime_ns=1))
        assert (await fs.getattr(folder)).mtime_ns == 1
        async with changed_times(fs, folder):
            await fs.unlink(folder, "link")


async def test_the_servers_time_of_a_folder_wins_when_it_is_newer(server: EmbeddedServer) -> None:
    ask = Requests(server)
    async with composed(server, REPO, tree=replace(TREE, attr_ttl_s=0)) as fs:
        folder = (await fs.mkdir(ROOT, "d", 0o755, ME)).ino
        await fs.mkdir(folder, "sub", 0o755, ME)
        ours = (await fs.getattr(folder)).mtime_ns
        while time.time_ns() // 1_000_000 <= ours // 1_000_000:  # the server keeps milliseconds
            pass
        assert ask.delete(f"/{REPO}/d").status == 204
        server.deploy(REPO, "d/f", b"made anew by somebody else")
        theirs = (await fs.getattr(folder)).mtime_ns
        assert theirs > ours
        assert (await fs.getattr(folder)).ctime_ns == theirs


async def test_a_folder_has_a_link_for_each_of_its_folders(server: EmbeddedServer) -> None:
    for name in ("d/a/f", "d/b/f", "d/f"):
        server.deploy(REPO, name, b"x")
    async with composed(server, REPO) as fs:
        folder = await find(fs, "d")
        await names(fs, "d")

        async def links() -> int:
            return (await fs.getattr(folder)).nlink

        assert await links() == 4
        await fs.mkdir(folder, "c", 0o755, ME)
        assert await links() == 5
        await fs.rename(folder, "a", ROOT, "a", 0)
        await fs.rmdir(folder, "c")
        await fs.unlink(folder, "f")
        assert await links() == 3
        server.deploy(REPO, "d/e/f", b"x")
        await fs.refresh(ROOT)
        await names(fs, "d")
        assert await links() == 4
