"""A stand-in for object storage behind download redirects: a second listener, started when needed.

Its locations are signed, live shortly, and it refuses credentials as S3 does. Its answers know
nothing of Artifactory: another ETag, no checksums. Event loop only. Source: artifactory-rest 3.4.
"""

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial

from aiohttp import web

from jfs.extents import Extent
from jfs.model import RepoPath
from jfs.server.http import weather
from jfs.server.http.exchange import Answer, Slice, cut, respond
from jfs.server.http.faults import Fault, FaultPlan
from jfs.server.http.stats import ServerStats
from jfs.server.store.store import Store
from jfs.server.wire import ranges
from jfs.server.wire.answers import ApiError, quote_path

_LIFE_S = 30.0
_MAX_LOCATIONS = 10_000
_CREDENTIALS = ("Authorization", "X-JFrog-Art-Api", "Cookie")

Starter = Callable[[web.Server], Awaitable[str]]


@dataclass(slots=True)
class _Location:
    path: RepoPath
    until: float
    uses: int | None

    def use(self) -> bool:
        """Whether it is still good, for one request more."""
        if time.monotonic() >= self.until or self.uses == 0:
            return False
        if self.uses is not None:
            self.uses -= 1
        return True


class SignedStorage:
    """Args: *start* opens a listener for a server and gives its URL."""

    def __init__(
        self,
        store: Store,
        executor: Executor,
        stats: ServerStats,
        faults: FaultPlan,
        start: Starter,
    ) -> None:
        self._store = store
        self._executor = executor
        self._stats = stats
        self._faults = faults
        self._start = start
        self._starting = asyncio.Lock()
        self._url: str | None = None
        self._locations: dict[str, _Location] = {}

    async def redirect(self, path: RepoPath, fault: Fault) -> Answer:
        """Answer 302 with a location for the content of *path*."""
        async with self._starting:
            if self._url is None:
                self._url = await self._start(web.Server(self._serve, access_log=None))
        signature = secrets.token_urlsafe(16)
        while len(self._locations) >= _MAX_LOCATIONS:
            del self._locations[next(iter(self._locations))]
        life_s = 0.0 if fault.expired else _LIFE_S
        self._locations[signature] = _Location(path, time.monotonic() + life_s, fault.uses)
        place = quote_path(str(path))
        return Answer(302, {"Location": f"{self._url}/bucket/{place}?X-Signature={signature}"})

    async def _serve(self, request: web.BaseRequest) -> web.StreamResponse:
        self._stats.count_request(f"{request.method} signed")
        fault = self._faults.match(request.method, request.path)
        answer = None
        if fault is not None:
            if not await weather.before(request, fault, self._stats):
                return cut(request)
            answer = weather.instead(fault)
        if answer is None:
            answer = await self._answer(request)
        try:
            if fault is not None:
                return await weather.act(request, answer, fault, self._stats)
            return await respond(request, answer, self._stats)
        except (TimeoutError, OSError):
            return cut(request)
        finally:
            answer.close()

    async def _answer(self, request: web.BaseRequest) -> Answer:
        if any(name in request.headers for name in _CREDENTIALS):
            return _error(400, "InvalidArgument", "Only one auth mechanism allowed")
        location = self._locations.get(request.query.get("X-Signature", ""))
        named = request.path.removeprefix("/bucket/")
        if location is None or str(location.path) != named or not location.use():
            return _error(403, "AccessDenied", "Request has expired")
        loop = asyncio.get_running_loop()
        try:
            found, file = await loop.run_in_executor(
                self._executor, self._store.open, location.path
            )
        except ApiError:
            return _error(404, "NoSuchKey", "The specified key does not exist.")
        blob = found.item.blob
        if blob is None or file is None:
            return _error(404, "NoSuchKey", "The specified key does not exist.")
        done = partial(self._store.files.open_files.give_back, blob.sha256, file)
        headers = {
            "Accept-Ranges": "bytes",
            "Content-Type": "binary/octet-stream",
            "ETag": f'"{blob.sha256[:32]}-1"',
        }
        try:
            # No If-Range: what a client would send is Artifactory's ETag, which is not ours.
            wanted = {name: request.headers[name] for name in ("Range",) if name in request.headers}
            extents = ranges.requested(wanted, blob.size, "", 0)
        except ranges.Unsatisfiable:
            return Answer(416, {"Content-Range": f"bytes */{blob.size}"}, done=done)
        if len(extents) != 1:
            return Answer(200, headers, [Slice(file, Extent(0, blob.size))], done)
        start, stop = extents[0]
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{blob.size}"
        return Answer(206, headers, [Slice(file, extents[0])], done)


def _error(status: int, code: str, message: str) -> Answer:
    body = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>"
    return Answer(status, {"Content-Type": "application/xml"}, [body.encode()])
