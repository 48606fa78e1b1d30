"""What earlier mounts left in the journal: go on with it, where that is safe.

A file that was closed, and whose upload was interrupted by the end of its process, is uploaded
again; but only if the server still has what it had when the file was opened: what somebody put
there since is newer. What was never closed may be half a file, and what was refused has been
reported to its writer: both wait for a person, ``jfs recover``.

Trio thread only, but for ``export``.
"""

import enum
import hashlib
import logging
import os
import secrets
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path

from jfs import waiting
from jfs.disk import copy_data
from jfs.errors import ChangedElsewhere, IntegrityError, JfsError, NotFound, is_local
from jfs.extents import MiB
from jfs.model import SYMLINK_TARGET, Checksums, Deployment, FileInfo, RepoPath
from jfs.protocols import ArtifactStore
from jfs.vfs.writing.area import StagingArea
from jfs.vfs.writing.journal import Entry, Sighting
from jfs.vfs.writing.records import Record, State

log = logging.getLogger(__name__)

NOT_WHOLE = (
    "is not what was written: the machine stopped before all of it was on this disk: export and "
    "look at it; retry --force uploads it as it is"
)
Claim = Callable[[RepoPath], AbstractAsyncContextManager[None]]


class Outcome(enum.Enum):
    """What became of a staged file."""

    UPLOADED = "uploaded"
    WAS_THERE = "was on the server already"
    CHANGED = "the server has other content by now"


async def resume(area: StagingArea, store: ArtifactStore, claimed: Claim) -> None:
    """Upload what was interrupted; say what waits. Never raises; for the start of a mount.

    Args:
        claimed: holds the claim of a path: who writes there meanwhile waits for his turn, and then
            finds what came before him.
    """
    kept = 0
    # One by one: meanwhile the others are free for `jfs recover`.
    left = area.journal.left_behind()
    while (entry := await waiting.on_disk(_next, left)) is not None:
        try:
            if entry.record.server != area.server or entry.record.state is State.PENDING:
                continue  # what is pending waits for a mount that shows its place
            if entry.record.state is State.DEPLOYING and entry.record.supersedes:
                continue  # so does what is newer: alone, it would leave the older one queued
            if entry.record.state is not State.DEPLOYING:
                kept += 1
                continue
            async with claimed(entry.record.path):
                kept += not await _resume_one(entry, store)
        finally:
            entry.close()
    if kept:
        log.info("%d files of earlier mounts were not uploaded: `jfs recover ls`", kept)


