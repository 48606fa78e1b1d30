"""``jfs recover``: files that a running mount uploads behind; it does what is wanted of them."""

import time
from collections.abc import Sequence
from pathlib import Path

from jfs.cli import mounted
from jfs.errors import JfsError
from jfs.vfs.writing import recovery
from jfs.vfs.writing.journal import Entry, Journal, Sighting
from jfs.vfs.writing.records import Record, State

_POLL_S = 0.05
_UPLOADING_S = 10.0  # then its mount goes on with it alone


def waits(sighting: Sighting) -> bool:
    """Whether a running mount will upload a file."""
    return sighting.in_use and sighting.record.state is State.PENDING


def is_queued(journal: Journal | None, name: str) -> bool:
    """Whether a running mount will upload the file of this name."""
    return any(each.name == name and waits(each) for each in _survey(journal))


def _survey(journal: Journal | None) -> list[Sighting]:
    return [] if journal is None else journal.survey()


def retry(journal: Journal | None, name: str) -> str:
    """Have the mount that has a file upload it now; say what came of it. Raises JfsError."""
    before = _seen(journal, name)
    if before is None:
        return "uploaded"
    _tell_mounts()
    deadline = time.monotonic() + _UPLOADING_S
    while time.monotonic() < deadline:
        now = _seen(journal, name)
        if now is None:
            return f"{place_of(before.record)}: uploaded"
        if now.record.state is State.FAILED or now.record.tries > before.record.tries:
            raise JfsError(f"{name}: {place_of(now.record)}: {now.record.error}")
        time.sleep(_POLL_S)
    return f"{place_of(before.record)}: its mount is at it (jfs status)"


def _seen(journal: Journal | None, name: str) -> Sighting | None:
    return next((each for each in _survey(journal) if each.name == name), None)


def _tell_mounts() -> None:
    for entry in mounted.ours():
        mounted.upload_now(entry.mountpoint)


def look(journal: Journal | None, name: str) -> Entry:
    """Open a staged file that a running mount has, to be read. Raises JfsError."""
    entry = journal.look(name) if journal is not None else None
    if entry is None:
        raise JfsError(f"{name}: is not there any more")
    return entry


def export(journal: Journal | None, entry: Entry, target: Path) -> None:
    """Copy what a mount uploads; nobody writes to it while it waits. Raises JfsError."""
    if entry.record.promised is not None:
        raise JfsError(f"{entry.name}: a running mount is writing newer content into it")
    try:
        recovery.export(entry, target)
    except OSError as error:
        raise JfsError(f"{target}: {error.strerror}") from None


def drop(journal: Journal | None, names: Sequence[str]) -> None:
    """Have their mounts drop files that wait, and see that they do. Raises JfsError."""
    if journal is None or not names:
        return
    for name in names:
        journal.want_no_more(name)
    _tell_mounts()
    deadline = time.monotonic() + mounted.PATIENCE_S
    while left := [each.name for each in journal.survey() if each.name in names and waits(each)]:
        if time.monotonic() > deadline:
            raise JfsError(f"{', '.join(left)}: its mount has not dropped it yet (jfs status)")
        time.sleep(_POLL_S)


def place_of(record: Record) -> str:
    return f"{record.server}/{record.path}" if record.server else "unknown"
