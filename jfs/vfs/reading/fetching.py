"""Whole contents: in the cache before an open is answered (``--fetch whole``).

A content comes at the speed of the line, in order, and is held against its digest as it comes: the
digest takes less than receiving does, and is computed beside it. So what an open is answered with
is verified, and the kernel can read it itself (``files.passing``).

One fetch for all who wait for a content. It ends with the last of them: nobody fetches on behalf of
a process that was interrupted. What has come by then is in the cache, and is not fetched again.

Waiting has an end: every request has its deadlines (``RangeSource``), and a fetch that gets no byte
for as long as a READ may take has failed. What fails says so as a READ would. But what is known to
work without the server goes on doing so: if nothing came, and a part of the content was cached
before, the open is answered, and that part can be read.

What does not fit into the cache is read as it comes, as with ``--fetch lazy``.

Trio thread only.
"""

import hashlib
import logging
import os
import time

import trio

from jfs import threads
from jfs.config import Fetch
from jfs.errors import DiskHangs, IntegrityError, JfsError, MountEnding, Stale
from jfs.extents import Extent
from jfs.model import ArtifactVersion, ContentKey
from jfs.vfs.reading.bringing import arrived, begun
from jfs.vfs.reading.cached import Cached
from jfs.vfs.reading.reader import ContentReader, DataPlane
from jfs.vfs.reading.segments import Segment
from jfs.vfs.reading.whole import REFETCHES

log = logging.getLogger(__name__)


class _Fetch:
    """One content on its way.

    Attributes:
        waiting: who waits for it.
        reached: every byte before it is here, and digested.
        segment: what comes next.
        is_whole: how it ended, unless with an *error*.
    """

    def __init__(self, version: ArtifactVersion) -> None:
        self.version = version
        self.waiting = 0
        self.scope = trio.CancelScope()
        self.ended = trio.Event()
        self.reached = 0
        self.segment: Segment | None = None
        self.since = time.monotonic()
        self.is_whole = False
        self.error: JfsError | None = None

    @property
    def received(self) -> int:
        """How much of it is here, from its start on."""
        return max(self.reached, self.segment.filled if self.segment is not None else 0)