def _next(left: Iterator[Entry]) -> Entry | None:
    try:
        return next(left, None)
    except OSError as error:
        log.warning("what earlier mounts left cannot be looked at: %s", error)
        return None


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
        target: the place; in another than its own what is there counts as having come since.
    Raises:
        RemoteError, IntegrityError: the server's verdict; the journal keeps the file.
        IntegrityError: without *force*, also if the data is not what was written.
        OSError: the local disk failed.
    """
    record = entry.record
    path = target or record.path
    base, sent = (record.base, record.sent) if path == record.path else (None, ())
    size = await waiting.on_disk(lambda: entry.size)
    sha256 = await waiting.hashing(partial(digest, entry.file), size)
    expected = {base, *sent}
    there = await _sha256_at(store, path)
    if not force and not is_whole(record, sha256):
        if record.sha256 and there == record.sha256:  # the upload had ended
            await waiting.on_disk(entry.remove)
            return Outcome.WAS_THERE
        await waiting.on_disk(partial(entry.update, state=State.FAILED, error=NOT_WHOLE))
        raise IntegrityError(f"{path}: {NOT_WHOLE}")
    if there == sha256:
        # Our own upload may have ended before it had set those that a deploy does not carry.
        found = await store.properties(path)
        if lacks := {key: record.properties[key] for key in record.properties.keys() - found}:
            await store.set_properties(path, lacks)
        await waiting.on_disk(entry.remove)
        return Outcome.WAS_THERE
    if not force and there not in expected:
        return Outcome.CHANGED

    async def still(stored: Collection[str]) -> None:
        if await _sha256_at(store, path) not in {sha256, *expected, *stored}:
            raise ChangedElsewhere(f"{path}: was changed on the server meanwhile")

    properties = record.properties
    if there is not None:
        # The server would drop what is not sent again; what was set since counts too.
        found = await store.properties(path)
        kept = {key: values for key, values in found.items() if key != SYMLINK_TARGET}
        properties = {**kept, **properties}
    deployment = Deployment(path, size, Checksums(sha256=sha256), properties, record.modified_ns)
    try:
        await store.deploy(deployment, entry.file, still=None if force else still)
    except ChangedElsewhere:
        return Outcome.CHANGED
    except (JfsError, OSError) as error:
        changes = {"error": str(error), "state": _state_after(error, record.state)}
        await waiting.on_disk(lambda: entry.update(**changes))
        raise
    await waiting.on_disk(entry.remove)
    return Outcome.UPLOADED


def is_whole(record: Record, sha256: str) -> bool:
    """Whether data is what was closed, as far as is known; *sha256*: of the data."""
    if record.state is State.WRITING:
        return True
    return record.sha256 == sha256 if record.sha256 else not record.is_of_another_boot


def _state_after(error: Exception, state: State) -> State:
    """Return the state after another upload failed.

    What was never closed stays so, and what may work a while later is left to the next mount.
    """
    passing = is_local(error) or (isinstance(error, JfsError) and error.retryable)
    closed = state in (State.DEPLOYING, State.PENDING)
    return State.FAILED if closed and not passing else state


def describe(record: Record) -> str:
    """Say in words why a file waits, which no process holds."""
    match record.state:
        case State.WRITING if record.half:
            return f"{record.error}; it gives way to what needs its room"
        case State.WRITING:
            text = "was being written when its mount ended"
        case State.DEPLOYING:
            text = "was being uploaded when its mount ended"
        case State.PENDING:
            text = "waits for the next mount of its place"
        case State.FAILED:
            return record.error or "its upload failed"
    return f"{text}; since then: {record.error}" if record.error else text


def describe_waiting(sighting: Sighting) -> str:
    """Say in words since when a file is queued, and what is done about it."""
    record = sighting.record
    text = f"closed {_ago(record.queued_ns)} ago"
    if record.promised is not None and sighting.in_use:
        return f"{text}; newer content is being written"
    if record.tries:
        text += f", tried {record.tries} times: {record.error}"
    if not sighting.in_use:
        return f"{text}; the next mount of its place uploads it"
    left_s = (record.next_ns - time.time_ns()) / 1e9
    return f"{text}; next try in {left_s:.0f} s" if record.tries and left_s > 0 else text


def _ago(time_ns: int) -> str:
    seconds = max(0, time.time_ns() - time_ns) // 1_000_000_000
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"


def export(entry: Entry, target: Path) -> None:
    """Copy the bytes to *target*, over what is there, holes as holes. Blocking. Raises OSError.

    They are on disk under that name, or it is as it was.
    """
    temporary = target.with_name(f".jfs-{secrets.token_hex(8)}")
    out = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        try:
            copy_data(entry.file, out)
            os.fsync(out)
        finally:
            os.close(out)
        temporary.rename(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


async def _sha256_at(store: ArtifactStore, path: RepoPath) -> str | None:
    """Return what is at a path; None: no file; "": one of which the server does not say it.

    That is not what it was, as far as we know: it is no hole to write into.
    """
    try:
        info = await store.stat(path)
    except NotFound:
        return None
    return (info.checksums.sha256 or "") if isinstance(info, FileInfo) else None


def digest(file: int) -> str:
    """Return the sha256 of a file. Blocking. Raises OSError."""
    found = hashlib.sha256()
    position = 0
    while data := os.pread(file, MiB, position):
        found.update(data)
        position += len(data)
    return found.hexdigest()
