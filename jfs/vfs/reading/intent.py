"""Who reads a file as a whole, and whether anybody waits for bytes. Trio thread only."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import trio

from jfs.extents import Extent, MiB
from jfs.model import RepoPath

if TYPE_CHECKING:
    from jfs.vfs.reading.reader import ContentReader

_PARTS = 64
# Whoever has asked for more has not looked at a header alone, nor at a few rows.
_BEYOND_HEAD, _BEYOND_HEAD_SHARE = 8 * MiB, 8
_QUIET_S = 0.02  # between two requests of one reader there is less, unless it computes


class Listener:
    """Who is told of one mount what becomes of its files; this one does nothing."""

    def opened(self, path: RepoPath) -> None:
        """It is opened to be read."""

    def goes_on(self, reader: "ContentReader") -> None:
        """More than a header was asked for."""

    def read(self, path: RepoPath) -> None:
        """Most of it was asked for."""

    def left(self, reader: "ContentReader") -> None:
        """Nobody reads it any more."""


class Intent(Listener):
    """Tells all who listen."""

    def __init__(self) -> None:
        self._listeners: list[Listener] = []

    def tell(self, listener: Listener) -> None:
        """Tell one more, from now on."""
        self._listeners.append(listener)

    def opened(self, path: RepoPath) -> None:
        for listener in self._listeners:
            listener.opened(path)

    def goes_on(self, reader: "ContentReader") -> None:
        for listener in self._listeners:
            listener.goes_on(reader)

    def read(self, path: RepoPath) -> None:
        for listener in self._listeners:
            listener.read(path)

    def left(self, reader: "ContentReader") -> None:
        for listener in self._listeners:
            listener.left(reader)


class Coverage:
    """How much of one file was asked for, each byte counted once, more or less.

    Args:
        told: called once, when that is three quarters.
        begun: called once, when that is more than a header.
    """

    def __init__(
        self, size: int, told: Callable[[], None], begun: Callable[[], None] | None = None
    ) -> None:
        self._step = -(-size // _PARTS)
        self._asked = [0] * _PARTS
        self._left = self._most = -(-size * 3 // 4)
        self._told = told
        self._begun = begun
        self._beyond = min(_BEYOND_HEAD, size // _BEYOND_HEAD_SHARE)

    def note(self, extent: Extent) -> None:
        """Note a READ."""
        if self._left <= 0:
            return
        for piece in extent.pieces(self._step):
            number = piece.start // self._step
            new = min(piece.size, self._step - self._asked[number])
            self._asked[number] += new
            self._left -= new
        if self._begun is not None and self.is_begun:
            begun, self._begun = self._begun, None
            begun()
        if self._left <= 0:
            self._told()

    @property
    def is_begun(self) -> bool:
        """Whether more than a header was asked for."""
        return self._most - self._left > self._beyond

    @property
    def is_most(self) -> bool:
        """Whether three quarters were."""
        return self._left <= 0


class Foreground:
    """Requests for bytes that somebody waits for, or will soon; the context of each."""

    def __init__(self) -> None:
        self._count = 0
        self._begun = 0
        self._seen = 0
        self._waiting = trio.lowlevel.ParkingLot()

    def __enter__(self) -> None:
        self._count += 1
        self._begun += 1

    def __exit__(self, *error: object) -> None:
        self._count -= 1
        if not self._count:
            self._waiting.unpark_all()

    async def idle(self) -> None:
        """Return when there have been none for a while, and no new ones since this returned."""
        while True:
            while self._count:
                await self._waiting.park()
            if self._seen == self._begun:
                return
            self._seen = self._begun
            await trio.sleep(_QUIET_S)
