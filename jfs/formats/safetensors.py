"""safetensors: 8 bytes of length, a JSON object, the tensors. Also the index of a sharded model.

https://huggingface.co/docs/safetensors: offsets count from the end of the header.
"""

from collections.abc import Iterator

from jfs.errors import MalformedFile
from jfs.extents import Extent
from jfs.formats.layout import HEADER_AT_MOST, PARTS_AT_MOST, Layout, MoreNeeded, Part
from jfs.formats.objects import members, small, string

_LENGTH = 8
_DIMENSIONS_AT_MOST = 64


def layout(head: bytes, size: int) -> Layout:
    """See ``jfs.formats.layout_of``."""
    if size < _LENGTH + 2:
        raise MalformedFile(f"{size} bytes are too short for safetensors")
    if len(head) < _LENGTH:
        raise MoreNeeded(_LENGTH)
    length = int.from_bytes(head[:_LENGTH], "little")
    start = _LENGTH + length
    if length > HEADER_AT_MOST or start > size:
        raise MalformedFile(f"a header of {length} bytes in a file of {size}")
    if len(head) < start:
        raise MoreNeeded(start)
    try:
        text = str(head[_LENGTH:start], "utf-8")
    except UnicodeDecodeError as error:
        raise MalformedFile(f"its header is no UTF-8: {error.reason}") from None
    return Layout.of(start, size, _tensors(text, start, size - start))


def shards(text: bytes) -> dict[str, str]:
    """Read ``model.safetensors.index.json``: which file holds a tensor, by the tensor's name.

    Files are named beside the index. Raises MalformedFile.
    """
    if len(text) > HEADER_AT_MOST:
        raise MalformedFile(f"an index of {len(text)} bytes")
    try:
        decoded = str(text, "utf-8")
    except UnicodeDecodeError as error:
        raise MalformedFile(f"it is no UTF-8: {error.reason}") from None
    found: dict[str, str] = {}
    for name, start, _ in members(decoded, 0, "the index", _DIMENSIONS_AT_MOST):
        if name != "weight_map":
            continue
        for tensor, place, _ in members(decoded, start, name, PARTS_AT_MOST):
            file, _ = string(decoded, place, f"the file of {tensor!r:.80}")
            if not file or file in (".", "..") or "/" in file or "\0" in file:
                raise MalformedFile(f"{file!r:.80} is no name of a file beside the index")
            if tensor in found:
                raise MalformedFile(f"there are two tensors {tensor!r:.80}")
            found[tensor] = file
    return found


def _tensors(text: str, base: int, room: int) -> Iterator[Part]:
    for name, start, stop in members(text, 0, "the header", PARTS_AT_MOST):
        if name == "__metadata__":
            continue
        value = small(text, start, stop, f"{name!r:.80}")
        if not isinstance(value, dict):
            raise MalformedFile(f"{name!r:.80} is no object of JSON")
        offsets, shape = _sizes(value, "data_offsets", name), _sizes(value, "shape", name)
        if len(offsets) != 2 or not offsets[0] <= offsets[1] <= room:
            raise MalformedFile(f"{name!r:.80} lies at {offsets!s:.80} of {room} bytes")
        first, last = offsets
        rows = shape[0] if shape and shape[0] and not (last - first) % shape[0] else 1
        yield Part(name, Extent(base + first, base + last), rows)


def _sizes(tensor: dict[str, object], key: str, name: str) -> list[int]:
    value = tensor.get(key)
    if not isinstance(value, list) or len(value) > _DIMENSIONS_AT_MOST:
        raise MalformedFile(f"{name!r:.80} has no {key}")
    if not all(type(each) is int and each >= 0 for each in value):  # True is an int for Python
        raise MalformedFile(f"{name!r:.80}: {key} are no sizes")
    return value
