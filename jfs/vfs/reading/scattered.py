"""Page faults at random places: what the kernel asks for around them is refused.

``jfs.mount.faults`` says why that can be done. Here is when: where a run begins that is not the
first, or is that of a header (``ReadaheadPlanner.is_astray``). So whoever reads in order is never
refused anything; tensors and rows at different places are, and cost what is read of them.

Pages that were refused stay in the kernel, empty, and whoever comes to them asks for one after
another (60 µs each). Once a run among them is known to go on, those before it are dropped, and it
asks for a MiB at a time again. And once a third of all that was refused of a file was read one by
one after all (many small tensors, in any order), the rest is dropped and nothing more is refused of
it: 300 tensors of 300 KB, one beside the other, took four times as long else.

Trio thread only.
"""

from collections import OrderedDict
from dataclasses import dataclass, field
from mmap import PAGESIZE
from typing import Protocol

from jfs.errors import Unasked
from jfs.extents import Extent, ExtentSet, MiB, PiB

_INODES_KEPT = 1024
_DENSE = 3
_DENSE_AT_LEAST = 1 * MiB
_EVERYTHING = 1 * PiB


class Asker(Protocol):
    """Who made the READ that the current task answers."""

    async def wanted(self, extent: Extent, told: int) -> int | None:
        """Return up to where the call reads that it is for; 0: nobody knows.

        It goes on to *told*, if that was returned for a READ before this one.

        None: it is for a page fault, of one page, or lies beyond the end of the call; nobody sees
        an error that it is answered.
        """

    def ask_again(self, inode: int, extents: list[Extent]) -> None:
        """Have the kernel drop what it holds of an inode there. Waits for nothing."""


@dataclass(slots=True)
class _Refused:
    """What was refused of one inode.

    Attributes:
        empty: pages that the kernel may hold so.
        size: of all that was ever refused; *alone*: of pages that were read one by one since.
        is_dense: so much of it was wanted that nothing is refused any more.
    """

    empty: ExtentSet = field(default_factory=ExtentSet)
    size: int = 0
    alone: int = 0
    is_dense: bool = False


class Scattered:
    """What was refused to the kernel, of all files of a mount."""

    def __init__(self) -> None:
        self._asker: Asker | None = None
        self._of: OrderedDict[int, _Refused] = OrderedDict()

    def tell(self, asker: Asker) -> None:
        """Refuse from now on; before that nothing is."""
        self._asker = asker

    @property
    def is_any(self) -> bool:
        """Whether ``asked`` must be called: something was refused."""
        return bool(self._of)

    async def look(self, inode: int, extent: Extent, told: int, *, is_spare: bool) -> int:
        """Look at a READ; see ``ReadaheadPlanner.is_to_be_looked_at``.

        Args:
            told: what was returned for a READ of its run; 0: nothing.
            is_spare: it is refused if nobody waits for all of it.
        Returns:
            Up to where it will be read, 0: nobody knows.
        Raises:
            Unasked: it is not to be answered.
        """
        asker = self._asker
        # Who reads more by one call is asked for a MiB first.
        if asker is None or extent.size < (PAGESIZE + 1 if is_spare else MiB):
            return 0
        wanted = await asker.wanted(extent, told)
        if wanted is not None:
            return wanted
        refused = self._of.get(inode)
        if not is_spare or (refused is not None and refused.is_dense):
            return 0
        refused = self._of.setdefault(inode, _Refused())
        refused.empty.add(extent)
        refused.size += extent.size
        self._of.move_to_end(inode)
        if len(self._of) > _INODES_KEPT:
            oldest, old = self._of.popitem(last=False)
            asker.ask_again(oldest, list(old.empty))
        raise Unasked("read ahead that nobody waits for")

    def asked(self, inode: int, extent: Extent, reach: int) -> None:
        """Note a READ that is answered, and whose run will go on to *reach*."""
        asker, refused = self._asker, self._of.get(inode)
        if asker is None or refused is None or refused.is_dense:
            return
        if extent.size <= PAGESIZE and refused.empty.contains(extent):
            refused.alone += extent.size
            if refused.alone > max(_DENSE_AT_LEAST, refused.size // _DENSE):
                refused.is_dense = True
                reach = _EVERYTHING
                extent = Extent(0, 0)
        ahead = Extent(extent.stop, max(extent.stop, reach))
        again = ExtentSet([ahead])
        for gap in refused.empty.missing(ahead):
            again.remove(gap)
        if again:
            refused.empty.remove(ahead)
            asker.ask_again(inode, list(again))
