"""From a staged file to an artifact: checksums, properties, journal, verdict. Trio thread.

A deploy either becomes the whole artifact or changes nothing, and its failure keeps the bytes: the
journal then says why, and ``jfs recover`` deals with them.
"""

import logging
import time
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from functools import partial

import trio

from jfs import waiting
from jfs.errors import (
    AlreadyExists,
    ChangedElsewhere,
    IntegrityError,
    JfsError,
    NotFound,
    RemoteError,
    disk_words,
)
from jfs.metrics import Metrics
from jfs.model import (
    SYMLINK_TARGET,
    Checksums,
    Deployment,
    EntryInfo,
    FileInfo,
    Properties,
    RepoPath,
    same_content,
)
from jfs.protocols import ArtifactStore, BlockStore, Still
from jfs.vfs.writing.area import StagingArea
from jfs.vfs.writing.journal import Entry
from jfs.vfs.writing.overlap import Overlaps
from jfs.vfs.writing.records import State
from jfs.vfs.writing.staging import StagingFile

log = logging.getLogger(__name__)

# An upload that takes longer goes to disk meanwhile: a loss of power in the middle of it counts.
# A shorter one is slowed down by that (2 GiB on two cores: 0.60 of curl's speed, not 0.71); it is
# synced if it fails.
_SYNC_AFTER_S = 10.0
_TRIES_BESIDE_WRITES = 4


