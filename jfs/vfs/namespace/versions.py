"""Which of several names is the newest version. Pure.

Numbered names come first (semantic versioning 2.0.0 section 11, read leniently: ``v2``, ``1.0`` and
``release-1.2.3`` are versions too), then dates, then whatever was modified last.
"""

import re
from datetime import date

_NUMBERED = re.compile(
    r"(?:[A-Za-z]+[-_.]?)?(?P<numbers>\d{1,18}(?:\.\d{1,18})*)"
    r"(?:[-_.]?(?P<pre>[A-Za-z][0-9A-Za-z.-]*)|-(?P<post>[0-9][0-9A-Za-z.-]*))?(?:\+[0-9A-Za-z.-]+)?"
)
_DATE = re.compile(
    r"(?:[A-Za-z]+[-_.]?)?(?P<year>(?:19|20|21)\d\d)(?P<mark>[-_.]?)(?P<month>\d\d)(?P=mark)"
    r"(?P<day>\d\d)(?:[T_\s.-]?(?P<time>[0-9:.-]+)Z?)?"
)
_PIECE = re.compile(r"(\d+)")

VersionKey = tuple[int, tuple[object, ...], int, str]


def version_key(name: str, modified_ns: int) -> VersionKey:
    """Return a key by which names sort from the oldest to the newest version."""
    dated = _DATE.fullmatch(name)
    if dated is not None and _is_date(dated):
        day = int(dated["year"] + dated["month"] + dated["day"])
        return 1, (day, dated["time"] or ""), modified_ns, name
    numbered = _NUMBERED.fullmatch(name)
    if numbered is not None:
        numbers = [int(part) for part in numbered["numbers"].split(".")]
        while numbers and numbers[-1] == 0:
            numbers.pop()  # 1.0 and 1.0.0 are one version
        return 2, (tuple(numbers), _suffix(numbered["pre"], numbered["post"])), modified_ns, name
    return 0, (), modified_ns, name


def _suffix(pre: str | None, post: str | None) -> tuple[object, ...]:
    """Order what follows the numbers: a pre-release is older than the release itself."""
    if pre is None and post is None:
        return (1,)
    identifiers = []
    for identifier in re.split(r"[.-]", pre or post or ""):
        # Numbers sort as numbers and before letters; rc10 after rc9.
        pieces = tuple(
            (0, int(piece), "") if piece.isdigit() else (1, 0, piece)
            for piece in _PIECE.split(identifier)
            if piece
        )
        identifiers.append(pieces)
    return 0, tuple(identifiers)


def _is_date(found: re.Match[str]) -> bool:
    try:
        date(int(found["year"]), int(found["month"]), int(found["day"]))
    except ValueError:
        return False
    return True
