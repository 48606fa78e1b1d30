"""Content that stands for the bytes of a staged file: the server has it, and this disk need not.

A copy inside a mount is made so (``vfs.files.copies``): nothing is fetched, and at its close the
server is told the digest. Who changes the file before that has the bytes brought, first
(``StagingFile.own``).

A file that is lent holds no byte of anybody's: where it is left behind, it is swept away.
"""

from typing import Protocol

from jfs.extents import Extent


class Lent(Protocol):
    """The first *size* bytes of a content. Trio thread only.

    Attributes:
        sha256: of all of the content.
        is_whole: whether those are all that it has.
    """

    @property
    def size(self) -> int: ...

    @property
    def sha256(self) -> str: ...

    @property
    def is_whole(self) -> bool: ...

    async def read(self, extent: Extent) -> bytes:
        """Return bytes; fewer only at the end. Raises RemoteError, IntegrityError."""

    def close(self) -> None:
        """Let go of it, once those that read have their bytes."""
