"""Spoil answers as a fault says. The server's event loop only."""

import asyncio
import gzip
import os
import re
from collections.abc import Sequence

from aiohttp import web

from jfs.extents import Extent
from jfs.server.http.exchange import (
    Answer,
    Part,
    Slice,
    ask_for_body,
    begin,
    cut,
    read_chunk,
    respond,
    send,
)
from jfs.server.http.faults import Fault, Kind
from jfs.server.http.stats import ServerStats
from jfs.server.wire.answers import ApiError, error_body

_DIGEST = re.compile(rb'("(?:sha1|sha2|sha256|md5|actual_sha1|actual_md5)"\s*:\s*")([0-9a-f]+)"')
_CHECKSUM_HEADERS = ("X-Checksum-Sha1", "X-Checksum-Sha256", "X-Checksum-Md5")
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)\Z")


async def before(request: web.BaseRequest, fault: Fault, stats: ServerStats) -> bool:
    """Act out what comes before anything is done; False: the connection is to be cut."""
    if fault.kind is Kind.HOLD:
        await _hold(fault)
    if fault.kind is not Kind.CUT:
        return True
    left = fault.offset or 0
    if left:
        ask_for_body(request)
    try:
        while left > 0 and (data := await read_chunk(request, stats)):
            left -= len(data)
    except (ApiError, ConnectionError, web.RequestPayloadError):
        pass  # the client was first
    return False


def instead(fault: Fault) -> Answer | None:
    """Return the answer that a fault puts in place of the real one, if it is of that kind."""
    if fault.kind is Kind.STATUS:
        body = fault.body or error_body(fault.code, "A fault was planned.")
        headers = {} if fault.body else {"Content-Type": "application/json"}
        if fault.early:
            headers["Connection"] = "close"
        return Answer(fault.code, {**headers, **fault.headers}, [body])
    if fault.kind is Kind.GARBAGE:
        html = fault.body.lstrip().startswith(b"<")
        media_type = "text/html" if html else "application/octet-stream"
        return Answer(200, {"Content-Type": media_type, **fault.headers}, [fault.body])
    return None


async def act(
    request: web.BaseRequest, answer: Answer, fault: Fault, stats: ServerStats
) -> web.StreamResponse:
    """Send an answer as the fault has it."""
    await _spoil(answer, fault)
    if fault.kind in (Kind.DROP, Kind.STALL):
        return await _send_spoiled(request, answer, fault, stats)
    return await respond(request, answer, stats)


async def _spoil(answer: Answer, fault: Fault) -> None:
    """Change an answer in place."""
    match fault.kind:
        case Kind.HEADERS | Kind.REDIRECT:
            for name, value in fault.headers.items():
                answer.headers.pop(name, None)
                if value:
                    answer.headers[name] = value
        case Kind.WRONG_CHECKSUMS:
            for name in _CHECKSUM_HEADERS:
                if name in answer.headers:
                    answer.headers[name] = "0" * len(answer.headers[name])
            answer.parts = [_other_digests(part) for part in answer.parts]
        case Kind.WRONG_RANGE:
            old = answer.headers.get("Content-Range", "")
            if match := _CONTENT_RANGE.match(old):
                first, last, size = map(int, match.groups())
                other = f"bytes {first + 1}-{last + 1}/{size}"
                if fault.offset is not None:  # so many bytes of it, as some proxies answer
                    answer.parts, _ = split(answer.parts, fault.offset)
                    other = f"bytes {first}-{min(last, first + fault.offset - 1)}/{size}"
                answer.headers["Content-Range"] = fault.headers.get("Content-Range", other)
        case Kind.GZIP:
            body = b"".join([await asyncio.to_thread(_read, part) for part in answer.parts])
            answer.headers["Content-Encoding"] = "gzip"
            answer.parts = [await asyncio.to_thread(gzip.compress, body)]
        case Kind.CHUNKED:
            answer.parts = [await asyncio.to_thread(_read, part) for part in answer.parts]
            answer.chunked = True
        case Kind.CORRUPT:
            before, after = split(answer.parts, fault.offset or 0)
            victim, after = split(after, 1)
            flipped = [bytes(byte ^ 0xFF for byte in _read(part)) for part in victim]
            answer.parts = [*before, *flipped, *after]
        case Kind.SHORT:
            answer.parts, _ = split(answer.parts, fault.offset or 0)
        case _:
            pass


async def _send_spoiled(
    request: web.BaseRequest, answer: Answer, fault: Fault, stats: ServerStats
) -> web.StreamResponse:
    """Send an answer whose sending goes wrong: it stalls, or the connection is cut."""
    if fault.offset is None and fault.kind is Kind.DROP:
        return cut(request)
    if fault.offset is None:
        await _hold(fault)
    head, tail = split(answer.parts, answer.size if fault.offset is None else fault.offset)
    response = await begin(request, answer, length=answer.size)
    if request.method == "HEAD":
        return response
    await send(request, response, head, stats)
    if fault.offset is not None and fault.kind is Kind.STALL:
        await _hold(fault)
    if fault.kind is Kind.DROP:
        if request.transport is not None:
            request.transport.close()  # after what was sent: the client gets those bytes
        return response
    await send(request, response, tail, stats)
    return response


def split(parts: Sequence[Part], position: int) -> tuple[list[Part], list[Part]]:
    """Cut a body in two after *position* bytes."""
    before: list[Part] = []
    after: list[Part] = []
    for part in parts:
        here = max(0, min(position, len(part)))
        position -= len(part)
        if isinstance(part, Slice):
            start, stop = part.extent
            before.append(Slice(part.file, Extent(start, start + here)))
            after.append(Slice(part.file, Extent(start + here, stop)))
        else:
            before.append(part[:here])
            after.append(part[here:])
    return before, after


async def _hold(fault: Fault) -> None:
    fault.reached.set()
    await fault.gate.wait()


def _other_digests(part: Part) -> Part:
    if isinstance(part, Slice):
        return part
    return _DIGEST.sub(lambda found: found[1] + b"0" * len(found[2]) + b'"', part)


def _read(part: Part) -> bytes:
    if isinstance(part, Slice):
        return os.pread(part.file.fileno(), part.extent.size, part.extent.start)
    return part
