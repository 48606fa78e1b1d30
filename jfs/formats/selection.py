"""What is wanted of a file of tensors: by name, and of each the share of one rank."""

import re
from dataclasses import dataclass
from fnmatch import translate

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

    def of(self, layout: Layout) -> ExtentSet:
        """Return what is to be read of a file, its description included."""
        wanted = ExtentSet([Extent(0, layout.header)])
        names = [
            re.compile(translate(each) + "|" + translate(f"{each}.*")) for each in self.tensors
        ]
        for part in layout.parts:
            if not names or any(name.match(part.name) for name in names):
                wanted.add(part.share(self.rank, self.ranks))
        return wanted
