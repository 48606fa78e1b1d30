"""Where a mount writes: makes the files of which ``staging`` is. Blocking; any thread."""

import os
from collections.abc import Callable
from dataclasses import replace

from jfs import threads
from jfs.config import WriteSettings
from jfs.disk import read_at
from jfs.extents import Extent, MiB
from jfs.model import FileInfo, RepoPath
from jfs.protocols import BlockStore
from jfs.vfs.writing.hand import Hand
from jfs.vfs.writing.hashing import Blocks, RunningHash
from jfs.vfs.writing.journal import Entry, Journal
from jfs.vfs.writing.records import Record, State
from jfs.vfs.writing.room import Room
from jfs.vfs.writing.staging import StagingFile

# Each file is hashed by one at a time, at 1.3 GB/s with the SHA instructions of the processor, by
# OpenSSL without the interpreter's lock; more than so many files at a time wait for the network.
_MOST_HASHERS = 8
_PIECE = 1 * MiB


class StagingArea:
    """Where one mount writes: the journal, the threads that hash, and the settings.

    Args:
        server: URL of the service, for the records.
        store: the cache that will take what was uploaded; None: there is none.

    Attributes:
        grown: told once a file that was written in order reaches ``WriteSettings.overlap_from``,
            in the thread that writes.
    """

    def __init__(
        self, settings: WriteSettings, server: str, store: BlockStore | None = None
    ) -> None:
        self.settings = settings
        self.journal = Journal(settings.staging)
        self.journal.require_locks()
        self.server = server
        self.grown: Callable[[StagingFile], None] | None = None
        count = max(2, min(os.cpu_count() or 1, _MOST_HASHERS))
        self._hashers = threads.started(count, "jfs-hash")
        self._hand = Hand()
        self._blocks = Blocks(store.block_size, store.checksum) if store is not None else None
        self.room = Room(self.journal)

    def new(self, path: RepoPath, base: FileInfo | None, *, made: bool = False) -> StagingFile:
        """Make an empty file that belongs at *path*. Raises OSError.

        Args:
            base: what the server has there; None: nothing.
            made: the file is made here, and has no properties on the server.
        """
        entry = self.journal.create(
            Record(
                self.server,
                path,
                base=base.checksums.sha256 if base is not None else None,
                base_size=base.size if base is not None else 0,
                properties=self.settings.properties,
                made=made,
            )
        )
        return self._made(entry.file, entry)

    def successor(self, staged: StagingFile, size: int) -> StagingFile:
        """Make a file for newer content, which begins as the first *size* bytes of *staged*.

        Once it is PENDING nobody needs *staged* any more. Raises OSError.
        """
        assert staged.entry is not None
        record = replace(
            staged.entry.record,
            state=State.WRITING,
            supersedes=(staged.entry.name,),
            error="",
            sha256="",
            queued_ns=0,
            tries=0,
            next_ns=0,
            boot="",
            promised=None,
        )
        entry = self.journal.create(record)
        newer = self._made(entry.file, entry)
        newer.sent, newer.properties = set(staged.sent), staged.properties
        try:
            for piece in Extent(0, size).pieces(_PIECE):
                data = read_at(staged.file, piece.size, piece.start)
                if len(data) != piece.size:
                    raise OSError(f"a staged file ends at {piece.start + len(data)}, not at {size}")
                newer.write(piece.start, data)
        except BaseException:
            newer.forget_quietly()
            entry.close()
            raise
        return newer

    def resumed(self, entry: Entry, size: int) -> StagingFile:
        """Return what a mount that has ended left in the journal; *entry* is claimed."""
        staged = self._made(entry.file, entry, size)
        staged.sent = set(entry.record.sent)
        return staged

    def anonymous(self) -> StagingFile:
        """Make a file for content whose name is gone. Raises OSError."""
        return self._made(self.journal.anonymous(), None)

    def _made(self, file: int, entry: Entry | None, size: int = 0) -> StagingFile:
        running = RunningHash(self._hashers, file, self._blocks)
        staged = StagingFile(file, entry, running, self._hand, self.room, size)
        staged.grown, staged.grown_at = self.grown, self.settings.overlap_from
        return staged

    def close(self) -> None:
        """End the threads."""
        self._hashers.shutdown()
        self._hand.close()
