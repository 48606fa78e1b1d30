"""Who made a READ, and why: the kernel, around a page that a program has touched?

The kernel reads 2 MiB around a page fault (measured, Linux 6.18: the MiB before the page, then the
MiB that begins with it), unless the program has said ``MADV_RANDOM``; 1000 faults at random places
of a file of 617 MB cost 544 MB. Nothing that is known when a file is opened tells that from a
stream, and the kernel's read-ahead is copied into an open file once: a smaller one costs every
stream a third. But a READ of read-ahead need not be answered. If it fails, nobody is told: the page
that is wanted is read again, by itself, once its turn comes; those around it stay empty until
somebody wants them, and are then read one by one, or dropped from here.

An answer that is short is none: the kernel takes it for the end of the file.

So that no program ever sees such a failure, a READ is known for what it is by three things:

- its thread waits for the lock of a page (``wchan``), or for the answer to a READ of a single page:
  so for no answer to this one, as it would with O_DIRECT, or for a page of a larger kind;
- it is in no system call: what it wants is one page, not what it has asked read(2) for; or only a
  few pages of the READ are of what it has asked pread(2) for;
- the open file is not O_DIRECT at this moment: such READs may be under way behind a thread's back.

Where any of them cannot be seen (another PID namespace, no right to look, a libfuse that is not
known) every READ is answered.

The same look says of read(2) and pread(2) how much they ask for, which the kernel does not pass on:
it asks for two MiB at a time, also at the end. Of 4.2 MB that is half as much again: so what lies
beyond the end is refused, too.
"""

import contextlib
import mmap
import os

import trio

from jfs import notifier, threads
from jfs.answers import Answers
from jfs.errors import NoThread
from jfs.extents import Extent, KiB
from jfs.mount import requests
from jfs.mount.waiters import Wait, waiting
from jfs.mount.withdrawals import Withdrawals

# A thread goes to sleep as soon as it has sent its READs, unless it has to wait for a core.
_LOOKS, _BETWEEN_S = 20, 0.0005
_PATIENCE_S = 1.0  # the thread may be in execve(2)
# It takes longer to ask for so much page by page than to receive so much too much.
_FEW, _MANY = 64 * KiB, 256 * KiB


class Faults:
    """``jfs.vfs.reading.scattered.Asker`` of a mount. Trio thread only."""

    def __init__(self, answers: Answers, withdrawals: Withdrawals, nursery: trio.Nursery) -> None:
        self._answers = answers
        self._withdrawals = withdrawals
        self._nursery = nursery

    async def wanted(self, extent: Extent, told: int) -> int | None:
        answer = self._answers.here()
        if answer is None or not answer.request or answer.file[1] & os.O_DIRECT:
            return 0
        thread = self._withdrawals.thread_of(answer.request)
        if not thread:  # of another PID namespace
            return 0
        with trio.move_on_after(_PATIENCE_S):
            return await self._wanted(extent, told, thread)
        return 0

    async def _wanted(self, extent: Extent, told: int, thread: int) -> int | None:
        for _ in range(_LOOKS):
            waits = await threads.at_processes(waiting, thread)
            match waits.what:
                case Wait.LOCK:
                    return None
                case Wait.ANSWER:
                    if self._waits_for_one_page(thread):
                        return None
                case Wait.CALL:
                    start = waits.start
                    if start is not None:
                        stop = start + waits.size
                    else:  # where read(2) begins is not to be seen
                        stop = told or extent.start + mmap.PAGESIZE + waits.size
                    if waits.at_lock and _is_hardly_wanted(extent, stop):
                        return None
                    return stop if start is None or start < extent.stop else 0
                case Wait.UNKNOWN:
                    return 0
            await trio.sleep(_BETWEEN_S)
        return 0

    def _waits_for_one_page(self, thread: int) -> bool:
        return any(
            other.call == "read"
            and other.arguments[2] <= mmap.PAGESIZE
            and self._withdrawals.thread_of(other.request) == thread
            for other in self._answers.busy()
        )

    def ask_again(self, inode: int, extents: list[Extent]) -> None:
        connection = requests.connection()
        if connection is not None:
            self._nursery.start_soon(_drop, connection, inode, extents)


async def _drop(connection: int, inode: int, extents: list[Extent]) -> None:
    with contextlib.suppress(NoThread):  # what is wanted of them is read page by page
        await threads.dropping_pages(notifier.forget_pages, connection, inode, extents)


def _is_hardly_wanted(extent: Extent, stop: int) -> bool:
    """Whether a READ is of a few pages before *stop* at most, and of many behind it."""
    return stop - extent.start <= _FEW and extent.stop - stop >= _MANY
