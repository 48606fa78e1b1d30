"""Bring a content into the cache behind everybody who waits for bytes.

Nothing is evicted for it, and no read-ahead held up: it asks while nobody else does, with
connections that a READ does not need, from memory of its own. What others have begun to fetch is
waited for. Trio thread only.
"""

import logging

import trio

from jfs import memory, threads
from jfs.errors import JfsError
from jfs.extents import Extent
from jfs.model import ArtifactVersion
from jfs.vfs.reading import cached
from jfs.vfs.reading.cached import Cached, Received
from jfs.vfs.reading.limits import Limits
from jfs.vfs.reading.reader import DataPlane
from jfs.vfs.reading.segments import Segment, SegmentSink
from jfs.vfs.reading.whole import receive_whole

log = logging.getLogger(__name__)

_AT_A_TIME = 2  # one waits for the disk, the other for the server
_SHARE = 8  # of memory, at most
_LOOK_AGAIN = 64  # pieces


async def bring(plane: DataPlane, version: ArtifactVersion) -> bool:
    """Have all of a version in the cache.

    Returns:
        Whether it is there. Else there was no room for all of it, or the server or the disk failed,
        which nobody is told of who has not asked.
    """
    if plane.store is None:
        return False
    try:
        content = await cached.opened(plane.store, version, plane.disk, plane.publisher)
        if content is None:
            return False
        try:
            return await _bring(plane, version, content)
        finally:
            plane.nursery.start_soon(content.close)
    except (JfsError, OSError) as error:
        log.debug("%s: not fetched ahead: %s", version.path, error)
    except Exception:
        log.exception("%s: fetching it ahead failed", version.path)
    return False


async def _bring(plane: DataPlane, version: ArtifactVersion, content: Cached) -> bool:
    """Raises JfsError, OSError."""
    whole = Extent(0, version.size)
    missing = await content.missing(whole)
    if not missing:
        return True
    if not await _has_room(plane, sum(run.size for run in missing)):
        return False
    log.debug("%s: fetched ahead, its model is being read", version.path)
    size = plane.settings.segment_bytes
    runs = [whole] if plane.is_small(version) else missing
    pieces = (piece for run in runs for piece in run.pieces(size))
    failures: list[JfsError | OSError] = []
    ended = False

    async def work() -> None:
        nonlocal ended
        if not plane.budget.take(size):
            return
        buffer = memory.buffer(size)
        try:
            for number, piece in enumerate(pieces):
                if ended:
                    return
                if number % _LOOK_AGAIN == _LOOK_AGAIN - 1 and not await _has_room(plane, size):
                    break
                await plane.foreground.idle()
                segment = Segment(piece, buffer, version.path.repo)
                await _fetch(plane, version, content, segment)
                buffer = segment.buffer  # another one, if the disk may still write to it
                if content.is_full:
                    break
            else:
                return
            ended = True
        except (JfsError, OSError) as error:
            failures.append(error)
            ended = True
        finally:
            plane.budget.give(size)

    workers = min(_AT_A_TIME, plane.budget.bound // _SHARE // size)
    async with trio.open_nursery() as nursery:
        for _ in range(workers):
            nursery.start_soon(work)
    if failures:
        raise failures[0]
    return not await content.missing(whole)


async def _has_room(plane: DataPlane, size: int) -> bool:
    """Whether so much can be written, and nothing is evicted for it."""
    store = plane.store
    assert store is not None
    return size <= await plane.disk.run(store.spare)


async def _fetch(
    plane: DataPlane, version: ArtifactVersion, content: Cached, segment: Segment
) -> None:
    """Fetch what is missing of a segment, and publish it. Raises JfsError."""
    limit = Limits.of(version.path.repo, plane.fetches).ahead
    async with content.claimed(segment) as look:
        if look.is_read:
            return
        is_small = plane.is_small(version)
        missing = [segment.extent] if is_small else look.missing  # all of it has one digest
        received = []
        for run in missing:
            words = None
            if is_small:
                await threads.in_turn(
                    limit, receive_whole, plane.source, version, segment, plane.metrics
                )
            else:
                sink = SegmentSink(segment, run, plane.block_size)
                await threads.in_turn(limit, plane.source.fetch, version, run, sink)
                words = sink.sums()
            received.append(Received(run.start, segment.slice(run), words))
            plane.metrics.count("shard_bytes", run.size)
        await content.publish(received, look)
