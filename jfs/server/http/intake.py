"""Large bodies, received without the HTTP framework. The server's event loop only.

The framework copies a body twice into memory that is new each time, which costs as much as
hashing it. Of a body whose length is known, what is still to come is received by a protocol of our
own, straight from the socket into a few buffers that are used again and again. The framework never
sees the end of such a body: the connection is closed after the answer.
"""

import asyncio
from collections import deque
from typing import cast

from aiohttp import web

from jfs.extents import MiB
from jfs.server.http.stats import ServerStats
from jfs.server.wire.answers import ApiError

# Less is not worth a connection. Waking the threads that take a piece costs 1 % of hashing it.
LARGE = 32 * MiB
_PIECE = 2 * MiB
_PIECES = 4  # one is filled, one waits, one is written, and md5 may lag a piece behind


def take(request: web.BaseRequest, received: int, stats: ServerStats) -> "Intake | None":
    """Take a body over after *received* bytes of it, if that is worth it and possible now.

    It is not possible while the framework has paused the connection: it then holds bytes back that
    only it can hand over.
    """
    transport, size = request.transport, request.content_length
    if size is None or size - received < LARGE or transport is None or transport.is_closing():
        return None
    if transport.get_extra_info("sslcontext") is not None or not transport.is_reading():
        return None
    # Nothing must be awaited from here on: what arrived meanwhile would go to the framework.
    here = bytearray()
    while chunk := request.content.read_nowait():
        here += chunk
    stats.count_received(len(here))
    return Intake(transport, here, size - received - len(here), stats)


class Intake(asyncio.BufferedProtocol):
    """The rest of one body, in pieces: *here*, and *size* bytes more. Made by ``take``."""

    def __init__(
        self, transport: asyncio.Transport, here: bytearray, size: int, stats: ServerStats
    ) -> None:
        self._transport = transport
        self._framework = cast("asyncio.Protocol", transport.get_protocol())
        self._left = size
        self._stats = stats
        self._free = [bytearray(_PIECE) for _ in range(_PIECES - 1)]
        self._filling: bytearray | None = bytearray(_PIECE)
        self._filled = 0
        self._ready: deque[tuple[bytearray, int]] = deque([(here, len(here))] if here else [])
        self._lent: deque[bytearray] = deque()
        self._awaited = asyncio.Event()
        self._error: Exception | None = None
        transport.set_protocol(self)

    async def piece(self, idle_s: float) -> memoryview:
        """Return what comes next; empty at the end. It stays as it is until two calls later.

        Raises:
            ApiError: 408, nothing came for *idle_s*.
            ConnectionError: the client went away.
        """
        while len(self._lent) > 1:
            self._give_back(self._lent.popleft())
        while not self._ready:
            if not self._left:
                return memoryview(b"")
            if self._error is not None:
                raise self._error
            before = self._left
            self._awaited.clear()
            try:
                async with asyncio.timeout(idle_s):
                    await self._awaited.wait()
            except TimeoutError:
                if self._left == before:
                    message = f"No byte of the body came for {idle_s:g} s."
                    raise ApiError(408, message) from None
        buffer, size = self._ready.popleft()
        self._lent.append(buffer)
        return memoryview(buffer)[:size]

    async def drain(self, idle_s: float) -> None:
        """Receive the rest for nothing: a client that is sending hears no answer."""
        while await self.piece(idle_s):
            pass

    def end(self) -> None:
        """Hand the connection back to the framework, for the answer."""
        if not self._transport.is_closing():
            self._transport.pause_reading()
        self._transport.set_protocol(self._framework)

    # asyncio.BufferedProtocol

    def get_buffer(self, sizehint: int) -> memoryview:
        assert self._filling is not None
        stop = min(len(self._filling), self._filled + self._left)
        return memoryview(self._filling)[self._filled : stop]

    def buffer_updated(self, nbytes: int) -> None:
        assert self._filling is not None
        self._stats.count_received(nbytes)
        self._filled += nbytes
        self._left -= nbytes
        if self._left and self._filled < len(self._filling):
            return
        self._ready.append((self._filling, self._filled))
        self._filling = self._free.pop() if self._free and self._left else None
        self._filled = 0
        if self._filling is None:
            self._transport.pause_reading()
        self._awaited.set()

    def eof_received(self) -> None:
        self._fail()

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail()
        self._framework.connection_lost(exc)

    def pause_writing(self) -> None:
        self._framework.pause_writing()

    def resume_writing(self) -> None:
        self._framework.resume_writing()

    def _fail(self) -> None:
        self._error = ConnectionResetError("the client went away")
        self._awaited.set()

    def _give_back(self, buffer: bytearray) -> None:
        if len(buffer) != _PIECE:
            return  # what the framework had
        if self._filling is not None or not self._left:
            self._free.append(buffer)
            return
        self._filling = buffer
        if not self._transport.is_closing():
            self._transport.resume_reading()
