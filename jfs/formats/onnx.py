"""ONNX: tensors that a model keeps in other files. Reads of protobuf only what says where they are.

https://onnx.ai/onnx/repo-docs/ExternalData.html, onnx.proto: the graph is field 7 of the model, its
initializers field 5, and each names its place by keys "location", "offset" and "length". Tensors in
attributes of nodes are not looked at: those are constants, and small.
"""

import math
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

from jfs.errors import MalformedFile
from jfs.extents import Extent
from jfs.formats.layout import HEADER_AT_MOST, PARTS_AT_MOST, Part

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_GRAPH, _INITIALIZER = 7, 5
# of a tensor: dims 1, data_type 2, name 8, external_data 13, data_location 14
_KEY, _VALUE = 1, 2
_IN_ANOTHER_FILE = 1
_OFFSET_AT_MOST = 1 << 62
_FIELDS_OF_A_TENSOR = 1024
_FIELDS_AT_MOST = 2_000_000  # 3 s; the largest models have 15 to a tensor
_NAME_AT_MOST = 4096
_DIMENSIONS_AT_MOST = 64

# Bits of an element, by data_type (onnx.proto, TensorProto.DataType).
_BITS = {
    **dict.fromkeys((25, 26), 2),
    **dict.fromkeys((22, 21, 23), 4),
    **dict.fromkeys((2, 3, 9, 17, 18, 19, 20, 24), 8),
    **dict.fromkeys((4, 5, 10, 16), 16),
    **dict.fromkeys((1, 6, 12), 32),
    **dict.fromkeys((7, 11, 13, 14), 64),
    15: 128,
}


class Tensors(NamedTuple):
    """The tensors of a model.

    Attributes:
        within: names of those in its own file.
        elsewhere: those in other files, by the file: its path beside the model.
    """

    within: tuple[str, ...]
    elsewhere: dict[str, list[Part]]


def tensors(model: bytes) -> Tensors:
    """Return where a model keeps its initializers.

    One in another file whose length is neither told nor known from its type is left out. Whether
    the parts fit the file is the caller's to look at (``Layout.of``).

    Args:
        model: all of it; with its tensors elsewhere it is small.
    Raises:
        MalformedFile: it is no ONNX, or larger than such a model is.
    """
    if len(model) > HEADER_AT_MOST:
        raise MalformedFile(f"a model of {len(model)} bytes without its tensors")
    within: list[str] = []
    elsewhere: dict[str, list[Part]] = {}
    count, left = 0, _Fields(_FIELDS_AT_MOST)
    for number, graph in left.of(memoryview(model)):
        if number != _GRAPH or isinstance(graph, int):
            continue
        for inner, tensor in left.of(graph):
            if inner != _INITIALIZER or isinstance(tensor, int):
                continue
            count += 1
            if count > PARTS_AT_MOST:
                raise MalformedFile(f"more than {PARTS_AT_MOST} tensors")
            name, file, part = _placed(tensor, left)
            if not file:
                within.append(name)
            elif part is not None:
                elsewhere.setdefault(file, []).append(part)
    return Tensors(tuple(within), elsewhere)


def _placed(tensor: memoryview, left: "_Fields") -> tuple[str, str, Part | None]:
    """Return the name of a tensor, the file that it lies in unless that is the model, and where."""
    name, kind, elsewhere = "", 0, False
    shape: list[int] = []
    place: dict[str, str] = {}
    for count, (number, value) in enumerate(left.of(tensor)):
        if count > _FIELDS_OF_A_TENSOR:
            raise MalformedFile(f"{name!r:.80} has more than {_FIELDS_OF_A_TENSOR} fields")
        match number, value:
            case (8, memoryview()):
                name = _text(value)
            case (1, int()):
                shape.append(value)
            case (1, memoryview()):  # packed
                position = 0
                while position < len(value) and len(shape) <= _DIMENSIONS_AT_MOST:
                    size, position = _varint(value, position)
                    shape.append(size)
            case (2, int()):
                kind = value
            case (14, int()):
                elsewhere = value == _IN_ANOTHER_FILE
            case (13, memoryview()):
                key = text = ""
                for inner, of_entry in islice(left.of(value), _FIELDS_OF_A_TENSOR):
                    if isinstance(of_entry, memoryview):
                        key = _text(of_entry) if inner == _KEY else key
                        text = _text(of_entry) if inner == _VALUE else text
                place[key] = text
    if len(shape) > _DIMENSIONS_AT_MOST:
        raise MalformedFile(f"{name!r:.80} has more than {_DIMENSIONS_AT_MOST} dimensions")
    location = place.get("location", "")
    if not elsewhere or not location:
        return name, "", None
    if location.startswith("/") or ".." in location.split("/") or "\0" in location:
        raise MalformedFile(f"{name!r:.80} lies outside the folder of its model")
    start = _number(place.get("offset", "0"))
    if "length" in place:
        size = _number(place["length"])
    elif kind in _BITS:
        size = -(-math.prod(shape) * _BITS[kind] // 8)
    else:
        return name, location, None
    rows = shape[0] if shape and shape[0] and not size % shape[0] else 1
    return name, location, Part(name, Extent(start, start + size), rows)


class _Fields:
    """Walks messages, through so many fields in all."""

    def __init__(self, most: int) -> None:
        self._left = most

    def of(self, message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
        """Yield the fields of a message: number and value. Raises MalformedFile."""
        for field in _fields(message):
            self._left -= 1
            if self._left < 0:
                raise MalformedFile(f"a model of more than {_FIELDS_AT_MOST} fields")
            yield field


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yield the fields of a message: number and value."""
    position, size = 0, len(message)
    while position < size:
        tag, position = _varint(message, position)
        kind = tag & 7
        if kind == _VARINT:
            value, position = _varint(message, position)
            yield tag >> 3, value
            continue
        if kind == _BYTES:
            length, position = _varint(message, position)
        elif kind in (_FIXED64, _FIXED32):
            length = 8 if kind == _FIXED64 else 4
        else:
            raise MalformedFile(f"no ONNX: a field of wire type {kind}")
        if length > size - position:
            raise MalformedFile(f"no ONNX: {length} bytes where {size - position} are left")
        yield tag >> 3, message[position : position + length]
        position += length


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(message):
            break
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise MalformedFile("no ONNX: a number that does not end")


def _text(value: memoryview) -> str:
    if len(value) > _NAME_AT_MOST:
        raise MalformedFile(f"a name of {len(value)} bytes")
    try:
        return str(value, "utf-8")
    except UnicodeDecodeError:
        raise MalformedFile(f"{bytes(value[:80])!r} is no UTF-8") from None


def _number(text: str) -> int:
    # The text may be any: int() takes signs, spaces, underscores and other scripts' digits, too.
    if not (text.isascii() and text.isdigit() and len(text) < 20) or int(text) > _OFFSET_AT_MOST:
        raise MalformedFile(f"{text!r:.80} is no place in a file")
    return int(text)
