"""Properties as extended attributes, on the facade of a real server."""

import contextlib
import re

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from jfs.config import TreeSettings
from jfs.errors import InvalidProperty, NamespaceError, NoAttribute, NotPermitted, Unsupported
from jfs.server import EmbeddedServer, Fault
from jfs.vfs.attributes.xattrs import decode_values, encode_values, key_to_write
from jfs.vfs.namespace.inodes import ROOT
from tests.component.composed import composed, find, names
from tests.component.server_requests import REPO, Requests

FILE = "nlp/bert/2.0/model.bin"


@pytest.fixture
def ask(server: EmbeddedServer) -> Requests:
    server.deploy(REPO, FILE, b"weights", {"env": ["production"], "tags": ["a,b", "c\\d", ""]})
    server.deploy(REPO, "nlp/bert/2.0/plain.txt", b"p")
    return Requests(server)


async def test_properties_are_read(ask: Requests) -> None:
    async with composed(ask.server, REPO) as fs:
        ino = await find(fs, FILE)
        assert await fs.getxattr(ino, b"user.env") == b"production"
        assert await fs.getxattr(ino, b"user.tags") == b"a\\,b,c\\\\d,"
        assert await fs.listxattr(ino) == [b"user.env", b"user.tags"]
        with pytest.raises(NoAttribute):
            await fs.getxattr(ino, b"user.absent")
        assert await fs.listxattr(await find(fs, "nlp/bert/2.0/plain.txt")) == []


async def test_properties_are_set_and_removed(ask: Requests) -> None:
    async with composed(ask.server, REPO) as fs:
        ino = await find(fs, FILE)
        await fs.setxattr(ino, b"user.approved-by", "älice,bob".encode())
        await fs.setxattr(ino, b"user.empty", b"")
        await fs.removexattr(ino, b"user.tags")
        assert ask.properties(FILE) == {
            "approved-by": ["älice", "bob"],
            "empty": [""],
            "env": ["production"],
        }
        assert await fs.listxattr(ino) == [b"user.approved-by", b"user.empty", b"user.env"]
        assert await fs.getxattr(ino, b"user.empty") == b""
        with pytest.raises(NoAttribute):
            await fs.removexattr(ino, b"user.tags")


async def test_a_folder_alone_is_touched(ask: Requests) -> None:
    async with composed(ask.server, REPO) as fs:
        ino = await find(fs, "nlp/bert")
        await fs.setxattr(ino, b"user.owner", b"team")
        assert await fs.getxattr(ino, b"user.owner") == b"team"
    assert ask.properties("nlp/bert") == {"owner": ["team"]}
    assert "owner" not in ask.properties(FILE)
    assert ask.properties("nlp/bert/2.0") == {}


async def test_facts_are_read_only(ask: Requests) -> None:
    async with composed(ask.server, REPO) as fs:
        ino = await find(fs, FILE)
        info = ask.get(f"/api/storage/{REPO}/{FILE}").json()
        for name in ("sha256", "sha1", "md5"):
            fact = await fs.getxattr(ino, f"user.jfs.{name}".encode())
            assert fact.decode() == info["checksums"][name]
        for name, field in (("created", "created"), ("modified", "lastModified")):
            assert (await fs.getxattr(ino, f"user.jfs.{name}".encode())).decode() == info[field]
        assert await fs.getxattr(ino, b"user.jfs.created_by") == b"admin"
        assert await fs.getxattr(ino, b"user.jfs.modified_by") == b"admin"
        assert await fs.getxattr(ino, b"user.jfs.downloads") == b"0"
        assert await fs.getxattr(ino, b"user.jfs.state") == b"clean"
        uri = (await fs.getxattr(ino, b"user.jfs.uri")).decode()
        assert uri == f"{ask.server.url}/{REPO}/{FILE}"
        for name in (b"user.jfs.nonsense", b"user.jfs.last_error"):
            with pytest.raises(NoAttribute):
                await fs.getxattr(ino, name)
        with pytest.raises(NotPermitted):
            await fs.setxattr(ino, b"user.jfs.sha256", b"0")
        with pytest.raises(NotPermitted):
            await fs.removexattr(ino, b"user.jfs.sha256")


