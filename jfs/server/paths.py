"""Raw request paths to repository, path and matrix parameters. Pure.

Artifactory works on the raw path: it splits matrix parameters first and decodes later, so that
``%3B`` is a literal semicolon in a name (artifactory-rest 2.1, 2.2).
"""

import re
from dataclasses import dataclass, field
from urllib.parse import unquote, unquote_plus

from jfs.server.answers import ApiError

PropertyMap = dict[str, list[str]]

_ILLEGAL = re.compile(r'[\\|*?"\x00]')
_DOTS = re.compile(r"\.+")
# First an ASCII letter, then no whitespace and none of these (artifactory-rest 2.2).
_KEY = re.compile(r"[A-Za-z][^\s(){}\[\]*+^$\\/~`!@#%&<>;=,±§]*")
_UNESCAPED_COMMA = re.compile(r"(?<!\\),")
NAME_MAX, PARENT_MAX = 255, 1024


@dataclass(frozen=True, slots=True)
class ItemPath:
    """A place: repository key and decoded path, without slashes at the ends."""

    repo: str
    path: str
    folder: bool = False  # the request ended with a slash
    properties: PropertyMap = field(default_factory=dict)

    @property
    def parent(self) -> str:
        return self.path.rpartition("/")[0]

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]

    def __str__(self) -> str:
        return f"{self.repo}:{self.path}"


def parse_item_path(raw: str) -> ItemPath:
    """Read the raw path below the service, such as ``/repo/a%20b/c;k=v``.

    Raises:
        ApiError: 400, with the rule that the path or a property key breaks.
    """
    text = raw.lstrip("/")
    properties: PropertyMap = {}
    head, semicolon, rest = text.partition(";")
    if semicolon:
        # Right after the repository key the path goes on behind the parameters.
        if "/" not in head and "/" in rest:
            parameters, _, tail = rest.partition("/")
            tail, semicolon, more = tail.partition(";")
            text = f"{head}/{tail}"
            properties = parse_matrix(f"{parameters};{more}")
        else:
            text = head
            properties = parse_matrix(rest)
    folder = text.endswith("/")
    try:
        segments = [unquote(part, errors="strict") for part in text.split("/")]
    except UnicodeDecodeError:
        raise ApiError(400, "The path is not UTF-8") from None
    segments = [segment for segment in segments if segment not in ("", ".")]
    for segment in segments:
        check_segment(segment)
    repo, *rest_segments = segments or [""]
    path = "/".join(rest_segments)
    if path.endswith(":properties"):
        raise ApiError(409, "The ':properties' notation is not supported")
    if len(path.rpartition("/")[0]) > PARENT_MAX:
        raise ApiError(400, f"Invalid path: longer than {PARENT_MAX} characters")
    return ItemPath(repo, path, folder, properties)


def check_segment(segment: str) -> None:
    """Refuse a name that Artifactory cannot hold. Raises ApiError 400."""
    if (
        _DOTS.fullmatch(segment)
        or _ILLEGAL.search(segment)
        or "/" in segment
        or segment != segment.strip()
        or segment == "&"
    ):
        raise ApiError(400, f"Invalid path. Illegal name: '{segment}'")
    if len(segment) > NAME_MAX:
        raise ApiError(400, f"Invalid path: a name is longer than {NAME_MAX} characters")


def parse_matrix(text: str) -> PropertyMap:
    """Read ``k=v;k=v2``; a repeated key has several values (artifactory-rest 2.2).

    A raw comma separates values, ``%2C`` and ``\\,`` are literal: the reading under which the
    ``jf`` command, its libraries and the documentation are all right.
    """
    properties: PropertyMap = {}
    for pair in text.split(";"):
        if not pair:
            continue
        raw_key, _, raw_value = pair.partition("=")
        key = unquote(raw_key)
        check_key(key)
        values = properties.setdefault(key, [])
        for piece in _UNESCAPED_COMMA.split(raw_value.replace("%5C%2C", "\\,")):
            value = unquote_plus(piece).replace("\\,", ",")
            if value not in values:
                values.append(value)
    return properties


def check_key(key: str) -> None:
    """Refuse a property key outside the grammar. Raises ApiError 400."""
    if not _KEY.fullmatch(key):
        raise ApiError(
            400,
            f"Property key: {key} is invalid due to Name must start with a letter and cannot "
            "contain whitespace or special characters",
        )


def parse_property_query(text: str) -> PropertyMap:
    """Read the decoded value of ``?properties=`` of a PUT (artifactory-rest 2.3).

    Pairs are split at unescaped ``;`` or ``|``, key and values at unescaped ``=``, values at
    unescaped ``,``; a pair with two unescaped ``=`` is dropped without a word.

    Raises:
        ApiError: 400 when nothing is left, or for an invalid key.
    """
    properties: PropertyMap = {}
    for pair in _split(text, ";|"):
        parts = _split(pair.strip(), "=")
        if not parts[0] or len(parts) > 2:
            continue
        key = _unescape(parts[0])
        check_key(key)
        values = _split(parts[1], ",") if len(parts) == 2 else [""]
        properties[key] = list(dict.fromkeys(_unescape(value) for value in values))
    if not properties:
        raise ApiError(400, "Properties value cannot be empty.")
    return properties


def _split(text: str, separators: str) -> list[str]:
    """Split at separators without a backslash before them; escapes are left in."""
    parts, current, escaped = [], "", False
    for character in text:
        if not escaped and character in separators:
            parts.append(current)
            current = ""
            continue
        current += character
        escaped = character == "\\" and not escaped
    return [*parts, current]


def _unescape(text: str) -> str:
    return re.sub(r"\\([,=|;\\])", r"\1", text)
