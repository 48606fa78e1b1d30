"""Ask an Artifactory: authentication, deadlines, retries, redirects. Trio thread only."""

import os
from collections.abc import Awaitable, Callable
from typing import TypeVar

import httpx
import trio

from jfs.artifactory import retry
from jfs.artifactory.access import Access
from jfs.artifactory.exchange import (
    MAX_HOPS,
    REDIRECTS,
    USER_AGENT,
    failure,
    mapped,
    next_hop,
)
from jfs.artifactory.routed import Routed
from jfs.config import ServerSettings
from jfs.errors import DeadlineExceeded, JfsError, ProtocolViolation
from jfs.metrics import Metrics

_T = TypeVar("_T")

_PARALLEL = 16  # requests for one repository, or to one endpoint that is about none
_SUBJECTS_KEPT = 1000
# Key of a response's extensions: the redirects that led to it.
PASSED = "jfs.passed"
CACHE = "-cache"  # the suffix of the repository in which a remote one keeps what it fetched


class Session:
    """One server, asked over httpx. Close it with ``aclose``.

    Raises:
        ConfigError: of ``Access``.
    """

    def __init__(
        self,
        settings: ServerSettings,
        metrics: Metrics,
        access: Access | None = None,
    ) -> None:
        self.settings = settings
        self.access = access or Access(settings, os.environ)
        self._metrics = metrics
        self._client = httpx.AsyncClient(
            transport=Routed(self.access),
            timeout=httpx.Timeout(settings.idle_timeout_s, connect=settings.connect_timeout_s),
            follow_redirects=False,
            trust_env=False,  # httpx reads NO_PROXY its own way, and fails at what it cannot read
            headers={"User-Agent": USER_AGENT, "Accept": "*/*"},
        )
        self._limits: dict[str, trio.CapacityLimiter] = {}

    async def aclose(self) -> None:
        """Close every connection."""
        await self._client.aclose()

    async def get(self, address: str, *, retries: bool = True) -> bytes:
        """Return the body of an answer."""
        return (await self.exchange("GET", address, retries=retries)).content

    async def exchange(
        self,
        method: str,
        address: str,
        content: bytes | None = None,
        headers: dict[str, str] | None = None,
        *,
        repo: str = "",
        retries: bool = True,
        patience_s: float = 0.0,
    ) -> httpx.Response:
        """Ask below the service, with retries, within the deadline; the whole answer is read.

        Args:
            address: path and query below the service, encoded.
            repo: whose turn it is; read from the address of a storage request.
            retries: whether what is asked is safe to ask twice.
            patience_s: for how long an answer may take, where that is longer than usual.
        Raises:
            RemoteError: the answer, or that there was none.
        """
        return await self.read(
            method,
            address,
            _whole,
            content,
            headers,
            repo=repo,
            retries=retries,
            patience_s=patience_s,
        )

    async def read(
        self,
        method: str,
        address: str,
        take: Callable[[httpx.Response], Awaitable[_T]],
        content: bytes | None = None,
        headers: dict[str, str] | None = None,
        *,
        repo: str = "",
        retries: bool = True,
        patience_s: float = 0.0,
    ) -> _T:
        """Ask as ``exchange`` does, and let *take* read the answer while it arrives.

        Args:
            take: called with a successful answer, its body not read yet; again for every try.
        """
        began = trio.current_time()
        deadline = began + max(self.settings.request_deadline_s, patience_s)
        retried_until = min(deadline, began + self.settings.retries_s)
        url = httpx.URL(self.settings.url + address)
        # A repository that hangs keeps its own requests waiting, and no others.
        limit = self._limit(repo or _subject(address))
        for delay in retry.delays():
            left = deadline - trio.current_time()
            try:
                with trio.fail_after(max(0.0, left)):
                    async with limit:
                        return await self._once(
                            method, url, take, content, headers or {}, patience_s
                        )
            except trio.TooSlowError:
                raise DeadlineExceeded(f"no answer in time: {address}") from None
            except JfsError as error:
                self._metrics.count("request_errors")
                wait = retry.wait_before_retry(error, delay, retried_until - trio.current_time())
                if wait is None or not retries:
                    raise
            await trio.sleep(wait)
        raise AssertionError("delays never end")

    def _limit(self, subject: str) -> trio.CapacityLimiter:
        limit = self._limits.get(subject)
        if limit is None:
            if len(self._limits) >= _SUBJECTS_KEPT:  # names that somebody only looked up
                self._limits = {
                    name: known for name, known in self._limits.items() if known.borrowed_tokens
                }
            limit = self._limits[subject] = trio.CapacityLimiter(_PARALLEL)
        return limit

    async def _once(
        self,
        method: str,
        url: httpx.URL,
        take: Callable[[httpx.Response], Awaitable[_T]],
        content: bytes | None,
        headers: dict[str, str],
        patience_s: float,
    ) -> _T:
        headers = {**headers, **await self.access.authenticator.current()}
        timeout = httpx.Timeout(
            max(self.settings.idle_timeout_s, patience_s), connect=self.settings.connect_timeout_s
        )
        passed: list[httpx.Response] = []
        for _ in range(MAX_HOPS):
            self._metrics.count("requests")
            with mapped(method, url):
                async with self._client.stream(
                    method, url, content=content, headers=headers, timeout=timeout
                ) as response:
                    if 200 <= response.status_code < 300:
                        response.extensions[PASSED] = passed
                        return await take(response)
                    await response.aread()
            # Only reads are sent elsewhere: a redirected write would become another request.
            if response.status_code not in REDIRECTS or method not in ("GET", "HEAD"):
                raise failure(response, response.content)
            url, headers = next_hop(response, headers)
            passed.append(response)
        raise ProtocolViolation(
            "too many redirects", method=method, url=str(url.copy_with(query=None))
        )


async def _whole(response: httpx.Response) -> httpx.Response:
    await response.aread()
    return response


def _subject(address: str) -> str:
    """Return the repository that an address is about, or the endpoint if it is about none."""
    parts = address.partition("?")[0].split("/")
    if parts[1:3] == ["api", "storage"] and len(parts) > 3:
        return parts[3].removesuffix(CACHE)
    return "/".join(parts[:3])
