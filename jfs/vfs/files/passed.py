"""Files that the kernel writes itself: which are, and how long.

No request of FUSE is as fast as a disk: a write of 4 KiB costs 4 µs there, and 50 here at the very
least. Through a handle that has a staged file for its backing file (``jfs.mount.passthrough``) the
kernel writes to that, and asks us nothing; ``writing.unseen`` tells what it has done.

What that costs: bytes that nobody sees come are not hashed beside the writes, but once the file is
closed; of a large file, what it has grown by is sent meanwhile (``writing.overlap``), which is in
vain if it is written out of order. So one that comes in large pieces is better without. The kernel
does not say how a program is going to write: those that copy, and files of weights, are
taken for such, until they are seen to write little at a time.

- Only a file that is made, for writing alone, is written so, through this handle: nobody can map
  it, and whoever opens it besides (the kernel demands that it has the same backing file) comes here
  with every READ and WRITE, as ever. A mapping of it is of the staged file, and the kernel says
  that its handle is closed while it is used: then whoever has mapped it is waited for.
- close, fsync, truncate, names, sizes and times are ours, as ever. What a full disk refuses is told
  by write(2), but not to us: with hardly any room left on it nobody vouches for what is there, and
  close says ENOSPC. Staged files on disks that are not local come here, and so does --write-back,
  which may go on with newer content in another file.

Trio thread only.
"""

import os
import stat
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import trio

from jfs.extents import GiB, KiB
from jfs.vfs.files.handles import Handle, Handles
from jfs.vfs.files.openfile import OpenFile, Passed
from jfs.vfs.files.writer import Writer, Writing
from jfs.vfs.kernel import KernelView
from jfs.vfs.namespace.inodes import Inode
from jfs.vfs.reading.reader import DataPlane
from jfs.vfs.writing.staging import StagingFile
from jfs.vfs.writing.unseen import free_room, is_open_elsewhere

# A program is known to write little at a time after so many writes, if they were so small.
_WRITES, _SMALL = 128, 32 * KiB
_KEPT = 1024
# Until it is known: who copies, which endings weights have.
_COPYING = frozenset(
    [
        *("cp", "mv", "install", "rsync", "dd", "rclone", "scp", "sftp-server", "curl", "wget"),
        *("aria2c", "aws", "gsutil", "gcloud", "azcopy", "s5cmd", "jf", "pv", "cat"),
    ]
)
_WEIGHTS = frozenset([".bin", ".pt", ".pth", ".ckpt", ".safetensors", ".gguf", ".onnx", ".h5"])
_LOOK_S = 0.1
_ROOM = 1 * GiB  # of the staging disk, to begin with


@dataclass(slots=True)
class _Written:
    """Small writes of one handle, by whom."""

    who: tuple[str, str]
    count: int = 0
    size: int = 0


