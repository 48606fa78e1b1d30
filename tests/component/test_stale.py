"""While the server cannot be asked: what was known is served, and nothing else is made up."""

import hashlib
import os
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from jfs.cache import DiskBlockStore
from jfs.errors import JfsError, NoEntry, NotFound
from jfs.extents import Extent
from jfs.metrics import Metrics
from jfs.model import ContentKey
from jfs.server import EmbeddedServer, Fault
from jfs.vfs.filesystem import Filesystem
from jfs.vfs.namespace.inodes import ROOT
from tests.component.composed import TREE, block_store, composed, content, find, names
from tests.component.server_requests import REPO

SERVING = "cannot be asked, serving what was known before"
# Everything is asked for at every use, and missed soon.
TREE_0 = replace(TREE, entry_ttl_s=0, attr_ttl_s=0, negative_ttl_s=0, patience_s=0.1)
ONE_FILE = b"one" * 1000
STATE = b"user.jfs.state"


@pytest.fixture
def models(server: EmbeddedServer) -> EmbeddedServer:
    for version in ("v1", "v2"):
        server.deploy(REPO, f"m/{version}/one.bin", ONE_FILE, {"stage": [version], "env": ["x"]})
    server.deploy(REPO, "m/v2/two.bin", b"two", {"env": ["x"]})
    server.create_repository("other-local")
    server.deploy("other-local", "f", b"f")
    return server


async def shown(fs: Filesystem, path: str) -> list[str]:
    return sorted(await names(fs, path))


async def attributes(fs: Filesystem, path: str) -> tuple[int, int, int]:
    found = await fs.getattr(await find(fs, path))
    return found.ino, found.size, found.mtime_ns


async def properties(fs: Filesystem, path: str) -> list[bytes]:
    return await fs.listxattr(await find(fs, path))


async def cached(store: DiskBlockStore, data: bytes, extent: Extent) -> None:
    """Return when it is on disk: that is behind the reader."""
    blocks = store.inspect(ContentKey(f"sha256:{hashlib.sha256(data).hexdigest()}", len(data)))
    with trio.fail_after(30):
        while blocks.missing(extent):
            await trio.lowlevel.checkpoint()
    blocks.close()


Use = Callable[[Filesystem], Awaitable[object]]

KINDS: dict[str, Use] = {
    "the list of repositories": lambda fs: shown(fs, ""),
    "a name": lambda fs: find(fs, f"{REPO}/m/v1"),
    "a listing": lambda fs: shown(fs, f"{REPO}/m/v2"),
    "attributes": lambda fs: attributes(fs, f"{REPO}/m/v1/one.bin"),
    "properties": lambda fs: properties(fs, f"{REPO}/m/v1/one.bin"),
    "a query": lambda fs: shown(fs, f".by/env=x/{REPO}/m/v2"),
    "a file in a query": lambda fs: attributes(fs, f".by/stage=v1/{REPO}/m/v1/one.bin"),
    "the latest version": lambda fs: shown(fs, f"{REPO}/m/@latest"),
    "a selector": lambda fs: shown(fs, f"{REPO}/m/@stage=v1"),
    "content": lambda fs: content(fs, f"{REPO}/m/v1/one.bin"),
}


def change(models: EmbeddedServer, number: int) -> None:
    """Make everything another than it was."""
    tags = {"env": ["x"]}
    models.deploy(REPO, f"m/v{number + 3}/new{number}.bin", b"new", tags)
    changed = f"changed {number:03}".encode()
    models.deploy(REPO, "m/v1/one.bin", changed, {"stage": ["v1"], f"n{number}": ["n"]})
    models.deploy(REPO, f"m/v1/{number}.bin", b"1")
    models.deploy(REPO, f"m/v2/{number}.bin", b"2", tags)
    models.create_repository(f"new{number}-local")


@pytest.mark.parametrize("how", ["fails", "hangs"])
async def test_what_is_known_is_served_and_asked_anew_once_the_server_is_up(
    models: EmbeddedServer, tmp_path: Path, expected_logs: list[str], how: str
) -> None:
    expected_logs.append(SERVING)
    store = block_store(tmp_path / "cache")
    async with composed(models, "", tree=TREE_0, store=store) as fs:
        for number, (kind, use) in enumerate(KINDS.items()):
            known = await use(fs)
            if isinstance(known, bytes):
                await cached(store, known, Extent(0, len(known)))
            models.faults.add(Fault.hold() if how == "hangs" else Fault.garbage())
            with trio.fail_after(30):  # of 60 for each request
                for _ in range(3):
                    assert await use(fs) == known, kind
                models.stats.reset()
                for _ in range(5):
                    assert await use(fs) == known, kind
            if how == "hangs":  # hardly anybody asks what is silent
                assert models.stats.requests <= 30, kind
            # Everything is asked anew, as if nothing had been.
            models.faults.clear()
            change(models, number)
            fs.up("")
            if kind == "a name":
                assert await use(fs) == known
                continue
            with trio.fail_after(30):  # a busy machine may be slower than the patience
                while await use(fs) == known:
                    fs.up("")
    store.close()


