"""Uploads behind, as a mount sees them; and those that earlier mounts have left.

What they have queued is shown as if it had been closed here, and uploaded.

An entry of the journal that is PENDING belongs to whoever has its lock. The mount that queued it
holds that while it lives; afterwards the next mount that shows its place takes it over, at its
start, or now and then while it runs: mounts may share a staging directory.
"""

import logging
import os
from dataclasses import dataclass, replace

import trio

from jfs import waiting
from jfs.errors import disk_words
from jfs.model import Checksums, FileInfo
from jfs.vfs.files.openfile import OpenFile
from jfs.vfs.files.queue import QueueState
from jfs.vfs.files.table import OpenFiles
from jfs.vfs.files.writer import Writing
from jfs.vfs.kernel import KernelView, Remembered
from jfs.vfs.namespace.inodes import Inode
from jfs.vfs.namespace.local import STAGED
from jfs.vfs.namespace.tree import Tree, below
from jfs.vfs.questions import Questions
from jfs.vfs.writing.area import StagingArea
from jfs.vfs.writing.journal import Entry, Journal
from jfs.vfs.writing.records import State
from jfs.vfs.writing.recovery import NOT_WHOLE, digest, is_whole
from jfs.vfs.writing.undo import settled

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Left:
    """An entry that is ours now, when its data was written, and how much that is."""

    entry: Entry
    written_ns: int
    size: int


def _give_up(left: list[_Left]) -> None:
    """Let go of what was claimed: whoever wanted it has given up. Blocking."""
    for each in left:
        each.entry.close()


def _has_all(entry: Entry) -> bool:
    """Whether what was being uploaded is whole; if not, it is given up. Blocking."""
    try:
        if is_whole(entry.record, digest(entry.file)):
            return True
        entry.update(state=State.FAILED, error=NOT_WHOLE)
    except OSError as error:  # nothing else waits for it
        log.info("%s: cannot be looked at: %s", entry.record.path, disk_words(error))
    return False


def _is_settled(journal: Journal, entry: Entry) -> bool:
    """Make an entry what its mount has promised, on disk for good; False: not now. Blocking."""
    try:
        settled(journal, entry)
        if entry.record.boot:
            entry.make_durable()
    except OSError as error:  # nothing else waits for it
        log.warning("%s: cannot be put back yet: %s", entry.record.path, disk_words(error))
        return False
    return True


