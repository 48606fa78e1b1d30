"""What all readers of one mount share."""

import contextlib
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace

import trio

from jfs.config import ReadSettings
from jfs.errors import DeadlineExceeded
from jfs.extents import KiB
from jfs.memory import Budget
from jfs.metrics import Metrics
from jfs.model import ArtifactVersion, RepoPath
from jfs.protocols import BlockStore, RangeSource
from jfs.vfs.reading.beside import Beside
from jfs.vfs.reading.companions import Companions
from jfs.vfs.reading.intent import Foreground, Intent
from jfs.vfs.reading.learning import Habits, Streaming
from jfs.vfs.reading.publisher import Publisher
from jfs.vfs.reading.scattered import Scattered
from jfs.vfs.reading.segments import SegmentPool
from jfs.vfs.reading.whole import SMALL
from jfs.waiting import Disk

_SEGMENTS_AT_LEAST = 4  # fit into the budget
_OF_A_STREAM = 6  # one that is read, two or three ahead of it, two that are written to the disk
_BLOCK_SIZE_WITHOUT_CACHE = 32 * KiB
_DISK_THREADS = 32


class Plane:
    """The source, the cache, memory and worker threads.

    Args:
        nursery: fetches run in it; cancelling it ends them at their next checkpoint.
        budget: memory that is shared with others; None: one of its own.
        several: whether there may be several repositories.
        fetches: worker threads that receive at a time, from each repository.
        locate: ``ArtifactStore.locate``; None: what is not at its place is not looked for.

    Attributes:
        block_size: bytes of the blocks that everything is fetched in.
        ahead_bytes: that who fetches a whole content asks for at a time; whole segments, mostly.
    """

    def __init__(
        self,
        source: RangeSource,
        store: BlockStore | None,
        settings: ReadSettings,
        metrics: Metrics,
        nursery: trio.Nursery,
        *,
        fetches: int,
        budget: Budget | None = None,
        several: bool = True,
        locate: Callable[[ArtifactVersion], Awaitable[RepoPath | None]] | None = None,
    ) -> None:
        self.source = source
        self.store = store
        budget = budget or Budget(settings.memory_bytes)
        self.block_size = store.block_size if store is not None else _BLOCK_SIZE_WITHOUT_CACHE
        # A segment must fit, or the READ that wants it would wait for ever. Its blocks must be
        # whole, and limits of memory are not (500M of a container): a part of one would be
        # published as the block, and what lacks of it asked for beyond the segment.
        segment_bytes = min(settings.segment_bytes, budget.bound // _SEGMENTS_AT_LEAST)
        segment_bytes = max(self.block_size, segment_bytes - segment_bytes % self.block_size)
        window_bytes = settings.window_bytes
        self.ahead_bytes = max(segment_bytes, window_bytes - window_bytes % self.block_size)
        self.settings = replace(settings, segment_bytes=segment_bytes)
        self.metrics = metrics
        self.budget = budget
        self.nursery = nursery
        self.pool = SegmentPool(budget, segment_bytes, several=several)
        self.fetches = fetches
        self.habits = Habits(settings.far_s)
        self.streaming = Streaming()
        self.scattered = Scattered()
        self.beside = Beside(metrics)
        self.companions = Companions(metrics)
        self.intent = Intent()
        self.foreground = Foreground()
        self.locate = locate
        self.publisher = Publisher(settings.disk_patience_s, settings.disk_slack_s, metrics)
        self.disk = Disk("the disk of the cache", _DISK_THREADS, settings.disk_patience_s)

    def may_double(self) -> bool:
        """Whether memory allows a stream requests of twice the size."""
        is_enough = self.budget.bound >= _OF_A_STREAM * 2 * self.settings.segment_bytes
        return is_enough and self.streaming.is_alone()

    def is_small(self, version: ArtifactVersion) -> bool:
        """Whether it is fetched whole, in one segment; see ``whole``."""
        return version.size <= min(SMALL, self.settings.segment_bytes)

    @contextlib.contextmanager
    def deadline(self, version: ArtifactVersion) -> Iterator[None]:
        """Wait within for bytes of *version* as long as a READ may. Raises DeadlineExceeded."""
        patience_s = self.settings.deadline_s
        try:
            with trio.fail_after(patience_s):
                yield
        except trio.TooSlowError:
            raise DeadlineExceeded(f"{version.path}: no bytes for {patience_s:.0f} s") from None

    def rejections(self, version: ArtifactVersion) -> int:
        """How often what was read of *version* turned out to be wrong."""
        return self.store.rejections(version.content) if self.store is not None else 0
