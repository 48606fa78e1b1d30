"""Tell the kernel what it believes no more. An OSError of pyfuse3: there was nothing to drop.

What tells it waits for locks that an answer of ours may have to release: it runs in a thread.
"""

import contextlib
import os
import struct
from collections.abc import Callable, Iterable, Sequence

import pyfuse3

from jfs import threads
from jfs.extents import Extent

# struct fuse_out_header, then fuse_notify_inval_inode_out (include/uapi/linux/fuse.h).
_NOTIFICATION = struct.Struct("=IiQQqq")
_INVALIDATE_INODE = 2


async def forget(places: Iterable[tuple[int, bytes]], inode: int | None = None) -> None:
    """Have the kernel believe nothing of names, nor of an inode's attributes and pages.

    Cancellation: it may go on believing some of it.
    """
    for parent, name in places:
        await threads.notifying(_unless_gone, pyfuse3.invalidate_entry, parent, name)
    if inode is not None:
        await threads.notifying(_unless_gone, pyfuse3.invalidate_inode, inode)


def forget_pages(connection: int, inode: int, extents: Sequence[Extent]) -> None:
    """Have the kernel ask again for a part of an inode. Blocking, in a thread: see ``forget``.

    pyfuse3 (3.5) has no such function: its own drops all of them.

    Args:
        connection: descriptor of ``/dev/fuse``.
    """
    size = _NOTIFICATION.size
    for start, stop in extents:
        with contextlib.suppress(OSError):  # it holds nothing of the inode, or the mount has gone
            words = size, _INVALIDATE_INODE, 0, inode, start, stop - start
            os.write(connection, _NOTIFICATION.pack(*words))


def _unless_gone(tell: Callable[..., None], *args: object) -> bool:
    try:
        tell(*args)
    except OSError:  # there was nothing to drop
        return False
    return True


class KernelNotifier:
    """``jfs.vfs.kernel.Notifier`` of the mounted session. An OSError: there was nothing to drop."""

    def drop_entry(self, parent: int, name: str) -> bool:
        return _unless_gone(pyfuse3.invalidate_entry, parent, name.encode("utf-8"))

    def drop_attributes(self, ino: int) -> bool:
        return _unless_gone(pyfuse3.invalidate_inode, ino, True)

    def drop_pages(self, ino: int) -> bool:
        return _unless_gone(pyfuse3.invalidate_inode, ino, False)