async def test_a_query_that_is_known_is_found_by_who_never_lists_the_root(
    models: EmbeddedServer, expected_logs: list[str]
) -> None:
    expected_logs.append(SERVING)
    async with composed(models, REPO, tree=TREE_0) as fs:
        known = await attributes(fs, ".by/stage=v1/m/v1/one.bin")
        models.faults.add(Fault.garbage())
        assert await attributes(fs, ".by/stage=v1/m/v1/one.bin") == known
        with pytest.raises(JfsError) as failure:
            await find(fs, ".by/stage=unknown/m")
        assert not isinstance(failure.value, NoEntry | NotFound)


async def test_with_0_nothing_is_ever_stale(models: EmbeddedServer, tmp_path: Path) -> None:
    store = block_store(tmp_path / "cache")
    tree = replace(TREE_0, stale_if_error_s=0)
    async with composed(models, "", tree=tree, store=store) as fs:
        for kind, use in KINDS.items():
            known = await use(fs)
            models.faults.add(Fault.garbage())
            with pytest.raises(JfsError) as failure:
                await use(fs)
            assert not isinstance(failure.value, NoEntry | NotFound), kind
            models.faults.clear()
            assert await use(fs) == known, kind
    store.close()


@pytest.mark.parametrize("how", ["fails", "hangs"])
async def test_a_missing_name_is_missing_only_if_the_whole_folder_is_known(
    models: EmbeddedServer, expected_logs: list[str], how: str
) -> None:
    expected_logs.append(SERVING)
    async with composed(models, REPO, tree=TREE_0, deadline_s=0.5) as fs:
        listed, unlisted = await find(fs, "m/v2"), await find(fs, "m/v1")
        await shown(fs, "m/v2")
        for folder in (listed, unlisted):
            with pytest.raises(NoEntry):
                await fs.lookup(folder, "optional.json")
        models.faults.add(Fault.hold() if how == "hangs" else Fault.garbage())
        with pytest.raises(NoEntry):  # as `ls` says
            await fs.lookup(listed, "optional.json")
        assert fs.missing_for_s(listed, "optional.json") == 0.0
        with pytest.raises(JfsError) as failure:  # it was missing, and may be there by now
            await fs.lookup(unlisted, "optional.json")
        assert not isinstance(failure.value, NoEntry | NotFound)
        # What was refreshed is not known as a whole any more.
        await fs.refresh(listed)
        with pytest.raises(JfsError) as failure:
            await fs.lookup(listed, "optional.json")
        assert not isinstance(failure.value, NoEntry | NotFound)
        assert (await fs.lookup(listed, "two.bin")).size == 3


