"""One order of everything that changes what is at a path: rename, unlink, create, upload.

A claim is a path, or a path with all that lies below it (a folder that is moved or removed). Two
claims conflict if a path is in both. Claims are granted in the order in which they were asked for,
and all claims of one task together; so there is no order to keep, nobody is overtaken for ever, and
no two tasks wait for each other. A task that holds claims cannot ask for more: that could deadlock,
and is an error.

Who holds claims may wait for the server (each request has a deadline), for this disk, and for the
lock of an open file, which whoever wants claims must not hold. It never waits for a notification of
the kernel, nor for a request of the kernel to be answered. Reading, looking up and listing take no
claims, so that nobody waits for an upload to read. Trio thread only.
"""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

from jfs.model import RepoPath


@dataclass(eq=False, slots=True)
class _Claims:
    """What one task holds or waits for; *waits_for* are those of others that come before."""

    paths: frozenset[RepoPath]
    trees: frozenset[RepoPath]
    granted: trio.Event = field(default_factory=trio.Event)
    waits_for: "set[_Claims]" = field(default_factory=set)

    def conflicts_with(self, other: "_Claims") -> bool:
        return (
            not self.paths.isdisjoint(other.paths)
            or any(_is_within(path, other.trees) for path in (*self.paths, *self.trees))
            or any(_is_within(path, self.trees) for path in (*other.paths, *other.trees))
        )


class PathLocks:
    """The claims of one mount; see the module."""

    def __init__(self) -> None:
        self._claims: dict[_Claims, None] = {}  # in the order in which they were asked for
        self._holders: set[trio.lowlevel.Task] = set()

    def __len__(self) -> int:
        return len(self._claims)

    @asynccontextmanager
    async def held(self, *paths: RepoPath, tree: bool = False) -> AsyncIterator[None]:
        """Hold claims while the block runs.

        Args:
            tree: and all that lies below each of *paths*.
        Raises:
            RuntimeError: the task holds claims already.
        """
        task = trio.lowlevel.current_task()
        if task in self._holders:
            raise RuntimeError(f"{', '.join(map(str, paths))}: claimed under other claims")
        given = frozenset(paths)
        claims = _Claims(frozenset(), given) if tree else _Claims(given, frozenset())
        # Not more than the requests of the kernel that are under way: a few hundred at most.
        claims.waits_for = {other for other in self._claims if claims.conflicts_with(other)}
        self._claims[claims] = None
        self._holders.add(task)
        try:
            if claims.waits_for:
                await claims.granted.wait()
            yield
        finally:
            self._holders.discard(task)
            del self._claims[claims]
            for other in self._claims:
                if claims in other.waits_for:
                    other.waits_for.discard(claims)
                    if not other.waits_for:
                        other.granted.set()


def _is_within(path: RepoPath, trees: frozenset[RepoPath]) -> bool:
    return bool(trees) and any(place in trees for place in _with_parents(path))


def _with_parents(path: RepoPath) -> Iterator[RepoPath]:
    while True:
        yield path
        if not path.repo:
            return
        path = path.parent