class Behind:
    """What is uploaded behind in one mount: see the module. Trio thread only.

    Args:
        writing: None: nothing can be written.
        questions: what looks now and then runs as long as they do.
    """

    def __init__(
        self,
        tree: Tree,
        files: OpenFiles,
        writing: Writing | None,
        kernel: KernelView,
        questions: Questions,
    ) -> None:
        self._tree = tree
        self._files = files
        self._writing = writing
        self._kernel = kernel
        self._questions = questions
        self._said = False  # that the journal cannot be looked at

    @property
    def state(self) -> QueueState:
        """What is being uploaded, behind or while ``close`` waits, and what waits."""
        if self._files.queue is None or self._writing is None:
            return QueueState()
        state, beside = self._files.queue.state(), self._files.beside()
        since = [each.entry.record.queued_ns for each in beside if each.entry is not None]
        if state.oldest_ns is not None:
            since.append(state.oldest_ns)
        return replace(
            state,
            pending=state.pending + len(beside),
            size=state.size + sum(each.size for each in beside),
            uploading=self._writing.deployer.active,
            oldest_ns=min(since, default=None),
        )

    def wake(self, repo: str = "") -> None:
        """Upload now what waits: of a repository that is up again; "" or no repository: all."""
        repo = "" if repo.startswith("/") else repo
        if self._files.queue is not None:
            self._files.queue.wake(repo)

    async def look(self) -> int:
        """Do what ``jfs recover`` asks for: drop what it names, upload the rest now.

        Returns:
            How many files wait.
        """
        if self._writing is None or self._files.queue is None:
            return 0
        journal = self._writing.area.journal
        ours = {}
        for file in self._files.queue.files():
            if file.staged is not None and file.staged.entry is not None:
                ours[file.staged.entry.name] = file, file.staged.entry
        for name in await waiting.on_disk(journal.unwanted, ours.keys()):
            await self._files.discard(*ours[name])  # newer may have taken its place meanwhile
        await self._take_over(self._writing)
        self.wake()
        return self.state.pending

    async def resume(self) -> None:
        """Take over what nobody has, now and then as well. This disk alone is asked."""
        if self._writing is not None:
            await self._take_over(self._writing)
            self._questions.run(self._now_and_then, self._writing)

    async def _now_and_then(self, writing: Writing) -> None:
        while True:
            await trio.sleep(writing.area.settings.adopt_s)
            await self._take_over(writing)

    async def _take_over(self, writing: Writing) -> None:
        try:
            left = await waiting.on_disk(self._claim, writing.area, late=_give_up)
        except OSError as error:
            level = logging.DEBUG if self._said else logging.WARNING  # it is looked at for ever
            log.log(level, "what earlier mounts left cannot be looked at: %s", disk_words(error))
            self._said = True
            return
        taken, self._said = 0, False
        for each in left:
            if self._show(each, writing):
                taken += 1
            else:
                each.entry.close()
        if taken:
            log.info("%d files of earlier mounts wait for their upload", taken)

    def _claim(self, area: StagingArea) -> list[_Left]:
        """Claim what is queued and nobody's, the oldest first. Blocking. Raises OSError."""
        found: dict[str, Entry] = {}
        try:
            return self._claim_into(found, area)
        except BaseException:
            for entry in found.values():  # whoever holds one keeps everybody from it
                entry.close()
            raise

    def _claim_into(self, found: dict[str, Entry], area: StagingArea) -> list[_Left]:
        root = self._tree.inodes.root.path
        for entry in area.journal.left_behind((State.PENDING, State.DEPLOYING)):
            record = entry.record
            # Closed while it replaced something that is queued: it is whole, and newer.
            closed = record.state is State.DEPLOYING and bool(record.supersedes)
            ours = record.server == area.server and bool(below(root, record.path))
            if ours and record.is_of_another_boot:
                entry.update(state=State.FAILED, error=NOT_WHOLE)
                ours = False
            if ours and (record.state is State.PENDING or (closed and _has_all(entry))):
                found[entry.name] = entry
            else:
                entry.close()
        for entry in list(found.values()):
            if entry.name in found and not _is_settled(area.journal, entry):
                found.pop(entry.name).close()
                continue
            if entry.record.state is State.DEPLOYING and entry.name in found:
                entry.sync_data()  # before what is on this disk goes for it
                entry.update(state=State.PENDING, queued_ns=entry.record.created_ns)
            for name in entry.record.supersedes:
                if (older := found.get(name)) is not None:
                    older.remove()
                    del found[name]
                    older.close()
        for name in area.journal.unwanted(found.keys()):  # told to a mount that has died since
            found[name].remove()
            found.pop(name).close()
        entries = sorted(found.values(), key=lambda entry: entry.record.queued_ns)
        seen = [(entry, os.fstat(entry.file)) for entry in entries]
        return [_Left(entry, status.st_mtime_ns, status.st_size) for entry, status in seen]

    def _show(self, left: _Left, writing: Writing) -> bool:
        """Make an entry the file at its path; False: its place is another's here. No checkpoint."""
        record = left.entry.record
        base = None
        if record.base is not None:
            base = FileInfo(record.path, record.base_size, Checksums(sha256=record.base), 0)
        modified_ns = record.modified_ns or left.written_ns
        info = FileInfo(record.path, 0, Checksums(), modified_ns)
        if base is not None and not record.made:
            info = base
        inode = self._tree.resumed(info, made=record.made, drop=self._drop)
        if inode is None:
            return False
        file = OpenFile(inode, info)
        file.staged = writing.area.resumed(left.entry, left.size)
        file.generation = file.tried = file.queued = 1
        file.modified_ns = record.modified_ns
        file.ours = True
        if record.made:
            file.replaces = base
            inode.properties = record.properties
        writing.attributes.set(
            inode, mtime_ns=modified_ns, ctime_ns=left.written_ns, content=STAGED
        )
        self._files.resumed(file)
        return True

    def _drop(self, parent: Inode, known: Inode) -> None:
        """Let the kernel look a name up again that is another inode's now."""
        self._kernel.drop_soon(Remembered([(parent.ino, known.name)], [known.ino]))
