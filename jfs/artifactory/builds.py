"""Builds: which artifacts a run made, and from what (artifactory-rest 11). Trio thread only."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from jfs.artifactory import wire
from jfs.artifactory.session import Session
from jfs.config import Build
from jfs.errors import ProtocolViolation
from jfs.model import Checksums, FileInfo

_MEDIA_TYPE = "application/vnd.org.jfrog.artifactory+json"
_FORMAT = "1.0.1"  # of the document


@dataclass(frozen=True, slots=True)
class BuiltFile:
    """An artifact or a dependency in a build that was published."""

    module: str
    name: str
    place: str  # repository and path of an artifact, if known; of a dependency its id
    checksums: Checksums


@dataclass(frozen=True, slots=True)
class BuildInfo:
    """A build that was published; *document* is all of it, as the server has it."""

    name: str
    number: str
    started: str
    url: str
    artifacts: Sequence[BuiltFile]
    dependencies: Sequence[BuiltFile]
    document: Mapping[str, Any]


def document(
    build: Build,
    artifacts: Sequence[FileInfo],
    dependencies: Sequence[FileInfo] = (),
    *,
    version: str,
    url: str | None = None,
    vcs_url: str | None = None,
    vcs_revision: str | None = None,
) -> dict[str, object]:
    """Make the document of a run with one module. Checksums that are not known are left out.

    Args:
        version: of jfs.
        url: of a page about the run.
    """
    agent = {"name": "jfs", "version": version}
    module = {
        "id": build.name,
        "type": "generic",
        "artifacts": [_artifact(info) for info in artifacts],
        "dependencies": [_dependency(info) for info in dependencies],
    }
    made: dict[str, object] = {
        "version": _FORMAT,
        "name": build.name,
        "number": build.number,
        "type": "GENERIC",
        "agent": agent,
        "buildAgent": agent,
        "started": _moment(build.started_ms),
        "modules": [module],
    }
    if url:
        made["url"] = url
    if vcs_url or vcs_revision:
        vcs = {"url": vcs_url, "revision": vcs_revision}
        made["vcs"] = [{key: value for key, value in vcs.items() if value}]
    return made


def address(name: str, number: str) -> str:
    """Return where a build is, below the service."""
    return f"/api/build/{quote(name, safe='')}/{quote(number, safe='')}"


async def publish(session: Session, document: Mapping[str, object]) -> None:
    """See ``ArtifactoryClient.publish_build``."""
    await session.exchange(
        "PUT",
        "/api/build",
        content=json.dumps(document).encode(),
        headers={"Content-Type": _MEDIA_TYPE},
    )


async def get(session: Session, name: str, number: str) -> BuildInfo:
    """See ``ArtifactoryClient.build``."""
    where = address(name, number)
    found = wire.parse_json(await session.get(where), where)
    info = found.get("buildInfo") if isinstance(found, dict) else None
    if not isinstance(info, dict):
        raise ProtocolViolation(f"{where}: buildInfo is not an object")
    return BuildInfo(
        _text(info, "name"),
        _text(info, "number"),
        _text(info, "started"),
        session.settings.url + where,
        _files(info, "artifacts"),
        _files(info, "dependencies"),
        info,
    )


def _artifact(info: FileInfo) -> dict[str, str]:
    return {
        "name": info.path.name,
        **_kind(info),
        "path": info.path.path,
        **_sums(info),
        "originalDeploymentRepo": info.path.repo,
    }


def _dependency(info: FileInfo) -> dict[str, str]:
    return {"id": str(info.path), **_kind(info), **_sums(info)}


def _kind(info: FileInfo) -> dict[str, str]:
    """The jf command takes the end of the name."""
    _, dot, end = info.path.name.rpartition(".")
    return {"type": end} if dot and end else {}


def _sums(info: FileInfo) -> dict[str, str]:
    sums = info.checksums
    known = {"sha1": sums.sha1, "md5": sums.md5, "sha256": sums.sha256}
    return {name: value for name, value in known.items() if value}


def _moment(time_ms: int) -> str:
    """``2024-02-24T21:20:59.999+0000``: an offset with a colon is refused."""
    moment = datetime.fromtimestamp(time_ms // 1000, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{time_ms % 1000:03}+0000"


def _files(info: Mapping[str, Any], field: str) -> list[BuiltFile]:
    found = []
    for module in _rows(info, "modules"):
        for row in _rows(module, field):
            repo, path = _text(row, "originalDeploymentRepo"), _text(row, "path")
            name = _text(row, "name") or _text(row, "id")
            place = "/".join(part for part in (repo, path) if part) or name
            sums = wire.parse_checksums(row)
            found.append(BuiltFile(_text(module, "id"), name, place, sums))
    return found


def _rows(row: Mapping[str, Any], field: str) -> list[dict[str, Any]]:
    """Return a list of objects; absent is empty."""
    rows = row.get(field) or []
    if not isinstance(rows, list) or not all(isinstance(each, dict) for each in rows):
        raise ProtocolViolation(f"{field} of a build is not a list of objects")
    return rows


def _text(row: Mapping[str, Any], field: str) -> str:
    value = row.get(field)
    return value if isinstance(value, str) else ""