async def test_what_stands_in_is_marked_counted_and_logged_once(
    models: EmbeddedServer, expected_logs: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    expected_logs.append(SERVING)
    caplog.set_level("INFO", "jfs.vfs")
    metrics = Metrics()
    async with composed(models, REPO, tree=TREE_0, metrics=metrics) as fs:
        places = ["m", "m/v1/one.bin", "m/v2/two.bin"]
        for place in places:
            assert await fs.getxattr(await find(fs, place), STATE) == b"clean"
        models.faults.add(Fault.garbage())
        for place in places:
            ino = await find(fs, place)
            assert await fs.getxattr(ino, STATE) == b"stale"
            assert 0 <= (await fs.getattr(ino)).attr_ttl_s <= 1
        since = metrics.snapshot()["stale_since"]
        assert since > 0
        assert metrics.snapshot()["stale_answers"] >= len(places)
        models.faults.clear()
        fs.up("")
        assert metrics.snapshot()["stale_since"] == 0
        for place in places:
            assert await fs.getxattr(await find(fs, place), STATE) == b"clean"
    ours = [record for record in caplog.records if record.name == "jfs.vfs.standing"]
    assert [record.levelname for record in ours] == ["WARNING", "INFO"]


async def test_a_repository_that_hangs_keeps_nobody_from_another(
    models: EmbeddedServer, expected_logs: list[str]
) -> None:
    """Not even those who have nothing that could stand in; and it alone is stale."""
    async with composed(models, "", tree=replace(TREE_0, patience_s=600)) as fs:
        for repo in (REPO, "other-local"):
            await shown(fs, repo)
        hold = models.faults.add(Fault.hold(f"/api/storage/{REPO}*"))
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(shown, fs, REPO)
            await trio.to_thread.run_sync(hold.wait_hit)
            with trio.fail_after(30):
                assert await shown(fs, "other-local") == ["f"]
                assert await content(fs, "other-local/f") == b"f"
                assert REPO in await shown(fs, "")
                await fs.getattr(ROOT)
                ino = await find(fs, "other-local/f")
                assert await fs.getxattr(ino, STATE) == b"clean"
            models.faults.clear()


async def test_a_file_that_is_cached_in_part_is_read_on_once_the_server_is_up(
    models: EmbeddedServer, tmp_path: Path, expected_logs: list[str]
) -> None:
    expected_logs.append(SERVING)
    expected_logs.append("large.bin")
    block = 4 << 20
    data = os.urandom(1 << 16) * (3 * block >> 16)
    models.deploy(REPO, "large.bin", data)
    store = block_store(tmp_path / "cache")
    async with composed(models, REPO, tree=TREE_0, store=store, deadline_s=1) as fs:
        ino = await find(fs, "large.bin")
        handle = (await fs.open(ino, 0)).handle
        assert bytes(await fs.read(handle, Extent(0, 10))) == data[:10]
        await fs.release(handle)
        await cached(store, data, Extent(0, 10))
        models.faults.add(Fault.garbage("/api/*"))
        models.faults.add(Fault.cut(f"/{REPO}/*"))
        handle = (await fs.open(await find(fs, "large.bin"), 0)).handle
        assert bytes(await fs.read(handle, Extent(0, 10))) == data[:10]
        far = Extent(len(data) - 10, len(data))
        with pytest.raises(JfsError) as failure:
            await fs.read(handle, far)
        assert failure.value.errno in (5, 110)  # EIO, ETIMEDOUT
        models.faults.clear()
        fs.up("")
        assert bytes(await fs.read(handle, far)) == data[-10:]  # the same handle
        await fs.release(handle)
    store.close()


async def test_what_was_changed_here_never_stands_in_as_it_was_before(
    models: EmbeddedServer, expected_logs: list[str]
) -> None:
    expected_logs.append(SERVING)
    async with composed(models, REPO, tree=TREE_0) as fs:
        ino = await find(fs, "m/v1/one.bin")
        assert await fs.getxattr(ino, b"user.stage") == b"v1"
        await fs.setxattr(ino, b"user.stage", b"gold")
        models.faults.add(Fault.garbage())
        with pytest.raises(JfsError) as failure:
            await fs.getxattr(ino, b"user.stage")
        assert failure.value.errno == 5
        await fs.getattr(ino)
        models.faults.clear()
        assert await fs.getxattr(ino, b"user.stage") == b"gold"


async def test_what_is_changed_here_while_it_is_asked_for_in_vain_does_not_stand_in(
    models: EmbeddedServer, expected_logs: list[str]
) -> None:
    expected_logs.append(SERVING)
    metrics, heard = Metrics(), list[bytes]()

    async def ask(fs: Filesystem, ino: int) -> None:
        heard.append(await fs.getxattr(ino, b"user.stage"))

    tree = replace(TREE_0, patience_s=1)
    async with composed(models, REPO, tree=tree, metrics=metrics) as fs:
        ino = await find(fs, "m/v1/one.bin")
        assert await fs.getxattr(ino, b"user.stage") == b"v1"
        for _ in range(20):
            hold = models.faults.add(Fault.hold("/api/s*", method="[GP][EO]*"))
            before = metrics.snapshot().get("stale_answers", 0)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(ask, fs, ino)
                await trio.to_thread.run_sync(hold.wait_hit)
                await fs.setxattr(ino, b"user.stage", b"gold")
                was_changed_first = metrics.snapshot().get("stale_answers", 0) == before
                with trio.fail_after(30):
                    while metrics.snapshot().get("stale_answers", 0) == before:
                        await trio.lowlevel.checkpoint()
                models.faults.clear()
            if was_changed_first:
                break
            # This machine was too slow to change it within the patience: once more.
            heard.clear()
            fs.up("")
            await fs.setxattr(ino, b"user.stage", b"v1")
            assert await fs.getxattr(ino, b"user.stage") == b"v1"
    assert heard == [b"gold"]
