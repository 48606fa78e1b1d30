"""What readers of models ask of a real mount, and what the server sends for it."""

import hashlib
import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from jfs.server import EmbeddedServer, Fault
from tests.mount.conftest import MountedServer, Mounter
from tests.unit.models import field, safetensors_head

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
# As readers of GGUF do it: its header says nowhere how long it is.
_GGUF = {
    "piece by piece": """
with open(path, "rb") as file:
    assert file.read(4) == b"GGUF"
    assert sum(len(file.read(8)) for _ in range(8 * 1024)) == 64 * 1024
""",
}
_GGUF_MAPPED = """
import numpy as np
pages = np.memmap(path, mode="r")
assert bytes(pages[:4]) == b"GGUF"
assert len(bytes(pages[4 : 4 + 64 * 1024])) == 64 * 1024
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


def gguf(path: Path) -> Path:
    """A table of 64 KiB, and one large tensor."""
    table = struct.pack("<Q3sIIQ", 3, b"pad", 9, 0, 64 * KiB) + bytes(64 * KiB)
    tensor = struct.pack("<Q1sIQIQ", 1, b"t", 1, 8 * GiB // 4, 0, 0)
    return huge(path, struct.pack("<4sIQQ", b"GGUF", 3, 1, 1) + table + tensor)


def run(program: str, path: Path) -> None:
    code = f"path = {str(path)!r}\n{program}"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize(
    ("make", "programs", "mapped_program"),
    [(safetensors, _HEADERS, _MAPPED), (gguf, _GGUF, _GGUF_MAPPED)],
    ids=["safetensors", "gguf"],
)
def test_the_header_of_a_huge_file_costs_its_own_bytes(
    mounted: MountedServer,
    tmp_path: Path,
    make: Callable[[Path], Path],
    programs: dict[str, str],
    mapped_program: str,
) -> None:
    """Mapped, too: the kernel asks for 2 MiB around the first page, and is refused.

    Unless the thread that wants it has no core to go to sleep on: nobody sees what it waits for.
    """
    path, server = make(tmp_path / f"huge.{make.__name__}"), mounted.server
    names = (f"{number}{path.suffix}" for number in range(16))

    def sent(program: str) -> int:
        name, before = next(names), server.stats.bytes_sent
        server.deploy(REPO, name, path, sha256=hashlib.sha256(name.encode()).hexdigest())
        run(program, mounted.root / name)
        return server.stats.bytes_sent - before

    assert any(sent(mapped_program) <= HEADER_AT_MOST for _ in range(10))
    costs = {what: sent(program) for what, program in programs.items()}
    assert max(costs.values()) <= HEADER_AT_MOST, costs
    before = server.stats.bytes_sent
    mounted.mount.stop()  # what was begun for them has ended
    assert server.stats.bytes_sent - before <= HEADER_AT_MOST


_ADDS = """
import numpy as np, onnxruntime
session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
(sums,) = session.run(None, {"x": np.full(SIZE, 2, np.float32)})
assert sums.tobytes() == np.full(SIZE, 5, np.float32).tobytes()
"""


def adding_model(size: int, data: str) -> bytes:
    """Make an ONNX model that adds floats in another file to what it is given."""
    tensor = field(1, 1) + field(2, field(1, field(1, size)))
    named = [field(1, name) + field(2, field(1, tensor)) for name in (b"x", b"y")]
    node = field(1, b"x") + field(1, b"w") + field(2, b"y") + field(4, b"Add")
    place = [("location", data), ("offset", "4096"), ("length", f"{4 * size}")]
    weights = field(1, size) + field(2, 1) + field(8, b"w") + field(14, 1)
    for key, value in place:
        weights += field(13, field(1, key.encode()) + field(2, value.encode()))
    graph = field(1, node) + field(2, b"adds") + field(5, weights)
    graph += field(11, named[0]) + field(12, named[1])
    return field(1, 8) + field(8, field(2, 13)) + field(7, graph)


def test_onnx_with_its_tensors_in_another_file(mounted: MountedServer) -> None:
    """It is mapped: what the kernel asks for around pages of two threads comes on top."""
    size, server = 2 * MiB, mounted.server
    server.deploy(REPO, "m/model.onnx", adding_model(size, "model.onnx.data"))
    weights = struct.pack("<f", 3) * size
    server.deploy(REPO, "m/model.onnx.data", bytes(4096) + weights + bytes(32 * MiB))
    run(f"SIZE = {size}{_ADDS}", mounted.root / "m/model.onnx")
    stats = json.loads((mounted.root / ".jfs/stats.json").read_text())
    assert stats["counters"]["described_files"] >= 1
    assert server.stats.bytes_sent < len(weights) + 8 * MiB  # of 40


_TENSORS = """
import random
import numpy as np
from safetensors import safe_open
numbers = list(range(1, COUNT, 2))
random.Random(7).shuffle(numbers)
with safe_open(path, framework="np") as model:
    for number in numbers:
        tensor = model.get_tensor(f"layers.{number:02}")
        assert np.array_equal(tensor, np.arange(SIZE, dtype="u4") * 3 + number)
"""


def test_tensors_of_a_mapping_in_any_order_are_right_and_cost_themselves(
    mounted: MountedServer,
) -> None:
    """Half of a model. Where its reader is not seen to wait it costs a MiB at each end more."""
    count, size = 12, 6 * MiB // 4
    tensors = {
        f"layers.{number:02}": np.arange(size, dtype="u4") * 3 + np.uint32(number)
        for number in range(count)
    }
    mounted.server.deploy(REPO, "half.safetensors", save(tensors))
    before = mounted.server.stats.bytes_sent
    run(f"COUNT, SIZE = {count}, {size}{_TENSORS}", mounted.root / "half.safetensors")
    mounted.mount.stop()  # what was begun for it has ended
    assert mounted.server.stats.bytes_sent - before < 1.6 * (count // 2) * 4 * size


def test_shards_of_a_model_that_is_read_are_fetched(
    server: EmbeddedServer, mounter: Mounter
) -> None:
    names = [f"model-{number:05}-of-00003.safetensors" for number in (1, 2, 3)]
    for name in names:
        server.deploy(REPO, name, os.urandom(2 * MiB))
    source = f"{server.url}/{REPO}"
    held = server.faults.add(Fault.hold(f"/{REPO}/{names[2]}"))
    mounted = mounter(source, JF_ACCESS_TOKEN=server.token)
    assert "read.prefetch_shards True" in (mounted.root / ".jfs/config").read_text()
    assert len((mounted.root / names[0]).read_bytes()) == 2 * MiB
    held.wait_hit()
    assert server.stats.bytes_sent >= 4 * MiB
    mounted.stop()  # which waits for nothing that nobody has asked for


def test_shards_are_not_fetched_if_that_is_not_wanted(
    server: EmbeddedServer, mounter: Mounter
) -> None:
    off = mounter(f"{server.url}/{REPO}", "--no-prefetch-shards", JF_ACCESS_TOKEN=server.token)
    assert "read.prefetch_shards False" in (off.root / ".jfs/config").read_text()
