"""Open handles: which file each is of, and whether a file can still be written to through one.

**The last writable close decides.** While any handle of a file can still write, closing another
uploads nothing: it returns 0 once the bytes are staged and journalled, or what an upload would fail
with at once (a write that the disk refused; a file that was given up). The last one uploads, and
its ``close`` returns the verdict, of what all of them have written. ``fsync`` of any handle uploads
at once; what it has uploaded no close uploads again, and returns 0. After an ``fsync`` that failed
the last close tries once more, and returns what comes of that.

=============================================  =================================================
event                                          what it is
=============================================  =================================================
a second open, of whichever process            one more handle; read-only ones do not count
``dup``, ``fork``, ``cmd > file``              FLUSH comes for each copy that is closed: while a
                                               process that opened the file has a writable
                                               descriptor of it, the last close is to come
the process that opened it has ended, in       no copy: when in doubt a close uploads
another PID namespace, or not to be looked at
stores of a mapping after ``close``            uploaded as the mapping ends; nobody can be told
``open(O_TRUNC)``, ``truncate(path)``          a change; the last close has it, or truncate itself
                                               if nobody else has the file open to write
a process that is killed                       its descriptors are closed as any others
``kill -9`` of the daemon before the last      what was never closed: ``jfs recover``
=============================================  =================================================

Trio thread only.
"""

import itertools
import os
from dataclasses import dataclass

from jfs import threads
from jfs.errors import BadHandle
from jfs.vfs.files.descriptors import can_write
from jfs.vfs.files.openfile import OpenFile


@dataclass(slots=True)
class Handle:
    """One open(2) of a file.

    Attributes:
        writes: opened for writing, or made the file: closing it may upload.
        direct: the kernel keeps no pages of what is read and written through it.
        pid: the thread that has opened it.
        flushed: a descriptor of it was closed, or nobody can write through it. Whether copies of
            the descriptor are left, the process tells.
    """

    file: OpenFile
    writes: bool
    direct: bool
    pid: int
    flushed: bool


class Handles:
    """The handles of one mount.

    Attributes:
        device: of the mount, once there is one: ``major:minor``.
    """

    def __init__(self, numbers: "itertools.count[int]") -> None:
        self._numbers = numbers
        self._handles: dict[int, Handle] = {}
        self.device: str | None = None

    def add(self, file: OpenFile, flags: int, pid: int, *, writes: bool) -> tuple[int, Handle]:
        """Note that a file was opened; return the number of the handle, too.

        Args:
            flags: of open(2).
            writes: see ``Handle``.
        """
        mode = flags & os.O_ACCMODE
        # Who only writes cannot map: its bytes come here straight, not by way of the page cache.
        # That saves half of the memory and of the copies, and a GETXATTR of security.capability
        # that the kernel sends before every cached write.
        direct = mode == os.O_WRONLY
        number = next(self._numbers)
        opened = Handle(file, writes, direct, pid, flushed=mode == os.O_RDONLY)
        self._handles[number] = opened
        file.handles += 1
        file.writers += writes
        return number, opened

    def get(self, handle: int) -> Handle | None:
        """Return a handle, if it is open."""
        return self._handles.get(handle)

    def find(self, handle: int) -> Handle:
        """Return a handle. Raises BadHandle."""
        try:
            return self._handles[handle]
        except KeyError:
            raise BadHandle(f"handle {handle} is not open") from None

    def to_write(self, handle: int) -> OpenFile:
        """Return the file of a handle. Raises BadHandle, also if it cannot be written through."""
        opened = self.find(handle)
        if not opened.writes:
            raise BadHandle(f"handle {handle} is not open for writing")
        return opened.file

    def drop(self, handle: int) -> None:
        """Note that a handle is closed for good."""
        del self._handles[handle]

    def clear(self) -> None:
        """Forget all of them: the mount ends."""
        self._handles.clear()

    def of(self, file: OpenFile) -> list[int]:
        """Return the handles of a file that are not closed for good."""
        return [number for number, each in self._handles.items() if each.file is file]

    async def can_write(self, file: OpenFile) -> bool:
        """Whether somebody can still write to a file, of whose handle a descriptor was closed."""
        writing = [each for each in self._handles.values() if each.file is file and each.writes]
        if not all(each.flushed for each in writing):
            return True
        pids = [each.pid for each in writing]
        return await threads.own_mount(can_write, pids, file.inode.ino, self.device)
