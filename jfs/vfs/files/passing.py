"""Files that the kernel reads itself: which open gets one, and how long.

The kernel is given a file of the cache that is complete and verified (``jfs.mount.passthrough``
does that), and asks nothing more of it: no READ comes here, no block is looked at again. What it
demands (Linux 6.9 to 6.18, ``fs/fuse/iomode.c``), or open(2) fails with EIO:

- All handles of an inode at a time are read so, from one registration, or none is. So the first
  open decides for all that come before the last has gone.
- What a handle writes would go to the file itself. So whoever opens for writing what is being read
  so gets an inode of its own (``Tree.separate``): the readers go on with what they opened, as when
  an artifact is replaced elsewhere. Such an inode, and what was opened for writing before, is never
  read so again: logs and databases are seen as they change by every process of the mount.
- O_DIRECT is refused by files of some file systems, and wants aligned memory of others: it gets an
  inode of its own, too.

The size that the kernel shows is ours, the bytes are the file's: both are the content's.

What becomes complete while handles live that come here is read so by who opens it once they have
gone. Another inode at once, as for writers, would be worse: programs that compare what they looked
at with what they opened refuse it (``cp``: "replaced while being copied", tried), and the page
cache would hold the content twice, the pages of the old inode and the file's, of a model perhaps
that fits once. Those pages are no slower to read. With ``--fetch whole`` it does not come to it.

A disk that hangs or fails is no longer read past by who reads so, as by whoever reads a local file.

Trio thread only, but for ``Backing.close_now``.
"""

import os
from collections import Counter

from jfs.errors import DiskHangs
from jfs.extents import MiB
from jfs.metrics import Metrics
from jfs.model import EntryInfo, FileInfo
from jfs.protocols import CachedContent, WholeFile
from jfs.vfs.kernel import BackingFiles
from jfs.vfs.namespace.inodes import Inode
from jfs.vfs.reading.cached import Cached
from jfs.vfs.reading.reader import ContentReader

# Of smaller ones a READ or two bring everything, which is less than registering costs; and it is
# small files that programs read and change in place at once.
LEAST = 1 * MiB


class Backing:
    """A file that is registered for the handles of one inode."""

    def __init__(self, number: int, whole: WholeFile, files: BackingFiles, cached: Cached) -> None:
        self.number = number
        self._whole = whole
        self._files = files
        self._cached = cached

    async def is_right(self) -> bool:
        """Whether the file is what it was when it was verified, and its disk answers."""
        try:
            return await self._cached.run(lambda _: self._whole.is_right())
        except DiskHangs:
            return False

    async def close(self) -> None:
        """Let go of it, once no handle is left."""
        await self._cached.end(self.close_now)

    def close_now(self) -> None:
        """As ``close``. Blocking; any thread."""
        self._files.close(self.number)
        self._whole.close()


class Passing:
    """See the module.

    Args:
        files: None: there is no kernel.
    """

    def __init__(self, files: BackingFiles | None, metrics: Metrics) -> None:
        self._files = files
        self._metrics = metrics
        self._others: Counter[Inode] = Counter()  # handles that come here

    def may(self, inode: Inode, info: EntryInfo, flags: int) -> bool:
        """Whether an open with *flags*, the first of an inode, may be read so."""
        return (
            self._files is not None
            and self._files.is_on
            and fits(flags)
            and isinstance(info, FileInfo)
            and info.size > LEAST
            and not (inode.written or inode.is_ours or self._others[inode])
        )

    async def backing(self, reader: ContentReader) -> Backing | None:
        """Register what a reader reads, if all of it is here and verified.

        The caller closes it.
        """
        files, cached = self._files, reader.cached
        if files is None or cached is None:
            return None
        try:
            return await cached.run(lambda content: _register(files, cached, content), late=_let_go)
        except DiskHangs:
            return None

    def opened(self, inode: Inode, backing: Backing | None) -> None:
        """Note a handle."""
        if backing is not None:
            self._metrics.count("passthrough_opens")
        else:
            self._others[inode] += 1

    def closed(self, inode: Inode, backing: Backing | None) -> None:
        """Note that a handle has gone."""
        if backing is None:
            self._others[inode] -= 1
            if not self._others[inode]:
                del self._others[inode]


def fits(flags: int) -> bool:
    """Whether the kernel may read itself for an open with *flags*."""
    return not flags & (os.O_ACCMODE | os.O_TRUNC | os.O_DIRECT)


def _register(files: BackingFiles, cached: Cached, content: CachedContent) -> Backing | None:
    """Blocking; a worker thread."""
    whole = content.whole()
    if whole is None:
        return None
    number = files.open(whole.file)
    if number is None:
        whole.close()
        return None
    return Backing(number, whole, files, cached)


def _let_go(backing: Backing | None) -> None:
    if backing is not None:
        backing.close_now()
