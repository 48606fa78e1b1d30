"""Every name that Artifactory accepts round-trips; what it or Linux forbids never does harm."""

import unicodedata
from pathlib import Path

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jfs.errors import NameTooLong, NoEntry
from jfs.model import is_too_long, problem_with_name
from jfs.server import EmbeddedServer
from jfs.vfs.namespace.inodes import ROOT
from tests.component.composed import composed, content, find, names
from tests.component.server_requests import REPO, Requests

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
