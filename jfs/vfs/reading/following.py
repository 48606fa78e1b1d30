"""What will be read whole is fetched whole, behind its reader (``--fetch auto``).

Read-ahead follows whoever reads in order. A loader that takes tensors as its model wants them, or
faults on a mapping, is followed by nothing: it waits for every piece of its own. If it is likely to
want all of the file (``recall``), all of it is fetched, in order and at the speed of the line, and
what it asks for comes first. (256 MiB mapped in pieces of 4 MiB, in any order, from a server beside
it: 0.6 of the time, 67 requests for 456.)

No open waits for this: it is a guess, and a wrong one shall cost bytes at most. Nor does a look at
the header begin it, and it ends with the last handle. Trio thread only.
"""

import logging

import trio

from jfs.config import Fetch
from jfs.errors import DiskHangs, JfsError
from jfs.extents import Extent
from jfs.model import RepoPath
from jfs.vfs.reading.bringing import arrived, begun
from jfs.vfs.reading.intent import Listener
from jfs.vfs.reading.reader import ContentReader, DataPlane
from jfs.vfs.reading.recall import Recall

log = logging.getLogger(__name__)

# While somebody streams read-ahead does this, and has its bytes in memory when they are wanted. A
# handle whose last run was a stream may stay open for days: it is looked at ever more seldom.
_LOOK_AGAIN_S, _SELDOM_S = 0.1, 2.0


class Following(Listener):
    """See the module; of one mount."""

    def __init__(self, plane: DataPlane, recall: Recall) -> None:
        self._plane = plane
        self._recall = recall
        plane.intent.tell(self)

    def goes_on(self, reader: ContentReader) -> None:
        is_asked = self._plane.settings.fetch is Fetch.AUTO
        if is_asked and self._recall.is_read_whole(reader.version.path):
            self._plane.metrics.count("followed_files")
            self._plane.nursery.start_soon(self._follow, reader)

    def read(self, path: RepoPath) -> None:
        self._recall.note(path, True)

    def left(self, reader: ContentReader) -> None:
        """Note that little was read; of what is cached the kernel may have had the rest."""
        coverage = reader.coverage
        if reader.was_cold and coverage.is_begun and not coverage.is_most:
            self._recall.note(reader.version.path, False)

    async def _follow(self, reader: ContentReader) -> None:
        try:
            await self._bring(reader)
        except (JfsError, DiskHangs) as error:  # whoever reads is told
            log.debug("%s: is not fetched whole: %s", reader.version.path, error)
        except Exception:
            log.exception("%s: fetching it whole failed", reader.version.path)

    async def _bring(self, reader: ContentReader) -> None:
        """Raises JfsError, DiskHangs."""
        plane, size, position = self._plane, reader.version.size, 0
        pause_s = _LOOK_AGAIN_S
        while position < size and not reader.is_closed:
            cached = reader.cached
            if cached is None or cached.is_full:
                return
            if reader.streams:
                await trio.sleep(pause_s)
                pause_s = min(2 * pause_s, _SELDOM_S)
                continue
            pause_s = _LOOK_AGAIN_S
            ahead = Extent(position, min(size, position + plane.ahead_bytes))
            missing = await cached.missing(ahead)
            if not missing:
                position = ahead.stop
                continue
            if reader.is_closed:
                return
            segment = await begun(plane, reader, missing[0], demand=False)
            if segment is None:
                continue
            try:
                await arrived(segment, plane, reader)
                plane.metrics.count("followed_bytes", segment.extent.size)
                position = segment.extent.stop
            finally:
                reader.give_back(segment)
