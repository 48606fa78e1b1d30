"""Artifactory's answers and addresses: JSON to values, paths to URLs, statuses to errors. Pure.

JSON is typed here, and in ``rows`` and ``builds``, and nowhere else: what does not fit raises
ProtocolViolation that names the field.
"""

import contextlib
import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import formatdate
from typing import Any
from urllib.parse import quote

from jfs import words
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
    Properties,
    RepoPath,
)

_HEX_DIGITS = {"sha256": 64, "sha1": 40, "md5": 32}
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")
_JSON_WORDS = ("true", "false", "null", "-1")
_REST_OF_NUMBER = re.compile(r"(\.|\.?[eE][+-]?)\Z")  # the decoder takes `1` of `1.` for all of it
_LOOKED_AT = 16384  # bytes of an answer that is no JSON
_MESSAGES_SHOWN = 3
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_FIRST_AND_LAST_YEAR = (1, 9999)

_STATUSES: dict[int, type[RemoteError]] = {
    401: AccessDenied,
    402: AccessDenied,  # its licence or subscription has ended
    403: AccessDenied,
    404: NotFound,
    405: ReadOnly,
    409: Conflict,
    413: QuotaExceeded,
    423: Conflict,  # locked: it is being changed
    429: RateLimited,
    451: AccessDenied,  # withheld: by a policy of Xray or Curation, or by law
    507: QuotaExceeded,
}


def encode_path(path: RepoPath) -> str:
    """Return the path of an item in a URL, beginning with a slash (artifactory-rest 2.1).

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
    """Find the server's own words: of JSON, plain text, or a page that a gateway sends instead."""
    said = ""
    with contextlib.suppress(ValueError, RecursionError):
        said = words.clean("; ".join(dict.fromkeys(_said(json.loads(body)))))
    if not said:
        text = body[:_LOOKED_AT].decode("utf-8", "replace").strip()
        said = words.of_page(text) if text.startswith("<") else words.clean(text)
    return said or f"the server answered {status}"


def _said(document: Any) -> Iterator[str]:
    """Return the messages of a JSON error.

    ``errors`` is Artifactory's shape, ``messages`` that of copy and move (8); the others are those
    of proxies and of JFrog's other services.
    """
    if isinstance(document, str):
        yield document
    if not isinstance(document, dict):
        return
    for shape in ("errors", "messages"):
        rows = document.get(shape)
        for row in rows[:_MESSAGES_SHOWN] if isinstance(rows, list) else ():
            yield from _said(row)
    for shape in ("error", "message", "error_description", "detail"):
        if (value := document.get(shape)) and isinstance(value, str | dict):
            yield from _said(value)


def parse_json(body: bytes, what: str) -> Any:
    """Decode an answer; *what* names it in the error.

    Raises:
        Unavailable: it ends in the middle: a proxy cut it off.
        ProtocolViolation: it is no JSON.
    """
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        if is_cut_off(error) and body.lstrip()[:1] in (b"{", b"["):
            raise cut_off(what) from None
        raise ProtocolViolation(f"{what}: the answer is not JSON") from None


def is_cut_off(error: Exception) -> bool:
    """Whether what could not be decoded is the beginning of something that could be."""
    if isinstance(error, UnicodeDecodeError):
        return error.reason == "unexpected end of data"
    if not isinstance(error, json.JSONDecodeError):
        return False
    rest = error.doc[error.pos :].strip()
    if error.msg.startswith("Unterminated string"):
        return True
    if error.msg.startswith("Invalid \\uXXXX"):
        return '"' not in rest
    return any(word.startswith(rest) for word in _JSON_WORDS) or bool(_REST_OF_NUMBER.match(rest))


def cut_off(what: str) -> Unavailable:
    """Make the error for an answer that ends in the middle, as if that were all of it."""
    return Unavailable(f"{what}: the answer ended too early")


