"""Very many artifacts in a mount that has little memory: 256 MiB for a million of them."""

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest

from tests.mount.groups import limited
from tests.mount.many import MODIFIED_NS, REPO, ManyServer, content_of, name_of
from tests.mount.mounting import Mounted

pytestmark = pytest.mark.fuse

MiB = 1024 * 1024
LIMIT = 256 * MiB
_T = TypeVar("_T")


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


@pytest.mark.parametrize("shape", ["folder", "tree"])
@pytest.mark.timeout(1800)
def test_a_million_artifacts_in_a_quarter_of_a_gibibyte(
    tmp_path: Path, shape: str, scale: Callable[[_T, _T], _T]
) -> None:
    count = scale(17_000 if shape == "folder" else 2000, 1_000_000)
    each = count if shape == "folder" else 1000
    root = tmp_path / "mount"
    root.mkdir()
    with ManyServer(count, each) as server, limited(LIMIT, shape) as under:
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
            listed = lines("find", str(big), "-type", "f", "-printf", "%f %s\n")
            assert len(listed) == count
            assert {line.partition(" ")[0] for line in listed} == expected
            del listed
            sizes = lines("ls", "-lR", str(big))
            assert sum(line.startswith("-") for line in sizes) == count
            del sizes
            for number in (0, count // 2, count - 1):
                name = name_of(number)
                path = big / name if shape == "folder" else big / f"d{number // each:05}" / name
                found = path.stat()
                assert (found.st_size, found.st_mtime_ns) == (len(content_of(name)), MODIFIED_NS)
                assert path.read_bytes() == content_of(name)
                assert os.getxattr(path, "user.jfs.uri").decode().endswith(name)
            assert not (big / "absent").exists()
            assert peak(mounted) < LIMIT
        finally:
            mounted.stop(expected=["cannot be asked, serving what was known before"])
