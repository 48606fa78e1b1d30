"""Names of a remote repository that it has not cached yet. Trio thread only.

A file can be asked for by its name, and is then downloaded by the server (artifactory-rest 9.2).
Folders cannot: most upstreams have none. A name that does not look like a file's is taken for a
folder, or nothing below it could ever be reached, unless upstream can tell:

- Hugging Face is asked for ``api/models/ORG/MODEL``. Whether an upstream is Hugging Face is known
  by its address, or because such a question was answered before, by this process or another: the
  answer is in the repository's cache then. The 404 of any other upstream says nothing.
- An upstream may have a web page where a folder is, as Hugging Face and GitHub do. A server that
  is told that no page is wanted answers 409 for it; to ``Accept: */*`` it would store the page as
  a file, and nothing could be cached below it any more.
"""

import json
import re
from collections.abc import Sequence
from typing import NamedTuple
from urllib.parse import urlsplit

import trio
from cachetools import TTLCache

from jfs.artifactory import heads, wire
from jfs.artifactory.listings import describe
from jfs.artifactory.session import CACHE, Session
from jfs.errors import (
    AccessDenied,
    Conflict,
    JfsError,
    NotFound,
    ProtocolViolation,
    RemoteError,
    Unavailable,
)
from jfs.model import EntryInfo, FolderInfo, RepoPath, Repository
from jfs.packed import DEAD, Packed

_HUBS = ("huggingface.co", "hf.co", "hf-mirror.com")  # and their subdomains
# The end of a file's name: config.json, but not Llama-3.1-8B nor v1.5.
_LIKE_A_FILE = re.compile(r"\.[A-Za-z][A-Za-z0-9]{0,11}$")
# An organisation of Hugging Face may be called a.b: only these are no names of one.
_SURELY_A_FILE = re.compile(r"\.(json|txt|md|bin|safetensors|gguf|onnx|pth?|py|ya?ml|lock|tmp)$")
# ORG/MODEL/resolve/REVISION/FILE: the part after the model, and the revision, are folders.
_ROUTES = ("resolve", "raw")
_KINDS = ("datasets", "spaces")  # first parts of what is no model
# Upstream's answer is held against this, unless it holds */* or application/octet-stream: a page of
# text/html is refused, every other type is taken (Artifactory's blockMismatchingMimeTypes).
_NO_PAGES = "application/x-artifact"
_OF_A_MODEL = frozenset(["id", "modelId", "_id", "siblings"])  # of Hugging Face's answer
_LOOKED_S = 60.0
_API = "api"  # what is asked below it is cached, and is no model


