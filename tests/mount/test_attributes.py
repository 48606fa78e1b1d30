"""Properties, selectors, queries and refresh, with the tools that people use, on a real mount."""

import errno
import os
import subprocess
from pathlib import Path

import pytest

from jfs.server import EmbeddedServer, Fault
from tests.mount.conftest import MountedServer, Mounter
from tests.mount.mounting import JFS, run_jfs

pytestmark = pytest.mark.fuse

REPO = "ml-models-local"
FILE = "nlp/bert/2.0.0/model.bin"


@pytest.fixture
def model(mounted: MountedServer) -> Path:
    mounted.server.deploy(REPO, "nlp/bert/1.0.0/model.bin", b"old")
    mounted.server.deploy(REPO, FILE, b"new", {"env": ["production"], "task": ["fill", "mask"]})
    return mounted.root / FILE


def tool(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout


def test_getfattr_and_setfattr(mounted: MountedServer, model: Path) -> None:
    tool("setfattr", "-n", "user.approved-by", "-v", "alice", str(model))
    lines = tool("getfattr", "-d", "--absolute-names", str(model)).splitlines()
    assert lines == [
        f"# file: {model}",
        'user.approved-by="alice"',
        'user.env="production"',
        'user.task="fill,mask"',
        "",
    ]
    assert len(tool("getfattr", "--only-values", "-n", "user.jfs.sha256", str(model))) == 64
    tool("setfattr", "-x", "user.approved-by", str(model))
    assert os.listxattr(model) == ["user.env", "user.task"]
    assert mounted.server.stats.requests > 0


def test_create_and_replace(model: Path) -> None:
    with pytest.raises(FileExistsError):
        os.setxattr(model, "user.env", b"x", os.XATTR_CREATE)
    with pytest.raises(OSError, match="No data") as caught:
        os.setxattr(model, "user.absent", b"x", os.XATTR_REPLACE)
    assert caught.value.errno == errno.ENODATA
    os.setxattr(model, "user.env", b"staging", os.XATTR_REPLACE)
    os.setxattr(model, "user.fresh", b"x", os.XATTR_CREATE)
    assert os.getxattr(model, "user.env") == b"staging"
    assert os.getxattr(model, "user.fresh") == b"x"


def test_errors_say_which(mounted: MountedServer, model: Path) -> None:
    for name, code in (
        ("user.absent", errno.ENODATA),
        ("security.selinux", errno.ENOTSUP),
        ("trusted.x", errno.ENOTSUP),
    ):
        with pytest.raises(OSError) as caught:  # noqa: PT011 - the errno is looked at
            os.getxattr(model, name)
        assert caught.value.errno == code, name
    for name, value, code in (
        ("user.a=b", b"x", errno.EINVAL),
        ("user.k", b"\xff", errno.EINVAL),
        ("user.jfs.sha256", b"x", errno.EPERM),
    ):
        with pytest.raises(OSError) as caught:  # noqa: PT011 - the errno is looked at
            os.setxattr(model, name, value)
        assert caught.value.errno == code, name
    mounted.mount.stop(expected=[r"a property key must not hold '='", "must be UTF-8 text"])


def test_large_and_many_values(model: Path) -> None:
    os.setxattr(model, "user.notes", b"n" * 4000)
    assert os.getxattr(model, "user.notes") == b"n" * 4000
    values = ",".join(f"value{i}" for i in range(500)).encode()
    os.setxattr(model, "user.many", values)
    assert os.getxattr(model, "user.many") == values


@pytest.mark.parametrize("name", [b"a*b", b"a?b", b'a"b', b" a", b"a ", b"m.sha256", b"\xff"])
def test_a_name_that_artifactory_forbids_is_refused(mounted: MountedServer, name: bytes) -> None:
    place = os.fsencode(mounted.root) + b"/" + name
    for make in (os.mkdir, lambda path: os.symlink(b"x", path), _touch):
        with pytest.raises(OSError, match="Invalid argument"):
            make(place)
    assert not os.path.exists(place)


def test_a_read_only_mount(mounter: Mounter, mounted: MountedServer, model: Path) -> None:
    mount = mounter(
        f"{mounted.server.url}/{REPO}",
        "--read-only",
        name="ro",
        JF_ACCESS_TOKEN=mounted.server.token,
    )
    with pytest.raises(OSError, match="Read-only file system"):
        os.setxattr(mount.root / FILE, "user.k", b"v")
    assert os.getxattr(mount.root / FILE, "user.env") == b"production"


def test_selectors(mounted: MountedServer, model: Path) -> None:
    bert = mounted.root / "nlp" / "bert"
    assert (bert / "@latest" / "model.bin").read_bytes() == b"new"
    assert (bert / "@env=production" / "model.bin").read_bytes() == b"new"
    assert os.readlink(bert / "@latest") == "2.0.0"
    assert (bert / "@latest").resolve() == bert / "2.0.0"
    assert not (bert / "@env=nowhere").exists()
    assert sorted(os.listdir(bert)) == ["1.0.0", "2.0.0"]
    tool("setfattr", "-n", "user.env", "-v", "production", str(bert / "1.0.0" / "model.bin"))
    tool("setfattr", "-n", "user.env", "-v", "retired", str(model))
    tool(*_jfs("refresh", str(bert)))
    assert (bert / "@env=production" / "model.bin").read_bytes() == b"old"


def test_the_query_tree(mounted: MountedServer, model: Path) -> None:
    by = mounted.root / ".by" / "env=production"
    shown = by / FILE
    assert shown.read_bytes() == b"new"
    assert shown.stat().st_ino == model.stat().st_ino
    assert tool("find", str(by), "-type", "f").split() == [str(shown)]
    os.setxattr(shown, "user.seen", b"1")
    assert os.getxattr(model, "user.seen") == b"1"
    assert sorted(os.listdir(mounted.root)) == ["nlp"]
    with pytest.raises(OSError, match="Read-only"):
        (by / "new").mkdir()
    for path in (shown, model, by / "nlp", mounted.root / "nlp"):
        path.stat()


def test_a_change_elsewhere_is_seen_at_once_after_a_refresh(
    mounted: MountedServer, model: Path
) -> None:
    folder = model.parent
    assert model.read_bytes() == b"new"
    assert os.getxattr(model, "user.env") == b"production"
    assert sorted(os.listdir(folder)) == ["model.bin"]
    assert not (folder / "later.bin").exists()
    mounted.server.deploy(REPO, FILE, b"newer!", {"env": ["staging"]})
    mounted.server.deploy(REPO, f"{FILE[:-9]}later.bin", b"l")
    tool(*_jfs("refresh", str(mounted.root)))
    assert model.stat().st_size == 6
    assert model.read_bytes() == b"newer!"
    assert os.getxattr(model, "user.env") == b"staging"
    assert (folder / "later.bin").read_bytes() == b"l"
    result = run_jfs("refresh", "/tmp")
    assert result.returncode == 2
    assert "is not inside a mount of jfs" in result.stderr


def test_a_refresh_while_readers_hold_the_folder(mounted: MountedServer, model: Path) -> None:
    """The kernel's lock of a folder is held by whoever lists it: nobody waits for the other."""
    for number in range(300):
        mounted.server.deploy(REPO, f"many/f{number:03}", b"x")
    walkers = [
        subprocess.Popen(
            ["sh", "-c", f"for i in 1 2 3 4 5 6 7 8; do ls -lR '{mounted.root}' >/dev/null; done"]
        )
        for _ in range(3)
    ]
    for _ in range(10):
        tool(*_jfs("refresh", str(mounted.root)))
    for walker in walkers:
        assert walker.wait(60) == 0


def test_one_broken_repository_never_hurts_the_others(
    server: EmbeddedServer, mounter: Mounter
) -> None:
    server.create_repository("broken-local")
    server.deploy(REPO, "a/good", b"good")
    server.deploy("broken-local", "bad", b"bad")
    for number in range(8):
        server.deploy("broken-local", f"worse{number}", b"bad" * (number + 2))
    hang = server.faults.add(Fault.stall("/api/storage/broken-local*"))
    mount = mounter(server.url, JF_ACCESS_TOKEN=server.token)
    stuck = [
        subprocess.Popen(
            ["ls", str(mount.root / "broken-local" / str(number))], stderr=subprocess.DEVNULL
        )
        for number in range(40)
    ]
    hang.wait_hit()
    server.faults.clear()
    silent = server.faults.add(Fault.stall("/broken-local/*"))
    hang.release()
    stuck += [
        subprocess.Popen(
            ["cat", str(mount.root / "broken-local" / name)], stdout=subprocess.DEVNULL
        )
        for name in ("bad", *(f"worse{number}" for number in range(8)))
    ]
    silent.wait_hit()
    assert (mount.root / REPO / "a" / "good").read_bytes() == b"good"
    assert sorted(os.listdir(mount.root)) == ["broken-local", REPO]
    server.faults.clear()
    silent.release()
    for process in stuck:
        process.wait(60)
    assert (mount.root / "broken-local" / "bad").read_bytes() == b"bad"
    mount.stop(expected=[".*"])


def _touch(path: bytes) -> None:
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY))


def _jfs(*arguments: str) -> tuple[str, ...]:
    return (*JFS, *arguments)
