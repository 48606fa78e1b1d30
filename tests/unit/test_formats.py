"""Where the parts of a file are: what real writers wrote, and what nobody should have."""

import contextlib
import json
import random
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf.constants import GGML_QUANT_SIZES
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from jfs.errors import MalformedFile
from jfs.extents import Extent, GiB, KiB, MiB
from jfs.formats import (
    FIRST_BYTES,
    Layout,
    MoreNeeded,
    Part,
    describes_itself,
    layout_of,
    tells_of_others,
    told_by,
)
from jfs.formats import gguf as ours
from jfs.formats.layout import HEADER_AT_MOST, PARTS_AT_MOST
from jfs.formats.onnx import tensors
from jfs.formats.safetensors import shards
from tests.unit.models import field, onnx_model, safetensors_head


def read(name: str, content: bytes, size: int | None = None) -> Layout:
    """Parse as a reader does, who comes again with more; look at what it is asked for."""
    size = len(content) if size is None else size
    head = content[:FIRST_BYTES]
    while True:
        try:
            return layout_of(name, head, size)
        except MoreNeeded as more:
            upto = more.upto
        assert len(head) < upto <= min(size, HEADER_AT_MOST + FIRST_BYTES)
        head = content[:upto].ljust(upto, b"\0")


def names(layout: Layout) -> dict[str, Extent]:
    return {part.name: part.extent for part in layout.parts}


def test_safetensors_as_they_are_written(tmp_path: Path) -> None:
    tensors = {
        "model.layers.0.q_proj": np.arange(512, dtype=np.float32).reshape(64, 8),
        "ünïcode": np.arange(7, dtype=np.uint8),
        "empty": np.zeros((0, 4), dtype=np.int64),
    }
    save_file(tensors, tmp_path / "m.safetensors", metadata={"format": '{"deep": ["}"]}'})
    content = (tmp_path / "m.safetensors").read_bytes()
    layout = read("m.safetensors", content)
    found = names(layout)
    assert found.keys() == {"model.layers.0.q_proj", "ünïcode"}  # nothing of the empty one to read
    for name, extent in found.items():
        assert content[extent.start : extent.stop] == tensors[name].tobytes()
    q_proj = next(part for part in layout.parts if part.name.endswith("q_proj"))
    shares = [q_proj.share(rank, 4) for rank in range(4)]
    for rank, share in enumerate(shares):
        rows = tensors[q_proj.name][rank * 16 : (rank + 1) * 16]
        assert content[share.start : share.stop] == rows.tobytes()


