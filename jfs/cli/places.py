"""Places on a server that a command changes: checked before, and refreshed in mounts afterwards."""

import os
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path

from jfs.artifactory import ArtifactoryClient
from jfs.cli.connection import Place
from jfs.errors import ConfigError, JfsError, NotFound
from jfs.model import EntryInfo, RepoPath, problem_with_name
from jfs.mount import table
from jfs.sources import parse_source
from jfs.vfs.filesystem import REFRESH

# A mount that is stuck must not keep the command; what it shows is true again after its TTL.
_PATIENCE_S = 5.0


def require_one_server(places: Sequence[Place]) -> None:
    """Raises ConfigError when not all are on the same server."""
    first = places[0]
    for place in places:
        if place.source.server_url != first.source.server_url:
            raise ConfigError(
                f"{place.shown} is on {place.source.server_url}, {first.shown} on "
                f"{first.source.server_url}: between servers copy with cp, from mount to mount"
            )


def require_name(place: Place, path: RepoPath) -> None:
    """Make sure that something can be made at *path*. Raises ConfigError."""
    if not path.path:
        what = "a repository" if path.repo else "a server"
        raise ConfigError(f"{place.shown}: is the place of {what}: give REPO/PATH")
    for name in path.path.split("/"):
        if (problem := problem_with_name(name)) is not None:
            raise ConfigError(f"{place.shown}: {name!r} {problem}")


async def look(client: ArtifactoryClient, path: RepoPath) -> EntryInfo | None:
    """Return what is at a place; None: nothing."""
    try:
        return await client.stat(path)
    except NotFound:
        return None


def require_item(place: Place) -> None:
    """Make sure that a place is in a repository. Raises ConfigError."""
    path = place.source.path
    if not path.path:
        what = f"the repository {path.repo}" if path.repo else "a whole server"
        raise ConfigError(f"{place.shown}: is {what}: name a file or folder in it")


async def require(client: ArtifactoryClient, place: Place) -> EntryInfo:
    """Return what is at a place. Raises JfsError with one line."""
    info = await look(client, place.source.path)
    if info is None:
        raise missing(place)
    return info


async def require_writable(client: ArtifactoryClient, place: Place) -> None:
    """Make sure that a place can hold anything, before upstream is asked about it. JfsError."""
    await client.repositories()
    repo = place.source.path.repo
    if not client.is_writable(repo):
        raise JfsError(f"{place.shown}: {repo} is a remote repository: nothing can be made there")


def missing(place: Place) -> JfsError:
    """Return the error for a place where nothing is."""
    what = "file or folder on the server"
    if not place.source.path.path:
        what = "repository on the server, or no right to read it"
    return JfsError(f"{place.shown}: no such {what}")


def is_inside(path: RepoPath, folder: RepoPath) -> bool:
    """Whether *path* is *folder* or below it."""
    return path == folder or str(path).startswith(f"{folder}/")


def refresh_mounts(server_url: str, changed: Iterable[RepoPath]) -> None:
    """Let every mount that shows one of these places forget what it knew there."""
    folders = {path.parent for path in changed}
    tops = {each for each in folders if not any(is_inside(each, f) for f in folders - {each})}
    worker = threading.Thread(target=_refresh, args=(server_url, tops), daemon=True)
    worker.start()
    worker.join(_PATIENCE_S)


def _refresh(server_url: str, folders: set[RepoPath]) -> None:
    for entry in table.mounts():
        if entry.fstype != table.FSTYPE:
            continue
        try:
            shown = parse_source(entry.source, os.environ)
        except ConfigError:  # a server that only its daemon knows
            continue
        if shown.server_url == server_url:
            for folder in folders:
                _refresh_one(Path(entry.mountpoint), shown.path, folder)


def _refresh_one(root: Path, top: RepoPath, folder: RepoPath) -> None:
    """Refresh *folder*, or the lowest folder above it that the mount knows."""
    if not top.repo or is_inside(folder, top):
        place = root / str(folder).removeprefix(str(top)).strip("/")
    elif not folder.repo or is_inside(top, folder):
        place = root
    else:
        return
    while True:
        try:
            os.getxattr(place, REFRESH)
            return
        except OSError:
            if place == root:
                return
            place = place.parent
