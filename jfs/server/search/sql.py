"""Answer queries from the catalogue: AQL as SQL. Blocking; under the store's lock.

Source: artifactory-rest 10.1.
"""

import json
import re
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from jfs.server.search.language import Condition, Criterion, Group, Query, Value
from jfs.server.wire.answers import ApiError, iso_date

_Sql = tuple[str, list[object]]

# What AQL calls them, and where they are; the root of a repository is "." in "." (10.1).
_FIELDS: Mapping[str, str] = {
    "repo": "items.repo",
    "path": "CASE WHEN items.parent IS NULL OR items.parent = '' THEN '.' ELSE items.parent END",
    "name": "CASE WHEN items.path = '' THEN '.' ELSE items.name END",
    "type": "CASE WHEN items.sha256 IS NULL THEN 'folder' ELSE 'file' END",
    "size": "COALESCE(blobs.size, 0)",
    "depth": "items.depth",
    "created": "items.created",
    "created_by": "items.created_by",
    "modified": "items.modified",
    "modified_by": "items.modified_by",
    "updated": "items.updated",
    "actual_md5": "blobs.md5",
    "actual_sha1": "blobs.sha1",
    "sha256": "blobs.sha256",
    "original_md5": "json_extract(items.original, '$.md5')",
    "original_sha1": "json_extract(items.original, '$.sha1')",
}
_STATS: Mapping[str, str] = {
    "stat.downloads": "COALESCE(downloads.count, 0)",
    "stat.downloaded": "downloads.last",
    "stat.downloaded_by": "downloads.last_by",
}
_DEFAULT = (
    *("repo", "path", "name", "type", "size"),
    *("created", "created_by", "modified", "modified_by", "updated"),
)
_NAMING = frozenset(["repo", "path", "name"])
_NUMBERS = frozenset(["size", "depth", "stat.downloads"])
_DATES = frozenset(["created", "modified", "updated", "stat.downloaded"])
_PLAIN = {"$eq": "=", "$ne": "<>", "$gt": ">", "$gte": ">=", "$lt": "<", "$lte": "<="}
_NEGATED = {"$ne": "$eq", "$nmatch": "$match"}
_SPAN = re.compile(r"(\d+)\s*([a-zA-Z]+)")
_UNITS_MS = {
    **dict.fromkeys(("ms", "milliseconds", "millis"), 1),
    **dict.fromkeys(("s", "seconds"), 1000),
    **dict.fromkeys(("mi", "minutes"), 60000),
    **dict.fromkeys(("h", "hours"), 3600000),
    **dict.fromkeys(("d", "days"), 86400000),
    **dict.fromkeys(("w", "weeks"), 7 * 86400000),
    **dict.fromkeys(("mo", "months"), 30 * 86400000),
    **dict.fromkeys(("y", "years"), 365 * 86400000),
}
_TRIMMED = (
    "AQL query reached the search hard limit, results are trimmed. Please address configurable"
    " limit."
)
_CHUNK = 500  # ids in one statement


@dataclass(frozen=True, slots=True)
class _Shape:
    """Which columns a row has, and what of its properties (None: nothing; empty: all)."""

    fields: tuple[str, ...]
    properties: frozenset[str] | None
    stats: bool


@dataclass(slots=True)
class Result:
    """The rows of one query; *trimmed*: to a limit of the server's."""

    query: Query
    rows: list[dict[str, object]] = field(default_factory=list)
    trimmed: int | None = None

    def as_json(self) -> bytes:
        """Render as ``AqlJsonStreamer`` does; row by row, since there may be 100,000."""
        rows = ",".join(json.dumps(row, ensure_ascii=False) for row in self.rows)
        start, count = self.query.offset, len(self.rows)
        span: dict[str, object] = {"start_pos": start, "end_pos": start + count, "total": count}
        if self.query.limit is not None:
            span["limit"] = self.query.limit
        if self.trimmed is not None:
            span |= {"limit": self.trimmed, "notification": _TRIMMED}
        return f'\n{{\n"results" : [ {rows} ],\n"range" : {json.dumps(span)}\n}}\n'.encode()