@pytest.mark.parametrize("order", [gguf.GGUFEndian.LITTLE, gguf.GGUFEndian.BIG])
@pytest.mark.parametrize("alignment", [32, 256])
def test_gguf_as_it_is_written(tmp_path: Path, order: gguf.GGUFEndian, alignment: int) -> None:
    place = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(place, "llama", endianess=order)
    writer.add_custom_alignment(alignment)
    writer.add_array("tokenizer.ggml.tokens", [f"token {i}" for i in range(20_000)])
    writer.add_array("tokenizer.ggml.scores", [0.5] * 1000)
    writer.add_bool("a.b", True)
    plain = np.arange(40, dtype=np.float32).reshape(10, 4)
    writer.add_tensor("token_embd.weight", plain)
    quantized = gguf.quantize(np.ones((6, 64), dtype=np.float32), gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("blk.0.q", quantized, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    content = place.read_bytes()
    layout = read("M.GGUF", content)
    found = names(layout)
    assert found["token_embd.weight"].size == plain.nbytes
    assert found["blk.0.q"].size == quantized.nbytes
    assert all(extent.start % alignment == 0 for extent in found.values())
    assert [part.rows for part in layout.parts] == [10, 6]
    if order is gguf.GGUFEndian.LITTLE:
        extent = found["token_embd.weight"]
        assert content[extent.start : extent.stop] == plain.tobytes()


def test_blocks_of_gguf_are_those_of_its_own_library() -> None:
    known = {kind.value: sizes for kind, sizes in GGML_QUANT_SIZES.items()}
    assert {kind: known[kind] for kind in ours.BLOCKS} == ours.BLOCKS


def test_onnx_names_what_lies_elsewhere() -> None:
    model = onnx_model(
        [
            ("w", [8, 4], {"location": "weights.bin", "offset": "4096", "length": "128"}),
            ("b", [3], {"location": "weights.bin", "length": "12"}),
            ("other", [2], {"location": "sub/more.bin", "offset": "0", "length": "8"}),
            ("inside", [2], {}),
            ("no length", [2, 2], {"location": "weights.bin", "offset": "64"}),
        ]
    )
    assert tensors(model) == (
        ("inside",),
        {
            "weights.bin": [
                Part("w", Extent(4096, 4224), 8),
                Part("b", Extent(0, 12), 3),
                Part("no length", Extent(64, 80), 2),  # floats of 4 bytes
            ],
            "sub/more.bin": [Part("other", Extent(0, 8), 2)],
        },
    )
    told = told_by("model.onnx", model)
    assert (told.within, sorted(told.parts), told.shards) == (
        ("inside",),
        ["sub/more.bin", "weights.bin"],
        {},
    )


@pytest.mark.parametrize(("kind", "size"), [(1, 12), (10, 6), (16, 6), (7, 24), (22, 2), (2, 3)])
def test_onnx_may_leave_the_length_to_the_type(kind: int, size: int) -> None:
    model = onnx_model([("t", [3], {"location": "x"})], kind=kind)
    assert tensors(model).elsewhere == {"x": [Part("t", Extent(0, size), 1 if size % 3 else 3)]}
    assert tensors(onnx_model([("t", [3], {"location": "x"})], kind=8)) == ((), {})  # strings


def test_an_index_names_its_shards() -> None:
    index = {"metadata": {"total_size": 8, "x": [[{}]]}, "weight_map": {"a": "1.st", "b": "2.st"}}
    text = json.dumps(index, indent=2).encode()
    assert shards(text) == {"a": "1.st", "b": "2.st"}
    assert told_by("pytorch_model.bin.index.json", text).shards == {"1.st": ["a"], "2.st": ["b"]}


def test_a_share_that_does_not_come_out_even_is_the_whole() -> None:
    assert Part("bias", Extent(8, 24), 2).share(1, 4) == Extent(8, 24)
    assert Part("odd", Extent(0, 30), 10).share(0, 4) == Extent(0, 30)
    assert Part("even", Extent(100, 180), 8).share(1, 4) == Extent(120, 140)


def test_a_position_finds_its_part() -> None:
    layout = Layout.of(10, 100, [Part("b", Extent(50, 60)), Part("a", Extent(10, 40))])
    assert [layout.at(place) for place in (0, 10, 39, 40, 49, 50, 59, 60, 99)] == [
        *(None, 0, 0, None, None, 1, 1, None, None)
    ]


def test_only_what_describes_itself_is_looked_at() -> None:
    names = ("a.safetensors", "A.GGUF", "a.bin", "a.safetensors.part")
    assert [describes_itself(name) for name in names] == [True, True, False, False]
    tellers = ("M.ONNX", "model.safetensors.index.json", "config.json", "onnx", "a.onnx.data")
    assert [tells_of_others(name, 1) for name in tellers] == [True, True, False, False, False]
    assert not tells_of_others("a.onnx", 0)
    assert not tells_of_others("a.onnx", GiB)


U8 = '{"dtype":"U8","shape":[8],"data_offsets":[%d,%d]}'
HOSTILE = {
    "a header of 2**63 bytes": (2**63).to_bytes(8, "little") + b"{}",
    "a header longer than the file": (1000).to_bytes(8, "little") + b"{}" + bytes(100),
    "no UTF-8": safetensors_head(b'{"a\xff": ' + (U8 % (0, 8)).encode() + b"}"),
    "deep": safetensors_head(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "deep within": safetensors_head(b'{"a":{"shape":' + b"[" * 15 + b"]" * 15 + b"}}"),
    "not closed": safetensors_head(b'{"a":{"dtype":"U8"'),
    "no object": safetensors_head(b"[1,2,3]"),
    "overlapping": safetensors_head(f'{{"a":{U8 % (0, 8)},"b":{U8 % (4, 12)}}}'.encode()),
    "twice": safetensors_head(f'{{"a":{U8 % (0, 8)},"a":{U8 % (8, 16)}}}'.encode()),
    "beyond the file": safetensors_head(f'{{"a":{U8 % (0, 1 << 40)}}}'.encode()),
    "backwards": safetensors_head(f'{{"a":{U8 % (8, 0)}}}'.encode()),
    "negative": safetensors_head(f'{{"a":{U8 % (-8, 0)}}}'.encode()),
    "no number": safetensors_head(
        b'{"a":{"dtype":"U8","shape":[8],"data_offsets":[' + b"9" * 5000 + b",0]}}"
    ),
    "a large number": safetensors_head(
        b'{"a":{"dtype":"U8","shape":[8],"data_offsets":[0,' + b"9" * 4000 + b"]}}"
    ),
    "true": safetensors_head(b'{"a":{"shape":[8],"data_offsets":[false,true]}}'),
    "half a character": safetensors_head(f'{{"\\ud800":{U8 % (0, 8)}}}'.encode()),
    "a long name": safetensors_head(f'{{"{"a" * 5000}":{U8 % (0, 8)}}}'.encode()),
    "no shape": safetensors_head(b'{"a":{"data_offsets":[0,8]}}'),
    "nothing": safetensors_head(b""),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_safetensors_are_refused(what: str) -> None:
    with pytest.raises(MalformedFile) as refused:
        read("x.safetensors", HOSTILE[what], len(HOSTILE[what]) + 100)
    assert len(str(refused.value)) < 300
    assert "\n" not in str(refused.value)


def gguf_head(tensors: int = 0, keys: int = 0, rest: bytes = b"", version: int = 3) -> bytes:
    return struct.pack("<4sIQQ", b"GGUF", version, tensors, keys) + rest


def gguf_text(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def gguf_tensor(name: bytes, shape: list[int], offset: int, kind: int = 0) -> bytes:
    return gguf_text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


ALIGNED = gguf_text(b"general.alignment") + struct.pack("<I", 4)
HOSTILE_GGUF = {
    "other magic": b"GGML" + bytes(100),
    "version 1": gguf_head(version=1),
    "billions of tensors": gguf_head(tensors=1 << 40),
    "billions of keys": gguf_head(keys=1 << 40),
    "more tensors than bytes": gguf_head(tensors=100_000),
    "a long key": gguf_head(keys=1, rest=struct.pack("<Q", 1 << 60)),
    "a long value": gguf_head(keys=1, rest=gguf_text(b"k") + struct.pack("<IQ", 8, 1 << 60)),
    "an array of arrays": gguf_head(
        keys=1, rest=gguf_text(b"k") + struct.pack("<IIQ", 9, 9, 1 << 40)
    ),
    "a long array": gguf_head(keys=1, rest=gguf_text(b"k") + struct.pack("<IIQ", 9, 12, 1 << 60)),
    "billions of strings": gguf_head(
        keys=1, rest=gguf_text(b"k") + struct.pack("<IIQ", 9, 8, 1 << 40)
    ),
    "a value of no type": gguf_head(keys=1, rest=gguf_text(b"k") + struct.pack("<I", 77)),
    "no alignment": gguf_head(keys=1, rest=ALIGNED + struct.pack("<I", 0)),
    "an odd alignment": gguf_head(keys=1, rest=ALIGNED + struct.pack("<I", 12)),
    "a huge alignment": gguf_head(keys=1, rest=ALIGNED + struct.pack("<I", 1 << 30)),
    "many dimensions": gguf_head(tensors=1, rest=gguf_text(b"t") + struct.pack("<I", 1000)),
    "no UTF-8": gguf_head(tensors=1, rest=gguf_tensor(b"\xff", [8], 0)),
    "beyond the file": gguf_head(tensors=1, rest=gguf_tensor(b"t", [8], 1 << 40)),
    "larger than the file": gguf_head(tensors=1, rest=gguf_tensor(b"t", [2**63] * 8, 0)),
    "overlapping": gguf_head(
        tensors=2, rest=gguf_tensor(b"t", [16], 0) + gguf_tensor(b"u", [8], 32)
    ),
    "twice": gguf_head(tensors=2, rest=gguf_tensor(b"t", [8], 0) + gguf_tensor(b"t", [8], 32)),
}


@pytest.mark.parametrize("what", HOSTILE_GGUF)
def test_hostile_gguf_is_refused(what: str) -> None:
    content = HOSTILE_GGUF[what]
    with pytest.raises(MalformedFile) as refused:
        read("x.gguf", content, len(content) + 500)
    assert len(str(refused.value)) < 300
    assert "\n" not in str(refused.value)


def test_gguf_of_a_type_that_is_not_known_ends_where_the_next_begins() -> None:
    rest = gguf_tensor(b"t", [8], 0, kind=999) + gguf_tensor(b"u", [8], 64)
    head = gguf_head(tensors=2, rest=rest)
    parts = read("x.gguf", head, 4096).parts
    assert [(part.name, part.extent.size, part.rows) for part in parts] == [
        ("t", 64, 1),
        ("u", 32, 8),
    ]


@pytest.mark.parametrize(
    "text",
    [
        b"[]",
        b'{"weight_map": {"a": "../../etc/passwd"}}',
        b'{"weight_map": {"a": "/etc/passwd"}}',
        b'{"weight_map": {"a": ".."}}',
        b'{"weight_map": {"a": 7}}',
        b'{"weight_map": {"a": "x", "a": "y"}}',
        b'{"weight_map": {"a": "x"',
        b'{"weight_map": \xff}',
        b'{"metadata": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ],
)
def test_hostile_indices_are_refused(text: bytes) -> None:
    with pytest.raises(MalformedFile):
        shards(text)


@pytest.mark.parametrize(
    "place",
    [
        {"location": "../x", "length": "8"},
        {"location": "/x", "length": "8"},
        {"location": "x", "length": "-8"},
        {"location": "x", "length": "1_0"},
        {"location": "x", "length": "9" * 30},
        {"location": "x" * 5000, "length": "8"},
    ],
)
def test_hostile_places_of_onnx_are_refused(place: dict[str, str]) -> None:
    with pytest.raises(MalformedFile):
        tensors(onnx_model([("t", [1], place)]))


# Whatever the bytes are.

PARSERS: dict[str, Callable[[bytes], object]] = {
    "safetensors": lambda content: read("x.safetensors", content, len(content) + 64),
    "gguf": lambda content: read("x.gguf", content, len(content) + 128),
    "onnx": tensors,
    "index": shards,
}

VALID = {
    "safetensors": safetensors_head(
        json.dumps(
            {
                "__metadata__": {"format": "pt"},
                "a": {"dtype": "F16", "shape": [4, 2], "data_offsets": [0, 16]},
                "b": {"dtype": "F16", "shape": [4], "data_offsets": [16, 24]},
            }
        ).encode()
    ),
    "gguf": gguf_head(
        tensors=1,
        keys=2,
        rest=ALIGNED
        + struct.pack("<I", 64)
        + gguf_text(b"k")
        + struct.pack("<IIQ", 9, 8, 1)
        + gguf_text(b"word")
        + gguf_tensor(b"t", [2, 2], 0),
    ),
    "onnx": onnx_model([("w", [8, 4], {"location": "w.bin", "offset": "0", "length": "128"})]),
    "index": b'{"metadata": {"total_size": 1}, "weight_map": {"a": "1.safetensors"}}',
}


@pytest.mark.parametrize("kind", PARSERS)
def test_what_is_damaged_is_tested_undamaged_too(kind: str) -> None:
    PARSERS[kind](VALID[kind])


@given(st.sampled_from(sorted(PARSERS)), st.binary(max_size=400), st.data())
def test_no_bytes_do_more_than_to_be_refused(kind: str, noise: bytes, data: st.DataObject) -> None:
    valid = VALID[kind]
    start = data.draw(st.integers(0, len(valid)))
    cut = data.draw(st.integers(0, 12))
    for content in (noise, valid[:start], valid[:start] + noise[:8] + valid[start + cut :]):
        with contextlib.suppress(MalformedFile):
            PARSERS[kind](content)


@given(
    st.lists(st.integers(0, 300), max_size=12),
    st.randoms(use_true_random=False),
    st.integers(0, 64),
)
@example([], random.Random(0), 0)
def test_parts_come_back_as_they_were_written(
    sizes: list[int], shuffle: random.Random, gap: int
) -> None:
    entries: dict[str, object] = {}
    wanted: dict[str, tuple[int, int]] = {}
    position = 0
    for number, size in enumerate(sizes):
        name = f'té"nsor\\{number}'
        entries[name] = {
            "dtype": "U8",
            "shape": [size],
            "data_offsets": [position, position + size],
        }
        if size:
            wanted[name] = (position, position + size)
        position += size + gap
    items = list(entries.items())
    shuffle.shuffle(items)
    text = json.dumps(dict(items), ensure_ascii=shuffle.random() < 0.5).encode()
    layout = read("x.safetensors", safetensors_head(text), 8 + len(text) + position)
    assert layout.header == 8 + len(text)
    base = layout.header
    found = {n: (e.start - base, e.stop - base) for n, e in names(layout).items()}
    assert found == wanted
    assert list(layout.parts) == sorted(layout.parts, key=lambda part: part.extent)


def test_a_header_costs_its_own_bytes() -> None:
    text = b"{}".ljust(64 * KiB)
    with pytest.raises(MoreNeeded) as first:
        layout_of("x.safetensors", b"", 10 * GiB)
    with pytest.raises(MoreNeeded) as second:
        layout_of("x.safetensors", safetensors_head(text)[: first.value.upto], 10 * GiB)
    assert second.value.upto == 8 + 64 * KiB


@pytest.mark.parametrize("kind", ["arrays", "members", "names", "gguf strings", "onnx fields"])
def test_memory_is_bounded_by_the_bytes_there_are(kind: str) -> None:
    """``json.loads`` would take 40 times the text of the first."""
    amount = MiB // 2
    match kind:
        case "arrays":
            parse, content = "safetensors", b'{"a":[' + b"[]," * (amount // 3) + b"[]]}"
        case "members":
            many = b",".join(b'"%d":1' % number for number in range(amount // 10))
            parse, content = "safetensors", b'{"a":{' + many + b"}}"
        case "names":
            many = b",".join(b'"%d":{}' % number for number in range(PARTS_AT_MOST))
            parse, content = "safetensors", b"{" + many + b"}"
        case "gguf strings":
            rest = gguf_text(b"k") + struct.pack("<IIQ", 9, 8, amount // 8) + bytes(amount)
            rest += gguf_text(b"t") + struct.pack("<I", 1000)
            parse, content = "gguf", gguf_head(tensors=1, keys=1, rest=rest)
        case _:
            entry = b"".join(field(3 + number, 1) for number in range(amount // 8))
            parse, content = "onnx", field(7, field(5, field(13, entry) + b"\xff"))
    if parse == "safetensors":
        content = safetensors_head(content)
    tracemalloc.start()
    try:
        with pytest.raises(MalformedFile):
            PARSERS[parse](content)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 6 * len(content) + MiB