class Upstream:
    """Names of all remote repositories of one server."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._hubs: set[str] = set()  # repositories whose upstream answered as Hugging Face does
        self._others: set[str] = set()  # those that hold a file where Hugging Face has none
        self._pages: set[tuple[str, int]] = set()  # that have pages for folders, and how deep
        self._looked: TTLCache[str, bool] = TTLCache(1024, _LOOKED_S, timer=trio.current_time)

    async def stat(self, path: RepoPath, repository: Repository) -> EntryInfo:
        """Describe an item that the repository has not cached.

        This may make the server download the file: it is for who asks for it by name, never for
        a listing.

        Raises:
            NotFound: upstream has no such file, nor a folder as far as it can be asked.
        """
        if not path.path:
            return FolderInfo(path, 0)
        parts = path.path.split("/")
        depth = len(parts)
        folder = FolderInfo(path, 0, listed=False)
        model = _model(parts)
        below = depth - model.depth if model is not None else 0
        if model is not None and below in (1, 2) and parts[model.depth] in _ROUTES:
            await self._require_model(path, model, repository)
            return folder
        if model is not None and below == 0:
            if await self._has_model(path.repo, model, repository):
                return folder
            if await self._is_hub(repository):
                raise _missing(path)
        if depth == 1 and _is_known(repository) and not _SURELY_A_FILE.search(path.name):
            if await self._has_organisation(path):
                return folder
            raise _missing(path)
        try:
            info = await self._ask(path)
        except Conflict:
            self._pages.add((path.repo, depth))
            return folder
        except NotFound:
            organisation = depth == 1 and await self._is_hub(repository)
            if (_SURELY_A_FILE if organisation else _LIKE_A_FILE).search(path.name):
                raise
            if depth <= 2 and (path.repo, depth) in self._pages:
                raise  # others of its kind have pages
            await self._require_model(path, model, repository)
            return folder
        if model is not None and below > 0 and parts[model.depth] not in _ROUTES:
            self._others.add(path.repo)
        return info

    async def hides(self, path: RepoPath, repository: Repository) -> bool:
        """Whether the cache holds an item only because it was asked here: it is in no model."""
        return path.path == _API and await self._is_hub(repository)

    async def shown(
        self, root: RepoPath, entries: Sequence[EntryInfo], repository: Repository
    ) -> Sequence[EntryInfo]:
        """Return what of the root of a repository is not hidden."""
        if isinstance(entries, Packed):
            row = entries.find(_API)
            if row >= 0 and await self.hides(root.child(_API), repository):
                entries.mark(row, DEAD)
            return entries
        return [entry for entry in entries if not await self.hides(entry.path, repository)]

    async def _ask(self, path: RepoPath) -> EntryInfo:
        """Ask about the item itself, in storage and then by HEAD.

        Raises:
            NotFound: upstream has no file there. Conflict: it has a page.
        """
        try:
            return await describe(self._session, path, path)
        except RemoteError as error:
            if error.status not in (400, 404):
                raise
        return await heads.ask(self._session, path, accept=_NO_PAGES)

    async def _require_model(
        self, path: RepoPath, model: "_Model | None", repository: Repository
    ) -> None:
        """Raise NotFound for what lies in a model that Hugging Face does not have."""
        if model is None or not await self._is_hub(repository):
            return
        if not await self._has_model(path.repo, model, repository):
            raise _missing(path)

    async def _has_model(self, repo: str, model: "_Model", repository: Repository) -> bool:
        """Whether Hugging Face has a model; False also where upstream is another server."""
        if repo in self._others and not _is_known(repository):
            return False
        known = repo in self._hubs or _is_known(repository)
        try:
            document = await self._api(repo, model.name, retries=known)
        except Unavailable:
            if await self._is_hub(repository):
                raise
            return False  # another server may fail at such a question: its files are asked for next
        except (AccessDenied, ProtocolViolation):
            return await self._is_hub(repository)  # it may be there: its files are asked for next
        if _OF_A_MODEL.isdisjoint(document):
            return False
        self._hubs.add(repo)
        return True

    async def _has_organisation(self, path: RepoPath) -> bool:
        """Whether Hugging Face has anything of this name: also a user, or an old model."""
        name = path.path
        for address in (f"organizations/{name}/overview", f"users/{name}/overview"):
            try:
                if await self._api(path.repo, address):
                    return True
            except (AccessDenied, ProtocolViolation):
                return True
        return bool(await self._api(path.repo, f"models/{name}"))

    async def _api(self, repo: str, name: str, *, retries: bool = True) -> dict[str, object]:
        """Ask for a JSON object below ``api/``; empty: there is none. Raises RemoteError."""
        address = wire.encode_path(RepoPath(repo, f"api/{name}"))
        headers = {"Accept": "application/json"}
        try:
            response = await self._session.exchange(
                "GET", address, None, headers, repo=repo, retries=retries
            )
            document = json.loads(response.content)
        except (NotFound, Conflict, ValueError, RecursionError):
            return {}
        return document if isinstance(document, dict) else {}

    async def _is_hub(self, repository: Repository) -> bool:
        repo = repository.key
        if repo in self._hubs or _is_known(repository):
            return True
        if repo in self._others:
            return False
        if repo not in self._looked:
            kept = RepoPath(repo + CACHE, "api/models")
            try:
                found = isinstance(await describe(self._session, kept, kept), FolderInfo)
            except NotFound:
                found = False
            except JfsError:
                return False
            self._looked[repo] = found
            if found:
                self._hubs.add(repo)
        return self._looked.get(repo, False)


def _is_known(repository: Repository) -> bool:
    """Whether the address of its upstream is that of Hugging Face."""
    host = urlsplit(repository.url).hostname or ""
    return host in _HUBS or host.endswith(tuple(f".{hub}" for hub in _HUBS))


def _missing(path: RepoPath) -> NotFound:
    return NotFound(f"{path}: upstream has no such model", status=404)


class _Model(NamedTuple):
    """A model, dataset or space: its name below ``api/``, and how many parts of a path it is."""

    name: str
    depth: int


def _model(parts: Sequence[str]) -> _Model | None:
    """Return the model that a path is or lies in, if it were one of Hugging Face."""
    start = 1 if parts[0] in _KINDS else 0
    kind = parts[0] if start else "models"
    if len(parts) < start + 2 or parts[0] == "api":
        return None
    # Old models have no organisation: gpt2/resolve/main/config.json.
    depth = start + (1 if parts[start + 1] in _ROUTES else 2)
    return _Model("/".join([kind, *parts[start:depth]]), depth)
