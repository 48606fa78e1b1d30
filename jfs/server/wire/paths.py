"""Read request targets: paths, matrix parameters, property lists. Pure; any thread.

Everything starts from the raw target, since ``;`` is split off before anything is decoded
(artifactory-rest 2). The client's code is not used on purpose: both would agree on one mistake.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, unquote

from jfs.model import RepoPath
from jfs.server.wire.answers import ApiError

_FORBIDDEN = frozenset('\\|*?"\0')
# PropertyNameValidator (2.2): a letter first; no whitespace and none of these.
_KEY = re.compile(r"[A-Za-z][^\s(){}\[\]*+^$\\/~`!@#%&<>;=,±§]*\Z")
# A backslash before anything else is an ordinary character (2.3).
_TOKEN = re.compile(r"\\[,=|;\\]|[^,=|;\\]+|.", re.DOTALL)
_ESCAPED = re.compile(r"\\([,=|;\\])")
_URL = re.compile(r"/*https?:/", re.IGNORECASE)
_MAX_NAME = 255  # 6.20 schema: name column, path column, property key and value (2.1)
_MAX_PARENT = 1024
_MAX_KEY = 255
_MAX_VALUE = 4000


@dataclass(frozen=True, slots=True)
class Target:
    """An item as a request names it."""

    path: RepoPath
    folder: bool  # written with a slash at the end
    properties: dict[str, tuple[str, ...]] = field(default_factory=dict)
    mandatory: frozenset[str] = frozenset()  # keys written ``k+=v``: resolve only what has them


def split_target(raw: str) -> tuple[str, str]:
    """Split a request target into raw path and raw query; the absolute form is understood."""
    if not raw.startswith("/"):
        scheme, found, rest = raw.partition("://")
        raw = "/" + rest.partition("/")[2] if found and scheme.isalpha() else "/" + raw
    path, _, query = raw.partition("?")
    return path, query.partition("#")[0]


def parse_query(raw: str) -> dict[str, str]:
    """Read a query; the first of repeated keys counts, and ``;`` is an ordinary character."""
    try:
        pairs = parse_qsl(raw, keep_blank_values=True, errors="strict", max_num_fields=1000)
    except ValueError:
        raise ApiError(400, "The query is not valid: too long, or not UTF-8.") from None
    query: dict[str, str] = {}
    for key, value in pairs:
        query.setdefault(key, value)
    return query


def parse_target(raw: str) -> Target:
    """Read ``R[;k=v]/P[;k=v…]``. Raises ApiError 400."""
    first, slash, rest = raw.lstrip("/").partition("/")
    key, _, early = first.partition(";")
    path, _, late = rest.partition(";")
    properties, mandatory = _matrix([*early.split(";"), *late.split(";")])
    decoded = _decode(path)
    return Target(
        RepoPath(_decode(key), check_path(decoded)),
        decoded.endswith("/") or (slash != "" and decoded == ""),
        properties,
        mandatory,
    )


def check_path(path: str) -> str:
    """Normalise a decoded path; refuse what Artifactory refuses (2.1). Raises ApiError 400."""
    if _URL.match(path):
        raise ApiError(400, f"Forbidden Url in path: {path[:200]}")
    names = [name for name in path.split("/") if name not in ("", ".")]
    for name in names:
        if not name.strip("."):
            raise _illegal(path, "a name must not consist of dots")
        if bad := _FORBIDDEN.intersection(name):
            raise _illegal(path, f"a name must not hold {min(bad)!r}")
        if name != name.strip():
            raise _illegal(path, "a name must not begin or end with white space")
        if name == "&":
            raise _illegal(path, "a name must not be '&'")
        if len(name) > _MAX_NAME:
            raise _illegal(path, f"a name must not be longer than {_MAX_NAME} characters")
    if names and len("/".join(names[:-1])) > _MAX_PARENT:
        raise _illegal(path, f"the path is longer than {_MAX_PARENT} characters")
    if path.endswith(":properties"):
        raise ApiError(409, "The ':properties' notation is no longer supported.")
    return "/".join(names)


def check_properties(properties: Mapping[str, Iterable[str]]) -> None:
    """Refuse keys and values that Artifactory refuses. Raises ApiError 400."""
    for key, values in properties.items():
        if not _KEY.match(key):
            raise ApiError(
                400,
                f"Property key: {key} is invalid due to Name must start with a letter and "
                "cannot contain whitespace or special characters",
            )
        if len(key) > _MAX_KEY:
            raise ApiError(400, f"Property key is longer than {_MAX_KEY} characters: {key[:40]}…")
        for value in values:
            if len(value) > _MAX_VALUE:
                raise ApiError(
                    400, f"A value of property {key} is longer than {_MAX_VALUE} characters."
                )


def parse_property_list(text: str) -> dict[str, tuple[str, ...]]:
    """Read the decoded ``?properties=`` of a PUT (2.3). Raises ApiError 400."""
    found: dict[str, tuple[str, ...]] = {}
    for pair in _split(text, ";|"):
        parts = _split(pair.strip(), "=")
        if len(parts) > 2 or not parts[0]:
            continue  # dropped silently, as real servers do
        values = _split(parts[1], ",") if len(parts) == 2 else [""]
        key = _unescape(parts[0])
        found[key] = _unique((*found.get(key, ()), *map(_unescape, values)))
    if not found:
        raise ApiError(400, "Properties value cannot be empty.")
    check_properties(found)
    return found


def parse_keys(text: str) -> list[str]:
    """Read a comma list of property keys."""
    return [key for key in (part.strip() for part in text.split(",")) if key]


def _matrix(pairs: Iterable[str]) -> tuple[dict[str, tuple[str, ...]], frozenset[str]]:
    found: dict[str, tuple[str, ...]] = {}
    mandatory = set()
    for pair in pairs:
        if not pair:
            continue
        raw_key, _, raw_values = pair.partition("=")
        key = _decode_plus(raw_key.removesuffix("+"))
        if raw_key.endswith("+"):
            mandatory.add(key)
        # A raw comma separates values, %2C and a comma after a backslash are literal (2.2).
        values = [
            _decode_plus(value).replace("\\,", ",")
            for value in re.split(r"(?<!\\)(?<!%5C)(?<!%5c),", raw_values)
        ]
        found[key] = _unique((*found.get(key, ()), *values))
    check_properties(found)
    return found, frozenset(mandatory)


def _split(text: str, separators: str) -> list[str]:
    """Split at what no backslash escapes; the escapes stay in."""
    parts = [""]
    for token in _TOKEN.findall(text):
        if token in separators:
            parts.append("")
        else:
            parts[-1] += token
    return parts


def _unescape(text: str) -> str:
    return _ESCAPED.sub(r"\1", text)


def _unique(values: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(values))


def _decode(raw: str) -> str:
    try:
        text = unquote(raw, errors="strict")
        text.encode()  # raw bytes above 0x7F arrive as lone surrogates where they are no UTF-8
    except UnicodeError:
        raise ApiError(400, f"The path is not UTF-8: {raw[:200]!a}") from None
    return text


def _decode_plus(raw: str) -> str:
    return _decode(raw.replace("+", " "))


def _illegal(path: str, why: str) -> ApiError:
    return ApiError(400, f"Invalid path '{path[:200]}': {why}.")
