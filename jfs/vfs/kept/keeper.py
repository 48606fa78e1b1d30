"""The keeper of one mount: notes what is learnt, and finds what was known.

Noting is cheap and waits for nothing; what was noted is written every few seconds, and at the end
of the mount. A disk that fails or hangs costs what is kept, never an answer. Trio thread only.
"""

import json
import logging
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final, TypeVar

import trio

from jfs import directories, memory, threads
from jfs.clocks import boot_time
from jfs.config import Credentials
from jfs.errors import CacheError, ConfigError
from jfs.extents import MiB
from jfs.model import EntryInfo, Properties, RepoPath, Repository
from jfs.vfs.freshness import Asked
from jfs.vfs.kept import identity, rows
from jfs.vfs.kept.database import SUFFIX, Database, remove
from jfs.vfs.kept.learnt import (
    Answered,
    Entries,
    Known,
    Learnt,
    Listed,
    Moved,
    Named,
    Outdated,
    Tagged,
)

log = logging.getLogger(__name__)

_T = TypeVar("_T")

_FOLDER = "metadata"  # in the cache directory
_TOGETHER = 1024 * MiB  # databases of all sources; what was not used for longest goes first
# What was learnt is written this long after, and no more than a fifth of the time is for writing.
_EVERY_S, _SHARE = 2.0, 4
_AFTER_FAILURE_S = 30.0
_PATIENCE_S = 10.0
_HANGS = "what an earlier mount knew cannot be read in time: its disk hangs"
# A transaction that is under way.
_STOPS_WITHIN_S = 1.0
_END_S = 5.0
# Entries that wait to be written. They are in memory anyway while somebody looks at them; but when
# memory is tight they would be what is left of them as objects.
_MOST_WAITING, _WORTH_SHEDDING = 500_000, 10_000
_SEARCHES, _REPOSITORIES = "search ", "repositories"


class Forgetful:
    """A keeper that keeps nothing, and knows nothing: where there is no disk for it.

    Attributes:
        comes_first: the server could not be asked when the mount began, nor since: look here before
            it is asked for what is not known.
    """

    comes_first = False

    def listed(self, folder: RepoPath, entries: Entries, asked: Asked) -> None:
        """Note all that is in a folder."""

    def named(self, path: RepoPath, info: EntryInfo | None, asked: Asked) -> None:
        """Note what a name is; None: nothing has it."""

    def tagged(
        self, folder: RepoPath, properties: Mapping[str, Properties | None], asked: Asked
    ) -> None:
        """Note properties by name of entries of a folder; None: they are not known any more."""

    def moved(self, source: RepoPath, info: EntryInfo) -> None:
        """Note that this mount has moved an entry, with all below; *info* is it there."""

    def searched(self, key: str, entries: Sequence[EntryInfo], asked: Asked) -> None:
        """Note what a search found. *key* says what was searched for."""

    def changed(self) -> None:
        """Note that this mount has changed something: what searches found is not known now."""

    def repositories(self, found: Sequence[Repository]) -> None:
        """Note which repositories the server has."""

    def doubts(self) -> bool:
        """Whether ``comes_first``."""
        return self.comes_first

    async def listing(self, folder: RepoPath) -> tuple[Sequence[EntryInfo], Asked] | None:
        """Return all that is in a folder; None: it is not known."""
        return None

    async def name(
        self, path: RepoPath, *, lists_all: bool
    ) -> tuple[EntryInfo | None, Asked] | None:
        """Return what a name is, None in it if the server had no such name; None: not known.

        Args:
            lists_all: whether a name that was in no listing was not there.
        """
        return None

    async def properties(self, path: RepoPath) -> tuple[Properties, Asked] | None:
        """Return the properties of an entry; None: they are not known."""
        return None

    async def search(self, key: str) -> tuple[Sequence[EntryInfo], Asked] | None:
        """Return what a search found; None: it is not known."""
        return None


FORGETFUL: Final = Forgetful()


