"""The start of a mount: where it may be, what may be there already, and who may start."""

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from jfs.cli.group import group
from jfs.errors import ConfigError
from jfs.mount.mountpoint import claim
from jfs.mount.table import FSTYPE, mounts
from jfs.server import EmbeddedServer
from tests.mount.conftest import Mounter
from tests.mount.mounting import JFS, clean_environ, run_jfs

pytestmark = pytest.mark.fuse

_DEADLINE_S = 50
# A space, quotes, a newline, separators of libfuse and of /proc, and bytes that are not UTF-8.
_ODD = os.fsdecode(b"m 'x\"\n\\040,#\r\xff\xe9")


@pytest.fixture(autouse=True)
def _nothing_stays_mounted(tmp_path: Path) -> Iterator[None]:
    """What is killed on purpose leaves its mount, also when the test fails half-way."""
    yield
    for entry in mounts():
        if entry.fstype == FSTYPE and Path(entry.mountpoint).is_relative_to(tmp_path):
            subprocess.run(["umount", "-l", entry.mountpoint], check=False)


@pytest.fixture
def mountpoint(tmp_path: Path) -> Path:
    path = tmp_path / "models"
    path.mkdir()
    return path


def mounted_at(path: Path) -> list[str]:
    return [entry.source for entry in mounts() if entry.mountpoint == str(path)]


def test_of_several_starts_at_once_one_mounts(
    server: EmbeddedServer, mountpoint: Path, tmp_path: Path, scale: Callable[[int, int], int]
) -> None:
    """First on an empty directory, then over the mount of a jfs that was killed."""
    source = f"{server.url}/ml-models-local"
    for attempt in range(scale(2, 12)):
        starts = [
            subprocess.Popen(
                [*JFS, "mount", source, str(mountpoint), "--cache-dir", str(tmp_path / f"c{k}")],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env={**clean_environ(), "JF_ACCESS_TOKEN": server.token},
                text=True,
            )
            for k in range(3)
        ]
        said = [start.stdout.readline() if start.stdout else "" for start in starts]
        (winner,) = (start for start, line in zip(starts, said, strict=True) if line)
        assert len(mounted_at(mountpoint)) == 1
        for start in starts:
            if start is not winner:
                _, errors = start.communicate(timeout=_DEADLINE_S)
                assert start.returncode == 2
                *cleared, line = errors.splitlines()
                assert "another jfs is about to mount" in line or "mounted here already" in line
                assert all("clearing the mount" in text for text in cleared)
        winner.send_signal(signal.SIGTERM if attempt % 2 else signal.SIGKILL)
        winner.communicate(timeout=_DEADLINE_S)
        assert len(mounted_at(mountpoint)) == (0 if attempt % 2 else 1)


def dead_mount(place: Path) -> None:
    """Mount as jfs does, and be gone at once."""
    device = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0,subtype=jfs".encode()
    libc = ctypes.CDLL(None, use_errno=True)
    done = libc.mount(b"dead", os.fsencode(place), b"fuse", 0, options)
    os.close(device)
    assert not done, os.strerror(ctypes.get_errno())


def test_dead_mounts_one_on_the_other_are_cleared_by_whatever_starts(
    server: EmbeddedServer,
    mountpoint: Path,
    tmp_path: Path,
    scale: Callable[[int, int], int],
    expected_logs: list[str],
) -> None:
    """A crash on top of a crash, where one was mounted over the other."""
    expected_logs.append("clearing the mount of a jfs that crashed")
    server.deploy("ml-models-local", "a", b"x")
    source, token = f"{server.url}/ml-models-local", tmp_path / "token"
    token.write_text(server.token)
    options = {"token_file": token, "cache_dir": tmp_path / "c", "log_file": tmp_path / "log"}
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    fstab = ",".join(f"{name}={value}" for name, value in options.items())
    starts = [(source, "-o", f"rw,_netdev,{fstab}"), ("mount", "--daemon", *flags, source)]
    dead_mount(mountpoint)
    dead_mount(mountpoint)
    assert len(mounted_at(mountpoint)) == 2
    with pytest.raises(OSError, match="not connected"):
        os.listdir(mountpoint)
    os.close(claim(mountpoint))
    assert mounted_at(mountpoint) == []
    for start in starts[: scale(0, 2)]:
        dead_mount(mountpoint)
        dead_mount(mountpoint)
        result = run_jfs(*start, str(mountpoint))
        assert result.returncode == 0, result.stderr
        assert (mountpoint / "a").read_bytes() == b"x"
        assert mounted_at(mountpoint) == [source]
        subprocess.run(["fusermount3", "-u", str(mountpoint)], check=True)
        assert os.listdir(mountpoint) == []


