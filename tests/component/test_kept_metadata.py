"""What one mount has learnt, shown by the next one while the server is down."""

import stat
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from jfs.config import Credentials, Secret
from jfs.errors import NoEntry, Unavailable
from jfs.extents import Extent
from jfs.model import Checksums, FileInfo, FolderInfo, RepoPath
from jfs.server import EmbeddedServer, Fault
from jfs.vfs.attributes.stat import Caller
from jfs.vfs.filesystem import Filesystem
from jfs.vfs.freshness import Asked
from jfs.vfs.kept.keeper import Keeper
from jfs.vfs.namespace.inodes import ROOT
from tests.component.composed import TREE, block_store, composed, content, find, names
from tests.conftest import REPO

ME = Caller(1, 2)
DOWN = "cannot be asked, serving what was known before|is down"
TREE_0 = replace(TREE, patience_s=0.2)


@pytest.fixture(autouse=True)
def _outages(expected_logs: list[str]) -> None:
    expected_logs.append(DOWN)


def keeper(server: EmbeddedServer, path: Path, source: str = REPO, token: str = "") -> Keeper:
    credentials = Credentials(token=Secret(token or server.token))
    return Keeper(path / "cache", server.url, RepoPath.parse(source), credentials)


async def link(fs: Filesystem, path: str) -> str:
    folder, _, name = path.rpartition("/")
    attributes = await fs.lookup(await find(fs, folder), name)
    assert stat.S_ISLNK(attributes.mode)
    return await fs.readlink(attributes.ino)


async def shown(fs: Filesystem) -> dict[str, object]:
    """Everything that the test looks at."""
    bert = await find(fs, "nlp/bert")
    model = await find(fs, "nlp/bert/1.10.0/model.bin")
    attributes = await fs.getattr(model)
    return {
        "root": set(await names(fs, "")),
        "versions": set(await names(fs, "nlp/bert")),
        "files": set(await names(fs, "nlp/bert/1.10.0")),
        "size": (attributes.size, attributes.mtime_ns, attributes.ino),
        "tags": {name: await fs.getxattr(model, name) for name in await fs.listxattr(model)},
        "folder tags": await fs.listxattr(bert),
        "sha256": await fs.getxattr(model, b"user.jfs.sha256"),
        "latest": await link(fs, "nlp/bert/@latest"),
        "production": await link(fs, "nlp/bert/@env=production"),
        "query": set(await names(fs, ".by/env=production/nlp/bert")),
        "link": await link(fs, "nlp/newest"),
        "content": await content(fs, "nlp/bert/1.10.0/model.bin"),
    }


