"""A stand-in for object storage behind download redirects: a second listener, started when needed.

Its locations name content by its checksum, as those of a real Artifactory do
(``…/filestore/3b/3b5de69d…?X-Artifactory-repositoryKey=…&X-Amz-Signature=…``): the old location of
a replaced artifact goes on serving the old content while it lives. They are signed for one method,
live shortly, and the storage refuses credentials as S3 does. Its answers know nothing of
Artifactory: another ETag, no checksums. Event loop only. Source: artifactory-rest 3.4.
"""

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import IO
from urllib.parse import urlencode

from aiohttp import web

from jfs.extents import Extent
from jfs.model import RepoPath
from jfs.server.http import weather
from jfs.server.http.exchange import Answer, Slice, cut, respond
from jfs.server.http.faults import Fault, FaultPlan, Kind
from jfs.server.http.stats import ServerStats
from jfs.server.store.filestore import Blob
from jfs.server.store.store import Store
from jfs.server.wire import ranges
from jfs.server.wire.answers import ApiError, quote_path

_LIFE_S = 30.0
_MAX_LOCATIONS = 10_000
# Contents kept open for their locations; beyond these a removed one is 404 before its time.
_MAX_HELD = 64
_CREDENTIALS = ("Authorization", "X-JFrog-Art-Api", "Cookie")

Starter = Callable[[web.Server], Awaitable[str]]


@dataclass(slots=True)
class _Location:
    """*path* is what was asked for; *content* None: what *kept* holds when it is used."""

    path: RepoPath
    kept: RepoPath
    content: Blob | None
    place: str
    method: str
    until: float
    uses: int | None

    def use(self, request: web.BaseRequest) -> bool:
        """Whether it is good for this request; counts it."""
        if request.path != self.place or request.method != self.method:
            return False
        if time.monotonic() >= self.until or self.uses == 0:
            return False
        if self.uses is not None:
            self.uses -= 1
        return True


class SignedStorage:
    """Args: *start* opens a listener for a server and returns its URL. Close it with ``close``."""

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
        self._held: dict[str, IO[bytes]] = {}  # by sha256, those that live longest last

    def close(self) -> None:
        """Close the contents that are kept for their locations."""
        held, self._held = self._held, {}
        for file in held.values():
            file.close()

    async def redirect(
        self,
        path: RepoPath,
        kept: RepoPath,
        method: str,
        stated: Mapping[str, str],
        fault: Fault,
    ) -> Answer:
        """Answer 302 with a location for the content of *path*.

        Args:
            kept: where the store has it.
            stated: headers that describe the artifact.
        Raises:
            ApiError: there is no such content.
        """
        async with self._starting:
            if self._url is None:
                self._url = await self._start(web.Server(self._serve, access_log=None))
        blob = await self._hold(RepoPath.parse(fault.to) if fault.to else kept)
        signature = secrets.token_urlsafe(16)
        while len(self._locations) >= _MAX_LOCATIONS:
            del self._locations[next(iter(self._locations))]
        life_s = 0.0 if fault.expired else _LIFE_S
        name = blob.sha1 or blob.sha256
        place = "/bucket/" + (str(path) if fault.opaque else f"filestore/{name[:2]}/{name}")
        self._locations[signature] = _Location(
            path,
            kept,
            None if fault.opaque else blob,
            place,
            method,
            time.monotonic() + life_s,
            fault.uses,
        )
        query = urlencode(
            {
                "X-Artifactory-repositoryKey": path.repo,
                "X-Artifactory-artifactPath": path.path,
                "X-Amz-Expires": int(_LIFE_S),
                "X-Amz-Signature": signature,
            }
        )
        origin = self._url.partition(":")[2] if fault.relative else self._url
        headers = {} if fault.silent else dict(stated)
        return Answer(302, {**headers, "Location": f"{origin}{quote_path(place)}?{query}"})

    async def _hold(self, path: RepoPath) -> Blob:
        """Keep the content of *path* open: it outlives the artifact. Raises ApiError 404."""
        loop = asyncio.get_running_loop()
        found, file = await loop.run_in_executor(self._executor, self._store.open, path)
        blob = found.item.blob
        if blob is None or file is None:
            raise ApiError(404, "File not found.")
        held = self._held.pop(blob.sha256, None)
        if held is not None:
            file.close()
        self._held[blob.sha256] = held or file
        if len(self._held) > _MAX_HELD:
            self._held.pop(next(iter(self._held))).close()
        return blob

    async def _serve(self, request: web.BaseRequest) -> web.StreamResponse:
        self._stats.count_request(f"{request.method} signed")
        location = self._locations.get(request.query.get("X-Amz-Signature", ""))
        about = f"/bucket/{location.path}" if location is not None else request.path
        agent = request.headers.get("User-Agent", "")
        fault = self._faults.match(request.method, about, agent)
        answer = None
        if fault is not None:
            if not await weather.before(request, fault, self._stats):
                return cut(request)
            answer = weather.instead(fault)
        if answer is None:
            answer = await self._answer(request, location, fault)
        try:
            if fault is not None:
                return await weather.act(request, answer, fault, self._stats)
            return await respond(request, answer, self._stats)
        except (TimeoutError, OSError):
            return cut(request)
        finally:
            answer.close()

    async def _answer(
        self, request: web.BaseRequest, location: _Location | None, fault: Fault | None
    ) -> Answer:
        if any(name in request.headers for name in _CREDENTIALS):
            return _error(400, "InvalidArgument", "Only one auth mechanism allowed")
        if location is None or not location.use(request):
            return _error(403, "AccessDenied", "Request has expired")
        blob, path = location.content, location.kept
        if fault is not None and fault.kind is Kind.OTHER_CONTENT:
            blob, path = None, RepoPath.parse(fault.to)
        try:
            blob = blob or await self._hold(path)
            # A descriptor of its own: its position belongs to this request. By way of /proc also
            # content that was removed meanwhile can be opened.
            held = self._held[blob.sha256].fileno()
            file = open(f"/proc/self/fd/{held}", "rb", buffering=0)  # noqa: SIM115, ASYNC230
        except (ApiError, KeyError, OSError):
            return _error(404, "NoSuchKey", "The specified key does not exist.")
        done = file.close
        headers = {
            "Accept-Ranges": "bytes",
            "Content-Type": "binary/octet-stream",
            "ETag": f'"{blob.sha256[:32]}-1"',
        }
        names: tuple[str, ...] = ("Range",)
        if fault is not None and fault.kind is Kind.IGNORE_RANGE:
            names = ()
        try:
            # No If-Range: what a client would send is Artifactory's ETag, which is not ours.
            wanted = {name: request.headers[name] for name in names if name in request.headers}
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
