"""What is uploaded behind: when, how many at a time, and when it is tried again.

An item is an open file that is *pending*: ``close`` has returned, and the journal keeps it, as with
--write-back; or until it rests, as with --settle, which has it wait for longer (``add``). Of one
file only the newest content is in here. An upload begins once the file has been closed for a
moment; a few run at a time. One that fails for a reason that may pass is tried again, after a pause
that grows, with jitter; and as an outage is of a repository rather than of a file, the others of
that repository wait too, so that a long queue does not ask a server that is down for each of its
files. What is refused for good is given up: the journal keeps it for a person.

Trio thread only. Nothing here waits for the network but the tasks that upload.
"""

import heapq
import itertools
import logging
import math
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import trio

from jfs import descriptors, waiting
from jfs.config import WriteSettings
from jfs.errors import (
    AccessDenied,
    Conflict,
    JfsError,
    MountEnding,
    ProtocolViolation,
    QuotaExceeded,
    RateLimited,
    Unavailable,
    is_local,
    is_of_descriptors,
)
from jfs.vfs.files.openfile import OpenFile

log = logging.getLogger(__name__)

_AT_A_TIME = 4
# Each that waits holds a descriptor, which is its lock: a quarter of all is left to them.
_SHARE_OF_DESCRIPTORS = 4
_LOCKED = 423
_CREDENTIALS = (401, 402, 407)  # a token that has expired, a licence: somebody will see to it


@dataclass(eq=False, slots=True)
class _Item:
    """One file that waits. *due* and *failed_at* are ``trio.current_time()``."""

    file: OpenFile
    since_ns: int
    due: float
    rest_s: float = 0.0
    tries: int = 0
    failed_at: float = -math.inf
    error: str = ""
    running: bool = False


@dataclass(eq=False, slots=True)
class _Repository:
    """How a repository has answered: not tried again until *until*."""

    failures: int = 0
    until: float = -math.inf
    failed_at: float = -math.inf


@dataclass(frozen=True, slots=True)
class QueueState:
    """What the queue is doing, for people.

    Attributes:
        pending: files that wait or are being uploaded; *size*: bytes of them.
        uploading: of them, right now.
        oldest_ns: since when the oldest waits; None: nothing does.
        next_s: until the next try; None: nothing is tried later.
        error: of the last try that failed, of what still waits.
        refused: files that were given up, by this mount.
    """

    pending: int = 0
    size: int = 0
    uploading: int = 0
    oldest_ns: int | None = None
    next_s: float | None = None
    error: str = ""
    refused: int = 0


@dataclass(frozen=True, slots=True)
class Hands:
    """What the queue has others do with a file.

    Attributes:
        upload: uploads it, if it is pending still; cut by a change it returns.
        refuse: gives it up, for the reason that is said.
        left: it is not in the queue any more.
    """

    upload: Callable[[OpenFile], Awaitable[None]]
    refuse: Callable[[OpenFile, Exception], Awaitable[None]]
    left: Callable[[OpenFile], Awaitable[None]]


@dataclass(slots=True)
class _Running:
    """The task that starts uploads, while there is one."""

    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    ended: trio.Event = field(default_factory=trio.Event)


