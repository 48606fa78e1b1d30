"""What answers look like: errors, dates, media types, links. Pure; any thread.

Source: artifactory-rest 1.3 (errors), 1.6 (dates), 1.7 (vendor types), 3.1 (content types).
"""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import formatdate, parsedate_to_datetime
from urllib.parse import quote

VERSION = "7.55.14"  # below 7.82.2, from which the CLI insists on multipart uploads (12.3)
REVISION = "75514900"
REALM = 'Basic realm="Artifactory Realm"'

_STORAGE = "application/vnd.org.jfrog.artifactory.storage."
FILE_INFO = f"{_STORAGE}FileInfo+json"
FOLDER_INFO = f"{_STORAGE}FolderInfo+json"
FILE_LIST = f"{_STORAGE}FileList+json"
ITEM_CREATED = f"{_STORAGE}ItemCreated+json"
ITEM_PROPERTIES = f"{_STORAGE}ItemProperties+json"
ITEM_LAST_MODIFIED = f"{_STORAGE}ItemLastModified+json"
COPY_OR_MOVE = f"{_STORAGE}CopyOrMoveResult+json"
STATS_INFO = f"{_STORAGE}StatsInfo+json"

_TYPES = {
    "gz": "application/x-gzip",
    "htm": "text/html",
    "html": "text/html",
    "json": "application/json",
    "log": "text/plain",
    "md5": "application/x-checksum",
    "py": "text/x-python",
    "sha1": "application/x-checksum",
    "sha256": "application/x-checksum",
    "tar": "application/x-tar",
    "tgz": "application/x-gzip",
    "txt": "text/plain",
    "xml": "application/xml",
    "yaml": "text/plain",
    "yml": "text/plain",
    "zip": "application/zip",
}


class ApiError(Exception):
    """An answer other than success.

    Args:
        plain: text instead of the JSON shape, as some endpoints answer (1.3); an empty message
            makes an empty body.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        plain: bool = False,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.plain = plain
        self.headers = dict(headers or {})


def error_body(status: int, message: str) -> bytes:
    return as_json({"errors": [{"status": status, "message": message}]})


def as_json(value: object) -> bytes:
    """Render as real servers do, pretty-printed."""
    return json.dumps(value, indent=2, ensure_ascii=False, separators=(",", " : ")).encode()


def quoted(text: str) -> str:
    """Render one string of JSON; for rows too many for ``as_json``, whose indenting is slow."""
    return json.dumps(text, ensure_ascii=False)


def mime_type(name: str) -> str:
    return _TYPES.get(name.rpartition(".")[2].lower(), "application/octet-stream")


def iso_date(time_ms: int) -> str:
    """``2024-02-24T21:20:59.999Z``."""
    text = datetime.fromtimestamp(time_ms // 1000, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return f"{text}.{time_ms % 1000:03}Z"


def offset_date(time_ms: int) -> str:
    """As ``?lastModified`` writes it: an offset without colon."""
    return f"{iso_date(time_ms)[:-1]}+0000"


def http_date(time_ms: int) -> str:
    return formatdate(time_ms // 1000, usegmt=True)


def parse_http_date(text: str) -> int | None:
    """Seconds since 1970, or None for what is no date."""
    try:
        return int(parsedate_to_datetime(text).timestamp())
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


def quote_path(path: str) -> str:
    """Encode a path for a URL; ``;`` would start matrix parameters, so it is encoded (2.1)."""
    return quote(path, safe="/!$&'()+,:=@~")


def disposition(name: str) -> str:
    encoded = quote(name, safe="")
    return f"attachment; filename=\"{encoded}\"; filename*=UTF-8''{encoded}"
