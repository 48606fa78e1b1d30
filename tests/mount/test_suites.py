"""Suites of others on a real mount: fio, stress-ng, and the tests of CPython and of pyfakefs.

What a local disk does and Artifactory cannot stands in one list for each suite, with the reason.
A test fails if something else is refused, and if something in the list is not refused any more.
"""

import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from jfs.server import EmbeddedServer
from tests.component.server_requests import Requests
from tests.mount.conftest import MountedServer, Mounter
from tests.mount.suites.running import FAILED, PASSED, SKIPPED, Verdict, check, run, verdicts
from tests.mount.suites.truth import content, names_on_server

pytestmark = pytest.mark.fuse


@pytest.fixture
def mounted(
    server: EmbeddedServer, mounter: Mounter, tmp_path_factory: pytest.TempPathFactory
) -> MountedServer:
    """As elsewhere, at a shorter path: the name of a socket has 107 bytes at most."""
    root = tmp_path_factory.mktemp("s") / "m"
    mount = mounter(f"{server.url}/ml-models-local", name=str(root), JF_ACCESS_TOKEN=server.token)
    return MountedServer(mount.root, server, mount)


_LINKS = "an artifact has one name: there are no hard links"
_SPECIAL = "Artifactory holds neither devices nor pipes nor sockets"
_NAMES = "Artifactory forbids the name"
_NOT_UTF8 = "names on the server are Unicode"

# ---------------------------------------------------------------- fio

_FIO_DEADLINE_S = 200
_FIO_SLICE, _FIO_WHOLE = 2, 16  # MiB

# Every fsync uploads the whole file: seldom enough for the slice.
_FIO_JOBS = {
    "sequential": "--rw=write --bs=128k --ioengine=psync",
    "random": "--rw=randwrite --bs=4k --ioengine=psync",
    "fsync": "--rw=randwrite --bs=16k --ioengine=psync --fsync=32",
    "fdatasync": "--rw=write --bs=16k --ioengine=sync --fdatasync=32",
    "mapped-sequential": "--rw=write --bs=64k --ioengine=mmap",
    "mapped-random": "--rw=randwrite --bs=4k --ioengine=mmap",
    "mixed": "--rw=randrw --bs=8k --ioengine=psync",
    "asynchronous": "--rw=randwrite --bs=8k --ioengine=libaio --iodepth=8",
    "direct": "--rw=randwrite --bs=4k --ioengine=psync --direct=1",
    "many-files": "--rw=randwrite --bs=4k --ioengine=psync --nrfiles=8",
    "two-writers": "--rw=randwrite --bs=8k --ioengine=psync --numjobs=2",
}


@pytest.mark.timeout(600)
def test_fio(mounted: MountedServer, tmp_path: Path, scale: Callable[[int, int], int]) -> None:
    """What was written is verified through the mount, and again from what the server has."""
    size = scale(_FIO_SLICE, _FIO_WHOLE)
    proof = tmp_path / "from-server"
    proof.mkdir()
    common = [*("--verify=crc32c", "--verify_fatal=1", f"--size={size}M", "--randrepeat=1")]
    for name, words in _FIO_JOBS.items():
        job = ["fio", f"--name={name}", *common, *words.split()]
        log = tmp_path / f"fio-{name}.log"
        # Keep what was written (a job that reads it again finds its pattern).
        check([*job, f"--directory={mounted.root}"], tmp_path, deadline_s=_FIO_DEADLINE_S, log=log)
        ask = Requests(mounted.server)
        files = [file for file in names_on_server(ask) if file.startswith(f"{name}.")]
        assert files, f"{name}: nothing is on the server"
        for file in files:
            (proof / file).write_bytes(content(ask, file))
        check(
            [*job, "--verify_only=1", f"--directory={proof}"],
            tmp_path,
            deadline_s=_FIO_DEADLINE_S,
            log=log,
        )


# ---------------------------------------------------------------- stress-ng

_STRESS_DEADLINE_S = 420
_STRESS_TIMEOUT = "400"  # then it stops by itself, short of its operations: a failure, too
_SMALL = "1M"

