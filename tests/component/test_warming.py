"""Some tensors of a model are brought into the cache, and nothing else of it is touched."""

import contextlib
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

import pytest
import trio
import trio.testing

from jfs.artifactory import HttpRangeSource
from jfs.config import CacheSettings
from jfs.extents import Extent, KiB, MiB
from jfs.formats import Selection
from jfs.metrics import Metrics
from jfs.model import Checksums, ContentKey, FileInfo, RepoPath
from jfs.server import EmbeddedServer
from jfs.warming import Warmed, warm
from jfs.warming.running import Run
from tests.component.composed import block_store, server_settings
from tests.component.server_requests import REPO
from tests.unit.models import onnx_model, safetensors_head

BLOCK = 32 * KiB


def warmed(
    server: EmbeddedServer, tmp_path: Path, path: str, tensors: Sequence[str] = (), **rank: int
) -> Warmed:
    return warm(
        server_settings(server),
        CacheSettings(tmp_path / "cache", free_floor_bytes=0),
        [RepoPath.parse(f"{REPO}/{path}")],
        verify=False,
        found=lambda path, size: None,
        advanced=lambda path, size: None,
        selection=Selection(tuple(tensors), **rank),
    )


def each(result: Warmed) -> dict[str, tuple[int, int]]:
    """Bytes needed and fetched, by name; what is fetched is whole blocks."""
    for path, needed, fetched in result.each:
        assert needed <= fetched <= needed + 2 * BLOCK, path
    assert result.total == sum(needed for _, needed, _ in result.each)
    assert result.fetched == sum(fetched for _, _, fetched in result.each)
    return {path.name: (needed, fetched) for path, needed, fetched in result.each}


def deploy_shard(server: EmbeddedServer, path: str, names: Sequence[str]) -> int:
    """Make a file of tensors of 1 MiB; return the size of its head."""
    entries = {
        name: {
            "dtype": "U8",
            "shape": [1024, 1024],
            "data_offsets": [number * MiB, (number + 1) * MiB],
        }
        for number, name in enumerate(names)
    }
    head = safetensors_head(json.dumps(entries).encode())
    server.deploy(REPO, path, head + os.urandom(MiB) * len(names))
    return len(head)


@pytest.fixture
def sharded(server: EmbeddedServer) -> dict[str, int]:
    """Three shards with an index: q and k of two layers, and a head. Bytes that tell of them."""
    shards = {
        f"model-{number + 1:05}-of-00003.safetensors": names
        for number, names in enumerate(
            [["l.0.q_proj.weight", "l.0.k_proj.weight"], ["l.1.q_proj.weight"], ["lm_head.weight"]]
        )
    }
    heads = {name: deploy_shard(server, f"m/{name}", names) for name, names in shards.items()}
    index = {"weight_map": {tensor: name for name, names in shards.items() for tensor in names}}
    text = json.dumps(index).encode()
    server.deploy(REPO, "m/model.safetensors.index.json", text)
    server.deploy(REPO, "m/config.json", b"{}")
    return {**heads, "index": len(text)}


@pytest.mark.parametrize("path", ["m", "m/model.safetensors.index.json"])
def test_only_shards_with_such_tensors_are_touched(
    server: EmbeddedServer, tmp_path: Path, sharded: dict[str, int], path: str
) -> None:
    result = warmed(server, tmp_path, path, ["l.*.k_proj*"], rank=1, ranks=4)
    assert result.failures == []
    first = "model-00001-of-00003.safetensors"
    needed = {name: size for name, (size, _) in each(result).items()}
    assert needed.pop("config.json", 2) == 2
    assert needed == {
        "model.safetensors.index.json": sharded["index"],
        first: sharded[first] + MiB // 4,
    }
    assert server.stats.bytes_sent < result.fetched + 64 * KiB  # and names
    again = warmed(server, tmp_path, path, ["l.*.k_proj*"], rank=1, ranks=4)
    assert (again.total, again.fetched) == (result.total, 0)


def test_a_rank_needs_its_share_of_every_shard(
    server: EmbeddedServer, tmp_path: Path, sharded: dict[str, int]
) -> None:
    result = warmed(server, tmp_path, "m/model.safetensors.index.json", rank=0, ranks=2)
    assert result.failures == []
    assert result.total == sum(sharded.values()) + 4 * MiB // 2


def test_shards_without_a_head_are_needed_whole(server: EmbeddedServer, tmp_path: Path) -> None:
    index = {"weight_map": {"a.weight": "1.bin", "b.weight": "2.bin"}}
    server.deploy(REPO, "m/pytorch_model.bin.index.json", json.dumps(index).encode())
    for name in ("1.bin", "2.bin"):
        server.deploy(REPO, f"m/{name}", name.encode() * 1000)
    assert each(warmed(server, tmp_path, "m", ["b"])).keys() == {
        "pytorch_model.bin.index.json",
        "2.bin",
    }


