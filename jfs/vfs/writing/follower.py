"""The seam between a staged file and who sends it while it is written."""

from typing import Protocol


class Follower(Protocol):
    """Who sends a file while it is written: see ``overlap``. Any thread, but for ``finish``."""

    def changed(self, start: int) -> None:
        """Bytes from *start* on were written, or cut off."""

    @property
    def has_ended(self) -> bool:
        """Whether nothing is sent any more that could be of use."""

    async def finish(self, size: int, sha256: str) -> bool:
        """Send the rest of what nobody writes any more; whether the server has it all then.

        Trio thread. Raises DiskHangs.
        """

    def give_up(self) -> None:
        """Nobody needs it any more."""
