"""Names in any order of questions, answers, changes here and elsewhere, and refreshes.

The server answers when the test says so, and in the order that it says; what it answers was true
when the question came, or when the answer left. Whoever asks must be told, of every name, what was
true at some moment after the last change made here and the last refresh that were over when they
asked. That is all that a mount promises, whatever it keeps in memory.

Where the server is down now and then, what was known stands in: that may be from before a refresh,
but not from before a change made here; and nothing is missing that was not.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import pytest
import trio
import trio.testing
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from jfs.config import TreeSettings
from jfs.errors import AccessDenied, JfsError, NoEntry, NotFound, Replaced, Unavailable
from jfs.metrics import Metrics
from jfs.model import Checksums, Criteria, EntryInfo, FileInfo, FolderInfo, Match, RepoPath
from jfs.packed import Changes, Packed
from jfs.vfs.namespace.inodes import Inode
from jfs.vfs.namespace.local import LocalAttributeTable
from jfs.vfs.namespace.tree import Tree
from jfs.vfs.questions import Questions
from jfs.vfs.standing import Standing

NAMES = ("a", "b")
FOLDER = RepoPath("r", "folder")


@dataclass
class _Pending:
    """A question that has come. *answer* is what it was then."""

    release: trio.Event
    answer: Callable[[], object]
    early: object
    is_late: bool = False
    error: JfsError | None = None


class SlowServer:
    """One folder; every version of a file has a size of its own. 0: no such file.

    Args:
        packs: listings come packed, as those of very many entries do.
    """

    def __init__(self, *, packs: bool = False) -> None:
        self.packs = packs
        self.now = 0
        self.history = {name: [(0, 0)] for name in NAMES}
        self.pending: list[_Pending] = []

    def put(self, name: str, *, there: bool = True) -> int:
        self.now += 1
        version = self.now if there else 0
        self.history[name].append((self.now, version))
        return version

    def version(self, name: str) -> int:
        return self.history[name][-1][1]

    def info(self, name: str) -> FileInfo:
        return FileInfo(FOLDER.child(name), self.version(name), Checksums(), 0)

    def was(self, name: str, version: int, since: int) -> bool:
        """Whether a name had a version at some moment from *since* on."""
        until = self.now + 1
        for start, each in reversed(self.history[name]):
            if each == version and until > since:
                return True
            until = start
        return False

    async def stat(self, path: RepoPath) -> EntryInfo:
        if path == FOLDER:
            return FolderInfo(path, 0)
        found = await self._answer(
            lambda: self.info(path.name) if self.version(path.name) else None
        )
        if found is None:
            raise NotFound("no such item", status=404)
        assert isinstance(found, FileInfo)
        return found

    async def list_children(
        self, path: RepoPath, known: Packed | None = None
    ) -> Sequence[EntryInfo]:
        assert path == FOLDER
        found = await self._answer(lambda: [self.info(n) for n in NAMES if self.version(n)])
        assert isinstance(found, list)
        if not self.packs:
            return found
        if known is not None:
            changes = Changes(path, known)
            assert all(changes.take(info.path.name, info) for info in found)
            return changes
        packed = Packed(path)
        for info in found:
            packed.add(info.path.name, info)
        return packed

    async def properties(self, path: RepoPath) -> Mapping[str, tuple[str, ...]]:
        return {}

    async def search(self, criteria: Criteria) -> Sequence[Match]:
        return []

    def lists_all(self, repo: str) -> bool:
        return True

    async def _answer(self, answer: Callable[[], object]) -> object:
        pending = _Pending(trio.Event(), answer, answer())
        self.pending.append(pending)
        await pending.release.wait()
        if pending.error is not None:
            raise pending.error
        return pending.answer() if pending.is_late else pending.early


class _Run:
    """One order of events."""

    def __init__(self, ttl_s: float, nursery: trio.Nursery, *, outages: bool, packs: bool) -> None:
        self.outages = outages
        self.server = SlowServer(packs=packs)
        self.nursery = nursery
        self.questions = Questions(nursery, Standing(86400, 600, Metrics()))
        tree = TreeSettings(0, 0, entry_ttl_s=ttl_s, attr_ttl_s=ttl_s, negative_ttl_s=ttl_s)
        local = LocalAttributeTable(lambda: ())
        self.tree = Tree(self.server, tree, FolderInfo(FOLDER.parent, 0), self.questions, local)  # type: ignore[arg-type]  # what the tree asks
        self.folder: Inode | None = None
        self.barrier = dict.fromkeys(NAMES, 0)  # when what is believed may have been true at least
        self.kernel: list[int] = []

    async def start(self) -> None:
        """Begin with both files there and known, in a folder that was not listed."""
        self.folder = await self.tree.lookup(self.tree.inodes.root, "folder")
        self.tree.inodes.remember(self.folder)
        for name in NAMES:
            self.server.put(name)
        await self.rest()

    async def do(self, what: str, name: str, number: int) -> None:
        server, tree, folder = self.server, self.tree, self.folder
        assert folder is not None
        if folder.below is not None and folder.below.crowd is not None:
            folder.below.crowd.fold(list(folder.dentries))
        known = folder.child(name) if what in ("unlink", "rename", "getattr") else None
        match what:
            case "put":
                server.put(name)
            case "remove":
                server.put(name, there=False)
            case "make":
                if not server.version(name):
                    server.put(name)
                    tree.made(folder, name, server.info(name), local=False)
                    self.barrier[name] = server.now
            case "unlink":
                if known is not None:
                    server.put(name, there=False)
                    tree.removed(known)
                    self.barrier[name] = server.now
            case "rename":
                (other,) = set(NAMES) - {name}
                if known is not None and known.info.size == server.version(name):  # type: ignore[union-attr]  # files
                    server.now += 1
                    server.history[other].append((server.now, server.version(name)))
                    server.history[name].append((server.now, 0))
                    tree.moved(known, (folder, name), (folder, other))
                    self.barrier[name] = self.barrier[other] = server.now
            case "refresh":
                await tree.forget_below(tree.inodes.root)
                if not self.outages:
                    self.barrier = dict.fromkeys(NAMES, server.now)
            case "forget":
                if self.kernel:
                    tree.forget(self.kernel.pop(number % len(self.kernel)), 1)
            case "lookup":
                self.nursery.start_soon(self.lookup, name)
            case "getattr":
                if known is not None:
                    self.nursery.start_soon(self.getattr, known, name)
            case "list":
                self.nursery.start_soon(self.list)
            case "answer" | "answer late" | "refuse" | "fail":
                if server.pending:
                    pending = server.pending.pop(number % len(server.pending))
                    pending.is_late = what == "answer late"
                    if what == "refuse":
                        pending.error = AccessDenied("not now", status=403)
                    elif what == "fail" and self.outages:
                        pending.error = Unavailable("down")
                    pending.release.set()
        await trio.testing.wait_all_tasks_blocked()

    async def rest(self) -> None:
        """Let the server answer everything, and look at every name."""
        while self.server.pending:
            await self.do("answer", "", 0)
        for name in NAMES:
            await self.do("lookup", name, 0)
            while self.server.pending:
                await self.do("answer", "", 0)

    async def lookup(self, name: str) -> None:
        assert self.folder is not None
        since = self.barrier[name]
        try:
            found = await self.tree.lookup(self.folder, name)
        except NoEntry:
            self.check(name, 0, since)
        except (AccessDenied, Unavailable):
            pass
        else:
            self.tree.inodes.remember(found)
            self.kernel.append(found.ino)
            self.check(name, found.info.size, since)  # type: ignore[union-attr]  # files

    async def getattr(self, inode: Inode, name: str) -> None:
        since = self.barrier[name]
        self.tree.inodes.remember(inode)
        try:
            await self.tree.refresh(inode)
        except NoEntry:
            self.check(name, 0, since)
        except (AccessDenied, Unavailable, Replaced):  # the kernel looks the name up again
            pass
        else:
            if inode.attached() and inode.name == name:
                self.check(name, inode.info.size, since)  # type: ignore[union-attr]  # files
        finally:
            self.tree.forget(inode.ino, 1)

    async def list(self) -> None:
        assert self.folder is not None
        since = dict(self.barrier)
        try:
            listing = await self.tree.listing(self.folder)
            found = {name: entry for name, entry, _ in listing.read(0, 10)}
        except (AccessDenied, Unavailable):
            return
        for name in NAMES:
            version = found[name].info.size if name in found else 0  # type: ignore[union-attr]
            self.check(name, version, since[name])

    def check(self, name: str, version: int, since: int) -> None:
        assert self.server.was(name, version, since), (name, version, since)


_EVENTS = st.tuples(
    st.sampled_from(
        [
            *("put", "remove", "make", "unlink", "rename", "refresh", "forget"),
            *("lookup", "getattr", "list") * 2,
            *("answer", "answer late") * 3,
            *("refuse", "fail", "fail"),
        ]
    ),
    st.sampled_from(NAMES),
    st.integers(0, 5),
)


@pytest.fixture
def _says_what_stands_in(expected_logs: list[str]) -> None:
    expected_logs.append("cannot be asked, serving what was known before")


# An answer from before a removal comes after a refresh that followed it.
_REMOVED_AND_REFRESHED = [
    *(("list", "a", 0), ("lookup", "a", 0), ("unlink", "a", 0), ("answer", "a", 0)),
    *(("refresh", "a", 0), ("list", "a", 0), ("answer", "a", 0), ("fail", "a", 0)),
]


@pytest.mark.timeout(600)  # the whole takes minutes on a busy machine
@pytest.mark.usefixtures("_says_what_stands_in")
@pytest.mark.parametrize("outages", [False, True], ids=["well", "down now and then"])
@pytest.mark.parametrize("packs", [False, True], ids=["objects", "packed"])
@pytest.mark.parametrize("ttl_s", [1e9, 0.0], ids=["believed", "ttl 0"])
@settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(events=st.lists(_EVENTS, min_size=4, max_size=24))
@example(events=_REMOVED_AND_REFRESHED)
def test_what_is_told_was_true_since_the_last_change_and_refresh(
    ttl_s: float, outages: bool, packs: bool, events: list[tuple[str, str, int]]
) -> None:
    async def check() -> None:
        async with trio.open_nursery() as nursery:
            run = _Run(ttl_s, nursery, outages=outages, packs=packs)
            await run.start()
            for event in events:
                await run.do(*event)
            await run.rest()
            # What is believed now, and what is there.
            for what in ("list", "refresh", "list"):
                await run.do(what, "", 0)
                await run.rest()
            run.questions.close()

    trio.run(check)