class Fetching:
    """Those of one mount."""

    def __init__(self, plane: DataPlane) -> None:
        self._plane = plane
        self._under_way: dict[ContentKey, _Fetch] = {}

    def figures(self) -> dict[str, object]:
        """Return what is being fetched, for ``.jfs/stats``."""
        fetches = [
            {
                "path": str(fetch.version.path),
                "bytes": fetch.received,
                "total": fetch.version.size,
                "rate": round(fetch.received / max(time.monotonic() - fetch.since, 1e-3)),
                "waiting": fetch.waiting,
            }
            for fetch in self._under_way.values()
        ]
        return {"fetch": str(self._plane.settings.fetch), "files": fetches}

    def is_for(self, flags: int) -> bool:
        """Whether an open for reading with *flags* of open(2) waits for the whole content.

        With O_NONBLOCK, as ``file`` and ``tar`` open, it does not; with O_DIRECT the kernel would
        not read it from the cache.
        """
        is_asked = self._plane.settings.fetch is Fetch.WHOLE
        return is_asked and not flags & (os.O_NONBLOCK | os.O_DIRECT)

    async def whole(self, version: ArtifactVersion) -> bool:
        """Return once all of a version is in the cache, and verified.

        Returns:
            Whether it is; False: it is to be read as it comes.
        Raises:
            Stale, RemoteError, IntegrityError: as a READ of it.
        Cancellation: the last one who waits ends the fetch.
        """
        fetch = self._under_way.get(version.content)
        if fetch is None:
            fetch = self._under_way[version.content] = _Fetch(version)
            self._plane.nursery.start_soon(self._run, fetch)
        fetch.waiting += 1
        try:
            await fetch.ended.wait()
        finally:
            fetch.waiting -= 1
            if not fetch.waiting:
                fetch.scope.cancel()
                self._forget(fetch)  # who comes now begins another
        if fetch.error is not None:
            raise fetch.error
        return fetch.is_whole

    def _forget(self, fetch: _Fetch) -> None:
        if self._under_way.get(fetch.version.content) is fetch:
            del self._under_way[fetch.version.content]

    async def _run(self, fetch: _Fetch) -> None:
        """Bring a content. Whatever fails ends in the fetch, never in the nursery."""
        fetch.error = MountEnding("the mount is ending")
        try:
            with fetch.scope:
                fetch.is_whole = await self._fetched(fetch)
                fetch.error = None
                if fetch.is_whole:  # its READs may not come here
                    self._plane.intent.read(fetch.version.path)
        except JfsError as error:
            fetch.error = error
        except DiskHangs:  # which was said
            fetch.error = None
        except Exception as error:
            fetch.error = JfsError(f"internal error: {error!r}")
            log.exception("%s: fetch failed", fetch.version.path)
        finally:
            self._forget(fetch)
            fetch.ended.set()

    async def _fetched(self, fetch: _Fetch) -> bool:
        """Raises as ``whole``, and DiskHangs."""
        for _ in range(1 + REFETCHES):
            reader = await self._plane.open(fetch.version)
            try:
                if reader.cached is None:
                    return False
                if (is_right := await self._verified(fetch, reader, reader.cached)) is not None:
                    return is_right
            finally:
                self._plane.nursery.start_soon(reader.close)  # also if this was cancelled
        raise IntegrityError(f"{fetch.version.path}: does not match its checksum")

    async def _verified(self, fetch: _Fetch, reader: ContentReader, cached: Cached) -> bool | None:
        """Return whether all of it is in the cache; None: what came was wrong, and is dropped."""
        store, version = self._plane.store, fetch.version
        assert store is not None
        whole = Extent(0, version.size)
        if await cached.run(lambda content: content.is_verified()):
            return True
        if not await cached.run(lambda _: store.fits(version.content)):
            return self._is_too_large(version)
        missing = await cached.missing(whole)
        try:
            digest = await self._digest(fetch, reader, cached)
        except (IntegrityError, Stale):
            raise
        except JfsError as error:
            if await cached.missing(whole) != missing or missing == [whole]:
                raise
            log.info("%s: only what is cached of it can be read: %s", version.path, error)
            return False
        if digest is None:
            return self._is_too_large(version)
        if digest == version.content.digest.partition(":")[2]:
            return await cached.run(lambda content: content.vouch()) or self._is_too_large(version)
        # What is on the disk is what counts, and what is said if that is wrong.
        verifying = self._plane.disk.run(
            store.verify, version.content, size=version.size, limiter=threads.of_hashing()
        )
        return True if await verifying else None

    def _is_too_large(self, version: ArtifactVersion) -> bool:
        log.warning(
            "%s: the cache does not take all of it: it is read as it comes: raise --cache-size, "
            "or use a faster disk",
            version.path,
        )
        return False

    async def _digest(self, fetch: _Fetch, reader: ContentReader, cached: Cached) -> str | None:
        """Bring all of a content, and return its digest; None: the cache takes no more."""
        plane, size = self._plane, fetch.version.size
        cached.stays = True
        digest = hashlib.new(fetch.version.content.digest.partition(":")[0])
        fetch.reached = 0
        while fetch.reached < size:
            ahead = Extent(fetch.reached, min(size, fetch.reached + plane.ahead_bytes))
            segment = await begun(plane, reader, ahead, demand=True)
            if segment is None:
                continue
            fetch.segment = segment
            try:
                await arrived(segment, plane, reader)
                start = fetch.reached - segment.extent.start
                await threads.hashing(digest.update, segment.view[start:])
                fetch.reached = segment.extent.stop
            finally:
                fetch.segment = None
                reader.give_back(segment)
            if cached.is_full:
                return None
        await reader.rest(plane.settings.disk_patience_s)  # else it is not complete
        return digest.hexdigest()
