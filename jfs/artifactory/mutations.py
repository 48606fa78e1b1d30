"""Changes of names on the server: folders, deletes, moves, copies. Trio thread only.

A request that is not idempotent is not simply repeated: after an answer that was lost, the server's
state tells whether it was carried out. What was never sent, and what was refused by 429, is.
"""

from collections.abc import Awaitable, Callable
from urllib.parse import quote

import trio

from jfs.artifactory import retry, wire
from jfs.artifactory.session import Session
from jfs.errors import NotFound, RateLimited, ReadOnly, RemoteError, Unavailable
from jfs.model import EntryInfo, RepoPath

# A move or copy costs the server some milliseconds an item; a tree of 100,000 takes minutes.
_TRANSFER_S = 600.0


async def make_folder(session: Session, path: RepoPath) -> None:
    """See ``ArtifactStore``; the server answers 201 whether it was there or not (4.6)."""
    try:
        await session.exchange("PUT", f"{wire.encode_path(path)}/", repo=path.repo)
    except NotFound as error:
        raise not_local(error) from None


async def delete(session: Session, path: RepoPath) -> None:
    """See ``ArtifactStore``. A 404 after an answer that was lost means that it was carried out."""
    lost = False
    until = trio.current_time() + session.settings.jobs_retries_s
    for delay in retry.delays():
        try:
            await session.exchange("DELETE", wire.encode_path(path), repo=path.repo, retries=False)
            return
        except NotFound:
            if lost:
                return
            raise
        except Unavailable as error:
            if not error.retryable or trio.current_time() + delay > until:
                raise
            lost = True
        await trio.sleep(delay)


async def transfer(
    session: Session,
    verb: str,
    source: RepoPath,
    target: RepoPath,
    exists: Callable[[RepoPath], Awaitable[bool]],
    arrived: Callable[[EntryInfo], Awaitable[bool]],
    *,
    known: EntryInfo | None,
    tree: bool,
    local: bool,
) -> None:
    """Ask for ``api/move`` or ``api/copy`` (artifactory-rest 8).

    Repeated after a lost answer, it would nest a folder into the one that the first try made: so
    the source of a move, and the target of a copy, are looked at before a second try.

    Args:
        arrived: whether the target is there now, and has the content of an entry.
        known: what the source is, as far as is known: somebody else may move it away, and something
            to its new name, between a try that failed and the look. None: not known.
        tree: a folder, which may take long.
        local: both repositories are known to take changes: what is missing is missing, also if
            somebody makes it a moment after.
    """
    to = quote(f"/{target}", safe="/")
    address = f"/api/{verb}{wire.encode_path(source)}?to={to}&suppressLayouts=1&failFast=1"
    before = await exists(target) if verb == "copy" else False
    patience_s = _TRANSFER_S if tree else 0.0
    until = trio.current_time() + session.settings.jobs_retries_s
    for delay in retry.delays():
        try:
            await session.exchange(
                "POST", address, repo=source.repo, retries=False, patience_s=patience_s
            )
            return
        except NotFound as error:
            if not local and await exists(source):
                raise not_local(error) from None
            raise
        except RemoteError as error:
            if error.status == 400 and "repositor" in error.message.lower():
                raise not_local(error) from None
            asked_enough = isinstance(error, RateLimited) or trio.current_time() + delay > until
            if not error.retryable or asked_enough:
                raise
            await trio.sleep(delay)
            if verb == "move" and not await exists(source):
                if await (arrived(known) if known is not None else exists(target)):
                    return
                if await exists(target):
                    raise  # nobody knows what has become of it
            if verb == "copy" and not before and await exists(target):
                return


def not_local(error: RemoteError) -> RemoteError:
    """Return *error* as ReadOnly: nothing can be written there (4.8: remote, virtual, unknown)."""
    return ReadOnly(error.message, status=error.status, method=error.method, url=error.url)
