"""One request and its answer: what endpoints get, what they give, and how it is sent.

An answer is a plan until it is sent, so that a fault can spoil it on the way. Bodies leave by
``sendfile`` from the open file; over TLS they are read by a thread. The server's event loop only.
"""

import asyncio
import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from typing import IO, TypeVar

from aiohttp import web

from jfs.extents import Extent, KiB, MiB
from jfs.server.http.intake import Intake, take
from jfs.server.http.stats import ServerStats
from jfs.server.store.rights import Right, User
from jfs.server.store.store import Store
from jfs.server.wire.answers import REVISION, VERSION, ApiError, as_json, error_body

_T = TypeVar("_T")

# A client may read as slowly as it likes, but not below 16 MiB in 5 minutes.
_PIECE_BYTES = 16 * MiB
_PIECE_DEADLINE_S = 300.0
_TLS_PIECE_BYTES = 512 * KiB
BODY_IDLE_S = 120.0  # without a byte of the body
_SERVER_HEADERS = {
    "Server": f"Artifactory/{VERSION}",
    "X-JFrog-Version": f"Artifactory/{VERSION} {REVISION}",
    "X-Artifactory-Node-Id": "jfs",
}


@dataclass(frozen=True, slots=True)
class Slice:
    """Part of an open file, to be sent."""

    file: IO[bytes]
    extent: Extent

    def __len__(self) -> int:
        return self.extent.size


Part = bytes | Slice


@dataclass(slots=True)
class Answer:
    """Status, headers and body; ``done`` is called when all is sent, or not to be sent.

    *chunked*: its length is not said; its parts must be bytes.
    """

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    parts: Sequence[Part] = ()
    done: Callable[[], None] | None = None
    chunked: bool = False

    @property
    def size(self) -> int:
        return sum(len(part) for part in self.parts)

    def close(self) -> None:
        if self.done is not None:
            self.done()
            self.done = None


@dataclass(slots=True)
class Reception:
    """What became of a request's body; *taken*: the framework waits for its end in vain."""

    taken: bool = False


@dataclass(frozen=True, slots=True)
class Call:
    """A request as endpoints see it. *rest* is the raw path below what chose the endpoint."""

    request: web.BaseRequest
    store: Store
    executor: Executor
    stats: ServerStats
    base: str  # the service's URL as the client writes it, without a slash at the end
    user: User
    rest: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    reception: Reception

    def of(self, user: User) -> "Call":
        return replace(self, user=user)

    async def run(self, function: Callable[[], _T]) -> _T:
        """Run blocking work in a thread."""
        return await asyncio.get_running_loop().run_in_executor(self.executor, function)

    def require_admin(self, repo: str = "") -> None:
        """Refuse a user who does not manage *repo* (empty: everything). Raises ApiError 403."""
        if not (self.user.may(Right.MANAGE, repo) if repo else self.user.is_admin):
            raise ApiError(403, "This resource is available to administrators only.")

    def lacks(self, right: Right, repo: str) -> bool:
        """Whether the user lacks a right; False where there is no such repository (404 later)."""
        return not self.user.may(right, repo) and self.store.repositories.exists(repo)

    async def chunk(self) -> bytes:
        """Read what has arrived of the body, as ``read_chunk``."""
        return await read_chunk(self.request, self.stats)

    def take_body(self, received: int) -> Intake | None:
        """Take the rest of a large body over, as ``intake.take``."""
        intake = take(self.request, received, self.stats)
        self.reception.taken = intake is not None
        return intake

    async def body(self, limit: int) -> bytes:
        """Read a small body. Raises ApiError 413 above *limit* bytes."""
        self.ask_for_body()
        data = bytearray()
        while chunk := await self.chunk():
            data += chunk
            if len(data) > limit:
                raise ApiError(413, f"The body is larger than {limit} bytes.")
        return bytes(data)

    def ask_for_body(self) -> None:
        ask_for_body(self.request)

    async def drain(self) -> None:
        """Read the body away."""
        self.ask_for_body()
        while await self.chunk():
            pass


def ask_for_body(request: web.BaseRequest) -> None:
    """Send ``100 Continue`` to a client that holds its body back (RFC 9110 10.1.1)."""
    if holds_body_back(request) and request.transport is not None:
        request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")


async def read_chunk(request: web.BaseRequest, stats: ServerStats) -> bytes:
    """Read what has arrived of a body; empty at its end.

    Raises:
        ApiError: 408, nothing came for too long.
        OSError, web.RequestPayloadError: the client went away.
    """
    try:
        async with asyncio.timeout(BODY_IDLE_S):
            data = await request.content.readany()
    except TimeoutError:
        raise ApiError(408, f"No byte of the body came for {BODY_IDLE_S:g} s.") from None
    stats.count_received(len(data))
    return data


