"""Properties as extended attributes: names and values, both ways. Pure.

``user.KEY`` is property KEY. Several values are joined with ``,``; a literal ``,`` or ``\\`` has a
``\\`` before it. ``user.jfs.NAME`` are read-only facts about the artifact. What Artifactory cannot
hold is refused by the rules of its own validator (artifactory-rest 2.2).
"""

import re
from collections.abc import Iterable
from datetime import UTC, datetime

from jfs.errors import InvalidName, InvalidProperty, NoAttribute, NotPermitted, Unsupported
from jfs.model import EntryInfo, FileInfo, problem_with_key

PREFIX = "user."
FACTS = PREFIX + "jfs."
_MAX_VALUE = 4000  # characters (artifactory-rest 2.1)
_PIECE = re.compile(r"\\(.)|(,)|([^\\,]+|\\)", re.DOTALL)


def key_to_read(name: bytes) -> str:
    """Return the property that an attribute stands for.

    Raises:
        Unsupported: an attribute of another namespace: ``security.``, ``system.``, ``trusted.``.
        NoAttribute: no property can have this name.
    """
    text = _decode_name(name)
    if not text.startswith(PREFIX):
        raise Unsupported(f"{text}: only user. attributes are kept")
    key = text.removeprefix(PREFIX)
    if problem_with_key(key) is not None:
        raise NoAttribute(f"{text} cannot be a property")
    return key


def key_to_write(name: bytes) -> str:
    """As ``key_to_read``, for setting and removing.

    Raises:
        Unsupported: an attribute of another namespace.
        NotPermitted: a fact, which is the server's to say.
        InvalidProperty: the rule that the name breaks.
    """
    text = _decode_name(name)
    if text.startswith(FACTS):
        raise NotPermitted(f"{text} is read-only")
    if not text.startswith(PREFIX):
        raise Unsupported(f"{text}: only user. attributes are kept")
    key = text.removeprefix(PREFIX)
    if (problem := problem_with_key(key)) is not None:
        raise InvalidProperty(f"{text}: {problem}")
    return key


def encode_values(values: Iterable[str]) -> bytes:
    """Join the values of a property."""
    escaped = (value.replace("\\", "\\\\").replace(",", "\\,") for value in values)
    return ",".join(escaped).encode("utf-8", "surrogateescape")


def decode_values(data: bytes) -> tuple[str, ...]:
    """Split what was written; values that occur twice count once.

    Raises:
        InvalidProperty: not text, or a value longer than Artifactory holds.
    """
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        raise InvalidProperty("a property value must be UTF-8 text") from None
    if "\0" in text:
        raise InvalidProperty("a property value must not hold NUL")
    values = [""]
    for escaped, comma, plain in _PIECE.findall(text):
        if comma:
            values.append("")
        elif escaped:
            # A backslash before anything but a comma or itself is an ordinary character.
            values[-1] += escaped if escaped in ",\\" else f"\\{escaped}"
        else:
            values[-1] += plain
    for value in values:
        if len(value) > _MAX_VALUE:
            raise InvalidProperty(
                f"a property value must not be longer than {_MAX_VALUE} characters"
            )
    return tuple(dict.fromkeys(values))


def fact(info: EntryInfo, name: str) -> str | None:
    """Return what *info* itself says of a fact; None if it does not.

    Raises:
        NoAttribute: there is no fact of this name.
    """
    if name not in _FACTS_OF_FOLDERS and not (name in _FACTS_OF_FILES and _is_file(info)):
        raise NoAttribute(f"{FACTS}{name}: no such fact")
    if name == "modified":
        return _moment(info.modified_ns)
    if name == "created":
        return None if info.created_ns is None else _moment(info.created_ns)
    if not isinstance(info, FileInfo):
        return None
    if name in ("sha256", "sha1", "md5"):
        found: str | None = getattr(info.checksums, name)
        return found
    if name in ("created_by", "modified_by"):
        who: str | None = getattr(info, name)
        return who
    return None


_FACTS_OF_FOLDERS = frozenset(["created", "modified", "uri", "state", "last_error"])
_FACTS_OF_FILES = frozenset(["sha256", "sha1", "md5", "created_by", "modified_by", "downloads"])


def _is_file(info: EntryInfo) -> bool:
    return isinstance(info, FileInfo)


def _decode_name(name: bytes) -> str:
    try:
        return name.decode("utf-8")
    except UnicodeDecodeError:
        raise InvalidName("the attribute's name is not UTF-8") from None


def _moment(time_ns: int) -> str:
    moment = datetime.fromtimestamp(time_ns // 1_000_000_000, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{time_ns // 1_000_000 % 1000:03}Z"
