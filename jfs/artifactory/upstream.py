"""Names of a remote repository that it has not cached yet. Trio thread only.

A file can be asked for by its name, and is then downloaded by the server (artifactory-rest 9.2).
Folders cannot: most upstreams have none. A name that does not look like a file's is taken for a
folder, or nothing below it could ever be reached. Only Hugging Face can be asked whether a model is
there, at ``api/models/ORG/MODEL``. Whether an upstream is Hugging Face is known by its address, or
because such a question was answered before: the 404 of another upstream says nothing.
"""

import json
import re
from collections.abc import Sequence
from typing import NamedTuple
from urllib.parse import urlsplit

from jfs.artifactory import wire
from jfs.artifactory.listings import describe
from jfs.artifactory.session import Session
from jfs.errors import AccessDenied, NotFound, ProtocolViolation, RemoteError
from jfs.model import EntryInfo, FolderInfo, RepoPath, Repository

_HUBS = ("huggingface.co", "hf.co", "hf-mirror.com")  # and their subdomains
# The end of a file's name: config.json, but not Llama-3.1-8B nor v1.5.
_LIKE_A_FILE = re.compile(r"\.[A-Za-z][A-Za-z0-9]{0,11}$")
# An organisation of Hugging Face may be called a.b: only these are no names of one.
_SURELY_A_FILE = re.compile(r"\.(json|txt|md|bin|safetensors|gguf|onnx|pth?|py|ya?ml|lock|tmp)$")
# ORG/MODEL/resolve/REVISION/FILE: the part after the model, and the revision, are folders.
_ROUTES = ("resolve", "raw")
_KINDS = ("datasets", "spaces")  # first parts of what is no model


class Upstream:
    """Names of all remote repositories of one server."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._hubs: set[str] = set()  # repositories whose upstream answered as Hugging Face does
        self._others: set[str] = set()  # those that hold a file where Hugging Face has none

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
        model = _model(parts)
        folder = FolderInfo(path, 0, listed=False)
        if model is not None and len(parts) > model.depth and parts[model.depth] in _ROUTES:
            on_route = len(parts) - model.depth  # 1: the route, 2: the revision
        else:
            on_route = 0
        if on_route in (1, 2):
            await self._require_model(path, model, repository)
            return folder
        if model is not None and len(parts) == model.depth:
            if await self._has(path.repo, model, repository):
                return folder
            if self._is_hub(repository):
                raise NotFound(f"{path}: upstream has no such model", status=404)
        try:
            info = await self._ask(path)
        except NotFound:
            organisation = len(parts) == 1 and self._is_hub(repository)
            if (_SURELY_A_FILE if organisation else _LIKE_A_FILE).search(path.name):
                raise
            await self._require_model(path, model, repository)
            return folder
        if model is not None and not on_route:
            self._others.add(path.repo)
        return info

    async def _ask(self, path: RepoPath) -> EntryInfo:
        """Ask about the item itself, in storage and then by HEAD. Raises NotFound."""
        try:
            return await describe(self._session, path, path)
        except RemoteError as error:
            if error.status not in (400, 404):
                raise
        response = await self._session.exchange("HEAD", wire.encode_path(path), repo=path.repo)
        return wire.info_of_headers(path, response.headers)

    async def _require_model(
        self, path: RepoPath, model: "_Model | None", repository: Repository
    ) -> None:
        """Raise NotFound for what lies in a model that Hugging Face does not have."""
        if model is None or not self._is_hub(repository):
            return
        if not await self._has(path.repo, model, repository):
            raise NotFound(f"{path}: upstream has no such model", status=404)

    async def _has(self, repo: str, model: "_Model", repository: Repository) -> bool:
        """Whether Hugging Face has a model; False also where upstream is another server."""
        if repo in self._others and not self._is_hub(repository):
            return False
        address = wire.encode_path(RepoPath(repo, f"api/{model.name}"))
        try:
            response = await self._session.exchange("GET", address, repo=repo)
        except NotFound:
            return False
        except (AccessDenied, ProtocolViolation):
            return self._is_hub(repository)  # it may be there: its files are asked for next
        try:
            document = json.loads(response.content)
        except (ValueError, RecursionError):
            return False
        if not isinstance(document, dict) or not (document.get("id") or document.get("modelId")):
            return False
        self._hubs.add(repo)
        return True

    def _is_hub(self, repository: Repository) -> bool:
        if repository.key in self._hubs:
            return True
        host = urlsplit(repository.url).hostname or ""
        return host in _HUBS or host.endswith(tuple(f".{hub}" for hub in _HUBS))


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
