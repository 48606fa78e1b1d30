"""Page faults at random places: what the kernel asks for around them is refused.

``jfs.mount.faults`` says why that can be done. Here is when: where a run begins, and the run before
it was short (``ReadaheadPlanner.is_astray``). So whoever reads in order is never refused anything;
two tensors or rows at different places are, and cost what is read of them.

Pages that were refused stay in the kernel, empty, and whoever comes to them asks for one after
another (60 µs each). Once a run among them is known to go on, those before it are dropped, and it
asks for a MiB at a time again. Trio thread only.
"""

from collections import OrderedDict
from mmap import PAGESIZE
from typing import Protocol

from jfs.errors import Unasked
from jfs.extents import Extent, ExtentSet

_INODES_KEPT = 1024


class Asker(Protocol):
    """Who made the READ that the current task answers."""

    @property
    def inode(self) -> int:
        """Which inode it is of; 0: it is not known."""

    async def is_fault(self) -> bool:
        """Whether it is read-ahead around a page fault; an error is then seen by nobody."""

    def ask_again(self, inode: int, extents: list[Extent]) -> None:
        """Have the kernel drop what it holds of an inode there. Waits for nothing."""


class Scattered:
    """What was refused to the kernel, of all files of a mount."""

    def __init__(self) -> None:
        self._asker: Asker | None = None
        self._empty: OrderedDict[int, ExtentSet] = OrderedDict()

    def tell(self, asker: Asker) -> None:
        """Refuse from now on; before that nothing is."""
        self._asker = asker

    @property
    def is_any(self) -> bool:
        """Whether anything is left that was refused."""
        return bool(self._empty)

    async def look(self, extent: Extent) -> None:
        """Look at a READ that begins a run, where runs are short.

        Raises:
            Unasked: it is not to be answered.
        """
        asker = self._asker
        if asker is None or extent.size <= PAGESIZE or not await asker.is_fault():
            return
        inode = asker.inode
        empty = self._empty.setdefault(inode, ExtentSet())
        empty.add(extent)
        self._empty.move_to_end(inode)
        if len(self._empty) > _INODES_KEPT:
            asker.ask_again(*_listed(self._empty.popitem(last=False)))
        raise Unasked("read ahead around a page fault")

    def goes_on(self, extent: Extent, reach: int) -> None:
        """Note a READ whose run will go on to *reach*."""
        if self._asker is None:
            return
        inode = self._asker.inode
        empty = self._empty.get(inode)
        if empty is None or not extent.stop < reach:
            return
        ahead = Extent(extent.stop, reach)
        again = ExtentSet([ahead])
        for gap in empty.missing(ahead):
            again.remove(gap)
        if again:
            empty.remove(ahead)
            if not empty:
                del self._empty[inode]
            self._asker.ask_again(inode, list(again))


def _listed(of: tuple[int, ExtentSet]) -> tuple[int, list[Extent]]:
    return of[0], list(of[1])
