"""Artifactory's answers and addresses: JSON to values, paths to URLs, errors to the tree. Pure.

The only place where ``Any`` stands: JSON is narrowed here once, and whatever does not fit raises
ProtocolViolation naming the field.
"""

import json
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from email.utils import formatdate, parsedate_to_datetime
from typing import Any
from urllib.parse import quote

from jfs.errors import (
    AccessDenied,
    Conflict,
    NotFound,
    ProtocolViolation,
    QuotaExceeded,
    RateLimited,
    ReadOnly,
    RemoteError,
    Unavailable,
)
from jfs.extents import Extent
from jfs.model import (
    Checksums,
    EntryInfo,
    FileInfo,
    FolderInfo,
    Match,
    Properties,
    RepoPath,
    Repository,
    problem_with_name,
)

log = logging.getLogger(__name__)

_HEX = {
    "sha256": re.compile(r"[0-9a-f]{64}"),
    "sha1": re.compile(r"[0-9a-f]{40}"),
    "md5": re.compile(r"[0-9a-f]{32}"),
}
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

_STATUSES: dict[int, type[RemoteError]] = {
    401: AccessDenied,
    403: AccessDenied,
    404: NotFound,
    405: ReadOnly,
    409: Conflict,
    413: QuotaExceeded,
    429: RateLimited,
    507: QuotaExceeded,
}


def encode_path(path: RepoPath) -> str:
    """Give the path of an item in a URL, beginning with a slash (artifactory-rest 2.1).

    ``;`` would start matrix parameters, so it is encoded like everything else that is not
    unreserved; ``+`` is a literal plus in a path either way.
    """
    return "".join(f"/{quote(part, safe='')}" for part in str(path).split("/") if part)


def error_of(status: int, body: bytes, *, method: str, url: str) -> RemoteError:
    """Make the error for an answer that is not a success."""
    kind = _STATUSES.get(status)
    if kind is None:
        kind = Unavailable if status >= 500 or status == 408 else ProtocolViolation
    return kind(error_message(status, body), status=status, method=method, url=url)


def error_message(status: int, body: bytes) -> str:
    """Find the server's own words; gateways send HTML, some answers are empty or plain text."""
    text = body[:4096].decode("utf-8", "replace").strip()
    for shape in ("errors", "messages"):  # copy and move answer in the second (8)
        try:
            message = json.loads(body)[shape][0]["message"]
            if isinstance(message, str):
                return _one_line(message)
        except (ValueError, KeyError, IndexError, TypeError):
            pass
    if not text or text.startswith("<"):
        return f"the server answered {status}"
    return _one_line(text)


def parse_json(body: bytes, what: str) -> Any:
    """Decode an answer; *what* names it in the error."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise ProtocolViolation(f"{what}: the answer is not JSON") from None


def parse_repositories(document: Any) -> list[Repository]:
    """Read ``GET api/repositories`` (artifactory-rest 9.1); casing of the type differs."""
    rows = []
    for row in _list(document, "repositories"):
        key = _string(row, "key")
        if problem_with_name(key) is None:
            kind = _string(row, "type").lower()
            package_type = str(row.get("packageType", "")).lower()
            rows.append(Repository(key, kind, package_type, _optional(row, "url") or ""))
    return rows


def parse_info(document: Any, path: RepoPath) -> EntryInfo:
    """Read ``GET api/storage/R/P`` (artifactory-rest 6.1); a folder is what has ``children``."""
    if not isinstance(document, dict):
        raise ProtocolViolation(f"{path}: storage info is not an object")
    modified = _time(document, "lastModified", default=0)
    created = _time(document, "created", default=None)
    if "children" in document:
        return FolderInfo(path, modified or 0, created)
    return FileInfo(
        path,
        _size(document),
        parse_checksums(document.get("checksums") or {}),
        modified or 0,
        created,
        _optional(document, "createdBy"),
        _optional(document, "modifiedBy"),
        _optional(document, "mimeType"),
    )


def parse_children_names(document: Any, path: RepoPath) -> list[tuple[str, bool]]:
    """Read the names in a folder's plain info, each with whether it is a folder."""
    if not isinstance(document, dict):
        raise ProtocolViolation(f"{path}: storage info is not an object")
    rows = [
        (_string(row, "uri").removeprefix("/"), bool(row.get("folder")))
        for row in _list(document.get("children"), "children")
    ]
    return [row for row in rows if row[0] in set(shown((name for name, _ in rows), path))]


