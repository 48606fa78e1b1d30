"""The rules of storage: what a deploy, a delete or a property change does to content and items.

Blocking; any thread, except for ``lookup`` and ``count_download``, which an event loop may call.
One lock around catalogue and filestore together: a name in the catalogue always has its content,
since content is published before the commit that names it, and removed after the commit that
forgets it. Readers keep what they opened, also when it is deleted meanwhile.
"""

import fcntl
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from jfs.errors import ConfigError
from jfs.model import Checksums, Properties, RepoPath
from jfs.server import search
from jfs.server.access import ADMIN
from jfs.server.answers import ApiError
from jfs.server.aql import Query
from jfs.server.catalogue import Catalogue, Downloads, Item, Usage
from jfs.server.filestore import Blob, Filestore, Incoming, named_checksums
from jfs.server.repositories import Repositories
from jfs.server.search import Result

log = logging.getLogger(__name__)

_DOWNLOADS_KEPT = 1000  # items whose downloads are counted in memory before they are written
_LOOKUPS_KEPT = 10_000


@dataclass(frozen=True, slots=True)
class Deployment:
    """What a deploy states besides path and content.

    Args:
        properties: replace the whole set if there are any; otherwise an artifact whose bytes do
            not change keeps its own, and one whose bytes change loses them (4.4).
        original: the checksums that the client sent.
        modified, created: ms since 1970; None: now.
        created_by, modified_by: None: the user.
    """

    user: str
    properties: Properties = field(default_factory=dict)
    original: Checksums = field(default_factory=Checksums)
    modified: int | None = None
    created: int | None = None
    modified_by: str | None = None
    created_by: str | None = None


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
    Raises:
        ConfigError: the directory cannot be used, or another process uses it.
    """

    def __init__(self, directory: Path, hashers: Executor, *, durable: bool) -> None:
        self._durable = durable
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
        self._lock = threading.RLock()
        self._downloads: dict[int, Downloads] = {}
        self._downloads_lock = threading.Lock()  # the innermost: nothing is called under it
        self._lookups: dict[RepoPath, Found] = {}
        self.repositories = Repositories(self.catalogue, self._lock, self.transaction, now_ms)
        if removed := self.files.sweep(lambda name: self.catalogue.blob(sha256=name) is not None):
            log.info("%s: removed %d files that nothing names", directory, removed)

    def close(self) -> None:
        with self._lock:
            self._write_downloads()
            self.catalogue.close()
            self.files.close()
        self._lock_file.close()

    def usage(self) -> tuple[dict[str, Usage], tuple[int, int]]:
        """Give what each repository holds, and how many contents of how many bytes there are."""
        with self._lock:
            return self.catalogue.usage(), self.catalogue.blobs_usage()

    # reading

    def lookup(self, path: RepoPath) -> Found | None:
        """Give an item that was read since the last change of anything. Never blocks."""
        return self._lookups.get(path)

    def read(self, path: RepoPath) -> Found:
        """Find an item and its properties. Raises ApiError 404."""
        with self._lock:
            item = self.catalogue.find(path)
            if item is None:
                raise self._missing(path)
            found = Found(item, self.catalogue.properties(item.id))
            if len(self._lookups) >= _LOOKUPS_KEPT:
                self._lookups.clear()
            self._lookups[path] = found
            return found

    def find(self, path: RepoPath) -> Item | None:
        with self._lock:
            return self.catalogue.find(path)

    def children(self, path: RepoPath) -> list[Item]:
        with self._lock:
            return self.catalogue.children(path)

    def listing(self, path: RepoPath, depth: int | None) -> tuple[Item, list[Item]]:
        """Give a folder and what is below it, *depth* levels or all. Raises ApiError 404, 400."""
        with self._lock:
            root = self.read(path).item
            if not root.is_folder:
                raise ApiError(400, f"Expected a folder but found a file, at: {path}")
            return root, list(self.catalogue.below(path, depth))

    def open(self, path: RepoPath) -> tuple[Found, IO[bytes] | None]:
        """Find an item and open its content (None for a folder). Raises ApiError 404, 500."""
        with self._lock:
            found = self.read(path)
            blob = found.item.blob
            if blob is None:
                return found, None
            try:
                return found, self.files.open(blob.sha256, blob.size)
            except OSError as error:
                log.error("%s: its content cannot be read: %s", path, error)
                raise ApiError(500, "The content of this artifact is damaged.") from None

    def search(self, query: Query) -> Result:
        """Answer an AQL query. Raises ApiError 400."""
        with self._lock:
            self._write_downloads()
            return search.run(self.catalogue.db, query)

    def last_modified(self, path: RepoPath) -> Item:
        """Give what changed last, at or below *path*. Raises ApiError 404."""
        with self._lock:
            newest = self.catalogue.last_modified(path)
            if self.catalogue.find(path) is None or newest is None:
                raise self._missing(path)
            return newest

    def downloads(self, path: RepoPath) -> Downloads:
        """Give how often an item was downloaded. Raises ApiError 404."""
        with self._lock:
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
        with self._lock:
            self._write_downloads()

    # writing

    def receive(self) -> Incoming:
        return self.files.receive()

    def check_deploy(self, path: RepoPath) -> None:
        """Refuse a deploy before its body is read. Raises ApiError 404 or 409."""
        with self._lock:
            self._check_deploy(path)

    def deploy_received(
        self, path: RepoPath, incoming: Incoming, deployment: Deployment, *, cache: bool = False
    ) -> Item:
        """Publish received content at *path*; in the *cache* of a remote repository.

        Raises:
            ApiError: 404 no such repository; 409 a declared checksum differs, or a folder or file
                is in the way. Nothing is stored then.
        """
        blob = incoming.finish(durable=self._durable)
        for name, declared in named_checksums(deployment.original).items():
            if declared != blob.known[name]:
                raise ApiError(
                    409,
                    "Checksum policy 'LocalRepoChecksumPolicy: CLIENT' rejected the artifact "
                    f"'{path.repo}:{path.path}'. Checksums info: {name}: original='{declared}', "
                    f"actual='{blob.known[name]}'",
                )
        return self.deploy(path, blob, deployment, temporary=incoming.path, cache=cache)

    def deploy_known(self, path: RepoPath, deployment: Deployment) -> Item:
        """Deploy stored content, named by ``original``. Raises ApiError 404, 409."""
        sums = deployment.original
        with self._lock:
            self._check_deploy(path)
            blob = self.catalogue.blob(sha256=sums.sha256, sha1=sums.sha1)
            if blob is None or (sums.sha1 and blob.sha1 and sums.sha1 != blob.sha1):
                name, value = ("sha256", sums.sha256) if sums.sha256 else ("sha1", sums.sha1)
                raise ApiError(
                    404, f"Checksum deploy failed. No existing file with {name}: {value}"
                )
            return self.deploy(path, blob, deployment)

    def deploy(
        self,
        path: RepoPath,
        blob: Blob,
        deployment: Deployment,
        *,
        temporary: Path | None = None,
        cache: bool = False,
    ) -> Item:
        """Make content the artifact at *path*, with its parents, in one step.

        Args:
            temporary: a file with the content; None: it is stored already.
        Raises:
            ApiError: 404 no such repository; 409 something is in the way.
        """
        now = now_ms()
        with self.transaction() as unused:
            self._check_deploy(path, cache=cache)
            known = self.catalogue.blob(sha256=blob.sha256)
            if known is not None and known.size != blob.size:
                raise ApiError(409, f"Content with sha256 {blob.sha256} has another size.")
            if temporary is not None:
                self.files.publish(temporary, blob.sha256, durable=self._durable)
            self.catalogue.add_blob(blob)
            self.make_folders(path.parent, now, deployment.user)
            old = self.catalogue.find(path)
            if old is None:
                number = self.catalogue.insert(path, blob.sha256, now, deployment.user)
                created, created_by = now, deployment.user
            else:
                number, created, created_by = old.id, old.created, old.created_by
                if old.blob is not None and old.blob.sha256 != blob.sha256:
                    unused.append(old.blob.sha256)
                    with self._downloads_lock:
                        self._downloads.pop(number, None)
                    self.catalogue.clear_downloads(number)
                    self._replace_properties(number, {}, now)
            if deployment.properties:
                self._replace_properties(number, deployment.properties, now)
            self.catalogue.update(
                number,
                sha256=blob.sha256,
                created=created if deployment.created is None else deployment.created,
                created_by=deployment.created_by or created_by,
                modified=now if deployment.modified is None else deployment.modified,
                modified_by=deployment.modified_by or deployment.user,
                updated=now,
                original=json.dumps(named_checksums(deployment.original)),
            )
            return self.existing(path)

    def import_file(
        self, path: RepoPath, source: Path, sums: Checksums, properties: Properties
    ) -> Item:
        """Deploy a file as it is, believing *sums*: nothing is read, holes stay holes.

        The store may hard-link *source*: do not change it in place afterwards.
        """
        assert sums.sha256 is not None
        blob = Blob(sums.sha256, sums.sha1, sums.md5, source.stat().st_size)
        temporary = self.files.adopt(source)
        try:
            return self.deploy(path, blob, Deployment(ADMIN, properties), temporary=temporary)
        finally:
            temporary.unlink(missing_ok=True)

    def make_folder(self, path: RepoPath, *, user: str, properties: Properties) -> Item:
        """Make a folder and its parents, or set properties on one. Raises ApiError 404, 409."""
        now = now_ms()
        with self.transaction():
            self.require_local(path)
            self.make_folders(path, now, user)
            item = self.existing(path)
            if properties:
                self._replace_properties(item.id, properties, now)
            return self.existing(path)

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
        with self._lock:
            try:
                with self.catalogue.db:
                    yield candidates
                    unused = self.catalogue.drop_unused(candidates)
            finally:
                self._lookups.clear()
            for sha256 in unused:
                self.files.remove(sha256)

    def existing(self, path: RepoPath) -> Item:
        """Give an item that must be there."""
        item = self.catalogue.find(path)
        assert item is not None
        return item

    def make_folders(self, path: RepoPath, now: int, user: str) -> int:
        """Make what is missing of a folder and its parents; give how many. Raises ApiError 409."""
        missing = []
        while (item := self.catalogue.find(path)) is None:
            missing.append(path)
            path = path.parent
        if not item.is_folder:
            raise _in_the_way(path, "file")
        for each in reversed(missing):
            self.catalogue.insert(each, None, now, user)
        return len(missing)

    def require_local(self, path: RepoPath, *, cache: bool = False) -> None:
        """Raises ApiError 404: nothing can be written there."""
        if (
            self.repositories.is_of_remote(path.repo) is not cache
            or self.catalogue.find(RepoPath(path.repo)) is None
        ):
            raise ApiError(
                404, f"Could not find a local repository named {path.repo} to deploy to."
            )

    def _replace_properties(self, item: int, properties: Properties, now: int) -> None:
        self.catalogue.clear_properties(item)
        for key, values in properties.items():
            self.catalogue.set_property(item, key, values)
        self.catalogue.update(item, properties_changed=now)

    def _check_deploy(self, path: RepoPath, *, cache: bool = False) -> None:
        self.require_local(path, cache=cache)
        item = self.catalogue.find(path)
        if item is not None and item.is_folder:
            raise _in_the_way(path, "folder")
        parent = path.parent
        while (item := self.catalogue.find(parent)) is None:
            parent = parent.parent
        if not item.is_folder:
            raise _in_the_way(parent, "file")

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


def _in_the_way(path: RepoPath, kind: str) -> ApiError:
    return ApiError(409, f"Cannot deploy: '{path.repo}:{path.path}' is a {kind}.")


def now_ms() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000
