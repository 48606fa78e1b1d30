"""Every mistake at the start: one line that says what to do, and nothing is mounted."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from jfs.server import EmbeddedServer
from tests.mount.conftest import MountedServer, Mounter
from tests.mount.mounting import Mounted, clean_environ, run_jfs

pytestmark = pytest.mark.fuse


@pytest.fixture
def mountpoint(tmp_path: Path) -> Path:
    path = tmp_path / "models"
    path.mkdir()
    return path


def refuse(source: str, mountpoint: Path, *options: str, says: str, **environ: str) -> None:
    """Mounting must fail with code 2 and one line that holds *says*, in both forms."""
    cache = str(mountpoint.parent / "cache")
    for form in ((), ("--daemon", "--log-file", str(mountpoint.parent / "log"))):
        result = run_jfs(
            "mount", source, str(mountpoint), "--cache-dir", cache, *form, *options, **environ
        )
        assert result.returncode == 2, result
        assert result.stdout == ""
        lines = result.stderr.splitlines()
        assert len(lines) == 1, lines
        assert says in lines[0]
        assert "hunter2" not in result.stderr
        assert not os.path.ismount(mountpoint)


def test_unknown_repository(server: EmbeddedServer, mountpoint: Path) -> None:
    refuse(
        f"{server.url}/nowhere",
        mountpoint,
        says="nowhere: no such repository",
        JF_ACCESS_TOKEN=server.token,
    )


def test_unknown_folder(server: EmbeddedServer, mountpoint: Path) -> None:
    refuse(
        f"{server.url}/ml-models-local/no/such",
        mountpoint,
        says="no such folder",
        JF_ACCESS_TOKEN=server.token,
    )


def test_a_source_that_is_a_file(server: EmbeddedServer, mountpoint: Path) -> None:
    server.deploy("ml-models-local", "a/model.onnx", b"x")
    refuse(
        f"{server.url}/ml-models-local/a/model.onnx",
        mountpoint,
        says="is a file: mount its folder, ml-models-local/a",
        JF_ACCESS_TOKEN=server.token,
    )


def test_wrong_token(server: EmbeddedServer, mountpoint: Path) -> None:
    refuse(
        f"{server.url}/ml-models-local",
        mountpoint,
        says="token",
        JF_ACCESS_TOKEN="hunter2",
    )


def test_a_proxy_that_cannot_be_used(server: EmbeddedServer, mountpoint: Path) -> None:
    refuse(
        f"{server.url}/ml-models-local",
        mountpoint,
        says="HTTP_PROXY: not the URL of a proxy",
        JF_ACCESS_TOKEN=server.token,
        HTTP_PROXY="http://ann:hunter2@[::1",
    )


def test_no_token(server: EmbeddedServer, mountpoint: Path) -> None:
    refuse(f"{server.url}/ml-models-local", mountpoint, says="JF_ACCESS_TOKEN")


def test_missing_token_file(server: EmbeddedServer, mountpoint: Path) -> None:
    refuse(
        f"{server.url}/ml-models-local",
        mountpoint,
        "--token-file",
        str(mountpoint.parent / "absent"),
        says="absent: No such file",
    )


def test_unreachable_server(mountpoint: Path) -> None:
    with socket.socket() as unused:  # bound and not listening: refuses at once
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        refuse(f"http://127.0.0.1:{port}/artifactory/r", mountpoint, says=f"127.0.0.1:{port}")


def test_credentials_in_the_url(mountpoint: Path) -> None:
    refuse("https://u:hunter2@a.example/artifactory/r", mountpoint, says="--token-file")


def test_missing_mountpoint(server: EmbeddedServer, tmp_path: Path) -> None:
    refuse(f"{server.url}/ml-models-local", tmp_path / "absent", says="mkdir -p")


def test_mountpoint_is_a_file(server: EmbeddedServer, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    refuse(f"{server.url}/ml-models-local", path, says="not a directory")


def test_mountpoint_is_not_empty(server: EmbeddedServer, mountpoint: Path) -> None:
    (mountpoint / "precious").touch()
    refuse(f"{server.url}/ml-models-local", mountpoint, says="not empty")


def test_nonempty_is_a_choice(server: EmbeddedServer, mounter: Mounter, tmp_path: Path) -> None:
    root = tmp_path / "mnt"
    root.mkdir()
    (root / "hidden").touch()
    mounted = mounter(
        f"{server.url}/ml-models-local", "-o", "nonempty", JF_ACCESS_TOKEN=server.token
    )
    assert not (mounted.root / "hidden").exists()
    mounted.stop()
    assert (root / "hidden").exists()


def test_already_mounted(mounted: MountedServer) -> None:
    result = run_jfs("mount", f"{mounted.server.url}/ml-models-local", str(mounted.root))
    assert result.returncode == 2
    assert f"jfs umount {mounted.root}" in result.stderr
    assert os.path.ismount(mounted.root)


def test_a_dead_mount_is_cleared(server: EmbeddedServer, mounter: Mounter) -> None:
    server.deploy("ml-models-local", "a", b"x")
    source = f"{server.url}/ml-models-local"
    first = mounter(source, JF_ACCESS_TOKEN=server.token)
    first.process.kill()
    first.process.wait(60)
    # A crash leaves ENOTCONN: an empty directory would mislead mirrors.
    with pytest.raises(OSError, match="not connected"):
        os.listdir(first.root)
    place, cache = first.root / "a", first.root.with_name("cache")
    inside = run_jfs("mount", source, str(place), f"--cache-dir={cache}", JF_ACCESS_TOKEN="t")
    assert inside.returncode == 2
    assert f"lies in {first.root}, a dead fuse.jfs mount: `fusermount3 -uz" in inside.stderr
    second = mounter(source, JF_ACCESS_TOKEN=server.token)
    assert (second.root / "a").read_bytes() == b"x"
    second.stop(expected=["clearing the mount of a jfs that crashed"])
    assert first.process.stdout
    first.process.stdout.close()


def test_no_fusermount3(server: EmbeddedServer, mountpoint: Path) -> None:
    refuse(
        f"{server.url}/ml-models-local",
        mountpoint,
        says="install the package fuse3",
        JF_ACCESS_TOKEN=server.token,
        PATH="/nonexistent",
    )


# A root whose /dev is empty. The detour by a private bind mount is for machines that are themselves
# a chroot: there `unshare` cannot make / private, and a mount on /dev would reach the host.
_WITHOUT_DEVICES = """
place=$1; shift
mount --bind "$place" "$place" && mount --make-private "$place" || exit 99
mkdir "$place/root" && mount --rbind / "$place/root" && mount --make-rprivate "$place/root" &&
    mount -t tmpfs none "$place/root/dev" && chroot "$place/root" "$@"
