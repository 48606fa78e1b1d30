"""What is learnt, and what is known. Times are ns since the epoch. Pure."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Generic, NamedTuple, Protocol, TypeVar

from jfs.model import EntryInfo, Properties, RepoPath

_T = TypeVar("_T")


class Known(NamedTuple, Generic[_T]):
    """What the server said, and when (ns since the epoch)."""

    value: _T
    at_ns: int


class Entries(Protocol):
    """Entries that are made as they are looked at, perhaps a million. Any thread."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[EntryInfo]: ...


@dataclass(frozen=True, slots=True)
class Listed:
    """All that is in a folder."""

    folder: RepoPath
    at_ns: int
    entries: Entries


@dataclass(frozen=True, slots=True)
class Named:
    """What one name is; None: nothing has it."""

    path: RepoPath
    at_ns: int
    info: EntryInfo | None


@dataclass(frozen=True, slots=True)
class Tagged:
    """Properties by name of entries of a folder; None: not known any more."""

    folder: RepoPath
    at_ns: int
    properties: Mapping[str, Properties | None]


@dataclass(frozen=True, slots=True)
class Moved:
    """An entry has another place, with all that is below; *info* is it there."""

    source: RepoPath
    at_ns: int
    info: EntryInfo


@dataclass(frozen=True, slots=True)
class Answered:
    """An answer that is about no folder alone. *key* says to what; *body* makes a text of it."""

    key: str
    at_ns: int
    body: Callable[[], str]


@dataclass(frozen=True, slots=True)
class Outdated:
    """Something was changed here: answers whose key begins so may be others now."""

    at_ns: int
    prefix: str


Learnt = Listed | Named | Tagged | Moved | Answered | Outdated
