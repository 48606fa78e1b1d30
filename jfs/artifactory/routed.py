"""Send what the control plane asks by the proxy that leads to the server. Trio thread only."""

import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import NamedTuple

import httpx
import trio

from jfs import clocks
from jfs.artifactory.access import Access
from jfs.artifactory.proxies import Proxy

_IDLE_CONNECTIONS = 16
# For how long a connection is used again: a name leads elsewhere one day, and the old server may go
# on answering (a load balancer that is being replaced).
LIFE_S = 600.0
_READS = ("GET", "HEAD")


class Routed(httpx.AsyncBaseTransport):
    """An httpx transport for each way to a server.

    A way is given up when its certificates are replaced, after ten minutes, and when the machine
    was suspended; requests that are under way on it end first.

    Args:
        suspended_s: see ``clocks.suspended_s``.
    """

    def __init__(
        self, access: Access, suspended_s: Callable[[], float] = clocks.suspended_s
    ) -> None:
        self._access = access
        self._suspended_s = suspended_s
        # By proxy, and whether it is for the server itself: only that sees our certificate.
        self._ways: dict[_Key, _Way] = {}
        self._retired: set[_Way] = set()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        request.stream = _Body(await request.aread())
        connected = False

        async def trace(event: str, _: object) -> None:
            nonlocal connected
            connected = connected or event == "connection.connect_tcp.started"

        request.extensions = {**request.extensions, "trace": trace}
        try:
            return await self._ask(request)
        except (httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError):
            # On a connection that was kept: the server closed it meanwhile, or forgot it. That is
            # no answer to this request, and no outage; the others that were kept are no better.
            if connected or request.method not in _READS:
                raise
        for key in list(self._ways):
            await self._give_up(key)
        return await self._ask(request)

    async def _ask(self, request: httpx.Request) -> httpx.Response:
        url = request.url
        trust = self._access.trust
        proxy = self._access.proxies.leading_to(url.scheme, url.host, url.port)
        ours = url.scheme == "https" and trust.is_of_server(url.host, url.port)
        tls = _Tls()
        if url.scheme == "https":
            tls = _Tls(await trust.current(ours=ours))
        if proxy is not None and proxy.scheme == "https":
            tls = _Tls(tls.server, await trust.current(ours=False))
        key = (proxy, ours)
        way = self._ways.get(key)
        suspended_s = self._suspended_s()
        if way is None or way.is_over(tls, suspended_s):
            await self._give_up(key)
            way = self._ways.setdefault(key, _Way(proxy, tls, suspended_s))
        way.requests += 1
        try:
            response = await way.transport.handle_async_request(request)
            assert isinstance(response.stream, httpx.AsyncByteStream)
        except BaseException as error:
            await self._done(way)
            unreachable = isinstance(error, httpx.ConnectError) and not _is_of_tls(error)
            if proxy is None or not unreachable:
                raise
            raise httpx.ProxyError(f"{proxy.url} cannot be reached") from error
        response.stream = _Counted(response.stream, lambda: self._done(way))
        return response

    async def aclose(self) -> None:
        for way in [*self._ways.values(), *self._retired]:
            await way.transport.aclose()

    async def _give_up(self, key: "_Key") -> None:
        way = self._ways.pop(key, None)
        if way is not None:
            self._retired.add(way)
            await self._close_if_unused(way)

    async def _done(self, way: "_Way") -> None:
        way.requests -= 1
        with trio.CancelScope(shield=True):
            await self._close_if_unused(way)

    async def _close_if_unused(self, way: "_Way") -> None:
        if way in self._retired and not way.requests:
            self._retired.discard(way)
            await way.transport.aclose()


class _Tls(NamedTuple):
    """What to make TLS with; None: it is not needed now."""

    server: ssl.SSLContext | None = None
    proxy: ssl.SSLContext | None = None


_Key = tuple[Proxy | None, bool]


class _Way:
    def __init__(self, proxy: Proxy | None, tls: _Tls, suspended_s: float) -> None:
        self.requests = 0
        self._tls = tls
        self._over = trio.current_time() + LIFE_S
        self._suspended_s = suspended_s
        self.transport = httpx.AsyncHTTPTransport(
            # Without one, what is asked is plain HTTP: httpx would spend 0.1 s on making another.
            verify=tls.server or ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
            trust_env=False,
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=_IDLE_CONNECTIONS),
            proxy=None if proxy is None else _as_httpx_has_it(proxy, tls.proxy),
        )

    def is_over(self, tls: _Tls, suspended_s: float) -> bool:
        """Whether new requests need another one."""
        replaced = any(
            new is not None and new is not old for new, old in zip(tls, self._tls, strict=True)
        )
        # Who slept is forgotten, by servers and by NAT, which may not even say so.
        slept = suspended_s - self._suspended_s > 1
        return replaced or slept or trio.current_time() > self._over


class _Body(httpx.AsyncByteStream):
    """What a request carries. httpx's own is an async generator: cancelled, it is left unfinished,
    which trio complains about.
    """

    def __init__(self, content: bytes) -> None:
        self._content = content

    def __aiter__(self) -> AsyncIterator[bytes]:
        return _Once(self._content)


class _Once:
    def __init__(self, content: bytes) -> None:
        self._left = [content]

    def __aiter__(self) -> "_Once":
        return self

    async def __anext__(self) -> bytes:
        if not self._left:
            raise StopAsyncIteration
        return self._left.pop()


class _Counted(httpx.AsyncByteStream):
    """A body that says when it was closed."""

    def __init__(
        self, stream: httpx.AsyncByteStream, closed: Callable[[], Awaitable[None]]
    ) -> None:
        self._stream = stream
        self._closed = closed

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._stream.__aiter__()

    async def aclose(self) -> None:
        try:
            await self._stream.aclose()
        finally:
            await self._closed()


def _as_httpx_has_it(proxy: Proxy, context: ssl.SSLContext | None) -> httpx.Proxy:
    auth = None if proxy.user is None else (proxy.user, proxy.password)
    return httpx.Proxy(proxy.url, ssl_context=context, auth=auth)


def _is_of_tls(error: BaseException | None) -> bool:
    """Whether the server behind a tunnel is at fault, and not the proxy."""
    while error is not None:
        if isinstance(error, ssl.SSLError):
            return True
        error = error.__cause__ or error.__context__
    return False
