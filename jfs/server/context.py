"""What every handler works with: the store, the files, who asks, and what was counted."""

import asyncio
import threading
from collections import Counter
from collections.abc import Callable
from typing import TypeVar, TypeVarTuple

from aiohttp import web

from jfs.server.faults import Fault, FaultPlan
from jfs.server.filestore import Filestore
from jfs.server.store import Store, now_ms

_T = TypeVar("_T")
_Ts = TypeVarTuple("_Ts")


class ServerStats:
    """Requests and body bytes as the server saw them. Any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.reset()

    def reset(self) -> None:
        with self._lock:
            self.requests = 0
            self.bytes_sent = 0
            self.bytes_received = 0
            self.by_route: Counter[str] = Counter()

    def count(self, route: str, *, sent: int = 0, received: int = 0, requests: int = 0) -> None:
        with self._lock:
            self.requests += requests
            self.bytes_sent += sent
            self.bytes_received += received
            if requests:
                self.by_route[route] += requests

    def snapshot(self) -> dict[str, object]:
        with self._lock:
            return {
                "requests": self.requests,
                "bytes_sent": self.bytes_sent,
                "bytes_received": self.bytes_received,
                "by_route": dict(self.by_route),
            }


class Service:
    """The server's state; handlers run on its loop, the store's calls in the store's thread."""

    def __init__(
        self,
        store: Store,
        filestore: Filestore,
        faults: FaultPlan,
        *,
        token: str,
        anonymous: bool,
    ) -> None:
        self.store = store
        self.filestore = filestore
        self.faults = faults
        self.token = token
        self.anonymous = anonymous
        self.stats = ServerStats()
        self._downloads: list[tuple[int, int, int, str]] = []

    async def db(self, action: Callable[[*_Ts], _T], *arguments: *_Ts) -> _T:
        """Run a store call off the loop."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self.store.executor, action, *arguments)

    def downloaded(self, item_id: int, user: str) -> None:
        """Note a download; written in bulk, since a range reader makes thousands."""
        self._downloads.append((item_id, 1, now_ms(), user))

    async def flush_downloads(self) -> None:
        """Write the noted downloads."""
        if self._downloads:
            counts, self._downloads = self._downloads, []
            await self.db(self.store.count_downloads, counts)


SERVICE = web.AppKey("service", Service)
USER = web.RequestKey("user", str)
FAULT = web.RequestKey("fault", Fault)


def service_of(request: web.Request) -> Service:
    return request.app[SERVICE]


def base_url(request: web.Request) -> str:
    """Address of the service as the client sees it (artifactory-rest 1.1)."""
    for name in ("X-JFrog-Override-Base-Url", "X-Artifactory-Override-Base-Url"):
        if name in request.headers:
            return request.headers[name].rstrip("/") + "/artifactory"
    return f"{request.scheme}://{request.host}/artifactory"
