"""Programs that open their file again and again: one upload, and what ``close`` said holds."""

import json
import os
import random
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from jfs.server import EmbeddedServer, Fault
from tests.component.server_requests import REPO, Requests
from tests.mount.commands import run_here
from tests.mount.conftest import Mounter
from tests.mount.killing import kill_beside
from tests.mount.mounting import Mounted

pytestmark = pytest.mark.fuse

PATH = f"/{REPO}/f"
_LONG = ("--settle", "1h")  # on a machine of any speed: what rests is uploaded by fsync, or the end


def settling(server: EmbeddedServer, mounter: Mounter, *options: str, name: str = "mnt") -> Mounted:
    environ = {"JF_ACCESS_TOKEN": server.token}
    return mounter(f"{server.url}/{REPO}", *(options or _LONG), name=name, **environ)


def of_tensors(path: Path, choose: random.Random) -> bytes:
    """Save external data as onnx does: the file is made, then opened for each tensor."""
    whole = b""
    for _ in range(50):
        if not path.is_file():
            with path.open("ab"):
                pass
        tensor = choose.randbytes(20_000)
        with path.open("r+b") as file:
            file.seek(0, os.SEEK_END)
            file.write(tensor)
        whole += tensor
    return whole


def of_threads(path: Path, choose: random.Random) -> bytes:
    """Eight threads, each with a descriptor of its own, write parts of one file."""
    whole, part = choose.randbytes(800_000), 100_000
    first = os.open(path, os.O_RDWR | os.O_CREAT)
    os.ftruncate(first, len(whole))
    together = threading.Barrier(8)

    def write(number: int) -> None:
        file = os.open(path, os.O_WRONLY)
        together.wait()
        for offset in range(number * part, (number + 1) * part, 20_000):
            os.pwrite(file, whole[offset : offset + 20_000], offset)
        os.close(file)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    os.close(first)
    return whole


def of_ranges(path: Path, choose: random.Random) -> bytes:
    """A downloader that opens its file for each range."""
    whole, part = choose.randbytes(600_000), 10_000
    for offset in range(0, len(whole), part):
        file = os.open(path, os.O_WRONLY | os.O_CREAT)
        os.pwrite(file, whole[offset : offset + part], offset)
        os.close(file)
    return whole


def of_an_archive(path: Path, choose: random.Random) -> bytes:
    """``tar -r`` in a loop: each time the end of the archive is written anew."""
    members = path.parent.with_name("members")
    members.mkdir()
    for number in range(40):
        (members / str(number)).write_bytes(choose.randbytes(20_000 if number > 1 else 500))
        subprocess.run(["tar", "-rf", path, "-C", members, str(number)], check=True)
    listed = subprocess.run(["tar", "-tf", path], check=True, capture_output=True, text=True)
    assert listed.stdout.split() == [str(number) for number in range(40)]
    return path.read_bytes()


def test_a_program_that_writes_in_pieces_uploads_its_file_once(
    server: EmbeddedServer, mounter: Mounter
) -> None:
    mounted = settling(server, mounter)
    for program in (of_tensors, of_threads, of_ranges, of_an_archive):
        path = mounted.root / program.__name__
        server.stats.reset()
        whole = program(path, random.Random(1))
        assert path.read_bytes() == whole
        subprocess.run(["sync", path], check=True)
        assert Requests(server).get(f"/{REPO}/{path.name}").body == whole
        # The first two closes upload what there is by then.
        assert server.stats.bytes_received <= 1.05 * len(whole), program
        assert os.getxattr(path, "user.jfs.state") == b"clean"


def test_a_log_of_many_lines_is_few_uploads(server: EmbeddedServer, mounter: Mounter) -> None:
    """``>>`` for each line; status, attributes and ``jfs recover ls`` say that it waits."""
    mounted = settling(server, mounter)
    path = mounted.root / "f"
    script = 'for i in $(seq 200); do echo "{\\"step\\": $i, \\"loss\\": 0.123456}" >> "$0"; done'
    subprocess.run(["sh", "-c", script, path], check=True)
    whole = b"".join(b'{"step": %d, "loss": 0.123456}\n' % step for step in range(1, 201))
    assert path.read_bytes() == whole
    assert Requests(server).get(PATH).body == b"".join(whole.splitlines(keepends=True)[:2])
    assert os.getxattr(path, "user.jfs.state") == b"pending"
    (row,) = json.loads(run_here(server, "status", "--json", str(mounted.root)))
    assert row["uploads"]["pending"] == 1
    (row,) = json.loads(run_here(server, "recover", "ls", "--json", *_cache(mounted)))
    assert (row["state"], row["in_use"], row["size"]) == ("pending", True, len(whole))
    run_here(server, "sync-file", str(path))
    assert Requests(server).get(PATH).body == whole
    assert server.stats.bytes_received <= 1.2 * len(whole)
    assert server.stats.requests < 40


