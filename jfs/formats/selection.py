"""What is wanted of a file of tensors: by name, and of each the share of one rank."""

import re
from dataclasses import dataclass
from fnmatch import translate
from functools import lru_cache

from jfs.extents import Extent, ExtentSet
from jfs.formats.layout import Layout


@dataclass(frozen=True, slots=True)
class Selection:
    """Some tensors of every file.

    Attributes:
        tensors: patterns of names, as the shell has them; ``*`` goes over dots too. A pattern also
            stands for what is below it: ``*.q_proj`` for ``….q_proj.weight``. Empty: all.
        rank, ranks: of every tensor the rows that one of so many processes reads; see
            ``Part.share``.
    """

    tensors: tuple[str, ...] = ()
    rank: int = 0
    ranks: int = 1

    def chooses(self, name: str) -> bool:
        """Whether a tensor of this name is one of them."""
        return not self.tensors or any(matches(pattern, name) for pattern in self.tensors)

    def of(self, layout: Layout) -> ExtentSet:
        """Return what is to be read of a file, its description included."""
        wanted = ExtentSet([Extent(0, layout.header)])
        for part in layout.parts:
            if self.chooses(part.name):
                wanted.add(part.share(self.rank, self.ranks))
        return wanted


def matches(pattern: str, name: str) -> bool:
    """Whether a pattern stands for a tensor; see ``Selection.tensors``."""
    return _compiled(pattern).match(name) is not None


@lru_cache
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(translate(pattern) + "|" + translate(f"{pattern}.*"))
