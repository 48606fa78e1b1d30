"""From a request to its answer: the routes, the errors, the faults. Event loop only.

Routing is by hand: a path is read raw, before a framework decodes it (artifactory-rest 2.1).
"""

import errno
import logging
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Executor
from dataclasses import replace
from typing import NamedTuple
from urllib.parse import unquote

from aiohttp import web
from multidict import CIMultiDict

from jfs.server.http import weather
from jfs.server.http.access import Access
from jfs.server.http.exchange import (
    Answer,
    Call,
    Reception,
    cut,
    error_answer,
    finish_body,
    json_answer,
    respond,
)
from jfs.server.http.faults import Fault, FaultPlan, Kind
from jfs.server.http.signed import SignedStorage
from jfs.server.http.stats import ServerStats
from jfs.server.routes import (
    builds,
    download,
    properties,
    repositories,
    search,
    storage,
    system,
    transfer,
    upload,
)
from jfs.server.routes.upstreams import Upstreams
from jfs.server.store.rights import ANONYMOUS
from jfs.server.store.store import Store, no_room
from jfs.server.wire.answers import ApiError
from jfs.server.wire.paths import parse_query, parse_target, split_target

log = logging.getLogger(__name__)

CONTEXT = "/artifactory"
Endpoint = Callable[[Call], Awaitable[Answer]]

