"""What earlier mounts left in the journal: go on with it, where that is safe. Trio thread only.

A file that was closed, and whose upload was interrupted by the end of its process, is uploaded
again; but only if the server still has what it had when the file was opened: what somebody put
there since is newer. What was never closed may be half a file, and what was refused has been
reported to its writer: both wait for a person, ``jfs recover``.
"""

import enum
import hashlib
import logging
import os

import trio

from jfs.errors import JfsError, NotFound
from jfs.extents import MiB
from jfs.model import Checksums, Deployment, FileInfo, RepoPath
from jfs.protocols import ArtifactStore
from jfs.vfs.journal import Entry, Record, State
from jfs.vfs.staging import StagingArea

log = logging.getLogger(__name__)


class Outcome(enum.Enum):
    """What became of a staged file."""

    UPLOADED = "uploaded"
    WAS_THERE = "was on the server already"
    CHANGED = "the server has other content by now"


async def resume(area: StagingArea, store: ArtifactStore) -> None:
    """Upload what was interrupted; say what waits. Never raises; for the start of a mount."""
    waiting = 0
    for entry in await trio.to_thread.run_sync(lambda: list(area.journal.left_behind())):
        try:
            if entry.record.server != area.server:
                continue
            if entry.record.state is not State.DEPLOYING:
                waiting += 1
                continue
            waiting += not await _resume_one(entry, store)
        finally:
            entry.close()
    if waiting:
        log.info("%d files of earlier mounts were not uploaded: `jfs recover ls`", waiting)


async def _resume_one(entry: Entry, store: ArtifactStore) -> bool:
    path = entry.record.path
    try:
        outcome = await upload(entry, store, force=False)
    except (JfsError, OSError) as error:
        log.info("%s: its upload was interrupted, and fails again: %s", path, error)
        return False
    log.info("%s: its upload was interrupted: %s", path, outcome.value)
    return outcome is not Outcome.CHANGED


async def upload(
    entry: Entry, store: ArtifactStore, *, force: bool, target: RepoPath | None = None
) -> Outcome:
    """Upload a staged file, and take it out of the journal once it is on the server.

    Args:
        force: also over content that came there since the file was opened.
        target: another place than its own.
    Raises:
        RemoteError, IntegrityError: the server's verdict; the journal keeps the file.
        OSError: the local disk failed.
    """
    record = entry.record
    path = target or record.path
    sha256 = await trio.to_thread.run_sync(_digest, entry.file)
    there = await _sha256_at(store, path)
    if there == sha256:
        await trio.to_thread.run_sync(entry.remove)
        return Outcome.WAS_THERE
    if not force and target is None and there != record.base:
        return Outcome.CHANGED
    properties = record.properties
    if there is not None and not properties:
        properties = await store.properties(path)
    deployment = Deployment(
        path, entry.size, Checksums(sha256=sha256), properties, record.modified_ns
    )
    try:
        await store.deploy(deployment, entry.file)
    except (JfsError, OSError) as error:
        text = str(error)
        await trio.to_thread.run_sync(lambda: entry.update(state=State.FAILED, error=text))
        raise
    await trio.to_thread.run_sync(entry.remove)
    return Outcome.UPLOADED


def describe(record: Record) -> str:
    """Say in words why a file waits."""
    match record.state:
        case State.WRITING:
            return "was being written when its mount ended"
        case State.DEPLOYING:
            return "was being uploaded when its mount ended"
        case State.FAILED:
            return record.error or "its upload failed"


async def _sha256_at(store: ArtifactStore, path: RepoPath) -> str | None:
    try:
        info = await store.stat(path)
    except NotFound:
        return None
    return info.checksums.sha256 if isinstance(info, FileInfo) else None


def _digest(file: int) -> str:
    found = hashlib.sha256()
    position = 0
    while data := os.pread(file, MiB, position):
        found.update(data)
        position += len(data)
    return found.hexdigest()
