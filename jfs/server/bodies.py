"""Bodies of answers: files to sockets. Source of the choice: sendfile(2).

``sendfile`` copies from the page cache to the socket in the kernel, and the loop is asked only when
the socket's buffer has room again. TLS reads and writes instead.
"""

import asyncio
import os
import socket
from typing import BinaryIO

from aiohttp import web

_CHUNK = 1024 * 1024
# A big buffer lets one sendfile call move megabytes; the default of 208 KiB (grown by the kernel
# up to tcp_wmem) costs a wake-up of the loop each time it drains.
_SEND_BUFFER = 4 * 1024 * 1024


async def send_file(
    request: web.Request, response: web.StreamResponse, file: BinaryIO, start: int, count: int
) -> None:
    """Send *count* bytes of *file* as the body of a prepared response, and end it."""
    transport = request.transport
    if transport is None:
        raise ConnectionResetError("the client went away")
    if count:
        raw = transport.get_extra_info("socket")
        if raw is not None and raw.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) < _SEND_BUFFER:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
        if transport.get_extra_info("sslcontext") is None:
            loop = asyncio.get_running_loop()
            await loop.sendfile(transport, file, start, count)
        else:
            while count:
                chunk = await asyncio.to_thread(os.pread, file.fileno(), min(_CHUNK, count), start)
                if not chunk:
                    raise ConnectionResetError("the content is shorter than it was")
                await response.write(chunk)
                start += len(chunk)
                count -= len(chunk)
    await response.write_eof()
