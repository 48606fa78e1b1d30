"""After the machine was suspended: what was known before it is as old as it is.

The clock of the event loop, by which answers get old, stood still meanwhile, and so did the
kernel's: what was known for a second would be believed for a minute, after a night. Trio thread
only.
"""

import logging
from collections.abc import Callable

import trio

from jfs import clocks
from jfs.vfs.freshness import ageing
from jfs.vfs.kernel import KernelView, Remembered
from jfs.vfs.namespace.tree import Tree

log = logging.getLogger(__name__)

_LOOK_EVERY_S = 1.0
_LEAST_S = 1.0  # the two clocks are read one after the other


class Sleeps:
    """See the module.

    Args:
        woken: told after the machine was suspended.
    """

    def __init__(self, tree: Tree, kernel: KernelView, woken: Callable[[], None]) -> None:
        self._tree = tree
        self._kernel = kernel
        self._woken = woken

    async def watch(
        self,
        suspended_s: Callable[[], float] = clocks.suspended_s,
        look_every_s: float = _LOOK_EVERY_S,
    ) -> None:
        """Look now and then; never ends."""
        before = suspended_s()
        with ageing() as age:
            while True:
                await trio.sleep(look_every_s)
                now = suspended_s()
                if now - before < _LEAST_S:
                    continue
                log.info("the machine was suspended for %.0f s", now - before)
                age(now - before)
                before = now
                self._woken()
                top = self._tree.inodes.root
                async for entries, inodes in self._tree.remembered_below(top):
                    await self._kernel.drop_surely(Remembered(entries, inodes))
