"""Writes without --write-back while the server is down: told in time, with its errno, kept."""

import errno
import hashlib
import os
from collections.abc import Awaitable, Callable, Collection
from contextlib import aclosing
from pathlib import Path
from typing import TypeVar

import pytest
import trio

from jfs.artifactory import ArtifactoryClient
from jfs.config import WriteSettings
from jfs.errors import AlreadyExists, ChangedElsewhere, JfsError, NoAttribute, Unavailable, errno_of
from jfs.metrics import Metrics
from jfs.model import Checksums, Deployment, RepoPath
from jfs.server import Fault
from jfs.vfs.attributes.stat import Caller, Change
from jfs.vfs.filesystem import Filesystem
from jfs.vfs.namespace.inodes import ROOT
from jfs.vfs.writing import recovery
from jfs.vfs.writing.area import StagingArea
from jfs.vfs.writing.journal import Journal
from jfs.vfs.writing.records import State
from tests.component.composed import composed, content, find, names, server_settings
from tests.component.server_requests import REPO, Requests

_T = TypeVar("_T")
ME = Caller(os.getuid(), os.getgid())
DATA = os.urandom(200_000)
OUTAGE = ["cannot be asked", "is down", "serving what was known before"]
_LONGEST_S = 30  # of what takes a second or two, on a machine that is loaded
# What fails is known at once. What is silent is not; a loaded machine must not look so.
_FAILING = {"patience_s": 0.1}
_SILENT = {"patience_s": 0.1, "idle_s": 1.0, "deadline_s": 1.5}


REFUSALS: list[tuple[str, Callable[[], Fault], int]] = [
    ("401", lambda: Fault.status(401, method="PUT"), errno.EACCES),
    ("403", lambda: Fault.status(403, method="PUT"), errno.EACCES),
    ("404", lambda: Fault.status(404, method="PUT"), errno.EROFS),
    ("405", lambda: Fault.status(405, method="PUT"), errno.EROFS),
    ("409", lambda: Fault.status(409, method="PUT"), errno.EBUSY),
    ("423", lambda: Fault.status(423, method="PUT"), errno.EBUSY),
    ("413", lambda: Fault.status(413, method="PUT"), errno.ENOSPC),
    ("507", lambda: Fault.status(507, method="PUT"), errno.ENOSPC),
    ("429", lambda: Fault.status(429, method="PUT"), errno.EIO),
    ("500", lambda: Fault.status(500, method="PUT"), errno.EIO),
    ("503", lambda: Fault.status(503, method="PUT"), errno.EIO),
    ("503 to all", lambda: Fault.status(503), errno.EIO),
    ("nobody there", lambda: Fault.cut(), errno.EIO),
    ("silence", lambda: Fault.hold(method="PUT"), errno.ETIMEDOUT),
]


@pytest.mark.parametrize(
    ("fault", "code"), [pytest.param(fault, code, id=name) for name, fault, code in REFUSALS]
)
async def test_close_says_what_kind_of_failure_it_was(
    ask: Requests,
    tmp_path: Path,
    fault: Callable[[], Fault],
    code: int,
    expected_logs: list[str],
) -> None:
    """In bounded time; the bytes are in the journal, with the reason."""
    expected_logs += OUTAGE
    writes = WriteSettings(tmp_path / "staging")
    impatient = _SILENT if code == errno.ETIMEDOUT else _FAILING
    async with composed(ask.server, REPO, writes=writes, **impatient) as fs:
        opened, _ = await fs.create(ROOT, "f", 0o644, os.O_WRONLY, ME)
        await fs.write(opened.handle, 0, DATA)
        ask.server.faults.add(fault())
        with trio.fail_after(_LONGEST_S), pytest.raises(JfsError) as told:
            await fs.flush(opened.handle)
        ask.server.faults.clear()
        await fs.release(opened.handle)
    assert errno_of(told.value) == code, told.value
    (seen,) = Journal(writes.staging).survey()
    assert (seen.record.state, seen.size, seen.in_use) == (State.FAILED, len(DATA), False)
    assert seen.record.error


async def _rename(fs: Filesystem) -> None:
    await fs.rename(ROOT, "f", ROOT, "g", 0)


async def _replace(fs: Filesystem) -> None:
    await fs.rename(ROOT, "f", ROOT, "other", 0)


async def _move(fs: Filesystem) -> None:
    await fs.rename(ROOT, "d", await find(fs, "e"), "d", 0)


async def _truncate(fs: Filesystem) -> None:
    await fs.setattr(await find(fs, "f"), Change(size=3))


async def _set(fs: Filesystem) -> None:
    await fs.setxattr(await find(fs, "f"), b"user.env", b"staging")


async def _remove(fs: Filesystem) -> None:
    await fs.removexattr(await find(fs, "f"), b"user.env")


async def _symlink(fs: Filesystem) -> None:
    await fs.symlink(ROOT, "link", "f", ME)


async def _mkdir(fs: Filesystem) -> None:
    await fs.mkdir(ROOT, "new", 0o755, ME)


