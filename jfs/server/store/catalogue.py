"""Repositories, items, properties and downloads in SQLite: rows in, rows out.

No rule of Artifactory lives here. Blocking. Not thread-safe by itself: ``Store`` holds its lock
around every call and owns the transactions.

The schema grows by steps (``PRAGMA user_version``). Names and depth are columns of their own, and
properties rows of their own, for searches (AQL matches name, parent, key and value); what a kind
of repository needs lies in its configuration; a rename touches no content.
"""

import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from jfs.errors import ConfigError
from jfs.model import Properties, RepoPath
from jfs.server.store.filestore import Blob

_STEPS = (
    """
CREATE TABLE repositories (
    key TEXT PRIMARY KEY,
    rclass TEXT NOT NULL,               -- local, remote, virtual
    package_type TEXT NOT NULL,
    config TEXT NOT NULL                -- JSON: the rest
) STRICT;
CREATE TABLE blobs (
    sha256 TEXT PRIMARY KEY,
    sha1 TEXT,
    md5 TEXT,
    size INTEGER NOT NULL
) STRICT;
CREATE INDEX blobs_sha1 ON blobs (sha1);
CREATE INDEX blobs_md5 ON blobs (md5);
CREATE TABLE items (
    id INTEGER PRIMARY KEY,
    repo TEXT NOT NULL REFERENCES repositories (key) ON DELETE CASCADE,
    path TEXT NOT NULL,                 -- '' is the root
    parent TEXT,                        -- NULL for the root
    name TEXT NOT NULL,                 -- '' for the root
    depth INTEGER NOT NULL,             -- 0 for the root
    sha256 TEXT REFERENCES blobs (sha256),  -- NULL: a folder
    created INTEGER NOT NULL,           -- times are ms since 1970
    created_by TEXT NOT NULL,
    modified INTEGER NOT NULL,
    modified_by TEXT NOT NULL,
    updated INTEGER NOT NULL,
    properties_changed INTEGER NOT NULL DEFAULT 0,
    original TEXT NOT NULL DEFAULT '{}',    -- JSON: the checksums that the client sent
    UNIQUE (repo, path)
) STRICT;
CREATE INDEX items_parent ON items (repo, parent, name);
CREATE INDEX items_name ON items (name);
CREATE INDEX items_sha256 ON items (sha256);
CREATE TABLE properties (
    item INTEGER NOT NULL REFERENCES items (id) ON DELETE CASCADE,
    key TEXT NOT NULL,
    position INTEGER NOT NULL,          -- values of a key keep their order
    value TEXT NOT NULL,
    PRIMARY KEY (item, key, position)
) STRICT, WITHOUT ROWID;
CREATE INDEX properties_key_value ON properties (key, value, item);
CREATE TABLE downloads (
    item INTEGER PRIMARY KEY REFERENCES items (id) ON DELETE CASCADE,
    count INTEGER NOT NULL,
    last INTEGER NOT NULL,
    last_by TEXT NOT NULL
) STRICT;
""",
)

_COLUMNS = (
    "items.id, repo, path, items.sha256, sha1, md5, size, created, created_by, modified,"
    " modified_by, updated, properties_changed, original"
)
_SELECT = f"SELECT {_COLUMNS} FROM items LEFT JOIN blobs ON blobs.sha256 = items.sha256 "


@dataclass(frozen=True, slots=True)
class Item:
    """A file or folder. Times are ms since 1970; *blob* is None for a folder."""

    id: int
    path: RepoPath
    blob: Blob | None
    created: int
    created_by: str
    modified: int
    modified_by: str
    updated: int
    properties_changed: int  # 0: it never had any
    original: Mapping[str, str]

    @property
    def is_folder(self) -> bool:
        return self.blob is None


@dataclass(frozen=True, slots=True)
class Downloads:
    """How often, when last (ms since 1970, 0: never) and by whom."""

    count: int = 0
    last: int = 0
    last_by: str = ""


@dataclass(frozen=True, slots=True)
class Usage:
    """What a repository holds."""

    folders: int
    files: int
    size: int  # bytes, content that is used twice counted twice


