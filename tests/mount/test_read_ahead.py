"""What the kernel asks of a mount beyond what its programs read."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from jfs.mount.waiters import Wait, waiting
from jfs.server import Fault
from tests.mount.conftest import MountedServer
from tests.processes import killed

pytestmark = pytest.mark.fuse

REPO = "ml-models-local"
MiB = 1024 * 1024
_PREAD = """
import os, sys
file = os.open(sys.argv[1], os.O_RDONLY)
assert len(os.pread(file, int(sys.argv[3]), int(sys.argv[2]))) == int(sys.argv[3])
"""


# Pages of a mapping at random places; then all of it, by the mapping or by read(2).
_FAULTS = """
import mmap, os, random, sys
path, pattern, count, then = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
pattern = open(pattern, "rb").read()
file = os.open(path, os.O_RDONLY)
pages = mmap.mmap(file, 0, prot=mmap.PROT_READ)
data = (pattern * (len(pages) // len(pattern) + 1))[:len(pages)]
choose = random.Random(7)
for _ in range(count):
    place = choose.randrange(len(pages))
    assert pages[place] == data[place]
if then == "mapping":
    assert pages[:] == data
if then == "pread":
    for start in range(0, len(pages), 3_000_000):
        assert os.pread(file, 3_000_000, start) == data[start:start + 3_000_000]
if then == "read":
    assert b"".join(iter(lambda: os.read(file, 300_000), b"")) == data
"""
# Who turns O_DIRECT on in an open file is answered as he asks, wherever he has read before.
_DIRECT = """
import fcntl, mmap, os, sys
file = os.open(sys.argv[1], os.O_RDONLY)
pages = mmap.mmap(file, 0, prot=mmap.PROT_READ)
pages[1 << 20], pages[9 << 20]
fcntl.fcntl(file, fcntl.F_SETFL, os.O_DIRECT)
into = mmap.mmap(-1, 4 << 20)
for start in range(16 << 20, len(pages) - len(into), 6 << 20):
    assert os.preadv(file, [into], start) == len(into)
"""


def pread(path: Path, start: int, size: int) -> None:
    subprocess.run([sys.executable, "-c", _PREAD, str(path), str(start), str(size)], check=True)


def test_a_piece_that_is_read_once_costs_little_more_than_itself(mounted: MountedServer) -> None:
    """The kernel, left alone, asks for half as much again.

    On a machine so slow that the server looks far it may cost a quarter more, and no more.
    """
    mounted.server.deploy(REPO, "piece", bytes(48 * MiB))
    before = mounted.server.stats.bytes_sent
    pread(mounted.root / "piece", 37 * MiB, 4 * MiB)
    mounted.mount.stop()  # what was begun for it has ended
    sent = mounted.server.stats.bytes_sent - before
    assert 4 * MiB <= sent < 5.25 * MiB


_READ = """
import os, sys
file = os.open(sys.argv[1], os.O_RDONLY)
while os.read(file, 1 << 20):
    pass
"""


def test_a_mib_at_a_time_is_asked_for_so(mounted: MountedServer) -> None:
    """The kernel asks for two, and gets what the call reads; the rest is there for the next one."""
    mounted.server.deploy(REPO, "whole", bytes(24 * MiB))
    subprocess.run([sys.executable, "-c", _READ, str(mounted.root / "whole")], check=True)
    counters = json.loads((mounted.root / ".jfs/stats.json").read_bytes())["counters"]
    # READs of a page find their bytes here, mostly: there were 250 for the second MiB alone.
    assert counters.get("reads_at_once", 0) + counters.get("reads_beside", 0) < 100


# As zipfile and tarfile read: Python fills a buffer of st_blksize for each look.
_LOOKS = """
import sys
with open(sys.argv[1], "rb") as file:
    for place in range(24):
        file.seek((place * 7 % 24) * (2 << 20) + 5000)
        assert len(file.read(16)) == 16
"""


def test_a_look_at_a_few_bytes_costs_a_buffer_of_python_and_that_is_small(
    mounted: MountedServer,
) -> None:
    mounted.server.deploy(REPO, "archive.zip", bytes(48 * MiB))
    before = mounted.server.stats.bytes_sent
    subprocess.run([sys.executable, "-c", _LOOKS, str(mounted.root / "archive.zip")], check=True)
    mounted.mount.stop()  # what was begun for it has ended
    assert mounted.server.stats.bytes_sent - before < 8 * MiB


def test_a_stream_is_read_to_its_end(mounted: MountedServer) -> None:
    """Also where the kernel is told in the middle of it that it may ask ahead."""
    data = os.urandom(MiB) * 80
    mounted.server.deploy(REPO, "stream", data)
    assert (mounted.root / "stream").read_bytes() == data


@pytest.fixture(scope="module")
def pattern(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """No page of a file that repeats this is like one near it."""
    path = tmp_path_factory.mktemp("pattern") / "pattern"
    path.write_bytes(os.urandom(MiB + 4099))
    return path


def faults(path: Path, pattern: Path, count: int, then: str = "") -> None:
    arguments = (str(path), str(pattern), str(count), then)
    subprocess.run([sys.executable, "-c", _FAULTS, *arguments], check=True)


def test_page_faults_at_random_places_cost_their_blocks(
    mounted: MountedServer, pattern: Path
) -> None:
    """The kernel, left alone, reads 2 MiB around each: nearly all of the file."""
    mounted.server.deploy(REPO, "pages", pattern.read_bytes() * 96)
    before = mounted.server.stats.bytes_sent
    faults(mounted.root / "pages", pattern, 150)
    sent = mounted.server.stats.bytes_sent - before
    # 2 MiB for the first, 32 KiB for each other. Whoever is kept from the processor is not seen to
    # wait, and answered: so not a bound that a busy machine breaks.
    assert sent < 24 * MiB


@pytest.mark.parametrize("then", ["mapping", "read", "pread"])
def test_what_was_refused_around_page_faults_is_there_when_it_is_wanted(
    mounted: MountedServer, pattern: Path, then: str
) -> None:
    mounted.server.deploy(REPO, "pages", pattern.read_bytes() * 24)
    faults(mounted.root / "pages", pattern, 20, then)


def test_a_file_that_becomes_o_direct_is_read_without_an_error(mounted: MountedServer) -> None:
    mounted.server.deploy(REPO, "direct", bytes(48 * MiB))
    subprocess.run([sys.executable, "-c", _DIRECT, str(mounted.root / "direct")], check=True)


# Closes what it has written in execve(2).
_EXEC = """
import os, sys
file = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT)
os.write(file, b"x")
os.execv("/bin/true", ["true"])
"""


def test_who_waits_for_an_upload_in_execve_holds_up_nobody_else(mounted: MountedServer) -> None:
    """What /proc says of its call waits until that ends. Ctrl-C ends it."""
    mounted.server.deploy(REPO, "piece", bytes(48 * MiB))
    upload = mounted.server.faults.add(Fault.hold(method="PUT"))
    written = str(mounted.root / "written")
    with killed(subprocess.Popen([sys.executable, "-c", _EXEC, written])) as process:
        upload.wait_hit()
        looking = threading.Thread(target=waiting, args=[process.pid])
        looking.start()
        while waiting_in_kernel(looking) not in (b"proc_pid_syscall", b"lock_trace"):
            assert looking.is_alive()
            os.sched_yield()
        assert waiting(process.pid).what is Wait.UNKNOWN  # one of us waits for it at a time
        for start in (3, 30, 17):
            pread(mounted.root / "piece", start * MiB, 3 * MiB)
        process.send_signal(signal.SIGINT)
        process.wait(30)
        looking.join()
    upload.release()


def waiting_in_kernel(thread: threading.Thread) -> bytes:
    return Path(f"/proc/self/task/{thread.native_id}/wchan").read_bytes()
