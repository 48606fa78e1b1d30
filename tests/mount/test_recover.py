"""``jfs recover``: what was written and not uploaded, as real mounts leave it behind."""

import errno
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jfs.model import RepoPath
from jfs.server import EmbeddedServer, Fault
from jfs.vfs.writing.journal import Journal
from jfs.vfs.writing.records import Record, State
from tests.mount.commands import Content, run_here
from tests.mount.conftest import MountedServer, Mounter
from tests.mount.mounting import clean_environ, run_jfs
from tests.processes import killed

pytestmark = pytest.mark.fuse

REPO = "ml-models-local"
ONE, OTHER = os.urandom(3 << 20), b"somebody else's"
_WRITER = """
import os, sys
file = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT)
os.write(file, b"half")
print("written", flush=True)
sys.stdin.read()
"""


class Desk:
    """Commands on the staging directory of the mounts of a test."""

    def __init__(self, server: EmbeddedServer, cache: Path) -> None:
        self.server = server
        self.directory = cache / "staging"
        self._options = ("--cache-dir", str(cache))

    def __call__(self, verb: str, *arguments: str, code: int = 0, lines: int = 1) -> str:
        return run_here(
            self.server, "recover", verb, *self._options, *arguments, code=code, lines=lines
        )

    def ls(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = json.loads(self("ls", "--json"))
        return rows

    def only(self) -> str:
        (row,) = self.ls()
        return str(row["id"])


@pytest.fixture
def mounted(server: EmbeddedServer, mounter: Mounter) -> Iterator[MountedServer]:
    """As everywhere, but that uploads may be refused."""
    mount = mounter(f"{server.url}/{REPO}", JF_ACCESS_TOKEN=server.token)
    yield MountedServer(mount.root, server, mount)
    if mount.process.poll() is None:
        mount.stop(expected=["QuotaExceeded: ENOSPC: 413"])


@pytest.fixture
def desk(server: EmbeddedServer, tmp_path: Path) -> Desk:
    return Desk(server, tmp_path / "cache")


@pytest.fixture
def content(server: EmbeddedServer) -> Content:
    return Content(server)


def wait_until_let_go(mounted: MountedServer) -> None:
    """Wait until the mount knows that files were closed: a moment after close() has returned."""
    journal = Journal(mounted.root.with_name("cache") / "staging")
    while any(each.in_use for each in journal.survey()):
        time.sleep(0.01)


def fail_to_write(mounted: MountedServer, name: str, data: bytes = ONE) -> None:
    """Write a file whose upload the server refuses, as close() says."""
    fault = mounted.server.faults.add(Fault.status(413, f"/{REPO}/{name}*", method="PUT"))
    with pytest.raises(OSError) as failure:  # noqa: PT011 - its errno is looked at
        (mounted.root / name).write_bytes(data)
    assert failure.value.errno == errno.ENOSPC
    assert fault.hits
    mounted.server.faults.clear()
    wait_until_let_go(mounted)


@pytest.fixture
def writer(mounted: MountedServer) -> Iterator[MountedServer]:
    """A mount in which another process has written to new.bin, and not closed it."""
    started = subprocess.Popen(
        [sys.executable, "-c", _WRITER, str(mounted.root / "new.bin")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=clean_environ(),
    )
    with killed(started) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"written\n"
        yield mounted
        if mounted.mount.process.poll() is None:
            process.communicate(timeout=30)


def test_nothing_waits(desk: Desk, mounted: MountedServer) -> None:
    (mounted.root / "fine.bin").write_bytes(ONE)
    wait_until_let_go(mounted)
    assert desk.ls() == []
    assert desk("ls").startswith("no staged files")
    assert desk("retry", "--all") == ""
    assert desk("drop", "--all", "--yes").startswith("0 files")


def test_a_refused_upload_is_listed_and_retried(
    desk: Desk, mounted: MountedServer, content: Content
) -> None:
    (mounted.root / "a").mkdir()
    fail_to_write(mounted, "a/m.bin")
    (row,) = desk.ls()
    assert (row["size"], row["state"], row["in_use"]) == (len(ONE), "failed", False)
    assert (row["server"], row["path"]) == (mounted.server.url, f"{REPO}/a/m.bin")
    assert row["why"].startswith("413: ")
    header, line = desk("ls").splitlines()
    assert header.split() == ["ID", "SIZE", "STATE", "WRITTEN", "PLACE", "WHY"]
    assert line.startswith(row["id"])
    assert "refused" in line
    assert f"{mounted.server.url}/{REPO}/a/m.bin" in line
    assert not (mounted.root / "a/m.bin").exists()
    assert desk("retry", "--all") == (
        f"{row['id']}: {mounted.server.url}/{REPO}/a/m.bin: uploaded\n"
    )
    assert content.read(f"{REPO}/a/m.bin") == ONE
    assert desk.ls() == []
    assert (mounted.root / "a/m.bin").read_bytes() == ONE  # seen at once


def test_a_retry_that_fails_again_keeps_the_bytes(desk: Desk, mounted: MountedServer) -> None:
    for name in ("a.bin", "b.bin"):
        fail_to_write(mounted, name, name.encode())
    mounted.server.faults.add(Fault.status(403, f"/{REPO}/a.bin", method="PUT"))
    error = desk("retry", "--all", code=1)
    assert f"{REPO}/a.bin: 403: " in error
    (row,) = desk.ls()
    assert row["path"] == f"{REPO}/a.bin"
    assert row["why"].startswith("403: ")


def test_content_that_came_meanwhile_is_replaced_only_by_force(
    desk: Desk, mounted: MountedServer, content: Content
) -> None:
    fail_to_write(mounted, "m.bin")
    mounted.server.deploy(REPO, "m.bin", OTHER)
    name = desk.only()
    assert "the server has other content by now: --force" in desk("retry", name, code=1)
    assert content.read(f"{REPO}/m.bin") == OTHER
    # To another place, where nothing is: fine. Where something is, the same rule holds.
    mounted.server.deploy(REPO, "taken.bin", OTHER)
    assert "other content" in desk("retry", name[:6], "--to", f"{REPO}/taken.bin", code=1)
    desk("retry", name, "--to", f"{REPO}/rescued/m.bin")
    assert content.read(f"{REPO}/rescued/m.bin") == ONE
    assert desk.ls() == []
    fail_to_write(mounted, "n.bin")
    mounted.server.deploy(REPO, "n.bin", OTHER)
    desk("retry", "--force", "--all")
    assert content.read(f"{REPO}/n.bin") == ONE


def test_an_overwrite_keeps_properties(
    desk: Desk, mounted: MountedServer, content: Content
) -> None:
    mounted.server.deploy(REPO, "m.bin", OTHER, {"env": ["production"]})
    fail_to_write(mounted, "m.bin")
    desk("retry", "--all")
    assert content.read(f"{REPO}/m.bin") == ONE
    assert content.properties(f"{REPO}/m.bin") == {"env": ["production"]}


def test_to_names_a_place_in_a_mount_too(
    desk: Desk, mounted: MountedServer, content: Content
) -> None:
    fail_to_write(mounted, "m.bin")
    desk("retry", desk.only(), "--to", str(mounted.root / "sub/n.bin"))
    assert (mounted.root / "sub/n.bin").read_bytes() == ONE
    fail_to_write(mounted, "m.bin")
    desk("retry", desk.only(), "--to", f"{mounted.server.url}/{REPO}/o.bin")
    assert content.read(f"{REPO}/o.bin") == ONE


def test_what_a_mount_is_writing_is_shown_and_left_alone(desk: Desk, writer: MountedServer) -> None:
    (row,) = desk.ls()
    assert (row["path"], row["in_use"], row["size"]) == (f"{REPO}/new.bin", True, 4)
    assert row["why"] == "a running mount is writing it"
    assert "in use" in desk("ls")
    assert desk("retry", "--all") == ""
    assert desk("drop", "--all", "--yes") == "0 files, 0 bytes removed\n"
    for verb in (("retry",), ("drop", "--yes")):
        assert "a running mount is writing it" in desk(*verb, row["id"], code=1)
    assert "a running mount is writing it" in desk("export", row["id"], "/nowhere/x", code=1)
    assert [each["id"] for each in desk.ls()] == [row["id"]]


def test_what_was_never_closed_is_taken_only_by_its_id(
    desk: Desk, writer: MountedServer, content: Content
) -> None:
    writer.mount.kill()
    (row,) = desk.ls()
    assert (row["state"], row["in_use"], row["size"]) == ("writing", False, 4)
    assert row["why"] == "was being written when its mount ended"
    name = row["id"]
    assert desk("retry", "--all") == (
        f"{name}: {writer.server.url}/{REPO}/new.bin: was never closed, may be incomplete: left "
        f"alone (jfs recover retry {name} takes it)\n"
    )
    writer.server.faults.add(Fault.status(413, "*/new.bin", method="PUT"))
    assert "it may be incomplete" in desk("retry", name, code=1, lines=2)
    writer.server.faults.clear()
    (row,) = desk.ls()
    assert row["state"] == "writing"  # a failure does not make it whole
    assert row["why"].startswith("was being written when its mount ended; since then: 413")
    done = run_jfs(
        *("recover", "retry", name, "--staging-dir", str(desk.directory)),
        JF_ACCESS_TOKEN=writer.server.token,
    )
    assert done.returncode == 0, done
    assert "it may be incomplete" in done.stderr
    assert content.read(f"{REPO}/new.bin") == b"half"
    assert desk.ls() == []


def test_an_interrupted_upload_is_taken_by_the_next_mount(
    desk: Desk, server: EmbeddedServer, mounter: Mounter, content: Content
) -> None:
    first = mounter(f"{server.url}/{REPO}", JF_ACCESS_TOKEN=server.token)
    fault = server.faults.add(Fault.hold(f"/{REPO}/m.bin", method="PUT"))
    write = "import sys; open(sys.argv[1], 'wb').write(b'x' * 9)"
    command = [sys.executable, "-c", write, first.root / "m.bin"]
    with killed(subprocess.Popen(command, stderr=subprocess.DEVNULL)):
        fault.wait_hit()
        (row,) = desk.ls()
        assert row["why"] == "a running mount sees to its upload"
        first.kill()
    server.faults.clear()
    (row,) = desk.ls()
    assert (row["state"], row["why"]) == ("deploying", "was being uploaded when its mount ended")
    mounter(f"{server.url}/{REPO}", JF_ACCESS_TOKEN=server.token)
    while desk.ls():
        time.sleep(0.01)
    assert content.read(f"{REPO}/m.bin") == b"x" * 9


def test_export(desk: Desk, mounted: MountedServer, tmp_path: Path) -> None:
    with pytest.raises(OSError), (mounted.root / "m.bin").open("wb") as file:  # noqa: PT011, PT012
        mounted.server.faults.add(Fault.status(413, f"/{REPO}/m.bin", method="PUT"))
        file.truncate(64 << 20)
        file.seek(32 << 20)
        file.write(ONE)
    mounted.server.faults.clear()
    name, target = desk.only(), tmp_path / "m.bin"
    desk("export", name, str(target))
    assert target.stat().st_size == 64 << 20
    assert target.stat().st_blocks * 512 < 8 << 20
    with target.open("rb") as file:
        assert file.read(32 << 20) == bytes(32 << 20)
        assert file.read(len(ONE)) == ONE
        assert not any(file.read())
    assert desk.only() == name
    target.write_bytes(b"precious")
    assert "--force" in desk("export", name, str(target), code=2)
    assert target.read_bytes() == b"precious"
    assert "is a directory" in desk("export", name, str(tmp_path), code=2)
    assert "No such file" in desk("export", name, str(tmp_path / "no/such"), code=1)
    assert desk("export", "--force", "--drop", name, str(target)).endswith("no longer staged\n")
    assert target.stat().st_size == 64 << 20
    assert desk.ls() == []
    assert [each.name for each in tmp_path.iterdir() if each.name.startswith(".jfs")] == []


def test_drop(desk: Desk, mounted: MountedServer) -> None:
    for name in ("a.bin", "b.bin", "c.bin"):
        fail_to_write(mounted, name, b"12345")
    first = desk.ls()[0]["id"]
    assert "give --yes" in desk("drop", first, code=2)
    assert len(desk.ls()) == 3
    assert desk("drop", first, "--yes") == "1 files, 5 bytes removed\n"
    assert desk("drop", "--all", "--yes") == "2 files, 10 bytes removed\n"
    assert list(desk.directory.iterdir()) == []


def test_a_damaged_record_does_not_hide_its_bytes(
    desk: Desk, mounted: MountedServer, content: Content
) -> None:
    fail_to_write(mounted, "m.bin")
    name = desk.only()
    (desk.directory / f"{name}.json").write_text("{")
    (row,) = desk.ls()
    assert (row["size"], row["server"], row["why"]) == (len(ONE), "", "its record is damaged")
    assert desk("ls").splitlines()[1].split()[5] == "unknown"
    assert "say where with --to" in desk("retry", "--all", code=1)
    desk("retry", name, "--to", f"{REPO}/m.bin")
    assert content.read(f"{REPO}/m.bin") == ONE


def test_mistakes(desk: Desk, server: EmbeddedServer, tmp_path: Path) -> None:
    assert "no such directory" in desk("ls", code=2)
    journal = Journal(desk.directory)
    record = Record(server.url, RepoPath(REPO, "a.bin"), State.FAILED, error="refused")
    for _ in range(2):
        journal.create(record).close()
    name = desk.ls()[0]["id"]
    for verb in ("retry", "drop"):
        assert "either the ID of a file or --all" in desk(verb, code=2)
        assert "either the ID of a file or --all" in desk(verb, name, "--all", code=2)
        assert "nope: no staged file" in desk(verb, "nope", code=2)
    assert "exactly one ID" in desk("retry", "--all", "--to", "a/b", code=2)
    assert "whole path" in desk("retry", name, "--to", REPO, code=2)
    assert "whole path" in desk("retry", name, "--to", f"{REPO}/sub/", code=2)
    run = run_jfs("recover", "retry", name, "--staging-dir", str(desk.directory))
    assert run.returncode == 1
    assert "401" in run.stderr
    desk.directory.chmod(0o755)
    assert "chmod 700" in desk("ls", code=2)
