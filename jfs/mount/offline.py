"""A server that is never asked: for ``--offline``."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from jfs.errors import Offline
from jfs.extents import Extent
from jfs.model import (
    ArtifactVersion,
    Criteria,
    Deployment,
    EntryInfo,
    FileInfo,
    Match,
    Properties,
    RepoPath,
    Repository,
)
from jfs.packed import Packed
from jfs.protocols import Growing, Sink, Still


class OfflineStore:
    """``ArtifactStore`` without a server: every question fails at once.

    Args:
        repositories: that the server had when it was asked last.
    """

    def __init__(self, repositories: Sequence[Repository]) -> None:
        self._kinds = {row.key: row.kind for row in repositories}

    async def repositories(self) -> Sequence[Repository]:
        raise _offline()

    async def stat(self, path: RepoPath) -> EntryInfo:
        raise _offline()

    async def list_children(
        self, path: RepoPath, known: Packed | None = None
    ) -> Sequence[EntryInfo]:
        raise _offline()

    async def properties(self, path: RepoPath) -> Properties:
        raise _offline()

    async def set_properties(
        self, path: RepoPath, change: Mapping[str, tuple[str, ...] | None]
    ) -> None:
        raise _offline()

    async def search(self, criteria: Criteria) -> Sequence[Match]:
        raise _offline()

    async def locate(self, version: ArtifactVersion) -> RepoPath | None:
        raise _offline()

    async def downloads(self, path: RepoPath) -> int:
        raise _offline()

    async def deploy(
        self,
        deployment: Deployment,
        file: int | None,
        *,
        patient: bool = True,
        still: Still | None = None,
    ) -> FileInfo:
        raise _offline()

    async def stream(self, path: RepoPath, file: Path, growing: Growing) -> FileInfo:
        raise _offline()

    async def make_folder(self, path: RepoPath) -> None:
        raise _offline()

    async def is_empty(self, path: RepoPath) -> bool:
        raise _offline()

    async def delete(self, path: RepoPath) -> None:
        raise _offline()

    async def move(
        self,
        source: RepoPath,
        target: RepoPath,
        *,
        tree: bool = False,
        known: EntryInfo | None = None,
    ) -> None:
        raise _offline()

    async def copy(self, source: RepoPath, target: RepoPath, *, tree: bool = False) -> None:
        raise _offline()

    def is_writable(self, repo: str) -> bool:
        return False

    def removes(self, repo: str) -> bool:
        return False

    def lists_all(self, repo: str) -> bool:
        return not repo or self._kinds.get(repo) not in (None, "remote")


class OfflineSource:
    """``RangeSource`` without a server."""

    def fetch(self, version: ArtifactVersion, extent: Extent, sink: Sink) -> None:
        raise Offline(f"offline: not all of {version.path} is in the cache")

    def close(self) -> None:
        pass


def _offline() -> Offline:
    return Offline("offline: it is not known from earlier, and the server is not asked")
