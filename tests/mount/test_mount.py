"""What a program sees on a real mount, and how a mount begins and ends."""

import hashlib
import json
import os
import random
import signal
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from jfs.server import EmbeddedServer
from tests.mount.conftest import MountedServer, Mounter
from tests.mount.mounting import clean_environ, run_jfs

pytestmark = pytest.mark.fuse

REPO = "ml-models-local"
BLOCK = 64 * 1024


def test_names_sizes_and_times(mounted: MountedServer) -> None:
    mounted.server.deploy(REPO, "nlp/sentiment/2.0.0/model.onnx", b"weights")
    file = mounted.root / "nlp" / "sentiment" / "2.0.0" / "model.onnx"
    status = file.stat()
    assert file.read_bytes() == b"weights"
    assert status.st_size == 7
    assert stat.S_IMODE(status.st_mode) == 0o644
    assert (status.st_uid, status.st_gid, status.st_nlink) == (os.getuid(), os.getgid(), 1)
    folder = file.parent.stat()
    assert stat.S_ISDIR(folder.st_mode)
    assert folder.st_nlink == 2
    assert abs(status.st_mtime - mounted.root.stat().st_ctime) < 10 * 365 * 86400
    assert os.listdir(mounted.root) == ["nlp"]
    assert not (mounted.root / "absent").exists()


