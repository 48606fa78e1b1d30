"""Staged files on disk and what is known of each: nothing that was written is lost with a process.

A staged file is two files of the staging directory: ``ID.data``, its bytes, and ``ID.json``, the
record that says where they belong and how far they came. The daemon that writes a file holds a lock
on its data for as long as it lives; a file without one was left by a process that died, or kept
because its upload was refused: ``jfs recover`` and the next mount deal with it. What the kernel
writes itself stays locked after its daemon has died, as long as somebody has it open: the kernel
keeps the file that the daemon had opened, and its lock with it.

Blocking; any thread.
"""

import contextlib
import errno
import fcntl
import logging
import os
import secrets
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from jfs import descriptors, directories
from jfs.errors import ConfigError, JfsError, is_not_supported, is_of_the_disk
from jfs.vfs.writing.records import (
    Record,
    State,
    overwrite_record,
    read_record,
    unfinished,
    write_record,
)

log = logging.getLogger(__name__)

_T = TypeVar("_T")

_LOOK_S = 1.0  # between looks for half files, once none was found

DATA, RECORD, UNWANTED, UNDO = ".data", ".json", ".drop", ".undo"


@dataclass(frozen=True, slots=True)
class Sighting:
    """A staged file as ``Journal.survey`` saw it; *in_use*: a living process holds it."""

    name: str
    size: int
    record: Record
    in_use: bool


class Entry:
    """A staged file: its data, open and locked, and its record.

    Several threads may change the record: an upload notes that it failed, and its file is renamed.
    """

    def __init__(self, journal: "Journal", name: str, file: int, record: Record) -> None:
        self._journal = journal
        self._directory = journal.directory
        self.name = name
        self.file = file
        self.record = record
        self._removed = self._unused = False
        self._changing = threading.Lock()

    @property
    def data_path(self) -> Path:
        return self._directory / (self.name + DATA)

    @property
    def undo_path(self) -> Path:
        """Where what was promised of it is kept while it is changed: see ``undo``."""
        return self._directory / (self.name + UNDO)

    @property
    def size(self) -> int:
        return os.fstat(self.file).st_size

    @property
    def is_removed(self) -> bool:
        """Whether it was forgotten: its data goes with its last descriptor."""
        return self._removed

    @property
    def is_there(self) -> bool:
        """Whether its data has a name; else it goes with us. Waits for the disk."""
        return os.fstat(self.file).st_nlink > 0

    def update(self, **changes: object) -> None:
        """Change fields of the record, and write it, unless it was removed. Raises OSError.

        Where ``close`` has promised that a file is on disk, or will, the record is when this
        returns. What cannot be written is not changed.
        """
        with self._changing:
            record = replace(self.record, **changes)  # type: ignore[arg-type]  # fields of Record
            if not self._removed:
                self._write(record)
            self.record = record

    def _write(self, record: Record) -> None:
        path = self._directory / (self.name + RECORD)
        durable = self.record.is_durable or record.is_durable
        try:
            write_record(path, record, durable=durable)
        except FileNotFoundError:
            if durable and self.is_there:
                raise
            # Somebody removed the directory, and the data with it, of which our descriptor is left.
            log.warning("%s: its staged file was removed: only this mount has it", record.path)
            self._removed = True
            return
        except OSError as error:
            if not is_of_the_disk(error) or not self._journal.make_room():
                raise
            write_record(path, record, durable=durable)
        if durable:
            _sync(self._directory)

    def mark(self, **changes: object) -> None:
        """As ``update``, also if there is no room for another record. Raises OSError."""
        try:
            self.update(**changes)
        except OSError:
            with self._changing:
                record = replace(self.record, **changes)  # type: ignore[arg-type]
                overwrite_record(self._directory / (self.name + RECORD), record)
                self.record = record

    def note(self, **changes: object) -> None:
        """As ``update``, for what may be lost with the power: how the last try went."""
        with self._changing:
            record = replace(self.record, **changes)  # type: ignore[arg-type]  # fields of Record
            if not self._removed:
                write_record(self._directory / (self.name + RECORD), record)
            self.record = record

    def sync(self) -> None:
        """Let data, record and their names survive a loss of power. Raises OSError."""
        os.fdatasync(self.file)
        for path in (self._directory / (self.name + RECORD), self._directory):
            _sync(path)

    def sync_data(self) -> None:
        """Let the data survive a loss of power; it may be closed meanwhile. Raises OSError."""
        # A descriptor of its own, for this may take longer than the upload that it runs beside.
        file = os.dup(self.file)
        try:
            os.fdatasync(file)
        finally:
            os.close(file)

    def make_durable(self) -> None:
        """Let what is PENDING survive a loss of power. Raises OSError."""
        self.sync_data()
        self.update(boot="")

    def remove(self) -> None:
        """Forget it; who has the data open keeps it. What fails is tried again. Raises OSError."""
        with self._changing:
            self._removed = True
        self._journal.unremoved[self.name] = self
        # The data first: a record without data is swept away, data without a record is kept.
        self.data_path.unlink(missing_ok=True)
        self.undo_path.unlink(missing_ok=True)
        (self._directory / (self.name + RECORD)).unlink(missing_ok=True)
        if self.record.is_durable:  # or the next mount would upload it after all
            with contextlib.suppress(FileNotFoundError):
                _sync(self._directory)
        self._journal.unremoved.pop(self.name, None)
        if self._unused:
            self.close()

    def close(self) -> None:
        """Close the file, which ends its lock; idempotent."""
        self._unused = True
        resumable = self.record.state in (State.PENDING, State.DEPLOYING)
        if self.name in self._journal.unremoved and resumable:
            return  # its lock is kept: whoever had it would upload what was to be removed
        file, self.file = self.file, -1
        if file >= 0:
            os.close(file)
            if self.record.half:
                self._journal.look_again()