class Catalogue:
    """See the module."""

    def __init__(self, path: Path, *, durable: bool) -> None:
        """Open or make the database. Raises ConfigError when it is not one of ours."""
        try:
            self.db = sqlite3.connect(path, check_same_thread=False)
            self.db.execute("PRAGMA journal_mode = WAL")
            # NORMAL in WAL: a loss of power may undo the last commits, never tear one.
            self.db.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
            self.db.execute("PRAGMA foreign_keys = ON")
            (version,) = self.db.execute("PRAGMA user_version").fetchone()
            for number, step in enumerate(_STEPS[version:], start=version + 1):
                self.db.executescript(f"BEGIN; {step} PRAGMA user_version = {number}; COMMIT;")
        except sqlite3.Error as error:
            raise ConfigError(f"{path}: cannot be used: {error}") from None
        if version > len(_STEPS):
            self.db.close()
            raise ConfigError(f"{path}: was written by a newer jfs: use that one")

    def close(self) -> None:
        self.db.close()

    # repositories

    def repositories(self) -> dict[str, dict[str, object]]:
        rows = self.db.execute("SELECT key, rclass, package_type, config FROM repositories")
        return {
            key: {"rclass": rclass, "packageType": package, **json.loads(config)}
            for key, rclass, package, config in sorted(rows)
        }

    def put_repository(self, key: str, config: Mapping[str, object]) -> None:
        rest = {name: value for name, value in config.items() if name not in _REPOSITORY_COLUMNS}
        self.db.execute(
            "INSERT INTO repositories VALUES (?, ?, ?, ?) ON CONFLICT (key) DO UPDATE SET"
            " package_type = excluded.package_type, config = excluded.config",
            (key, config["rclass"], config["packageType"], json.dumps(rest)),
        )

    def delete_repository(self, key: str) -> None:
        self.db.execute("DELETE FROM repositories WHERE key = ?", (key,))

    def usage(self) -> dict[str, Usage]:
        """Sum up every repository that has items."""
        rows = self.db.execute(
            "SELECT repo, SUM(items.sha256 IS NULL) - 1, COUNT(items.sha256), TOTAL(size)"
            " FROM items LEFT JOIN blobs USING (sha256) GROUP BY repo ORDER BY repo"
        )
        return {repo: Usage(folders, files, int(size)) for repo, folders, files, size in rows}

    # items

    def find(self, path: RepoPath) -> Item | None:
        rows = self.db.execute(f"{_SELECT} WHERE repo = ? AND path = ?", (path.repo, path.path))
        found = rows.fetchone()
        return None if found is None else _item(found)

    def children(self, path: RepoPath) -> list[Item]:
        """Return what lies directly in a folder, by name."""
        rows = self.db.execute(
            f"{_SELECT} WHERE repo = ? AND parent = ? ORDER BY name", (path.repo, path.path)
        )
        return [_item(row) for row in rows]

    def has_children(self, path: RepoPath) -> bool:
        found = self.db.execute(
            "SELECT 1 FROM items WHERE repo = ? AND parent = ? LIMIT 1", (path.repo, path.path)
        )
        return found.fetchone() is not None

    def below(self, path: RepoPath, depth: int | None = None) -> Iterator[Item]:
        """Return everything below a folder by path, so parents first; *depth* levels, or all."""
        where, values = _below(path)
        base = path.path.count("/") + 1 if path.path else 0
        most = base + depth if depth is not None else 1 << 30
        return map(
            _item,
            self.db.execute(
                f"{_SELECT} WHERE {where} AND depth <= ? ORDER BY path", (*values, most)
            ),
        )

    def last_modified(self, path: RepoPath) -> Item | None:
        """Return the newest item at or below *path*."""
        where, values = _below(path)
        row = self.db.execute(
            f"{_SELECT} WHERE repo = ? AND path = ? OR {where} ORDER BY modified DESC LIMIT 1",
            (path.repo, path.path, *values),
        ).fetchone()
        return None if row is None else _item(row)

    def insert(self, path: RepoPath, sha256: str | None, now: int, user: str) -> int:
        """Add an item, and return its id."""
        parent, _, name = path.path.rpartition("/")
        depth = path.path.count("/") + 1 if path.path else 0
        cursor = self.db.execute(
            "INSERT INTO items (repo, path, parent, name, depth, sha256, created, created_by,"
            " modified, modified_by, updated) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                *(path.repo, path.path, parent if path.path else None, name, depth, sha256),
                *(now, user, now, user, now),
            ),
        )
        assert cursor.lastrowid is not None
        return cursor.lastrowid

    def update(self, item: int, **columns: str | int) -> None:
        """Set columns of one item."""
        names = ", ".join(f"{name} = ?" for name in columns)
        self.db.execute(f"UPDATE items SET {names} WHERE id = ?", (*columns.values(), item))

    def rename(self, item: int, path: RepoPath) -> None:
        """Move an item; its children are not touched."""
        parent, _, name = path.path.rpartition("/")
        depth = path.path.count("/") + 1
        self.db.execute(
            "UPDATE items SET repo = ?, path = ?, parent = ?, name = ?, depth = ? WHERE id = ?",
            (path.repo, path.path, parent, name, depth, item),
        )

    def carry_over(self, source: int, target: int) -> None:
        """Copy the times and client checksums of *source* to *target*."""
        self.db.execute(
            "UPDATE items SET (created, created_by, modified, modified_by, original) ="
            " (SELECT created, created_by, modified, modified_by, original FROM items"
            " WHERE id = ?) WHERE id = ?",
            (source, target),
        )

    def delete(self, path: RepoPath) -> None:
        """Remove an item and everything below it."""
        where, values = _below(path)
        self.db.execute(
            f"DELETE FROM items WHERE repo = ? AND path = ? OR {where}",
            (path.repo, path.path, *values),
        )

    # content

    def add_blob(self, blob: Blob) -> None:
        """Add content, or what was not known of its checksums."""
        self.db.execute(
            "INSERT INTO blobs VALUES (?, ?, ?, ?) ON CONFLICT (sha256) DO UPDATE SET"
            " sha1 = COALESCE(sha1, excluded.sha1), md5 = COALESCE(md5, excluded.md5)",
            (blob.sha256, blob.sha1, blob.md5, blob.size),
        )

    def blob(self, *, sha256: str | None = None, sha1: str | None = None) -> Blob | None:
        """Find content by sha256, or else by sha1."""
        column, value = ("sha256", sha256) if sha256 is not None else ("sha1", sha1)
        row = self.db.execute(
            f"SELECT sha256, sha1, md5, size FROM blobs WHERE {column} = ?", (value,)
        ).fetchone()
        return None if row is None else Blob(*row)

    def digests(self, path: RepoPath) -> list[str]:
        """Name the content that an item and everything below it use."""
        where, values = _below(path)
        rows = self.db.execute(
            "SELECT DISTINCT sha256 FROM items WHERE sha256 IS NOT NULL"
            f" AND (repo = ? AND path = ? OR {where})",
            (path.repo, path.path, *values),
        )
        return [sha256 for (sha256,) in rows]

    def homes(self, sha256: str) -> list[str]:
        """Name the repositories that hold an artifact of this content."""
        rows = self.db.execute("SELECT DISTINCT repo FROM items WHERE sha256 = ?", (sha256,))
        return [repo for (repo,) in rows]

    def drop_unused(self, digests: Iterable[str]) -> list[str]:
        """Forget which of *digests* no item names any more, and return them."""
        unused = []
        for sha256 in dict.fromkeys(digests):
            gone = self.db.execute(
                "DELETE FROM blobs WHERE sha256 = ?"
                " AND NOT EXISTS (SELECT 1 FROM items WHERE items.sha256 = blobs.sha256)",
                (sha256,),
            )
            if gone.rowcount:
                unused.append(sha256)
        return unused

    def blobs_usage(self) -> tuple[int, int]:
        """Count contents and their bytes on disk."""
        count, size = self.db.execute("SELECT COUNT(*), TOTAL(size) FROM blobs").fetchone()
        return count, int(size)

    # properties and downloads

    def properties(self, item: int) -> Properties:
        rows = self.db.execute(
            "SELECT key, value FROM properties WHERE item = ? ORDER BY key, position", (item,)
        )
        found: dict[str, tuple[str, ...]] = {}
        for key, value in rows:
            found[key] = (*found.get(key, ()), value)
        return found

    def set_property(self, item: int, key: str, values: Iterable[str]) -> None:
        """Replace the values of one key; without values it is gone."""
        self.db.execute("DELETE FROM properties WHERE item = ? AND key = ?", (item, key))
        self.db.executemany(
            "INSERT INTO properties (item, key, position, value) VALUES (?, ?, ?, ?)",
            [(item, key, position, value) for position, value in enumerate(values)],
        )

    def clear_properties(self, item: int) -> None:
        self.db.execute("DELETE FROM properties WHERE item = ?", (item,))

    def downloads(self, item: int) -> Downloads:
        row = self.db.execute(
            "SELECT count, last, last_by FROM downloads WHERE item = ?", (item,)
        ).fetchone()
        return Downloads() if row is None else Downloads(*row)

    def count_downloads(self, item: int, more: Downloads) -> None:
        """Add downloads; for an item that is gone, nothing happens."""
        self.db.execute(
            "INSERT INTO downloads SELECT id, ?, ?, ? FROM items WHERE id = ?"
            " ON CONFLICT (item) DO UPDATE SET count = count + excluded.count,"
            " last = excluded.last, last_by = excluded.last_by",
            (more.count, more.last, more.last_by, item),
        )

    def clear_downloads(self, item: int) -> None:
        self.db.execute("DELETE FROM downloads WHERE item = ?", (item,))


_REPOSITORY_COLUMNS = frozenset(["key", "rclass", "packageType"])


def _below(path: RepoPath) -> tuple[str, tuple[str, ...]]:
    """Make a condition for what lies below *path*, to be used with AND and OR as it is."""
    if not path.path:
        return "(repo = ? AND path > '')", (path.repo,)
    # '0' follows '/': a range of the (repo, path) index, where LIKE would scan and need escaping.
    return "(repo = ? AND path >= ? AND path < ?)", (path.repo, f"{path.path}/", f"{path.path}0")


def _item(row: tuple[object, ...]) -> Item:
    number, repo, path, sha256, sha1, md5, size, *rest = row
    created, created_by, modified, modified_by, updated, changed, original = rest
    return Item(
        _int(number),
        RepoPath(str(repo), str(path)),
        None if sha256 is None else Blob(str(sha256), _text(sha1), _text(md5), _int(size)),
        _int(created),
        str(created_by),
        _int(modified),
        str(modified_by),
        _int(updated),
        _int(changed),
        json.loads(original) if isinstance(original, str) and original != "{}" else {},
    )


def _int(value: object) -> int:
    assert isinstance(value, int)
    return value


def _text(value: object) -> str | None:
    return None if value is None else str(value)
