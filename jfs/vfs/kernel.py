"""What the kernel was told and may hold: the only owner, and the only code that invalidates.

The kernel keeps names, attributes and pages of what it was answered, and asks again when their time
is up. Four of them must not wait for that: pages that a write has passed by, names and attributes
after a refresh, a name whose upload failed, and a mode whose setuid bit a write has taken. Size and
content of an inode never change under the kernel otherwise: other content at a name is another
inode (``namespace.inodes``).

What a notification waits for inside the kernel (Linux 5.10 to 6.18, ``fs/fuse``):

=====================  ==========================================================================
notification           waits for
=====================  ==========================================================================
entry of a folder      the folder's ``i_rwsem``. A LOOKUP, READDIR, CREATE, MKNOD, MKDIR, SYMLINK,
                       UNLINK, RMDIR or RENAME in flight there holds it until we have answered.
attributes             nothing but an inode that is being evicted, whose pages a READ may hold.
pages of an inode      every page lock and every writeback of it: a READ in flight holds the locks
                       of its pages until we have answered, a WRITE through the page cache those
                       of the pages that it fills only in part, a WRITE of a mapping its writeback.
=====================  ==========================================================================

A WRITE that does not go through the page cache and a SETATTR hold the ``i_rwsem`` of the file, no
page lock; GETXATTR holds nothing. Hence the rules:

- Notifications run in threads of their own limiter (``threads.notifying``), never on the event
  loop, never under a lock of ours, and are abandoned when the mount ends.
- An answer waits for a notification only if that can do without the answer: a refresh, which comes
  as GETXATTR, and a WRITE beside the page cache, for its pages. READs wait for no WRITE. A WRITE
  or OPEN that takes the setuid bit waits for attributes alone: its inode is in use, not evicted.
- Even those WRITEs wait only for so long, and only so many at a time: each occupies a task, and the
  READs that the notification waits for need tasks to be answered in.
"""

import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import trio

from jfs import threads
from jfs.errors import NoThread
from jfs.model import ContentKey

log = logging.getLogger(__name__)

# Each of them keeps a task of the mount, and the MiB that it writes.
_WAITING_WRITES = 64
_PATIENCE_S = 5.0
_INODES_KEPT = 65536  # that were opened; without its record an inode's pages are dropped


class Notifier(Protocol):
    """How the kernel is told. Blocking, in a thread, perhaps for long; see the module.

    Each returns whether the kernel held anything of the kind, and raises nothing.
    """

    def drop_entry(self, parent: int, name: str) -> bool:
        """Make it ask for a name again, there or missing."""

    def drop_attributes(self, ino: int) -> bool:
        """Make it ask for the attributes of an inode again."""

    def drop_pages(self, ino: int) -> bool:
        """Make it read an inode again, and ask for its attributes."""


class BackingFiles(Protocol):
    """Where files are registered that the kernel reads itself. Any thread; raises nothing."""

    is_on: bool
    """Whether the kernel takes any."""

    def open(self, file: int) -> int | None:
        """Register an open file; None: the kernel does not take it. Never 0."""

    def open_to_write(self, file: int) -> int | None:
        """As ``open``, a file that the kernel may write to: on a local disk. Does not block."""

    def close(self, number: int) -> None:
        """Take a registration back; handles that have it go on."""


@dataclass(frozen=True, slots=True)
class Remembered:
    """What the kernel may hold of names.

    Attributes:
        entries: number of a folder and a name in it, there or missing.
        inodes: numbers whose attributes are held.
    """

    entries: Sequence[tuple[int, str]]
    inodes: Sequence[int]


class _Pages:
    """Pages that the kernel may hold of one inode.

    Attributes:
        content: whose bytes they are, and how often that content had been rejected by then.
        filled: a READ has been answered since they were last dropped.
    """

    __slots__ = ("content", "filled")

    def __init__(self, content: tuple[ContentKey, int]) -> None:
        self.content = content
        self.filled = False


class _Drop:
    """Invalidation of one inode's pages that is under way.

    Attributes:
        next: set when one has ended that begins later than now; None: nobody wants another.
    """

    __slots__ = ("next",)

    def __init__(self) -> None:
        self.next: trio.Event | None = None


