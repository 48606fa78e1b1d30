"""How a mount begins: it asks the server for what it shows, waits for it, or begins with what is
known from an earlier mount. Trio thread only.
"""

import contextlib
import logging
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass

import trio

from jfs.artifactory import ArtifactoryClient
from jfs.config import MountSettings
from jfs.errors import ConfigError, JfsError, NotFound, NotReachable
from jfs.model import FileInfo, FolderInfo, RepoPath
from jfs.mount import supervisor
from jfs.vfs.freshness import OUTAGES, Asked
from jfs.vfs.kept.keeper import Keeper

log = logging.getLogger(__name__)

# With something to begin with, the server is waited for no longer.
_PATIENCE_S = 5.0
# Between two tries; the next one comes anywhere up to that, so that a thousand nodes that boot at
# once do not ask at once.
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.5, 10.0
_HEAL_WAIT_S = 3.0
_SAY_EVERY_S = 60.0
# A supervisor is told so often to be patient for a while longer; a try may take as long as its
# deadlines, one after the other.
_EXTEND_S = 180.0


@dataclass(frozen=True, slots=True)
class Begun:
    """What a mount begins with.

    Attributes:
        known_at: when the server was last known to have said so (Unix time); None: a moment ago.
    """

    root: FolderInfo
    known_at: float | None = None


async def begin(client: ArtifactoryClient, settings: MountSettings, keeper: Keeper) -> Begun:
    """Find out what the mount shows.

    Raises:
        ConfigError: what is wrong and what to do.
    """
    known = await _known(settings, keeper)
    if known is None:
        return Begun(await _waited_for(client, settings, keeper))
    why = f"{settings.server.url}: does not answer within {_PATIENCE_S:.0f} s"
    try:
        with trio.move_on_after(_PATIENCE_S):
            return Begun(await ask(client, settings, keeper))
    except NotReachable as error:
        why = str(error)
    client.remember(await keeper.known_repositories(), keeper.repositories)
    keeper.comes_first = True
    log.warning("starting with what was known at %s: %s", _shown(known.known_at), why)
    return known


async def begin_offline(settings: MountSettings, keeper: Keeper) -> Begun:
    """Find out what the mount shows without asking. Raises ConfigError: nothing is known."""
    known = await _known(settings, keeper)
    if known is None:
        raise ConfigError(
            f"--offline: nothing is known of {settings.shown_source} from an earlier mount with "
            "this cache and these credentials: mount it once without --offline"
        )
    keeper.comes_first = True
    log.info("offline: shows what was known at %s, and asks nobody", _shown(known.known_at))
    return known


async def heal(client: ArtifactoryClient, settings: MountSettings, keeper: Keeper) -> None:
    """Find out when the server can be asked that could not be at the start, and what it says."""
    said = ""
    for wait_s in _waits(_HEAL_WAIT_S):
        await trio.sleep(wait_s)
        try:
            await ask(client, settings, keeper)
        except NotReachable:
            continue
        except ConfigError as error:  # it answers, and refuses: what is known stands in no more
            if str(error) != said:
                log.error("%s", error)
            said = str(error)
            continue
        keeper.comes_first = False
        log.info("%s: answers; what is shown is asked for anew", settings.server.url)
        return


async def ask(client: ArtifactoryClient, settings: MountSettings, keeper: Keeper) -> FolderInfo:
    """Ask the server for the folder to mount.

    Raises:
        NotReachable: nobody can be asked now.
        ConfigError: what is wrong and what to do.
    """
    path = settings.source.path
    await client.check(path)
    client.remember([], keeper.repositories)
    if not path.repo:
        return FolderInfo(RepoPath(""), modified_ns=0)
    asked = Asked.now()
    try:
        info = await client.stat(path)
    except NotFound:
        if path.path:
            with contextlib.suppress(NotFound):
                await client.stat(RepoPath(path.repo))
                raise ConfigError(f"{path}: no such folder in the repository") from None
        raise ConfigError(
            f"{path.repo}: no such repository on {settings.server.url}, or no right to read it"
        ) from None
    except OUTAGES as error:
        raise NotReachable(f"{path}: {error}") from None
    except JfsError as error:
        raise ConfigError(f"{path}: {error}") from None
    if isinstance(info, FileInfo):
        raise ConfigError(f"{path}: is a file: mount its folder, {path.parent}, instead")
    keeper.named(path, info, asked)
    return info


async def _known(settings: MountSettings, keeper: Keeper) -> Begun | None:
    """Return what an earlier mount knew, if that is not too old."""
    last_at = await keeper.last_at()
    if last_at is None:
        return None
    if not settings.offline and time.time() > last_at + settings.tree.stale_if_error_s:
        return None
    path = settings.source.path
    if not path.repo:
        return Begun(FolderInfo(RepoPath(""), modified_ns=0), last_at)
    found = await keeper.name(path, lists_all=False)
    if found is None or not isinstance(found[0], FolderInfo):
        return None
    return Begun(found[0], last_at)


async def _waited_for(
    client: ArtifactoryClient, settings: MountSettings, keeper: Keeper
) -> FolderInfo:
    """Ask until there is an answer, for as long as the settings say. Raises as ``ask``."""
    began = trio.current_time()
    said_at = -_SAY_EVERY_S
    for wait_s in _waits(_LONGEST_WAIT_S):
        try:
            return await ask(client, settings, keeper)
        except NotReachable as error:
            waited_s = trio.current_time() - began
            left_s = settings.wait_s - waited_s
            if left_s <= 0:
                if settings.wait_s:
                    raise NotReachable(f"{error} (waited {waited_s:.0f} s)") from None
                raise
            supervisor.tell(
                f"STATUS=waiting for {settings.server.url}: {error}",
                f"EXTEND_TIMEOUT_USEC={_EXTEND_S * 1e6:.0f}",
            )
            if waited_s >= said_at + _SAY_EVERY_S:
                said_at = waited_s
                log.warning("waiting for the server, for %.0f s so far: %s", waited_s, error)
        await trio.sleep(min(wait_s, left_s))
    raise AssertionError("waits never end")


def _waits(longest_s: float) -> Iterator[float]:
    """Return how long to wait before each further try."""
    bound = _FIRST_WAIT_S
    while True:
        yield random.uniform(bound / 2, bound)
        bound = min(longest_s, bound * 1.6)


def _shown(at: float | None) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(at))
