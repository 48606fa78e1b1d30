"""The filesystem facade above an in-memory server: names, freshness, versions, outages."""

import hashlib
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace

import pytest
import trio
import trio.testing

from jfs.config import ReadSettings, TreeSettings
from jfs.errors import (
    BadHandle,
    IsADirectory,
    NoEntry,
    NotADirectory,
    NotFound,
    ProtocolViolation,
    ReadOnly,
    Replaced,
    Stale,
    Unavailable,
)
from jfs.extents import Extent
from jfs.metrics import Metrics
from jfs.model import (
    ArtifactVersion,
    Checksums,
    Criteria,
    EntryInfo,
    FileInfo,
    FolderInfo,
    Match,
    Properties,
    RepoPath,
    Repository,
)
from jfs.packed import Packed
from jfs.protocols import Sink
from jfs.vfs.filesystem import Filesystem
from jfs.vfs.kernel import Notifier
from jfs.vfs.namespace.inodes import ROOT
from jfs.vfs.reading.reader import DataPlane

TREE = TreeSettings(uid=1, gid=2, umask=0o022, entry_ttl_s=60, attr_ttl_s=60, negative_ttl_s=5)


class MemoryServer:
    """``ArtifactStore`` and ``RangeSource`` over a dict of files; counts what it is asked."""

    def __init__(self, **files: bytes) -> None:
        self.files = {RepoPath("r", path.replace("__", "/")): data for path, data in files.items()}
        self.asked: Counter[str] = Counter()
        self.down = False
        self.without_checksums = False

    def put(self, path: str, data: bytes) -> None:
        self.files[RepoPath("r", path)] = data

    async def repositories(self) -> Sequence[Repository]:
        return [Repository("r", "local", "generic")]

    async def stat(self, path: RepoPath) -> EntryInfo:
        self._note("stat")
        info = self._info(path)
        if info is None:
            raise NotFound("Unable to find item", status=404)
        return info

    async def list_children(
        self, path: RepoPath, known: Packed | None = None
    ) -> Sequence[EntryInfo]:
        self._note("list")
        prefix = f"{path.path}/" if path.path else ""
        names = {
            file.path[len(prefix) :].partition("/")[0]
            for file in self.files
            if file.path.startswith(prefix)
        }
        if not names and path.path:
            raise NotFound("Unable to find item", status=404)
        return [info for name in names if (info := self._info(path.child(name))) is not None]

    async def properties(self, path: RepoPath) -> Properties:
        return {}

    async def search(self, criteria: Criteria) -> Sequence[Match]:
        return []

    def lists_all(self, repo: str) -> bool:
        return True

    def fetch(self, version: ArtifactVersion, extent: Extent, sink: Sink) -> None:
        self._note("fetch")
        data = self.files.get(version.path, b"")
        if hashlib.sha256(data).hexdigest() not in version.content.digest:
            raise Stale("other content")
        buffer = sink.buffer()
        buffer[: extent.size] = data[extent.start : extent.stop]
        sink.advance(extent.size)

    def close(self) -> None:
        pass

    def _note(self, what: str) -> None:
        self.asked[what] += 1
        if self.down:
            raise Unavailable("connection refused")

    def _info(self, path: RepoPath) -> EntryInfo | None:
        data = self.files.get(path)
        if data is not None:
            sums = Checksums(sha256=hashlib.sha256(data).hexdigest())
            if self.without_checksums:
                sums = Checksums()
            return FileInfo(path, len(data), sums, modified_ns=1_000)
        if any(file.path.startswith(f"{path.path}/") for file in self.files):
            return FolderInfo(path, modified_ns=2_000)
        return None


@asynccontextmanager
async def filesystem(
    server: MemoryServer, tree: TreeSettings = TREE, notifier: Notifier | None = None
) -> AsyncIterator[Filesystem]:
    async with trio.open_nursery() as nursery:
        plane = DataPlane(server, None, ReadSettings(), Metrics(), nursery, fetches=2)
        fs = Filesystem(server, plane, tree, FolderInfo(RepoPath("r"), 0), notifier=notifier)
        yield fs
        await fs.close()


