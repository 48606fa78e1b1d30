"""What an open content asks of the store that it belongs to."""

from typing import Protocol

from jfs.cache.files import EntryFiles, Holder
from jfs.cache.filesystem import Abilities
from jfs.metrics import Metrics
from jfs.model import ContentKey


class Shelf(Protocol):
    """What a content asks of the store that it belongs to. Any thread."""

    abilities: Abilities
    metrics: Metrics
    block_size: int

    def open_files(self, content: ContentKey, *, wait: bool) -> EntryFiles:
        """Open the entry, made if need be.

        Args:
            wait: for who has the entry locked, and is removing it.
        Raises:
            OSError, CacheError: it cannot be opened.
        """

    def opened(self, content: Holder) -> None:
        """Its files are open."""

    def closed(self, content: Holder) -> None:
        """Its files are closed."""

    def room(self, size: int) -> bool:
        """Whether so many bytes more may be written; if so, ``written`` follows."""

    def written(self, size: int) -> None:
        """The room of a call of ``room`` has been used, or is not wanted."""

    def failed(self, error: OSError) -> None:
        """The disk refused."""

    def worked(self) -> None:
        """The disk took what was written."""

    def completed(self, content: ContentKey) -> None:
        """The last block that was missing may have been published."""

    def may_hold(self, count: int) -> bool:
        """Whether so many more may be kept open; if so they are counted. -1: one is let go."""

    def used(self, entry: int) -> None:
        """Note that the entry of this map is used now, for eviction. Never raises."""