async def test_what_was_known_is_shown_by_the_next_mount(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    store = block_store(tmp_path / "cache")
    for version in ("1.9.0", "1.10.0"):
        tags = {"env": ["production"] if version == "1.9.0" else ["staging"], "odd": ["a,b"]}
        server.deploy(REPO, f"nlp/bert/{version}/model.bin", f"bert {version}".encode(), tags)
    server.deploy(REPO, "nlp/never/listed.bin", b"x")
    async with composed(server, REPO, store=store, kept=keeper(server, tmp_path)) as fs:
        await fs.symlink(await find(fs, "nlp"), "newest", "bert/1.10.0", ME)
    async with composed(server, REPO, store=store, kept=keeper(server, tmp_path)) as fs:
        before = await shown(fs)
    server.stop()
    async with composed(
        server,
        REPO,
        store=store,
        tree=TREE_0,
        kept=keeper(server, tmp_path),
        deadline_s=0.3,
        begins=False,
    ) as fs:
        assert await shown(fs) == before
        model = await find(fs, "nlp/bert/1.10.0/model.bin")
        assert await fs.getxattr(model, b"user.jfs.state") == b"stale"
        with pytest.raises(NoEntry):  # its folder was listed, and it was not there
            await find(fs, "nlp/bert/1.10.0/adapter_config.json")
        with pytest.raises(Unavailable):  # that folder was not
            await find(fs, "nlp/never/listed.bin")
        with pytest.raises(Unavailable):
            await names(fs, "nlp/never")
    store.close()


async def test_what_was_changed_here_is_known(server: EmbeddedServer, tmp_path: Path) -> None:
    for name in ("gone", "moved", "kept", "tagged"):
        server.deploy(REPO, f"d/{name}.bin", name.encode())
    server.deploy(REPO, "old/in/it.bin", b"x")
    async with composed(server, REPO, kept=keeper(server, tmp_path)) as fs:
        folder = await find(fs, "d")
        await names(fs, "d")
        await names(fs, "old/in")
        await names(fs, "")
        await fs.unlink(folder, "gone.bin")
        await fs.rename(folder, "moved.bin", folder, "there.bin", 0)
        await fs.rename(ROOT, "old", folder, "new", 0)
        made = await fs.mkdir(folder, "made", 0o755, ME)
        opened, _ = await fs.create(folder, "written.bin", 0o644, 1, ME)
        await fs.write(opened.handle, 0, b"12345")
        await fs.flush(opened.handle)
        await fs.release(opened.handle)
        await fs.setxattr(await find(fs, "d/tagged.bin"), b"user.k", b"v")
        assert await fs.listxattr(await find(fs, "d/tagged.bin")) == [b"user.k"]
        assert made.mode
    server.stop()
    async with composed(
        server, REPO, tree=TREE_0, kept=keeper(server, tmp_path), deadline_s=0.3, begins=False
    ) as fs:
        expected = {"there.bin", "kept.bin", "tagged.bin", "new", "made", "written.bin"}
        assert set(await names(fs, "d")) == expected
        assert (await fs.getattr(await find(fs, "d/written.bin"))).size == 5
        assert set(await names(fs, "d/new/in")) == {"it.bin"}
        assert set(await names(fs, "d/made")) == set()
        assert await fs.getxattr(await find(fs, "d/tagged.bin"), b"user.k") == b"v"
        with pytest.raises(NoEntry):
            await find(fs, "d/gone.bin")
        with pytest.raises(NoEntry):
            await find(fs, "old")


async def test_it_heals_and_what_changed_meanwhile_is_seen(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    server.deploy(REPO, "d/a.bin", b"before")
    async with composed(server, REPO, kept=keeper(server, tmp_path)) as fs:
        await names(fs, "d")
    server.stop()
    tree = replace(TREE_0, entry_ttl_s=0, attr_ttl_s=0, negative_ttl_s=0)
    known = keeper(server, tmp_path)
    async with composed(server, REPO, tree=tree, kept=known, begins=False) as fs:
        assert set(await names(fs, "d")) == {"a.bin"}
        server.start()
        server.deploy(REPO, "d/b.bin", b"after")
        server.deploy(REPO, "d/a.bin", b"replaced")
        known.comes_first = False
        fs.up("")
        assert set(await names(fs, "d")) == {"a.bin", "b.bin"}
        assert await content(fs, "d/a.bin") == b"replaced"
        assert await fs.getxattr(await find(fs, "d/a.bin"), b"user.jfs.state") == b"clean"


async def test_metadata_are_no_other_users(server: EmbeddedServer, tmp_path: Path) -> None:
    server.deploy(REPO, "secret/plan.bin", b"x")
    async with composed(server, REPO, kept=keeper(server, tmp_path)) as fs:
        await names(fs, "secret")
    server.stop()
    for other in (
        keeper(server, tmp_path, token="another"),
        keeper(server, tmp_path, source="other-local"),
    ):
        assert await other.last_at() is None
        async with composed(
            server, REPO, tree=TREE_0, kept=other, deadline_s=0.3, begins=False
        ) as fs:
            with pytest.raises(Unavailable):
                await names(fs, "secret")


async def test_what_is_too_old_is_not_shown(server: EmbeddedServer, tmp_path: Path) -> None:
    server.deploy(REPO, "d/a.bin", b"x")
    async with composed(server, REPO, kept=keeper(server, tmp_path)) as fs:
        await names(fs, "d")
    server.stop()
    tree = replace(TREE_0, stale_if_error_s=1e-6)
    async with composed(
        server, REPO, tree=tree, kept=keeper(server, tmp_path), deadline_s=0.3, begins=False
    ) as fs:
        with pytest.raises(Unavailable):
            await names(fs, "d")


async def test_what_the_kernel_forgot_is_known_in_an_outage(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    server.deploy(REPO, "d/a.bin", b"x")
    async with composed(server, REPO, tree=TREE_0, kept=keeper(server, tmp_path)) as fs:
        inodes = [*(await names(fs, "d")).values(), await find(fs, "d")]
        for ino in inodes:
            fs.forget(ino, 10)
        server.faults.add(Fault.garbage())
        assert set(await names(fs, "d")) == {"a.bin"}


async def test_a_remote_repository_has_more_than_was_listed(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    """A name that its listing lacks is not missing: nobody can say while nobody is asked."""
    with EmbeddedServer(tmp_path / "upstream", anonymous=True) as upstream:
        upstream.create_repository(REPO)
        upstream.deploy(REPO, "m/cached.bin", b"x")
        server.create_repository("far", upstream=f"{upstream.url}/{REPO}")
        async with composed(server, "", kept=keeper(server, tmp_path, "")) as fs:
            assert await content(fs, "far/m/cached.bin") == b"x"
            await names(fs, "far/m")
            await names(fs, REPO)
    server.stop()
    known = keeper(server, tmp_path, "")
    async with composed(server, "", tree=TREE_0, kept=known, deadline_s=0.3, begins=False) as fs:
        assert set(await names(fs, "far/m")) == {"cached.bin"}
        assert {"far", REPO} <= set(await names(fs, ""))
        with pytest.raises(Unavailable):
            await find(fs, "far/m/other.bin")
        with pytest.raises(NoEntry):
            await find(fs, f"{REPO}/nothing")


async def test_a_mount_works_where_nothing_can_be_kept(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    (tmp_path / "cache").write_text("a file")
    server.deploy(REPO, "d/a.bin", b"x")
    async with composed(server, REPO, kept=keeper(server, tmp_path)) as fs:
        assert await content(fs, "d/a.bin") == b"x"
        opened = await fs.open(await find(fs, "d/a.bin"), 0)
        assert bytes(await fs.read(opened.handle, Extent(0, 5))) == b"x"
        await fs.release(opened.handle)


async def test_what_was_learnt_before_the_user_changed_is_nobodys(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    server.deploy(REPO, "d/a.bin", b"x")
    kept = keeper(server, tmp_path, token="of ann")
    async with composed(server, REPO, kept=kept) as fs:
        assert await kept.save()
        await names(fs, "d")
        kept.authenticate(Credentials(token=Secret("of bob")))
    server.stop()
    folder = RepoPath(REPO, "d")
    for token in ("of ann", "of bob"):
        assert await keeper(server, tmp_path, token=token).listing(folder) is None


@pytest.mark.parametrize("after", [0, 1, 5, 50])
async def test_what_was_to_be_written_for_somebody_who_is_gone_is_kept(
    server: EmbeddedServer, tmp_path: Path, after: int
) -> None:
    """Whoever looks something up has what is noted written first, and may be killed meanwhile."""
    noted = keeper(server, tmp_path)
    folders = [RepoPath(REPO, f"f{number}") for number in range(300)]
    for number, folder in enumerate(folders):
        entries = [FileInfo(folder.child(f"{n}"), n, Checksums(), 0) for n in range(50)]
        noted.listed(folder, entries, Asked.now())
        if number == 150:
            noted.moved(folders[0], FolderInfo(RepoPath(REPO, "moved"), 0))
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(noted.save)
            for _ in range(after):
                await trio.lowlevel.checkpoint()
            scope.cancel()
    assert await noted.listing(folders[0]) is None
    for folder in [RepoPath(REPO, "moved"), *folders[1:]]:
        known = await noted.listing(folder)
        assert known is not None
        assert len(known[0]) == 50
    await noted.close()
