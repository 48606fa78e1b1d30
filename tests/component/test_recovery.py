"""The journal between processes, and uploads of what was left: states, verdicts, copies."""

import hashlib
import os
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import cast

import pytest

from jfs.errors import JfsError, NotFound, QuotaExceeded, Unavailable
from jfs.model import Checksums, Deployment, FileInfo, Properties, RepoPath
from jfs.protocols import ArtifactStore
from jfs.vfs.writing import recovery
from jfs.vfs.writing.journal import Entry, Journal, closing
from jfs.vfs.writing.records import Record, State
from jfs.vfs.writing.recovery import Outcome

PATH = RepoPath("models", "a/m.bin")
DATA = b"weights"


class Store:
    """A server with at most one artifact, which refuses deploys when told to."""

    def __init__(self, refusal: JfsError | None = None, there: FileInfo | None = None) -> None:
        self.refusal = refusal
        self.there = there
        self.deployed: list[Deployment] = []
        self.tagged: dict[str, tuple[str, ...] | None] = {}

    async def stat(self, path: RepoPath) -> FileInfo:
        if self.there is None or self.there.path != path:
            raise NotFound("nothing")
        return self.there

    async def properties(self, path: RepoPath) -> Properties:
        return {"env": ("production",)}

    async def set_properties(
        self, path: RepoPath, change: Mapping[str, tuple[str, ...] | None]
    ) -> None:
        assert path == PATH
        self.tagged.update(change)

    async def deploy(
        self, deployment: Deployment, file: int, *, patient: bool = True, still: object = None
    ) -> FileInfo:
        if self.refusal is not None:
            raise self.refusal
        assert os.pread(file, 100, 0) == DATA
        self.deployed.append(deployment)
        return FileInfo(deployment.path, deployment.size, deployment.checksums, 0)


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "staging")


def left(journal: Journal, state: State, **more: object) -> Entry:
    """A staged file whose process has died, claimed."""
    record = Record("http://s/artifactory", PATH, state, **more)  # type: ignore[arg-type]
    with closing(journal.create(record)) as entry:
        os.pwrite(entry.file, DATA, 0)
        name = entry.name
    return journal.find(name)


async def upload(entry: Entry, store: Store, **how: bool) -> Outcome:
    return await recovery.upload(entry, cast("ArtifactStore", store), force=how.get("force", False))


@pytest.mark.parametrize(
    ("state", "error", "after"),
    [
        (State.DEPLOYING, QuotaExceeded("full"), State.FAILED),
        (State.DEPLOYING, Unavailable("later"), State.DEPLOYING),
        (State.FAILED, Unavailable("later"), State.FAILED),
        (State.WRITING, QuotaExceeded("full"), State.WRITING),
    ],
)
async def test_an_upload_that_fails_keeps_the_file(
    journal: Journal, state: State, error: JfsError, after: State
) -> None:
    with closing(left(journal, state)) as entry, pytest.raises(type(error)):
        await upload(entry, Store(error))
    (seen,) = journal.survey()
    assert (seen.size, seen.record.state, seen.record.error) == (len(DATA), after, str(error))
    assert str(error) in recovery.describe(seen.record)


async def test_what_came_meanwhile_is_not_replaced(journal: Journal) -> None:
    there = FileInfo(PATH, 1, Checksums(sha256="00" * 32), 0)
    with closing(left(journal, State.DEPLOYING)) as entry:
        assert await upload(entry, Store(there=there)) is Outcome.CHANGED
        store = Store(there=there)
        assert await upload(entry, store, force=True) is Outcome.UPLOADED
    assert store.deployed[0].properties == {"env": ("production",)}
    assert journal.survey() == []


async def test_what_the_server_states_no_digest_of_is_not_replaced(journal: Journal) -> None:
    """Old artifacts have none, as long as nobody has computed it."""
    there = FileInfo(PATH, 1, Checksums(sha1="00" * 20), 0)
    with closing(left(journal, State.DEPLOYING)) as entry:
        store = Store(there=there)
        assert await upload(entry, store) is Outcome.CHANGED
        assert store.deployed == []
        assert await upload(entry, store, force=True) is Outcome.UPLOADED
    assert store.deployed[0].properties == {"env": ("production",)}


async def test_what_was_opened_there_is_replaced(journal: Journal) -> None:
    there = FileInfo(PATH, 1, Checksums(sha256="00" * 32), 0)
    with closing(left(journal, State.FAILED, base="00" * 32)) as entry:
        assert await upload(entry, Store(there=there)) is Outcome.UPLOADED


async def test_what_is_there_has_its_properties_too(journal: Journal) -> None:
    """An upload that was interrupted before it had set them; what others set since stays."""
    sums = Checksums(sha256=hashlib.sha256(DATA).hexdigest())
    store = Store(there=FileInfo(PATH, len(DATA), sums, 0))
    given = {"env": ("staging",), "note": ("a;b",)}
    with closing(left(journal, State.DEPLOYING, properties=given)) as entry:
        assert await upload(entry, store) is Outcome.WAS_THERE
    assert store.tagged == {"note": ("a;b",)}
    assert journal.survey() == []


