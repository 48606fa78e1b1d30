"""Fill the cache before the first reader: composition root of ``jfs warm``, without a mount.

Bytes go from the server straight to the block store that the mounts of this node read from. Only
what is missing is fetched, so a second run goes on where the first one ended, and two runs (or a
run and a mount) share the work through the claims of the store.

Of a model some tensors can be chosen (``Selection``). What tells where they are is read first: an
index of shards, an ONNX model with its tensors beside it, the head of a file. Shards that hold none
of them are left alone.
"""

from collections.abc import AsyncGenerator, Iterable, Iterator, Sequence
from contextlib import aclosing

import trio

from jfs import interrupts, memory, threads
from jfs.artifactory import ArtifactoryClient, HttpRangeSource
from jfs.cache import DiskBlockStore
from jfs.cgroup import memory_limit
from jfs.config import CacheSettings, ServerSettings
from jfs.errors import JfsError, NotFound
from jfs.formats import Selection
from jfs.metrics import Metrics
from jfs.model import EntryInfo, FileInfo, FolderInfo, RepoPath
from jfs.packed import Packed
from jfs.warming.choosing import Chosen
from jfs.warming.running import Progress, Run, Warmed, piece_within

__all__ = ["Progress", "Warmed", "warm"]


def warm(
    server: ServerSettings,
    cache: CacheSettings,
    paths: list[RepoPath],
    *,
    verify: bool,
    found: Progress,
    advanced: Progress,
    selection: Selection | None = None,
) -> Warmed:
    """Bring every artifact at or below *paths* into the cache. Blocking: runs an event loop.

    One file that fails does not stop the others.

    Args:
        verify: hold each whole content against its digest afterwards.
        found: called with each file and its size, before it is fetched.
        advanced: called with bytes that are in the cache now, fetched or not.
        selection: of models only this. It is a failure if there is no model at or below one of
            *paths*, or none has such tensors: then nothing else is fetched there.
    Raises:
        ConfigError: the server cannot be used; nothing was fetched.
        CacheError: the cache cannot be used.
    """
    return interrupts.run(_run, server, cache, paths, verify, found, advanced, selection)


async def _run(
    server: ServerSettings,
    cache: CacheSettings,
    paths: list[RepoPath],
    verify: bool,
    found: Progress,
    advanced: Progress,
    selection: Selection | None,
) -> Warmed:
    metrics = Metrics()
    limited = await threads.on_disk(memory_limit)
    memory.follow(limited)
    store = await threads.on_disk(DiskBlockStore, cache, metrics)
    source = HttpRangeSource(server, metrics)
    result = Warmed()
    try:
        async with (
            threads.cut_when_cancelled(source.close),
            aclosing(ArtifactoryClient(server, metrics)) as client,
        ):
            await client.check()
            limit = trio.CapacityLimiter(server.connections)
            piece = piece_within(limited, server.connections)
            run = Run(store, source, limit, result, found, advanced, piece)
            for path in paths:
                folders = _folders(client, path, result)
                async with aclosing(folders):
                    if selection is not None:
                        await Chosen(client, run, selection, path).warm(folders)
                        continue
                    async for files in folders:
                        for info in files:
                            await run.file(info, verify=verify)
    finally:
        with trio.CancelScope(shield=True):
            await threads.on_disk(store.close)
    return result


async def _folders(
    client: ArtifactoryClient, path: RepoPath, result: Warmed
) -> AsyncGenerator[Iterable[FileInfo], None]:
    """Walk the artifacts at or below *path*, one listing a folder; a folder before those in it."""
    try:
        entry = await client.stat(path)
    except NotFound:
        result.failures.append((path, "no such file or folder on the server"))
        return
    except JfsError as error:
        result.failures.append((path, str(error)))
        return
    if isinstance(entry, FileInfo):
        yield [entry]
        return
    folders = [path]
    while folders:
        folder = folders.pop()
        try:
            entries = await client.list_children(folder)
        except JfsError as error:
            result.failures.append((folder, str(error)))
            continue
        if folder == path and not entries and not client.lists_all(path.repo):
            # A remote repository lists what it has cached: nothing of it is not nothing at all.
            result.failures.append((path, "nothing of it is cached on the server: name its files"))
        # Those of a packed folder are a million: as objects, sorted, they would be a gibibyte.
        ordered = entries if isinstance(entries, Packed) else sorted(entries, key=_path)
        yield _Files(ordered)
        below = [child.path for child in ordered if isinstance(child, FolderInfo)]
        folders += reversed(below)


class _Files:
    """Those of some entries that are files."""

    def __init__(self, entries: Sequence[EntryInfo]) -> None:
        self._entries = entries

    def __iter__(self) -> Iterator[FileInfo]:
        return (entry for entry in self._entries if isinstance(entry, FileInfo))


def _path(entry: EntryInfo) -> RepoPath:
    return entry.path