# Stressor: operations of the slice, and what keeps it small. Left out: dirmany, fpunch and
# inode-flags, which go by the clock; xattr, which gives one file 4,096 properties, and every one of
# them is a write of all.
_STRESSORS: dict[str, dict[str, tuple[int, str]]] = {
    "names": {
        "access": (20, ""),
        "chattr": (2, ""),
        "chdir": (20, "--chdir-dirs 64"),
        "chmod": (10, ""),
        "chown": (20, ""),
        "dentry": (64, "--dentries 32"),
        "dir": (20, ""),
        "dirdeep": (5, "--dirdeep-dirs 1"),
        "dnotify": (2, ""),
        "filename": (2, "--filename-opts posix"),  # every character of a portable name
        "fstat": (20, ""),
        "getdent": (20, ""),
        "handle": (20, ""),
        "inotify": (2, ""),
        "mknod": (10, ""),  # of regular files; the rest is refused and left out
        "open": (20, ""),
        "rename": (20, ""),
        "touch": (20, ""),
        "utime": (20, ""),
    },
    "contents": {
        "aiol": (20, ""),
        "copy-file": (5, ""),
        "dup": (20, ""),
        "fallocate": (2, f"--fallocate-bytes {_SMALL}"),
        "fcntl": (20, ""),
        "file-ioctl": (20, ""),
        "flock": (20, ""),
        "fsize": (2, ""),
        "hdd": (50, f"--hdd-bytes {_SMALL} --hdd-write-size 64K"),
        "io": (10, ""),
        "iomix": (20, f"--iomix-bytes {_SMALL}"),
        "lease": (20, ""),
        "locka": (20, ""),
        "lockf": (20, ""),
        "lockofd": (20, ""),
        "mmap": (2, f"--mmap-file --mmap-bytes {_SMALL}"),
        "msync": (20, f"--msync-bytes {_SMALL}"),
        "readahead": (2, f"--readahead-bytes {_SMALL}"),
        "remap": (2, ""),
        "revio": (20, f"--revio-bytes {_SMALL}"),
        "seek": (20, ""),
        "sendfile": (2, "--sendfile-size 1M"),
        "sync-file": (2, f"--sync-file-bytes {_SMALL}"),
    },
}
# One operation is thousands of names.
_LONG_STRESSORS: dict[str, dict[str, tuple[int, str]]] = {
    "names": {"symlink": (1, "")},
    "contents": {},
}

# What each of these asks for is refused, and it says so and ends.
_STRESS_REFUSED = {
    "link": _LINKS,
    "fiemap": "where bytes lie on a disk is no question to a server",
    "verity": "fs-verity is for disks; the server's checksums are verified instead",
}


@pytest.mark.timeout(900)
@pytest.mark.parametrize("group", list(_STRESSORS))
def test_stress_ng(
    group: str, mounted: MountedServer, tmp_path: Path, scale: Callable[[int, int], int]
) -> None:
    """Stressors verify what they do; nothing of theirs is left, on the server neither."""
    factor = scale(1, 5)
    chosen = {name: (count * factor, words) for name, (count, words) in _STRESSORS[group].items()}
    if factor > 1:
        chosen |= _LONG_STRESSORS[group]
    problems = []
    for name, (count, words) in chosen.items():
        code, output, done = _stress(name, count, words.split(), mounted.root, tmp_path)
        if code or "fail:" in output or "skipping stress" in output or done < count:
            problems.append(f"{name}: {code}, {done} of {count}: {output}")
    assert not problems, "\n".join(problems)
    assert names_on_server(Requests(mounted.server)) == {}


def test_stress_ng_is_refused(mounted: MountedServer, tmp_path: Path) -> None:
    """What is in the list is refused so that it is understood."""
    for name, reason in _STRESS_REFUSED.items():
        _, output, _ = _stress(name, 1, [], mounted.root, tmp_path)
        assert "skipping stress" in output, f"{name} is not refused, but: {reason}: {output}"
        assert "fail:" not in output


def _stress(
    name: str, count: int, words: Iterable[str], root: Path, tmp_path: Path
) -> tuple[int, str, int]:
    """Run one stressor: exit status, output, operations done."""
    counts = tmp_path / f"{name}.yaml"
    ran = run(
        [
            *("stress-ng", f"--{name}", "1", f"--{name}-ops", str(count), *words),
            *("--verify", "--timeout", _STRESS_TIMEOUT, "--temp-path", root),
            *("--yaml", counts, "--metrics"),
        ],
        tmp_path,
        deadline_s=_STRESS_DEADLINE_S,
        log=tmp_path / f"stress-{name}.log",
    )
    done = re.search(r"bogo-ops: (\d+)", counts.read_text()) if counts.exists() else None
    return ran.code, ran.output, int(done[1]) if done else 0


