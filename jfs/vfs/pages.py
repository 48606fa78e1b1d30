"""The kernel's page cache as we know it: whose content it holds, and pushing bytes into it.

Model loaders fault pages in one by one, each fault a round trip; a pushed page costs its reader
nothing. Trio thread only, except the store itself, which runs in threads of its own.

Rules learnt by deadlock and by wrong bytes:

- A store into a page that a READ has locked waits until that READ is answered. So the threads
  that push are never the ones that fill segments, and the event loop never pushes.
- The page cache belongs to the inode, not to the handle or the version. Before an open of new
  content is answered, pushes of the old must have ended: the kernel drops the old pages when it
  gets our answer, and a push that came later would bring them back.
"""

import logging
from collections.abc import Callable

import trio

from jfs.extents import MiB
from jfs.metrics import Metrics
from jfs.model import ContentKey

log = logging.getLogger(__name__)

# store(inode, offset, data): blocks while the kernel copies. Raises OSError.
PageStore = Callable[[int, int, memoryview], None]

# 2 threads push 3.3 to 4.1 GB/s, 1 only 1.4 (they wait for page allocation and for each other).
_THREADS = 2
_PIECE = 1 * MiB


class _Inode:
    __slots__ = ("content", "idle", "pushes")

    def __init__(self, content: ContentKey) -> None:
        self.content = content
        self.pushes = 0
        self.idle = trio.lowlevel.ParkingLot()


class KernelPages:
    """See the module.

    Args:
        store: puts bytes into the kernel's page cache; None: nothing is ever pushed.
    """

    def __init__(self, store: PageStore | None, metrics: Metrics) -> None:
        self._store = store
        self._metrics = metrics
        self._inodes: dict[int, _Inode] = {}
        self._threads = trio.CapacityLimiter(_THREADS)

    @property
    def pushing(self) -> bool:
        """Whether pushes do anything."""
        return self._store is not None

    async def admit(self, ino: int, content: ContentKey) -> bool:
        """Note that *ino* is about to be opened on *content*.

        Returns:
            True if the pages that the kernel holds are of this content and may be kept. If False,
            no push of other content is under way, and none will begin.
        """
        inode = self._inodes.get(ino)
        if inode is None:
            self._inodes[ino] = _Inode(content)
            return False
        if inode.content == content:
            return True
        inode.content = content
        while inode.pushes:
            await inode.idle.park()
        return False

    def forget(self, ino: int) -> None:
        """The kernel dropped the inode, and with it its pages."""
        self._inodes.pop(ino, None)

    async def push(self, ino: int, content: ContentKey, offset: int, data: memoryview) -> None:
        """Put *data* at *offset*, unless the inode has other content by now. Never raises.

        Cancellation: a piece that is being stored is finished first.
        """
        inode = self._inodes.get(ino)
        if inode is None or self._store is None:
            return
        inode.pushes += 1
        try:
            for start in range(0, len(data), _PIECE):
                if inode.content != content:
                    return
                piece = data[start : start + _PIECE]
                await trio.to_thread.run_sync(
                    self._store, ino, offset + start, piece, limiter=self._threads
                )
                self._metrics.count("pushed_bytes", len(piece))
        except OSError as error:
            # ENOENT: the kernel has forgotten the inode meanwhile. Anything else (ENOSYS, ENOMEM)
            # costs speed only: the bytes are then asked for.
            log.debug("inode %d: push failed: %s", ino, error)
        finally:
            inode.pushes -= 1
            if not inode.pushes:
                inode.idle.unpark_all()
