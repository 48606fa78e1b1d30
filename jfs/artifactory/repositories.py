"""The repositories of a server as they were last listed, and where a remote one keeps its items.

Trio thread only.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from jfs.artifactory import wire
from jfs.artifactory.rows import Hidden, RepositoryRows
from jfs.artifactory.session import CACHE, Session
from jfs.errors import JfsError, Unavailable
from jfs.model import Match, RepoPath, Repository

log = logging.getLogger(__name__)

_ADDRESS = "/api/repositories"
_LOCAL, _REMOTE = "local", "remote"


class Repositories:
    """Asked for when a repository is met that was not in the last list."""

    def __init__(self, session: Session, hidden: Hidden) -> None:
        self._session = session
        self._hidden = hidden
        self._known: dict[str, Repository] = {}
        self._unlisted: set[str] = set()  # asked for since the last list, and not in it
        self._learnt: Callable[[Sequence[Repository]], None] | None = None

    async def list(self, *, retries: bool = True) -> Sequence[Repository]:
        """Ask the server. Raises RemoteError."""
        body = await self._session.get(_ADDRESS, retries=retries)
        rows = RepositoryRows(wire.parse_json(body, _ADDRESS))
        self._hidden.warn("the list of repositories", rows)
        self._known = {row.key: row for row in rows.repositories}
        self._unlisted.clear()
        if self._learnt is not None:
            self._learnt(rows.repositories)
        return rows.repositories

    def remember(
        self,
        repositories: Sequence[Repository],
        learnt: Callable[[Sequence[Repository]], None],
    ) -> None:
        """Believe an earlier list until there is one; *learnt* is told of every list from now on"""
        self._learnt = learnt
        if not self._known:
            self._known = {row.key: row for row in repositories}
        else:
            learnt(list(self._known.values()))

    async def known(self) -> Mapping[str, Repository]:
        """Return the last list by key; asks if there is none. Raises RemoteError."""
        if not self._known:
            await self.list()
        return self._known

    async def find(self, key: str) -> Repository | None:
        """Return one repository; None if the server lists no such one, or refuses to list any.

        Raises:
            Unavailable: it does not answer.
        """
        if key and key not in self._known and key not in self._unlisted:
            try:
                await self.list()
                if key not in self._known:
                    self._unlisted.add(key)
            except Unavailable:
                raise  # what is asked next would wait as long once more
            except JfsError as error:
                log.debug("%s: %s", key, error)  # what is asked next says what is wrong
        return self._known.get(key)

    async def kept(self, path: RepoPath) -> RepoPath:
        """Return where the server keeps an item: those of a remote repository lie in its cache.

        Asking for them there never makes the server download (artifactory-rest 9.2).
        """
        found = await self.find(path.repo)
        if found is not None and found.kind == _REMOTE:
            return RepoPath(path.repo + CACHE, path.path)
        return path

    def is_remote(self, key: str) -> bool:
        """Whether a repository that was listed is a remote one. Never asks."""
        found = self._known.get(key)
        return found is not None and found.kind == _REMOTE

    def is_local(self, key: str) -> bool:
        """Whether a repository that was listed is a local one. Never asks."""
        found = self._known.get(key)
        return found is not None and found.kind == _LOCAL

    def shown(self, match: Match, scope: RepoPath) -> Match | None:
        """Return a row under the name that the mount shows; None if it is outside of *scope*.

        Rows carry the repository that holds the item: a member of a virtual one, the cache of a
        remote one (artifactory-rest 10.1).
        """
        path = match.info.path
        repo = scope.repo
        if not repo:
            base = path.repo.removesuffix(CACHE)
            repo = base if self.is_remote(base) else path.repo
            if repo not in self._known:
                return None
        below = f"{scope.path}/" if scope.path else ""
        if not path.path or not path.path.startswith(below):
            return None  # the folder itself, or a neighbour that a wildcard let in
        if path.repo == repo:
            return match
        return replace(match, info=replace(match.info, path=RepoPath(repo, path.path)))
