"""Files that are opened again and again: held until they rest, and uploaded once.

``onnx`` opens its external data for each tensor, loggers and ``>>`` in a loop for each line, ``tar
-r`` and downloaders for each piece. An upload for each close would send n²/2 of n pieces. So a file
that is closed for the third time, each time opened no later than ``--settle`` after its last close
(2 s), *waits*: ``close`` returns 0 once the content is staged and journalled, and it is uploaded
when it has rested for ``--settle``. Until then others see what the second close has uploaded. With
``--settle 0`` every last close uploads.

What ``close`` has promised of what waits: it outlives every process, ``kill -9`` of the daemon too
(the next mount of the place uploads it), and whatever is written into the file before it is closed
again. It does not outlive a loss of power: for that there is ``fsync``, as on any disk. What is not
whole after one is not uploaded: it waits for ``jfs recover``. Once an upload of it was tried and
failed, it is on disk for good, until newer content takes its place.

=======================================  =======================================================
event                                    what it is
=======================================  =======================================================
first and second close                   upload, and return the verdict
opened again later than ``--settle``     closes are counted anew
opened and not changed, or read          nothing; what waits rests on
changed elsewhere between two closes     another file, whose closes are counted anew: what several
                                         mounts append to in turn is uploaded at each close
changed elsewhere while it waits         as by any two writers: not uploaded, in ``jfs recover``
``fsync`` (also ``sync FILE``,           uploads at once, and returns the verdict; later closes have
``jfs sync-file``)                       nothing to upload. If it fails, the file waits on
``open(O_TRUNC)`` again and again        a reopening as any other: the last content is uploaded
written again while it waits             in place: what is overwritten of what was promised is kept
                                         (``writing.undo``); an upload under way is cut
a write that the disk refuses            ``close`` fails, and the file is what was closed before
``rename`` of it, or of its folder       uploads first, once, and fails as the upload does: its new
                                         name is whole from the first moment
``rename`` of another over it, unlink    never uploaded; others see what the server had until then
``stat``, ``ls``, ``open`` here          the staged content; ``user.jfs.state`` is ``pending``
properties                               are set on what the server has, and kept by the upload
it never rests                           a close that comes ``settle_most_s`` after the first one
                                         that waited uploads, later for a large file, and returns
                                         what the server has said, such as that it has no room; it
                                         waits on then, as where the server cannot be asked
the server cannot be asked               it is tried again, as with --write-back; what is refused
                                         for good is in ``jfs recover``, ``user.jfs.last_error``
more wait than ``queue_most``            closes upload
end of the mount                         uploads: ``jfs umount`` first, any other end for as long as
                                         ``--drain-timeout``; what is left the next mount uploads
``kill -9`` while it is written again    the next mount uploads what was closed; what was newer is
                                         in ``jfs recover``, as what was never closed
the next mount is read-only              it waits on: ``jfs recover ls``
``--write-back``                         every close waits, on disk for good: nothing of this
=======================================  =======================================================

Trio thread only; no checkpoint in it.
"""

from dataclasses import dataclass

import trio

from jfs.config import WriteSettings
from jfs.vfs.files.openfile import OpenFile
from jfs.vfs.namespace.inodes import Inode

_CLOSES = 2  # so many upload


@dataclass(slots=True)
class _Past:
    """How often a file was closed, each time soon after the last, and when it was last."""

    closes: int
    at: float


class Settling:
    """Which files are opened again and again, of one mount."""

    def __init__(self, settings: WriteSettings) -> None:
        self._settings = settings
        self._past: dict[Inode, _Past] = {}  # the longest closed first

    @property
    def rest_s(self) -> float:
        """For how long a file must not be opened before it is uploaded."""
        return self._settings.settle_s

    def opened(self, file: OpenFile) -> None:
        """A file that nobody else may write to was opened for writing."""
        past = self._past.get(file.inode)
        soon = past is not None and trio.current_time() - past.at <= self.rest_s
        file.closes = past.closes if past is not None and soon else 0

    def closed(self, file: OpenFile) -> None:
        """A file that was changed was closed, and there is no error to report."""
        if not self.rest_s:
            return
        now = trio.current_time()
        self._past.pop(file.inode, None)
        self._past[file.inode] = _Past(file.closes + 1, now)
        while (first := next(iter(self._past))) and now - self._past[first].at > self.rest_s:
            del self._past[first]

    def lets_wait(self, file: OpenFile) -> bool:
        """Whether what is closed now may wait until it rests.

        A copy of what the server has need not: it sends no bytes, and has none that could wait.
        """
        is_lent = file.staged is not None and file.staged.lent is not None
        # What is stored through a mapping of the staged file itself could not be undone.
        is_mapped = file.passed is not None
        return bool(self.rest_s) and file.closes >= _CLOSES and not is_lent and not is_mapped

    def waits_too_long(self, file: OpenFile) -> bool:
        """Whether a file that waits is uploaded though it does not rest."""
        if file.waits_since is None:
            return False
        settings = self._settings
        limit_s = max(settings.settle_most_s, file.size / settings.settle_rate)
        return trio.current_time() - file.waits_since >= limit_s
