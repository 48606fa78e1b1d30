"""Remote repositories: what is asked for is fetched from upstream once, whole, and kept.

A remote repository ``R`` keeps what it fetched in ``R-cache``, which is read like a local one and
never written to by clients. HEAD fetches too, as real servers do (artifactory-rest 9.2). What
upstream does not have is believed missing for a while; what is kept is served while it fails. A web
page is no artifact: who accepts anything is answered 404 for one, and who does not 409, as real
servers answer. To those who accept anything real servers would store the page as a file.
``https://huggingface.co`` is an upstream like any other: ``R/ORG/MODEL/resolve/main/FILE``.

The server's event loop only.
"""

import asyncio
import contextlib
import logging
from functools import partial
from urllib.parse import urlsplit

import aiohttp
from cachetools import TTLCache
from yarl import URL

from jfs.extents import MiB
from jfs.model import RepoPath
from jfs.server.http.exchange import Call
from jfs.server.store import placement
from jfs.server.store.placement import Deployment
from jfs.server.store.rights import ADMIN, CACHE
from jfs.server.wire import answers
from jfs.server.wire.answers import ApiError

log = logging.getLogger(__name__)

_MISSED_S = 1800.0  # missedRetrievalCachePeriodSecs, its default
_MISSED_KEPT = 10_000
_CONNECT_S, _IDLE_S = 15.0, 60.0
_PIECE = 1 * MiB


class Upstreams:
    """Fetches from upstream, of one server. Close it with ``aclose``."""

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None
        self._fetching: dict[RepoPath, asyncio.Lock] = {}
        # Each with the media type of the page that is there instead; empty: there is nothing.
        self._missed: TTLCache[RepoPath, str] = TTLCache(_MISSED_KEPT, _MISSED_S)

    async def aclose(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def keep(self, call: Call, path: RepoPath) -> RepoPath:
        """Make sure that an item of a remote repository is kept; return where.

        Any other path is returned as it is.

        Raises:
            ApiError: 404 or 409: upstream has no such file; 502: it fails, and nothing is kept.
        """
        config = call.store.repositories.remote(path.repo)
        if config is None:
            return path
        kept = RepoPath(path.repo + CACHE, path.path)
        if call.store.lookup(kept) is not None:
            return kept
        lock = self._fetching.setdefault(path, asyncio.Lock())
        try:
            async with lock:  # one download shared by everybody who asks meanwhile
                if await call.run(lambda: call.store.find(kept)) is None:
                    if path not in self._missed:
                        await self._fetch(call, config, path, kept)
                    if (page := self._missed.get(path)) is not None:
                        raise _refusal(call, path, page)
        finally:
            if not lock.locked():
                self._fetching.pop(path, None)
        return kept

    async def _fetch(
        self, call: Call, config: dict[str, object], path: RepoPath, kept: RepoPath
    ) -> None:
        """Fetch and keep; what upstream does not have is noted. Raises ApiError 502."""
        url = f"{str(config['url']).rstrip('/')}/{answers.quote_path(path.path)}"
        if self._session is None:
            timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S, sock_read=_IDLE_S)
            # Content is stored as upstream has it: nothing is decoded on the way.
            self._session = aiohttp.ClientSession(
                timeout=timeout, auto_decompress=False, requote_redirect_url=False
            )
        try:
            # As it stands: aiohttp would decode %3B, and ";" begins parameters (2.1).
            address = URL(url, encoded=True)
            async with self._session.get(address, headers=_headers(config)) as response:
                folder = bool(response.history) and response.url.path.endswith("/")
                if folder or response.status in (401, 403, 404, 410):
                    self._missed[path] = ""
                    return
                if response.status != 200:
                    raise ApiError(502, f"Upstream answered {response.status}.")
                media_type = response.headers.get("Content-Type", "")
                if media_type.startswith("text/html") and not path.name.endswith("html"):
                    # A page about a folder, or a login: no artifact of a model repository.
                    self._missed[path] = "text/html"
                    return
                await self._store(call, response, kept)
        except (aiohttp.ClientError, TimeoutError) as error:
            log.warning("%s: upstream failed: %s", path, error or type(error).__name__)
            raise ApiError(502, "Upstream does not answer.") from None

    async def _store(self, call: Call, response: aiohttp.ClientResponse, kept: RepoPath) -> None:
        stated = answers.parse_http_date(response.headers.get("Last-Modified", ""))
        deployment = Deployment(ADMIN, modified=stated * 1000 if stated else None)
        incoming = await call.run(call.store.receive)
        try:
            async for piece in response.content.iter_chunked(_PIECE):
                await call.run(partial(incoming.write, piece))
            await call.run(
                lambda: placement.received(call.store, kept, incoming, deployment, cache=True)
            )
        finally:
            await call.run(incoming.discard)


def _refusal(call: Call, path: RepoPath, page: str) -> ApiError:
    """Return the answer for what upstream does not have as a file."""
    accepted = {
        each.partition(";")[0].strip().lower()
        for each in call.headers.get("Accept", "*/*").split(",")
    }
    if not page or accepted & {"*/*", "application/octet-stream", page}:
        return ApiError(404, "File not found.")
    return ApiError(
        409,
        f"Error fetching {path}: Mismatching mime types found in request: {sorted(accepted)} and "
        f"response: {page}, and this repo blocks {page} on mismatch",
    )


def _headers(config: dict[str, object]) -> dict[str, str]:
    """Authenticate at upstream, as the repository is configured."""
    headers = {"Accept-Encoding": "identity", "User-Agent": f"Artifactory/{answers.VERSION}"}
    user, password = config.get("username"), config.get("password")
    if user and password:
        headers["Authorization"] = aiohttp.BasicAuth(str(user), str(password)).encode()
    elif password:  # a token: how Hugging Face is asked for gated models
        headers["Authorization"] = f"Bearer {password}"
    return headers


def check_upstream(url: object) -> str:
    """Return the URL of an upstream. Raises ApiError 400."""
    with contextlib.suppress(ValueError):
        parts = urlsplit(str(url))
        if parts.scheme in ("http", "https") and parts.hostname and not parts.query:
            return str(url)
    raise ApiError(
        400, f"A remote repository needs the URL of its upstream, not '{url}'.", plain=True
    )