def run(
    database: sqlite3.Connection,
    query: Query,
    readable: Callable[[str], bool] | None,
    most: int | None = None,
) -> Result:
    """Answer a query. Raises ApiError 400 for what it asks wrongly.

    Offsets and limits count rows joined with properties, where those are included: one for each
    property of an item, so that the last item may lack some (10.1).

    Args:
        most: rows of a result, whatever the query asks for; None: all.
        readable: whether rows of a repository may be seen; None: all may. Rows are taken out
            after the limit, so a page may be short (10.1).
    """
    shape = _shape(query.include)
    if readable is not None and not _NAMING.issubset(shape.fields):
        raise ApiError(
            400, "For permissions reasons AQL demands the following fields: repo, path and name."
        )
    where, values = _condition(query.condition)
    if not _mentions(query.condition, "type"):
        where = f"({where}) AND items.sha256 IS NOT NULL"
    columns = ", ".join(_FIELDS[name] for name in shape.fields)
    if shape.stats:
        columns = ", ".join([*([columns] if columns else []), *_STATS.values()])
    text = (
        f"SELECT items.id, {columns} FROM items LEFT JOIN blobs ON blobs.sha256 = items.sha256"
        f" LEFT JOIN downloads ON downloads.item = items.id WHERE {where}"
    )
    if query.sort:
        for name in query.sort:
            if name not in shape.fields:
                raise ApiError(400, f"Only fields of the result can be sorted by: '{name}' is none")
        direction = " DESC" if query.descending else ""
        text += f" ORDER BY {', '.join(_FIELDS[name] + direction for name in query.sort)}"
    joined = shape.properties is not None
    if not joined and (query.limit is not None or query.offset or most is not None):
        text += " LIMIT ? OFFSET ?"
        # One more than the server allows, so as to see that there are more.
        limits = (query.limit, most + 1 if most is not None else None)
        values += [min((each for each in limits if each is not None), default=-1), query.offset]
    found = database.execute(text, values).fetchall()
    result = Result(query)
    rows = [(number, _row(shape, cells)) for number, *cells in found]
    if shape.properties is not None:
        _add_properties(
            database, [number for number, _ in rows], shape.properties, [row for _, row in rows]
        )
        rows, more = _cut(rows, query, most)
    else:
        more = most is not None and len(rows) > most
        rows = rows[:most]
    if more:
        result.trimmed = most
    result.rows = [row for _, row in rows if readable is None or readable(str(row["repo"]))]
    return result


def _cut(
    rows: Sequence[tuple[int, dict[str, object]]], query: Query, most: int | None
) -> tuple[list[tuple[int, dict[str, object]]], bool]:
    """Apply offset and limits to the rows joined with their properties; True: to *most*."""
    start = query.offset
    stop = None if query.limit is None else start + query.limit
    limited = most is not None and (stop is None or stop - start > most)
    if most is not None and limited:
        stop = start + most
    kept: list[tuple[int, dict[str, object]]] = []
    position = 0
    for number, row in rows:
        pairs = row.get("properties")
        size = len(pairs) if isinstance(pairs, list) else 1
        first = max(0, start - position)
        last = size if stop is None else min(size, stop - position)
        position += size
        if first < last:
            if isinstance(pairs, list):
                row = {**row, "properties": pairs[first:last]}
            kept.append((number, row))
    return kept, limited and stop is not None and position > stop


def _row(shape: _Shape, cells: Sequence[object]) -> dict[str, object]:
    row: dict[str, object] = {}
    for name, value in zip(shape.fields, cells, strict=False):
        if value is None:
            continue  # absent values are left out
        row[name] = iso_date(int(str(value))) if name in _DATES else value
    if shape.stats:
        count, last, last_by = cells[len(shape.fields) :]
        stats: dict[str, object] = {"downloads": count}
        if last:
            stats |= {"downloaded": iso_date(int(str(last))), "downloaded_by": last_by}
        row["stats"] = [stats]
    return row


