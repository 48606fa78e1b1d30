"""Where the service is, when it is not where its URL says. Trio thread only."""

import os

import httpx
import trio

from jfs.artifactory import wire
from jfs.artifactory.access import Access
from jfs.artifactory.routed import Routed
from jfs.config import ServerSettings
from jfs.errors import JfsError
from jfs.model import RepoPath

PING = "/api/system/ping"
_PATIENCE_S = 10.0
_DEEPEST = 4  # segments of a context path; deeper ones are not tried


def is_ping(response: httpx.Response) -> bool:
    """Whether an answer is that of an Artifactory to ``PING`` (artifactory-rest 12)."""
    return response.status_code == 200 and response.content.strip() == b"OK"


def base_of(response: httpx.Response, base: str) -> str:
    """Return the service that answered a ping of *base*: a redirect may have led elsewhere."""
    found = str(response.request.url)
    return found.removesuffix(PING) if found.endswith(PING) else base


async def near(settings: ServerSettings, place: RepoPath) -> str | None:
    """Look for the service where it may be if a URL was taken for that of a platform.

    Args:
        place: what was taken for the repository and the path in it.
    Returns:
        The URL that the user should have written; None: there is none, or it does not answer soon.
    """
    platform = settings.url.removesuffix("/artifactory")
    if platform == settings.url:
        return None
    parts = [part for part in str(place).split("/") if part]
    async with httpx.AsyncClient(
        transport=Routed(Access(settings, os.environ)), timeout=_PATIENCE_S, trust_env=False
    ) as client:
        with trio.move_on_after(_PATIENCE_S):
            for depth in range(min(len(parts), _DEEPEST) + 1):
                context = wire.encode_path(RepoPath.parse("/".join(parts[:depth])))
                rest = wire.encode_path(RepoPath.parse("/".join(parts[depth:])))
                try:
                    response = await client.get(platform + context + PING)
                except (httpx.HTTPError, JfsError):
                    return None
                if is_ping(response):
                    return f"{platform}{context}#{rest.lstrip('/')}"
    return None