class KernelView:
    """See the module. Trio thread only.

    Args:
        nursery: notifications run in it that nobody waits for.
        notifier: None: there is no kernel, and nothing to tell.
        backings: what it reads itself (``files.passing``); None: nothing.
    """

    def __init__(
        self,
        nursery: trio.Nursery,
        notifier: Notifier | None,
        backings: BackingFiles | None = None,
    ) -> None:
        self.backings = backings
        self._nursery = nursery
        self._notifier = notifier
        # Nothing is pushed into pages (FUSE_NOTIFY_STORE), nor ahead of page faults. Measured on
        # Linux 6.18, by writev to the device without the interpreter's lock, every page of a
        # mapping touched in order, CPU-seconds per GiB of daemon and reader: READs of 1 MiB
        # 0.35 + 0.15; all pushed before the first fault 0.35 + 0.06; pushed ahead of the reader
        # while it faults 0.45 + 0.11, as half of it is asked for nevertheless, since both work at
        # the same place. The kernel has the next 2 MiB asked for while these are read, and nine
        # READs of ten find their bytes here. It would pay where the kernel asks for single pages
        # (jfs.vfs.reading.scattered), for less than half a MiB: a row of an array, a tensor of
        # 300 KB, 150 us a page. Mind there: a store overwrites pages that are newer, makes a file
        # longer, and waits for the page locks of READs in flight. So it belongs in a thread that no
        # answer waits for, here, beside drop_pages; and an open that drops pages, or that may
        # write, has to wait for it.
        self._pages: OrderedDict[int, _Pages] = OrderedDict()
        self._drops: dict[int, _Drop] = {}
        self._waiting = 0

    # pages

    def opened(self, ino: int, content: ContentKey, rejections: int, *, shared: bool) -> bool:
        """Note an open; True: the pages that the kernel has are right for it (keep_cache).

        Args:
            rejections: how often the content turned out not to match its digest.
            shared: it was open already. Its pages follow what is written, and fit every handle.
        """
        known = self._pages.get(ino)
        now = content, rejections
        keep = known is not None and (shared or known.content == now)
        if known is None or not keep:
            if len(self._pages) >= _INODES_KEPT:
                self._pages.popitem(last=False)
            known = self._pages[ino] = _Pages(now)
        known.content = now
        self._pages.move_to_end(ino)
        return keep

    def closed(self, ino: int, content: ContentKey, rejections: int) -> None:
        """Note the last close: what was written went into the pages, which are its content now."""
        known = self._pages.get(ino)
        if known is not None:
            known.content = content, rejections

    def filled(self, ino: int) -> None:
        """Note that a READ through the page cache is answered now."""
        known = self._pages.get(ino)
        if known is not None:
            known.filled = True

    def forget(self, ino: int) -> None:
        """The kernel holds nothing of the inode any more."""
        self._pages.pop(ino, None)

    def may_hold_pages(self, ino: int) -> bool:
        """Whether the kernel may hold pages of an inode."""
        known = self._pages.get(ino)
        return self._notifier is not None and (known is None or known.filled)

    async def passed_by(self, ino: int) -> None:
        """Return when no page holds what was there before a write that passed them by.

        Bounded in time and number (see the module); the pages are dropped all the same, later.
        Cancellation: they are dropped all the same.
        """
        if not self.may_hold_pages(ino):
            return
        done = self._drop_pages(ino)
        if self._waiting < _WAITING_WRITES:
            self._waiting += 1
            try:
                with trio.move_on_after(_PATIENCE_S):
                    await done.wait()
            finally:
                self._waiting -= 1

    def drop_pages(self, ino: int) -> None:
        """Drop the pages of an inode, and wait for nothing."""
        if self._notifier is not None:
            self._drop_pages(ino)

    def _drop_pages(self, ino: int) -> trio.Event:
        """Return what is set once an invalidation that begins from now on has ended."""
        drop = self._drops.get(ino)
        if drop is None:
            drop = self._drops[ino] = _Drop()
            self._nursery.start_soon(self._run_drop, ino, drop)
        if drop.next is None:
            drop.next = trio.Event()
        return drop.next

    async def _run_drop(self, ino: int, drop: _Drop) -> None:
        """Drop the pages of one inode, again and again while somebody wants it."""
        assert self._notifier is not None
        while (done := drop.next) is not None:
            drop.next = None
            if (known := self._pages.get(ino)) is not None:
                known.filled = False  # what is filled from here on may come too late for this one
            try:
                await _until_told(partial(threads.notifying, self._notifier.drop_pages, ino))
            finally:
                done.set()
        del self._drops[ino]

    # names and attributes

    async def drop(self, remembered: Remembered) -> int:
        """Make the kernel ask for names and attributes again; return how many of them it held.

        Pages stay: an open file keeps its version, and the next open decides about them.
        Cancellation: the rest is left out.
        """
        notifier = self._notifier
        if notifier is None:
            return 0
        ended = False

        def tell() -> int:
            count = 0
            for parent, name in remembered.entries:
                if ended:
                    break
                count += notifier.drop_entry(parent, name)
            for ino in remembered.inodes:
                if ended:
                    break
                notifier.drop_attributes(ino)
            return count

        try:
            return await threads.notifying(tell)
        finally:
            ended = True

    async def drop_surely(self, remembered: Remembered) -> None:
        """As ``drop``; where no thread can be started it is tried until one can."""
        await _until_told(partial(self.drop, remembered))

    def drop_soon(self, remembered: Remembered) -> None:
        """As ``drop_surely``, without waiting."""
        if self._notifier is not None:
            self._nursery.start_soon(self.drop_surely, remembered)


async def _until_told(tell: Callable[[], Awaitable[object]]) -> None:
    """Tell the kernel what it must hear, also where no thread can be started for long."""
    while True:
        try:
            await tell()
        except NoThread as error:
            log.warning("the kernel believes what is not so any more: %s", error)
        else:
            return