CHANGES: list[Callable[[Filesystem], Awaitable[None]]] = [
    *(_rename, _replace, _move, _truncate, _set, _remove, _symlink, _mkdir),
    lambda fs: fs.unlink(ROOT, "f"),
    lambda fs: fs.rmdir(ROOT, "empty"),
]


async def healed(ask: Callable[[], Awaitable[_T]]) -> _T:
    """Ask until the mount has found out that the server is back."""
    while True:
        try:
            return await ask()
        except Unavailable:
            await trio.sleep(0.02)


async def test_a_change_that_fails_in_an_outage_changes_nothing(
    ask: Requests, tmp_path: Path, expected_logs: list[str]
) -> None:
    """Every name, every byte and every property is as it was, here and on the server."""
    expected_logs += OUTAGE
    ask.server.deploy(REPO, "f", DATA, {"env": ["production"]})
    ask.server.deploy(REPO, "other", b"another")
    ask.server.deploy(REPO, "d/inside", b"inside")
    ask("PUT", f"/{REPO}/e/")
    ask("PUT", f"/{REPO}/empty/")
    writes = WriteSettings(tmp_path / "staging")
    async with composed(ask.server, REPO, writes=writes, **_FAILING) as fs:
        before = set(await names(fs, ""))
        assert await content(fs, "f") == DATA
        assert await fs.getxattr(await find(fs, "f"), b"user.env") == b"production"
        ask.server.faults.add(Fault.cut())
        with trio.fail_after(_LONGEST_S):
            for change in CHANGES:
                with pytest.raises(JfsError) as told:
                    await change(fs)
                assert errno_of(told.value) in (errno.EIO, errno.ETIMEDOUT), told.value
        assert set(await names(fs, "")) == before
        ask.server.faults.clear()
        fs.up("")
        await fs.refresh(ROOT)
        assert set(await healed(lambda: names(fs, "d"))) == {"inside"}
        assert set(await healed(lambda: names(fs, ""))) == before
        assert await healed(lambda: content(fs, "f")) == DATA
        f, other = await find(fs, "f"), await find(fs, "other")
        assert await healed(lambda: fs.getxattr(f, b"user.env")) == b"production"
        with pytest.raises(NoAttribute):
            await healed(lambda: fs.getxattr(other, b"user.env"))
    assert ask.get(f"/{REPO}/f").body == DATA
    assert ask.get(f"/{REPO}/other").body == b"another"
    assert ask.properties("f") == {"env": ["production"]}


@pytest.mark.parametrize("change", ["set", "mkdir", "unlink", "rmdir"])
async def test_what_was_done_though_its_answer_was_lost_is_seen(
    ask: Requests, tmp_path: Path, expected_logs: list[str], change: str
) -> None:
    """At once, not after a time to live: nobody knows what came of it, so nothing is believed."""
    expected_logs += OUTAGE
    ask.server.deploy(REPO, "f", DATA, {"env": ["production"]})
    ask("PUT", f"/{REPO}/empty/")
    writes = WriteSettings(tmp_path / "staging")
    changes = {"set": _set, "mkdir": _mkdir, "unlink": CHANGES[-2], "rmdir": CHANGES[-1]}
    async with composed(ask.server, REPO, writes=writes, **_FAILING) as fs:
        assert set(await names(fs, "")) == {"f", "empty"}
        assert await fs.getxattr(await find(fs, "f"), b"user.env") == b"production"
        for method in ("PUT", "PATCH", "DELETE"):
            ask.server.faults.add(Fault.drop(method=method))
        with trio.fail_after(_LONGEST_S), pytest.raises(Unavailable):
            await changes[change](fs)
        ask.server.faults.clear()
        fs.up("")
        there = await healed(lambda: names(fs, ""))
        assert ("f" in there) is (change != "unlink")
        assert ("empty" in there) is (change != "rmdir")
        assert ("new" in there) is (change == "mkdir")
        if change == "set":
            assert await healed(lambda: fs.getxattr(there["f"], b"user.env")) == b"staging"


@pytest.mark.parametrize("before", [b"old", None])
async def test_what_came_while_an_upload_was_refused_is_not_overwritten(
    ask: Requests, tmp_path: Path, before: bytes | None
) -> None:
    """Every try asks what is there: the first one may be minutes ago."""
    if before is not None:
        ask.server.deploy(REPO, "f", before)
    writes = WriteSettings(tmp_path / "staging")
    told: list[JfsError] = []

    async def close(fs: Filesystem, handle: int) -> None:
        with pytest.raises(ChangedElsewhere) as refusal:
            await fs.flush(handle)
        told.append(refusal.value)

    async with composed(ask.server, REPO, writes=writes, patience_s=_LONGEST_S) as fs:
        opened, _ = await fs.create(ROOT, "f", 0o644, os.O_WRONLY | os.O_TRUNC, ME)
        await fs.write(opened.handle, 0, DATA)
        fault = ask.server.faults.add(Fault.status(503, method="PUT", agent="jfs/*"))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(close, fs, opened.handle)
            await trio.to_thread.run_sync(fault.wait_hit)
            ask.server.deploy(REPO, "f", b"by somebody else")
            ask.server.faults.remove(fault)
        await fs.release(opened.handle)
    assert told
    assert ask.get(f"/{REPO}/f").body == b"by somebody else"
    (seen,) = Journal(writes.staging).survey()
    assert (seen.record.state, seen.size) == (State.FAILED, len(DATA))


