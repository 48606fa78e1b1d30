"""AQL, the Artifactory Query Language: from text to a tree. Pure; any thread.

It looks like JSON and is not: an object may hold one key twice (the vendor's CLI sends two ``$or``
in one), strings know no escape, and the calls are chained in a fixed order.
Source: artifactory-rest 2.4 and 10.1.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NoReturn, TypeVar

from jfs.server.wire.answers import ApiError

_T = TypeVar("_T")
Value = str | int | float | None

COMPARATORS = frozenset(
    [
        *("$eq", "$ne", "$gt", "$gte", "$lt", "$lte", "$match", "$nmatch"),
        *("$eqic", "$matchic", "$last", "$before"),
    ]
)
_TOKEN = re.compile(
    r'\s*(?:"(?P<string>[^"]*)"|(?P<number>-?\d+(?:\.\d+)?)(?![\w.])'
    r"|(?P<word>[A-Za-z_][\w]*)|(?P<mark>[{}()\[\],:.]))"
)
_CHAIN = ("include", "transitive", "sort", "offset", "limit", "distinct")
# The vendor's CLI writes transitive after offset (12.4): it may stand anywhere.
_ORDER = [name for name in _CHAIN if name != "transitive"]
_DEEPEST = 100


@dataclass(frozen=True, slots=True)
class Criterion:
    """``field comparator value``; the field in lower case unless it is a property's key."""

    field: str
    comparator: str
    value: Value


@dataclass(frozen=True, slots=True)
class Group:
    """``$and``, ``$or`` or ``$msp`` (all about one row of properties) of conditions."""

    kind: str
    conditions: "tuple[Condition, ...]"


Condition = Criterion | Group


@dataclass(slots=True)
class Query:
    """One query on items."""

    condition: Group = field(default_factory=lambda: Group("$and", ()))
    include: tuple[str, ...] = ()
    sort: tuple[str, ...] = ()
    descending: bool = False
    offset: int = 0
    limit: int | None = None


def parse(text: str) -> Query:
    """Read a query. Raises ApiError 400, naming the place."""
    return _Parser(text).query()


class _Parser:
    def __init__(self, text: str) -> None:
        self._text = text
        self._position = 0
        self._depth = 0

    def query(self) -> Query:
        if self._word() != "items":
            raise ApiError(400, f"Only the domain 'items' can be queried: {self._text[:200]}")
        self._expect(".")
        if self._word() != "find":
            self._fail()
        query = Query()
        query.condition = Group("$and", self._arguments(self._object))
        seen = -1
        while not self._at_end():
            self._expect(".")
            name = self._word()
            if name == "transitive":
                self._arguments(self._value)
                continue
            if name not in _ORDER or _ORDER.index(name) <= seen:
                self._fail()
            seen = _ORDER.index(name)
            self._chained(query, name)
        return query

    def _chained(self, query: Query, name: str) -> None:
        if name == "include":
            query.include = tuple(self._arguments(self._string))
        elif name == "sort":
            ((direction, fields),) = self._arguments(self._sort)
            query.sort, query.descending = fields, direction == "$desc"
        elif name in ("offset", "limit"):
            values = self._arguments(self._value)
            if len(values) != 1 or not str(values[0]).isdigit():
                self._fail()
            if name == "offset":
                query.offset = int(str(values[0]))
            else:
                query.limit = int(str(values[0]))
        else:
            self._arguments(self._value)  # distinct: rows of items are distinct anyway

    def _arguments(self, one: Callable[[], _T]) -> tuple[_T, ...]:
        self._expect("(")
        found: list[_T] = []
        while not self._accept(")"):
            if found:
                self._expect(",")
            found.append(one())
        return tuple(found)

    def _object(self) -> Group:
        """Read ``{…}``: everything in it holds."""
        self._depth += 1
        if self._depth > _DEEPEST:
            raise ApiError(400, "The query is nested too deeply.")
        self._expect("{")
        found: list[Condition] = []
        while not self._accept("}"):
            if found:
                self._expect(",")
            name = self._string()
            self._expect(":")
            found.append(self._condition(name))
        self._depth -= 1
        return Group("$and", tuple(found))

    def _condition(self, name: str) -> Condition:
        if name in ("$and", "$or", "$msp"):
            self._expect("[")
            members: list[Condition] = []
            while not self._accept("]"):
                if members:
                    self._expect(",")
                members.append(self._object())
            return Group(name, tuple(members))
        if name.startswith("$"):
            self._fail()
        subject = name if name.startswith("@") else name.lower()
        if not self._accept("{"):
            return Criterion(subject, "$eq", self._value())
        parts: list[Condition] = []
        while not self._accept("}"):
            if parts:
                self._expect(",")
            comparator = self._string()
            if comparator not in COMPARATORS:
                self._fail()
            self._expect(":")
            parts.append(Criterion(subject, comparator, self._value()))
        if not parts:
            self._fail()
        return parts[0] if len(parts) == 1 else Group("$and", tuple(parts))

    def _sort(self) -> tuple[str, tuple[str, ...]]:
        self._expect("{")
        direction = self._string()
        if direction not in ("$asc", "$desc"):
            self._fail()
        self._expect(":")
        self._expect("[")
        fields: list[str] = []
        while not self._accept("]"):
            if fields:
                self._expect(",")
            fields.append(self._string().lower())
        self._expect("}")
        return direction, tuple(fields)

    def _value(self) -> Value:
        kind, text = self._next()
        if kind == "string":
            return text
        if kind == "number":
            return float(text) if "." in text else int(text)
        if kind == "word" and text == "null":
            return None
        if kind == "word" and text in ("true", "false"):
            return text
        self._fail()

    def _string(self) -> str:
        kind, text = self._next()
        if kind != "string":
            self._fail()
        return text

    def _word(self) -> str:
        kind, text = self._next()
        if kind != "word":
            self._fail()
        return text

    def _expect(self, mark: str) -> None:
        if not self._accept(mark):
            self._fail()

    def _accept(self, mark: str) -> bool:
        found = _TOKEN.match(self._text, self._position)
        if found is None or found["mark"] != mark:
            return False
        self._position = found.end()
        return True

    def _next(self) -> tuple[str, str]:
        found = _TOKEN.match(self._text, self._position)
        if found is None or found.lastgroup is None:
            self._fail()
        self._position = found.end()
        return found.lastgroup, found[found.lastgroup]

    def _at_end(self) -> bool:
        return not self._text[self._position :].strip()

    def _fail(self) -> NoReturn:
        rest = self._text[self._position :].strip()
        raise ApiError(
            400,
            f"Failed to parse query: {self._text[:2000]}, it looks like there is syntax error "
            f"near the following sub-query: {rest[:500]}",
        )
