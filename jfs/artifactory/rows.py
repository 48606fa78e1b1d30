"""Rows of listings and of query results: from JSON to entries, the odd ones left out. Pure.

One row that cannot be read hides itself, never its folder: a name that Linux or Artifactory
forbids, a file without a size, a date that is none, a name that was there already. What was hidden
is logged once, by ``Hidden``.
"""

import logging
import time
from collections.abc import Sequence
from typing import Any, TypeVar

from cachetools import TTLCache

from jfs.artifactory import wire
from jfs.errors import ProtocolViolation
from jfs.model import (
    Checksums,
    EntryInfo,
    FileInfo,
    FolderInfo,
    Match,
    Properties,
    RepoPath,
    Repository,
    is_passing,
    problem_with_name,
)
from jfs.packed import Gathered, Packed

log = logging.getLogger(__name__)

_NAMED = 3  # rows that a warning names
_SAID_AGAIN_S = 3600.0
_PLACES_KEPT = 1024
_SHARED_AT_MOST = 10_000
_NO_CHECKSUMS = Checksums()

_T = TypeVar("_T")


class Hidden:
    """Warnings about rows that are left out: one for each place, and again if others are.

    Every refresh of a listing finds the same odd row; after an hour it is said once more. Trio
    thread only.
    """

    def __init__(self) -> None:
        self._said: TTLCache[str, tuple[int, tuple[str, ...]]] = TTLCache(
            _PLACES_KEPT, _SAID_AGAIN_S, timer=time.monotonic
        )

    def warn(self, place: str, rows: "Rows") -> None:
        """Log which rows of *place* are hidden, unless that was logged."""
        if rows.odd == 0:
            self._said.pop(place, None)
            return
        if self._said.get(place) == (rows.odd, rows.reasons):
            return
        self._said[place] = (rows.odd, rows.reasons)
        what = "name is" if rows.odd == 1 else "names are"
        log.warning("%s: %d %s hidden: %s", place, rows.odd, what, "; ".join(rows.reasons))


class Rows:
    """What all rows share: how many were odd, and why the first of them were. Any one thread."""

    def __init__(self) -> None:
        self.odd = 0
        self.reasons: tuple[str, ...] = ()

    @property
    def to_come(self) -> float:
        """How much of the memory that rows take will be taken once more, by who shows them.

        A row is about 640 bytes, its inode 400.
        """
        return 0.65

    def hide(self, row: Any, why: str) -> None:
        self.odd += 1
        if len(self.reasons) < _NAMED:
            self.reasons = (*self.reasons, f"{_name(row)!r:.80} {why}")


class ListedRows(Rows):
    """Rows of ``?list`` of depth 1 (artifactory-rest 6.2), as *entries* of *folder*.

    Args:
        known: see ``ArtifactStore.list_children``.
    """

    def __init__(self, folder: RepoPath, known: Packed | None = None) -> None:
        super().__init__()
        self._folder = folder
        self._found = Gathered(folder, known)
        self._add = self._found.add

    @property
    def entries(self) -> Sequence[EntryInfo]:
        return self._found.entries

    @property
    def to_come(self) -> float:
        return 0.0 if self._found.is_packed else super().to_come

    def take(self, row: Any) -> None:
        """Read a row; an odd one is counted."""
        try:
            name = wire.string(row, "uri").removeprefix("/")
            if not name or is_passing(name):
                return  # the folder itself, with includeRootPath; or nobody's business
            entry = self._entry(name, row)
        except ProtocolViolation as error:
            self.hide(row, error.message)
            return
        if not self._add(name, entry):
            self.hide(row, "is there twice")

    def _entry(self, name: str, row: Any) -> EntryInfo:
        if (problem := problem_with_name(name)) is not None:
            raise ProtocolViolation(problem)
        modified = wire.time_of(row, "lastModified", default=0) or 0
        if wire.flag(row, "folder"):
            return FolderInfo(self._folder.child(name), modified)
        sums = Checksums(wire.digest(row, "sha2", "sha256"), wire.digest(row, "sha1"))
        return FileInfo(self._folder.child(name), wire.size_of(row), sums, modified)


class ChildRows(Rows):
    """Rows of ``children`` of a folder's plain info (6.1): names, each with whether a folder."""

    def __init__(self) -> None:
        super().__init__()
        self.names: dict[str, bool] = {}

    def take(self, row: Any) -> None:
        """Read a row; an odd one is counted."""
        try:
            name = wire.string(row, "uri").removeprefix("/")
            if is_passing(name):
                return
            if (problem := problem_with_name(name)) is not None:
                raise ProtocolViolation(problem)
            folder = wire.flag(row, "folder")
        except ProtocolViolation as error:
            self.hide(row, error.message)
            return
        if name in self.names:
            self.hide(row, "is there twice")
            return
        self.names[name] = folder