code=$?
umount -l "$place"
exit $code
"""


def test_no_dev_fuse(server: EmbeddedServer, mountpoint: Path, tmp_path: Path) -> None:
    """In a mount namespace of its own, with an empty /dev."""
    place = tmp_path / "namespace"
    place.mkdir()
    result = subprocess.run(
        [
            *("unshare", "--mount", "--propagation", "unchanged"),
            *("sh", "-c", _WITHOUT_DEVICES, "sh", str(place)),
            sys.executable,
            "-m",
            "jfs",
            "mount",
            f"{server.url}/ml-models-local",
            str(mountpoint),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**clean_environ(), "JF_ACCESS_TOKEN": server.token},
    )
    assert result.returncode == 2
    assert "modprobe fuse" in result.stderr


def test_unknown_mount_option(server: EmbeddedServer, mountpoint: Path) -> None:
    refuse(f"{server.url}/ml-models-local", mountpoint, "-o", "bogus", says="-o bogus")


def test_umount_of_nothing(mountpoint: Path) -> None:
    result = run_jfs("umount", str(mountpoint))
    assert result.returncode == 2
    assert "nothing is mounted" in result.stderr


def test_umount_of_a_busy_mount(mounted: MountedServer) -> None:
    mounted.server.deploy("ml-models-local", "a", b"x")
    with (mounted.root / "a").open("rb"):
        result = run_jfs("umount", str(mounted.root))
        assert result.returncode == 2
        assert "--lazy" in result.stderr
    result = run_jfs("umount", str(mounted.root))
    assert result.returncode == 0, result
    assert isinstance(mounted.mount, Mounted)
    assert mounted.mount.process.wait(60) == 0
