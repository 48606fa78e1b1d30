"""Send what the control plane asks by the proxy that leads to the server. Trio thread only."""

import ssl

import httpx

from jfs.artifactory.proxies import Proxies, Proxy

_IDLE_CONNECTIONS = 16


class Routed(httpx.AsyncBaseTransport):
    """An httpx transport for each way to a server: a proxy, or none."""

    def __init__(self, context: ssl.SSLContext, proxies: Proxies) -> None:
        self._context = context
        self._proxies = proxies
        self._ways: dict[Proxy | None, httpx.AsyncHTTPTransport] = {}

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        url = request.url
        proxy = self._proxies.leading_to(url.scheme, url.host, url.port)
        way = self._ways.get(proxy)
        if way is None:
            way = self._ways[proxy] = httpx.AsyncHTTPTransport(
                verify=self._context,
                trust_env=False,
                limits=httpx.Limits(
                    max_connections=None, max_keepalive_connections=_IDLE_CONNECTIONS
                ),
                proxy=None if proxy is None else _as_httpx_has_it(proxy),
            )
        try:
            return await way.handle_async_request(request)
        except httpx.ConnectError as error:
            if proxy is None or _is_of_tls(error):
                raise
            raise httpx.ProxyError(f"{proxy.url} cannot be reached") from error

    async def aclose(self) -> None:
        for way in self._ways.values():
            await way.aclose()


def _as_httpx_has_it(proxy: Proxy) -> httpx.Proxy:
    auth = None if proxy.user is None else (proxy.user, proxy.password)
    return httpx.Proxy(proxy.url, auth=auth)


def _is_of_tls(error: BaseException | None) -> bool:
    """Whether the server behind a tunnel is at fault, and not the proxy."""
    while error is not None:
        if isinstance(error, ssl.SSLError):
            return True
        error = error.__cause__ or error.__context__
    return False
