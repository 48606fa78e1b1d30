"""Repositories, items, properties and statistics in SQLite.

Blocking; every call runs in the one thread of ``Store.executor``, so that each is a transaction
of its own and none waits for another's lock. Artifacts name their content by sha256; ``blobs``
says which content exists. Tables that later features need (builds, permissions) join here.
"""

import json
import sqlite3
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from jfs.server.answers import ApiError
from jfs.server.filestore import Blob, Filestore
from jfs.server.paths import ItemPath, PropertyMap

_T = TypeVar("_T")

_SCHEMA = """
CREATE TABLE IF NOT EXISTS repositories (
    key TEXT PRIMARY KEY,
    rclass TEXT NOT NULL,
    package_type TEXT NOT NULL,
    config TEXT NOT NULL,
    created INTEGER NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS blobs (
    sha256 TEXT PRIMARY KEY,
    sha1 TEXT NOT NULL,
    md5 TEXT NOT NULL,
    size INTEGER NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS blobs_sha1 ON blobs (sha1);
CREATE TABLE IF NOT EXISTS items (
    id INTEGER PRIMARY KEY,
    repo TEXT NOT NULL REFERENCES repositories (key) ON DELETE CASCADE,
    parent TEXT NOT NULL,               -- path of the folder; '' for the root
    name TEXT NOT NULL,                 -- '' for the root itself
    sha256 TEXT REFERENCES blobs (sha256),  -- NULL: a folder
    created INTEGER NOT NULL,           -- ms since 1970
    created_by TEXT NOT NULL,
    modified INTEGER NOT NULL,
    modified_by TEXT NOT NULL,
    updated INTEGER NOT NULL,
    original TEXT NOT NULL DEFAULT '{}',    -- checksums that the client sent
    UNIQUE (repo, parent, name)
) STRICT;
CREATE INDEX IF NOT EXISTS items_sha256 ON items (sha256);
CREATE TABLE IF NOT EXISTS properties (
    item INTEGER NOT NULL REFERENCES items (id) ON DELETE CASCADE,
    key TEXT NOT NULL,
    value TEXT NOT NULL,
    position INTEGER NOT NULL,
    UNIQUE (item, key, value)
) STRICT;
CREATE INDEX IF NOT EXISTS properties_key_value ON properties (key, value);
CREATE TABLE IF NOT EXISTS stats (
    item INTEGER PRIMARY KEY REFERENCES items (id) ON DELETE CASCADE,
    downloads INTEGER NOT NULL,
    last INTEGER NOT NULL,
    last_by TEXT NOT NULL
) STRICT;
"""

_COLUMNS = (
    "items.id, repo, parent, name, items.sha256, sha1, md5, size, items.created, created_by, "
    "modified, modified_by, updated, original"
)
_ITEMS = f"SELECT {_COLUMNS} FROM items LEFT JOIN blobs ON blobs.sha256 = items.sha256"


@dataclass(frozen=True, slots=True)
class Item:
    """A row of ``items`` with its content's. Times are ms since 1970."""

    id: int
    repo: str
    parent: str
    name: str
    sha256: str | None
    sha1: str | None
    md5: str | None
    size: int | None
    created: int
    created_by: str
    modified: int
    modified_by: str
    updated: int
    original: str

    @property
    def is_folder(self) -> bool:
        return self.sha256 is None

    @property
    def path(self) -> str:
        return f"{self.parent}/{self.name}" if self.parent else self.name

    @property
    def blob(self) -> Blob:
        assert self.sha256 is not None
        assert self.sha1 is not None
        assert self.md5 is not None
        assert self.size is not None
        return Blob(self.sha256, self.sha1, self.md5, self.size)


@dataclass(frozen=True, slots=True)
class Deployment:
    """What a deploy writes besides the content."""

    at: ItemPath
    user: str
    modified: int | None = None
    original: dict[str, str] | None = None