async def listing(fs: Filesystem, ino: int) -> dict[str, int]:
    handle = await fs.opendir(ino)
    names: dict[str, int] = {}
    position = 0
    while entries := fs.readdir(handle, position):
        for name, attributes, position in entries:  # noqa: B007 - the next position
            names[name] = attributes.ino
    fs.releasedir(handle)
    return names


async def read_all(fs: Filesystem, ino: int) -> bytes:
    handle = (await fs.open(ino, 0)).handle
    data = bytes(await fs.read(handle, Extent(0, 1 << 20)))
    await fs.release(handle)
    return data


async def test_a_listing_shows_everything_and_costs_one_request() -> None:
    server = MemoryServer(a=b"1", b__c=b"22")
    async with filesystem(server) as fs:
        assert set(await listing(fs, ROOT)) == {"a", "b"}
        file, folder = await fs.lookup(ROOT, "a"), await fs.lookup(ROOT, "b")
        assert (file.mode, file.size, file.nlink, file.mtime_ns) == (0o100644, 1, 1, 1_000)
        assert (folder.mode, folder.nlink) == (0o040755, 2)
        assert (file.uid, file.gid) == (1, 2)
        await fs.getattr(file.ino)
        with pytest.raises(NoEntry):
            await fs.lookup(ROOT, "absent")
    assert server.asked == {"list": 1}


async def test_lookups_by_path_do_not_list() -> None:
    server = MemoryServer(a__b__c=b"1")
    async with filesystem(server) as fs:
        a = await fs.lookup(ROOT, "a")
        b = await fs.lookup(a.ino, "b")
        c = await fs.lookup(b.ino, "c")
        assert await read_all(fs, c.ino) == b"1"
    assert server.asked == {"stat": 3, "fetch": 1}


async def test_many_lookups_in_a_folder_become_one_listing() -> None:
    server = MemoryServer(**{f"f{i}": b"x" for i in range(100)})
    async with filesystem(server) as fs:
        for i in range(100):
            await fs.lookup(ROOT, f"f{i}")
            with pytest.raises(NoEntry):
                await fs.lookup(ROOT, f"absent{i}")
    assert server.asked["list"] == 1
    assert server.asked["stat"] <= 3


async def test_concurrent_questions_are_asked_once() -> None:
    server = MemoryServer(a=b"1")
    async with filesystem(server) as fs, trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(fs.lookup, ROOT, "a")
    assert server.asked == {"stat": 1}


async def test_a_change_is_seen_after_the_ttl(mock_clock: trio.testing.MockClock) -> None:
    server = MemoryServer(a=b"1")
    async with filesystem(server) as fs:
        ino = (await fs.lookup(ROOT, "a")).ino
        server.put("a", b"four")
        server.put("new", b"x")
        assert (await fs.getattr(ino)).size == 1
        mock_clock.jump(61)
        with pytest.raises(Replaced):  # the kernel looks the name up again
            await fs.getattr(ino)
        attributes = await fs.lookup(ROOT, "a")
        assert attributes.size == 4
        assert attributes.ino != ino
        assert attributes.attr_ttl_s <= 60
        assert await listing(fs, ROOT) == {
            "a": attributes.ino,
            "new": (await fs.lookup(ROOT, "new")).ino,
        }
        del server.files[RepoPath("r", "a")]
        mock_clock.jump(61)
        with pytest.raises(Replaced):
            await fs.getattr(attributes.ino)
        with pytest.raises(NoEntry):
            await fs.lookup(ROOT, "a")


async def test_the_kernel_is_given_what_is_left_of_the_ttl(
    mock_clock: trio.testing.MockClock,
) -> None:
    server = MemoryServer(a=b"1")
    async with filesystem(server) as fs:
        await fs.lookup(ROOT, "a")
        mock_clock.jump(45)
        assert (await fs.lookup(ROOT, "a")).entry_ttl_s == pytest.approx(15)


