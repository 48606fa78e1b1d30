"""The data file of a content that is on disk as a whole, for who reads it past the cache.

Nobody looks at block sums then: the disk is believed to keep what was written. Found out is a file
that was changed since its content was held against the digest. Any thread; blocking.
"""

import os
from collections.abc import Callable

from jfs.cache.blockmap import stamp_of
from jfs.cache.files import EntryFiles
from jfs.cache.shelf import Shelf


class WholeFile:
    """``protocols.WholeFile``; made by ``hold``."""

    def __init__(self, files: EntryFiles, end: Callable[[], None]) -> None:
        self.file = files.data
        self._files = files
        self._end = end

    def is_right(self) -> bool:
        try:
            return self.find_right()
        except OSError:
            return False

    def find_right(self) -> bool:
        """As ``is_right``. Raises OSError."""
        blocks = self._files.blocks
        is_whole = os.fstat(self.file).st_size == blocks.content.size
        return is_whole and blocks.stamp == stamp_of(self.file)

    def close(self) -> None:
        self._end()


def hold(files: EntryFiles, shelf: Shelf, end: Callable[[], None]) -> WholeFile | None:
    """Return the file of a content if it is complete and verified; see ``CachedContent.whole``.

    Args:
        files: stay open until *end* is called, which this does unless it returns a file.
    """

    def let_go() -> None:
        shelf.may_hold(-1)
        end()

    if not shelf.may_hold(1):
        end()
        return None
    held, blocks = WholeFile(files, let_go), files.blocks
    try:
        if blocks.verified and blocks.is_complete():
            if held.find_right():
                return held
            blocks.set_unverified()  # changed by somebody, or verified by an older version
            shelf.completed(blocks.content)
    except OSError as error:
        shelf.failed(error)
    held.close()
    return None
