"""Who reads a file as a whole, and whether anybody waits for bytes. Trio thread only."""

from collections.abc import Callable

import trio

from jfs.extents import Extent
from jfs.model import RepoPath

_PARTS = 64
_QUIET_S = 0.02  # between two requests of one reader there is less, unless it computes


class Intent:
    """Tells of one mount which files are opened to be read, and which are read to the most part."""

    def __init__(self) -> None:
        self.opened: Callable[[RepoPath], None] = _nobody
        self.read: Callable[[RepoPath], None] = _nobody

    def tell(self, opened: Callable[[RepoPath], None], read: Callable[[RepoPath], None]) -> None:
        """Have these called from now on."""
        self.opened, self.read = opened, read


class Coverage:
    """How much of one file was asked for, each byte counted once, more or less.

    Args:
        told: called once, when that is three quarters.
    """

    def __init__(self, size: int, told: Callable[[], None]) -> None:
        self._step = -(-size // _PARTS)
        self._asked = [0] * _PARTS
        self._left = -(-size * 3 // 4)
        self._told = told

    def note(self, extent: Extent) -> None:
        """Note a READ."""
        if self._left <= 0:
            return
        for piece in extent.pieces(self._step):
            number = piece.start // self._step
            new = min(piece.size, self._step - self._asked[number])
            self._asked[number] += new
            self._left -= new
        if self._left <= 0:
            self._told()


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


def _nobody(_: RepoPath) -> None:
    pass