def test_mtime_is_last_modified(mounted: MountedServer) -> None:
    mounted.server.deploy(REPO, "a", b"x")
    url = f"{mounted.server.url}/api/storage/{REPO}/a"
    info = json.loads(
        subprocess.run(
            ["curl", "-sSf", "-H", f"Authorization: Bearer {mounted.server.token}", url],
            check=True,
            capture_output=True,
        ).stdout
    )
    shown = subprocess.run(
        ["date", "-u", "-r", str(mounted.root / "a"), "+%Y-%m-%dT%H:%M:%S.%3N"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    assert info["lastModified"].startswith(shown)


def test_a_read_only_mount_changes_nothing(server: EmbeddedServer, mounter: Mounter) -> None:
    server.deploy(REPO, "a", b"x")
    mounted = mounter(f"{server.url}/{REPO}", "--read-only", JF_ACCESS_TOKEN=server.token)
    for act in (
        lambda: (mounted.root / "new").touch(),
        lambda: (mounted.root / "a").write_bytes(b"y"),
        lambda: (mounted.root / "a").unlink(),
        lambda: (mounted.root / "d").mkdir(),
        lambda: (mounted.root / "a").rename(mounted.root / "b"),
        lambda: (mounted.root / "a").chmod(0o600),
        lambda: (mounted.root / "l").symlink_to("a"),
        lambda: os.truncate(mounted.root / "a", 0),
    ):
        with pytest.raises(OSError, match="Read-only file system"):
            act()


@pytest.mark.parametrize(
    "size", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 7, 5 * 1024 * 1024 + 3]
)
def test_sizes_round_trip(mounted: MountedServer, size: int) -> None:
    data = random.Random(size).randbytes(size)
    mounted.server.deploy(REPO, "f.bin", data)
    assert (mounted.root / "f.bin").read_bytes() == data
    with (mounted.root / "f.bin").open("rb") as file:
        file.seek(size)
        assert file.read() == b""
        file.seek(max(0, size - 5))
        assert file.read() == data[max(0, size - 5) :]


def test_four_gib_and_a_byte(mounted: MountedServer, tmp_path: Path) -> None:
    """Offsets beyond 32 bits: the ends and the seam of a sparse file."""
    size = 4 * 1024**3 + 1
    path = tmp_path / "big"
    with path.open("wb") as file:
        file.truncate(size)
        file.seek(4 * 1024**3 - 5)
        file.write(b"abcdef")
    digest = "7fb9ddd1e5a8ec9d5e8e3ae5f8cdce3ba1ea3fd3dd3c1d1b0c3f2e0d4f0a1b2c"  # declared, unread
    mounted.server.deploy(REPO, "big.bin", path, sha256=digest)
    with (mounted.root / "big.bin").open("rb") as file:
        assert os.fstat(file.fileno()).st_size == size
        file.seek(4 * 1024**3 - 6)
        assert file.read() == b"\0abcdef"
        file.seek(0)
        assert file.read(10) == bytes(10)


def test_a_little_of_a_huge_file_costs_a_little(mounted: MountedServer, tmp_path: Path) -> None:
    path = tmp_path / "huge"
    with path.open("wb") as file:
        file.truncate(10 * 1024**3)
    mounted.server.deploy(REPO, "huge.bin", path, sha256="ab" * 32)
    mounted.server.stats.reset()
    with (mounted.root / "huge.bin").open("rb", buffering=0) as file:
        file.seek(5 * 1024**3)
        assert file.read(1024**2) == bytes(1024**2)
    assert mounted.server.stats.bytes_sent < 3 * 1024**2


def test_ls_of_a_folder_is_one_listing(mounted: MountedServer) -> None:
    for i in range(50):
        mounted.server.deploy(REPO, f"d/f{i:03}", b"x")
    mounted.server.stats.reset()
    subprocess.run(["ls", "-l", str(mounted.root / "d")], check=True, capture_output=True)
    assert mounted.server.stats.requests <= 2  # one lookup of d, one listing


def test_unusual_names(mounted: MountedServer) -> None:
    names = ["a b", "p%20q", "x#y", "s;t=u", "k+l", "am&per", "at@sign", "ü-é-日本", "e=mc2", "(1)"]
    for name in names:
        mounted.server.deploy(REPO, f"odd/{name}", name.encode())
    assert sorted(os.listdir(mounted.root / "odd")) == sorted(names)
    for name in names:
        assert (mounted.root / "odd" / name).read_bytes() == name.encode()


def test_a_whole_server_and_a_folder(server: EmbeddedServer, mounter: Mounter) -> None:
    server.create_repository("other-local")
    server.deploy(REPO, "a/b/c", b"1")
    server.deploy("other-local", "x", b"2")
    whole = mounter(server.url, name="whole", JF_ACCESS_TOKEN=server.token)
    assert sorted(os.listdir(whole.root)) == [REPO, "other-local"]
    assert (whole.root / "other-local" / "x").read_bytes() == b"2"
    folder = mounter(f"{server.url}/{REPO}/a", name="folder", JF_ACCESS_TOKEN=server.token)
    assert (folder.root / "b" / "c").read_bytes() == b"1"
    assert (whole.root / REPO / "a" / "b" / "c").read_bytes() == b"1"


def test_owner_and_mode_are_options(server: EmbeddedServer, mounter: Mounter) -> None:
    server.deploy(REPO, "a", b"x")
    mounted = mounter(
        f"{server.url}/{REPO}",
        *(
            "--uid",
            "12",
            "-o",
            "gid=34,umask=077,noatime,default_permissions,nodiratime",
            "--allow-other",
        ),
        JF_ACCESS_TOKEN=server.token,
    )
    status = (mounted.root / "a").stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (12, 34, 0o600)
    line = next(
        line
        for line in Path("/proc/mounts").read_text(errors="replace").splitlines()
        if str(mounted.root) in line
    )
    assert " fuse.jfs " in line
    assert "noatime" in line
    assert "allow_other" in line


def test_inode_numbers_are_stable(mounted: MountedServer, mounter: Mounter) -> None:
    mounted.server.deploy(REPO, "d/a", b"x")
    before = (mounted.root / "d" / "a").stat().st_ino
    Path("/proc/sys/vm/drop_caches").write_text("2")
    assert (mounted.root / "d" / "a").stat().st_ino == before
    again = mounter(
        f"{mounted.server.url}/{REPO}", name="again", JF_ACCESS_TOKEN=mounted.server.token
    )
    assert (again.root / "d" / "a").stat().st_ino == before


def test_the_token_file_is_read_again(
    server: EmbeddedServer, mounter: Mounter, tmp_path: Path
) -> None:
    token_file = tmp_path / "token"
    token_file.write_text(server.token)
    server.deploy(REPO, "a", b"x")
    server.deploy(REPO, "b", b"y")
    mounted = mounter(f"{server.url}/{REPO}", "--token-file", str(token_file))
    assert (mounted.root / "a").read_bytes() == b"x"
    token_file.write_text("wrong")
    with pytest.raises(PermissionError):
        (mounted.root / "b").read_bytes()
    token_file.write_text(server.token)
    assert (mounted.root / "b").read_bytes() == b"y"
    mounted.stop(expected=["AccessDenied"])


def test_garbage_from_the_server_is_eio_for_that_file_only(
    server: EmbeddedServer, mounter: Mounter
) -> None:
    from jfs.server.http.faults import Fault

    server.deploy(REPO, "good", b"good")
    server.deploy(REPO, "bad", b"bad")
    server.deploy(REPO, "worse", b"worse")
    mounted = mounter(f"{server.url}/{REPO}", JF_ACCESS_TOKEN=server.token)
    server.faults.add(Fault.garbage(path="/api/storage/*/bad"))
    server.faults.add(Fault.garbage(path="/*/worse"))
    for name in ("bad", "worse"):
        with pytest.raises(OSError, match="Input/output error"):
            (mounted.root / name).read_bytes()
    assert (mounted.root / "good").read_bytes() == b"good"
    server.faults.clear()
    assert (mounted.root / "bad").read_bytes() == b"bad"
    assert (mounted.root / "worse").read_bytes() == b"worse"
    mounted.stop(expected=["ProtocolViolation", "retr"])


def test_xattr_probes_do_not_hurt(mounted: MountedServer) -> None:
    mounted.server.deploy(REPO, "a", b"x")
    with pytest.raises(OSError, match="not supported"):
        os.getxattr(mounted.root / "a", "security.capability")


def test_statfs_and_root_need_no_server(server: EmbeddedServer, mounter: Mounter) -> None:
    mounted = mounter(f"{server.url}/{REPO}", JF_ACCESS_TOKEN=server.token)
    server.stop()
    assert os.statvfs(mounted.root).f_bavail > 0
    assert stat.S_ISDIR(mounted.root.stat().st_mode)
    mounted.stop()


def test_an_unmount_ends_the_daemon(mounted: MountedServer) -> None:
    assert run_jfs("umount", str(mounted.root)).returncode == 0
    assert mounted.mount.process.wait(60) == 0
    mounted.mount.stop()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_even_in_use(mounted: MountedServer, number: signal.Signals) -> None:
    mounted.server.deploy(REPO, "a", b"x")
    file = os.open(mounted.root / "a", os.O_RDONLY)
    mounted.mount.process.send_signal(number)
    assert mounted.mount.process.wait(30) == 0
    with pytest.raises(OSError, match="not connected"):  # the file's, not the directory's
        os.close(file)
    assert not os.path.ismount(mounted.root)


@pytest.fixture
def daemon_root(server: EmbeddedServer, tmp_path: Path) -> Iterator[Path]:
    root = tmp_path / "daemon"
    root.mkdir()
    yield root
    subprocess.run(["fusermount3", "-uzq", str(root)], check=False, env=clean_environ())


def test_a_daemon_returns_when_the_mount_answers(
    server: EmbeddedServer, daemon_root: Path, tmp_path: Path
) -> None:
    server.deploy(REPO, "a", b"x")
    result = run_jfs(
        "mount",
        f"{server.url}/{REPO}",
        str(daemon_root),
        *("--daemon", "--log-file", str(tmp_path / "log"), "--cache-dir", str(tmp_path / "c")),
        JF_ACCESS_TOKEN=server.token,
    )
    assert result.returncode == 0, result
    assert (daemon_root / "a").read_bytes() == b"x"
    assert run_jfs("umount", str(daemon_root)).returncode == 0
    assert not os.path.ismount(daemon_root)


def test_mount_8_finds_us(server: EmbeddedServer, daemon_root: Path, tmp_path: Path) -> None:
    """``mount -t fuse.jfs`` calls ``jfs SOURCE MOUNTPOINT -o …``: so fstab works."""
    server.deploy(REPO, "a", b"x")
    token_file = tmp_path / "token"
    token_file.write_text(server.token)
    options = (
        f"rw,noauto,_netdev,x-systemd.automount,token_file={token_file},"
        f"cache_dir={tmp_path / 'c'},log_file={tmp_path / 'log'}"
    )
    result = run_jfs(f"{server.url}/{REPO}", str(daemon_root), "-o", options)
    assert result.returncode == 0, result
    assert (daemon_root / "a").read_bytes() == b"x"


def test_content_is_the_same_through_every_kind_of_read(mounted: MountedServer) -> None:
    import mmap

    data = random.Random(5).randbytes(9 * 1024 * 1024 + 11)
    mounted.server.deploy(REPO, "f", data)
    path = mounted.root / "f"
    choose = random.Random(6)
    with path.open("rb", buffering=0) as file:
        for _ in range(200):
            start, size = choose.randrange(len(data)), choose.randrange(1, 300_000)
            assert os.pread(file.fileno(), size, start) == data[start : start + size]
        with mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
            assert hashlib.sha256(mapped).digest() == hashlib.sha256(data).digest()
