"""Small writes to a file that is staged already: done while the kernel's request waits.

Without a task, without a hop to one of trio's threads (``writing.hand``). Everything else is the
handler's: the first write, which stages the file; one beside an upload; what takes pages or setuid
bits from the kernel; a disk that makes those who write wait. Trio thread only.
"""

from collections.abc import Callable

import trio

from jfs.errors import MountEnding
from jfs.extents import KiB
from jfs.vfs.attributes.stat import StatView
from jfs.vfs.files.openfile import OpenFile
from jfs.vfs.files.table import OpenFiles
from jfs.vfs.kernel import KernelView
from jfs.vfs.writing.hand import Task
from jfs.vfs.writing.records import State
from jfs.vfs.writing.staging import StagingFile

# Of larger ones the hop is the smaller part, and the event loop would wait for the copying.
LARGEST = 256 * KiB

Answer = Callable[[Exception | None], object]


class SmallWrites:
    """See the module.

    Args:
        nursery: what takes longer is waited for in it.
    """

    def __init__(
        self,
        files: OpenFiles,
        stat: StatView,
        kernel: KernelView,
        nursery: trio.Nursery,
    ) -> None:
        self._files = files
        self._stat = stat
        self._kernel = kernel
        self._nursery = nursery

    def passes(self, handle: int, flags: int, mode: int, pid: int) -> bool:
        """Whether the kernel writes itself through a handle of CREATE: ``PassedWrites.made``."""
        return self._files.passed.made(handle, flags, mode, pid)

    def write(self, handle: int, offset: int, data: bytes, answer: Answer) -> bool:
        """Write all of *data*, at most ``LARGEST``; False: that takes more than is done here.

        Args:
            answer: called once, now or later, with what went wrong.
        """
        opened, writer = self._files.handle(handle), self._files.writer
        if opened is None or writer is None or not opened.writes:
            return False
        file, staged = opened.file, opened.file.staged
        if staged is None or not self._may(file, staged, beside_pages=opened.direct):
            return False
        try:
            file.lock.acquire_nowait()
        except trio.WouldBlock:
            return False
        self._files.passed.wrote(handle, len(data))
        try:
            writer.note_change(file)
            under_way = staged.write_at_once(offset, data)
        except Exception as error:
            self._over(file, error, answer)
        else:
            if under_way is None:
                self._over(file, None, answer)
            else:
                self._nursery.start_soon(self._wait, file, staged, under_way, len(data), answer)
        return True

    def _may(self, file: OpenFile, staged: StagingFile, *, beside_pages: bool) -> bool:
        entry = staged.entry
        is_told = staged.goes_on or (entry is not None and entry.record.state is State.WRITING)
        return (
            staged.is_free
            and not (file.replaced or file.is_pending or file.broken)
            # Else the journal is to hear of it first.
            and (entry is None or file.detached or is_told)
            and not (beside_pages and self._kernel.may_hold_pages(file.inode.ino))
            and not self._stat.has_privileges(file.inode)
        )

    async def _wait(
        self, file: OpenFile, staged: StagingFile, under_way: Task, size: int, answer: Answer
    ) -> None:
        """Wait for a disk as long as any write does, with the lock of the file."""
        outcome: Exception | None = MountEnding()  # if this is cancelled
        try:
            await staged.end_of(under_way, size)
            outcome = None
        except Exception as error:
            outcome = error
        finally:
            self._over(file, outcome, answer)

    def _over(self, file: OpenFile, error: Exception | None, answer: Answer) -> None:
        if isinstance(error, OSError):
            file.broken = error
        file.written += 1
        file.lock.release()
        answer(error)
