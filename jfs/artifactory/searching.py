"""Queries whose results are whole, however few rows the server gives at a time. Trio thread only.

A server trims results by a limit of its own, and says so in the answer's ``range`` only. Then the
items are asked for in pages, each of which begins after the last item of the one before, by path
and name: so an item that is added or removed meanwhile shifts no other. Properties are asked for
without ``sort`` and for a range of items at a time, since with them limits count one row for each
property (artifactory-rest 10.1). What cannot be had whole is an error.
"""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import trio

from jfs.artifactory import aql, pieces, wire
from jfs.artifactory.aql import Key
from jfs.artifactory.repositories import Repositories
from jfs.artifactory.rows import FoundRows, Hidden
from jfs.artifactory.session import Session
from jfs.errors import DeadlineExceeded, NotFound, ProtocolViolation
from jfs.model import Criteria, Match, Properties, RepoPath

log = logging.getLogger(__name__)

_ADDRESS = "/api/search/aql"
_MOST_PAGES = 5000
_TRIES = 2
_SLICE = 1000  # rows of a result at a time on the event loop: some milliseconds
_DEADLINES = 10  # how many deadlines of one request all pages together may take


@dataclass(frozen=True, slots=True)
class _Answer:
    """One answer.

    Attributes:
        cut: the server said that it trimmed it, or a limit that we did not set was reached.
        stated: how many rows it says it has.
    """

    rows: FoundRows
    cut: bool
    stated: int

    @property
    def trimmed(self) -> bool:
        return self.cut or self.rows.count < self.stated

    def has(self, keys: Iterable[Key]) -> bool:
        """Whether it is whole, if it ought to hold these items with their properties.

        A server may count the rows joined with properties, of which there are more than items.
        """
        if self.cut or not self.trimmed:
            return not self.cut
        return self.rows.joined >= self.stated and not set(keys).difference(self.rows.keys)


async def search(
    session: Session, repositories: Repositories, hidden: Hidden, criteria: Criteria
) -> Sequence[Match]:
    """See ``ArtifactStore.search``."""
    run = _Search(session)
    scope = criteria.scope
    if not scope.repo:
        await repositories.known()
    kept = (await repositories.kept(scope)).repo
    try:
        with trio.fail_after(session.settings.request_deadline_s * _DEADLINES):
            first = await run.ask(criteria, kept)
            found = [first.rows]
            if first.trimmed and scope.repo:
                found = await run.pages(criteria, kept, len(first.rows.keys))
            elif first.trimmed:
                found = []
                for repository in list((await repositories.known()).values()):
                    if repository.kind == "virtual":
                        continue  # its members are asked themselves
                    one = replace(criteria, scope=RepoPath(repository.key))
                    place = (await repositories.kept(one.scope)).repo
                    found += await run.pages(one, place, len(first.rows.keys))
    except trio.TooSlowError:
        raise DeadlineExceeded(f"{scope}: the pages of a query take too long") from None
    matches: dict[RepoPath, Match] = {}
    for rows in found:
        hidden.warn(f"a query in {scope or 'all repositories'}", rows)
        for position, each in enumerate(rows.matches):
            if position % _SLICE == _SLICE - 1:
                await trio.lowlevel.checkpoint()
            if (match := repositories.shown(each, scope)) is not None:
                matches.setdefault(match.info.path, match)
    return list(matches.values())


