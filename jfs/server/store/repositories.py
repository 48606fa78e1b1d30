"""The rules of repositories: which there are, of what kind, and what goes with one.

Writing blocks; any thread. What they are is kept in memory: an event loop may ask.
"""

import re
import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager

from jfs.model import RepoPath
from jfs.server.store.catalogue import Catalogue
from jfs.server.store.rights import ADMIN, CACHE
from jfs.server.wire.answers import ApiError

_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_RESERVED = frozenset(["api", "ui", "webapp", "list", "simple", "jfs"])
_LOCAL = {"rclass": "local", "packageType": "generic"}
_KEPT = {**_LOCAL, "rclass": "cache"}

Config = dict[str, object]


class Repositories:
    """Part of a ``Store``, which gives its catalogue, its lock and its transactions.

    Args:
        transaction: as ``Store.transaction``.
        now: ms since 1970.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        lock: threading.RLock,
        transaction: Callable[[], AbstractContextManager[list[str]]],
        now: Callable[[], int],
    ) -> None:
        self._catalogue = catalogue
        self._lock = lock
        self._transaction = transaction
        self._now = now
        self._known: dict[str, Config] = {}
        self._learn()

    def all(self) -> dict[str, Config]:
        """Return every repository's configuration, by key; the caches of remote ones are none."""
        known = self._known
        return {key: config for key, config in known.items() if config["rclass"] != _KEPT["rclass"]}

    def exists(self, key: str) -> bool:
        """Whether there is such a repository, or such a cache of a remote one."""
        return key in self._known

    def remote(self, key: str) -> Config | None:
        """Return the configuration of a remote repository; None for any other."""
        config = self._known.get(key)
        return config if config is not None and config["rclass"] == "remote" else None

    def is_of_remote(self, key: str) -> bool:
        """Whether *key* is a remote repository or its cache."""
        return self.remote(key.removesuffix(CACHE)) is not None

    def config(self, key: str) -> Config:
        """Return a configuration; empty for what does not exist."""
        return self._known.get(key, {})

    def put(self, key: str, config: Mapping[str, object] | None = None) -> None:
        """Make a repository, or change its configuration. Raises ApiError 400.

        A remote one keeps what it fetches in a repository of its own, ``KEY-cache``.
        """
        if not _KEY.fullmatch(key) or key.endswith(CACHE) or key in _RESERVED:
            raise ApiError(400, f"Invalid repository key '{key}'.", plain=True)
        chosen = {**_LOCAL, **(config or {})}
        with self._lock:
            with self._transaction():
                self._catalogue.put_repository(key, chosen)
                root = RepoPath(key)
                if chosen["rclass"] == "remote":
                    root = RepoPath(key + CACHE)
                    self._catalogue.put_repository(root.repo, _KEPT)
                if self._catalogue.find(root) is None:
                    self._catalogue.insert(root, None, self._now(), ADMIN.name)
            self._learn()

    def delete(self, key: str) -> bool:
        """Remove a repository and everything in it; False if there is none."""
        with self._lock:
            if key not in self.all():
                return False
            with self._transaction() as unused:
                for each in (key, key + CACHE) if self.remote(key) else (key,):
                    unused += self._catalogue.digests(RepoPath(each))
                    self._catalogue.delete_repository(each)
            self._learn()
        return True

    def _learn(self) -> None:
        self._known = self._catalogue.repositories()
