"""Checksums of blocks, many in one call: without the interpreter's lock, and its work for each.

The hash is that of libxxhash (0.8 or later, where XXH3 does not change any more), which a Debian
always has; what it returns is held against the module ``xxhash`` once, before it is used.
"""

import ctypes
import functools
from array import array

import xxhash

from jfs import native

_LIBRARY = "libxxhash.so.0"
# With the widest registers of this CPU, where it was built to choose; the other takes what every
# CPU of its kind has: 10 GB/s for 30.
_NAMES = ("XXH3_64bits_withSeed_dispatch", "XXH3_64bits_withSeed")
_TRIED = (0, 1, 8, 16, 100, 240, 241, 1000, 4096, 32768)


def hashing() -> int | None:
    """Return the address of the hash for the native part; None: there is none, or no such part."""
    return _hash() if native.library() is not None else None


@functools.cache
def _hash() -> int | None:
    try:
        library = ctypes.CDLL(_LIBRARY)
    except OSError:
        return None
    for name in _NAMES:
        call = getattr(library, name, None)
        if call is None:
            continue
        call.restype = ctypes.c_uint64
        call.argtypes = (ctypes.c_char_p, ctypes.c_size_t, ctypes.c_uint64)
        data = bytes(each * 7 % 251 for each in range(_TRIED[-1]))
        if all(
            call(data[:size], size, size << 20) == xxhash.xxh3_64_intdigest(data[:size], size << 20)
            for size in _TRIED
        ):
            return ctypes.cast(call, ctypes.c_void_p).value
    return None


def sums(data: memoryview, block_size: int, first: int) -> "array[int] | None":
    """Return the sum of every block of *data*, never 0; None: it is to be done without.

    Args:
        first: the number of the first block, which is the seed of its sum.
    """
    library = native.library()
    address = hashing()
    if library is None or address is None or data.readonly or not data:
        return None
    count = -(-len(data) // block_size)
    words = array("Q", bytes(8 * count))
    # Both are held, and cannot move, while these objects are.
    memory = (ctypes.c_uint8 * len(data)).from_buffer(data)
    room = (ctypes.c_uint64 * count).from_buffer(words)
    call = library.jfs_sums
    call.restype = ctypes.c_int64
    call.argtypes = _SUMS
    done = call(address, memory, len(data), block_size, first, room, count)
    assert done == count
    return words


_SUMS = (
    ctypes.c_void_p,
    ctypes.c_void_p,
    ctypes.c_uint64,
    ctypes.c_uint64,
    ctypes.c_uint64,
    ctypes.c_void_p,
    ctypes.c_uint64,
)
