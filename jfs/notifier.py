"""Tell the kernel what it believes no more. An OSError of pyfuse3: there was nothing to drop.

What tells it waits for locks that an answer of ours may have to release: it runs in a thread.
"""

from collections.abc import Callable, Iterable

import pyfuse3

from jfs import threads


async def forget(places: Iterable[tuple[int, bytes]], inode: int | None = None) -> None:
    """Have the kernel believe nothing of names, nor of an inode's attributes and pages.

    Cancellation: it may go on believing some of it.
    """
    for parent, name in places:
        await threads.notifying(_unless_gone, pyfuse3.invalidate_entry, parent, name)
    if inode is not None:
        await threads.notifying(_unless_gone, pyfuse3.invalidate_inode, inode)


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
