"""GET and HEAD of content. Source: artifactory-rest section 3.

Bodies leave by ``sendfile``: the kernel copies from the page cache to the socket, and the loop is
asked only when the socket's buffer has room again. TLS and faults read and write instead.
"""

import asyncio
import gzip
import html
import os
from typing import BinaryIO
from urllib.parse import quote

from aiohttp import web

from jfs.server.answers import ApiError, json_response
from jfs.server.bodies import send_file
from jfs.server.context import FAULT, USER, Service, base_url, service_of
from jfs.server.faults import Fault
from jfs.server.paths import ItemPath
from jfs.server.ranges import http_date, not_modified, parse_range, range_applies
from jfs.server.signed import signed_location
from jfs.server.store import Item

_CHUNK = 1024 * 1024
_SIDE_FILES = (".sha1", ".md5", ".sha256")
_BOUNDARY = "jfs-serve-byteranges"
_TYPES = {
    ".json": "application/json",
    ".txt": "text/plain",
    ".yml": "text/plain",
    ".yaml": "text/plain",
    ".log": "text/plain",
    ".py": "text/x-python",
    ".zip": "application/zip",
    ".gz": "application/x-gzip",
    ".tgz": "application/x-gzip",
    ".tar": "application/x-tar",
    ".xml": "application/xml",
    ".html": "text/html",
    ".md5": "application/x-checksum",
    ".sha1": "application/x-checksum",
    ".sha256": "application/x-checksum",
}


def content_type_of(name: str) -> str:
    """Give the type by extension; models have none of their own."""
    return _TYPES.get(os.path.splitext(name)[1].lower(), "application/octet-stream")


async def download(request: web.Request, at: ItemPath) -> web.StreamResponse:
    """Answer GET or HEAD of a file or folder."""
    service = service_of(request)
    if await service.db(service.store.repository, at.repo) is None:
        raise ApiError(404, f"Failed to find the repository '{at.repo}' specified in the request.")
    item = await service.db(service.store.find, at)
    if item is None:
        return await _side_file(service, at)
    if "properties" in request.query:
        properties = await service.db(service.store.properties, item)
        if not properties:
            raise ApiError(404, "No properties could be found.")
        uri = f"{base_url(request)}/api/storage/{quote(f'{at.repo}/{at.path}')}"
        return json_response({"properties": properties, "uri": uri})
    if item.is_folder:
        return await _folder(request, service, at)
    return await _file(request, service, item)


async def _side_file(service: Service, at: ItemPath) -> web.Response:
    """``P.sha1`` and its like: the stored checksum as text (artifactory-rest 3.6)."""
    stem, extension = os.path.splitext(at.path)
    if extension in _SIDE_FILES:
        item = await service.db(service.store.find, ItemPath(at.repo, stem))
        if item is not None and not item.is_folder:
            digest = getattr(item.blob, extension[1:])
            return web.Response(text=digest, content_type="application/x-checksum")
    raise ApiError(404, "File not found.")


async def _folder(request: web.Request, service: Service, at: ItemPath) -> web.StreamResponse:
    if not at.folder and at.path:
        location = f"{base_url(request)}/{quote(f'{at.repo}/{at.path}')}/"
        return web.Response(status=302, headers={"Location": location})
    rows = []
    for child in await service.db(service.store.children, at.repo, at.path):
        name = child.name + ("/" if child.is_folder else "")
        size = "-" if child.size is None else str(child.size)
        rows.append(
            f'<a href="{quote(name)}">{html.escape(name)}</a>  {http_date(child.modified)}  {size}'
        )
    title = html.escape(f"Index of {at.repo}/{at.path}")
    page = (
        f"<html><head><title>{title}</title></head><body><h1>{title}</h1><pre>"
        + "\n".join(['<a href="../">../</a>', *rows])
        + "</pre></body></html>"
    )
    return web.Response(text=page, content_type="text/html")


def _headers(item: Item) -> dict[str, str]:
    blob = item.blob
    name = quote(item.name)
    return {
        "Last-Modified": http_date(item.modified),
        "ETag": blob.sha1,  # bare, without quotes
        "X-Checksum-Sha1": blob.sha1,
        "X-Checksum-Sha256": blob.sha256,
        "X-Checksum-Md5": blob.md5,
        "Accept-Ranges": "bytes",
        "X-Artifactory-Filename": name,
        "Content-Disposition": f"attachment; filename=\"{name}\"; filename*=UTF-8''{name}",
        "Content-Type": content_type_of(item.name),
    }