async def test_a_missing_name_is_believed_for_its_own_ttl(
    mock_clock: trio.testing.MockClock,
) -> None:
    server = MemoryServer(a=b"1")
    async with filesystem(server) as fs:
        for _ in range(5):
            with pytest.raises(NoEntry):
                await fs.lookup(ROOT, "late")
        assert server.asked == {"stat": 1}
        assert fs.missing_for_s(ROOT, "late") == pytest.approx(5)
        server.put("late", b"x")
        mock_clock.jump(3)
        with pytest.raises(NoEntry):
            await fs.lookup(ROOT, "late")
        assert fs.missing_for_s(ROOT, "late") == pytest.approx(2)  # of the kernel's belief too
        mock_clock.jump(3)
        assert (await fs.lookup(ROOT, "late")).size == 1


async def test_a_name_that_is_in_no_listing_is_missing_no_longer_than_that(
    mock_clock: trio.testing.MockClock,
) -> None:
    """However many other names were looked up in vain, and however long listings are believed."""
    server = MemoryServer(a=b"1")
    async with filesystem(server, replace(TREE, entry_ttl_s=3600, attr_ttl_s=3600)) as fs:
        await listing(fs, ROOT)
        with pytest.raises(NoEntry):
            await fs.lookup(ROOT, "late")
        assert fs.missing_for_s(ROOT, "late") == pytest.approx(5)
        mock_clock.jump(6)
        for number in range(10):
            with pytest.raises(NoEntry):
                await fs.lookup(ROOT, f"missing{number}")
        assert server.asked == {"list": 2, "stat": 3}
        server.put("late", b"x")
        mock_clock.jump(6)
        assert (await fs.lookup(ROOT, "late")).size == 1
        assert (await fs.lookup(ROOT, "a")).size == 1
        assert server.asked == {"list": 2, "stat": 4}


async def test_an_outage_is_not_a_missing_file(
    mock_clock: trio.testing.MockClock, expected_logs: list[str]
) -> None:
    expected_logs.append("known before, up to 86400 s old: connection refused")
    server = MemoryServer(a=b"1", d__e=b"1")
    async with filesystem(server) as fs:
        d = (await listing(fs, ROOT))["d"]
        await fs.lookup(ROOT, "d")
        server.down = True
        mock_clock.jump(61)
        # What is known is served; what is not known is an error, and not ENOENT.
        assert set(await listing(fs, ROOT)) == {"a", "d"}
        assert (await fs.lookup(ROOT, "a")).size == 1
        with pytest.raises(Unavailable):
            await fs.lookup(d, "e")
        server.down = False
        assert (await fs.lookup(d, "e")).size == 1


async def test_a_replaced_file_is_stale_for_the_old_handle_and_new_for_the_next() -> None:
    """Where its content is on the server no more; what was read of it goes on."""
    server = MemoryServer(a=b"old")
    async with filesystem(server) as fs:
        ino = (await fs.lookup(ROOT, "a")).ino
        old = (await fs.open(ino, 0)).handle
        server.put("a", b"newer")
        with pytest.raises(Stale):
            await fs.read(old, Extent(0, 10))
        with pytest.raises(Replaced):
            await fs.open(ino, 0, pid=5)
        new = (await fs.lookup(ROOT, "a", pid=5)).ino
        assert new != ino
        opened = await fs.open(new, 0, pid=5)
        assert not opened.keep_cache
        assert bytes(await fs.read(opened.handle, Extent(0, 10))) == b"newer"
        with pytest.raises(Stale):
            await fs.read(old, Extent(0, 10))
        await fs.release(old)
        assert bytes(await fs.read(opened.handle, Extent(1, 3))) == b"ew"
        await fs.release(opened.handle)