def test_a_start_that_has_a_mountpoint_keeps_others_away(mountpoint: Path) -> None:
    (mountpoint.parent / "alias").symlink_to("models")
    directory = claim(mountpoint)
    try:
        with pytest.raises(ConfigError, match="another jfs is about to mount here"):
            claim(mountpoint.parent / "alias")
    finally:
        os.close(directory)
    os.close(claim(mountpoint))


def test_a_mount_that_does_not_answer_holds_up_no_start_at_its_place(
    server: EmbeddedServer, mounter: Mounter
) -> None:
    """Its daemon may hang, or have been killed while the kernel waits for it all the same."""
    source = f"{server.url}/ml-models-local"
    mount = mounter(source, JF_ACCESS_TOKEN=server.token)
    mount.process.send_signal(signal.SIGSTOP)
    try:
        again = run_jfs("mount", source, str(mount.root), JF_ACCESS_TOKEN=server.token)
    finally:
        mount.process.send_signal(signal.SIGCONT)
    assert again.returncode == 2
    assert f"`umount -f {mount.root}`" in again.stderr


def test_a_mountpoint_may_have_any_name_and_be_reached_through_a_link(
    server: EmbeddedServer, mounter: Mounter, tmp_path: Path
) -> None:
    server.deploy("ml-models-local", "a/b", b"x")
    place = tmp_path / "volume" / _ODD
    place.mkdir(parents=True)
    (tmp_path / "way").symlink_to("volume")
    link = tmp_path / "models"
    link.symlink_to(f"way/{_ODD}")
    source = f"{server.url}/ml-models-local"

    first = mounter(source, name="models", JF_ACCESS_TOKEN=server.token)
    assert (link / "a" / "b").read_bytes() == b"x"
    assert mounted_at(place) == [source]
    again = run_jfs("mount", source, str(place), JF_ACCESS_TOKEN=server.token)
    assert (again.returncode, "is mounted here already" in again.stderr) == (2, True)
    # Commands that take a path understand it by either name.
    for name in (link, place):
        listed = run_jfs("ls", str(name / "a"), JF_ACCESS_TOKEN=server.token)
        assert (listed.returncode, "b" in listed.stdout) == (0, True), listed
    assert run_jfs("refresh", str(link / "a")).returncode == 0
    first.process.kill()
    first.process.wait(_DEADLINE_S)

    second = mounter(source, name="models", JF_ACCESS_TOKEN=server.token)  # clears the dead one
    assert (link / "a" / "b").read_bytes() == b"x"
    assert run_jfs("umount", str(link)).returncode == 0
    assert second.process.wait(_DEADLINE_S) == 0
    assert mounted_at(place) == []
    first.close()
    second.stop(expected=["clearing the mount of a jfs that crashed"])


