"""A disk that fails below a mount: reads go on, writes say so, nothing is lost, and it heals.

The same mount goes through one fault after the other. A slice of them runs in the gate, all of them
with ``--whole``.
"""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from jfs.model import RepoPath
from jfs.server import EmbeddedServer
from jfs.vfs.writing.journal import Journal
from tests.mount.conftest import Mounter
from tests.mount.mounting import Mounted
from tests.weather.disks import ROWS, Disk, Row, expected, lost, prepare
from tests.weather.diskwork import OPERATIONS, whole
from tests.weather.matrix import REPO, Hand

pytestmark = pytest.mark.fuse

_SLICE = {"EIO at read", "EIO at everything", "full", "read-only", "taken away and put back"}
# Far more than any of it takes, where the disk answers; and where it is given up after 30 s.
_LONGEST_S, _LONGEST_WAIT_S = 20.0, 60.0


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    made = Disk(tmp_path)
    yield made
    made.end()


@pytest.mark.timeout(300)
def test_a_disk_that_fails(
    server: EmbeddedServer,
    disk: Disk,
    mounter: Mounter,
    request: pytest.FixtureRequest,
) -> None:
    whole_proof = request.config.getoption("--whole")
    rows = [row for row in ROWS if whole_proof or row.name in _SLICE]
    for number in range(len(rows)):
        prepare(server, number)
    server.deploy(REPO, "again0", whole("again", 0))
    mounted = mounter(
        f"{server.url}/{REPO}",
        *("--cache-dir", str(disk.place / "cache"), "--retry-for", "2"),
        JF_ACCESS_TOKEN=server.token,
    )
    hand = Hand(mounted, "tests.weather.diskwork")
    try:
        for number, row in enumerate(rows):
            _try(row, number, server, disk, mounted, hand)
        disk.fail()
        _heals(server, mounted, hand)
        if whole_proof:
            _is_unmounted_while_it_hangs(disk, mounted)
        mounted.stop(expected=["."])
    finally:
        hand.end()
    log = mounted.log_after()
    assert "Traceback" not in log
    assert " is down" not in log  # the server was well
    said = [line for line in log.splitlines() if "reading past the cache" in line]
    assert len(said) == 1, said
    assert "--cache-dir" in said[0]


def _try(
    row: Row, number: int, server: EmbeddedServer, disk: Disk, mounted: Mounted, hand: Hand
) -> None:
    assert hand.do(["prepare", number]).outcome == "ok", mounted.log()
    row.begin(disk)
    cells = {name: hand.do([name, number]) for name in OPERATIONS}
    row.end(disk)
    print(f"\n{row.name}")
    for name, cell in cells.items():
        print(f"  {name}: {cell.outcome} in {cell.seconds:.2f} s")
    outcomes = {name: cell.outcome for name, cell in cells.items()}
    assert outcomes == expected(row), f"{row.name}\n{mounted.log()}"
    assert max(cell.seconds for cell in cells.values()) < (
        _LONGEST_WAIT_S if row.waits else _LONGEST_S
    )
    assert hand.do(["read after", number]).outcome == "ok"
    assert lost(server, number, outcomes) == [], mounted.log()
    if outcomes["close"] != "ok":  # written whole, and then it could not be read
        kept = {each.record.path for each in Journal(disk.place / "cache" / "staging").survey()}
        assert RepoPath(REPO, f"closing{number}") in kept


def _is_unmounted_while_it_hangs(disk: Disk, mounted: Mounted) -> None:
    """The process itself ends once the kernel lets go of its threads."""
    disk.fail(all="hang")
    mounted.process.send_signal(signal.SIGTERM)
    until = time.monotonic() + _LONGEST_S
    while os.path.ismount(mounted.root):
        assert time.monotonic() < until
    disk.fail()


def _heals(server: EmbeddedServer, mounted: Mounted, hand: Hand) -> None:
    """Wait until what is read is cached, and writing works."""
    assert hand.do(["write again", 0]).outcome == "ok"
    until = time.monotonic() + 60
    while time.monotonic() < until:
        server.stats.reset()
        assert hand.do(["read again", 0]).outcome == "ok"
        if server.stats.bytes_sent < 1_000_000:
            return
    raise AssertionError(f"nothing is cached any more: {mounted.log()}")