class RepositoryRows(Rows):
    """Rows of ``GET api/repositories`` (9.1), whose answer is never long."""

    def __init__(self, document: Any) -> None:
        super().__init__()
        if not isinstance(document, list):
            raise ProtocolViolation("the list of repositories is not a list")
        self.repositories: list[Repository] = []
        for row in document:
            try:
                self.repositories.append(self._repository(row))
            except ProtocolViolation as error:
                self.hide(row, error.message)

    @staticmethod
    def _repository(row: Any) -> Repository:
        key = wire.string(row, "key")
        if (problem := problem_with_name(key)) is not None:
            raise ProtocolViolation(problem)
        kind = wire.string(row, "type").lower()  # its casing differs between versions
        package_type = str(row.get("packageType", "")).lower()
        return Repository(key, kind, package_type, wire.optional(row, "url") or "")


class FoundRows(Rows):
    """Rows of a query on items (10.1).

    What many rows say alike is one object: of 100,000 items with a few properties the rows would
    take more than a mount may have.

    Args:
        named_only: nothing but names, kinds and properties was asked for.

    Attributes:
        matches: those that can be shown.
        keys: path and name of the rows, as the server has them.
        count: rows of the answer.
        joined: rows that the server's limits count: one for each property of an item.
    """

    def __init__(self, *, named_only: bool = False) -> None:
        super().__init__()
        self._named_only = named_only
        self._shared: dict[object, Any] = {}
        self.matches: list[Match] = []
        self.keys: list[tuple[str, str]] = []
        self.count = 0
        self.joined = 0

    def take(self, row: Any) -> None:
        """Read a row; an odd one is counted."""
        self.count += 1
        pairs = row.get("properties") if isinstance(row, dict) else None
        self.joined += max(1, len(pairs)) if isinstance(pairs, list) else 1
        try:
            repo, folder = wire.string(row, "repo"), wire.string(row, "path")
            name = wire.string(row, "name")
            self.keys.append((self._share(folder), name))
            if is_passing(name):
                return
            self.matches.append(self._match(row, self._share(repo), folder, name))
        except ProtocolViolation as error:
            self.hide(row, error.message)

    @property
    def to_come(self) -> float:
        return 0.3 if self._named_only else super().to_come

    def _share(self, value: _T, key: object = None) -> _T:
        """Return what equals a value and came before, if there is something."""
        if len(self._shared) > _SHARED_AT_MOST:
            self._shared.clear()
        found: _T = self._shared.setdefault(value if key is None else key, value)
        return found

    def _match(self, row: Any, repo: str, folder: str, name: str) -> Match:
        parts = [part for part in (*folder.split("/"), name) if part != "."]
        for part in parts:
            if (problem := problem_with_name(part)) is not None:
                raise ProtocolViolation(problem)
        path = RepoPath(repo, "/".join(parts))
        info = _named_info(row, path) if self._named_only else _row_info(row, path)
        properties = self._properties(row.get("properties"))
        return Match(info, self._share(properties, (*properties.items(),)))

    def _properties(self, pairs: Any) -> Properties:
        """Read one object for each value (10.1); a value that is absent is empty."""
        if pairs is None:
            return {}
        if not isinstance(pairs, list):
            raise ProtocolViolation("its properties are not a list")
        properties: dict[str, tuple[str, ...]] = {}
        for pair in pairs:
            key = pair.get("key") if isinstance(pair, dict) else None
            value = (pair.get("value") or "") if isinstance(pair, dict) else None
            if not isinstance(key, str) or not isinstance(value, str):
                raise ProtocolViolation(f"has an odd property {pair!r:.80}")
            values = (*properties.get(key, ()), self._share(value))
            properties[self._share(key)] = values
        return properties


def _named_info(row: Any, path: RepoPath) -> EntryInfo:
    return FolderInfo(path, 0) if _is_folder(row) else FileInfo(path, 0, _NO_CHECKSUMS, 0)


def _is_folder(row: Any) -> bool:
    kind = row.get("type")
    if kind not in ("folder", "file"):
        raise ProtocolViolation(f"is of type {kind!r:.40}")
    return bool(kind == "folder")


def _row_info(row: Any, path: RepoPath) -> EntryInfo:
    modified = wire.time_of(row, "modified", default=0) or 0
    created = wire.time_of(row, "created", default=None)
    if _is_folder(row):
        return FolderInfo(path, modified, created)
    return FileInfo(
        path,
        wire.size_of(row),
        Checksums(
            wire.digest(row, "sha256"),
            wire.digest(row, "actual_sha1", "sha1"),
            wire.digest(row, "actual_md5", "md5"),
        ),
        modified,
        created,
        wire.optional(row, "created_by"),
        wire.optional(row, "modified_by"),
    )


def _name(row: Any) -> object:
    """Return what names a row in a warning."""
    if isinstance(row, dict):
        for field in ("uri", "name", "key"):
            if isinstance(row.get(field), str):
                return row[field].removeprefix("/")
    return row
