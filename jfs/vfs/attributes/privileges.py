"""Setuid and setgid bits fall when another user than root writes to a file.

Not the kernel's work: it leaves them to us (FUSE_HANDLE_KILLPRIV), and does not say who writes,
only who has opened. Trio thread only.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from jfs.vfs.attributes.stat import StatView
from jfs.vfs.kernel import KernelView, Remembered
from jfs.vfs.namespace.inodes import Inode


class Privileges:
    """See the module."""

    def __init__(self, stat: StatView, kernel: KernelView) -> None:
        self._stat = stat
        self._kernel = kernel
        self._of_users: set[int] = set()  # handles that others than root have opened for writing

    def opened(self, handle: int, flags: int, uid: int) -> None:
        """Note whose process has opened a handle, with which flags of open(2)."""
        if uid and flags & os.O_ACCMODE != os.O_RDONLY:
            self._of_users.add(handle)

    @contextmanager
    def releasing(self, handle: int) -> Iterator[None]:
        """Forget a handle, in the end."""
        try:
            yield
        finally:
            self._of_users.discard(handle)

    async def written(self, handle: int, inode: Inode) -> None:
        """Note that something was written through a handle."""
        if handle in self._of_users:
            await self.drop(inode)

    def written_unseen(self, handle: int, inode: Inode) -> None:
        """As ``written``, of what the kernel wrote itself; no checkpoint."""
        if handle in self._of_users and self._stat.drop_privileges(inode):
            self._kernel.drop_soon(Remembered([], [inode.ino]))

    async def drop(self, inode: Inode) -> None:
        """Take the bits from a file that a user has changed, and have the kernel look again."""
        if self._stat.drop_privileges(inode):
            await self._kernel.drop(Remembered([], [inode.ino]))  # it does not expect that
