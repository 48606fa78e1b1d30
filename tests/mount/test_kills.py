"""``kill -9`` of the daemon while somebody writes: nothing half on the server, nothing lost."""

import os
import random
import selectors
import subprocess
import sys
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path

import pytest
import trio

from jfs.artifactory import ArtifactoryClient
from jfs.config import WriteSettings
from jfs.metrics import Metrics
from jfs.model import RepoPath
from jfs.server import EmbeddedServer
from jfs.vfs.writing import recovery
from jfs.vfs.writing.area import StagingArea
from jfs.vfs.writing.journal import Entry, Journal
from jfs.vfs.writing.records import State
from tests.component.composed import server_settings
from tests.component.server_requests import REPO, Requests
from tests.mount.conftest import Mounter
from tests.mount.mounting import Mounted, clean_environ
from tests.mount.writer import whole
from tests.processes import killed

pytestmark = pytest.mark.fuse


@pytest.mark.timeout(3600)
def test_a_daemon_that_is_killed_while_somebody_writes(
    server: EmbeddedServer,
    mounter: Mounter,
    tmp_path: Path,
    scale: Callable[[int, int], int],
) -> None:
    """Kill at random points of writing and of closing; then look at the server and the journal.

    After ``close`` returned 0 the server has the file whole. Before that it has the old content,
    or, if it had it all already, the new one; and every byte that a write took is in the journal.
    """
    ask = Requests(server)
    choose = random.Random(5)
    ends: dict[str, int] = {}
    for number in range(scale(6, 200)):
        size = choose.choice((50_000, 1_000_000, 5_000_000))
        piece = choose.choice((4096, 100_000, 1 << 20))
        kind = choose.choice(("wronly", "rdwr"))
        old = b"old content" if choose.random() < 0.6 else None
        server.delete(REPO, "")
        if old is not None:
            server.deploy(REPO, "f", old)
        mounted = mounter(f"{server.url}/{REPO}", name=f"mnt{number}", JF_ACCESS_TOKEN=server.token)
        accepted, closed = _write_until(mounted, size, piece, kind, _point(choose, size))
        there = ask.get(f"/{REPO}/f")
        new = whole(size)
        entries = list(Journal(tmp_path / "cache" / "staging").left_behind())
        try:
            if closed:
                assert there.body == new
                end = "closed"
            else:
                assert there.body == new or (there.status, there.body) == (
                    (200, old) if old is not None else (404, there.body)
                )
                end = _recovered(entries, server, new, accepted, is_there=there.body == new)
                assert accepted == 0 or entries or there.body == new
                if end == "uploaded":
                    assert ask.get(f"/{REPO}/f").body == new
            ends[end] = ends.get(end, 0) + 1
        finally:
            for entry in entries:
                entry.remove()
                entry.close()
    # The proof is one of writing and of closing only if it met both.
    assert len(ends) >= scale(2, 4), ends


def _point(choose: random.Random, size: int) -> tuple[str, float]:
    """Choose when to kill: after so many bytes, or so many seconds after ``closing``."""
    if choose.random() < 0.5:
        return "bytes", choose.randrange(size)
    return "closing", choose.choice((0.0, 0.001, 0.005, choose.random() * 0.05, 1.0))


def _write_until(
    mounted: Mounted, size: int, piece: int, kind: str, point: tuple[str, float]
) -> tuple[int, bool]:
    """Kill the daemon at *point* of a write; return the bytes taken, and whether it was closed."""
    what, when = point
    command = [sys.executable, "-m", "tests.mount.writer", str(mounted.root / "f")]
    started = subprocess.Popen(
        [*command, str(size), str(piece), kind],
        stdout=subprocess.PIPE,
        env={**clean_environ(), "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    with killed(started) as writer:
        assert writer.stdout is not None
        accepted, closed = 0, False
        lines = iter(writer.stdout.readline, b"")
        for line in lines:
            if line.strip().isdigit():
                accepted = int(line)
                if what == "bytes" and accepted > when:
                    break
            elif line == b"closing\n" and what == "closing":
                with selectors.DefaultSelector() as selector:
                    selector.register(writer.stdout, selectors.EVENT_READ)
                    selector.select(when)  # until it is closed, or the time is up
                break
        mounted.kill()
        for line in lines:
            if line.strip().isdigit():
                accepted = int(line)
            closed = closed or line == b"closed\n"
    return accepted, closed


def _recovered(
    entries: list[Entry], server: EmbeddedServer, new: bytes, accepted: int, *, is_there: bool
) -> str:
    """Hold what the journal has against what was written; go on with what was closed."""
    for entry in entries:
        assert entry.record.path.path == "f"
        data = os.pread(entry.file, len(new) + 1, 0)
        if entry.record.state is State.DEPLOYING:
            assert data == new  # whole, as it was closed
            outcome = trio.run(_resume, entry, server)
            assert outcome is (
                recovery.Outcome.WAS_THERE if is_there else recovery.Outcome.UPLOADED
            )
            return outcome.name.lower()
        assert data[:accepted] == new[:accepted]
        assert data == new[: len(data)]
        return "written"
    return "was there" if is_there else "nothing"


async def _resume(entry: Entry, server: EmbeddedServer) -> recovery.Outcome:
    async with aclosing(ArtifactoryClient(server_settings(server), Metrics())) as client:
        return await recovery.upload(entry, client, force=False)


def test_the_next_mount_goes_on_with_what_was_interrupted(
    server: EmbeddedServer, mounter: Mounter, tmp_path: Path
) -> None:
    """What was closed is uploaded, unless the server has newer content; what was not waits."""
    settings = WriteSettings(tmp_path / "cache" / "staging")
    (tmp_path / "cache").mkdir(mode=0o700)
    server.deploy(REPO, "changed", b"by somebody else, since")
    area = StagingArea(settings, server.url)
    for name, state in (
        ("interrupted", State.DEPLOYING),
        ("changed", State.DEPLOYING),
        ("half", State.WRITING),
    ):
        staged = area.new(RepoPath(REPO, name), None)
        staged.write(0, name.encode())
        assert staged.entry is not None
        staged.entry.update(state=state, properties={"env": ("staging",)})
        staged.entry.close()
    area.close()
    mounted = mounter(f"{server.url}/{REPO}", JF_ACCESS_TOKEN=server.token)
    ask = Requests(server)
    # The mount says in its log when it is through.
    while "files of earlier mounts were not uploaded" not in mounted.log():
        assert mounted.process.poll() is None
        os.sched_yield()
    assert ask.get(f"/{REPO}/interrupted").body == b"interrupted"
    assert ask.properties("interrupted") == {"env": ["staging"]}
    assert ask.get(f"/{REPO}/changed").body == b"by somebody else, since"
    assert ask.get(f"/{REPO}/half").status == 404
    mounted.stop()
    left = {
        entry.record.path.path: os.pread(entry.file, 100, 0)
        for entry in Journal(settings.staging).left_behind()
    }
    assert left == {"changed": b"changed", "half": b"half"}