def parse_info(document: Any, path: RepoPath) -> EntryInfo:
    """Read ``GET api/storage/R/P`` (artifactory-rest 6.1); a folder is what has ``children``."""
    if not isinstance(document, dict):
        raise ProtocolViolation(f"{path}: storage info is not an object")
    modified = time_of(document, "lastModified", default=0)
    created = time_of(document, "created", default=None)
    if "children" in document:
        return FolderInfo(path, modified or 0, created)
    return FileInfo(
        path,
        size_of(document),
        parse_checksums(document.get("checksums") or {}),
        modified or 0,
        created,
        optional(document, "createdBy"),
        optional(document, "modifiedBy"),
        optional(document, "mimeType"),
    )


def parse_deployed(document: Any, path: RepoPath) -> FileInfo:
    """Read the answer to a deploy (artifactory-rest 4.1); it names no lastModified."""
    info = parse_info(document, path)
    if not isinstance(info, FileInfo):
        raise ProtocolViolation(f"{path}: the answer to a deploy describes a folder")
    return info


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


def parse_downloads(document: Any) -> int:
    """Read ``?stats`` (artifactory-rest 6.4)."""
    count = document.get("downloadCount") if isinstance(document, dict) else None
    if isinstance(count, bool) or not isinstance(count, int):
        raise ProtocolViolation(f"downloadCount {count!r}")
    return count


def parse_checksums(document: Any) -> Checksums:
    """Keep what is a well-formed digest; anything else must never become a file name."""
    if not isinstance(document, dict):
        return Checksums()
    return Checksums(digest(document, "sha256"), digest(document, "sha1"), digest(document, "md5"))


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
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        elif moment.year in _FIRST_AND_LAST_YEAR:
            moment.astimezone(UTC)  # one that leaves those years in UTC could not be printed
    except (ValueError, OverflowError):
        raise ProtocolViolation(f"{text!r:.80} is not a time") from None
    # Integer arithmetic: a float of ns loses the last digits.
    return (moment - _EPOCH) // _MICROSECOND * 1000


def http_date(time_ns: int) -> str:
    """Return an HTTP date (RFC 9110 section 5.6.7), of whole seconds."""
    return formatdate(time_ns // 1_000_000_000, usegmt=True)


def size_of(row: Any) -> int:
    """Read a size: a string of digits in info, a number in listings (artifactory-rest 17.2)."""
    value = row.get("size") if isinstance(row, dict) else None
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 20:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 63:
        raise ProtocolViolation(f"size {value!r:.80}")
    return value


def digest(row: Any, field: str, algorithm: str = "") -> str | None:
    """Read a hex digest; None for anything else, which must never become a file name.

    Args:
        algorithm: of the digest, where *field* is not its name.
    """
    value = row.get(field)
    if not isinstance(value, str) or len(value) != _HEX_DIGITS[algorithm or field]:
        return None
    value = value.lower()
    return None if value.strip("0123456789abcdef") else value


def string(row: Any, field: str) -> str:
    """Read text. Raises ProtocolViolation."""
    value = row.get(field) if isinstance(row, dict) else None
    if not isinstance(value, str):
        raise ProtocolViolation(f"{field} {value!r:.80} is not a string")
    return value


def flag(row: Any, field: str) -> bool:
    """Read true or false, also as text; absent is false (artifactory-rest 6.2)."""
    value = row.get(field)
    if isinstance(value, str):
        value = {"true": True, "false": False}.get(value.lower(), value)
    if value is None or isinstance(value, bool):
        return bool(value)
    raise ProtocolViolation(f"{field} {value!r:.80} is neither true nor false")


def optional(row: Any, field: str) -> str | None:
    """Read text that may be absent, or odd."""
    value = row.get(field)
    return value if isinstance(value, str) else None


def time_of(row: Any, field: str, *, default: int | None) -> int | None:
    """Read a time as ns since 1970; *default* if it is absent."""
    value = row.get(field)
    return default if value is None else parse_time_ns(str(value))
