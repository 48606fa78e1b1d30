"""Writing on a real mount: what only the kernel, other processes and signals can show."""

import contextlib
import hashlib
import mmap
import os
import random
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from jfs.server import EmbeddedServer, Fault
from jfs.vfs.writing.journal import Journal
from jfs.vfs.writing.records import State
from tests.component.server_requests import REPO, Requests
from tests.mount.conftest import MountedServer, Mounter
from tests.mount.mounting import Mounted, run_jfs

pytestmark = pytest.mark.fuse
_DEADLINE_S = 30


@pytest.fixture
def ask(mounted: MountedServer) -> Requests:
    return Requests(mounted.server)


def shell(command: str, where: Path) -> str:
    result = subprocess.run(
        ["env", "-C", str(where), "sh", "-eu", "-c", command],
        capture_output=True,
        text=True,
        check=False,
        timeout=_DEADLINE_S,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_copies_of_a_descriptor_do_not_upload_half_a_file(
    mounted: MountedServer, ask: Requests
) -> None:
    """The shell closes a copy before the first byte, and every command closes one of its own."""
    watched = mounted.server.faults.add(Fault.set_headers({}, f"/{REPO}/f*", method="PUT"))
    shell("(/bin/echo a; /bin/echo b; cat /dev/null) > f", mounted.root)
    assert ask.get(f"/{REPO}/f").body == b"a\nb\n"
    assert watched.hits == 1  # one deploy, with its body: it is small
    shell("(/bin/echo c; /bin/echo d) >> f", mounted.root)
    assert ask.get(f"/{REPO}/f").body == b"a\nb\nc\nd\n"
    assert watched.hits == 2
    shell(": > f && sync f", mounted.root)  # opened for the third time: it would wait
    assert ask.get(f"/{REPO}/f").body == b""


def test_the_last_close_of_all_handles_uploads(mounted: MountedServer, ask: Requests) -> None:
    """Handles of one process, of another, and copies of a descriptor; once the last has gone."""
    one = os.open(mounted.root / "f", os.O_WRONLY | os.O_CREAT)
    other = os.open(mounted.root / "f", os.O_RDWR)
    os.write(one, b"1")
    os.close(one)
    assert ask.get(f"/{REPO}/f").status == 404
    shell("echo 34 >> f", mounted.root)
    assert ask.get(f"/{REPO}/f").status == 404
    assert (mounted.root / "f").read_bytes() == b"134\n"
    os.pwrite(other, b"2", 0)
    copy = os.dup(other)
    os.close(other)
    assert ask.get(f"/{REPO}/f").status == 404
    os.close(copy)
    assert ask.get(f"/{REPO}/f").body == b"234\n"


def test_a_reader_follows_a_writer_byte_by_byte(mounted: MountedServer) -> None:
    """Bytes of a write-only handle pass the page cache by: pages of others must not go stale."""
    path = mounted.root / "log"
    writer = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    reader = os.open(path, os.O_RDONLY)
    choose = random.Random(1)
    expected = b""
    for _ in range(150):
        data = choose.randbytes(choose.choice((1, 100, 5000)))
        os.write(writer, data)
        expected += data
        start = choose.randrange(len(expected))
        assert os.pread(reader, 10_000, start) == expected[start : start + 10_000]
        assert os.fstat(reader).st_size == len(expected)
    os.close(writer)
    assert os.pread(reader, len(expected) + 1, 0) == expected
    os.close(reader)


def test_the_stores_of_a_mapping_are_uploaded(mounted: MountedServer, ask: Requests) -> None:
    """Also those that come after close(): no FLUSH sees them."""
    script = (
        "import mmap, os, sys\n"
        "file = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)\n"
        "os.ftruncate(file, 100000)\n"
        "mapped = mmap.mmap(file, 100000)\n"
        "mapped[:5] = b'first'\n"
        "os.close(file)\n"
        "mapped[50000:50004] = b'last'\n"
        "mapped.flush()\n"
        "mapped.close()\n"
    )
    subprocess.run(
        [sys.executable, "-c", script, mounted.root / "f"], check=True, timeout=_DEADLINE_S
    )
    data = (mounted.root / "f").read_bytes()
    assert (data[:5], data[50000:50004], len(data)) == (b"first", b"last", 100_000)
    # RELEASE has no answer to wait for: the next open of the file comes after it.
    os.close(os.open(mounted.root / "f", os.O_RDWR))
    mounted.mount.stop()
    assert ask.get(f"/{REPO}/f").body == data


def test_two_mounts_that_write_one_path(server: EmbeddedServer, mounter: Mounter) -> None:
    """Who closes last wins whole, where that was asked for."""
    ask = Requests(server)
    url, token = f"{server.url}/{REPO}", server.token
    roots = [
        mounter(url, "--attr-ttl", "0", "--last-writer-wins", name=name, JF_ACCESS_TOKEN=token).root
        for name in ("one", "two")
    ]
    files = [os.open(root / "f", os.O_WRONLY | os.O_CREAT) for root in roots]
    contents = [bytes([65 + number]) * 300_000 for number in range(2)]
    for offset in range(0, 300_000, 50_000):
        for file, data in zip(files, contents, strict=True):
            os.pwrite(file, data[offset : offset + 50_000], offset)
    for file, data in zip(files, contents, strict=True):
        os.close(file)
        assert ask.get(f"/{REPO}/f").body == data
    assert [(root / "f").read_bytes() for root in roots] == [contents[1], contents[1]]


def test_close_carries_the_verdict(mounted: MountedServer, ask: Requests) -> None:
    (mounted.root / "f").write_bytes(b"old")
    for status, text in ((413, "No space"), (403, "Permission"), (405, "Read-only")):
        mounted.server.faults.add(Fault.status(status, f"/{REPO}/f*", method="PUT"))
        file = os.open(mounted.root / "f", os.O_WRONLY | os.O_TRUNC)
        os.write(file, b"new")
        with pytest.raises(OSError, match=text):
            os.close(file)
        mounted.server.faults.clear()
        assert ask.get(f"/{REPO}/f").body == b"old"
        assert (mounted.root / "f").read_bytes() == b"old"
    mounted.mount.stop(expected=["AccessDenied", "QuotaExceeded"])


@pytest.fixture
def big(tmp_path: Path) -> Iterator[bytes]:
    return random.Random(3).randbytes(3_000_000)


def test_the_end_waits_for_an_upload(mounted: MountedServer, ask: Requests, big: bytes) -> None:
    fault = mounted.server.faults.add(Fault.hold(f"/{REPO}/f", method="PUT"))
    copy = subprocess.Popen(["dd", f"of={mounted.root / 'f'}", "bs=1M"], stdin=subprocess.PIPE)
    assert copy.stdin is not None
    copy.stdin.write(big)
    copy.stdin.close()
    fault.wait_hit()
    mounted.mount.process.send_signal(signal.SIGTERM)
    while "ending: SIGTERM" not in mounted.mount.log():
        assert mounted.mount.process.poll() is None
        os.sched_yield()
    fault.release()
    assert copy.wait(_DEADLINE_S) == 0  # close() returned 0
    mounted.mount.stop()
    assert ask.get(f"/{REPO}/f").body == big


def test_the_end_waits_no_longer_than_it_was_told(
    server: EmbeddedServer, mounter: Mounter, tmp_path: Path, big: bytes
) -> None:
    mounted = mounter(
        f"{server.url}/{REPO}", "--drain-timeout", "0.2", JF_ACCESS_TOKEN=server.token
    )
    unclosed = os.open(mounted.root / "unclosed", os.O_WRONLY | os.O_CREAT)
    os.write(unclosed, b"not closed")
    fault = server.faults.add(Fault.hold(f"/{REPO}/f", method="PUT"))
    copy = subprocess.Popen(
        ["dd", f"of={mounted.root / 'f'}", "bs=1M"],
        stdin=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert copy.stdin is not None
    copy.stdin.write(big)
    copy.stdin.close()
    fault.wait_hit()
    mounted.stop(expected=["uploads did not end within", "was not closed, so not uploaded"])
    assert copy.wait(_DEADLINE_S) != 0
    with contextlib.suppress(OSError):
        os.close(unclosed)
    assert re.search(r"unclosed: was not closed.*jfs recover", mounted.log_after())
    left = {}
    for entry in Journal(tmp_path / "cache" / "staging").left_behind():
        left[entry.record.path.path] = (entry.record.state, os.pread(entry.file, 1 << 24, 0))
        entry.close()
    assert left["unclosed"] == (State.WRITING, b"not closed")
    assert left["f"][1] == big


def test_unmounting_waits_too(mounted: MountedServer, ask: Requests) -> None:
    """RELEASE of a mapping: the daemon ends when it is uploaded."""
    path = mounted.root / "f"
    file = os.open(path, os.O_RDWR | os.O_CREAT)
    os.ftruncate(file, 8192)
    mapped = mmap.mmap(file, 8192)
    os.close(file)
    done = threading.Event()

    def store() -> None:  # a page fault waits for the daemon, which needs nothing of this process
        mapped[4096:4100] = b"late"
        mapped.close()
        done.set()

    threading.Thread(target=store).start()
    assert done.wait(_DEADLINE_S)
    subprocess.run(["fusermount3", "-u", mounted.root], check=True)
    assert mounted.mount.process.wait(_DEADLINE_S) == 0
    assert ask.get(f"/{REPO}/f").body[4096:4100] == b"late"


def test_a_mount_that_has_no_staging_directory(server: EmbeddedServer, tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "file").touch()
    said = run_jfs(
        *("mount", f"{server.url}/{REPO}", str(tmp_path / "root")),
        *("--staging-dir", str(tmp_path / "file"), "--cache-dir", str(tmp_path / "cache")),
        JF_ACCESS_TOKEN=server.token,
    )
    assert (said.returncode, said.stdout) == (2, "")
    assert f"{tmp_path / 'file'}: is not a directory" in said.stderr


def test_uploads_name_their_build(server: EmbeddedServer, mounter: Mounter) -> None:
    mounted: Mounted = mounter(
        f"{server.url}/{REPO}",
        *("--upload-prop", "env=staging", "--upload-prop", "team=nlp,vision"),
        JF_ACCESS_TOKEN=server.token,
        JFROG_CLI_BUILD_NAME="train bert",
        JFROG_CLI_BUILD_NUMBER="33",
    )
    (mounted.root / "m.bin").write_bytes(b"weights")
    found = Requests(server).properties("m.bin")
    assert found.pop("build.timestamp")[0].isdigit()
    assert found == {
        "build.name": ["train bert"],
        "build.number": ["33"],
        "env": ["staging"],
        "team": ["nlp", "vision"],
    }


def test_a_large_file_in_and_out(mounted: MountedServer, ask: Requests, tmp_path: Path) -> None:
    data = random.Random(7).randbytes(40_000_000)
    (tmp_path / "source").write_bytes(data)
    shell(f"cp {tmp_path / 'source'} m.bin && cmp {tmp_path / 'source'} m.bin", mounted.root)
    sums = ask.get(f"/api/storage/{REPO}/m.bin").json()["checksums"]
    assert sums["sha256"] == hashlib.sha256(data).hexdigest()
    mounted.server.stats.reset()
    shell("cp m.bin again.bin && cmp m.bin again.bin", mounted.root)
    assert mounted.server.stats.bytes_received == 0  # known content moves no byte
    assert mounted.server.stats.bytes_sent < 100_000  # and was never downloaded
