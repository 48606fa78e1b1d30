"""A large new file is on its way to the server while it is still being written.

Its bytes go, behind the writer and in order, to a name that nobody is shown. When the file is
closed and the server has received exactly what was written, the content takes its place by its
checksum, and the name is removed: what is left to do at close is the rest of the bytes. Whatever
comes in between (bytes that were sent change, the server refuses or goes, the writer rests) ends
it, and the file is uploaded as any other: nothing is ever asked of it but speed.

Trio thread, except where it says otherwise.
"""

import contextlib
import hashlib
import logging
import os
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import trio

from jfs import threads, waiting
from jfs.errors import (
    AccessDenied,
    Conflict,
    DiskHangs,
    JfsError,
    NotFound,
    ReadOnly,
    RemoteError,
    disk_words,
)
from jfs.folding import fold_as
from jfs.metrics import Metrics
from jfs.model import Checksums, Deployment, FileInfo, RepoPath, passing_name
from jfs.protocols import ArtifactStore, BlockStore
from jfs.vfs.writing.area import StagingArea
from jfs.vfs.writing.leftovers import Leftover, Leftovers
from jfs.vfs.writing.staging import StagingFile

log = logging.getLogger(__name__)

# At a time: each has a connection and a thread for as long as its file is written.
_MOST = 4
# Servers and proxies give up a body of which nothing comes for a minute (nginx, Tomcat).
_RESTS_S = 30.0
_LOOK_S = 1.0
_SEEN_S = 2.0
# At the end of a mount: what is not removed by then, the next one removes.
_END_S = 3.0
# What is so for a repository. Not so: a token that has expired, and is replaced one day.
_REFUSALS = (AccessDenied, Conflict, ReadOnly)
_WANTS_CREDENTIALS = 401
_OF_NOTHING = hashlib.sha256().hexdigest()
# The same for every node: where it cannot be removed, one empty file is all that stays.
_TRIED = passing_name("0" * 8, "0" * 16)


class Overlap:
    """One file on its way: ``Growing`` for who sends it, ``Follower`` for who writes it.

    Attributes:
        file: where it is staged.
        done: nothing is sent any more. *given_up*: nobody needs what was sent.
        found: what the server has received; None: not all of it, or it was cut.
        is_rewritten: bytes that were sent have changed.
    """

    def __init__(self, staged: StagingFile, path: Path) -> None:
        self._staged = staged
        self.file = path
        self._moved = threading.Condition()
        self._given = 0  # bytes that may have been sent
        self._awaited = 0  # how many the sender waits for
        self._moved_at = time.monotonic()
        self._size: int | None = None  # known once nothing more is written
        self._cut = False
        self._token = trio.lowlevel.current_trio_token()
        self.scope = trio.CancelScope()
        self.done = trio.Event()
        self.given_up = trio.Event()
        self.is_rewritten = False
        self.found: FileInfo | None = None

    # StagingFile's side: the thread that writes

    def changed(self, start: int) -> None:
        """Bytes from *start* on were written, or cut off. Any thread."""
        with self._moved:
            if start < self._given:
                self.is_rewritten = True
                self._cut_now()
            # Woken for every write, the sender would cost as much as what it sends.
            if self._cut or self._staged.ordered >= self._awaited:
                self._moved.notify_all()

    # the sender's side

    def ready(self, sent: int, most: int, wait_s: float) -> int | None:
        """See ``Growing``. Any thread."""
        deadline = time.monotonic() + wait_s
        with self._moved:
            while True:
                if self._cut:
                    raise OSError("cut")
                end = self._staged.ordered if self._size is None else self._size
                left_s = deadline - time.monotonic()
                if end >= sent + most or (end > sent and (left_s <= 0 or self._size is not None)):
                    self._given = max(self._given, min(end, sent + most))
                    self._moved_at = time.monotonic()
                    return min(end, sent + most)
                if self._size is not None:
                    return None
                if left_s <= 0:
                    if time.monotonic() - self._moved_at > _RESTS_S:
                        raise OSError(f"nothing was written for {_RESTS_S:g} s")
                    return sent
                self._awaited = sent + most
                self._moved.wait(left_s)

    # the deployer's side

    @property
    def has_ended(self) -> bool:
        return self._cut or (self.done.is_set() and self.found is None)

    async def finish(self, size: int, sha256: str) -> bool:
        """Send the rest, of a file that nobody writes any more; whether the server has it then.

        Raises DiskHangs.
        """
        with self._moved:
            self._size = size
            self._moved.notify_all()
        given = -1
        while not self.done.is_set():
            with trio.move_on_after(_LOOK_S):
                await self.done.wait()
            if not self.done.is_set() and given == self._given:
                await _require_no_hang(self.file, given)
            given = self._given
        found = self.found
        return found is not None and found.size == size and found.checksums.sha256 == sha256

    def give_up(self) -> None:
        """Nobody needs it any more: cut it, and let its name be removed. Any thread."""
        with self._moved:
            self._cut_now()
            self._moved.notify_all()
        self._soon(self.given_up.set)

    @property
    def is_whole(self) -> bool:
        """Whether all of it may have been sent."""
        return self._size is not None

    @property
    def is_cut(self) -> bool:
        """Whether it was cut here: for what was written, or since nobody needs it."""
        return self._cut

    def _cut_now(self) -> None:
        if not self._cut:
            self._cut = True
            self._soon(self.scope.cancel)

    def _soon(self, call: Callable[[], object]) -> None:
        with contextlib.suppress(trio.RunFinishedError):
            self._token.run_sync_soon(call)


