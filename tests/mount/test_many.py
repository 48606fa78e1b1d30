"""Very many artifacts in a mount that has little memory: 256 MiB for a million of them."""

import os
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.mount.groups import limited
from tests.mount.many import MODIFIED_NS, REPO, ManyServer, content_of, name_of
from tests.mount.mounting import Mounted

pytestmark = pytest.mark.fuse

MiB = 1024 * 1024
LIMIT = 256 * MiB
_Shapes = dict[str, tuple[int, tuple[int, ...]]]


def peak(mounted: Mounted) -> int:
    """Return the most memory that the daemon ever had, in bytes."""
    status = Path(f"/proc/{mounted.process.pid}/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found
    return int(found[1]) * 1024


def lines(*command: str) -> list[str]:
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    assert not found.stderr
    return found.stdout.splitlines()


# How many artifacts there are, and how many folders in the large one, in each of those, and so on.
_WHOLE: _Shapes = {
    "folder": (1_000_000, ()),
    "hundred": (1_000_000, (100,)),
    "tree": (1_000_000, (1000,)),
    "wide": (1_000_000, (10_000,)),
    "deep": (1_000_000, (10, 10, 10, 10)),
}
_SLICE: _Shapes = {"folder": (17_000, ()), "deep": (2000, (4, 4))}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    metafunc.parametrize("shape", _WHOLE if metafunc.config.getoption("--whole") else _SLICE)


@pytest.mark.timeout(1800)
def test_a_million_artifacts_in_a_quarter_of_a_gibibyte(
    tmp_path: Path, shape: str, scale: Callable[[_Shapes, _Shapes], _Shapes]
) -> None:
    count, branches = scale(_SLICE, _WHOLE)[shape]
    root = tmp_path / "mount"
    root.mkdir()
    with ManyServer(count, branches) as server, limited(LIMIT, shape) as under:
        mounted = Mounted(
            f"{server.url}/{REPO}",
            root,
            environ={"JF_ACCESS_TOKEN": "token"},
            cache=tmp_path / "cache",
            options=["--attr-ttl", "3600"],
            under=under,
        )
        try:
            big = root / "big"
            expected = {name_of(number) for number in range(count)}
            began = time.monotonic()
            listed = lines("find", str(big), "-type", "f", "-printf", "%f %s\n")
            found_s = time.monotonic() - began
            assert len(listed) == count
            assert {line.partition(" ")[0] for line in listed} == expected
            del listed
            began = time.monotonic()
            sizes = lines("ls", "-lR", str(big))
            assert sum(line.startswith("-") for line in sizes) == count
            del sizes
            listed_s = time.monotonic() - began
            print(f"\n{shape}: find {found_s:.1f} s, ls -lR {listed_s:.1f} s,", end=" ")
            print(f"at most {peak(mounted) / MiB:.0f} MiB")
            for number in (0, count // 2, count - 1):
                name = name_of(number)
                path = big / server.folder_of(number) / name
                found = path.stat()
                assert (found.st_size, found.st_mtime_ns) == (len(content_of(name)), MODIFIED_NS)
                assert path.read_bytes() == content_of(name)
                assert os.getxattr(path, "user.jfs.uri").decode().endswith(name)
            assert not (big / "absent").exists()
            assert peak(mounted) < LIMIT
        finally:
            mounted.stop(expected=["cannot be asked, serving what was known before"])