async def finish_body(
    request: web.BaseRequest, answer: Answer, stats: ServerStats, reception: Reception
) -> None:
    """Read away what was left of the body: a client that is sending hears no answer."""
    if reception.taken:
        answer.headers["Connection"] = "close"
    if request.content.at_eof() or answer.headers.get("Connection") == "close":
        return
    if holds_body_back(request):
        answer.headers["Connection"] = "close"  # the body may come or not: nobody can tell
        return
    try:
        while await read_chunk(request, stats):
            pass
    except (ApiError, ConnectionError, web.RequestPayloadError):
        answer.headers["Connection"] = "close"


def holds_body_back(request: web.BaseRequest) -> bool:
    return request.headers.get("Expect", "").lower() == "100-continue"


def json_answer(
    value: object,
    media_type: str = "application/json",
    *,
    status: int = 200,
    headers: Mapping[str, str] | None = None,
) -> Answer:
    return Answer(status, {"Content-Type": media_type, **(headers or {})}, [as_json(value)])


def text_answer(text: str, *, status: int = 200, media_type: str = "text/plain") -> Answer:
    return Answer(status, {"Content-Type": media_type}, [text.encode()])


def error_answer(error: ApiError) -> Answer:
    if error.plain:
        answer = text_answer(error.message, status=error.status)
    else:
        body = error_body(error.status, error.message)
        answer = Answer(error.status, {"Content-Type": "application/json"}, [body])
    answer.headers.update(error.headers)
    return answer


async def respond(
    request: web.BaseRequest, answer: Answer, stats: ServerStats
) -> web.StreamResponse:
    """Send an answer whole. Raises OSError when the client is gone."""
    head_only = request.method == "HEAD"
    small = len(answer.parts) == 1 and not answer.chunked
    if not head_only and small and isinstance(answer.parts[0], bytes):
        stats.count_sent(answer.size)
        packet = web.Response(
            status=answer.status,
            headers={**_SERVER_HEADERS, **answer.headers},
            body=answer.parts[0],
        )
        if answer.headers.get("Connection") == "close":
            packet.force_close()
        return packet  # aiohttp sends it, head and body in one packet
    response = await begin(request, answer, length=answer.size)
    if not head_only:
        await send(request, response, answer.parts, stats)
    return response


async def begin(request: web.BaseRequest, answer: Answer, *, length: int) -> web.StreamResponse:
    """Send the head. *length* is what Content-Length promises."""
    response = web.StreamResponse(
        status=answer.status, headers={**_SERVER_HEADERS, **answer.headers}
    )
    if answer.headers.get("Connection") == "close":
        response.force_close()
    if answer.chunked:
        response.enable_chunked_encoding()
    elif answer.status not in (204, 304):
        response.content_length = length
    await response.prepare(request)
    return response


async def send(
    request: web.BaseRequest,
    response: web.StreamResponse,
    parts: Sequence[Part],
    stats: ServerStats,
) -> None:
    """Send body bytes, in constant memory. Raises OSError when the client is gone."""
    for part in parts:
        if not part:
            continue
        if isinstance(part, Slice):
            await _send_slice(request, response, part, stats)
        else:
            stats.count_sent(len(part))
            await response.write(part)


async def _send_slice(
    request: web.BaseRequest, response: web.StreamResponse, part: Slice, stats: ServerStats
) -> None:
    """Send from a file.

    What a piece sent is counted when it is through, or taken from the file's position when it
    was cut short: asyncio leaves it where the sending ended.
    """
    loop = asyncio.get_running_loop()
    position, stop = part.extent
    transport = request.transport
    if transport is None:
        raise ConnectionResetError("the client is gone")
    if transport.get_extra_info("sslcontext") is not None:
        await _send_through_tls(response, part, stats)
        return
    while position < stop:
        count = min(_PIECE_BYTES, stop - position)
        part.file.seek(position)
        try:
            async with asyncio.timeout(_PIECE_DEADLINE_S):
                sent = await loop.sendfile(transport, part.file, position, count)
        except BaseException:
            stats.count_sent(max(0, min(part.file.tell() - position, count)))
            raise
        if sent == 0:
            raise ConnectionAbortedError("the content is shorter than its size")
        stats.count_sent(sent)
        position += sent


async def _send_through_tls(response: web.StreamResponse, part: Slice, stats: ServerStats) -> None:
    """Read by a thread and encrypt on the loop; asyncio's own way round takes 16 KiB at a time."""
    loop = asyncio.get_running_loop()
    position, stop = part.extent
    descriptor = part.file.fileno()
    while position < stop:
        count = min(_TLS_PIECE_BYTES, stop - position)
        data = await loop.run_in_executor(None, os.pread, descriptor, count, position)
        if not data:
            raise ConnectionAbortedError("the content is shorter than its size")
        async with asyncio.timeout(_PIECE_DEADLINE_S):
            await response.write(data)
        stats.count_sent(len(data))
        position += len(data)


def cut(request: web.BaseRequest) -> web.StreamResponse:
    """End a connection at once; return what a handler returns then, since aiohttp logs errors."""
    if request.transport is not None:
        with contextlib.suppress(OSError):
            request.transport.abort()
    return web.StreamResponse()
