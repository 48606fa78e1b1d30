"""Ask an Artifactory: authentication, deadlines, retries, redirects. Trio thread only."""

import contextlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar
from urllib.parse import quote

import httpx
import trio

from jfs.artifactory import wire
from jfs.artifactory.access import Access
from jfs.artifactory.breaker import Breakers
from jfs.artifactory.circuits import Plane
from jfs.artifactory.exchange import (
    MAX_HOPS,
    REDIRECTS,
    USER_AGENT,
    failure,
    mapped,
    next_hop,
    redacted,
)
from jfs.artifactory.routed import Routed
from jfs.config import ServerSettings
from jfs.errors import AccessDenied, DeadlineExceeded, JfsError, ProtocolViolation
from jfs.metrics import Metrics

_T = TypeVar("_T")

_PARALLEL = 16  # requests for one repository, or to one endpoint that is about none
_SUBJECTS_KEPT = 1000
# Key of a response's extensions: the redirects that led to it.
PASSED = "jfs.passed"
# Of a response that is read as it arrives: called when much of it has come, for a new deadline.
MOVED = "jfs.moved"
_PING = "/api/system/ping"
_ENDS = {b"{": b"}", b"[": b"]"}  # how a document of JSON ends
_READS = ("GET", "HEAD")
_HEADERS = {"User-Agent": USER_AGENT, "Accept": "*/*", "Accept-Encoding": "gzip, deflate"}
# A server that is up answers a ping in milliseconds; what is lost on the way is sent again after
# 1 s and after 3. One that is asked for longer is found only so much later to be up.
_PROBE_S = 4.0
# How often it is looked whether something waits for an answer for too long.
_LOOK_S = 2.0
CACHE = "-cache"  # the suffix of the repository in which a remote one keeps what it fetched


