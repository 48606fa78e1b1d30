"""Signed storage: where download redirects lead. Source: artifactory-rest 3.4.

It behaves as object stores do: it refuses requests that carry credentials of another kind (400),
knows ranges, has a quoted ETag of its own, and answers 403 when the signature is wrong or old.
"""

import asyncio
import hashlib
import hmac
import time

from aiohttp import web

from jfs.server.bodies import send_file
from jfs.server.context import Service, service_of
from jfs.server.ranges import parse_range

_LIFE_S = 30
_HOSTS = {"127.0.0.1": "localhost", "localhost": "127.0.0.1"}


def signed_location(request: web.Request, service: Service, sha256: str, expired: bool) -> str:
    """Make a location on another origin: the other name of the loopback address."""
    expires = int(time.time()) + (-1 if expired else _LIFE_S)
    host, _, port = request.host.partition(":")
    other = f"{_HOSTS.get(host, host)}:{port}" if port else _HOSTS.get(host, host)
    signature = _sign(service, sha256, expires)
    return f"{request.scheme}://{other}/signed/{sha256}?expires={expires}&signature={signature}"


async def signed_download(request: web.Request) -> web.StreamResponse:
    """Answer GET of a signed location."""
    service = service_of(request)
    for name in ("Authorization", "X-JFrog-Art-Api", "Cookie"):
        if name in request.headers:
            return web.Response(status=400, text="Only one auth mechanism allowed")
    sha256 = request.match_info["sha256"]
    try:
        expires = int(request.query.get("expires", ""))
    except ValueError:
        return web.Response(status=403, text="AccessDenied")
    genuine = hmac.compare_digest(
        request.query.get("signature", ""), _sign(service, sha256, expires)
    )
    if not genuine or expires < time.time():
        return web.Response(status=403, text="AccessDenied: Request has expired")
    place = service.filestore.place_of(sha256)
    with await asyncio.to_thread(open, place, "rb") as file:
        size = file.seek(0, 2)
        ranges = parse_range(request.headers.get("Range"), size)
        if ranges == []:
            return web.Response(status=416, headers={"Content-Range": f"bytes */{size}"})
        start, stop = ranges[0] if ranges else (0, size)
        response = web.StreamResponse(
            status=206 if ranges else 200,
            headers={"ETag": f'"store-{sha256[:16]}"', "Content-Type": "binary/octet-stream"},
        )
        if ranges:
            response.headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
        response.content_length = stop - start
        await response.prepare(request)
        await send_file(request, response, file, start, stop - start)
        return response


def _sign(service: Service, sha256: str, expires: int) -> str:
    message = f"{sha256}:{expires}".encode()
    return hmac.new(service.token.encode(), message, hashlib.sha256).hexdigest()
