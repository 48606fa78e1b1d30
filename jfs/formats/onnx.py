"""ONNX: tensors that a model keeps in other files. Reads of protobuf only what says where they are.

https://onnx.ai/onnx/repo-docs/ExternalData.html, onnx.proto: the graph is field 7 of the model, its
initializers field 5, and each names its place by keys "location", "offset" and "length".
"""

from collections.abc import Iterator
from itertools import islice

from jfs.errors import MalformedFile
from jfs.extents import Extent
from jfs.formats.layout import HEADER_AT_MOST, PARTS_AT_MOST, Part

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_GRAPH, _INITIALIZER = 7, 5
# of a tensor: dims 1, name 8, external_data 13, data_location 14
_KEY, _VALUE = 1, 2
_IN_ANOTHER_FILE = 1
_OFFSET_AT_MOST = 1 << 62
_FIELDS_OF_A_TENSOR = 1024
_NAME_AT_MOST = 4096


def external(model: bytes) -> dict[str, list[Part]]:
    """Return what a model keeps in other files, by the file: its path beside the model.

    A tensor without a length goes to where the next one begins, as far as anybody knows: it is
    left out. Whether the parts fit the file is the caller's to look at (``Layout.of``).

    Args:
        model: all of it; with its tensors elsewhere it is small.
    Raises:
        MalformedFile: it is no ONNX, or larger than such a model is.
    """
    if len(model) > HEADER_AT_MOST:
        raise MalformedFile(f"a model of {len(model)} bytes without its tensors")
    found: dict[str, list[Part]] = {}
    count = 0
    for number, graph in _fields(memoryview(model)):
        if number != _GRAPH or isinstance(graph, int):
            continue
        for inner, tensor in _fields(graph):
            if inner != _INITIALIZER or isinstance(tensor, int):
                continue
            count += 1
            if count > PARTS_AT_MOST:
                raise MalformedFile(f"more than {PARTS_AT_MOST} tensors")
            placed = _placed(tensor)
            if placed is not None:
                found.setdefault(placed[0], []).append(placed[1])
    return found


def _placed(tensor: memoryview) -> tuple[str, Part] | None:
    name, rows, elsewhere = "", 0, False
    place: dict[str, str] = {}
    for count, (number, value) in enumerate(_fields(tensor)):
        if count > _FIELDS_OF_A_TENSOR:
            raise MalformedFile(f"{name!r:.80} has more than {_FIELDS_OF_A_TENSOR} fields")
        match number, value:
            case (8, memoryview()):
                name = _text(value)
            case (1, int()):
                rows = rows or value
            case (1, memoryview()) if value:  # packed
                rows = rows or _varint(value, 0)[0]
            case (14, int()):
                elsewhere = value == _IN_ANOTHER_FILE
            case (13, memoryview()):
                key = text = ""
                for inner, of_entry in islice(_fields(value), _FIELDS_OF_A_TENSOR):
                    if isinstance(of_entry, memoryview):
                        key = _text(of_entry) if inner == _KEY else key
                        text = _text(of_entry) if inner == _VALUE else text
                place[key] = text
    location = place.get("location", "")
    if not elsewhere or not location or "length" not in place:
        return None
    if location.startswith("/") or ".." in location.split("/") or "\0" in location:
        raise MalformedFile(f"{name!r:.80} lies outside the folder of its model")
    start, size = _number(place.get("offset", "0")), _number(place["length"])
    rows = rows if rows and not size % rows else 1
    return location, Part(name, Extent(start, start + size), rows)


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
