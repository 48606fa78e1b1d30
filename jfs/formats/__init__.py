"""What is where in files of models: safetensors, GGUF, ONNX with external data, sharded indices.

Pure: bytes of a file's head in, extents with names out; no I/O, any thread. Whatever the bytes are,
the end is a layout, ``MoreNeeded`` or ``MalformedFile``, in bounded time and memory: a file comes
from strangers, and what it says of itself is believed only so far as it fits the file.
"""

from jfs.formats import gguf, safetensors
from jfs.formats.companions import Told, tells_of_others, told_by
from jfs.formats.layout import Layout, MoreNeeded, Part
from jfs.formats.selection import Selection, matches

__all__ = [
    "FIRST_BYTES",
    "Layout",
    "MoreNeeded",
    "Part",
    "Selection",
    "Told",
    "describes_itself",
    "layout_of",
    "matches",
    "tells_of_others",
    "told_by",
]

# Enough of every format to say how much more is needed, and less than anybody reads of a file.
FIRST_BYTES = 24

_FORMATS = {"safetensors": safetensors.layout, "gguf": gguf.layout}


def describes_itself(name: str) -> bool:
    """Whether a file of this name begins with what tells its parts."""
    return name.rpartition(".")[2].lower() in _FORMATS


def layout_of(name: str, head: bytes, size: int) -> Layout:
    """Return the parts of a file that describes itself.

    Args:
        name: tells the format by how it ends.
        head: how the file begins, as much of it as there is.
        size: of the whole file, bytes.
    Raises:
        MoreNeeded: the description is longer than *head*; come again with more.
        MalformedFile: it is no file of that format, or larger than anybody's.
    """
    return _FORMATS[name.rpartition(".")[2].lower()](head, size)