@pytest.mark.parametrize(
    ("target", "outcome"), [(PATH, Outcome.UPLOADED), (RepoPath("models", "b"), Outcome.CHANGED)]
)
async def test_what_was_sent_to_the_place_itself_is_replaced_there(
    journal: Journal, target: RepoPath, outcome: Outcome
) -> None:
    """`jfs recover retry` names the place, also where it is its own."""
    store = Store(there=FileInfo(target, 1, Checksums(sha256="00" * 32), 0))
    with closing(left(journal, State.FAILED, sent=("00" * 32,))) as entry:
        asked = cast("ArtifactStore", store)
        assert await recovery.upload(entry, asked, force=False, target=target) is outcome


def test_a_survey_holds_nothing(journal: Journal) -> None:
    entry = journal.create(Record("s", PATH))
    (seen,) = journal.survey()
    assert (seen.in_use, seen.name) == (True, entry.name)
    entry.close()
    (seen,) = journal.survey()
    assert not seen.in_use
    journal.find(entry.name).close()


def test_who_looks_never_sweeps_away_what_is_being_made(journal: Journal) -> None:
    done = threading.Event()
    looks = []

    def look() -> None:
        other = Journal(journal.directory)
        while not done.is_set():
            looks.append(len(other.survey()))

    with ThreadPoolExecutor() as pool:
        looking = pool.submit(look)
        try:
            for _ in range(300):
                entry = journal.create(Record("s", PATH))
                assert entry.data_path.exists()
                entry.remove()
                entry.close()
        finally:
            done.set()
        looking.result()
    assert looks
    assert journal.survey() == []


def test_export_keeps_holes_and_what_it_fails_to_replace(journal: Journal, tmp_path: Path) -> None:
    target = tmp_path / "out.bin"
    with closing(left(journal, State.FAILED)) as entry:
        os.pwrite(entry.file, b"end", 40 << 20)
        os.ftruncate(entry.file, 80 << 20)
        recovery.export(entry, target)
        found = target.stat()
        assert (found.st_size, found.st_blocks * 512 < 1 << 20) == (80 << 20, True)
        content = target.read_bytes()
        assert (content[:7], content[40 << 20 : (40 << 20) + 4]) == (DATA, b"end\0")
        os.ftruncate(entry.file, 0)
        recovery.export(entry, target)
        assert target.read_bytes() == b""
        with pytest.raises(FileNotFoundError):
            recovery.export(entry, tmp_path / "no/such")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["out.bin", "staging"]


def test_several_may_change_one_record_at_a_time(journal: Journal) -> None:
    """An upload that fails notes that while its file is renamed: neither is lost."""
    with closing(left(journal, State.PENDING)) as entry, ThreadPoolExecutor(2) as pool:
        paths = [RepoPath("models", f"{number}.bin") for number in range(200)]
        moving = pool.submit(lambda: [entry.update(path=path) for path in paths])
        trying = pool.submit(lambda: [entry.note(tries=number) for number in range(200)])
        moving.result(), trying.result()
        assert (entry.record.path, entry.record.tries) == (paths[-1], 199)
        assert journal.survey()[0].record == entry.record


def test_a_change_that_the_disk_refuses_is_not_made(journal: Journal) -> None:
    """A file that is written again would be taken for a whole one by the next mount."""
    with closing(left(journal, State.DEPLOYING)) as entry:
        (journal.directory / f"{entry.name}.json.new").mkdir()
        with pytest.raises(IsADirectoryError):
            entry.update(state=State.WRITING)
        assert entry.record.state is State.DEPLOYING


async def test_what_power_has_cut_is_not_uploaded(journal: Journal) -> None:
    """The journal says that it was being uploaded, and its data never came to the disk, or half."""
    whole, half = hashlib.sha256(DATA + DATA).hexdigest(), hashlib.sha256(DATA).hexdigest()
    store = Store()
    with closing(left(journal, State.DEPLOYING, sha256=whole)) as entry:
        for _ in range(2):
            with pytest.raises(JfsError, match="is not what was written"):
                await upload(entry, store)
        assert store.deployed == []
        assert entry.record.state is State.FAILED
        assert await upload(entry, store, force=True) is Outcome.UPLOADED
    there = FileInfo(PATH, 2 * len(DATA), Checksums(sha256=whole), 0)
    with closing(left(journal, State.DEPLOYING, sha256=whole)) as entry:
        assert await upload(entry, Store(there=there)) is Outcome.WAS_THERE
    with closing(left(journal, State.DEPLOYING, sha256=half)) as entry:
        assert await upload(entry, store) is Outcome.UPLOADED
    assert journal.survey() == []