def _add_properties(
    database: sqlite3.Connection,
    ids: Sequence[int],
    keys: frozenset[str],
    rows: Sequence[dict[str, object]],
) -> None:
    by_id: dict[int, list[dict[str, str]]] = {}
    for start in range(0, len(ids), _CHUNK):
        chunk = ids[start : start + _CHUNK]
        marks = ", ".join("?" * len(chunk))
        for number, key, value in database.execute(
            f"SELECT item, key, value FROM properties WHERE item IN ({marks})"
            " ORDER BY item, key, position",
            chunk,
        ):
            if not keys or key in keys:
                by_id.setdefault(number, []).append({"key": key, "value": value})
    for number, row in zip(ids, rows, strict=True):
        if number in by_id:
            row["properties"] = by_id[number]


def _shape(include: Sequence[str]) -> _Shape:
    fields: list[str] = []
    keys: set[str] = set()
    properties = stats = everything = False
    for name in include:
        lower = name.lower()
        if name.startswith("@"):
            keys.add(name[1:])
        elif lower in ("*", "items.*", "item.*"):
            everything = True
        elif lower.removeprefix("item.") in _FIELDS:
            fields.append(lower.removeprefix("item."))
        elif lower.partition(".")[0] == "property":
            properties = True
        elif lower.partition(".")[0] in ("stat", "stats"):
            stats = True
        else:
            raise ApiError(400, f"Unknown field in include: '{name}'")
    if everything or not fields:
        # Fields of other domains alone are shown beside the defaults.
        fields = list(_FIELDS if everything else _DEFAULT)
    wanted = frozenset[str]() if properties else frozenset(keys) if keys else None
    return _Shape(tuple(dict.fromkeys(fields)), wanted, stats)


def _mentions(condition: Condition, subject: str) -> bool:
    if isinstance(condition, Criterion):
        return condition.field == subject
    return any(_mentions(each, subject) for each in condition.conditions)


def _condition(condition: Condition) -> _Sql:
    if isinstance(condition, Criterion):
        return _criterion(condition)
    if condition.kind == "$msp":
        return _same_property(condition)
    joiner = " OR " if condition.kind == "$or" else " AND "
    return _joined(condition, joiner, _condition)


def _joined(group: Group, joiner: str, one: Callable[[Condition], _Sql]) -> _Sql:
    parts, values = [], list[object]()
    for condition in group.conditions:
        text, more = one(condition)
        parts.append(f"({text})")
        values += more
    return (joiner.join(parts), values) if parts else ("1", [])


def _criterion(criterion: Criterion) -> _Sql:
    subject, comparator, value = criterion.field, criterion.comparator, criterion.value
    if subject.startswith(("@", "property.")):
        return _property(criterion)
    subject = subject.removeprefix("item.")
    if subject == "type":
        return _type(comparator, value)
    column = _FIELDS.get(subject) or _STATS.get(subject)
    if column is None:
        raise ApiError(400, f"Unknown field in the query: '{subject}'")
    if subject == "path" and comparator == "$eq" and isinstance(value, str):
        # The plain column, so that the index on (repo, parent, name) is used.
        return _at_path(value)
    if subject == "name" and comparator == "$eq" and isinstance(value, str) and value != ".":
        return "items.name = ?", [value]
    if comparator in ("$last", "$before"):
        if subject not in _DATES:
            raise ApiError(400, f"{comparator} is for dates: '{subject}' is none")
        moment = time.time_ns() // 1_000_000 - _span_ms(value)
        return f"{column} {'>=' if comparator == '$last' else '<'} ?", [moment]
    if subject in _NUMBERS and value is not None and comparator in _PLAIN:
        return f"{column} {_PLAIN[comparator]} ?", [_number(subject, value)]
    if subject in _DATES and value is not None and comparator in _PLAIN:
        return f"{column} {_PLAIN[comparator]} ?", [_moment(value)]
    return _compare(column, comparator, value)


def _at_path(value: str) -> _Sql:
    if value == ".":
        return "items.parent IS NULL OR items.parent = ''", []
    return "items.parent = ?", [value]


