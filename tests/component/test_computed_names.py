"""Selectors and the query tree, on the facade of a real server."""

import stat

import pytest

from jfs.errors import NoEntry, NotPermitted, ReadOnly, RemoteError, Unsupported
from jfs.model import Checksums, FileInfo, FolderInfo, RepoPath
from jfs.server import EmbeddedServer, Fault
from jfs.vfs.attributes.stat import Caller
from jfs.vfs.filesystem import Filesystem
from jfs.vfs.namespace.inodes import ROOT
from jfs.vfs.namespace.selectors import newest
from tests.component.composed import composed, content, find, names
from tests.component.server_requests import REPO

PRODUCTION = {"env": ["production"], "approved-by": ["alice"]}


@pytest.fixture
def models(server: EmbeddedServer) -> EmbeddedServer:
    for version, properties in (
        ("1.9.0", {"env": ["production"]}),
        ("1.10.0", PRODUCTION),
        ("2.0.0-rc1", {"env": ["staging"]}),
    ):
        server.deploy(REPO, f"nlp/bert/{version}/model.bin", f"bert {version}".encode(), properties)
        server.deploy(REPO, f"nlp/bert/{version}/notes.txt", b"notes")
    server.deploy(REPO, "nlp/bert/README.md", b"read me")
    server.deploy(REPO, "vision/yolo/v2/yolo.pt", b"yolo 2", {"env": ["production"]})
    server.deploy(REPO, "vision/yolo/v10/yolo.pt", b"yolo 10", {"env": ["staging"]})
    return server


async def link(fs: Filesystem, folder: str, name: str) -> str:
    attributes = await fs.lookup(await find(fs, folder), name)
    assert stat.S_ISLNK(attributes.mode)
    target = await fs.readlink(attributes.ino)
    assert attributes.size == len(target.encode())
    fs.forget(attributes.ino, 1)
    return target


async def test_latest_is_the_newest_version(models: EmbeddedServer) -> None:
    async with composed(models, REPO) as fs:
        assert await link(fs, "nlp/bert", "@latest") == "2.0.0-rc1"
        assert await link(fs, "vision/yolo", "@latest") == "v10"
        assert await content(fs, "vision/yolo/@latest/yolo.pt") == b"yolo 10"


async def test_a_property_selects_the_newest_that_carries_it(models: EmbeddedServer) -> None:
    async with composed(models, REPO) as fs:
        assert await link(fs, "nlp/bert", "@env=production") == "1.10.0"
        assert await link(fs, "nlp/bert", "@env=stag*") == "2.0.0-rc1"
        assert await content(fs, "vision/yolo/@env=production/yolo.pt") == b"yolo 2"
        assert await content(fs, "nlp/bert/@approved-by=alice/model.bin") == b"bert 1.10.0"
        for name in ("@env=nowhere", "@nothing", "@", '@env="', "@1=2"):
            with pytest.raises(NoEntry):
                await fs.lookup(await find(fs, "nlp/bert"), name)


async def test_a_folder_may_carry_the_property_itself(models: EmbeddedServer) -> None:
    async with composed(models, REPO) as fs:
        await fs.setxattr(await find(fs, "nlp/bert/1.9.0"), b"user.state", b"frozen")
        assert await link(fs, "nlp/bert", "@state=frozen") == "1.9.0"
        assert await link(fs, "nlp", "@state=frozen") == "bert"


async def test_selectors_are_not_listed(models: EmbeddedServer) -> None:
    async with composed(models, REPO) as fs:
        await fs.lookup(await find(fs, "nlp/bert"), "@latest")
        assert set(await names(fs, "nlp/bert")) == {"1.9.0", "1.10.0", "2.0.0-rc1", "README.md"}
        assert set(await names(fs, "")) == {"nlp", "vision"}


async def test_a_real_entry_wins(models: EmbeddedServer) -> None:
    models.deploy(REPO, "nlp/bert/@latest", b"real")
    models.deploy(REPO, ".by/x", b"real too")
    async with composed(models, REPO) as fs:
        assert await content(fs, "nlp/bert/@latest") == b"real"
        assert await content(fs, ".by/x") == b"real too"
        with pytest.raises(NoEntry):
            await find(fs, ".by/env=production")


async def test_the_query_tree_shows_what_matches(models: EmbeddedServer) -> None:
    async with composed(models, REPO) as fs:
        assert set(await names(fs, ".by/env=production")) == {"nlp", "vision"}
        assert set(await names(fs, ".by/env=production/nlp/bert")) == {"1.9.0", "1.10.0"}
        assert set(await names(fs, ".by/env=production/nlp/bert/1.9.0")) == {"model.bin"}
        assert set(await names(fs, ".by/env=production/approved-by=alice/nlp/bert")) == {"1.10.0"}
        assert set(await names(fs, ".by/env=*/vision/yolo")) == {"v2", "v10"}
        assert await names(fs, ".by/env=nowhere") == {}
        assert await names(fs, ".by") == {}
        assert await content(fs, ".by/env=staging/vision/yolo/v10/yolo.pt") == b"yolo 10"
        for path in (".by/nothing", ".by/env=production/audio", ".by/env=production/nlp/a=b"):
            with pytest.raises(NoEntry):
                await find(fs, path)


