"""How the changes of a staged file come to the disk: in a thread, or at once; one after the other.

A change that is given up, since the disk hangs, may take place later, but before any that comes
after it, or not at all.
"""

import errno
import threading
from collections.abc import Callable

from jfs import waiting
from jfs.errors import DiskHangs, is_of_the_disk
from jfs.vfs.writing.hand import Hand, Task
from jfs.vfs.writing.room import Room


class Changes:
    """Those of one file. Trio thread, except where it says otherwise.

    Args:
        room: makes some, where the disk is full; the change is tried once more then.
    """

    def __init__(self, hand: Hand, room: Room) -> None:
        self._hand = hand
        self._room = room
        self._changing = threading.Lock()
        self._given_up = 0

    @property
    def is_free(self) -> bool:
        """Whether ``at_once`` would be over at once, as far as is known."""
        return self._hand.is_free and not waiting.may_hang()

    @property
    def is_busy(self) -> bool:
        """Whether one is under way, such as one that was given up. Any thread."""
        return self._changing.locked()

    async def make(self, call: Callable[..., None], *args: object) -> None:
        """Call it in a thread. Raises what it raises; DiskHangs."""
        await self._done(self._prepared(call, *args))

    def at_once(self, call: Callable[..., None], *args: object) -> Task | None:
        """As ``make``, while the event loop waits; only if it ``is_free``.

        Returns:
            None: it is over. A task: the disk takes longer, and ``end_of`` tells.
        """
        return self._hand.do(self._prepared(call, *args))

    async def end_of(self, task: Task, size: int) -> None:
        """Return once what was begun at once is over. Raises as ``make``."""
        await self._done(task.wait, size)

    def after_all(self, call: Callable[[], None]) -> None:
        """Call it once none is under way. Blocking; any thread."""
        with self._changing:
            call()

    async def _done(self, change: Callable[[], None], size: int = 0) -> None:
        try:
            await waiting.on_disk(change, size=size)
        except DiskHangs:
            self._given_up += 1
            raise

    def _prepared(self, call: Callable[..., None], *args: object) -> Callable[[], None]:
        number = self._given_up

        def change() -> None:
            with self._changing:
                if number != self._given_up:
                    raise OSError(errno.EIO, "was given up before it began")
                try:
                    call(*args)
                except OSError as error:
                    if not is_of_the_disk(error) or not self._room.make():
                        raise
                    call(*args)

        return change
