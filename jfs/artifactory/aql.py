"""Write queries in AQL, the Artifactory Query Language. Pure.

Source: artifactory-rest 2.4 and 10.1. There is no escape for ``"`` (nor could such a name exist),
and none for ``*`` and ``?``, which are wildcards only under ``$match``.
"""

from datetime import UTC, datetime

from jfs.errors import InvalidName
from jfs.model import Checksums, Criteria

_NAMED = ("repo", "path", "name", "type")
_PLAIN = (*_NAMED, "size", "modified", "actual_sha1", "sha256")
_FULL = (*_PLAIN, "created", "created_by", "modified_by", "actual_md5")


# Path and name of an item, as rows have them: the order of pages.
Key = tuple[str, str]


def find(
    criteria: Criteria,
    repo: str,
    *,
    after: Key | None = None,
    upto: Key | None = None,
    paged: bool = False,
) -> str:
    """Return the query for *criteria*.

    Args:
        repo: where the server keeps the items; empty: everywhere.
        after, upto: only items behind the one, and up to the other, by path and name.
        paged: sorted by path and name, and without properties, which do not go with that.
    Raises:
        InvalidName: a value that cannot be expressed.
    """
    wanted = [f'"type":"{criteria.kind}"']
    if repo:
        wanted.append(f'"repo":{_quoted(repo)}')
    if criteria.direct:
        wanted.append(f'"path":{_quoted(criteria.scope.path or ".")}')
        if not criteria.scope.path and criteria.kind != "file":
            wanted.append('"name":{"$ne":"."}')  # the repository itself is "." in "."
    elif criteria.scope.path:
        folder = criteria.scope.path
        # A folder whose own name holds a wildcard would match its neighbours too: the rows are
        # held against the scope once more when they are read.
        below = '{"path":{"$match":' + _quoted(f"{folder}/*") + "}}"
        wanted.append('"$or":[{"path":' + _quoted(folder) + "}," + below + "]")
    for key, value in criteria.properties:
        wanted.append('"$and":[{' + f"{_quoted('@' + key)}:{_value(value)}" + "}]")
    if criteria.tagged:
        wanted.append('"@*":{"$match":"*"}')
    if criteria.name is not None:
        wanted.append(f'"name":{_value(criteria.name)}')
    if criteria.newer_ns is not None:
        wanted.append('"modified":{"$gt":' + _quoted(_moment(criteria.newer_ns)) + "}")
    if criteria.older_ns is not None:
        wanted.append('"modified":{"$lt":' + _quoted(_moment(criteria.older_ns)) + "}")
    for end, comparator, last in ((after, "$gt", "$gt"), (upto, "$lt", "$lte")):
        if end is not None:
            path, name = map(_quoted, end)
            beyond = '{"path":{"' + comparator + '":' + path + "}}"
            beside = '{"path":' + path + ',"name":{"' + last + '":' + name + "}}"
            wanted.append('"$and":[{"$or":[' + beyond + "," + beside + "]}]")
    fields: tuple[str, ...] = _PLAIN if criteria.plain else _NAMED if criteria.tagged else _FULL
    if not (criteria.plain or paged):
        fields += ("property",)
    include = ",".join(f'"{name}"' for name in fields)
    query = "items.find({" + ",".join(wanted) + "}).include(" + include + ")"
    return query + '.sort({"$asc":["path","name"]})' if paged else query


def same_content(sums: Checksums, repo: str, limit: int) -> str:
    """Return the query for artifacts with one of *sums*; *repo*: only there, unless empty.

    No properties are asked for: a limit would count rows joined with them (artifactory-rest 10.1).
    """
    fields = (("sha256", sums.sha256), ("actual_sha1", sums.sha1))
    any_of = ",".join("{" + f'"{name}":{_quoted(value)}' + "}" for name, value in fields if value)
    wanted = ['"type":"file"', f'"$or":[{any_of}]']
    if repo:
        wanted.append(f'"repo":{_quoted(repo)}')
    include = ",".join(f'"{name}"' for name in _PLAIN)
    return "items.find({" + ",".join(wanted) + "}).include(" + include + f").limit({limit})"


def _value(text: str) -> str:
    if "*" in text or "?" in text:
        return '{"$match":' + _quoted(text) + "}"
    return _quoted(text)


def is_expressible(key: Key) -> bool:
    """Whether queries can name an item."""
    return not any('"' in text or any(ord(letter) < 32 for letter in text) for text in key)


def _quoted(text: str) -> str:
    if '"' in text or any(ord(letter) < 32 for letter in text):
        raise InvalidName(f"{text!r:.100}: a query cannot hold quotes or control characters")
    return f'"{text}"'


def _moment(time_ns: int) -> str:
    moment = datetime.fromtimestamp(time_ns // 1_000_000_000, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{time_ns // 1_000_000 % 1000:03}Z"