class Keeper(Forgetful):
    """See the module.

    Args:
        directory: of the block cache; what is kept lies in a private folder of it.
        server: URL of the service.
        source: what is mounted of it.
        patience_s: how long an answer waits for the disk.
    """

    def __init__(
        self,
        directory: Path,
        server: str,
        source: RepoPath,
        credentials: Credentials,
        patience_s: float = _PATIENCE_S,
    ) -> None:
        self._directory = directory
        self._server = server
        self._source = source
        self._credentials = credentials
        self._user: str | None = None
        self._database: Database | None = None
        self._waiting: list[Learnt | None] = []
        self._places: dict[object, int] = {}  # of what a later answer replaces
        self._weight = 0
        self._something = trio.Event()
        self._saving = trio.Lock()
        self._failed_at = 0.0
        self._said: str | None = None
        self._hangs_until = -math.inf
        self._patience_s = patience_s

    # noting

    def listed(self, folder: RepoPath, entries: Entries, asked: Asked) -> None:
        self._note((Listed, folder), Listed(folder, _moment(asked), entries))

    def named(self, path: RepoPath, info: EntryInfo | None, asked: Asked) -> None:
        self._note((Named, path), Named(path, _moment(asked), info))

    def tagged(
        self, folder: RepoPath, properties: Mapping[str, Properties | None], asked: Asked
    ) -> None:
        names = next(iter(properties)) if len(properties) == 1 else None
        self._note((Tagged, folder, names), Tagged(folder, _moment(asked), properties))

    def moved(self, source: RepoPath, info: EntryInfo) -> None:
        self._note(None, Moved(source, _moment(Asked.now()), info))
        self._places.clear()  # what comes from here on is about other places

    def searched(self, key: str, entries: Sequence[EntryInfo], asked: Asked) -> None:
        def body() -> str:
            return json.dumps([rows.entry_to_json(info) for info in entries])

        self._note((Answered, key), Answered(_SEARCHES + key, _moment(asked), body))

    def changed(self) -> None:
        self._note(Outdated, Outdated(_moment(Asked.now()), _SEARCHES))

    def repositories(self, found: Sequence[Repository]) -> None:
        def body() -> str:
            return json.dumps([[row.key, row.kind, row.package_type, row.url] for row in found])

        self._note(_REPOSITORIES, Answered(_REPOSITORIES, _moment(Asked.now()), body))

    def _note(self, place: object, learnt: Learnt) -> None:
        if place is not None:
            before = self._places.get(place)
            if before is not None:
                self._weight -= _weight(self._waiting[before])
                self._waiting[before] = None
            self._places[place] = len(self._waiting)
        self._waiting.append(learnt)
        self._weight += _weight(learnt)
        if self._weight > _MOST_WAITING or (
            self._weight > _WORTH_SHEDDING and _weight(learnt) > 2 and memory.is_tight()
        ):
            self._shed()
        self._something.set()

    def _shed(self) -> None:
        """Forget what is only learnt, and not changed here: the next answer says it again."""
        self._waiting = [each for each in self._waiting if each and _weight(each) <= 1]
        self._places.clear()
        self._weight = len(self._waiting)

    # writing

    async def run(self) -> None:
        """Write what is noted, until cancelled."""
        while True:
            await self._something.wait()
            await trio.sleep(_EVERY_S)
            began = trio.current_time()
            saved = await self.save()
            took_s = trio.current_time() - began
            await trio.sleep(took_s * _SHARE if saved else _AFTER_FAILURE_S)

    async def save(self, *, within_s: float = float("inf")) -> bool:
        """Write what is noted now; False: it could not be written, and is tried again.

        Cancellation: what is not written by then is noted still.
        """
        async with self._saving:
            waiting = [each for each in self._waiting if each is not None]
            self._waiting, self._something = [], trio.Event()
            self._places.clear()
            self._weight = 0
            if not waiting:
                return True
            stopped = threading.Event()
            # Its end is waited for, as what it has written must not be noted again; not for ever.
            writing = trio.CancelScope(shield=True)

            def stop() -> None:
                stopped.set()
                writing.deadline = trio.current_time() + _STOPS_WITHIN_S

            try:
                with trio.move_on_after(within_s):
                    async with threads.cut_when_cancelled(stop):
                        with writing:
                            await threads.keeping(self._save, waiting, stopped.is_set)
                if writing.cancelled_caught:
                    waiting.clear()  # nobody knows
            except CacheError as error:
                self._complain(error)
                waiting[:] = [each for each in waiting if _weight(each) <= 1]
            finally:
                self._return(waiting)
            return not waiting

    def _return(self, left: Sequence[Learnt]) -> None:
        """Note again what was not written, before what was noted since."""
        if left:
            self._waiting[:0] = left
            self._places.clear()
            self._weight = sum(map(_weight, self._waiting))
            self._something.set()

    async def close(self) -> None:
        """Write what is noted, for some seconds at most; for the end of the mount."""
        with trio.CancelScope(shield=True):
            await self.save(within_s=_END_S)

    def authenticate(self, credentials: Credentials) -> None:
        """Note that the mount uses other credentials from now on."""
        self._credentials = credentials

    def _save(self, waiting: list[Learnt], stop: Callable[[], bool]) -> None:
        """Write *waiting*, and take out of it what is written. Blocking. Raises CacheError."""
        wall, boot = time.time_ns(), int(boot_time() * 1e9)
        # Noted by the clock that nobody sets; kept by that which the next boot has too.
        learnt = [replace(each, at_ns=wall - max(0, boot - each.at_ns)) for each in waiting]
        before = self._user
        database = self._found()
        if before is not None and self._user != before:
            waiting.clear()  # the token became another user's: nobody knows whose answers these are
            return
        database.save(learnt, stop, lambda count: waiting.__delitem__(slice(count)))

    def _found(self) -> Database:
        """Return the database of who authenticates now. Blocking. Raises CacheError."""
        user = identity.user_of(self._credentials)
        if self._database is None or user != self._user:
            directory = _made(self._directory)
            try:
                key = identity.key_in(directory)
            except OSError as error:
                raise CacheError(f"{directory}: {error.strerror}") from None
            name = identity.name_of(key, self._server, self._source, user)
            if self._database is not None:
                self._database.close()
            self._database, self._user = Database(directory / f"{name}{SUFFIX}"), user
            _make_room(directory, self._database.file)
        return self._database

    def _complain(self, error: CacheError) -> None:
        # Not a warning: all goes on, and what is wrong with the disk the cache says.
        if str(error) != self._said:
            log.info("what the server said is not kept for a later start: %s", error)
        self._said = str(error)

    # finding

    async def listing(self, folder: RepoPath) -> tuple[Sequence[EntryInfo], Asked] | None:
        return _restored(await self._find(lambda known: known.listing(folder)))

    async def name(
        self, path: RepoPath, *, lists_all: bool
    ) -> tuple[EntryInfo | None, Asked] | None:
        return _restored(await self._find(lambda known: known.name(path, lists_all=lists_all)))

    async def properties(self, path: RepoPath) -> tuple[Properties, Asked] | None:
        return _restored(await self._find(lambda known: known.properties(path)))

    async def search(self, key: str) -> tuple[Sequence[EntryInfo], Asked] | None:
        def find(database: Database) -> Known[list[EntryInfo]] | None:
            known = database.answer(_SEARCHES + key)
            if known is None:
                return None
            found = [rows.entry_from_json(values) for values in json.loads(known.value)]
            return Known(found, known.at_ns)

        return _restored(await self._find(find))

    async def known_repositories(self) -> Sequence[Repository]:
        """Return the repositories that the server had; none if that is not known."""

        def find(database: Database) -> Known[list[Repository]] | None:
            known = database.answer(_REPOSITORIES)
            if known is None:
                return None
            return Known([Repository(*map(str, row)) for row in json.loads(known.value)], 0)

        found = await self._find(find)
        return found.value if found is not None else []

    async def last_at(self) -> float | None:
        """Return when something was confirmed last, as Unix time; None: nothing is known."""

        def find(database: Database) -> Known[None] | None:
            last = database.last_ns()
            return Known(None, last) if last is not None else None

        found = await self._find(find)
        return found.at_ns / 1e9 if found is not None else None

    async def _find(self, find: Callable[[Database], Known[_T] | None]) -> Known[_T] | None:
        """Look something up; None: it is not known, or cannot be read, or not in time."""

        def found() -> Known[_T] | None:
            return find(self._found())

        if trio.current_time() < self._hangs_until:
            return None
        with trio.move_on_after(self._patience_s):
            await self.save()  # a change that is not written yet is known all the same
            try:
                return await threads.keeping(found)
            except CacheError as error:
                log.debug("not known: %s", error)
                return None
        self._hangs_until = trio.current_time() + _AFTER_FAILURE_S
        if self._said != _HANGS:
            log.info("%s", _HANGS)
        self._said = _HANGS
        return None


