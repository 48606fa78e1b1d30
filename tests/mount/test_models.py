"""What readers of models ask of a real mount, and what the server sends for it."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jfs.server import EmbeddedServer
from tests.mount.conftest import MountedServer, Mounter
from tests.unit.models import safetensors_head

pytestmark = pytest.mark.fuse

REPO = "ml-models-local"
KiB, MiB, GiB = 1024, 1024**2, 1024**3
HEADER_AT_MOST = 256 * KiB
_HEADERS = {
    # what a program of its own does with the path
    "eight bytes, then the header": """
with open(path, "rb") as file:
    length = int.from_bytes(file.read(8), "little")
    assert len(file.read(length)) == length
""",
    "a small READ of each": """
import os
file = os.open(path, os.O_RDONLY)
length = int.from_bytes(os.pread(file, 8, 0), "little")
assert len(os.pread(file, length, 8)) == length
""",
}
_MAPPED = """
from safetensors import safe_open
with safe_open(path, framework="np") as model:
    assert len(model.keys()) == 641
    assert model.get_tensor("layers.0").tobytes() == bytes(64)
"""


def huge(path: Path, head: bytes) -> Path:
    """Make a file of 10 GiB that begins with *head*, and takes no more space than that."""
    with path.open("wb") as file:
        file.write(head)
        file.truncate(10 * GiB)
    return path


def safetensors(path: Path) -> Path:
    """Large tensors and a small one, in a header of 64 KiB."""
    entries: dict[str, dict[str, object]] = {}
    start, stop, last = 0, 64, 10 * GiB - 8 - 64 * KiB
    while start < last:
        entry = {"dtype": "U8", "shape": [stop - start], "data_offsets": [start, stop]}
        entries[f"layers.{len(entries)}"] = entry
        start, stop = stop, min(last, stop + 16 * MiB)
    text = json.dumps(entries, separators=(",", ":")).encode()
    return huge(path, safetensors_head(text.ljust(64 * KiB)))


def run(program: str, path: Path) -> None:
    code = f"path = {str(path)!r}\n{program}"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_the_header_of_a_huge_safetensors_costs_its_own_bytes(
    mounted: MountedServer, tmp_path: Path
) -> None:
    path = safetensors(tmp_path / "huge.safetensors")
    server, sent = mounted.server, 0
    for number, (what, program) in enumerate(_HEADERS.items()):
        server.deploy(REPO, f"{number}.safetensors", path, sha256=f"{number}" * 64)
        before = server.stats.bytes_sent
        run(program, mounted.root / f"{number}.safetensors")
        sent += server.stats.bytes_sent - before
        assert sent <= HEADER_AT_MOST * (number + 1), what
    before = server.stats.bytes_sent
    mounted.mount.stop()  # what was begun for it has ended
    assert sent + server.stats.bytes_sent - before <= HEADER_AT_MOST * len(_HEADERS)


def test_the_header_of_a_huge_safetensors_that_is_mapped_costs_its_own_bytes(
    mounted: MountedServer, tmp_path: Path
) -> None:
    """The kernel asks for 2 MiB around the first page, and is refused.

    Unless the thread that wants it has no core to go to sleep on: nobody sees what it waits for.
    """
    path, server = safetensors(tmp_path / "huge.safetensors"), mounted.server
    for number in range(10):
        server.deploy(REPO, f"{number}.safetensors", path, sha256=f"{number}" * 64)
        before = server.stats.bytes_sent
        run(_MAPPED, mounted.root / f"{number}.safetensors")
        if server.stats.bytes_sent - before <= HEADER_AT_MOST:
            return
    raise AssertionError("each of them cost more")


def test_shards_of_a_model_that_is_read_are_fetched(
    server: EmbeddedServer, mounter: Mounter
) -> None:
    names = [f"model-{number:05}-of-00003.safetensors" for number in (1, 2, 3)]
    for name in names:
        server.deploy(REPO, name, os.urandom(2 * MiB))
    source = f"{server.url}/{REPO}"
    off = mounter(source, "--no-prefetch-shards", name="off", JF_ACCESS_TOKEN=server.token)
    assert "read.prefetch_shards False" in (off.root / ".jfs/config").read_text()
    off.stop()
    mounted = mounter(source, JF_ACCESS_TOKEN=server.token)
    assert len((mounted.root / names[0]).read_bytes()) == 2 * MiB
    while server.stats.bytes_sent < 6 * MiB:
        time.sleep(0.01)