def test_odd_mounts_of_others_are_in_nobodys_way(
    server: EmbeddedServer, mounter: Mounter, tmp_path: Path
) -> None:
    """Real ones, whose names and sources are not text, or look like the syntax of the table."""
    odd = [(b"\xb1\xff", b"tmpfs"), (b"a\rb\x0c", b""), ("a\u2028b".encode(), b"-"), (b"- ", b"a ")]
    places = [os.fsencode(tmp_path) + b"/" + name for name, _ in odd]
    try:
        for place, (_, source) in zip(places, odd, strict=True):
            os.mkdir(place)
            subprocess.run([b"mount", b"-t", b"tmpfs", source, place], check=True)
        mount = mounter(f"{server.url}/ml-models-local", JF_ACCESS_TOKEN=server.token)
        assert run_jfs("umount", str(mount.root)).returncode == 0
        mount.stop()
    finally:
        for place in places:
            subprocess.run([b"umount", place], check=False, stderr=subprocess.DEVNULL)


@pytest.mark.parametrize(
    "option", ["--token-file", "--ca-file", "--cache-dir", "--staging-dir", "--log-file"]
)
@pytest.mark.parametrize("way", ["models/x", "alias/x", "away/x", "models/out/x"])
def test_what_the_mount_itself_needs_may_not_lie_in_it(
    mountpoint: Path, option: str, way: str
) -> None:
    """Neither by name, nor through a link to it, nor through a link that it would hide."""
    elsewhere = mountpoint.parent / "elsewhere"
    elsewhere.mkdir()
    (mountpoint.parent / "alias").symlink_to(mountpoint)
    (mountpoint.parent / "away").symlink_to("elsewhere/back")
    (elsewhere / "back").symlink_to(mountpoint)
    (mountpoint / "out").symlink_to(elsewhere)
    (mountpoint / "x").write_text("token")
    (elsewhere / "x").write_text("token")
    with pytest.raises(ConfigError, match=f"{option} .* lies in the mountpoint"):
        group(
            [
                *("mount", "http://127.0.0.1:9/artifactory/r", str(mountpoint), "-o", "nonempty"),
                *("--cache-dir", str(mountpoint.parent / "cache")),
                *(option, str(mountpoint.parent / way)),
            ],
            standalone_mode=False,
        )


# What is needed is imported by root: the checkout may lie where nobody else can look.
_WITHOUT_A_HOME = """
import importlib, os, pkgutil, sys
import jfs
for module in pkgutil.walk_packages(jfs.__path__, "jfs."):
    if module.name not in ("jfs.__main__", "jfs.native._native"):  # that is no module of Python
        importlib.import_module(module.name)
from jfs.cli.group import group
from jfs.errors import JfsError
os.setgroups([])
os.setgid(0)
os.setuid(1_000_770_000)
for line in sys.stdin.read().splitlines():
    try:
        group(line.split(), standalone_mode=False)
        print("did it")
    except JfsError as error:
        print(getattr(error, "exit_code", 1), error)
"""


@pytest.mark.parametrize("home", [{}, {"HOME": ""}, {"HOME": "relative", "XDG_CACHE_HOME": "r"}])
def test_without_a_home_one_line_names_the_option(tmp_path: Path, home: dict[str, str]) -> None:
    """As OpenShift runs containers: a random uid, which the password database does not know."""
    here = tmp_path / "here"
    here.mkdir(mode=0o777)
    here.chmod(0o777)
    mount = "mount http://127.0.0.1:9/artifactory/r /tmp"
    expected = {
        "warm http://127.0.0.1:9/artifactory/r": "--cache-dir",
        "cache ls": "--cache-dir",
        "recover ls": "--cache-dir",
        mount: "--cache-dir",
        f"{mount} --daemon --cache-dir {tmp_path}/cache": "--log-file",
        "ls here:repo": "JFROG_CLI_HOME_DIR",
    }
    result = subprocess.run(
        [sys.executable, "-P", "-c", _WITHOUT_A_HOME],
        input="\n".join(expected),
        capture_output=True,
        text=True,
        check=True,
        cwd=here,
        env={k: v for k, v in clean_environ().items() if k not in ("HOME", "USER")} | home,
    )
    assert result.stderr == ""
    for line, named in zip(result.stdout.splitlines(), expected.values(), strict=True):
        assert line.startswith("2 there is no home directory"), line
        assert line.endswith(named), line
    assert list(here.iterdir()) == []
