"""Heads of files of models, made by hand: writers make no wrong ones."""


def varint(number: int) -> bytes:
    made = bytearray()
    while number > 0x7F:
        made.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*made, number])


def field(number: int, value: bytes | int) -> bytes:
    """Encode a field of protobuf."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def onnx_model(tensors: list[tuple[str, list[int], dict[str, str]]], kind: int = 1) -> bytes:
    """Make a model of tensors: name, shape, and where it lies; empty: within.

    *kind*: of their elements, floats of 4 bytes.
    """
    graph = b""
    for name, shape, place in tensors:
        tensor = field(1, b"".join(map(varint, shape))) + field(2, kind) + field(8, name.encode())
        for key, value in place.items():
            tensor += field(13, field(1, key.encode()) + field(2, value.encode()))
        tensor += field(14, 1) if place else field(9, bytes(8))
        graph += field(5, tensor)
    return field(1, 9) + field(2, b"by hand") + field(7, field(2, b"graph") + graph)


def safetensors_head(header: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header