class Session:
    """One server, asked over httpx. Close it with ``aclose``.

    Args:
        access, breakers: of the server, if others ask it too.
    Raises:
        ConfigError: of ``Access``.
    """

    def __init__(
        self,
        settings: ServerSettings,
        metrics: Metrics,
        access: Access | None = None,
        breakers: Breakers | None = None,
    ) -> None:
        self.settings = settings
        self.breakers = breakers or Breakers(settings.url, metrics)
        self.access = access or Access(settings, os.environ)
        self._metrics = metrics
        self._timeout = httpx.Timeout(settings.idle_timeout_s, connect=settings.connect_timeout_s)
        # Not by an httpx client: its cookies, hooks and log cost 0.2 ms of 1.2 a request.
        self._transport = Routed(self.access)
        self._limits: dict[str, trio.CapacityLimiter] = {}
        self._unheard: dict[trio.CancelScope, float] = {}  # since when no head of an answer came

    async def aclose(self) -> None:
        """Close every connection."""
        await self._transport.aclose()

    async def watch(self) -> None:
        """Probe what is down until it is up again; never ends. For the background of a mount."""
        token = trio.lowlevel.current_trio_token()
        look_s = min(_LOOK_S, self.settings.ping_after_s)
        woken = trio.Event()

        def deliver(call: Callable[[], None]) -> None:
            with contextlib.suppress(trio.RunFinishedError):
                token.run_sync_soon(call)

        self.breakers.attend(deliver, lambda: deliver(lambda: woken.set()))
        try:
            while True:
                with trio.move_on_after(min(look_s, self.breakers.next_probe_s())):
                    await woken.wait()
                woken = trio.Event()
                for repo in self.breakers.due() or ([""] if self._hang() else []):
                    await self._probe(repo)
                if self.breakers.is_down:
                    for scope in self._hang():
                        scope.cancel()
        finally:
            self.breakers.leave()

    def _hang(self) -> list[trio.CancelScope]:
        """Return what has waited for an answer for long."""
        before = trio.current_time() - self.settings.ping_after_s
        return [scope for scope, since in self._unheard.items() if since <= before]

    async def _attempt(
        self,
        method: str,
        url: httpx.URL,
        take: Callable[[httpx.Response], Awaitable[_T]],
        content: bytes | None,
        headers: dict[str, str],
        timeout: httpx.Timeout,
    ) -> _T:
        """Ask once; cut by the watch if nothing comes, and the server answers no ping either."""

        async def heard(response: httpx.Response) -> _T:
            del self._unheard[scope]
            return await take(response)

        with trio.CancelScope() as scope:
            self._unheard[scope] = trio.current_time()
            try:
                return await self._once(method, url, heard, content, headers, timeout)
            finally:
                self._unheard.pop(scope, None)
        raise DeadlineExceeded(
            "no answer, and none to a ping either", method=method, url=redacted(url)
        )

    async def _probe(self, repo: str) -> None:
        """Ask how the server is, or the names of a repository of it."""
        began = self.breakers.clock()
        address = f"/api/storage/{quote(repo)}" if repo else _PING
        url = httpx.URL(self.settings.url + address)
        headers = {}
        with contextlib.suppress(AccessDenied):  # a token file that is gone: any answer will do
            headers = await self.access.authenticator.current()
        self._metrics.count("probes")
        settings = self.settings
        probe_s = min(_PROBE_S, settings.connect_timeout_s + settings.ping_after_s)
        found: JfsError | None = None
        try:
            with trio.fail_after(probe_s), mapped("GET", url):
                async with self._asked("GET", url, None, headers, self._timeout) as response:
                    status = response.status_code
                    body = await response.aread() if not repo or status >= 500 else b""
            if status >= 500:
                found = failure(response, body)
            elif status in REDIRECTS or (not repo and status == 200 and body.strip() != b"OK"):
                found = ProtocolViolation("something else answers", method="GET", url=redacted(url))
        except trio.TooSlowError:
            found = DeadlineExceeded(
                f"no answer within {probe_s:.0f} s", method="GET", url=redacted(url)
            )
        except JfsError as error:
            found = error
        self.breakers.probed(repo, found, began)

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
        long: bool = False,
        patience_s: float = 0.0,
    ) -> _T:
        """Ask as ``exchange`` does, and let *take* read the answer while it arrives.

        Args:
            take: called with a successful answer, its body not read yet; again for every try.
            long: the answer is about more than one item, or others are asked for it first.
        """
        url = httpx.URL(self.settings.url + address)
        subject = repo or _subject(address)
        settings = self.settings
        reads = method in _READS or address.startswith("/api/search/")
        small = method in _READS and not long
        silence_s, deadline_s = settings.idle_timeout_s, settings.request_deadline_s
        if small:
            silence_s = min(silence_s, settings.answer_timeout_s)
            deadline_s = min(deadline_s, settings.answer_deadline_s)
        patience_with_outages_s = settings.retries_s if retries else 0.0
        if not reads:
            patience_with_outages_s = settings.jobs_retries_s
        call = self.breakers.call(
            subject,
            Plane.NAMES if reads else Plane.CHANGES,
            patience_s=patience_with_outages_s,
            deadline_s=max(deadline_s, patience_s),
            once=not retries,
        )
        timeout = httpx.Timeout(max(silence_s, patience_s), connect=settings.connect_timeout_s)
        # A repository that hangs keeps its own requests waiting, and no others.
        limit = self._limit(subject)

        def moved() -> None:
            call.moved(deadline_s)
            scope.deadline = trio.current_time() + call.left_s

        async def taken(response: httpx.Response) -> _T:
            response.extensions[MOVED] = moved
            return await take(response)

        try:
            while True:
                wait = call.hold_s()
                if not wait:
                    asked = False
                    try:
                        with trio.fail_after(call.left_s) as scope:
                            async with limit:
                                # what was well when we began to queue may be down by now
                                if not (wait := call.hold_s()):
                                    asked = True
                                    ask = self._attempt if reads else self._once
                                    found = await ask(
                                        method, url, taken, content, headers or {}, timeout
                                    )
                                    call.succeeded()
                                    return found
                    except trio.TooSlowError:
                        late = DeadlineExceeded(
                            f"no answer in time: {address}", method=method, url=redacted(url)
                        )
                        if asked:  # else it was only others that the server kept waiting
                            call.failed(late)
                        raise late from None
                    except JfsError as error:
                        self._metrics.count("request_errors")
                        again = call.failed(error)
                        if again is None:
                            raise
                        wait = again
                await trio.sleep(wait)
        finally:
            call.end()

    def _limit(self, subject: str) -> trio.CapacityLimiter:
        limit = self._limits.get(subject)
        if limit is None:
            if len(self._limits) >= _SUBJECTS_KEPT:  # names that somebody only looked up
                self._limits = {
                    name: known for name, known in self._limits.items() if known.borrowed_tokens
                }
            limit = self._limits[subject] = trio.CapacityLimiter(_PARALLEL)
        return limit

    @contextlib.asynccontextmanager
    async def _asked(
        self,
        method: str,
        url: httpx.URL,
        content: bytes | None,
        headers: dict[str, str],
        timeout: httpx.Timeout,
    ) -> AsyncIterator[httpx.Response]:
        request = httpx.Request(
            method,
            url,
            headers={**_HEADERS, **headers},
            content=content,
            extensions={"timeout": timeout.as_dict()},
        )
        response = await self._transport.handle_async_request(request)
        response.request = request
        try:
            yield response
        finally:
            await response.aclose()

    async def _once(
        self,
        method: str,
        url: httpx.URL,
        take: Callable[[httpx.Response], Awaitable[_T]],
        content: bytes | None,
        headers: dict[str, str],
        timeout: httpx.Timeout,
    ) -> _T:
        headers = {**headers, **await self.access.authenticator.current()}
        passed: list[httpx.Response] = []
        renewed = None
        for _ in range(MAX_HOPS):
            self._metrics.count("requests")
            with mapped(method, url):
                async with self._asked(method, url, content, headers, timeout) as response:
                    if 200 <= response.status_code < 300:
                        response.extensions[PASSED] = passed
                        return await take(response)
                    await response.aread()
            if renewed is None and not passed:
                renewed = await self.access.renewal.headers_now(response, headers)
                if renewed is not None:
                    headers = renewed
                    continue
            # Only reads are sent elsewhere: a redirected write would become another request.
            if response.status_code not in REDIRECTS or method not in ("GET", "HEAD"):
                raise failure(response, response.content)
            url, headers = next_hop(response, headers)
            passed.append(response)
        raise ProtocolViolation(
            "too many redirects", method=method, url=str(url.copy_with(query=None))
        )


async def _whole(response: httpx.Response) -> httpx.Response:
    """Read all of an answer. Raises Unavailable if a proxy has cut off its end: it is asked again.

    Its Content-Length may be that of what is left.
    """
    body = (await response.aread()).strip()
    if body[:1] in _ENDS and not body.endswith(_ENDS[body[:1]]):
        raise wire.cut_off(response.request.url.path)
    return response


def _subject(address: str) -> str:
    """Return the repository that an address is about, or the endpoint if it is about none."""
    parts = address.partition("?")[0].split("/")
    if parts[1:3] == ["api", "storage"] and len(parts) > 3:
        return parts[3].removesuffix(CACHE)
    return "/".join(parts[:3])