@pytest.mark.parametrize("path", ["o", "o/model.onnx"])
def test_external_data_of_onnx_is_needed_where_its_tensors_are(
    server: EmbeddedServer, tmp_path: Path, path: str
) -> None:
    model = onnx_model(
        [
            ("l.0.q", [4, 1 << 16], {"location": "model.onnx.data"}),
            ("l.0.k", [4, 1 << 16], {"location": "model.onnx.data", "offset": f"{MiB}"}),
            ("l.1.q", [4, 1 << 16], {"location": "below/l.1.q"}),
            ("l.1.k", [4, 1 << 16], {"location": "below/l.1.k"}),
            ("bias", [2], {}),
        ]
    )
    server.deploy(REPO, "o/model.onnx", model)
    for name, size in (("model.onnx.data", 2 * MiB), ("below/l.1.q", MiB), ("below/l.1.k", MiB)):
        server.deploy(REPO, f"o/{name}", os.urandom(size))
    result = warmed(server, tmp_path, path, ["*.k"], rank=3, ranks=4)
    assert result.failures == []
    needed = {name: size for name, (size, _) in each(result).items() if size}
    assert needed == {
        "model.onnx": len(model),
        "model.onnx.data": MiB // 4,
        "l.1.k": MiB // 4,
    }
    assert server.stats.bytes_sent < result.fetched + 64 * KiB
    assert warmed(server, tmp_path, path, ["bias"]).failures == []  # within


@pytest.mark.parametrize(
    ("path", "tensors", "text"),
    [
        ("m", ["typo"], "no tensor is called 'typo'"),
        ("m", ["lm_head", "typo*"], "no tensor is called 'typo*'"),
        ("m/model.safetensors.index.json", ["typo"], "no tensor is called 'typo'"),
        ("m/config.json", ["q"], "leave out --tensors and --rank"),
        ("m/config.json", [], "leave out --tensors and --rank"),
        ("none", ["q"], "no such file or folder on the server"),
    ],
)
def test_what_selects_nothing_is_told_in_one_line(
    server: EmbeddedServer,
    tmp_path: Path,
    sharded: dict[str, int],
    path: str,
    tensors: list[str],
    text: str,
) -> None:
    result = warmed(server, tmp_path, path, tensors, rank=0, ranks=2)
    ((where, said),) = result.failures
    assert (str(where), said.count("\n")) == (f"{REPO}/{path}", 0)
    assert text in said
    if "lm_head" not in tensors:
        assert "config.json" not in each(result)
        assert result.fetched < 128 * KiB  # heads, in whole blocks


def test_an_index_that_is_wrong_fails_alone(server: EmbeddedServer, tmp_path: Path) -> None:
    head = deploy_shard(server, "m/a.safetensors", ["a"])
    server.deploy(REPO, "m/a.safetensors.index.json", b'{"weight_map": {"a": "../b"}}')
    result = warmed(server, tmp_path, "m", ["a"])
    assert [path.name for path, _ in result.failures] == ["a.safetensors.index.json"]
    assert each(result)["a.safetensors"][0] == head + MiB
    index = {"weight_map": {str(number): f"{number}.safetensors" for number in range(1000)}}
    server.deploy(REPO, "n/x.index.json", json.dumps(index).encode())
    ((path, text),) = warmed(server, tmp_path, "n", rank=0, ranks=2).failures
    assert path.name == "x.index.json"
    assert text == "1000 files that it names are not there, such as '0.safetensors'"


async def test_blocks_that_another_process_holds_and_does_not_bring_are_fetched(
    server: EmbeddedServer, tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """It may be stopped; or its request is longer than ours, and its line slow."""
    data = os.urandom(MiB + 5)
    server.deploy(REPO, "f", data)
    store = block_store(tmp_path / "cache")
    source = HttpRangeSource(server_settings(server), Metrics())
    key = ContentKey(f"sha256:{hashlib.sha256(data).hexdigest()}", len(data))
    other = store.open(key)
    result = Warmed()
    try:
        with other.claim(Extent(0, BLOCK)) or contextlib.nullcontext():
            run = Run(
                store,
                source,
                trio.CapacityLimiter(2),
                result,
                lambda path, size: None,
                lambda path, size: None,
            )
            path = RepoPath.parse(f"{REPO}/f")
            await run.file(FileInfo(path, len(data), Checksums(sha256=key.digest[7:]), 0))
        assert result.failures == []
        assert other.missing(Extent(0, len(data))) == []
    finally:
        other.close()
        source.close()
        store.close()