# ---------------------------------------------------------------- CPython

_CPYTHON_MAIN = Path(__file__).with_name("suites") / "cpython_main.py"
_PYTHON = "/usr/bin/python3.11"  # Debian's: its tests are a package of their own

# By interpreter module: what the gate leaves out. Quantities, the same again in another class, and
# codecs in which the file system has no part.
_CPYTHON = {
    "test_os": ["*many*", "*fd_leak*", "*.BytesWalkTests.*", "*.BytesFwalkTests.*"],
    "test_shutil": ["*_archive_[bgx]z*"],
    "test_tempfile": ["*many*", "*modes*"],
    "test_pathlib": ["*many*", "*concurrent*", "test.test_pathlib.PathTest.*"],
    "test_zipfile": ["*Lzma*", "*Bzip2*", "*PyZipFile*"],
    "test_mmap": [],
    "test_io": [
        "test.test_io.Py*",
        "*Signals*",
        "*daemon_threads*",
        "*_basic_io",
        "*_seek_and_tell",
    ],
}
# Holes of gigabytes: the server knows none, so that all of them would be uploaded.
_CPYTHON_NEVER = {
    "test_mmap": ["*LargeMmapTests*"],
    "test_io": ["*test_large_file_ops"],
}

_CPYTHON_REFUSED = {
    "test.test_os.LinkTests.test_link": _LINKS,
    "test.test_os.LinkTests.test_link_bytes": _LINKS,
    "test.test_os.LinkTests.test_unicode_name": _LINKS,
    "test.test_os.TestScandir.test_attributes": _LINKS,
    "test.test_os.Pep383Tests.test_listdir": _NOT_UTF8,
    "test.test_os.Pep383Tests.test_open": _NOT_UTF8,
    "test.test_os.Pep383Tests.test_stat": _NOT_UTF8,
    "test.test_os.Pep383Tests.test_statvfs": _NOT_UTF8,
    "test.test_shutil.TestCopy.test_copyfile_named_pipe": _SPECIAL,
    "test.test_shutil.TestCopy.test_copyxattr_symlinks": "only user. attributes are kept",
    "test.test_shutil.TestCopy.test_dont_copy_file_onto_link_to_itself": _LINKS,
    "test.test_shutil.TestCopyTree.test_copytree_named_pipe": _SPECIAL,
    "test.test_zipfile.ExtractTests.test_extract_hackers_arcnames_posix_only": _NAMES,
    **{
        f"test.test_pathlib.{which}.{name}": reason
        for which in ("PathTest", "PosixPathTest")
        for name, reason in {
            "test_hardlink_to": _LINKS,
            "test_link_to": _LINKS,
            "test_is_fifo_true": _SPECIAL,
            "test_is_socket_true": _SPECIAL,
        }.items()
    },
}


