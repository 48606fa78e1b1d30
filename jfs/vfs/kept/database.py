"""One database of what is known: of one source, on one server, as one user sees it.

SQLite, with a rollback journal: it maps no file (a write-ahead log does, and a mapped file that is
cut kills the process). Several mounts may have it open: what is learnt of one folder is written in
one transaction, and the later answer wins, whole. A process that is killed leaves what it had
committed. Blocking; any thread, one call at a time.
"""

import contextlib
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from jfs.errors import CacheError
from jfs.extents import MiB
from jfs.model import EntryInfo, Properties, RepoPath
from jfs.packed import Gathered
from jfs.vfs.kept import rows, tables
from jfs.vfs.kept.learnt import Known, Learnt
from jfs.vfs.kept.rows import Damaged

log = logging.getLogger(__name__)

BOUND = 256 * MiB  # a million entries; what was confirmed longest ago goes first
SUFFIX = ".sqlite3"
_JOURNAL = "-journal"
_VERSION = 1  # of the tables; what another version wrote is dropped
_PATIENCE_S = 10.0  # for the transaction of another mount
_A_TRANSACTION = 5000  # rows; a listing is never cut
_MEMORY_KIB = 8192
_CORRUPT = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


class Database:
    """See the module. Every call raises CacheError: the disk refuses, or there is nothing."""

    def __init__(self, file: Path, bound: int = BOUND) -> None:
        self.file = file
        self._bound = bound
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._opened: tuple[int, int] | None = None  # which file that is
        self._whole: set[int] = set()  # folders whose rows were all looked at

    def close(self) -> None:
        """Close the file; the next call opens it again."""
        with self._lock:
            self._close()

    def save(
        self,
        learnt: Sequence[Learnt],
        stop: Callable[[], bool] = lambda: False,
        written: Callable[[int], object] = lambda count: None,
    ) -> None:
        """Keep what was learnt, in this order.

        Args:
            stop: asked now and then; True: what is not written by then is not kept.
            written: told after each transaction how many more are kept.
        """
        with self._open(make=True) as connection, contextlib.suppress(tables.Stopped):
            self._whole.clear()
            waiting = list(learnt)
            while waiting and not stop():
                now = time.time_ns()
                connection.execute("BEGIN IMMEDIATE")
                count = done = 0
                for each in waiting:
                    if done >= _A_TRANSACTION or stop():
                        break
                    done += tables.learn(connection, each, now, stop)
                    count += 1
                tables.trim(connection, self._bound)
                connection.execute("COMMIT")
                del waiting[:count]
                written(count)

    def listing(self, folder: RepoPath) -> Known[Sequence[EntryInfo]] | None:
        """Return all that is in a folder; None: it is not known."""
        with self._open() as connection:
            known = tables.folder(connection, folder)
            if known is None or not known.listed:
                return None
            found = Gathered(folder)
            for name, content in tables.entries(connection, known):
                if (info := rows.info_of(folder.child(name), content)) is not None:
                    found.add(name, info)
            return Known(found.entries, known.listed)

    def name(self, path: RepoPath, *, lists_all: bool) -> Known[EntryInfo | None] | None:
        """Return what a name is, None in it if the server had no such name; None: not known.

        Args:
            lists_all: whether a name that was in no listing was not there.
        """
        with self._open() as connection:
            parent = tables.folder(connection, path.parent)
            if parent is None:
                return None
            row = tables.entry(connection, parent, path.name)
            if row is not None:
                return Known(rows.info_of(path, row.value), max(row.at_ns, parent.listed))
            if not parent.listed or not lists_all:
                return None
            if parent.id not in self._whole:
                for _ in tables.entries(connection, parent):
                    pass  # a row that was lost is no missing name
                self._whole.add(parent.id)
            return Known(None, parent.listed)

    def properties(self, path: RepoPath) -> Known[Properties] | None:
        """Return the properties of an entry; None: they are not known."""
        with self._open() as connection:
            parent = tables.folder(connection, path.parent)
            return tables.properties(connection, parent, path.name) if parent else None

    def answer(self, key: str) -> Known[str] | None:
        """Return an answer that is about no folder alone; None: it is not known."""
        with self._open() as connection:
            return tables.answer(connection, key)

    def last_ns(self) -> int | None:
        """Return when something was confirmed last; None: nothing is known."""
        with self._open() as connection:
            return tables.last_ns(connection)

    def damaged(self) -> None:
        """Drop it all: an answer was as it was written, and makes no sense."""
        with self._lock:
            self._drop_file()

    @contextlib.contextmanager
    def _open(self, *, make: bool = False) -> Iterator[sqlite3.Connection]:
        """Hold the connection; what was begun and not committed is undone."""
        with self._lock:
            try:
                connection = self._connected(make)
                try:
                    yield connection
                finally:
                    if connection.in_transaction:
                        connection.rollback()
            except Damaged:
                self._drop_file()
                raise CacheError(f"{self.file}: was damaged") from None
            except sqlite3.Error as error:
                if getattr(error, "sqlite_errorcode", 0) & 0xFF in _CORRUPT:
                    self._drop_file()
                else:
                    self._close()
                raise CacheError(f"{self.file}: {error}") from None
            except (OSError, OverflowError, ValueError, TypeError) as error:
                self._close()  # TypeError: a value of another type than it was written
                raise CacheError(f"{self.file}: {error}") from None

    def _connected(self, make: bool) -> sqlite3.Connection:
        if self._connection is not None and self._opened != _identity(self.file):
            self._close()  # removed under us, or another by now
        if self._connection is not None:
            return self._connection
        flags = os.O_CLOEXEC | os.O_NOFOLLOW | (os.O_RDWR | os.O_CREAT if make else os.O_RDONLY)
        os.close(os.open(self.file, flags, 0o600))  # SQLite would let others read it
        self._opened = _identity(self.file)
        connection = self._connection = sqlite3.connect(
            self.file, timeout=_PATIENCE_S, isolation_level=None, check_same_thread=False
        )
        for setting in (
            "trusted_schema = OFF",
            "cell_size_check = ON",
            "mmap_size = 0",
            "journal_mode = TRUNCATE",
            "synchronous = NORMAL",  # what a loss of power cuts is found out by the checksums
            f"cache_size = -{_MEMORY_KIB}",
        ):
            connection.execute(f"PRAGMA {setting}")
        if _version(connection) != _VERSION:
            if not make:
                raise CacheError(f"{self.file}: of another version")
            _make_tables(connection)
        return connection

    def _drop_file(self) -> None:
        self._close()
        log.warning("%s: is damaged: what was known from earlier mounts is dropped", self.file)
        remove(self.file)

    def _close(self) -> None:
        connection, self._connection = self._connection, None
        self._whole.clear()
        if connection is not None:
            with contextlib.suppress(sqlite3.Error):
                connection.close()


def remove(file: Path) -> None:
    """Remove a database. A mount that has it open makes another."""
    for path in (file, file.with_name(file.name + _JOURNAL)):
        with contextlib.suppress(OSError):
            path.unlink()


def _make_tables(connection: sqlite3.Connection) -> None:
    connection.execute("BEGIN EXCLUSIVE")
    if _version(connection) != _VERSION:  # another mount was not faster
        made = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        for (name,) in made:
            connection.execute(f'DROP TABLE "{name}"')
        for statement in tables.TABLES:
            connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {_VERSION}")
    connection.execute("COMMIT")


def _version(connection: sqlite3.Connection) -> int:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    return int(version)


def _identity(file: Path) -> tuple[int, int] | None:
    try:
        status = os.stat(file)
    except OSError:
        return None
    return status.st_dev, status.st_ino