def test_sync_file_says_what_the_server_said(server: EmbeddedServer, mounter: Mounter) -> None:
    mounted = settling(server, mounter)
    path = mounted.root / "f"
    for word in ("one", "two", "three"):
        with path.open("a") as file:
            file.write(word)
    server.faults.add(Fault.status(507, f"{PATH}*", method="PUT"))
    said = run_here(server, "sync-file", str(path), code=1, lines=2)
    assert str(path) in said
    assert "507" in said
    assert os.getxattr(path, "user.jfs.state") == b"pending"
    server.faults.clear()
    run_here(server, "sync-file", str(path))
    assert Requests(server).get(PATH).body == b"onetwothree"
    for wrong in (mounted.root, mounted.root.parent):
        run_here(server, "sync-file", str(wrong), code=2)
    mounted.stop(expected=["507"])


def test_what_rests_is_uploaded_by_itself_and_at_the_end(
    server: EmbeddedServer, mounter: Mounter
) -> None:
    """With the default; and what has not rested when the mount ends is uploaded then."""
    mounted = mounter(f"{server.url}/{REPO}", JF_ACCESS_TOKEN=server.token)
    for word in ("one", "two", "three"):
        with (mounted.root / "f").open("a") as file:
            file.write(word)
    while Requests(server).get(PATH).body != b"onetwothree":
        time.sleep(0.02)
    mounted.stop()
    mounted = settling(server, mounter, name="second")
    for word in ("four", "five", "six"):
        with (mounted.root / "f").open("a") as file:
            file.write(word)
    run_here(server, "umount", str(mounted.root))
    assert Requests(server).get(PATH).body == b"onetwothreefourfivesix"
    assert mounted.process.wait(30) == 0


def test_a_save_by_rename_of_what_was_written_in_pieces(
    server: EmbeddedServer, mounter: Mounter
) -> None:
    server.deploy(REPO, "f", b"old", {"env": ["production"]})
    mounted = settling(server, mounter)
    for number in range(20):
        with (mounted.root / "f.tmp").open("ab") as file:
            file.write(b"%08d" % number)
    server.stats.reset()
    os.rename(mounted.root / "f.tmp", mounted.root / "f")
    whole = b"".join(b"%08d" % number for number in range(20))
    assert Requests(server).get(PATH).body == whole
    assert server.stats.bytes_received < 1.5 * len(whole)
    assert os.getxattr(mounted.root / "f", "user.env") == b"production"


def changed(path: str, number: int) -> None:
    """Make the change of this number: it is written by one open, and depends on nothing else."""
    data = b"%08d" % number * (1 + number * 7919 % 3000)
    match number % 4:
        case 0:
            mode, offset = "wb", 0
        case 1:
            mode, offset = "r+b", 5000  # within what there is, or beyond
        case _:
            mode, offset = "ab", 0
    with open(path, mode, buffering=0) as file:
        file.seek(offset, os.SEEK_SET if mode != "ab" else os.SEEK_END)
        file.write(data[: len(data) // 2])
        file.write(data[len(data) // 2 :])


@pytest.mark.timeout(3600)
def test_nothing_that_was_closed_is_lost_by_a_mount_that_is_killed(
    server: EmbeddedServer, mounter: Mounter, tmp_path: Path, scale: Callable[[int, int], int]
) -> None:
    """A file is opened for each change, the mount killed at any moment.

    The next mount brings to the server what was closed last, or the change after it, whose close
    had no time to return; what was half done is in ``jfs recover``.
    """
    choose = random.Random(3)
    beside = tmp_path / "beside"
    beside.mkdir()
    last = 0
    server.deploy(REPO, "f", b"")
    (beside / "f").touch()
    for turn in range(scale(2, 200)):
        mounted = settling(server, mounter, name=f"mnt{turn}")
        before = last
        last = kill_beside(mounted, changed, last, choose=choose, most=20)
        mounted = settling(server, mounter, name=f"again{turn}")
        mounted.stop()
        there = Requests(server).get(PATH).body
        for number in range(before + 1, last + 1):
            changed(str(beside / "f"), number)
        if there != (beside / "f").read_bytes():
            last += 1
            changed(str(beside / "f"), last)
        assert there == (beside / "f").read_bytes()
        for row in json.loads(run_here(server, "recover", "ls", "--json", *_cache(mounted))):
            # Half done; or its close was uploading it, and this mount has ended before it looked.
            assert row["state"] in ("writing", "deploying")
            run_here(server, "recover", "drop", "--yes", *_cache(mounted), row["id"])


def _cache(mounted: Mounted) -> tuple[str, str]:
    return "--cache-dir", str(mounted.root.parent / "cache")
