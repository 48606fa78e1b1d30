"""Pieces of a content, fetched in order for who wants all of it. Trio thread only.

For ``fetching``, whose open waits for them, and ``following``, for which nobody waits.
"""

import trio

from jfs.errors import DeadlineExceeded
from jfs.extents import Extent, MiB
from jfs.vfs.reading.plane import Plane
from jfs.vfs.reading.reader import ContentReader
from jfs.vfs.reading.segments import Segment

_STEP = 1 * MiB  # a fetch that brings less in a READ's deadline has failed


async def begun(
    plane: Plane, reader: ContentReader, extent: Extent, *, demand: bool
) -> Segment | None:
    """Begin to fetch *extent*, as far as memory allows; see ``ContentReader.bring``.

    Returns:
        The segment with its first byte, not to be reused until ``give_back``. None: there was no
        memory for it, which was waited for: try again.
    Raises:
        DeadlineExceeded: there is no memory, and none is given back.
    """
    given = plane.pool.given()
    segment = reader.bring(extent, demand=demand)
    if segment is None:
        await _memory(given, plane, reader)
    return segment


async def arrived(segment: Segment, plane: Plane, reader: ContentReader) -> None:
    """Return once all of a segment is here. Raises DeadlineExceeded, and what ended it."""
    # Not woken for each step: with --fetch whole that cost 0.1 CPU-s of each GiB.
    while True:
        least = min(segment.extent.stop, segment.filled + _STEP)
        try:
            with plane.deadline(reader.version):
                await segment.wait(segment.extent.stop)
            return
        except DeadlineExceeded:
            if segment.filled < least:
                raise


async def _memory(given: trio.Event, plane: Plane, reader: ContentReader) -> None:
    """Wait for memory, and for a slow disk that has it, so that nothing is dropped."""
    with trio.move_on_after(plane.settings.disk_patience_s) as scope:
        await given.wait()
    if scope.cancelled_caught:
        with plane.deadline(reader.version):
            await plane.publisher.wait(given)  # who may find that the disk hangs