@pytest.mark.timeout(900)
@pytest.mark.parametrize("module", list(_CPYTHON))
def test_cpython(
    module: str, mounted: MountedServer, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """CPython's own tests, in a directory of the mount and with temporary files there."""
    whole = bool(request.config.getoption("--whole"))
    left_out = [*([] if whole else _CPYTHON[module]), *_CPYTHON_NEVER.get(module, [])]
    report = tmp_path / "report.xml"
    ran = run(
        [
            *(_PYTHON, _CPYTHON_MAIN, "--tempdir", mounted.root, "--junit-xml", report),
            *(word for pattern in left_out for word in ("--ignore", pattern)),
            module,
        ],
        mounted.root,
        deadline_s=800 if whole else 200,
        log=tmp_path / "cpython.log",
        environ={"TMPDIR": str(mounted.root), "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert report.exists(), ran.output[-4000:]
    found = verdicts(report)
    assert sum(each.outcome == PASSED for each in found.values()) >= 20
    _compare(found, _CPYTHON_REFUSED, left_out, prefix=f"test.{module}.")


# ---------------------------------------------------------------- pyfakefs

# Its tests run on the real disk too where a class says so: a pinned version, since names change.
_PYFAKEFS = {
    "os": ["fake_os_test", "fake_filesystem_shutil_test"],
    "open": [
        *("fake_open_test", "fake_pathlib_test", "fake_stat_time_test"),
        *("fake_filesystem_test", "fake_filesystem_vs_real_test"),
    ],
}
# RealFileSystemAccess is about pyfakefs's own files; the gate tries scandir once, not four times.
_PYFAKEFS_CHOSEN = "Real and not RealFileSystemAccess"
_PYFAKEFS_SLICE = f"{_PYFAKEFS_CHOSEN} and not ScandirRel and not ScandirFd"

_PYFAKEFS_REFUSED = {
    "os": {
        "RealOsModuleTest.test_hardlink_works_with_symlink": _LINKS,
        "RealOsModuleTest.test_link_count1": _LINKS,
        "RealOsModuleTest.test_link_delete": _LINKS,
        "RealOsModuleTest.test_link_no_follow_symlink": _LINKS,
        "RealOsModuleTest.test_link_update": _LINKS,
        "RealOsModuleDirFdTest.test_link_dst_fd": _LINKS,
        "RealOsModuleDirFdTest.test_link_src_fd": _LINKS,
        "RealOsModuleTest.test_st_blocks": "there are no blocks of 4 KiB",
    },
    "open": {
        # Python's buffer is as large as st_blksize, so that fewer bytes are not written yet.
        "RealBufferingTest.test_writing_large_text_with_line_buffer": "st_blksize is 1 MiB",
        "RealPathlibPathFileOperationTest.test_hardlink_to": _LINKS,
        "RealPathlibPathFileOperationTest.test_link_to": _LINKS,
        "RealPathlibUsageInOsFunctionsTest.test_link": _LINKS,
        "FakeFilesystemVsRealTest.test_hard_link_to_empty_file": _LINKS,
        "FakeFilesystemVsRealTest.test_hard_link_to_real_file": _LINKS,
    },
}
# They expect to be refused what root may: these fail for root on a local disk, too.
_PYFAKEFS_NOT_FOR_ROOT = [
    "RealShutilModuleTest.test_catch_permission_error",
    "RealShutilModuleTest.test_permission_error_message",
    "RealShutilModuleTest.test_rmtree_without_permission_for_a_dir_in_posix",
    "RealCopyFileTest.test_raises_if_dest_dir_is_not_writable_under_posix",
    "RealCopyFileTest.test_raises_if_dest_exists_and_is_not_writable",
    "RealCopyFileTest.test_raises_if_src_not_readable",
]


@pytest.mark.timeout(900)
@pytest.mark.parametrize("group", list(_PYFAKEFS))
def test_pyfakefs(
    group: str, mounted: MountedServer, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """pyfakefs's checks of what a real file system does."""
    whole = bool(request.config.getoption("--whole"))
    configuration = tmp_path / "pytest.ini"
    configuration.write_text("[pytest]\n")  # of ours it shall see nothing
    report = tmp_path / "report.xml"
    ran = run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-c", configuration, "--assert=plain"),
            *("-p", "no:cacheprovider", f"--junit-xml={report}"),
            *("-k", _PYFAKEFS_CHOSEN if whole else _PYFAKEFS_SLICE),
            *("--pyargs", *(f"pyfakefs.tests.{module}" for module in _PYFAKEFS[group])),
        ],
        mounted.root,
        deadline_s=300,
        log=tmp_path / "pyfakefs.log",
        environ={"TEST_REAL_FS": "1", "TMPDIR": str(mounted.root)},
    )
    assert ran.code in (0, 1), ran.output[-4000:]
    found = {".".join(name.split(".")[-2:]): each for name, each in verdicts(report).items()}
    assert sum(each.outcome == PASSED for each in found.values()) >= 200
    for name in _PYFAKEFS_NOT_FOR_ROOT if os.getuid() == 0 else []:
        found.pop(name, None)
    _compare(found, _PYFAKEFS_REFUSED[group])


# ---------------------------------------------------------------- verdicts


def _compare(
    found: Mapping[str, Verdict],
    expected: Mapping[str, str],
    left_out: Iterable[str] = (),
    prefix: str = "",
) -> None:
    """Hold what was refused against the list: neither may have more than the other.

    A test is refused if it fails, or if it skips itself after a system call said no.
    """
    refused = {
        name: verdict.text
        for name, verdict in found.items()
        if verdict.outcome == FAILED or (verdict.outcome == SKIPPED and "Errno" in verdict.text)
    }
    surprises = {name: text[-2000:] for name, text in refused.items() if name not in expected}
    assert not surprises, "\n".join(f"{name}: {text}" for name, text in surprises.items())
    listed = {
        name
        for name in expected
        if name.startswith(prefix) and not any(fnmatchcase(name, each) for each in left_out)
    }
    assert listed == refused.keys(), "these are not refused any more: take them off the list"
