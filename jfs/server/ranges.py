"""Range and conditional requests. Pure. Source: artifactory-rest 3.2 and 3.3, RFC 9110 14."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import format_datetime, parsedate_to_datetime

_SPEC = re.compile(r"\s*(\d*)\s*-\s*(\d*)\s*")


def parse_range(text: str | None, size: int) -> list[tuple[int, int]] | None:
    """Give the half-open ranges to answer, merged.

    Returns:
        None: no usable Range header, answer 200. Empty: none can be satisfied, answer 416.
    """
    if text is None:
        return None
    unit, equals, specs = text.partition("=")
    if not equals or unit.strip().lower() != "bytes":
        return None
    ranges = []
    for spec in specs.split(","):
        found = _SPEC.fullmatch(spec)
        if found is None or not (found[1] or found[2]):
            return None
        if not found[1]:
            start, stop = max(0, size - int(found[2])), size
        else:
            start = int(found[1])
            stop = min(size, int(found[2]) + 1) if found[2] else size
        if start < stop:
            ranges.append((start, stop))
    merged: list[tuple[int, int]] = []
    for start, stop in sorted(ranges):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(stop, merged[-1][1]))
        else:
            merged.append((start, stop))
    return merged


def not_modified(headers: Mapping[str, str], sha1: str, modified_ms: int) -> bool:
    """Whether to answer 304; the ETag is compared as a raw string."""
    none_match = headers.get("If-None-Match")
    since = _date(headers.get("If-Modified-Since"))
    unchanged = since is not None and modified_ms // 1000 <= since
    if none_match is not None:
        return none_match == sha1 and (since is None or unchanged)
    return unchanged


def range_applies(if_range: str | None, sha1: str, modified_ms: int) -> bool:
    """Whether ``If-Range`` lets the ranges stand."""
    if if_range is None or if_range.startswith(sha1):
        return True
    date = _date(if_range)
    return date is not None and modified_ms // 1000 <= date


def http_date(ms: int) -> str:
    return format_datetime(datetime.fromtimestamp(ms // 1000, UTC), usegmt=True)


def iso_date(ms: int) -> str:
    """ISO 8601 with milliseconds, as JSON answers have it (artifactory-rest 1.6)."""
    moment = datetime.fromtimestamp(ms // 1000, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{ms % 1000:03}Z"


def _date(text: str | None) -> int | None:
    if text is None:
        return None
    try:
        return int(parsedate_to_datetime(text).timestamp())
    except ValueError:
        return None