class _Search:
    """The requests of one search."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._asked = 0

    async def ask(
        self,
        criteria: Criteria,
        repo: str,
        *,
        after: Key | None = None,
        upto: Key | None = None,
        paged: bool = False,
    ) -> _Answer:
        """Ask once. Raises RemoteError, InvalidName."""
        self._asked += 1
        if self._asked > _MOST_PAGES:
            raise ProtocolViolation(
                f"{criteria.scope}: the server trims query results so far that "
                f"{_MOST_PAGES} requests do not bring them all"
            )
        query = aql.find(criteria, repo, after=after, upto=upto, paged=paged)
        rows, members = await pieces.read(
            self._session,
            "POST",
            _ADDRESS,
            "results",
            partial(FoundRows, named_only=criteria.tagged),
            content=query.encode(),
            repo=criteria.scope.repo,
        )
        if criteria.tagged and rows.odd:
            # Who asks for the properties of a folder takes what is not there for an item without.
            raise ProtocolViolation(f"{criteria.scope}: odd rows: {'; '.join(rows.reasons)}")
        return _read_range(members.get("range"), rows)

    async def pages(self, criteria: Criteria, repo: str, size: int) -> list[FoundRows]:
        """Ask for everything in pages.

        Args:
            size: how many items came when everything was asked for at once.
        """
        log.info("%s: the server trims a query: asking in pages", criteria.scope)
        for _ in range(_TRIES):
            pages, keys, stated = await self._pages(criteria, repo)
            if sum(rows.count for rows in pages) >= stated:
                break  # or items were removed meanwhile, or rows left out within a page
        else:
            raise _trims(criteria)
        if not criteria.plain:
            whole = await self._with_properties(criteria, repo, pages, keys, max(1, size))
            for rows in pages:
                rows.matches = [whole.get(match.info.path, match) for match in rows.matches]
        return pages

    async def _pages(self, criteria: Criteria, repo: str) -> tuple[list[FoundRows], list[Key], int]:
        """Return the pages, the items in the server's order, and how many it said there are."""
        pages: list[FoundRows] = []
        keys: dict[Key, None] = {}
        after: Key | None = None
        stated = 0
        while True:
            try:
                answer = await self.ask(criteria, repo, after=after, paged=True)
            except ProtocolViolation as error:
                if error.status is None:
                    raise
                raise _trims(criteria, f": {error}") from None  # refused: no sort, or no comparison
            pages.append(answer.rows)
            stated = stated or answer.stated
            new = [key for key in answer.rows.keys if key not in keys and aql.is_expressible(key)]
            keys.update(dict.fromkeys(new))
            if not answer.trimmed:
                return pages, list(keys), stated
            if not new:
                raise _trims(criteria)
            after = new[-1]

    async def _with_properties(
        self, criteria: Criteria, repo: str, pages: list[FoundRows], keys: list[Key], size: int
    ) -> dict[RepoPath, Match]:
        """Ask again, for a range of items at a time, with properties."""
        found: dict[RepoPath, Match] = {}
        after: Key | None = None
        position = 0
        while position < len(keys):
            some = keys[position : position + size]
            answer = await self.ask(criteria, repo, after=after, upto=some[-1])
            if answer.has(some):
                found.update({match.info.path: match for match in answer.rows.matches})
            elif len(some) > 1:
                size = len(some) // 2
                continue
            else:
                for match in _of(pages, some[0]):
                    properties = await self._properties(match.info.path)
                    found[match.info.path] = replace(match, properties=properties)
            after = some[-1]
            position += len(some)
        return found

    async def _properties(self, path: RepoPath) -> Properties:
        """Ask for the properties of one item, which the server trims in every query."""
        try:
            address = f"/api/storage{wire.encode_path(path)}?properties"
            return wire.parse_properties(wire.parse_json(await self._session.get(address), address))
        except NotFound:
            return {}


def _trims(criteria: Criteria, why: str = "") -> ProtocolViolation:
    return ProtocolViolation(
        f"{criteria.scope}: the server trims query results, and does not give the rest of them{why}"
    )


def _of(pages: Iterable[FoundRows], key: Key) -> list[Match]:
    """Return the rows of an item: several, where members of a virtual repository have it."""
    parts = [part for part in (*key[0].split("/"), key[1]) if part != "."]
    path = "/".join(parts)
    return [match for rows in pages for match in rows.matches if match.info.path.path == path]


def _read_range(document: Any, rows: FoundRows) -> _Answer:
    """Hold an answer against what its ``range`` says (artifactory-rest 10.1).

    ``total`` counts the rows of the answer; ``notification`` says that it was trimmed, ``limit`` to
    how many rows. We set no limit.
    """
    if not isinstance(document, dict):
        return _Answer(rows, False, 0)
    limit = _count(document, "limit")
    cut = bool(document.get("notification")) or (limit is not None and rows.joined >= limit)
    stated = max(
        _count(document, "total") or 0,
        (_count(document, "end_pos") or 0) - (_count(document, "start_pos") or 0),
    )
    return _Answer(rows, cut, stated)


def _count(document: dict[str, Any], field: str) -> int | None:
    value = document.get(field)
    if isinstance(value, str) and value.isascii() and value.isdigit():
        value = int(value[:18])
    return value if isinstance(value, int) and not isinstance(value, bool) else None