def _type(comparator: str, value: Value) -> _Sql:
    if comparator not in ("$eq", "$ne") or value not in ("any", "file", "folder"):
        raise ApiError(400, f"type must be file, folder or any, not '{value}'")
    if value == "any":
        return "1", []
    folder = (value == "folder") == (comparator == "$eq")
    return f"items.sha256 IS {'NULL' if folder else 'NOT NULL'}", []


def _compare(column: str, comparator: str, value: Value) -> _Sql:
    """Compare text; a value of the other type is taken as text."""
    if value is None:
        if comparator not in ("$eq", "$ne"):
            raise ApiError(400, f"null can be compared by $eq and $ne only, not by {comparator}")
        return f"{column} IS {'NULL' if comparator == '$eq' else 'NOT NULL'}", []
    text = str(value)
    if comparator in _PLAIN:
        if comparator == "$ne":
            return f"{column} IS NOT ?", [text]
        return f"{column} {_PLAIN[comparator]} ?", [text]
    if comparator == "$eqic":
        return f"LOWER({column}) = ?", [text.lower()]
    if comparator == "$match":
        return f"{column} GLOB ?", [_glob(text)]
    if comparator == "$matchic":
        return f"LOWER({column}) GLOB ?", [_glob(text.lower())]
    if comparator == "$nmatch":
        return f"{column} IS NULL OR {column} NOT GLOB ?", [_glob(text)]
    raise ApiError(400, f"{comparator} cannot be used here")


def _property(criterion: Criterion) -> _Sql:
    """Ask for a property row; a negation also holds for what has no such property."""
    comparator, value = criterion.comparator, criterion.value
    if value is None:
        comparator, value = ("$ne" if comparator == "$eq" else "$eq"), "*"
    negated = comparator in _NEGATED
    if negated:
        comparator = _NEGATED[comparator]
    text, values = _property_row(Criterion(criterion.field, comparator, value))
    exists = f"EXISTS (SELECT 1 FROM properties WHERE properties.item = items.id AND {text})"
    return (f"NOT {exists}" if negated else exists), values


def _property_row(condition: Condition) -> _Sql:
    """Return the condition on one row of ``properties``."""
    if isinstance(condition, Group):
        joiner = " OR " if condition.kind == "$or" else " AND "
        return _joined(condition, joiner, _property_row)
    subject, comparator, value = condition.field, condition.comparator, condition.value
    if subject in ("property.key", "property.value"):
        return _compare(f"properties.{subject.removeprefix('property.')}", comparator, value)
    if not subject.startswith("@"):
        raise ApiError(400, f"'{subject}' is not about a property")
    key = subject[1:]
    if key == "*":
        text, values = "1", list[object]()
    elif "*" in key:
        text, values = "properties.key GLOB ?", [_glob(key)]
    else:
        text, values = "properties.key = ?", [key]
    if value == "*" and comparator in ("$eq", "$match"):
        return text, values  # has the key
    more, more_values = _compare("properties.value", comparator, value)
    return f"{text} AND ({more})", [*values, *more_values]


def _same_property(group: Group) -> _Sql:
    text, values = _joined(group, " AND ", _property_row)
    return (
        f"EXISTS (SELECT 1 FROM properties WHERE properties.item = items.id AND ({text}))",
        values,
    )


def _glob(pattern: str) -> str:
    """``*`` and ``?`` mean the same to SQLite's GLOB; ``[`` would begin a set."""
    return pattern.replace("[", "[[]")


def _number(subject: str, value: Value) -> float:
    try:
        return float(str(value))
    except ValueError:
        raise ApiError(400, f"{subject} is a number: '{value}' is none") from None


def _moment(value: Value) -> int:
    """Read a date or a time, as ms since 1970."""
    try:
        moment = datetime.fromisoformat(str(value))
    except ValueError:
        raise ApiError(400, f"'{value}' is not a date") from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return int(moment.timestamp() * 1000)


def _span_ms(value: Value) -> int:
    found = _SPAN.fullmatch(str(value).strip())
    unit = _UNITS_MS.get(found[2]) if found else None
    if found is None or unit is None:
        raise ApiError(400, f"'{value}' is not a span of time such as 7d, 3mo or 90minutes")
    return int(found[1]) * unit
