"""Files that tell of others beside them: an index of its shards, ONNX of its external data."""

import posixpath
from dataclasses import dataclass, field

from jfs.formats import onnx, safetensors
from jfs.formats.layout import HEADER_AT_MOST, Part

_INDEX = ".index.json"


@dataclass(frozen=True, slots=True)
class Told:
    """What one file tells. Others are named by their paths below its folder.

    Attributes:
        shards: names of the tensors in each of them; where they lie in it is told there, if at all.
        parts: where the tensors lie in each of them, as far as that is known; not looked at.
        within: names of tensors in the file itself.
    """

    shards: dict[str, list[str]] = field(default_factory=dict)
    parts: dict[str, list[Part]] = field(default_factory=dict)
    within: tuple[str, ...] = ()


def tells_of_others(name: str, size: int) -> bool:
    """Whether a file of this name may tell of others. One that is larger has its own tensors."""
    return name.lower().endswith((_INDEX, ".onnx")) and 0 < size <= HEADER_AT_MOST


def told_by(name: str, content: bytes) -> Told:
    """Return what a file tells of others: of all of its *content*. Raises MalformedFile."""
    if name.lower().endswith(_INDEX):
        shards: dict[str, list[str]] = {}
        for tensor, file in safetensors.shards(content).items():
            shards.setdefault(file, []).append(tensor)
        return Told(shards=shards)
    found = onnx.tensors(content)
    parts: dict[str, list[Part]] = {}
    for place, those in found.elsewhere.items():
        parts.setdefault(posixpath.normpath(place), []).extend(those)
    return Told(parts=parts, within=found.within)