class UploadQueue:
    """See the module. *nursery*: uploads run in it, until ``close``."""

    def __init__(self, settings: WriteSettings, nursery: trio.Nursery) -> None:
        self._settings = settings
        self._nursery = nursery
        self._hands: Hands | None = None
        self._items: dict[OpenFile, _Item] = {}  # the longest waiting first
        self._due: list[tuple[float, int, _Item]] = []  # a heap; entries may be out of date
        self._serials = itertools.count()
        self._repositories: dict[str, _Repository] = {}
        self._active = 0
        self._refused = 0
        self._changed = trio.Event()
        self._running: _Running | None = None
        self._closed = False
        self._rng = random.Random()

    def use(self, hands: Hands) -> None:
        """Say who does the work; once, before anything is added."""
        self._hands = hands

    @property
    def is_full(self) -> bool:
        """Whether nothing more may be queued: what is closed now is uploaded at once."""
        room = min(self._settings.queue_most, descriptors.limit() // _SHARE_OF_DESCRIPTORS)
        return len(self._items) >= room

    def files(self) -> list[OpenFile]:
        """Return what is in it."""
        return list(self._items)

    def state(self) -> QueueState:
        """Return what it is doing."""
        items = self._items.values()
        waiting = [item for item in items if not item.running]
        now = trio.current_time()
        failed = max(items, key=lambda item: item.failed_at, default=None)
        return QueueState(
            pending=len(items),
            size=sum(item.file.size for item in items),
            uploading=self._active,
            oldest_ns=min((item.since_ns for item in items), default=None),
            next_s=min((max(0.0, self._time(item) - now) for item in waiting), default=None),
            error=failed.error if failed is not None else "",
            refused=self._refused,
        )

    def add(self, file: OpenFile, rest_s: float | None = None) -> None:
        """Note that a file is pending now, or has newer content.

        Args:
            rest_s: when its upload may begin; 0: it was closed a while ago. None: as is usual.
        """
        item = self._items.pop(file, None)
        if item is None:
            item = _Item(file, 0, 0.0)
        self._items[file] = item
        item.since_ns, item.tries, item.error = time.time_ns(), 0, ""
        item.failed_at = -math.inf
        if rest_s == 0 and file.staged is not None and file.staged.entry is not None:
            item.since_ns = file.staged.entry.record.queued_ns
        item.rest_s = self._settings.settling_s if rest_s is None else rest_s
        self._schedule(item, trio.current_time() + item.rest_s)
        if self._running is None and not self._closed:
            self._running = _Running()
            self._nursery.start_soon(self._run, self._running)

    def done(self, file: OpenFile) -> None:
        """Note that somebody has uploaded a file that waited."""
        item = self._items.get(file)
        if item is not None and not item.running:
            self._worked(item)
            self._schedule(item, -math.inf)

    def wake(self, repo: str | None = None) -> None:
        """Try at once what waits: the server is up again, or a person wants it.

        Args:
            repo: what is of this repository; None: everything.
        """
        for name, repository in self._repositories.items():
            if repo in (None, "", name):
                repository.failures, repository.until = 0, -math.inf
        now = trio.current_time()
        for item in self._items.values():
            if repo in (None, "", item.file.inode.path.repo) and item.due > now:
                self._schedule(item, now)

    async def drop(self, file: OpenFile) -> None:
        """Let go of a file that is not pending any more: its name is gone, or nobody wants it."""
        item = self._items.get(file)
        if item is not None and not item.running and not file.is_pending:
            await self._leave(item)

    async def drain(self) -> None:
        """Try everything once more; return when nothing is left that has not failed since."""
        began = trio.current_time()
        self.wake()
        while any(not self._has_failed_since(item, began) for item in self._items.values()):
            await self._changed.wait()

    async def close(self) -> None:
        """Cut what is under way, and start nothing any more; the journal keeps what waits."""
        self._closed = True
        if self._running is not None:
            self._running.scope.cancel()
            await self._running.ended.wait()

    def _has_failed_since(self, item: _Item, began: float) -> bool:
        if item.running:
            return False
        return max(item.failed_at, self._of(item).failed_at) >= began

    def _of(self, item: _Item) -> _Repository:
        return self._repositories.setdefault(item.file.inode.path.repo, _Repository())

    def _time(self, item: _Item) -> float:
        """Return when an item may be tried."""
        return max(item.due, self._of(item).until)

    def _schedule(self, item: _Item, due: float) -> None:
        item.due = due
        heapq.heappush(self._due, (due, next(self._serials), item))
        self._tell()

    def _tell(self) -> None:
        """Let everybody look again who waits for a change."""
        self._changed.set()
        self._changed = trio.Event()

    async def _run(self, running: _Running) -> None:
        try:
            with running.scope:
                async with trio.open_nursery() as nursery:
                    while True:
                        changed = self._changed
                        with trio.move_on_at(self._start_due(nursery)):
                            await changed.wait()
        finally:
            running.ended.set()

    def _start_due(self, nursery: trio.Nursery) -> float:
        """Start what is due, and return when the next is."""
        now = trio.current_time()
        while self._due and self._active < _AT_A_TIME:
            due, serial, item = self._due[0]
            if due > now:
                return due
            heapq.heappop(self._due)
            if due != item.due or item.running or self._items.get(item.file) is not item:
                continue
            if (later := self._time(item)) > now:
                item.due = later
                heapq.heappush(self._due, (later, serial, item))
                continue
            item.running = True
            self._active += 1
            nursery.start_soon(self._try, item)
        return math.inf

    async def _try(self, item: _Item) -> None:
        file, began = item.file, trio.current_time()
        assert self._hands is not None
        try:
            await self._hands.upload(file)
        except (JfsError, OSError) as error:
            if may_pass(error):
                await self._failed(item, error, began)
            else:
                await self._refuse(item, error)
        except Exception as error:  # one file must not end the mount
            log.exception("%s: its upload failed", file.inode.path)
            await self._failed(item, error, began)
        else:
            self._worked(item)
        finally:
            item.running = False
            self._active -= 1
        if not file.is_pending:
            await self._leave(item)
        elif item.due <= began:  # cut, and what was to replace it was given up
            self._schedule(item, trio.current_time() + item.rest_s)
        else:  # what was scheduled while it ran was passed over
            self._schedule(item, item.due)
        self._tell()

    def _worked(self, item: _Item) -> None:
        repository = self._of(item)
        if repository.failures:
            log.info("%s: uploads get through again", item.file.inode.path.repo)
            self.wake(item.file.inode.path.repo)

    async def _failed(self, item: _Item, error: Exception, began: float) -> None:
        now = trio.current_time()
        item.tries += 1
        item.error = str(error)
        repository = self._of(item)
        item.failed_at = repository.failed_at = now
        if repository.until <= began:  # others that failed with it count once
            repository.failures += 1
            repository.until = now + self._pause(repository.failures, error)
        if repository.failures == 1:
            log.info("%s: waits for its upload: %s", item.file.inode.path, error)
        self._schedule(item, now + self._pause(item.tries, error))
        entry = item.file.staged.entry if item.file.staged is not None else None
        if entry is not None and item.file.is_pending:
            later = time.time_ns() + int((self._time(item) - now) * 1e9)
            changes = {"error": item.error, "tries": item.tries, "next_ns": later}
            try:
                await waiting.on_disk(lambda: entry.note(**changes))
            except OSError as disk:
                log.warning("%s: its journal cannot be written: %s", item.file.inode.path, disk)

    def _pause(self, failures: int, error: Exception) -> float:
        first, longest = self._settings.retry_s
        ceiling = min(longest, first * 2.0 ** min(failures - 1, 30))
        asked = getattr(error, "retry_after_s", None) or 0.0
        return max(self._rng.uniform(ceiling / 2, ceiling), min(asked, longest))

    async def _refuse(self, item: _Item, error: Exception) -> None:
        self._refused += 1
        assert self._hands is not None
        try:
            await self._hands.refuse(item.file, error)
        except OSError as disk:
            log.error("%s: its journal cannot be written: %s", item.file.inode.path, disk)
            self._schedule(item, trio.current_time() + self._settings.retry_s[1])

    async def _leave(self, item: _Item) -> None:
        assert self._hands is not None
        if self._items.get(item.file) is item:
            del self._items[item.file]
            await self._hands.left(item.file)


def may_pass(error: Exception) -> bool:
    """Whether an upload may succeed later, as it is, without anybody who looks at it."""
    if isinstance(error, OSError):  # of this disk, which may get room again, or be mended
        return is_of_descriptors(error) or is_local(error)
    match error:
        case AccessDenied(status=status):
            return status is None or status in _CREDENTIALS
        case Conflict(status=status):
            return status == _LOCKED
        case ProtocolViolation(status=status):
            return status is None or not 400 <= status < 500
    return isinstance(error, Unavailable | RateLimited | QuotaExceeded | MountEnding)