class PassedWrites:
    """See the module."""

    def __init__(
        self,
        handles: Handles,
        kernel: KernelView,
        writer: Writer | None,
        plane: DataPlane,
        writing: Writing | None,
    ) -> None:
        self._nursery = plane.nursery
        self._metrics = plane.metrics
        self._followed: set[StagingFile] = set()
        self._told: Callable[[int, Inode], object] = lambda *_: None
        self._handles = handles
        self._kernel = kernel
        self._writer = writer
        self._writes_back = writing is not None and writing.area.settings.write_back
        self._written: OrderedDict[int, _Written] = OrderedDict()  # by handle
        self._writes_little: OrderedDict[tuple[str, str], None] = OrderedDict()

    def tell(self, told: Callable[[int, Inode], object]) -> None:
        """Name who is told when the kernel has written through a handle."""
        self._told = told

    def made(self, handle: int, flags: int, mode: int, pid: int) -> bool:
        """Whether the kernel shall write itself through a handle whose file was made a moment ago.

        Before the kernel has the answer.
        """
        backings, opened = self._kernel.backings, self._handles.get(handle)
        if backings is None or not backings.is_on or opened is None or self._writer is None:
            return False
        file, staged = opened.file, opened.file.staged
        if (
            flags & (os.O_ACCMODE | os.O_DIRECT) != os.O_WRONLY
            or mode & (stat.S_ISUID | stat.S_ISGID)
            or staged is None
            or staged.inherits
            or file.is_pending
            or file.handles != 1
            or self._writes_back
        ):
            return False
        who = _who(pid, file.inode.name)
        if (who[0] in _COPYING or who[1] in _WEIGHTS) and who not in self._writes_little:
            self._written[handle] = _Written(who)
            if len(self._written) > _KEPT:
                self._written.popitem(last=False)
            return False
        if free_room(staged.file) < _ROOM or is_open_elsewhere(staged.file):
            return False
        number = backings.open_to_write(staged.file)
        if number is None:
            return False
        file.passed = Passed(number, handle)
        staged.pass_on()
        if not self._followed:
            self._nursery.start_soon(self._follow)
        self._followed.add(staged)
        self._metrics.count("passthrough_writes")
        return True

    async def _follow(self) -> None:
        """Look how files grow, for who sends them meanwhile."""
        while self._followed:
            await trio.sleep(_LOOK_S)
            for staged in [each for each in self._followed if each.unseen is None]:
                self._followed.remove(staged)
            for staged in self._followed:
                staged.grew()

    def backing_of(self, handle: int) -> tuple[int, bool]:
        """Return the number of what the kernel reads or writes itself through a handle; 0: nothing.

        And whether what is read and written through this handle comes here all the same.
        """
        opened = self._handles.get(handle)
        if opened is None:
            return 0, False
        file = opened.file
        if file.passed is not None:
            return file.passed.number, handle != file.passed.handle
        return (file.backing.number if file.backing is not None else 0), False

    def look(self, file: OpenFile) -> None:
        """Take note of what the kernel has written. Does not wait for the disk."""
        unseen = file.staged.unseen if file.staged is not None else None
        if unseen is not None and self._writer is not None and unseen.is_there():
            self._writer.note_change(file, unseen.see())
            if file.passed is not None and file.passed.handle is not None:
                self._told(file.passed.handle, file.inode)

    def may_be_mapped(self, opened: Handle) -> bool:
        """Whether stores may come yet through a mapping that was made through a handle."""
        file = opened.file
        return (
            file.passed is not None
            and opened.writes
            and not opened.direct
            and file.staged is not None
            and is_open_elsewhere(file.staged.file)
        )

    async def unmapped(self, file: OpenFile) -> None:
        """Return once nobody but us has the staged file open, or mapped."""
        while (  # noqa: ASYNC110 - nothing tells of it
            file.staged is not None and is_open_elsewhere(file.staged.file)
        ):
            await trio.sleep(_LOOK_S)

    def closed(self, file: OpenFile, handle: int) -> None:
        """Note that a handle is being closed: the kernel writes through it no more.

        By the time that it says so it has let go of it. Whoever opens the file from now on may
        find it as any other.
        """
        passed, opened = file.passed, self._handles.get(handle)
        if passed is None or opened is None:
            return
        self.look(file)
        if passed.handle == handle:
            passed.handle = None
        elif opened.writes and not opened.direct and self._writer is not None:
            self._writer.note_change(file)  # through a mapping, perhaps: no time tells all of that
        if opened.writes and file.writers == 1 and file.staged is not None:
            file.staged.take_back()
        passed.closed.add(handle)
        # Not by how many there are: others may be in the middle of their upload.
        if passed.closed.issuperset(self._handles.of(file)) and self._kernel.backings is not None:
            file.passed = None
            self._kernel.backings.close(passed.number)

    def wrote(self, handle: int, size: int) -> None:
        """Note a small write that came here."""
        written = self._written.get(handle)
        if written is None:
            return
        written.count += 1
        written.size += size
        if written.count < _WRITES:
            return
        del self._written[handle]
        if written.size <= _WRITES * _SMALL:
            self._writes_little[written.who] = None
            if len(self._writes_little) > _KEPT:
                self._writes_little.popitem(last=False)


def _who(pid: int, name: str) -> tuple[str, str]:
    """Return what a process calls itself, which the kernel makes up at once; and an ending."""
    try:
        text = Path(f"/proc/{pid}/comm").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    return text.strip(), Path(name).suffix