def parse_is_empty(document: Any) -> bool:
    """Read whether a folder's plain info names no child."""
    children = document.get("children") if isinstance(document, dict) else None
    if not isinstance(children, list):
        raise ProtocolViolation("children is not a list")
    return not children


def parse_deployed(document: Any, path: RepoPath) -> FileInfo:
    """Read the answer to a deploy (artifactory-rest 4.1); it names no lastModified."""
    info = parse_info(document, path)
    if not isinstance(info, FileInfo):
        raise ProtocolViolation(f"{path}: the answer to a deploy describes a folder")
    return info


def parse_list(document: Any, path: RepoPath) -> list[EntryInfo]:
    """Read ``GET api/storage/R/P?list`` of depth 1 (artifactory-rest 6.2)."""
    if not isinstance(document, dict):
        raise ProtocolViolation(f"{path}: the listing is not an object")
    rows = _list(document.get("files"), "files")
    by_name = {_string(row, "uri").removeprefix("/"): row for row in rows}
    by_name.pop("", None)  # the folder itself, with includeRootPath
    entries: list[EntryInfo] = []
    for name in shown(by_name, path):
        row = by_name[name]
        modified = _time(row, "lastModified", default=0) or 0
        folder = row.get("folder")
        if folder is True or folder == "true":
            entries.append(FolderInfo(path.child(name), modified))
        else:
            sums = parse_checksums({"sha1": row.get("sha1"), "sha256": row.get("sha2")})
            entries.append(FileInfo(path.child(name), _size(row), sums, modified))
    return entries


def parse_properties(document: Any) -> Properties:
    """Read ``?properties`` (artifactory-rest 6.3)."""
    found = document.get("properties") if isinstance(document, dict) else None
    if not isinstance(found, dict):
        raise ProtocolViolation("properties is not an object")
    properties: dict[str, tuple[str, ...]] = {}
    for key, values in found.items():
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            raise ProtocolViolation(f"the values of property {key!r:.80} are not strings")
        properties[key] = tuple(values)
    return properties


def parse_matches(document: Any) -> list[Match]:
    """Read the answer to an AQL query on items (artifactory-rest 10.1)."""
    if not isinstance(document, dict):
        raise ProtocolViolation("the answer to the query is not an object")
    matches = []
    hidden = []
    for row in _list(document.get("results"), "results"):
        repo, folder, name = _string(row, "repo"), _string(row, "path"), _string(row, "name")
        parts = [part for part in (*folder.split("/"), name) if part != "."]
        if problem := next(
            (p for part in parts if (p := problem_with_name(part)) is not None), None
        ):
            hidden.append(f"{name!r:.80} {problem}")
            continue
        properties: dict[str, tuple[str, ...]] = {}
        for pair in _list(row.get("properties", []), "properties"):
            key = _string(pair, "key")
            value = pair.get("value", "")
            if not isinstance(value, str):
                raise ProtocolViolation(f"the value of property {key!r:.80} is not a string")
            properties[key] = (*properties.get(key, ()), value)
        matches.append(Match(_row_info(row, RepoPath(repo, "/".join(parts))), properties))
    if hidden:
        log.warning("%d results are hidden: %s", len(hidden), "; ".join(hidden[:3]))
    return matches


def _row_info(row: Any, path: RepoPath) -> EntryInfo:
    modified = _time(row, "modified", default=0) or 0
    created = _time(row, "created", default=None)
    if row.get("type") == "folder":
        return FolderInfo(path, modified, created)
    sums = {name: row.get(f"actual_{name}") for name in ("md5", "sha1")}
    return FileInfo(
        path,
        _size(row),
        parse_checksums({**sums, "sha256": row.get("sha256")}),
        modified,
        created,
        _optional(row, "created_by"),
        _optional(row, "modified_by"),
    )