class Journal:
    """The staging directory.

    Raises:
        ConfigError: there is none that can be trusted: see ``directories``.
    Attributes:
        directory: where the files are, which may be inside the directory that was given.
    """

    def __init__(self, directory: Path) -> None:
        self._given = directory
        self._no_half_until = 0.0  # on the clock of time.monotonic
        self.unremoved: dict[str, Entry] = {}  # what could not be removed so far, by name
        self.directory = directories.private(directory)
        if self.directory != directory:
            if any(directory.glob(f"*{RECORD}")):
                raise ConfigError(
                    f"{directory}: holds staged files that others can look at: "
                    f"chmod 700 {directory}"
                )
            log.info("%s: others can look in: staged files are in %s", directory, self.directory)

    def require_locks(self) -> None:
        """Make sure that a living mount can be told from a dead one.

        Raises:
            ConfigError: the file system has no locks.
        """
        try:
            file = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            finally:
                os.close(file)
        except OSError as error:
            if is_not_supported(error):
                raise ConfigError(
                    f"{self.directory}: its file system has no locks (flock), without which a "
                    "staged file could be uploaded twice: give a --staging-dir on another"
                ) from None

    def create(self, record: Record) -> Entry:
        """Make an empty staged file. Raises OSError."""
        while True:
            name = secrets.token_hex(8)
            path = self.directory / (name + DATA)
            file = self._with_room(lambda: self._made(path))  # noqa: B023 - called at once
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if not os.fstat(file).st_nlink:  # swept away before we had the lock
                    raise BlockingIOError
                entry = self._entry(name, file, replace(record, created_ns=time.time_ns()))
                entry.update()
                return entry
            except BlockingIOError:  # who looks after what was left behind had it first
                os.close(file)
            except BaseException:
                os.close(file)
                path.unlink(missing_ok=True)
                raise

    def make_room(self) -> bool:
        """Drop what is half a file, and nobody's any more. Returns whether there was any."""
        if time.monotonic() < self._no_half_until:
            return False
        found = False
        try:
            for entry in self.left_behind((State.WRITING,)):
                with contextlib.closing(entry):
                    if entry.record.half:
                        entry.remove()
                        found = True
                        log.info("%s: half a file was dropped, to make room", entry.record.path)
        except OSError as error:
            log.info("half files cannot be looked for: %s", error)
        if not found:  # every record is read for it, and on a full disk every write comes here
            self._no_half_until = time.monotonic() + _LOOK_S
        return found

    def look_again(self) -> None:
        """Note that there is half a file now."""
        self._no_half_until = 0.0

    def _with_room(self, call: Callable[[], _T]) -> _T:
        """Run *call*, which opens a file; if there is no room for it, make some. Raises OSError."""
        try:
            return descriptors.opening(call)
        except OSError as error:
            if not is_of_the_disk(error) or not self.make_room():
                raise
            return descriptors.opening(call)

    def _made(self, path: Path) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        try:
            return os.open(path, flags, 0o600)
        except FileNotFoundError:  # somebody removed the directory
            self._make_again()
            return os.open(path, flags, 0o600)

    def _make_again(self) -> None:
        try:
            made = directories.private(self._given)
            if made != self.directory:  # others could look into the one before, not into this one
                made = directories.private(self.directory)
        except ConfigError as error:
            raise OSError(errno.ENOENT, f"was removed, and cannot be made: {error}") from error
        if made != self.directory:
            raise OSError(errno.ENOENT, f"was removed, and others can look into {self.directory}")

    def anonymous(self) -> int:
        """Make a file without a name, for content that shall go with its last reader. OSError."""
        # Not O_TMPFILE: overlayfs, where containers live, has it only since Linux 6.1.
        file, name = self._with_room(self._made_anonymous)
        try:
            os.unlink(name)
        except BaseException:
            os.close(file)
            raise
        return file

    def _made_anonymous(self) -> tuple[int, str]:
        try:
            return tempfile.mkstemp(dir=self.directory, prefix=".anonymous-")
        except FileNotFoundError:  # somebody removed the directory
            self._make_again()
            return tempfile.mkstemp(dir=self.directory, prefix=".anonymous-")

    def want_no_more(self, name: str) -> None:
        """Ask the mount that has a staged file to drop it: see ``unwanted``. Raises OSError."""
        (self.directory / (name + UNWANTED)).touch(0o600)

    def unwanted(self, ours: Collection[str]) -> frozenset[str]:
        """Return, once, which of *ours* shall be dropped. Raises OSError."""
        found = set()
        for path in self._files(UNWANTED):
            if path.stem in ours:
                found.add(path.stem)
            elif self._paths(path.stem)[0].exists():
                continue  # another mount has it, and is told, too
            path.unlink(missing_ok=True)
        return frozenset(found)

    def left_behind(self, states: Collection[State] = tuple(State)) -> Iterator[Entry]:
        """Yield every staged file that no living process holds; the caller closes each.

        Whoever gets one holds it: two processes never deal with the same file. Those of other
        *states* are not held, not even for a moment.
        """
        self.remove_the_rest()
        for name in self._names():
            if len(states) < len(State) and read_record(self._paths(name)[1]).state not in states:
                continue
            if (entry := self._claim(name)) is not None:
                yield entry

    def remove_the_rest(self) -> None:
        """Try again to remove what could not be removed; what fails again stays. Blocking."""
        for entry in list(self.unremoved.values()):
            with contextlib.suppress(OSError):
                entry.remove()

    def survey(self) -> list[Sighting]:
        """Describe every staged file, those in use too. Holds none of them. Raises OSError."""
        found = []
        for name in self._names():
            if (entry := self._claim(name)) is not None:
                with closing(entry):
                    found.append(Sighting(name, entry.size, entry.record, in_use=False))
                continue
            data, record = self._paths(name)
            with contextlib.suppress(FileNotFoundError):  # it went meanwhile
                size = data.stat().st_size
                if record.exists():  # or it was made a moment ago
                    found.append(Sighting(name, size, read_record(record), in_use=True))
        return found

    def find(self, name: str) -> Entry:
        """Claim one staged file by the beginning of its name. Raises JfsError."""
        found = [each for each in self._names() if name and each.startswith(name)]
        if len(found) != 1:
            what = "no staged file" if not found else f"{len(found)} staged files"
            raise ConfigError(f"{name}: {what} of this name (jfs recover ls)")
        if (entry := self._claim(found[0])) is None:
            raise JfsError(f"{found[0]}: a running mount is writing it")
        return entry

    def look(self, name: str) -> Entry | None:
        """Open a staged file to read it, whoever has it; None: it is gone. Raises OSError."""
        data, record = self._paths(name)
        try:
            file = os.open(data, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return None
        return self._entry(name, file, read_record(record))

    def _entry(self, name: str, file: int, record: Record) -> Entry:
        return Entry(self, name, file, record)

    def _names(self) -> list[str]:
        return sorted({p.stem for end in (DATA, RECORD) for p in self._files(end)})

    def _files(self, end: str) -> Iterator[Path]:
        """Yield our own files; what somebody else put there is not uploaded with our rights."""
        for path in self.directory.glob(f"*{end}"):
            with contextlib.suppress(FileNotFoundError):
                status = path.lstat()
                if stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid():
                    yield path

    def _paths(self, name: str) -> tuple[Path, Path]:
        return self.directory / (name + DATA), self.directory / (name + RECORD)

    def _claim(self, name: str) -> Entry | None:
        """Open and lock a staged file; None: a living process has it, or nothing is left of it."""
        data, record = self._paths(name)
        try:
            file = os.open(data, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            for left in (record.with_suffix(UNDO), record):  # we were killed while we removed it
                left.unlink(missing_ok=True)
            return None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            unfinished(record).unlink(missing_ok=True)  # we were killed while we wrote it
            if data.exists() and (record.exists() or os.fstat(file).st_size):
                if not (found := read_record(record)).lent:
                    return self._entry(name, file, found)
                record.unlink(missing_ok=True)
            data.unlink(missing_ok=True)  # we were killed when we made it
        except BlockingIOError:
            pass
        except BaseException:
            os.close(file)
            raise
        os.close(file)
        return None


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def closing(entry: Entry) -> Iterator[Entry]:
    """Close a claimed file at the end."""
    try:
        yield entry
    finally:
        entry.close()
