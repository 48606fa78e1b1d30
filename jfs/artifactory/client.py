"""The control plane: names, sizes and checksums, over httpx. Trio thread only."""

import contextlib
import errno
import ssl
from collections.abc import Sequence
from typing import Any

import httpx
import trio

from jfs.artifactory import retry, wire
from jfs.artifactory.auth import Authenticator
from jfs.artifactory.exchange import (
    MAX_HOPS,
    REDIRECTS,
    USER_AGENT,
    failure,
    mapped,
    next_hop,
    tls_context,
)
from jfs.config import Credentials, ServerSettings
from jfs.errors import (
    AccessDenied,
    ConfigError,
    DeadlineExceeded,
    JfsError,
    NotFound,
    ProtocolViolation,
    RemoteError,
    Unavailable,
)
from jfs.metrics import Metrics
from jfs.model import EntryInfo, FolderInfo, RepoPath, Repository

_PARALLEL_STATS = 16


class ArtifactoryClient:
    """``ArtifactStore`` over HTTP. Close it with ``aclose``."""

    def __init__(self, settings: ServerSettings, metrics: Metrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self._authenticator = Authenticator(settings.credentials)
        self._client = httpx.AsyncClient(
            verify=tls_context(settings),
            timeout=httpx.Timeout(settings.idle_timeout_s, connect=settings.connect_timeout_s),
            limits=httpx.Limits(max_connections=32, max_keepalive_connections=16),
            follow_redirects=False,
            headers={"User-Agent": USER_AGENT, "Accept": "*/*"},
        )
        self._without_list: set[str] = set()  # repositories whose `?list` was refused

    async def aclose(self) -> None:
        """Close every connection."""
        await self._client.aclose()

    async def check(self) -> None:
        """Make sure that an Artifactory answers and lets us in.

        Raises:
            ConfigError: what is wrong and what to do.
        """
        url = self._settings.url
        try:
            body = await self._get("/api/system/ping", retries=False)
            if body.strip() != b"OK":
                raise ConfigError(f"{url}: something answers, but it is not an Artifactory")
            await self._get("/api/repositories", retries=False)
        except AccessDenied as error:
            if error.status is None:
                raise ConfigError(str(error)) from None
            if self._settings.credentials == Credentials():
                raise ConfigError(
                    f"{url}: credentials are needed: set JF_ACCESS_TOKEN or use --token-file"
                ) from None
            raise ConfigError(
                f"{url}: the token or password is not accepted ({error.message}): get a new one"
            ) from None
        except (NotFound, ProtocolViolation):
            raise ConfigError(
                f"{url}: something answers, but it is not an Artifactory: "
                "give the URL of the service, such as https://company.example/artifactory"
            ) from None
        except RemoteError as error:
            raise ConfigError(f"{url}: {_explain(error)}") from None

    async def repositories(self) -> Sequence[Repository]:
        return wire.parse_repositories(await self._json("/api/repositories"))

    async def stat(self, path: RepoPath) -> EntryInfo:
        if not path.repo:
            return FolderInfo(path, 0)
        return wire.parse_info(await self._json(f"/api/storage{wire.encode_path(path)}"), path)

    async def list_children(self, path: RepoPath) -> Sequence[EntryInfo]:
        if not path.repo:
            return [FolderInfo(RepoPath(row.key), 0) for row in await self.repositories()]
        if path.repo not in self._without_list:
            address = f"/api/storage{wire.encode_path(path)}?list&deep=0&listFolders=1"
            try:
                return wire.parse_list(await self._json(address), path)
            except RemoteError as error:
                # Refused to anonymous users, without a Pro licence, or for a remote repository.
                if error.status not in (400, 403, 404):
                    raise
                children = await self._stat_children(path)  # raises what is really wrong
                self._without_list.add(path.repo)
                return children
        return await self._stat_children(path)

    async def _stat_children(self, path: RepoPath) -> Sequence[EntryInfo]:
        """List without ``?list``: names in one request, then one for each file."""
        address = f"/api/storage{wire.encode_path(path)}"
        names = wire.parse_children_names(await self._json(address), path)
        entries: list[EntryInfo] = []
        limit = trio.CapacityLimiter(_PARALLEL_STATS)

        async def add(name: str, folder: bool) -> None:
            if folder:
                entries.append(FolderInfo(path.child(name), 0))
                return
            async with limit:
                with contextlib.suppress(NotFound):  # deleted since we saw its name
                    entries.append(await self.stat(path.child(name)))

        failures: list[JfsError] = []

        async def guarded(name: str, folder: bool) -> None:
            try:
                await add(name, folder)
            except JfsError as error:
                failures.append(error)

        async with trio.open_nursery() as nursery:
            for name, folder in names:
                nursery.start_soon(guarded, name, folder)
        if failures:
            raise failures[0]
        return entries

    async def _json(self, address: str) -> Any:
        body = await self._get(address)
        # A listing of 100,000 files takes a second to parse: not on the event loop.
        if len(body) > 100_000:
            return await trio.to_thread.run_sync(wire.parse_json, body, address)
        return wire.parse_json(body, address)

    async def _get(self, address: str, *, retries: bool = True) -> bytes:
        """GET below the service, with retries, within the deadline."""
        deadline = trio.current_time() + self._settings.request_deadline_s
        for delay in retry.delays():
            left = deadline - trio.current_time()
            try:
                with trio.fail_after(max(0.0, left)):
                    return await self._get_once(httpx.URL(self._settings.url + address))
            except trio.TooSlowError:
                raise DeadlineExceeded(f"no answer in time: {address}") from None
            except JfsError as error:
                self._metrics.count("request_errors")
                wait = retry.wait_before_retry(error, delay, deadline - trio.current_time())
                if wait is None or not retries:
                    raise
            await trio.sleep(wait)
        raise AssertionError("delays never end")

    async def _get_once(self, url: httpx.URL) -> bytes:
        headers = self._authenticator.headers()
        for _ in range(MAX_HOPS):
            self._metrics.count("requests")
            with mapped("GET", url):
                response = await self._client.get(url, headers=headers)
            if response.status_code == 200:
                return response.content
            if response.status_code not in REDIRECTS:
                raise failure(response, response.content)
            url, headers = next_hop(response, headers)
        raise ProtocolViolation(
            "too many redirects", method="GET", url=str(url.copy_with(query=None))
        )


def _explain(error: RemoteError) -> str:
    """Say in words what a person can act on."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return (
                f"its certificate is not trusted ({cause.verify_message}): "
                "give the CA's with --ca-file"
            )
        if isinstance(cause, ssl.SSLError):
            return f"TLS failed ({cause.reason}): is it an http:// server?"
        if isinstance(cause, OSError) and cause.errno == errno.ECONNREFUSED:
            return "nothing listens there (connection refused): is the server running?"
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, DeadlineExceeded):
        return "does not answer in time: is the address right, and a proxy needed?"
    if isinstance(error, Unavailable) and error.status is None:
        return f"cannot be reached: {error.message}"
    return str(error)
