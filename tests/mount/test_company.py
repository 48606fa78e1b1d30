"""Many processes on the same names and pages of one mount: nothing hangs, nothing is lost.

Counts are bounded, not times: on a slow machine it takes longer.
"""

import os
import subprocess
import sys
from collections.abc import Callable

import pytest

from jfs.server import EmbeddedServer
from tests.component.server_requests import REPO, Requests
from tests.mount.conftest import MountedServer, Mounter
from tests.mount.mounting import run_jfs

pytestmark = pytest.mark.fuse
_DEADLINE_S = 50

# Writers past the page cache beside readers through it, of the same pages: to drop those the kernel
# waits for READs, and they must not wait for who waits for that.
_BESIDE = """
import os, sys, threading
root, files, rounds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
size, piece, wrong = 1 << 20, 1 << 16, []

def write(file):
    for number in range(rounds):
        os.pwrite(file, bytes([number % 251]) * piece, number % 16 * piece)

def read(file):
    for number in range(rounds // 4):
        for at in range(0, size, piece):
            if len(os.pread(file, piece, at)) != piece:
                wrong.append((file, at))

threads, readers = [], []
for number in range(files):
    writer = os.open(f"{root}/f{number}", os.O_WRONLY | os.O_CREAT, 0o644)
    os.pwrite(writer, bytes(size), 0)
    readers.append(os.open(f"{root}/f{number}", os.O_RDONLY))
    threads.append(threading.Thread(target=write, args=(writer,)))
    threads.append(threading.Thread(target=read, args=(readers[-1],)))
for thread in threads:
    thread.start()
for _ in range(20):
    os.stat(f"{root}/f0")
for thread in threads:
    thread.join()
last = {}
for number in range(rounds):
    last[number % 16] = bytes([number % 251]) * piece
for reader in readers:
    if os.pread(reader, size, 0) != b"".join(last.get(at, bytes(piece)) for at in range(16)):
        wrong.append(("the end", reader))
print(wrong[:3], flush=True)
os._exit(bool(wrong))
"""


def test_writers_and_readers_of_the_same_pages_all_end(
    mounted: MountedServer, scale: Callable[[int, int], int]
) -> None:
    files, rounds = scale(8, 60), scale(48, 2000)
    subprocess.run(
        [sys.executable, "-c", _BESIDE, str(mounted.root), str(files), str(rounds)],
        check=True,
        timeout=scale(_DEADLINE_S, 3600),
    )
    assert (mounted.root / "f0").stat().st_size == 1 << 20


def test_processes_that_read_remove_and_make_the_same_names(
    mounted: MountedServer, scale: Callable[[int, int], int]
) -> None:
    """What is removed stays removed: nothing of it is left in the journal, or comes back."""
    rounds = scale(8, 300)
    loop = (
        f"for i in $(seq {rounds}); do for n in a b; do cat $n; rm -f $n; echo foo >$n; done; done"
    )
    loops = [
        subprocess.Popen(
            ["env", "-C", str(mounted.root), "sh", "-c", loop],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for _ in range(3)
    ]
    for each in loops:
        out, errors = each.communicate(timeout=scale(_DEADLINE_S, 3600))
        assert set(out.split()) <= {b"foo"}
        assert not [line for line in errors.splitlines() if b"No such file" not in line], errors
    cache = str(mounted.root.parent / "cache")
    assert "no staged files" in run_jfs("recover", "ls", "--cache-dir", cache).stdout
    for name in ("a", "b"):
        (mounted.root / name).unlink(missing_ok=True)
    assert os.listdir(mounted.root) == []
    mounted.mount.stop()
    assert Requests(mounted.server).tree() == {}
    assert "no staged files" in run_jfs("recover", "ls", "--cache-dir", cache).stdout


def test_what_was_removed_does_not_come_back_with_the_next_mount(
    server: EmbeddedServer, mounter: Mounter
) -> None:
    """Also if the mount is killed while others still have it open."""
    first = mounter(f"{server.url}/{REPO}", JF_ACCESS_TOKEN=server.token)
    files = []
    for number in range(3):
        path = first.root / f"f{number}"
        path.write_bytes(b"closed")
        files.append(os.open(path, os.O_RDWR))
        os.write(files[-1], b"CLOSED, and written again")
        os.fsync(files[-1])
        os.write(files[-1], b"once more")
        path.unlink()
    first.kill()
    for file in files:
        with pytest.raises(OSError, match="Transport endpoint"):
            os.close(file)
    again = mounter(f"{server.url}/{REPO}", name="again", JF_ACCESS_TOKEN=server.token)
    assert os.listdir(again.root) == []
    again.stop()
    assert Requests(server).tree() == {}