async def test_a_link_does_not_take_the_name_of_what_came_while_it_was_refused(
    ask: Requests,
) -> None:
    told: list[JfsError] = []

    async def link(fs: Filesystem) -> None:
        with pytest.raises(AlreadyExists) as refusal:
            await fs.symlink(ROOT, "link", "f", ME)
        told.append(refusal.value)

    async with composed(ask.server, REPO, patience_s=_LONGEST_S) as fs:
        fault = ask.server.faults.add(Fault.status(503, method="PUT", agent="jfs/*"))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(link, fs)
            await trio.to_thread.run_sync(fault.wait_hit)
            ask.server.deploy(REPO, "link", b"by somebody else")
            ask.server.faults.remove(fault)
        assert await content(fs, "link") == b"by somebody else"
    assert told


async def test_what_came_while_the_first_try_had_to_wait_is_not_overwritten(
    ask: Requests, tmp_path: Path
) -> None:
    """The server asks for a pause, of others: the first try of a file may be minutes later, too."""
    metrics = Metrics()
    (tmp_path / "data").write_bytes(DATA)
    sums = Checksums(sha256=hashlib.sha256(DATA).hexdigest())
    asked: list[str] = []

    async def still(stored: Collection[str]) -> None:
        asked.extend(stored or ["f"])
        raise ChangedElsewhere("was changed")

    ask.server.faults.add(Fault.status(429, method="PUT", times=1, headers={"Retry-After": "3"}))
    with open(tmp_path / "data", "rb") as file:
        async with (
            aclosing(ArtifactoryClient(server_settings(ask.server), metrics)) as client,
            trio.open_nursery() as nursery,
        ):
            other = Deployment(RepoPath(REPO, "g"), len(DATA), sums)
            nursery.start_soon(client.deploy, other, file.fileno())
            while not metrics.snapshot().get("deploy_errors"):  # noqa: ASYNC110 - of its thread
                await trio.sleep(0.01)
            ours = Deployment(RepoPath(REPO, "f"), len(DATA), sums)
            with pytest.raises(ChangedElsewhere):
                await client.deploy(ours, file.fileno(), still=still)
            nursery.cancel_scope.cancel()
    assert asked == ["f"]


async def test_what_the_server_says_it_stored_of_ours_is_replaced(
    ask: Requests, tmp_path: Path
) -> None:
    """Something between us has changed it on its way: that is not somebody else's write."""
    storage, states = f"/api/storage/{REPO}/f", Fault.wrong_checksums
    async with composed(ask.server, REPO, writes=WriteSettings(tmp_path / "staging")) as fs:
        opened, _ = await fs.create(ROOT, "f", 0o644, os.O_WRONLY, ME)
        await fs.write(opened.handle, 0, DATA)
        # The first request of a deploy is whether its content is known.
        stored = ask.server.faults.add(states(f"/{REPO}/f", method="PUT", after=1, times=1))
        seen = ask.server.faults.add(states(storage, method="GET", after=1, times=1))
        await fs.flush(opened.handle)
        await fs.release(opened.handle)
        assert (stored.hits, seen.hits) == (1, 1)
    assert ask.get(f"/{REPO}/f").body == DATA


async def test_what_goes_on_with_an_upload_and_who_writes_there_take_turns(
    ask: Requests, tmp_path: Path
) -> None:
    """The next mount goes on with what was interrupted while the file is written anew."""
    writes = WriteSettings(tmp_path / "staging")
    left = StagingArea(writes, ask.server.url)
    staged = left.new(RepoPath(REPO, "f"), None)
    staged.write(0, b"interrupted")
    assert staged.entry is not None
    staged.entry.update(state=State.DEPLOYING)
    staged.entry.close()
    fault = ask.server.faults.add(Fault.hold(method="PUT", times=1))
    settings = server_settings(ask.server)
    verdict: list[JfsError | None] = []

    async def write(fs: Filesystem) -> None:
        opened, _ = await fs.create(ROOT, "f", 0o644, os.O_WRONLY | os.O_TRUNC, ME)
        await fs.write(opened.handle, 0, DATA)
        try:
            await fs.flush(opened.handle)
            verdict.append(None)
        except ChangedElsewhere as error:
            verdict.append(error)
        await fs.release(opened.handle)

    async with (
        aclosing(ArtifactoryClient(settings, Metrics())) as client,
        composed(ask.server, REPO, writes=writes) as fs,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(recovery.resume, left, client, fs.claims.held)
        await trio.to_thread.run_sync(fault.wait_hit)
        nursery.start_soon(write, fs)
        while True:
            if len(fs.claims) == 2 or verdict:  # he waits for his turn, or took none
                break
            await trio.sleep(0.01)
        ask.server.faults.remove(fault)
    left.close()
    expected = DATA if verdict == [None] else b"interrupted"
    assert ask.get(f"/{REPO}/f").body == expected
