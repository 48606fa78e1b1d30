"""Where a content can be read now, asked by its checksum. Trio thread only."""

import logging
from collections.abc import Iterable
from urllib.parse import unquote, urlsplit

from jfs.artifactory import aql, pieces, wire
from jfs.artifactory.rows import FoundRows
from jfs.artifactory.session import Session
from jfs.errors import AccessDenied, NotFound, ProtocolViolation
from jfs.model import ArtifactVersion, Checksums, FileInfo, RepoPath, is_passing

log = logging.getLogger(__name__)

# Rows that may not be read are left out after the limit (artifactory-rest 10.1): ask for several.
_ROWS = 100
_STORAGE = "/api/storage/"


async def locate(session: Session, version: ArtifactVersion, kept: RepoPath) -> RepoPath | None:
    """See ``ArtifactStore.locate``; *kept* is where the server keeps the item of the version.

    Both searches answer with what the user may read only.
    """
    sums = _checksums(version)
    try:
        # Its own repository first: it is one row there, and may be thousands everywhere.
        for repo in (kept.repo, ""):
            found = await _search(session, sums, repo)
            places = [info.path for info in found if _is_content(info, version)]
            if (place := _best(places, kept)) is not None:
                return place
    except (AccessDenied, NotFound, ProtocolViolation) as error:
        # Anonymous users may not ask in AQL (10.1); the older search is open to them.
        log.debug("%s: no query by checksum: %s", version.path, error)
        return _best(await _search_as_of_old(session, sums), kept)
    return None


async def _search(session: Session, sums: Checksums, repo: str) -> list[FileInfo]:
    query = aql.same_content(sums, repo, _ROWS).encode()
    rows, _ = await pieces.read(
        session, "POST", "/api/search/aql", "results", FoundRows, content=query, repo=repo
    )
    return [match.info for match in rows.matches if isinstance(match.info, FileInfo)]


async def _search_as_of_old(session: Session, sums: Checksums) -> list[RepoPath]:
    """Ask ``api/search/checksum`` (10.2): its rows are addresses, without sizes or checksums."""
    for name, value in (("sha256", sums.sha256), ("sha1", sums.sha1)):
        if not value:
            continue
        address = f"/api/search/checksum?{name}={value}"
        try:
            document = wire.parse_json(await session.get(address), address)
        except (AccessDenied, NotFound, ProtocolViolation) as error:
            log.debug("%s: %s", address, error)
            continue
        if places := _places(document):
            return places
    return []


def _places(document: object) -> list[RepoPath]:
    rows = document.get("results") if isinstance(document, dict) else None
    places = []
    for row in rows if isinstance(rows, list) else []:
        uri = row.get("uri") if isinstance(row, dict) else None
        if isinstance(uri, str) and _STORAGE in uri:
            place = RepoPath.parse(unquote(urlsplit(uri).path.partition(_STORAGE)[2]))
            if place.path and not is_passing(place.name):  # it is gone in a moment
                places.append(place)
    return places


def _best(places: Iterable[RepoPath], kept: RepoPath) -> RepoPath | None:
    return min(
        places, key=lambda place: (place != kept, place.repo != kept.repo, place), default=None
    )


def _checksums(version: ArtifactVersion) -> Checksums:
    algorithm, _, digest = version.content.digest.partition(":")
    sha256 = digest if algorithm == "sha256" else None
    return Checksums(sha256, version.sha1 or (digest if algorithm == "sha1" else None))


def _is_content(info: FileInfo, version: ArtifactVersion) -> bool:
    """Whether a row has this content: by the strongest checksum that both have."""
    wanted = _checksums(version)
    if info.size != version.size:
        return False
    if wanted.sha256 and info.checksums.sha256:
        return wanted.sha256 == info.checksums.sha256
    return wanted.sha1 is not None and wanted.sha1 == info.checksums.sha1