def parse_downloads(document: Any) -> int:
    """Read ``?stats`` (artifactory-rest 6.4)."""
    count = document.get("downloadCount") if isinstance(document, dict) else None
    if isinstance(count, bool) or not isinstance(count, int):
        raise ProtocolViolation(f"downloadCount {count!r}")
    return count


def info_of_headers(path: RepoPath, headers: Mapping[str, str]) -> FileInfo:
    """Describe an artifact from the headers of its content (artifactory-rest 3.1)."""
    sums = {name: headers.get(f"X-Checksum-{name.capitalize()}") for name in _HEX}
    modified = headers.get("Last-Modified")
    try:
        seconds = int(parsedate_to_datetime(modified).timestamp()) if modified else 0
    except (ValueError, TypeError):
        raise ProtocolViolation(f"Last-Modified {modified!r}") from None
    size = _size({"size": headers.get("Content-Length", "")})
    return FileInfo(path, size, parse_checksums(sums), seconds * 1_000_000_000)


def parse_checksums(document: Any) -> Checksums:
    """Keep what is a well-formed digest; anything else must never become a file name."""
    if not isinstance(document, dict):
        return Checksums()
    found: dict[str, str] = {}
    for name, pattern in _HEX.items():
        value = document.get(name)
        if isinstance(value, str) and pattern.fullmatch(value.lower()):
            found[name] = value.lower()
    return Checksums(**found)


def parse_content_range(text: str) -> tuple[Extent, int]:
    """Read ``bytes a-b/total`` as an extent and the total (RFC 9110 section 14.4)."""
    found = _CONTENT_RANGE.fullmatch(text.strip())
    if found is None:
        raise ProtocolViolation(f"Content-Range {text!r}")
    return Extent(int(found[1]), int(found[2]) + 1), int(found[3])


def parse_time_ns(text: str) -> int:
    """Read an ISO-8601 time with any offset (``Z``, ``+0400``, ``+04:00``) as ns since 1970."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ProtocolViolation(f"{text!r} is not a time") from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    # Integer arithmetic: a float of ns loses the last digits.
    return (moment - _EPOCH) // timedelta(microseconds=1) * 1000


def http_date(time_ns: int) -> str:
    """Give an HTTP date (RFC 9110 section 5.6.7), of whole seconds."""
    return formatdate(time_ns // 1_000_000_000, usegmt=True)


def shown(names: Iterable[str], folder: RepoPath) -> Sequence[str]:
    """Keep the names that can be shown; one warning for all that cannot."""
    kept, hidden = [], []
    for name in names:
        problem = problem_with_name(name)
        if problem is None:
            kept.append(name)
        else:
            hidden.append(f"{name!r:.80} {problem}")
    if hidden:
        log.warning("%s: %d names are hidden: %s", folder, len(hidden), "; ".join(hidden[:3]))
    return kept


def _size(row: Any) -> int:
    """Read a size: a string of digits in info, a number in listings (artifactory-rest 17.2)."""
    value = row.get("size")
    if isinstance(value, str) and value.isascii() and value.isdigit():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 63:
        raise ProtocolViolation(f"size {value!r}")
    return value


def _list(value: Any, what: str) -> list[Any]:
    if not isinstance(value, list) or not all(isinstance(row, dict) for row in value):
        raise ProtocolViolation(f"{what} is not a list of objects")
    return value


def _string(row: Any, field: str) -> str:
    value = row.get(field)
    if not isinstance(value, str):
        raise ProtocolViolation(f"{field} {value!r} is not a string")
    return value


def _optional(row: Any, field: str) -> str | None:
    value = row.get(field)
    return value if isinstance(value, str) else None


def _time(row: Any, field: str, *, default: int | None) -> int | None:
    value = row.get(field)
    return default if value is None else parse_time_ns(str(value))


def _one_line(text: str) -> str:
    return " ".join(text.split())[:300]