class Overlaps:
    """What of one mount is on its way.

    Args:
        top: what is mounted: the names are in it, or in its repository.
        cache: what begins as something in it does is known here, and to the server perhaps.
    """

    def __init__(
        self,
        store: ArtifactStore,
        area: StagingArea,
        metrics: Metrics,
        nursery: trio.Nursery,
        top: RepoPath,
        cache: BlockStore | None,
    ) -> None:
        settings = area.settings
        self._store = store
        self._metrics = metrics
        self._nursery = nursery
        self._top = top
        self._cache = cache
        self._seeing = trio.CapacityLimiter(_MOST)
        self._leftovers = Leftovers(area.journal.directory, area.server)
        self._from = settings.overlap_from
        self._refused: set[str] = set()  # repositories
        self._tried: set[str] = set()
        # Kinds of files whose writers come back to their beginning, as those of HDF5 do and some
        # of zip: what was sent of one was sent in vain, and of the next would be.
        self._rewritten: set[str] = set()
        self._sending = 0
        self._under_way: set[Overlap] = set()
        self._idle = trio.Event()
        self._idle.set()
        token = trio.lowlevel.current_trio_token()

        def grown(staged: StagingFile) -> None:
            with contextlib.suppress(trio.RunFinishedError):
                token.run_sync_soon(self._consider, staged)

        # What is closed under --write-back waits for nobody; and a name must be removed again.
        if settings.overlap and not (settings.write_back or settings.no_delete):
            area.grown = grown

    def _consider(self, staged: StagingFile) -> None:
        """Begin to send a file that has grown, if that is worth it. Never waits."""
        if staged.entry is None or staged.inherits or staged.is_gone or staged.overlap is not None:
            return
        path = staged.entry.record.path
        repo, kind = path.repo, _kind_of(path)
        if kind in self._rewritten:
            return
        if self._sending >= _MOST or repo in self._refused or not self._store.removes(repo):
            return
        overlap = Overlap(staged, staged.entry.data_path)
        staged.overlap = overlap
        if not self._under_way:
            self._idle = trio.Event()
        self._under_way.add(overlap)
        self._sending += 1
        self._nursery.start_soon(self._run, overlap, repo, kind)

    async def sweep(self) -> None:
        """Remove what mounts have left on the server that live no more. Never raises."""
        try:
            for left in await waiting.on_disk(lambda: list(self._leftovers.left())):
                await self._remove(left)
        except OSError as error:
            log.info("leftovers of uploads are not looked for: %s", disk_words(error))

    async def wait_idle(self) -> None:
        """Return when nothing is on its way, and every name is removed."""
        while self._under_way:
            await self._idle.wait()

    async def close(self) -> None:
        """Cut everything; what cannot be removed soon the next mount removes."""
        for overlap in tuple(self._under_way):
            overlap.give_up()
        with trio.move_on_after(_END_S):
            await self.wait_idle()

    async def _run(self, overlap: Overlap, repo: str, kind: str) -> None:
        left = None
        try:
            try:
                if await self._is_worth_it(overlap, repo):
                    folder = self._folder(repo)
                    left = await waiting.on_disk(self._leftovers.note, folder, late=Leftover.remove)
                    self._metrics.count("overlaps")
                    with overlap.scope:
                        overlap.found = await self._store.stream(left.path, overlap.file, overlap)
            except (*_REFUSALS, NotFound) as error:
                self._refuse(repo, error)
            except (JfsError, OSError) as error:
                if not overlap.is_cut:
                    once = fold_as("uploading while it is written", repo)
                    log.info("%s: to be uploaded when it is closed: %s", repo, error, extra=once)
            except Exception:  # a fault of ours must not end a mount for the sake of speed
                log.exception("%s: to be uploaded when it is closed", repo)
            finally:
                self._sending -= 1
                overlap.done.set()
            if overlap.is_rewritten:
                self._rewritten.add(kind)
            if left is not None:
                if overlap.found is not None:
                    await overlap.given_up.wait()
                await self._remove(left, may_come=overlap.found is None and overlap.is_whole)
        finally:
            if left is not None:
                left.close()
            self._under_way.discard(overlap)
            if not self._under_way:
                self._idle.set()

    async def _is_worth_it(self, overlap: Overlap, repo: str) -> bool:
        """Whether the content is new to this node, and its name can be removed again.

        Raises JfsError, OSError.
        """
        if self._cache is not None:
            seen = partial(self._cache.has_beginning, overlap.file, self._from)
            # Apart from what is staged: a cache that is huge, or whose disk hangs, is asked for a
            # moment, and no write fails for it.
            with trio.move_on_after(_SEEN_S), contextlib.suppress(OSError):
                if await threads.abandoning(self._seeing, seen):
                    return False
        if repo not in self._tried:  # nothing large shall stay where nothing may be removed
            path = self._folder(repo).child(_TRIED)
            nothing = Deployment(path, 0, Checksums(sha256=_OF_NOTHING))
            try:
                await self._store.deploy(nothing, None, patient=False)
                with contextlib.suppress(NotFound):  # another node tries, too
                    await self._store.delete(path)
            except Conflict as error:  # the same; many begin at the same moment
                log.info("%s: to be tried with the next file: %s", path, error)
                return False
            self._tried.add(repo)
        return True

    def _folder(self, repo: str) -> RepoPath:
        return self._top if self._top.repo == repo else RepoPath(repo)

    def _refuse(self, repo: str, error: RemoteError) -> None:
        if error.status == _WANTS_CREDENTIALS:
            log.info("%s: to be uploaded when it is closed: %s", repo, error)
            return
        if repo not in self._refused:
            log.info("%s: what is uploaded there is uploaded when it is closed: %s", repo, error)
        self._refused.add(repo)

    async def _remove(self, left: Leftover, *, may_come: bool = False) -> None:
        """Remove a name from the server, if it is there. Never raises JfsError, OSError.

        What the server does not answer to, or refuses, the next mount removes, which may have other
        rights.

        Args:
            may_come: all of it was sent, and no answer heard: it may be there in a moment.
        """
        try:
            try:
                await self._store.delete(left.path)
            except NotFound:
                if may_come:
                    return
            except JfsError as error:
                if isinstance(error, _REFUSALS):
                    self._refuse(left.path.repo, error)
                log.info("%s: removed by the next mount: %s", left.path, error)
                return
            await waiting.on_disk(left.remove)
        except OSError as error:
            log.info("%s: its note stays: %s", left.path, disk_words(error))
        finally:
            left.close()


def _kind_of(path: RepoPath) -> str:
    return path.name.rpartition(".")[2].lower()


async def _require_no_hang(file: Path, offset: int) -> None:
    """Whoever sends stands still: for the server, or for the disk? Raises DiskHangs."""
    try:
        await waiting.on_disk(_look, file, offset)
    except DiskHangs:
        raise
    except OSError:
        pass  # who sends will find out


def _look(file: Path, offset: int) -> None:
    """Read a byte: raises OSError, or does not return if the disk hangs."""
    with file.open("rb", buffering=0) as opened:
        os.pread(opened.fileno(), 1, offset)
