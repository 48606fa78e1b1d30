"""Range and conditional requests, decided from headers alone. Pure; any thread.

Source: artifactory-rest 3.2 and 3.3; RFC 9110 section 14 where those are silent.
"""

import re
from collections.abc import Mapping

from jfs.extents import Extent
from jfs.server.wire.answers import parse_http_date

_SPEC = re.compile(r"\s*([0-9]{0,19})\s*-\s*([0-9]{0,19})\s*\Z")
_MAX_RANGES = 100  # more is an attack, and is answered as if there were none


class Unsatisfiable(Exception):
    """No range overlaps the content: 416."""


def requested(headers: Mapping[str, str], size: int, sha1: str, modified_s: int) -> list[Extent]:
    """Return what to send in 206, merged and in order of the file; empty: everything with 200.

    Raises:
        Unsatisfiable: 416.
    """
    text = headers.get("Range")
    if text is None or not _if_range(headers, sha1, modified_s):
        return []
    unit, found, specs = text.partition("=")
    parts = specs.split(",")
    if not found or unit.strip().lower() != "bytes" or len(parts) > _MAX_RANGES:
        return []
    extents = []
    for part in parts:
        match = _SPEC.match(part)
        if match is None or not (match[1] or match[2]):
            return []
        if extent := _extent(match[1], match[2], size):
            extents.append(extent)
    if not extents:
        raise Unsatisfiable
    return _merged(extents)


def not_modified(headers: Mapping[str, str], sha1: str, modified_s: int) -> bool:
    """Return whether to answer 304."""
    dates = [
        date
        for name in ("If-Modified-Since", "Last-Modified")
        if (text := headers.get(name)) is not None and (date := parse_http_date(text)) is not None
    ]
    unchanged = modified_s <= max(dates) if dates else None
    etag = headers.get("If-None-Match")
    if etag is None:
        return bool(unchanged)
    # Exact and bare: quotes, W/, lists and * match nothing. With a date, both must agree.
    return etag == sha1 and unchanged is not False


def _if_range(headers: Mapping[str, str], sha1: str, modified_s: int) -> bool:
    text = headers.get("If-Range")
    if text is None:
        return True
    date = parse_http_date(text) if "," in text else None
    return modified_s <= date if date is not None else text.startswith(sha1)


def _extent(first: str, last: str, size: int) -> Extent | None:
    if not first:
        start, stop = max(0, size - int(last)), size
    else:
        start, stop = int(first), min(int(last) + 1 if last else size, size)
    return Extent(start, stop) if start < stop else None


def _merged(extents: list[Extent]) -> list[Extent]:
    merged: list[Extent] = []
    for extent in sorted(extents, key=lambda each: (each.start, each.stop)):
        if merged and extent.start <= merged[-1].stop:
            merged[-1] = Extent(merged[-1].start, max(merged[-1].stop, extent.stop))
        else:
            merged.append(extent)
    return merged