async def test_files_of_a_query_are_the_real_ones(models: EmbeddedServer) -> None:
    async with composed(models, REPO) as fs:
        shown = await find(fs, ".by/env=production/vision/yolo/v2/yolo.pt")
        assert shown == await find(fs, "vision/yolo/v2/yolo.pt")
        assert (await names(fs, ".by/env=production/vision/yolo/v2"))["yolo.pt"] == shown
        await fs.setxattr(shown, b"user.seen", b"yes")
        assert await fs.getxattr(await find(fs, "vision/yolo/v2/yolo.pt"), b"user.seen") == b"yes"
        folder = await find(fs, ".by/env=production/vision")
        assert folder != await find(fs, "vision")
        with pytest.raises(NotPermitted):
            await fs.setxattr(folder, b"user.k", b"v")
        with pytest.raises(ReadOnly):
            await fs.mkdir(folder, "new", 0o755, Caller(0, 0))


async def test_a_folder_that_matches_is_shown_whole(models: EmbeddedServer) -> None:
    async with composed(models, REPO) as fs:
        await fs.setxattr(await find(fs, "nlp/bert"), b"user.team", b"text")
        assert set(await names(fs, ".by/team=text/nlp/bert")) == {
            *("1.9.0", "1.10.0", "2.0.0-rc1", "README.md")
        }
        assert await content(fs, ".by/team=text/nlp/bert/1.9.0/notes.txt") == b"notes"


async def test_one_query_serves_a_whole_walk(models: EmbeddedServer) -> None:
    async with composed(models, REPO) as fs:
        models.stats.reset()
        for path in ("", "/nlp", "/nlp/bert", "/nlp/bert/1.9.0"):
            await names(fs, f".by/env=production{path}")
        await fs.getattr(await find(fs, ".by/env=production/nlp/bert/1.10.0/model.bin"))
    # One for the name .by, one query.
    assert models.stats.requests == 2


async def test_every_repository_and_a_part_of_one(models: EmbeddedServer) -> None:
    models.create_repository("other-local")
    models.deploy("other-local", "audio/w/1/w.bin", b"w", {"env": ["production"]})
    async with composed(models, "") as fs:
        assert set(await names(fs, ".by/env=production")) == {REPO, "other-local"}
        assert await content(fs, ".by/env=production/other-local/audio/w/1/w.bin") == b"w"
        assert await link(fs, "other-local/audio/w", "@latest") == "1"
        assert await link(fs, "", "@approved-by=alice") == REPO
    async with composed(models, f"{REPO}/vision") as fs:
        assert set(await names(fs, ".by/env=production")) == {"yolo"}
        assert await content(fs, ".by/env=production/yolo/v2/yolo.pt") == b"yolo 2"


async def test_a_query_that_fails_is_no_empty_folder(models: EmbeddedServer) -> None:
    models.faults.add(Fault.status(403, "/api/search/aql"))
    async with composed(models, REPO) as fs:
        with pytest.raises(RemoteError):
            await names(fs, ".by/env=production")
        with pytest.raises(RemoteError):
            await fs.lookup(await find(fs, "nlp/bert"), "@env=production")


async def test_what_is_computed_lives_as_long_as_the_kernel_holds_it(
    models: EmbeddedServer,
) -> None:
    async with composed(models, REPO) as fs:
        inodes = fs._tree.inodes
        before = len(inodes)
        trail = []
        parent = ROOT
        for name in (".by", "env=production", "nlp", "bert", "1.9.0", "model.bin"):
            parent = (await fs.lookup(parent, name)).ino
            trail.append(parent)
        trail.append((await fs.lookup(trail[3], "1.10.0")).ino)
        handle = await fs.opendir(trail[3])
        fs.releasedir(handle)
        latest = (await fs.lookup(ROOT, "@latest")).ino
        with pytest.raises(Unsupported):
            await fs.setxattr(latest, b"user.k", b"v")
        for ino in (*trail, latest):
            fs.forget(ino, 1)
        for ino in trail:
            with pytest.raises(NoEntry):
                await fs.getattr(ino)
        # Only what the root's own listing keeps: @latest asked for it.
        assert {inode.name for inode in inodes} == {"", "nlp", "vision"}, before


def test_the_newest_of_several() -> None:
    def folder(name: str) -> FolderInfo:
        return FolderInfo(RepoPath("r", name), 0)

    assert newest([]) is None
    assert newest([folder("v1"), folder("v2")]) == "v2"
    readme = FileInfo(RepoPath("r", "v9.txt"), 1, Checksums(), 5)
    assert newest([folder("v1"), readme]) == "v1"
    assert newest([readme]) == "v9.txt"


async def test_a_selector_follows_what_is_changed_here(models: EmbeddedServer) -> None:
    """The kernel keeps the inode of a link, and asks for its target each time."""
    async with composed(models, REPO) as fs:
        bert = await find(fs, "nlp/bert")
        latest = (await fs.lookup(bert, "@latest")).ino
        newest_now = await fs.readlink(latest)
        await fs.mkdir(bert, "99.0.0", 0o755, Caller(0, 0))
        assert await fs.readlink(latest) == "99.0.0"
        await fs.rmdir(bert, "99.0.0")
        assert await fs.readlink(latest) == newest_now
        chosen = (await fs.lookup(bert, "@env=production")).ino
        assert await fs.readlink(chosen) == "1.10.0"
        for version in ("1.9.0", "1.10.0"):
            await fs.removexattr(await find(fs, f"nlp/bert/{version}/model.bin"), b"user.env")
        with pytest.raises(NoEntry):
            await fs.readlink(chosen)
        await fs.setxattr(await find(fs, "nlp/bert/2.0.0-rc1"), b"user.env", b"production")
        assert await fs.readlink(chosen) == "2.0.0-rc1"
