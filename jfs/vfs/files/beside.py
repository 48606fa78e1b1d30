"""READs that are answered beside the interpreter: of which handles, and that they were.

Trio thread only.
"""

import logging

from jfs.native.replies import Note
from jfs.vfs.files.handles import Handle, Handles
from jfs.vfs.kernel import KernelView
from jfs.vfs.refusals import READING, Refusals

log = logging.getLogger(__name__)


class ReadBeside:
    """Those of one mount; see ``jfs.vfs.reading.beside``."""

    def __init__(self, handles: Handles, kernel: KernelView, refusals: Refusals) -> None:
        self._handles = handles
        self._kernel = kernel
        self._refusals = refusals

    def read(self, number: int, opened: Handle) -> None:
        """Note that a READ is about to be answered by Python; the next may be beside it."""
        self._filled(opened)
        # What was refused is told to be over when it succeeds: so Python has to see that.
        if not self._refusals.stands(READING, opened.file.inode.path):
            opened.file.answer_beside(number)

    def noted(self, note: Note) -> None:
        """Note READs that were answered."""
        opened = self._handles.get(note.handle)
        if opened is not None:
            self._filled(opened)
            try:
                if opened.file.reader is not None:
                    opened.file.reader.shown.noted(note)
            except Exception:  # they were answered: nobody's READ fails for it, nor the mount
                log.exception("%s: READs were not noted", opened.file.inode)

    def _filled(self, opened: Handle) -> None:
        if not opened.direct:
            self._kernel.filled(opened.file.inode.ino)

    def released(self, number: int, opened: Handle) -> None:
        """Answer no more READs of a handle."""
        if opened.file.reader is not None:
            opened.file.reader.shown.revoke(number)