async def test_an_open_file_keeps_its_size(mock_clock: trio.testing.MockClock) -> None:
    server = MemoryServer(a=b"0123456789")
    async with filesystem(server) as fs:
        ino = (await fs.lookup(ROOT, "a")).ino
        handle = (await fs.open(ino, 0)).handle
        assert bytes(await fs.read(handle, Extent(0, 4))) == b"0123"
        server.put("a", b"x")
        mock_clock.jump(61)
        # A reader that stops at st_size must not stop at another version's.
        assert (await fs.getattr(ino)).size == 10
        await fs.release(handle)
        with pytest.raises(Replaced):
            await fs.getattr(ino)
        assert (await fs.lookup(ROOT, "a")).size == 1


async def test_who_opens_without_a_name_gets_what_is_open(
    mock_clock: trio.testing.MockClock,
) -> None:
    """As /proc/self/fd/N: the kernel comes back with the same inode, and looks nothing up."""
    server = MemoryServer(a=b"old")
    async with filesystem(server) as fs:
        ino = (await fs.lookup(ROOT, "a")).ino
        first = (await fs.open(ino, 0, pid=1)).handle
        assert bytes(await fs.read(first, Extent(0, 9))) == b"old"
        for change, other in ((lambda: server.put("a", b"newer"), 2), (server.files.clear, 3)):
            change()
            mock_clock.jump(61)
            for thread in (1, other):
                with pytest.raises(Replaced):
                    await fs.open(ino, 0, pid=thread)
            again = await fs.open(ino, 0, pid=1)
            assert again.keep_cache
            assert bytes(await fs.read(again.handle, Extent(0, 9))) == b"old"
            await fs.release(again.handle)
            with suppress(NoEntry):
                await fs.lookup(ROOT, "a", pid=other)  # it has a name, and looks it up again
            with pytest.raises(Replaced):
                await fs.open(ino, 0, pid=other)
        await fs.release(first)
        # Nobody has it open any more, as the file that a container has mounted: what the server
        # has of its content is what is shown.
        for content in (b"newer", b"old"):
            server.put("a", content)
            with pytest.raises(Replaced):
                await fs.getattr(ino, pid=4)
            assert (await fs.getattr(ino, pid=4)).size == 3
            last = (await fs.open(ino, 0, pid=4)).handle
            if content == b"old":
                assert bytes(await fs.read(last, Extent(0, 9))) == b"old"
            else:
                with pytest.raises(Stale):
                    await fs.read(last, Extent(0, 9))
            await fs.release(last)


async def test_pages_are_kept_while_the_content_is_the_same() -> None:
    server = MemoryServer(a=b"1")
    async with filesystem(server) as fs:
        ino = (await fs.lookup(ROOT, "a")).ino
        kept = []
        for _ in range(2):
            opened = await fs.open(ino, 0)
            kept.append(opened.keep_cache)
            await fs.release(opened.handle)
        assert kept == [False, True]


async def test_what_cannot_be_done_says_so() -> None:
    server = MemoryServer(a=b"1", d__e=b"", f=b"x")
    async with filesystem(server) as fs:
        names = await listing(fs, ROOT)
        with pytest.raises(ReadOnly):
            await fs.open(names["a"], 1)
        with pytest.raises(IsADirectory):
            await fs.open(names["d"], 0)
        with pytest.raises(NotADirectory):
            await fs.lookup(names["a"], "x")
        with pytest.raises(NotADirectory):
            await fs.opendir(names["a"])
        with pytest.raises(NoEntry):
            await fs.getattr(12345)
        with pytest.raises(BadHandle):
            await fs.read(99, Extent(0, 1))
        with pytest.raises(BadHandle):
            fs.readdir(99, 0)
        assert await read_all(fs, (await fs.lookup(names["d"], "e")).ino) == b""
    assert "fetch" not in server.asked


async def test_a_file_without_checksums_is_refused_and_the_others_are_not() -> None:
    server = MemoryServer(a=b"1")
    server.without_checksums = True
    async with filesystem(server, replace(TREE, attr_ttl_s=0)) as fs:
        ino = (await fs.lookup(ROOT, "a")).ino
        with pytest.raises(ProtocolViolation):
            await fs.open(ino, 0)
        server.without_checksums = False
        assert await read_all(fs, ino) == b"1"
