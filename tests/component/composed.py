"""The filesystem facade on a real server, as a mount composes it, without a kernel."""

import math
import stat
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import trio

from jfs.artifactory import ArtifactoryClient, HttpRangeSource
from jfs.cache import DiskBlockStore, Notes
from jfs.config import (
    CacheSettings,
    Credentials,
    ReadSettings,
    Secret,
    ServerSettings,
    TreeSettings,
    WriteSettings,
)
from jfs.extents import Extent
from jfs.metrics import Metrics
from jfs.model import FolderInfo, RepoPath
from jfs.native.replies import Replies
from jfs.server import EmbeddedServer
from jfs.vfs.filesystem import Filesystem
from jfs.vfs.kept.keeper import FORGETFUL, Keeper
from jfs.vfs.kernel import BackingFiles, Notifier
from jfs.vfs.namespace.inodes import ROOT
from jfs.vfs.reading.following import Following
from jfs.vfs.reading.reader import DataPlane
from jfs.vfs.reading.recall import Recall
from jfs.vfs.reading.scattered import Asker
from jfs.vfs.writing.area import StagingArea

# Patience longer than any test: what a loaded machine is slow at does not stand in.
TREE = TreeSettings(uid=1, gid=2, entry_ttl_s=60, attr_ttl_s=60, negative_ttl_s=5, patience_s=600)


def server_settings(
    server: EmbeddedServer,
    deadline_s: float = 60,
    token: str | None = None,
    idle_s: float = 30,
    patience_s: float | None = None,
) -> ServerSettings:
    credentials = Credentials(token=Secret(token or server.token))
    settings = ServerSettings(
        server.url, credentials, request_deadline_s=deadline_s, idle_timeout_s=idle_s
    )
    if patience_s is None:
        return settings
    return replace(settings, retries_s=patience_s, jobs_retries_s=patience_s)


@asynccontextmanager
async def composed(
    server: EmbeddedServer,
    source: str,
    *,
    store: DiskBlockStore | None = None,
    tree: TreeSettings = TREE,
    deadline_s: float = 60,
    idle_s: float = 30,
    patience_s: float | None = None,
    writes: WriteSettings | None = None,
    read_only: bool = False,
    token: str | None = None,
    notifier: Notifier | None = None,
    metrics: Metrics | None = None,
    kept: Keeper | None = None,
    backings: BackingFiles | None = None,
    begins: bool = True,
    notes: Notes | None = None,
    reads: ReadSettings | None = None,
    asker: Asker | None = None,
    replies: Replies | None = None,
) -> AsyncIterator[Filesystem]:
    """Run the filesystem of *source*, ``repo/path`` or empty for every repository.

    It stages what is written in a temporary directory, unless *writes* says where and how. Unless
    it *begins* with the server, it does with what *kept* knows. It asks again what fails, for
    *patience_s*; what is silent is waited for as *deadline_s* and *idle_s* say.
    """
    settings = server_settings(server, deadline_s, token, idle_s, patience_s)
    ranges = HttpRangeSource(settings, Metrics())
    async with AsyncExitStack() as stack:
        temporary = stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
        client = await stack.enter_async_context(aclosing(ArtifactoryClient(settings, Metrics())))
        nursery = await stack.enter_async_context(trio.open_nursery())
        area = None
        if not read_only:
            where = writes or WriteSettings(Path(temporary) / "staging")
            area = StagingArea(where, server.url, store)
            stack.callback(area.close)
        if kept is not None:
            stack.push_async_callback(kept.close)
            kept.comes_first = not begins
            client.remember(await kept.known_repositories(), kept.repositories)
        if begins:
            await client.check()
            await client.repositories()
        plane = DataPlane(
            ranges,
            store,
            replace(reads or ReadSettings(), far_s=math.inf),  # however slow the machine
            metrics or Metrics(),
            nursery,
            fetches=2,
            locate=client.locate,
        )
        if asker is not None:
            plane.scattered.tell(asker)
        if store is not None:
            store.when_rejected(plane.beside.pause)
        recall = Recall(notes, plane.disk, nursery, server.url)
        await recall.load()
        Following(plane, recall)
        root = FolderInfo(RepoPath.parse(source), 0)
        filesystem = Filesystem(
            client,
            plane,
            tree,
            root,
            address=server.url,
            area=area,
            notifier=notifier,
            kept=kept or FORGETFUL,
            backings=backings,
        )
        plane.beside.tell(replies)
        await filesystem.behind.resume()
        yield filesystem
        await filesystem.close()
    ranges.close()


def block_store(directory: Path) -> DiskBlockStore:
    return DiskBlockStore(CacheSettings(directory, free_floor_bytes=0), Metrics())


async def close(filesystem: Filesystem, handle: int) -> None:
    """Close as the kernel does: it releases the handle whatever FLUSH says. Raises that."""
    try:
        await filesystem.flush(handle)
    finally:
        await filesystem.release(handle)


async def find(filesystem: Filesystem, path: str) -> int:
    """Walk to *path* as the kernel does, through links; return the inode number."""
    trail = [ROOT]
    waiting = [part for part in reversed(path.split("/")) if part]
    while waiting:
        attributes = await filesystem.lookup(trail[-1], waiting.pop())
        if stat.S_ISLNK(attributes.mode):
            target = await filesystem.readlink(attributes.ino)
            waiting += reversed(target.split("/"))
        else:
            trail.append(attributes.ino)
    return trail[-1]


async def names(filesystem: Filesystem, path: str) -> dict[str, int]:
    """List a folder: names and inode numbers."""
    handle = await filesystem.opendir(await find(filesystem, path))
    found: dict[str, int] = {}
    position = 0
    while entries := filesystem.readdir(handle, position):
        for name, attributes, position in entries:  # noqa: B007 - the next position
            filesystem.remember(attributes.ino)
            found[name] = attributes.ino
    filesystem.releasedir(handle)
    return found


async def content(filesystem: Filesystem, path: str) -> bytes:
    handle = (await filesystem.open(await find(filesystem, path), 0)).handle
    got = bytearray()
    while data := await filesystem.read(handle, Extent(len(got), len(got) + 256 * 1024)):
        got += data
    await filesystem.release(handle)
    return bytes(got)
