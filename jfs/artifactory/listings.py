"""What folders hold, a request a folder where the server allows that. Trio thread only."""

from collections.abc import Awaitable, Callable, Mapping, Sequence

import trio
from cachetools import TTLCache

from jfs.artifactory import pieces, wire
from jfs.artifactory.rows import ChildRows, Hidden, ListedRows
from jfs.artifactory.session import Session
from jfs.errors import AccessDenied, JfsError, NotFound, ProtocolViolation, RemoteError
from jfs.model import EntryInfo, FolderInfo, RepoPath
from jfs.packed import Gathered, Packed

_PARALLEL_STATS = 16
# How long a folder is listed without `?list` after that was refused for it. It says nothing about
# others: anonymous users, a licence other than Pro and some kinds of repositories are refused.
_REFUSED_S = 300.0
_FOLDERS_KEPT = 10_000


class Listings:
    """Children of the folders of one server.

    Args:
        describe: asks about one file, where listings have no sizes.
    """

    def __init__(
        self,
        session: Session,
        hidden: Hidden,
        describe: Callable[[RepoPath], Awaitable[EntryInfo]],
    ) -> None:
        self._session = session
        self._hidden = hidden
        self._describe = describe
        self._refused: TTLCache[RepoPath, bool] = TTLCache(
            _FOLDERS_KEPT, _REFUSED_S, timer=trio.current_time
        )

    async def children(
        self, path: RepoPath, kept: RepoPath, known: Packed | None = None
    ) -> Sequence[EntryInfo]:
        """List a folder; *kept* is where the server keeps it. Raises RemoteError.

        Odd rows are left out, with one warning. *known*: see ``ArtifactStore.list_children``.
        """
        if path not in self._refused:
            try:
                address = f"{_storage(kept)}?list&deep=0&listFolders=1"
                rows, _ = await pieces.read(
                    self._session, "GET", address, "files", lambda: ListedRows(path, known)
                )
            except RemoteError as error:
                if error.status not in (400, 403, 404):
                    raise
                children = await self._one_by_one(path, kept, known)  # raises what is really wrong
                self._refused[path] = True
                return children
            self._hidden.warn(str(path), rows)
            return rows.entries
        return await self._one_by_one(path, kept, known)

    async def names(self, kept: RepoPath) -> Mapping[str, bool]:
        """Return the names in a folder, each with whether it is a folder, by its plain info."""
        return (await self._children(kept)).names

    async def is_empty(self, path: RepoPath) -> bool:
        """Whether a folder holds nothing at all, odd rows included."""
        rows = await self._children(path)
        return not rows.names and not rows.odd

    async def _children(self, kept: RepoPath) -> ChildRows:
        address = _storage(kept)
        return (await pieces.read(self._session, "GET", address, "children", ChildRows))[0]

    async def _one_by_one(
        self, path: RepoPath, kept: RepoPath, known: Packed | None
    ) -> Sequence[EntryInfo]:
        """List without ``?list``: names in one request, then one for each file."""
        rows = await self._children(kept)
        found = Gathered(path, known)
        failures: list[JfsError] = []
        files = iter([path.child(name) for name, folder in rows.names.items() if not folder])

        async def describe() -> None:
            for file in files:  # shared: each file goes to one of them
                if failures:
                    return
                try:
                    found.add(file.name, await self._describe(file))
                except NotFound:
                    pass  # deleted since we saw its name
                except (AccessDenied, ProtocolViolation) as error:
                    rows.hide({"name": file.name}, error.message)
                except JfsError as error:
                    failures.append(error)

        async with trio.open_nursery() as nursery:
            for _ in range(_PARALLEL_STATS):
                nursery.start_soon(describe)
        if failures:
            raise failures[0]
        for name, folder in rows.names.items():
            if folder:
                found.add(name, FolderInfo(path.child(name), 0))
        self._hidden.warn(str(path), rows)
        return found.entries


async def describe(session: Session, path: RepoPath, kept: RepoPath) -> EntryInfo:
    """Ask about one item; *kept* is where the server keeps it. Raises RemoteError.

    Of a folder the server names every child too, which nobody wants here.
    """
    _, document = await pieces.read(
        session, "GET", _storage(kept), "children", _Nobody, required=False
    )
    return wire.parse_info(document, path)


class _Nobody:
    to_come = 0.0

    def take(self, row: object) -> None:
        """Drop a row."""


def _storage(path: RepoPath) -> str:
    return f"/api/storage{wire.encode_path(path)}"