_EXACT: Mapping[str, Mapping[str, Endpoint]] = {
    "api/system/ping": {"GET": system.ping},
    "api/system/version": {"GET": system.version},
    "api/system/usage": {"POST": system.usage},
    "api/storageinfo": {"GET": system.storage_info},
    "api/storageinfo/calculate": {"POST": system.calculate},
    "api/v1/uploads/config": {"GET": system.uploads_config},
    "api/build": {"GET": builds.listing, "PUT": builds.publish},
    "api/repositories": {"GET": repositories.listing},
    "api/search/aql": {"POST": search.aql},
    "api/search/artifact": {"GET": search.artifact},
    "api/search/prop": {"GET": search.prop},
    "api/search/checksum": {"GET": search.checksum},
}
_BELOW: Mapping[str, Mapping[str, Endpoint]] = {
    "api/build/": {"GET": builds.get, "DELETE": builds.delete},
    "api/repositories/": {
        "GET": repositories.get,
        "PUT": repositories.create,
        "POST": repositories.update,
        "DELETE": repositories.delete,
    },
    "api/storage/": {
        "GET": storage.get,
        "PUT": properties.put,
        "DELETE": properties.delete,
    },
    "api/metadata/": {
        "PATCH": properties.patch_metadata,
        "DELETE": properties.delete_metadata,
    },
    "api/copy/": {"POST": transfer.copy},
    "api/move/": {"POST": transfer.move},
    "list/": {"GET": download.read},
    "simple/": {"GET": download.read},
}
_CONTENT: Mapping[str, Endpoint] = {
    "GET": download.read,
    "PUT": upload.put,
    "DELETE": upload.delete,
}
_DISK_FULL = frozenset([errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
_OPEN = frozenset(["api/system/ping"])  # needs no login
_BROWSED = frozenset(["content", "list", "simple"])
_RESERVED = frozenset(["api", "list", "simple", "ui", "webapp"])
_SELECTORS = ("list", "stats", "lastModified", "properties")


class _Route(NamedTuple):
    name: str
    endpoint: Endpoint
    rest: str


class Service:
    """What one running server answers with."""

    def __init__(
        self,
        store: Store,
        executor: Executor,
        access: Access,
        faults: FaultPlan,
        stats: ServerStats,
        signed: SignedStorage,
    ) -> None:
        self._store = store
        self._executor = executor
        self._access = access
        self._faults = faults
        self._stats = stats
        self._signed = signed
        self._upstreams = Upstreams()
        self._ending = False

    def end(self) -> None:
        """Begin no more of what a fault holds; before it is released."""
        self._ending = True

    async def aclose(self) -> None:
        """End what is fetched from upstream, and what signed storage keeps open."""
        await self._upstreams.aclose()
        self._signed.close()

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request; an aiohttp handler."""
        raw, raw_query = split_target(request.raw_path)
        if raw == "/jfs/stats":
            return await respond(request, self._own_stats(request), ServerStats())
        below = raw.removeprefix(CONTEXT) if raw.startswith(f"{CONTEXT}/") else None
        fault = None
        if below is not None:
            agent = request.headers.get("User-Agent", "")
            fault = self._faults.match(request.method, unquote(below), agent)
        answer, name, reception = None, "spoiled", Reception()
        if fault is not None:
            if not await weather.before(request, fault, self._stats) or self._ending:
                self._stats.count_request(f"{request.method} {name}")
                return cut(request)
            answer = weather.instead(fault)
        if answer is None:
            name, answer = await self._answer(request, raw, raw_query, fault, reception)
        self._stats.count_request(f"{request.method} {name}")
        try:
            await finish_body(request, answer, self._stats, reception)
            if fault is not None:
                return await weather.act(request, answer, fault, self._stats)
            return await respond(request, answer, self._stats)
        except (TimeoutError, OSError) as error:
            log.debug("%s %s: not all was sent: %s", request.method, raw, error)
            return cut(request)
        finally:
            answer.close()

    async def _answer(
        self,
        request: web.BaseRequest,
        raw: str,
        raw_query: str,
        fault: Fault | None,
        reception: Reception,
    ) -> tuple[str, Answer]:
        name = "unknown"
        try:
            query = parse_query(raw_query)
            route = _route(request.method, raw)
            selector = next((each for each in _SELECTORS if each in query), None)
            name = f"{route.name}?{selector}" if selector else route.name
            headers: Mapping[str, str] = request.headers
            if fault is not None and fault.kind is Kind.IGNORE_RANGE:
                headers = CIMultiDict(headers)
                headers.popall("Range", None)
            call = Call(
                request,
                self._store,
                self._executor,
                self._stats,
                _base(request),
                ANONYMOUS,
                route.rest,
                query,
                headers,
                reception,
            )
            if route.name not in _OPEN:
                call = call.of(self._access.user(headers))
            reads = route.name in _BROWSED and request.method in ("GET", "HEAD")
            if reads:
                download.require_readable(call, parse_target(call.rest).path)
            answer = None
            if fault is not None and fault.kind is Kind.REDIRECT and route.name == "content":
                answer = await self._redirect(call, fault)
            if answer is None and reads:
                answer = await self._remote(call)
            if answer is None:
                answer = await route.endpoint(call)
            if self._store.downloads_pending:
                await call.run(self._store.flush_downloads)
        except ApiError as error:
            answer = error_answer(error)
        except (ConnectionError, web.RequestPayloadError) as error:
            log.debug("%s %s: the client went away: %s", request.method, raw, error)
            answer = error_answer(ApiError(400, "The body ended too early."))
        except Exception as error:
            if isinstance(error, OSError) and error.errno in _DISK_FULL:
                log.error("%s %s: %s", request.method, raw, error)
                return name, error_answer(no_room())
            log.exception("%s %s failed", request.method, raw)
            answer = error_answer(ApiError(500, "Internal error; the server's log says more."))
        return name, answer

    async def _remote(self, call: Call) -> Answer | None:
        """Answer a read below a remote repository; None for any other request."""
        target = parse_target(call.rest)
        if self._store.repositories.remote(target.path.repo) is None:
            return None
        kept = await self._upstreams.keep(call, target.path)
        return await download.read_target(call, replace(target, path=kept))

    async def _redirect(self, call: Call, fault: Fault) -> Answer | None:
        """Redirect a download of a file that exists; real servers do so for GET alone."""
        if call.query.get("artifactory.disableRedirect") == "true" and not fault.opaque:
            return None
        path = kept = parse_target(call.rest).path
        if self._store.repositories.remote(path.repo) is not None:
            kept = await self._upstreams.keep(call, path)
        item = await call.run(lambda: self._store.find(kept))
        if item is None or item.blob is None:
            return None
        if call.request.method == "GET":
            self._store.count_download(item, call.user.name)
        found = await call.run(lambda: self._store.read(kept))
        stated = download.describe(found, item.blob)
        return await self._signed.redirect(path, kept, call.request.method, stated, fault)

    def _own_stats(self, request: web.BaseRequest) -> Answer:
        """Answer ``/jfs/stats``: outside Artifactory's address space, and not counted."""
        try:
            if not self._access.user(request.headers).is_admin:
                raise ApiError(403, "The statistics are for the administrator.")
            if request.method == "DELETE":
                self._stats.reset()
                return Answer(204)
            if request.method not in ("GET", "HEAD"):
                raise ApiError(405, "Method Not Allowed", headers={"Allow": "GET, DELETE"})
            return json_answer(self._stats.as_dict())
        except ApiError as error:
            return error_answer(error)


def _route(method: str, raw: str) -> _Route:
    """Find the endpoint of a raw path. Raises ApiError 404, 405."""
    path = raw.removeprefix(CONTEXT)
    if not raw.startswith(CONTEXT) or path[:1] not in ("", "/"):
        raise ApiError(404, f"Not Found: this service is at {CONTEXT}")
    path = path.lstrip("/")
    if not path:
        return _method(method, {"GET": system.ping}, "", "")
    if methods := _EXACT.get(path.rstrip("/")):
        return _method(method, methods, path.rstrip("/"), "")
    for prefix, methods in _BELOW.items():
        if path.startswith(prefix):
            return _method(method, methods, prefix.rstrip("/"), path.removeprefix(prefix))
    if path.partition("/")[0] in _RESERVED:
        raise ApiError(404, "Not Found")
    return _method(method, _CONTENT, "content", path)


def _method(method: str, methods: Mapping[str, Endpoint], name: str, rest: str) -> _Route:
    endpoint = methods.get("GET" if method == "HEAD" else method)
    if endpoint is None:
        raise ApiError(405, "Method Not Allowed", headers={"Allow": ", ".join(methods)})
    return _Route(name, endpoint, rest)


def _base(request: web.BaseRequest) -> str:
    """Return the service's address as the client sees it (1.1)."""
    if override := request.headers.get("X-JFrog-Override-Base-Url"):
        return override.rstrip("/") + CONTEXT
    if override := request.headers.get("X-Artifactory-Override-Base-Url"):
        return override.rstrip("/")
    return f"{request.scheme}://{request.host}{CONTEXT}"
