"""Parts of a file: extents with names, in order, none over another."""

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from jfs.errors import MalformedFile
from jfs.extents import Extent, MiB

# The largest models (a trillion parameters, every expert a tensor of its own) have 100,000 tensors
# and 12 MiB of names, over all their files. A vocabulary in a GGUF header takes 10 MiB.
PARTS_AT_MOST = 131_072
HEADER_AT_MOST = 32 * MiB


class MoreNeeded(Exception):
    """The description of a file is longer than what there was of it.

    Attributes:
        upto: bytes from the start of the file to come again with: more than there were, at most
            the whole file, and at most a little more than ``HEADER_AT_MOST``.
    """

    def __init__(self, upto: int) -> None:
        super().__init__(f"{upto} bytes of the file are needed")
        self.upto = upto


class Part(NamedTuple):
    """One tensor.

    Attributes:
        rows: along the outermost dimension, each of them contiguous; 1 if that is not known.
    """

    name: str
    extent: Extent
    rows: int = 1

    def share(self, rank: int, ranks: int) -> Extent:
        """Return the rows that one of *ranks* processes reads, which share them out evenly.

        What has fewer rows than there are ranks, or a number of them that the ranks do not divide,
        every rank reads whole: a bias, a norm, a scalar.
        """
        if self.rows < ranks or self.rows % ranks:
            return self.extent
        size = self.extent.size // ranks
        start = self.extent.start + rank * size
        return Extent(start, start + size)


@dataclass(frozen=True, slots=True)
class Layout:
    """The parts of one file.

    Attributes:
        header: bytes from the start of the file that tell them.
        parts: not empty themselves, in order, none over another.
    """

    header: int
    parts: tuple[Part, ...]

    def at(self, position: int) -> int | None:
        """Return the number of the part that holds byte *position*."""
        # A tuple of one number sorts before every part whose extent starts there.
        number = bisect_right(self.parts, position, key=_start) - 1
        if number < 0 or position >= self.parts[number].extent.stop:
            return None
        return number

    @classmethod
    def of(cls, header: int, size: int, parts: Iterable[Part]) -> "Layout":
        """Put parts in order and look at them; those without bytes are left out.

        Raises:
            MalformedFile: parts lie over each other, over the header or outside the file, or two
                have the same name.
        """
        ordered = sorted((part for part in parts if part.extent), key=_extent)
        names = set()
        position = header
        for part in ordered:
            if part.extent.start < position:
                raise MalformedFile(f"{part.name!r:.80} lies over what is before it")
            position = part.extent.stop
            if part.name in names:
                raise MalformedFile(f"there are two tensors {part.name!r:.80}")
            names.add(part.name)
        if position > size:
            raise MalformedFile(f"a tensor ends at byte {position} of a file of {size}")
        return cls(header, tuple(ordered))


def _extent(part: Part) -> Extent:
    return part.extent


def _start(part: Part) -> int:
    return part.extent.start