def _restored(known: Known[_T] | None) -> tuple[_T, Asked] | None:
    return (known.value, Asked.restored(known.at_ns / 1e9)) if known is not None else None


def _moment(asked: Asked) -> int:
    return int(asked.confirmed * 1e9)


def _weight(learnt: Learnt | None) -> int:
    match learnt:
        case None:
            return 0
        case Listed(_, _, entries):
            return 2 + len(entries)
        case Tagged(_, _, properties):
            return len(properties)
        case Answered():
            return 2
    return 1


def _made(cache: Path) -> Path:
    """Return the private directory of all databases. Raises CacheError."""
    try:
        return directories.private(directories.private(cache) / _FOLDER)
    except ConfigError as error:
        raise CacheError(str(error)) from None


def _make_room(directory: Path, ours: Path) -> None:
    """Remove databases that were not used for longest, if all together are too large."""
    found = []
    try:
        for path in directory.glob(f"*{SUFFIX}"):
            status = path.stat()
            found.append((path == ours, status.st_mtime, status.st_size, path))
    except OSError:
        return
    together = sum(size for _, _, size, _ in found)
    for is_ours, _, size, path in sorted(found):
        if together <= _TOGETHER or is_ours:
            return
        log.info("%s: metadata of another source, not used for longest, make room", path)
        remove(path)
        together -= size