async def _file(request: web.Request, service: Service, item: Item) -> web.StreamResponse:
    fault = request.get(FAULT)
    headers = _headers(item)
    if fault is not None and fault.action == "headers":
        headers.update(fault.headers)
    size = item.blob.size
    if not_modified(request.headers, item.blob.sha1, item.modified):
        return web.Response(status=304, headers=headers)
    if request.method == "HEAD":
        return web.Response(headers={**headers, "Content-Length": str(size)})
    if fault is not None and fault.action in ("redirect", "expired"):
        location = signed_location(request, service, item.blob.sha256, fault.action == "expired")
        return web.Response(status=302, headers={"Location": location})
    ranges = parse_range(request.headers.get("Range"), size)
    if ranges is not None and not range_applies(
        request.headers.get("If-Range"), item.blob.sha1, item.modified
    ):
        ranges = None
    if fault is not None and fault.action == "ignore_range":
        ranges = None
    if ranges == []:
        return web.Response(status=416, headers={"Content-Range": f"bytes */{size}"})
    service.downloaded(item.id, request[USER])
    place = service.filestore.place_of(item.blob.sha256)
    with await asyncio.to_thread(open, place, "rb") as file:
        if ranges is not None and len(ranges) > 1:
            return await _multipart(request, file, ranges, size, headers)
        start, stop = ranges[0] if ranges else (0, size)
        response = web.StreamResponse(status=206 if ranges else 200, headers=headers)
        if ranges:
            shift = 1 if fault is not None and fault.action == "wrong_range" else 0
            response.headers["Content-Range"] = f"bytes {start + shift}-{stop - 1 + shift}/{size}"
        response.content_length = stop - start
        if fault is not None and fault.action in ("gzip", "corrupt", "short", "drop"):
            return await _faulty(request, response, file, (start, stop), fault)
        await response.prepare(request)
        await send_file(request, response, file, start, stop - start)
        return response


async def _multipart(
    request: web.Request,
    file: BinaryIO,
    ranges: list[tuple[int, int]],
    size: int,
    headers: dict[str, str],
) -> web.StreamResponse:
    part_type = headers["Content-Type"]
    response = web.StreamResponse(
        status=206,
        headers={**headers, "Content-Type": f"multipart/byteranges; boundary={_BOUNDARY}"},
    )
    heads = [
        f"\r\n--{_BOUNDARY}\r\nContent-Type: {part_type}\r\n"
        f"Content-Range: bytes {start}-{stop - 1}/{size}\r\n\r\n".encode()
        for start, stop in ranges
    ]
    end = f"\r\n--{_BOUNDARY}--\r\n".encode()
    bodies = sum(stop - start for start, stop in ranges)
    response.content_length = sum(map(len, heads)) + bodies + len(end)
    await response.prepare(request)
    for head, (start, stop) in zip(heads, ranges, strict=True):
        await response.write(head)
        while start < stop:
            count = min(_CHUNK, stop - start)
            chunk = await asyncio.to_thread(os.pread, file.fileno(), count, start)
            await response.write(chunk)
            start += len(chunk)
    await response.write(end)
    await response.write_eof()
    return response


async def _faulty(
    request: web.Request,
    response: web.StreamResponse,
    file: BinaryIO,
    extent: tuple[int, int],
    fault: Fault,
) -> web.StreamResponse:
    """Send a body that is wrong in the way the fault says."""
    start, stop = extent
    data = await asyncio.to_thread(os.pread, file.fileno(), stop - start, start)
    if fault.action == "gzip":
        data = gzip.compress(data)
        response.headers["Content-Encoding"] = "gzip"
        response.content_length = len(data)
    elif fault.action == "corrupt":
        data = bytes([data[0] ^ 1]) + data[1:]
    await response.prepare(request)
    if fault.action in ("gzip", "corrupt"):
        await response.write(data)
        await response.write_eof()
        return response
    if fault.bytes:
        await response.write(data[: fault.bytes])
    transport = request.transport
    if transport is not None:
        if fault.action == "short":
            transport.close()  # flushes what was written, then ends
        else:
            transport.abort()
    return response