class Store:
    """See the module."""

    def __init__(self, directory: Path, filestore: Filestore) -> None:
        self._filestore = filestore
        self.executor = ThreadPoolExecutor(1, thread_name_prefix="jfs-serve-db")
        self._database = self.executor.submit(self._open, directory).result()

    def _open(self, directory: Path) -> sqlite3.Connection:
        database = sqlite3.connect(directory / "store.db", isolation_level=None)
        for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON"):
            database.execute(f"PRAGMA {pragma}")
        database.executescript(_SCHEMA)
        self._filestore.sweep(row[0] for row in database.execute("SELECT sha256 FROM blobs"))
        return database

    def close(self) -> None:
        self.executor.submit(self._database.close).result()
        self.executor.shutdown()

    def call(self, action: Callable[..., _T], *arguments: object) -> _T:
        """Run a method in the store's thread and wait: for callers outside an event loop."""
        return self.executor.submit(action, *arguments).result()

    # Repositories

    def repositories(self) -> list[dict[str, str]]:
        rows = self._database.execute("SELECT config FROM repositories ORDER BY key")
        return [json.loads(config) for (config,) in rows]

    def repository(self, key: str) -> dict[str, str] | None:
        row = self._database.execute(
            "SELECT config FROM repositories WHERE key = ?", (key,)
        ).fetchone()
        return None if row is None else json.loads(row[0])

    def put_repository(self, config: dict[str, str]) -> None:
        """Create or update; the root folder comes with it."""
        now = now_ms()
        with self._transaction():
            self._database.execute(
                "INSERT INTO repositories VALUES (?, ?, ?, ?, ?) "
                "ON CONFLICT (key) DO UPDATE SET config = excluded.config",
                (config["key"], config["rclass"], config["packageType"], json.dumps(config), now),
            )
            self._database.execute(
                "INSERT OR IGNORE INTO items (repo, parent, name, created, created_by, modified, "
                "modified_by, updated) VALUES (?, '', '', ?, 'admin', ?, 'admin', ?)",
                (config["key"], now, now, now),
            )

    def delete_repository(self, key: str) -> None:
        with self._transaction():
            shas = self._database.execute(
                "SELECT DISTINCT sha256 FROM items WHERE repo = ? AND sha256 IS NOT NULL", (key,)
            ).fetchall()
            self._database.execute("DELETE FROM repositories WHERE key = ?", (key,))
            dead = self._drop_unreferenced(sha for (sha,) in shas)
        self._remove_files(dead)

    # Items

    def find(self, at: ItemPath) -> Item | None:
        row = self._database.execute(
            f"{_ITEMS} WHERE repo = ? AND parent = ? AND name = ?", (at.repo, at.parent, at.name)
        ).fetchone()
        return None if row is None else Item(*row)

    def children(self, repo: str, path: str) -> list[Item]:
        rows = self._database.execute(
            f"{_ITEMS} WHERE repo = ? AND parent = ? AND name != '' ORDER BY name", (repo, path)
        )
        return [Item(*row) for row in rows]

    def descendants(self, repo: str, path: str) -> list[Item]:
        """Everything below a folder, parents before children."""
        # Names sort by code point and no name holds a character below '/': "0" is next after it.
        rows = self._database.execute(
            f"{_ITEMS} WHERE repo = ? AND name != '' AND (? = '' OR parent = ? OR "
            "(parent >= ? || '/' AND parent < ? || '0')) ORDER BY parent, name",
            (repo, path, path, path, path),
        )
        return [Item(*row) for row in rows]

    def blob_by_checksum(self, sha256: str | None, sha1: str | None) -> Blob | None:
        column, value = ("sha256", sha256) if sha256 else ("sha1", sha1)
        row = self._database.execute(
            f"SELECT sha256, sha1, md5, size FROM blobs WHERE {column} = ?", (value,)
        ).fetchone()
        return None if row is None else Blob(*row)

    def deploy(
        self, deployment: Deployment, blob: Blob, source: Path | None, linked: bool = False
    ) -> Item:
        """Put a file in place, atomically; the old content's properties go with it.

        Same bytes keep their properties, unless new ones are given, which replace the whole set
        (artifactory-rest 4.4).

        Args:
            source: the received file; None: the content is known (checksum deploy).
            linked: the content lies in its place already, without a row.
        """
        at, now = deployment.at, now_ms()
        if source is not None:
            self._filestore.adopt(source, blob.sha256)
        dead: list[str] = []
        with self._transaction():
            if source is None and not linked and self.blob_by_checksum(blob.sha256, None) is None:
                raise ApiError(404, "The content was removed meanwhile")
            self._make_parents(at, deployment.user, now)
            self._database.execute(
                "INSERT OR IGNORE INTO blobs VALUES (?, ?, ?, ?)",
                (blob.sha256, blob.sha1, blob.md5, blob.size),
            )
            old = self.find(at)
            if old is not None and old.is_folder:
                raise ApiError(409, f"{at} is a folder: a file cannot be deployed over it")
            modified = deployment.modified or now
            original = json.dumps(deployment.original or {})
            if old is None:
                cursor = self._database.execute(
                    "INSERT INTO items (repo, parent, name, sha256, created, created_by, "
                    "modified, modified_by, updated, original) VALUES (?,?,?,?,?,?,?,?,?,?)",
                    (
                        *(at.repo, at.parent, at.name, blob.sha256, now, deployment.user),
                        *(modified, deployment.user, now, original),
                    ),
                )
                item_id = cursor.lastrowid or 0
            else:
                item_id = old.id
                self._database.execute(
                    "UPDATE items SET sha256=?, modified=?, modified_by=?, updated=?, original=? "
                    "WHERE id=?",
                    (blob.sha256, modified, deployment.user, now, original, item_id),
                )
                if old.sha256 != blob.sha256:
                    self._database.execute("DELETE FROM properties WHERE item=?", (item_id,))
                    self._database.execute("DELETE FROM stats WHERE item=?", (item_id,))
                    dead = self._drop_unreferenced([old.sha256 or ""])
            if at.properties:
                self._database.execute("DELETE FROM properties WHERE item=?", (item_id,))
                self._set_properties(item_id, at.properties)
            item = self.find(at)
            assert item is not None
        self._remove_files(dead)
        return item

    def make_folder(self, at: ItemPath, user: str) -> Item:
        """Create a folder and those above it; one that exists is fine."""
        with self._transaction():
            self._make_parents(
                ItemPath(at.repo, f"{at.path}/x" if at.path else "x"), user, now_ms()
            )
            item = self.find(at)
            assert item is not None
            if at.properties:
                self._set_properties(item.id, at.properties)
        return item

    def delete(self, item: Item) -> None:
        """Remove a file, or a folder with everything in it; a repository's root stays."""
        with self._transaction():
            doomed = [item, *(self.descendants(item.repo, item.path) if item.is_folder else [])]
            self._database.executemany(
                "DELETE FROM items WHERE id = ? AND name != ''", [(one.id,) for one in doomed]
            )
            dead = self._drop_unreferenced(one.sha256 for one in doomed if one.sha256)
        self._remove_files(dead)

    # Properties and statistics

    def properties(self, item: Item) -> PropertyMap:
        rows = self._database.execute(
            "SELECT key, value FROM properties WHERE item = ? ORDER BY key, position", (item.id,)
        )
        found: PropertyMap = {}
        for key, value in rows:
            found.setdefault(key, []).append(value)
        return found

    def change_properties(
        self, item: Item, changes: dict[str, list[str] | None], *, recursive: bool
    ) -> None:
        """Replace the values of the named keys; None removes a key."""
        with self._transaction():
            items = [item]
            if recursive and item.is_folder:
                items += self.descendants(item.repo, item.path)
            for one in items:
                for key, values in changes.items():
                    self._database.execute(
                        "DELETE FROM properties WHERE item=? AND key=?", (one.id, key)
                    )
                    if values is not None:
                        self._set_properties(one.id, {key: values})
                self._database.execute("UPDATE items SET updated=? WHERE id=?", (now_ms(), one.id))

    def clear_properties(self, item: Item) -> None:
        with self._transaction():
            self._database.execute("DELETE FROM properties WHERE item=?", (item.id,))

    def stats(self, item: Item) -> tuple[int, int, str]:
        """Downloads, time of the last (ms), and by whom."""
        row = self._database.execute(
            "SELECT downloads, last, last_by FROM stats WHERE item=?", (item.id,)
        ).fetchone()
        return row or (0, 0, "")

    def count_downloads(self, counts: Sequence[tuple[int, int, int, str]]) -> None:
        """Add rows of item id, downloads, time and user."""
        with self._transaction():
            self._database.executemany(
                "INSERT INTO stats SELECT ?1, ?2, ?3, ?4 WHERE EXISTS "
                "(SELECT 1 FROM items WHERE id = ?1) ON CONFLICT (item) DO UPDATE SET "
                "downloads = downloads + ?2, last = ?3, last_by = ?4",
                counts,
            )

    def totals(self) -> list[tuple[str, int, int, int]]:
        """Per repository: key, folders, files, bytes."""
        rows = self._database.execute(
            "SELECT repo, SUM(items.sha256 IS NULL) - 1, SUM(items.sha256 IS NOT NULL), "
            "COALESCE(SUM(size), 0) FROM items LEFT JOIN blobs USING (sha256) GROUP BY repo"
        )
        return [tuple(row) for row in rows]

    def _transaction(self) -> "_Transaction":
        return _Transaction(self._database)

    def _make_parents(self, at: ItemPath, user: str, now: int) -> None:
        parent = ""
        for name in at.path.split("/")[:-1]:
            here = ItemPath(at.repo, f"{parent}/{name}" if parent else name)
            found = self.find(here)
            if found is not None and not found.is_folder:
                raise ApiError(409, f"{here} is a file: nothing can be created below it")
            if found is None:
                self._database.execute(
                    "INSERT INTO items (repo, parent, name, created, created_by, modified, "
                    "modified_by, updated) VALUES (?,?,?,?,?,?,?,?)",
                    (at.repo, parent, name, now, user, now, user, now),
                )
            parent = here.path

    def _set_properties(self, item_id: int, properties: PropertyMap) -> None:
        self._database.executemany(
            "INSERT OR IGNORE INTO properties VALUES (?, ?, ?, ?)",
            [
                (item_id, key, value, position)
                for key, values in properties.items()
                for position, value in enumerate(values)
            ],
        )

    def _drop_unreferenced(self, shas: Iterable[str]) -> list[str]:
        dead = []
        for sha in set(shas):
            used = self._database.execute(
                "SELECT 1 FROM items WHERE sha256=? LIMIT 1", (sha,)
            ).fetchone()
            if used is None:
                self._database.execute("DELETE FROM blobs WHERE sha256=?", (sha,))
                dead.append(sha)
        return dead

    def _remove_files(self, shas: Iterable[str]) -> None:
        # After the commit: killed in between, the next start sweeps them; the other way round a
        # row would name a file that is gone.
        for sha in shas:
            self._filestore.remove(sha)


class _Transaction:
    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database

    def __enter__(self) -> None:
        self._database.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: object, *_: object) -> None:
        self._database.execute("ROLLBACK" if kind else "COMMIT")


def now_ms() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000
