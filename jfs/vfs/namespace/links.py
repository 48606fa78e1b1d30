"""What the server says of entries, with symbolic links told from empty files.

The ``jf`` client stores a symbolic link as an empty file with a property (artifactory-rest 12.2):
an empty file costs a question more. No state.
"""

from array import array
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress

import trio

from jfs.errors import AccessDenied, AlreadyExists, NotFound
from jfs.model import (
    SYMLINK_TARGET,
    Checksums,
    Criteria,
    Deployment,
    EntryInfo,
    FileInfo,
    Properties,
    RepoPath,
    as_link,
)
from jfs.packed import Packed
from jfs.protocols import ArtifactStore
from jfs.vfs.freshness import PIECE, pieces

_EMPTY_SHA256 = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def deployment(path: RepoPath, target: str, properties: Properties) -> Deployment:
    """Return what makes a link, with more properties."""
    properties = {**properties, SYMLINK_TARGET: (target,)}
    return Deployment(path, 0, Checksums(sha256=_EMPTY_SHA256), properties)


async def described(store: ArtifactStore, path: RepoPath) -> EntryInfo:
    """Describe one item. Raises NotFound, RemoteError."""
    info = await store.stat(path)
    if is_empty_file(info):
        return as_link(info, await store.properties(path))
    return info


async def require_no_other(
    store: ArtifactStore, path: RepoPath, target: str, _: Collection[str] = ()
) -> None:
    """Raise AlreadyExists if something else than the link that we make has its name by now.

    That one may be there: the answer to an earlier try was lost. See ``protocols.Still``.
    """
    with suppress(NotFound):
        there = await described(store, path)
        if not isinstance(there, FileInfo) or there.link_target != target:
            raise AlreadyExists(f"{path}: was made on the server meanwhile")


async def listed(
    store: ArtifactStore, folder: RepoPath, known: Packed | None = None
) -> Sequence[EntryInfo]:
    """List a folder; its links cost one query, whatever their number. Raises RemoteError.

    Args:
        known: see ``ArtifactStore.list_children``.
    """
    entries = await store.list_children(folder, known)
    if isinstance(entries, Packed):
        return await _with_links(store, folder, entries)
    empty: set[RepoPath] = set()
    for piece in pieces(entries):
        empty.update(info.path for info in piece if is_empty_file(info))
        await trio.lowlevel.checkpoint()
    if not empty:
        return entries
    links: Mapping[RepoPath, EntryInfo]
    try:
        links = await links_among(store, Criteria(folder, direct=True))
    except AccessDenied:  # anonymous users may not query (artifactory-rest 10.1)
        links = {path: await described(store, path) for path in empty}
    shown: list[EntryInfo] = []
    for piece in pieces(entries):
        shown += [links.get(info.path, info) if is_empty_file(info) else info for info in piece]
        await trio.lowlevel.checkpoint()
    return shown


async def _with_links(store: ArtifactStore, folder: RepoPath, packed: Packed) -> Packed:
    empty = array("I")
    for start in range(0, len(packed), PIECE):
        empty.extend(packed.empty_files(start, start + PIECE))
        await trio.lowlevel.checkpoint()
    if not empty:
        return packed
    try:
        found = await links_among(store, Criteria(folder, direct=True))
    except AccessDenied:
        for row in empty:
            info = await described(store, packed[row].path)
            if isinstance(info, FileInfo) and info.link_target is not None:
                packed.put(row, info)
        return packed
    for path, info in found.items():
        row = packed.find(path.name)
        if row >= 0 and is_empty_file(packed[row]):
            packed.put(row, info)
    return packed


async def links_among(store: ArtifactStore, criteria: Criteria) -> Mapping[RepoPath, EntryInfo]:
    """Find the symbolic links among what fits *criteria*. Raises RemoteError."""
    of_links = (*criteria.properties, (SYMLINK_TARGET, "*"))
    matches = await store.search(
        Criteria(criteria.scope, of_links, kind="file", direct=criteria.direct)
    )
    return {match.info.path: as_link(match.info, match.properties) for match in matches}


def is_empty_file(info: EntryInfo) -> bool:
    """Whether only its properties tell whether it is a file or a link."""
    return isinstance(info, FileInfo) and not info.size
