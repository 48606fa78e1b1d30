"""What the journal is told of a file whose upload waits: all that the next mount needs for it."""

import time
from collections.abc import Iterable
from contextlib import suppress

import trio

from jfs import waiting
from jfs.clocks import boot_id
from jfs.model import FileInfo
from jfs.vfs.files.openfile import OpenFile
from jfs.vfs.writing.records import State
from jfs.vfs.writing.staging import StagingFile

_LEAVING_S = 5.0
_SYNCS = 8  # at a time: a file system does several in one go


def digest_of(base: FileInfo | None) -> str | None:
    """Return the digest that the journal notes as what the server had."""
    return base.checksums.sha256 if base is not None else None


def promise(file: OpenFile) -> dict[str, object]:
    """Return what the next mount needs to upload a file as this one would."""
    inode, base = file.inode, file.base
    assert file.staged is not None
    assert file.staged.entry is not None
    properties = file.staged.entry.record.properties
    if inode.local:
        properties = {**properties, **(inode.properties or {})}
    return {
        "path": inode.path,
        "base": digest_of(base),
        "base_size": base.size if base is not None else 0,
        "made": inode.local,
        "properties": properties,
        "modified_ns": file.modified_ns,
        "sent": tuple(sorted(file.staged.sent)),
    }


def keep_promise(staged: StagingFile, promised: dict[str, object], *, durable: bool) -> None:
    """Note that a staged file is to be uploaded. Blocking. Raises OSError.

    Args:
        promised: see ``promise``.
        durable: all of it is on disk then; else it is safe as long as the machine runs.
    """
    entry = staged.entry
    assert entry is not None
    boot = "" if durable else boot_id()
    if not boot:
        entry.sync_data()
    fresh = {"error": "", "queued_ns": time.time_ns(), "tries": 0, "next_ns": 0, "promised": None}
    entry.update(state=State.PENDING, boot=boot, **fresh, **promised)
    staged.promised()
    staged.is_soft = bool(boot)


async def leave(files: Iterable[OpenFile]) -> None:
    """Let what waits survive the end of the machine, too, which often is that of a mount.

    What this disk does not take within a few seconds is as safe as it was. Never raises. Trio
    thread.
    """
    entries = [file.staged.entry for file in files if file.is_pending and file.staged]
    soft = iter([each for each in entries if each is not None and each.record.boot])

    async def sync() -> None:
        for entry in soft:
            with suppress(OSError):
                await waiting.staging_disk().run(entry.make_durable)

    with trio.move_on_after(_LEAVING_S):
        async with trio.open_nursery() as nursery:
            for _ in range(_SYNCS):
                nursery.start_soon(sync)