async def test_other_namespaces_never_reach_the_server(ask: Requests) -> None:
    async with composed(ask.server, REPO) as fs:
        ino = await find(fs, FILE)
        ask.server.stats.reset()
        for name in (b"security.capability", b"system.posix_acl_access", b"trusted.x", b"odd"):
            with pytest.raises(Unsupported):
                await fs.getxattr(ino, name)
            with pytest.raises(Unsupported):
                await fs.setxattr(ino, name, b"x")
            with pytest.raises(Unsupported):
                await fs.removexattr(ino, name)
    assert ask.server.stats.requests == 0


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        (b"user.1st", "begin with an ASCII letter"),
        (b"user.", "begin with an ASCII letter"),
        ("user.é".encode(), "begin with an ASCII letter"),
        (b"user.a b", "white space"),
        (b"user.a=b", "'='"),
        (b"user.a/b", "'/'"),
        (b"user." + b"k" * 256, "longer than 255"),
    ],
)
async def test_keys_that_artifactory_refuses(ask: Requests, name: bytes, rule: str) -> None:
    async with composed(ask.server, REPO) as fs:
        ino = await find(fs, FILE)
        with pytest.raises(InvalidProperty, match=re.escape(rule)):
            await fs.setxattr(ino, name, b"x")
        with pytest.raises(NoAttribute):
            await fs.getxattr(ino, name)


@pytest.mark.parametrize("value", [b"\xff", b"a\0b", b"v" * 4001])
async def test_values_that_artifactory_refuses(ask: Requests, value: bytes) -> None:
    async with composed(ask.server, REPO) as fs:
        with pytest.raises(InvalidProperty):
            await fs.setxattr(await find(fs, FILE), b"user.k", value)
    assert "k" not in ask.properties(FILE)


async def test_a_walk_costs_one_query_a_folder(server: EmbeddedServer) -> None:
    for folder in range(3):
        for number in range(40):
            server.deploy(REPO, f"d{folder}/f{number}", b"x", {"n": [str(number)]})
    async with composed(server, REPO) as fs:
        server.stats.reset()
        for folder, ino in (await names(fs, "")).items():
            await fs.listxattr(ino)
            for name, child in (await names(fs, folder)).items():
                assert await fs.getxattr(child, b"user.n") == name[1:].encode()
                assert await fs.listxattr(child) == [b"user.n"]
    # The root and three folders are listed, and each of the four is queried once.
    assert server.stats.requests == 8


async def test_an_answer_from_before_a_change_does_not_come_after_it(ask: Requests) -> None:
    async with composed(ask.server, REPO) as fs:
        inodes = await names(fs, "nlp/bert/2.0")
        stall = ask.server.faults.add(Fault.stall("/api/search/aql"))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fs.getxattr, inodes["model.bin"], b"user.env")
            await trio.to_thread.run_sync(stall.wait_hit)  # the answer is made, and held back
            nursery.start_soon(fs.setxattr, inodes["model.bin"], b"user.env", b"retired")
            await trio.testing.wait_all_tasks_blocked(0.05)
            stall.release()
        assert await fs.getxattr(inodes["model.bin"], b"user.env") == b"retired"


async def test_a_single_file_costs_no_query_of_its_folder(ask: Requests) -> None:
    async with composed(ask.server, REPO) as fs:
        ino = await find(fs, FILE)
        ask.server.stats.reset()
        await fs.getxattr(ino, b"user.env")
        assert ask.server.stats.requests == 1


async def test_without_queries_items_are_asked_one_by_one(ask: Requests) -> None:
    ask.server.faults.add(Fault.status(403, "/api/search/aql"))
    async with composed(ask.server, REPO) as fs:
        inodes = await names(fs, "nlp/bert/2.0")
        assert await fs.getxattr(inodes["model.bin"], b"user.env") == b"production"
        assert await fs.listxattr(inodes["plain.txt"]) == []


async def test_an_outage_shows_what_was_known(ask: Requests, expected_logs: list[str]) -> None:
    expected_logs.append("known before")
    tree = TreeSettings(uid=0, gid=0, attr_ttl_s=0, entry_ttl_s=60)
    async with composed(ask.server, REPO, tree=tree, deadline_s=0.2) as fs:
        ino = await find(fs, FILE)
        assert await fs.getxattr(ino, b"user.env") == b"production"
        ask.server.stop()
        assert await fs.getxattr(ino, b"user.env") == b"production"


async def test_a_read_only_mount_sets_nothing(ask: Requests) -> None:
    async with composed(ask.server, REPO, read_only=True) as fs:
        with pytest.raises(NotPermitted):
            await fs.setxattr(await find(fs, FILE), b"user.k", b"v")


async def test_the_server_itself_has_no_properties(ask: Requests) -> None:
    async with composed(ask.server, "") as fs:
        assert await fs.listxattr(ROOT) == []
        with pytest.raises(NotPermitted):
            await fs.setxattr(ROOT, b"user.k", b"v")


_VALUE = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)


@given(st.lists(_VALUE, min_size=1, max_size=5, unique=True))
def test_values_round_trip(values: list[str]) -> None:
    assert decode_values(encode_values(values)) == tuple(values)


@given(st.binary(max_size=30))
def test_any_name_is_a_key_or_a_clear_error(name: bytes) -> None:
    with contextlib.suppress(NamespaceError):
        assert key_to_write(b"user." + name).encode() == name