class Deployer:
    """The uploads of one mount.

    Args:
        top: what is mounted.

    Attributes:
        overlaps: those of files that are still being written.
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
        self._nursery = nursery
        self._store = store
        self._area = area
        self._metrics = metrics
        self.overlaps = Overlaps(store, area, metrics, nursery, top, cache)
        nursery.start_soon(self.overlaps.sweep)
        self.active = 0  # uploads that are under way
        self._idle = trio.Event()
        self._idle.set()

    async def wait_idle(self) -> None:
        """Return when no upload is under way, those that begin meanwhile included."""
        while self.active:
            await self._idle.wait()

    async def deploy(
        self,
        staged: StagingFile,
        path: RepoPath,
        *,
        base: FileInfo | None,
        properties: Properties,
        modified_ns: int | None,
        patient: bool = True,
    ) -> FileInfo:
        """Make the staged bytes the artifact at *path*. Nobody may write to them meanwhile.

        Args:
            base: what was at *path* when it was opened; None: nothing. What is there keeps its
                properties (the server would drop them, artifactory-rest 4.4).
            properties: set on it before it ever was on the server.
            modified_ns: its time, if somebody set one.
            patient: somebody waits for it; else it is tried again later.
        Raises:
            AlreadyExists: --no-overwrite, and somebody else was faster.
            ChangedElsewhere: the server has something else than *base* now, and it was not us.
            IntegrityError, RemoteError: the server's verdict; the journal has kept it.
            OSError: the local disk failed.
        """
        deploy = partial(self._deploy, staged, path, base, properties, modified_ns, patient)
        for _ in range(_TRIES_BESIDE_WRITES - 1):
            try:
                return await self._noted(staged, await deploy())
            except JfsError:
                # The kernel writes to it: somebody has, and what came is not what was hashed.
                if staged.unseen is None or not staged.unseen.is_there():
                    raise
        return await self._noted(staged, await deploy())

    async def _noted(self, staged: StagingFile, info: FileInfo) -> FileInfo:
        """Have the journal expect more of what the kernel still writes to."""
        entry = staged.entry
        if staged.unseen is not None and entry is not None:
            change = partial(entry.update, state=State.WRITING, sha256="", base_size=info.size)
            try:
                await waiting.on_disk(partial(change, base=info.checksums.sha256))
            except OSError as error:
                log.warning("%s: its journal is behind: %s", info.path, disk_words(error))
        return info

    async def _deploy(
        self,
        staged: StagingFile,
        path: RepoPath,
        base: FileInfo | None,
        properties: Properties,
        modified_ns: int | None,
        patient: bool,
    ) -> FileInfo:
        settings = self._area.settings
        async with self._under_way(staged) as entry:
            if staged.lent is not None and not staged.lent.is_whole:
                await staged.own(staged.size)
            if base is None and settings.no_overwrite:
                await self._require_absent(path, staged.sent)
            there = {} if base is None else await self._store.properties(path)
            # It may have been a symbolic link, whose place a file takes.
            kept = {key: values for key, values in there.items() if key != SYMLINK_TARGET}
            if staged.sent and base is not None:
                # A try may have put the bytes there, and failed before it had set those properties
                # that a deploy does not carry.
                kept = {**staged.properties, **kept}
            staged.properties = kept
            properties = {**(properties or kept), **settings.properties}
            sha256 = await waiting.hashing(
                partial(_seal, staged, entry, path, properties, modified_ns), staged.size
            )
            deployment = Deployment(
                path, staged.size, Checksums(sha256=sha256), properties, modified_ns
            )
            ours = {sha256, *staged.sent}

            async def still(stored: Collection[str] = ()) -> None:
                """There is no condition on the wire for it: right before each try has to do."""
                if base is None and settings.no_overwrite:
                    await self._require_absent(path, {*ours, *stored})
                elif not settings.last_writer_wins:
                    await self._require_unchanged(path, base, {*ours, *stored})

            if not settings.last_writer_wins:
                await still()
            staged.sent.add(sha256)
            if entry.record.state is State.PENDING and sha256 not in entry.record.sent:
                sent = (*entry.record.sent, sha256)
                await waiting.on_disk(lambda: entry.update(sent=sent))
            done = trio.Event()
            self._nursery.start_soon(_sync_if_long, entry, staged.size, done)
            try:
                info = await self._sent(staged, deployment, still, patient=patient)
            finally:
                done.set()
                if staged.overlap is not None:
                    staged.overlap.give_up()
            if gone := there.keys() - properties.keys():
                # Where the bytes are the same the server keeps what is not named.
                await self._store.set_properties(path, dict.fromkeys(gone))
            staged.properties = {}
        self._metrics.count("deploys")
        # The answer to a deploy names no time of modification.
        return replace(info, modified_ns=modified_ns or time.time_ns())

    async def _sent(
        self, staged: StagingFile, deployment: Deployment, still: Still, *, patient: bool
    ) -> FileInfo:
        """Send what is staged: first the digest of what is lent, or on its way already."""
        sha256 = deployment.checksums.sha256
        assert sha256 is not None
        if staged.lent is not None:
            with suppress(NotFound):
                return await self._store.deploy(deployment, None, patient=patient, still=still)
            await staged.own(staged.size)
            if await waiting.hashing(staged.sha256, staged.size) != sha256:
                raise IntegrityError(f"{deployment.path}: what was copied is not what it was")
            await still(())  # to fetch it may have taken a while
        if staged.overlap is not None and not staged.overlap.has_ended:
            with suppress(RemoteError):
                return await self._store.deploy(deployment, None, patient=False, still=still)
            if await staged.overlap.finish(staged.size, sha256):
                self._metrics.count("overlapped")
            await still(())  # that may have taken a while, of use or not
        return await self._store.deploy(deployment, staged.file, patient=patient, still=still)

    async def close(self) -> None:
        """End what is on its way, for the end of the mount: a few seconds at most."""
        await self.overlaps.close()

    @asynccontextmanager
    async def _under_way(self, staged: StagingFile) -> AsyncIterator[Entry]:
        """Count an upload while it lasts; what fails is kept, and the journal says why.

        What is PENDING stays so: whoever has queued it decides.
        """
        assert staged.entry is not None
        if not self.active:
            self._idle = trio.Event()
        self.active += 1
        try:
            yield staged.entry
        except (JfsError, OSError) as error:
            self._metrics.count("deploys_failed")
            if staged.entry.record.state is not State.PENDING and staged.lent is None:
                said = disk_words(error) if isinstance(error, OSError) else str(error)
                size = staged.size + waiting.SYNCED
                await waiting.on_disk(keep, staged.entry, said, size=size)
            raise
        finally:
            self.active -= 1
            if not self.active:
                self._idle.set()

    async def _require_unchanged(
        self, path: RepoPath, base: FileInfo | None, ours: Collection[str]
    ) -> None:
        """Whether *path* has what it had, or what we have sent: an answer may have been lost."""
        there: EntryInfo | None = None
        with suppress(NotFound):
            there = await self._store.stat(path)
        if there is None and base is None:
            return
        if isinstance(there, FileInfo):
            if base is not None and same_content(there, base):
                return
            if there.checksums.sha256 in ours:
                return
        what = "was changed" if base is not None and there is not None else "was made"
        if there is None:
            what = "was removed"
        raise ChangedElsewhere(
            f"{path}: {what} on the server since it was opened here; what was written here is kept"
        )

    async def _require_absent(self, path: RepoPath, ours: Collection[str]) -> None:
        try:
            there = await self._store.stat(path)
        except NotFound:
            return
        if isinstance(there, FileInfo) and there.checksums.sha256 in ours:
            return  # the answer to an earlier try was lost
        raise AlreadyExists(f"{path}: is on the server, and --no-overwrite keeps what is there")


def _seal(
    staged: StagingFile,
    entry: Entry,
    path: RepoPath,
    properties: Properties,
    modified_ns: int | None,
) -> str:
    """Finish the digest, and note in the journal that the file is whole. Blocking.

    Nothing waits for this disk: after a loss of power the note may be there, and the data not, or
    not all of it. Then the digest tells.

    A journal that cannot be written, on a disk that is full or read-only by now, is no reason not
    to upload what can be read: if we are killed meanwhile, the file counts as never closed.
    """
    sha256 = staged.sha256()
    # Of what is PENDING the journal has it all; of what is lent there is nothing to be kept.
    if entry.record.state is not State.PENDING and staged.lent is None:
        try:
            entry.update(
                state=State.DEPLOYING,
                path=path,
                properties=properties,
                modified_ns=modified_ns,
                error="",
                sha256=sha256,
            )
        except OSError as error:
            log.warning("%s: uploaded without its journal: %s", path, disk_words(error))
    return sha256


def keep(entry: Entry, reason: str) -> None:
    """Let the bytes of a failed upload survive everything. Blocking; never raises."""
    try:
        entry.update(state=State.FAILED, error=reason)
        entry.sync()
    except OSError as error:
        log.error("%s: its journal cannot be written: %s", entry.record.path, disk_words(error))


async def _sync_if_long(entry: Entry, size: int, done: trio.Event) -> None:
    """Write to disk beside a long upload, which does not wait for it."""
    with trio.move_on_after(_SYNC_AFTER_S):
        await done.wait()
        return
    try:
        await waiting.on_disk(entry.sync_data, size=size + waiting.SYNCED)
    except OSError as error:
        # The upload goes on: it does not need this disk any more.
        log.warning("%s: the staged copy may not survive: %s", entry.record.path, error)
