"""The tables of one database, and how what is learnt is written into them.

Every call is made within a transaction of the caller's. Times are ns since the epoch; one that lies
in the future was written by a clock that was wrong: whatever comes is later. Blocking.
"""

import itertools
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass, replace

from jfs.extents import MiB
from jfs.model import EntryInfo, Properties, RepoPath
from jfs.packed import MANY
from jfs.vfs.kept import rows
from jfs.vfs.kept.learnt import (
    Answered,
    Entries,
    Known,
    Learnt,
    Listed,
    Moved,
    Named,
    Outdated,
    Tagged,
)
from jfs.vfs.kept.rows import Content, Damaged

_MISSING_KEPT = 1024  # names of a folder that are not there: a storm of random names
_ANSWERS_KEPT = 256
_LARGEST_ANSWER = 4 * MiB
_PIECE = 1000
_DROPPED_AT_A_TIME = 16

TABLES = (
    "CREATE TABLE folders(id INTEGER PRIMARY KEY, path TEXT NOT NULL UNIQUE, "
    "listed INTEGER, count INTEGER, digest INTEGER, used INTEGER, sum INTEGER)",
    "CREATE TABLE entries(folder INTEGER, name TEXT, asked INTEGER, sum INTEGER, kind INTEGER, "
    "size INTEGER, sha256 BLOB, sha1 BLOB, md5 BLOB, modified INTEGER, created INTEGER, "
    "created_by TEXT, modified_by TEXT, mime TEXT, link TEXT, PRIMARY KEY(folder, name)) "
    "WITHOUT ROWID",
    "CREATE INDEX missing ON entries(folder, asked) WHERE kind = 0",
    "CREATE TABLE tags(folder INTEGER, name TEXT, asked INTEGER, body TEXT, sum INTEGER, "
    "PRIMARY KEY(folder, name)) WITHOUT ROWID",
    "CREATE TABLE answers(key TEXT PRIMARY KEY, asked INTEGER, body TEXT, sum INTEGER)",
)
_COLUMNS = "kind, size, sha256, sha1, md5, modified, created, created_by, modified_by, mime, link"
_PUT = (
    f"INSERT INTO entries(folder, name, asked, sum, {_COLUMNS}) VALUES({', '.join('?' * 15)}) "
    "ON CONFLICT DO UPDATE SET asked = excluded.asked, sum = excluded.sum, "
    + ", ".join(f"{name} = excluded.{name}" for name in _COLUMNS.split(", "))
    + " WHERE asked <= excluded.asked OR asked > ?"
)


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder of which something is known.

    Attributes:
        listed: when it was listed; 0: never.
        count, digest: of the entries that are there; only of what is listed.
    """

    id: int
    path: str
    listed: int
    count: int
    digest: int


class Stopped(Exception):
    """The mount ends: what is not written by now is not kept."""


def folder(connection: sqlite3.Connection, path: RepoPath) -> Folder | None:
    """Return what is known of a folder. Raises Damaged."""
    row = connection.execute(
        "SELECT id, path, listed, count, digest, sum FROM folders WHERE path = ?", (str(path),)
    ).fetchone()
    if row is None:
        return None
    *values, checksum = row
    if checksum != rows.checksum_of(*values):
        raise Damaged
    return Folder(*values)


def entries(connection: sqlite3.Connection, listed: Folder) -> Iterator[tuple[str, Content]]:
    """Return what is in a listed folder. Raises Damaged, at the end at the latest."""
    count = digest = 0
    for name, asked, sealed, *values in connection.execute(
        f"SELECT name, asked, sum, {_COLUMNS} FROM entries WHERE folder = ? AND kind <> 0",
        (listed.id,),
    ):
        yield name, _content(listed.id, name, asked, sealed, *values)
        digest ^= rows.unsealed(sealed, asked)
        count += 1
    if (count, digest) != (listed.count, rows.unsealed(listed.digest, 0)):
        raise Damaged


def entry(connection: sqlite3.Connection, parent: Folder, name: str) -> Known[Content] | None:
    """Return what is known of one name, by itself. Raises Damaged."""
    row = connection.execute(
        f"SELECT asked, sum, {_COLUMNS} FROM entries WHERE folder = ? AND name = ?",
        (parent.id, name),
    ).fetchone()
    return None if row is None else Known(_content(parent.id, name, *row), row[0])


def properties(
    connection: sqlite3.Connection, parent: Folder, name: str
) -> Known[Properties] | None:
    """Return the properties of an entry. Raises Damaged."""
    row = connection.execute(
        "SELECT asked, body, sum FROM tags WHERE folder = ? AND name = ?", (parent.id, name)
    ).fetchone()
    if row is None:
        return None
    asked, body, checksum = row
    if checksum != rows.checksum_of(parent.id, name, asked, body):
        raise Damaged
    return Known(rows.properties_of(body), asked)


def answer(connection: sqlite3.Connection, key: str) -> Known[str] | None:
    """Return an answer that is kept as one text. Raises Damaged."""
    row = connection.execute(
        "SELECT asked, body, sum FROM answers WHERE key = ?", (key,)
    ).fetchone()
    if row is None:
        return None
    asked, body, checksum = row
    if checksum != rows.checksum_of(key, asked, body):
        raise Damaged
    return Known(body, asked)


def last_ns(connection: sqlite3.Connection) -> int | None:
    """Return when something was confirmed last; None: nothing is known."""
    (last,) = connection.execute(
        "SELECT max((SELECT coalesce(max(used), 0) FROM folders), "
        "(SELECT coalesce(max(asked), 0) FROM answers))"
    ).fetchone()
    return int(last) or None


def learn(
    connection: sqlite3.Connection, learnt: Learnt, now: int, stop: Callable[[], bool]
) -> int:
    """Write one thing that was learnt; return about how many rows that took. Raises Stopped."""
    match learnt:
        case Listed():
            return _list(connection, learnt, now, stop)
        case Named(path, at, info):
            parent = _made(connection, path.parent, at)
            applied = _name(connection, parent, path.name, info, at, now)
            if applied and info is None:
                _untag(connection, parent, path.name)
                _drop_below(connection, str(path))
                _trim_missing(connection, parent)
        case Tagged():
            _tag(connection, learnt)
            return len(learnt.properties)
        case Moved():
            _move(connection, learnt, now)
        case Answered(key, at, make):
            if len(body := make()) <= _LARGEST_ANSWER:
                checksum = rows.checksum_of(key, at, body)
                connection.execute(
                    "INSERT OR REPLACE INTO answers VALUES(?, ?, ?, ?)", (key, at, body, checksum)
                )
        case Outdated(_, prefix):
            connection.execute(
                "DELETE FROM answers WHERE substr(key, 1, ?) = ?", (len(prefix), prefix)
            )
    return 1


def trim(connection: sqlite3.Connection, bound: int) -> None:
    """Drop what was confirmed longest ago while there are more than *bound* bytes."""
    connection.execute(
        "DELETE FROM answers WHERE key IN "
        "(SELECT key FROM answers ORDER BY asked DESC LIMIT -1 OFFSET ?)",
        (_ANSWERS_KEPT,),
    )
    while _used_bytes(connection) > bound:
        oldest = connection.execute(
            "SELECT id FROM folders ORDER BY used LIMIT ?", (_DROPPED_AT_A_TIME,)
        ).fetchall()
        if not oldest:
            connection.execute("DELETE FROM answers")
            return
        for (identity,) in oldest:
            _drop(connection, identity)


def _list(
    connection: sqlite3.Connection, learnt: Listed, now: int, stop: Callable[[], bool]
) -> int:
    at = learnt.at_ns
    known = _made(connection, learnt.folder, at)
    if at < known.listed <= now:
        return 1  # another mount has asked later
    count, digest = 0, 0
    # Of many the rows are made twice, and not kept: they would take a kilobyte each.
    few = list(_prepared(known, learnt.entries)) if len(learnt.entries) <= MANY else None
    for _, checksum, _ in few if few is not None else _prepared(known, learnt.entries):
        digest ^= checksum
        count += 1
        if not count % _PIECE and stop():
            raise Stopped
    if not known.listed or (count, digest) != (known.count, rows.unsealed(known.digest, 0)):
        left = iter(few) if few is not None else _prepared(known, learnt.entries)
        count, digest = 0, 0
        while piece := list(itertools.islice(left, _PIECE)):
            connection.executemany(
                _PUT,
                (
                    (known.id, name, at, rows.seal(checksum, at), *content, now)
                    for name, checksum, content in piece
                ),
            )
            count += len(piece)
            for _, checksum, _ in piece:
                digest ^= checksum
            if stop():
                raise Stopped
        _drop_older(connection, known, at, now)
        (later,) = connection.execute(
            "SELECT EXISTS(SELECT 1 FROM entries WHERE folder = ? AND asked > ?)", (known.id, at)
        ).fetchone()
        if later:
            count, digest = _counted(connection, known)
    _note(connection, replace(known, listed=at, count=count, digest=rows.seal(digest, 0)), at)
    return count


def _prepared(known: Folder, found: Entries) -> Iterator[tuple[str, int, Content]]:
    """Make rows: name, checksum and content."""
    for info in found:
        content, name = rows.content_of(info), info.path.name
        yield name, rows.checksum(known.id, name, content), content


def _drop_older(connection: sqlite3.Connection, known: Folder, at: int, now: int) -> None:
    """Drop what was in a folder before *at*, and all that was below it."""
    older = "folder = ? AND (asked < ? OR asked > ?)"
    values = known.id, at, now
    gone = connection.execute(f"SELECT name, kind FROM entries WHERE {older}", values).fetchall()
    for name, kind in gone:
        _untag(connection, known, name)
        if kind in rows.FOLDERS:
            _drop_below(connection, f"{known.path}/{name}" if known.path else name)
    connection.execute(f"DELETE FROM entries WHERE {older}", values)


def _name(
    connection: sqlite3.Connection,
    parent: Folder,
    name: str,
    info: EntryInfo | None,
    at: int,
    now: int,
) -> bool:
    """Write what a name is; False: something later is known."""
    content = rows.content_of(info)
    checksum = rows.checksum(parent.id, name, content)
    before = connection.execute(
        "SELECT asked, sum, kind FROM entries WHERE folder = ? AND name = ?", (parent.id, name)
    ).fetchone()
    if at < (before[0] if before is not None else parent.listed) <= now:
        return False
    connection.execute(_PUT, (parent.id, name, at, rows.seal(checksum, at), *content, now))
    if parent.listed:
        count, digest = parent.count, rows.unsealed(parent.digest, 0)
        if before is not None and before[2] != rows.MISSING:
            count, digest = count - 1, digest ^ rows.unsealed(before[1], before[0])
        if info is not None:
            count, digest = count + 1, digest ^ checksum
        _note(connection, replace(parent, count=count, digest=rows.seal(digest, 0)), at)
    return True


def _move(connection: sqlite3.Connection, learnt: Moved, now: int) -> None:
    source, target, at = learnt.source, learnt.info.path, learnt.at_ns
    _drop_below(connection, str(target))
    for identity, path, listed, count, digest, used in connection.execute(
        f"SELECT id, path, listed, count, digest, used FROM folders WHERE {_BELOW}",
        _below(str(source)),
    ).fetchall():
        place = str(target) + path[len(str(source)) :]
        _note(connection, Folder(identity, place, listed, count, digest), used)
    old = _made(connection, source.parent, at)
    tags = properties(connection, old, source.name)
    _name(connection, old, source.name, None, at, now)
    _untag(connection, old, source.name)
    new = _made(connection, target.parent, at)
    _name(connection, new, target.name, learnt.info, at, now)
    _untag(connection, new, target.name)
    if tags is not None:
        _put_tags(connection, new, target.name, tags.at_ns, tags.value)


def _tag(connection: sqlite3.Connection, learnt: Tagged) -> None:
    parent = _made(connection, learnt.folder, learnt.at_ns)
    for name, found in learnt.properties.items():
        if found is None:
            _untag(connection, parent, name)
        else:
            _put_tags(connection, parent, name, learnt.at_ns, found)


def _put_tags(
    connection: sqlite3.Connection, parent: Folder, name: str, asked: int, found: Properties
) -> None:
    body = rows.properties_to_text(found)
    connection.execute(
        "INSERT OR REPLACE INTO tags VALUES(?, ?, ?, ?, ?)",
        (parent.id, name, asked, body, rows.checksum_of(parent.id, name, asked, body)),
    )


def _untag(connection: sqlite3.Connection, parent: Folder, name: str) -> None:
    connection.execute("DELETE FROM tags WHERE folder = ? AND name = ?", (parent.id, name))


def _made(connection: sqlite3.Connection, path: RepoPath, at: int) -> Folder:
    """Return a folder, made if nothing is known of it."""
    found = folder(connection, path)
    if found is not None:
        return found
    identity = connection.execute(
        "INSERT INTO folders(path, listed, count, digest, used, sum) VALUES(?, 0, 0, 0, ?, 0)",
        (str(path), at),
    ).lastrowid
    assert identity is not None
    made = Folder(identity, str(path), 0, 0, 0)
    _note(connection, made, at)
    return made


def _note(connection: sqlite3.Connection, known: Folder, used: int) -> None:
    values = astuple(known)
    connection.execute(
        "UPDATE folders SET path = ?, listed = ?, count = ?, digest = ?, used = ?, sum = ? "
        "WHERE id = ?",
        (*values[1:], used, rows.checksum_of(*values), known.id),
    )


def _content(parent: int, name: str, asked: int, sealed: int, *values: object) -> Content:
    """Return the content of a row that is as it was written. Raises Damaged."""
    content: Content = values  # type: ignore[assignment]  # its checksum says so
    if sealed != rows.seal(rows.checksum(parent, name, content), asked):
        raise Damaged
    return content


def _counted(connection: sqlite3.Connection, parent: Folder) -> tuple[int, int]:
    count = digest = 0
    for asked, sealed in connection.execute(
        "SELECT asked, sum FROM entries WHERE folder = ? AND kind <> 0", (parent.id,)
    ):
        count += 1
        digest ^= rows.unsealed(sealed, asked)
    return count, digest


_BELOW = "path = ? OR (path > ? AND path < ?)"


def _below(path: str) -> tuple[str, str, str]:
    """Return the values of ``_BELOW``: a folder and everything below it."""
    return path, f"{path}/", f"{path}0"  # "0" follows "/"


def _drop_below(connection: sqlite3.Connection, path: str) -> None:
    """Forget a folder, and all below it."""
    for (identity,) in connection.execute(
        f"SELECT id FROM folders WHERE {_BELOW}", _below(path)
    ).fetchall():
        _drop(connection, identity)


def _drop(connection: sqlite3.Connection, identity: int) -> None:
    for table, column in (("entries", "folder"), ("tags", "folder"), ("folders", "id")):
        connection.execute(f"DELETE FROM {table} WHERE {column} = ?", (identity,))


def _trim_missing(connection: sqlite3.Connection, parent: Folder) -> None:
    (count,) = connection.execute(
        "SELECT count(*) FROM entries WHERE folder = ? AND kind = 0", (parent.id,)
    ).fetchone()
    if count > _MISSING_KEPT:
        connection.execute(
            "DELETE FROM entries WHERE folder = ? AND name IN (SELECT name FROM entries "
            "WHERE folder = ? AND kind = 0 ORDER BY asked LIMIT ?)",
            (parent.id, parent.id, count - _MISSING_KEPT // 2),
        )


def _used_bytes(connection: sqlite3.Connection) -> int:
    return int(_pragma(connection, "page_size")) * (
        int(_pragma(connection, "page_count")) - int(_pragma(connection, "freelist_count"))
    )


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    (value,) = connection.execute(f"PRAGMA {name}").fetchone()
    return int(value)
