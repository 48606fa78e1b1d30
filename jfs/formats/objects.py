"""Walk a JSON object without building it: what comes from strangers may be deep, long or empty.

The memory of ``json.loads`` is up to 40 times the text (an array of empty arrays). Here a value is
only found, and built by its reader if that is small.
"""

import json
import re
from collections.abc import Iterator
from itertools import islice

from jfs.errors import MalformedFile

_SPACE = re.compile(r"[ \t\n\r]*+")
_STRING = re.compile(r'"[^"\\\x00-\x1f]*+(?:\\.[^"\\\x00-\x1f]*+)*+"')
_SCALAR = re.compile(r"[-+.0-9A-Za-z]{1,64}+(?=[ \t\n\r,}\]])")
_NESTED = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[{}\[\]]')
_DEEPEST = 16
_TOKENS_AT_MOST = 1_000_000  # of a nested value, its strings and brackets: 0.3 s
_NAME_AT_MOST = 4096
_SMALL = 64 * 1024


def members(text: str, start: int, what: str, most: int) -> Iterator[tuple[str, int, int]]:
    """Yield the members of the object at *start*: name, and where its value starts and stops.

    Args:
        what: the object's name, for messages.
        most: members that it may have.
    Raises:
        MalformedFile: it is no such object.
    """
    position = _after_space(text, start)
    if text[position : position + 1] != "{":
        raise MalformedFile(f"{what} is no object of JSON")
    position = _after_space(text, position + 1)
    if text[position : position + 1] == "}":
        return
    for _ in range(most):
        name, position = string(text, position, f"a name in {what}")
        position = _after_space(text, position)
        if text[position : position + 1] != ":":
            raise MalformedFile(f"{what}: no value follows {name!r:.80}")
        position = _after_space(text, position + 1)
        stop = _end_of_value(text, position, f"{what}: the value of {name!r:.80}")
        yield name, position, stop
        position = _after_space(text, stop)
        match text[position : position + 1]:
            case "}":
                return
            case ",":
                position = _after_space(text, position + 1)
            case _:
                raise MalformedFile(f"{what}: neither , nor }} follows {name!r:.80}")
    raise MalformedFile(f"{what} has more than {most} members")


def string(text: str, start: int, what: str) -> tuple[str, int]:
    """Return the string at *start*, and where it stops. Raises MalformedFile."""
    match = _STRING.match(text, start)
    if match is None:
        raise MalformedFile(f"{what} is no string of JSON")
    if match.end() - start > _NAME_AT_MOST:
        raise MalformedFile(f"{what} is {match.end() - start} characters long")
    value = small(text, start, match.end(), what)
    assert isinstance(value, str)
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:  # half of a pair, by an escape
        raise MalformedFile(f"{what} is no Unicode") from None
    return value, match.end()


def small(text: str, start: int, stop: int, what: str) -> object:
    """Build one value. Raises MalformedFile, if it is wrong or not small."""
    if stop - start > _SMALL:
        raise MalformedFile(f"{what} is {stop - start} characters long")
    try:
        value: object = json.loads(text[start:stop])
    except (ValueError, RecursionError) as error:
        raise MalformedFile(f"{what} is no JSON: {error}") from None
    return value


def _after_space(text: str, start: int) -> int:
    match = _SPACE.match(text, start)
    assert match is not None  # it matches nothing at all, too
    return match.end()


def _end_of_value(text: str, start: int, what: str) -> int:
    first = text[start : start + 1]
    if first not in ("{", "["):
        match = (_STRING if first == '"' else _SCALAR).match(text, start)
        if match is None:
            raise MalformedFile(f"{what} is no JSON")
        return match.end()
    depth = 0
    for token in islice(_NESTED.finditer(text, start), _TOKENS_AT_MOST):
        kind = token.group()[0]
        if kind in "{[":
            depth += 1
            if depth > _DEEPEST:
                raise MalformedFile(f"{what} is nested more than {_DEEPEST} deep")
        elif kind in "}]":
            depth -= 1
            if not depth:
                return token.end()
    raise MalformedFile(f"{what} does not end, or has a million parts")
