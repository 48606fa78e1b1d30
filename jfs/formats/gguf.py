"""GGUF: a header of keys and tensors, then the tensors, aligned. Versions 2, 3; both byte orders.

https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import struct

from jfs.errors import MalformedFile
from jfs.extents import Extent, MiB
from jfs.formats.layout import HEADER_AT_MOST, PARTS_AT_MOST, Layout, MoreNeeded, Part

_MAGIC = b"GGUF"
_KEYS_AT_MOST = 65_536
_STRINGS_AT_MOST = 2_000_000  # in arrays: a vocabulary of 256,000 words, and twice as many merges
_NAME_AT_MOST = 65_535
_DIMENSIONS_AT_MOST = 8  # 4 in practice
_ALIGNMENT = 32
_ALIGNMENT_AT_MOST = MiB
_KEY_OF_ALIGNMENT = b"general.alignment"

_U32, _STRING, _ARRAY = 4, 8, 9
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, _U32: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}

# Elements and bytes of a block, by the number of the tensor's type. Of a type that is not here a
# tensor ends where the next one begins.
_BYTES_OF_A_BLOCK = {
    1: {0: 4, 1: 2, 24: 1, 25: 2, 26: 4, 27: 8, 28: 8, 30: 2},
    32: {2: 18, 3: 20, 6: 22, 7: 24, 8: 34, 20: 18, 39: 17},
    256: {10: 84, 11: 110, 12: 144, 13: 176, 14: 210, 15: 292, 16: 66, 17: 74, 18: 98, 19: 50}
    | {21: 110, 22: 82, 23: 136, 29: 56, 34: 54, 35: 66},
}
BLOCKS = {
    kind: (elements, size)
    for elements, sizes in _BYTES_OF_A_BLOCK.items()
    for kind, size in sizes.items()
}


def layout(head: bytes, size: int) -> Layout:
    """See ``jfs.formats.layout_of``."""
    walk = _Walk(head, size)
    if walk.raw(4) != _MAGIC:
        raise MalformedFile("it does not begin with GGUF")
    version = walk.number("I")
    if version and not version & 0xFFFF:
        walk.order = ">"
        version = int.from_bytes(version.to_bytes(4, "little"), "big")
    if version not in (2, 3):
        raise MalformedFile(f"version {version} of GGUF, not 2 or 3")
    tensors, keys = walk.number("Q"), walk.number("Q")
    if tensors > PARTS_AT_MOST or keys > _KEYS_AT_MOST:
        raise MalformedFile(f"{tensors} tensors and {keys} keys")
    alignment = _ALIGNMENT
    for _ in range(keys):
        key, kind = walk.string(), walk.number("I")
        if key == _KEY_OF_ALIGNMENT and kind == _U32:
            alignment = walk.number("I")
        else:
            walk.skip(kind)
    if not 0 < alignment <= _ALIGNMENT_AT_MOST or alignment % 8:
        raise MalformedFile(f"an alignment of {alignment} bytes")
    found = [walk.tensor() for _ in range(tensors)]
    base = -(-walk.position // alignment) * alignment
    return Layout.of(walk.position, size, _parts(found, base, max(base, size)))


def _parts(found: "list[_Tensor]", base: int, size: int) -> list[Part]:
    found.sort(key=lambda tensor: tensor[1])
    parts = []
    for number, (name, offset, length, rows) in enumerate(found):
        start = base + offset
        if start > size:
            raise MalformedFile(f"{name!r:.80} begins at byte {start} of a file of {size}")
        after = base + found[number + 1][1] if number + 1 < len(found) else size
        stop = start + length if length is not None else min(after, size)
        parts.append(Part(name, Extent(start, stop), rows if length is not None else 1))
    return parts


_Tensor = tuple[str, int, int | None, int]  # name, offset, bytes if known, rows


class _Walk:
    """Reads forward through the head of a file. Raises MoreNeeded where that ends."""

    def __init__(self, head: bytes, size: int) -> None:
        self._head = head
        self._size = size
        self.position = 0
        self.order = "<"
        self._strings = _STRINGS_AT_MOST

    def _take(self, count: int) -> int:
        """Return where the next *count* bytes begin, which are there."""
        start = self.position
        stop = start + count
        if stop > self._size or stop > HEADER_AT_MOST:
            raise MalformedFile(f"its header goes on beyond byte {min(self._size, HEADER_AT_MOST)}")
        if stop > len(self._head):
            # Its length stands nowhere: as much again, so that it is walked a few times at most.
            wanted = max(stop, 2 * len(self._head), 64 * 1024)
            raise MoreNeeded(min(wanted, self._size, HEADER_AT_MOST))
        self.position = stop
        return start

    def raw(self, count: int) -> bytes:
        start = self._take(count)
        return self._head[start : start + count]

    def number(self, code: str) -> int:
        code = self.order + code
        value: int = struct.unpack_from(code, self._head, self._take(struct.calcsize(code)))[0]
        return value

    def string(self) -> bytes:
        length = self.number("Q")
        if length > _NAME_AT_MOST:
            raise MalformedFile(f"a name of {length} bytes")
        return self.raw(length)

    def skip(self, kind: int) -> None:
        """Step over one value of a key."""
        if kind == _ARRAY:
            kind, count = self.number("I"), self.number("Q")
            if kind == _STRING:
                self._strings -= count
                if self._strings < 0:
                    raise MalformedFile(f"an array of {count} strings")
                self._skip_strings(count)
            elif kind in _SIZES:
                self._take(count * _SIZES[kind])
            else:
                raise MalformedFile(f"an array of values of type {kind}")
        elif kind == _STRING:
            self._take(self.number("Q"))
        elif kind in _SIZES:
            self._take(_SIZES[kind])
        else:
            raise MalformedFile(f"a value of type {kind}")

    def _skip_strings(self, count: int) -> None:
        """Step over strings; a vocabulary has half a million: as fast as Python can."""
        length_at = struct.Struct(self.order + "Q").unpack_from
        head, position, last = self._head, self.position, len(self._head) - 8
        for _ in range(count):
            if position > last:
                break
            position += 8 + length_at(head, position)[0]
            self.position = position
            count -= 1
        self._take(0)
        if count:
            self._take(8 * count)

    def tensor(self) -> _Tensor:
        raw = self.string()
        try:
            name = str(raw, "utf-8")
        except UnicodeDecodeError:
            raise MalformedFile(f"the name {raw[:80]!r} is no UTF-8") from None
        dimensions = self.number("I")
        if dimensions > _DIMENSIONS_AT_MOST:
            raise MalformedFile(f"{name!r:.80} has {dimensions} dimensions")
        shape = [self.number("Q") for _ in range(dimensions)]
        kind, offset = self.number("I"), self.number("Q")
        elements = 1
        for each in shape:
            elements *= each
        length = None
        if kind in BLOCKS:
            block, size = BLOCKS[kind]
            length = -(-elements // block) * size
        # The first dimension is the innermost one. A row must be whole blocks to be cut off.
        rows = shape[-1] if shape and shape[-1] and not (length or 0) % shape[-1] else 1
        return name, offset, length, rows
