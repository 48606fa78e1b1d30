"""The rules of storage: what a delete or a property change does to content and items.

What a deploy does is in ``placement``, what a copy or a move does in ``routes.transfer``.

Blocking; any thread, except for ``lookup`` and ``count_download``, which an event loop may call.
One lock around catalogue and filestore together: a name in the catalogue always has its content,
since content is published before the commit that names it, and removed after the commit that
forgets it. Readers keep what they opened, also when it is deleted meanwhile.
"""

import fcntl
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from jfs.errors import ConfigError
from jfs.model import Properties, RepoPath
from jfs.server.search import sql
from jfs.server.search.language import Query
from jfs.server.search.sql import Result
from jfs.server.store.catalogue import Catalogue, Downloads, Item, Usage
from jfs.server.store.filestore import Filestore, Incoming
from jfs.server.store.repositories import Repositories
from jfs.server.store.rights import Right, User
from jfs.server.wire.answers import ApiError

log = logging.getLogger(__name__)

_DOWNLOADS_KEPT = 1000  # items whose downloads are counted in memory before they are written
_LOOKUPS_KEPT = 10_000


@dataclass(frozen=True, slots=True)
class Found:
    """An item with its properties."""

    item: Item
    properties: Properties


class Store:
    """Open or make the store in *directory*.

    Args:
        durable: what was answered survives a loss of power, not only a kill.
        hashers: threads that hash what is received.
        quota: bytes of content that may lie on disk; None: what the disk holds.
    Raises:
        ConfigError: the directory cannot be used, or another process uses it.
    """

    def __init__(
        self, directory: Path, hashers: Executor, *, durable: bool, quota: int | None = None
    ) -> None:
        self.durable = durable
        self.query_limit: int | None = None  # rows of a result; more are trimmed
        self._quota = quota
        self.directory = directory
        try:
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock_file = (directory / "lock").open("wb")
        except OSError as error:
            raise ConfigError(f"{directory}: cannot be used: {error.strerror}") from None
        try:
            try:
                fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise ConfigError(f"{directory}: another jfs serve uses it") from None
            try:
                self.files = Filestore(directory, hashers)
            except OSError as error:
                raise ConfigError(f"{directory}: cannot be used: {error.strerror}") from None
            self.catalogue = Catalogue(directory / "artifactory.sqlite", durable=durable)
        except BaseException:
            self._lock_file.close()
            raise
        self.lock = threading.RLock()  # for those who hold further rules, around reading only
        self._downloads: dict[int, Downloads] = {}
        self._downloads_lock = threading.Lock()  # the innermost: nothing is called under it
        self._lookups: dict[RepoPath, Found] = {}
        self.repositories = Repositories(self.catalogue, self.lock, self.transaction, now_ms)
        if removed := self.files.sweep(lambda name: self.catalogue.blob(sha256=name) is not None):
            log.info("%s: removed %d files that nothing names", directory, removed)

    def close(self) -> None:
        with self.lock:
            self._write_downloads()
            self.catalogue.close()
            self.files.close()
        self._lock_file.close()

    def usage(self) -> tuple[dict[str, Usage], tuple[int, int]]:
        """Return what each repository holds, and how many contents of how many bytes there are."""
        with self.lock:
            return self.catalogue.usage(), self.catalogue.blobs_usage()

    # reading

    def lookup(self, path: RepoPath) -> Found | None:
        """Return an item that was read since the last change of anything. Never blocks."""
        return self._lookups.get(path)

    def read(self, path: RepoPath) -> Found:
        """Find an item and its properties. Raises ApiError 404."""
        with self.lock:
            item = self.catalogue.find(path)
            if item is None:
                raise self._missing(path)
            found = Found(item, self.catalogue.properties(item.id))
            if len(self._lookups) >= _LOOKUPS_KEPT:
                self._lookups.clear()
            self._lookups[path] = found
            return found

    def find(self, path: RepoPath) -> Item | None:
        with self.lock:
            return self.catalogue.find(path)

    def children(self, path: RepoPath) -> list[Item]:
        with self.lock:
            return self.catalogue.children(path)

    def listing(self, path: RepoPath, depth: int | None) -> tuple[Item, list[Item]]:
        """Return a folder and what is below it, *depth* levels or all. Raises ApiError 404, 400."""
        with self.lock:
            root = self.read(path).item
            if not root.is_folder:
                raise ApiError(400, f"Expected a folder but found a file, at: {path}")
            return root, list(self.catalogue.below(path, depth))

    def open(self, path: RepoPath) -> tuple[Found, IO[bytes] | None]:
        """Find an item and open its content (None for a folder). Raises ApiError 404, 500."""
        with self.lock:
            found = self.read(path)
            blob = found.item.blob
            if blob is None:
                return found, None
            try:
                return found, self.files.open(blob.sha256, blob.size)
            except OSError as error:
                log.error("%s: its content cannot be read: %s", path, error)
                raise ApiError(500, "The content of this artifact is damaged.") from None

    def search(self, query: Query, user: User) -> Result:
        """Answer an AQL query with what *user* may read. Raises ApiError 400."""
        readable = None if user.is_admin else lambda repo: user.may(Right.READ, repo)
        with self.lock:
            self._write_downloads()
            return sql.run(self.catalogue.db, query, readable, self.query_limit)

    def last_modified(self, path: RepoPath) -> Item:
        """Return what changed last, at or below *path*. Raises ApiError 404."""
        with self.lock:
            newest = self.catalogue.last_modified(path)
            if self.catalogue.find(path) is None or newest is None:
                raise self._missing(path)
            return newest

    def downloads(self, path: RepoPath) -> Downloads:
        """Return how often an item was downloaded. Raises ApiError 404."""
        with self.lock:
            self._write_downloads()
            return self.catalogue.downloads(self.read(path).item.id)

    def count_download(self, item: Item, user: str) -> None:
        """Note a download; written later and in bulk. Never blocks for long."""
        with self._downloads_lock:
            old = self._downloads.get(item.id, Downloads())
            self._downloads[item.id] = Downloads(old.count + 1, now_ms(), user)

    @property
    def downloads_pending(self) -> bool:
        """Whether it is time for ``flush_downloads``."""
        return len(self._downloads) >= _DOWNLOADS_KEPT

    def flush_downloads(self) -> None:
        with self.lock:
            self._write_downloads()

    # writing

    def receive(self) -> Incoming:
        return self.files.receive()

    def delete(self, path: RepoPath) -> None:
        """Remove an item and everything below it; the root is emptied. Raises ApiError 404."""
        with self.transaction() as unused:
            if self.catalogue.find(RepoPath(path.repo)) is None:
                raise ApiError(404, "", plain=True)
            item = self.catalogue.find(path)
            if item is None:
                name = f"{path.repo}:{path.path}"
                raise ApiError(404, f"Could not locate artifact '{name}' (Nothing to delete).")
            unused += self.catalogue.digests(path)
            self.catalogue.delete(path)
            if not path.path:
                self.catalogue.insert(path, None, item.created, item.created_by)

    def change_properties(
        self, path: RepoPath, change: Mapping[str, tuple[str, ...] | None], *, recursive: bool
    ) -> None:
        """Set keys, or remove those that are None. Raises ApiError 404."""

        def one(item: int) -> None:
            for key, values in change.items():
                self.catalogue.set_property(item, key, values or ())

        self._touch_properties(path, one, recursive)

    def clear_properties(self, path: RepoPath, *, recursive: bool) -> None:
        self._touch_properties(path, self.catalogue.clear_properties, recursive)

    def _touch_properties(
        self, path: RepoPath, change: Callable[[int], None], recursive: bool
    ) -> None:
        now = now_ms()
        with self.transaction():
            items = [self.read(path).item]
            if recursive and items[0].is_folder:
                items += self.catalogue.below(path)
            for item in items:
                change(item.id)
                self.catalogue.update(item.id, properties_changed=now, updated=now)

    # inside a transaction; for the modules that hold further rules

    @contextmanager
    def transaction(self) -> Iterator[list[str]]:
        """Commit or roll back; then remove the listed content that nothing uses any more."""
        candidates: list[str] = []
        with self.lock:
            self._write_downloads()  # SQLite may give the number of a removed item to another one
            try:
                with self.catalogue.db:
                    yield candidates
                    unused = self.catalogue.drop_unused(candidates)
            finally:
                self._lookups.clear()
            for sha256 in unused:
                self.files.remove(sha256)

    def existing(self, path: RepoPath) -> Item:
        """Return an item that must be there."""
        item = self.catalogue.find(path)
        assert item is not None
        return item

    def make_folders(self, path: RepoPath, now: int, user: str) -> int:
        """Make what is missing of a folder and its parents; return how many. ApiError 409."""
        missing = []
        while (item := self.catalogue.find(path)) is None:
            missing.append(path)
            path = path.parent
        if not item.is_folder:
            raise self.in_the_way(path, "file")
        for each in reversed(missing):
            self.catalogue.insert(each, None, now, user)
        return len(missing)

    def replace_properties(self, item: int, properties: Properties, now: int) -> None:
        self.catalogue.clear_properties(item)
        for key, values in properties.items():
            self.catalogue.set_property(item, key, values)
        self.catalogue.update(item, properties_changed=now)

    def in_the_way(self, path: RepoPath, kind: str) -> ApiError:
        return ApiError(409, f"Cannot deploy: '{path.repo}:{path.path}' is a {kind}.")

    def forget_downloads(self, item: int) -> None:
        """Begin counting anew, also what was counted and is not written yet."""
        with self._downloads_lock:
            self._downloads.pop(item, None)
        self.catalogue.clear_downloads(item)

    def room(self) -> int | None:
        """Return how many bytes of new content the quota leaves; None: any number."""
        if self._quota is None:
            return None
        return max(0, self._quota - self.catalogue.blobs_usage()[1])

    def _missing(self, path: RepoPath) -> ApiError:
        if self.catalogue.find(RepoPath(path.repo)) is None:
            return ApiError(
                404, f"Failed to find the repository '{path.repo}' specified in the request."
            )
        return ApiError(404, "File not found.")

    def _write_downloads(self) -> None:
        with self._downloads_lock:
            counted, self._downloads = self._downloads, {}
        if not counted:
            return
        with self.catalogue.db:
            for item, downloads in counted.items():
                self.catalogue.count_downloads(item, downloads)


def no_room() -> ApiError:
    """The answer to what finds no room, by the quota or on the disk (1.4)."""
    return ApiError(
        413,
        "Datastore disk usage is too high. Contact your Artifactory administrator to add "
        "additional storage space or change the disk quota limits.",
    )


def now_ms() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000
