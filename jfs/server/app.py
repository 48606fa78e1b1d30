"""Routes and the middleware around every handler: faults, users, errors, counting."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from aiohttp import web

from jfs.server import content, deploy, repositories, signed, storage_api, system
from jfs.server.answers import ApiError, error_response
from jfs.server.auth import user_of
from jfs.server.context import FAULT, SERVICE, USER, Service, service_of
from jfs.server.faults import Fault
from jfs.server.paths import ItemPath, parse_item_path

log = logging.getLogger(__name__)

PREFIX = "/artifactory"
_ItemHandler = Callable[[web.Request, ItemPath], Awaitable[web.StreamResponse]]
_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def make_app(service: Service) -> web.Application:
    """Build the application around a service."""
    app = web.Application(middlewares=[_around], client_max_size=64 * 1024 * 1024)
    app[SERVICE] = service
    api = f"{PREFIX}/api"
    app.router.add_get(f"{api}/system/ping", system.ping)
    app.router.add_get(f"{api}/system/version", system.version)
    app.router.add_post(f"{api}/system/usage", system.usage)
    app.router.add_get(f"{api}/storageinfo", system.storage_info)
    app.router.add_get(f"{api}/repositories", repositories.list_repositories)
    app.router.add_get(f"{api}/repositories/{{key}}", repositories.get_repository)
    app.router.add_put(f"{api}/repositories/{{key}}", repositories.create_repository)
    app.router.add_post(f"{api}/repositories/{{key}}", repositories.update_repository)
    app.router.add_delete(f"{api}/repositories/{{key}}", repositories.delete_repository)
    _items(app, f"{api}/storage", "GET", storage_api.describe)
    _items(app, f"{api}/storage", "PUT", storage_api.set_properties)
    _items(app, f"{api}/storage", "DELETE", storage_api.delete_properties)
    _items(app, f"{api}/metadata", "PATCH", storage_api.patch_metadata)
    _items(app, f"{api}/metadata", "DELETE", storage_api.delete_metadata)
    app.router.add_route("*", f"{api}/{{tail:.*}}", _unknown)
    for method in ("GET", "HEAD"):
        _items(app, PREFIX, method, content.download)
    _items(app, PREFIX, "PUT", deploy.deploy)
    _items(app, PREFIX, "DELETE", deploy.delete)
    app.router.add_route("*", f"{PREFIX}/{{tail:.*}}", _not_allowed)
    app.router.add_get("/signed/{sha256:[0-9a-f]{64}}", signed.signed_download)
    app.router.add_get("/jfs/stats", system.get_stats)
    app.router.add_delete("/jfs/stats", system.reset_stats)
    return app


def _items(app: web.Application, prefix: str, method: str, handler: _ItemHandler) -> None:
    """Route everything below *prefix* to a handler of items; the raw path is ours to read."""

    async def handle(request: web.Request) -> web.StreamResponse:
        raw = request.raw_path.partition("?")[0]
        return await handler(request, parse_item_path(raw.removeprefix(prefix)))

    app.router.add_route(method, f"{prefix}/{{tail:.*}}", handle)


async def _unknown(request: web.Request) -> web.StreamResponse:
    raise ApiError(404, "Not Found")


async def _not_allowed(request: web.Request) -> web.StreamResponse:
    raise ApiError(405, "Method Not Allowed", headers={"Allow": "GET, HEAD, PUT, DELETE"})


@web.middleware
async def _around(request: web.Request, handler: _Handler) -> web.StreamResponse:
    service = service_of(request)
    path = request.path.removeprefix(PREFIX)
    if path.startswith("/jfs/"):
        try:
            user_of(request, service)
            return await handler(request)
        except ApiError as error:
            return error_response(error)
    route = f"{request.method} {'/'.join(path.split('/')[:3]) if '/api/' in path else 'content'}"
    service.stats.count(route, requests=1)
    response: web.StreamResponse
    try:
        fault = service.faults.match(request.method, path)
        if fault is not None:
            request[FAULT] = fault
            answer = await _instead(request, fault)
            if answer is not None:
                return answer
        if not path.startswith("/signed/"):
            request[USER] = user_of(request, service)
        response = await handler(request)
    except ApiError as error:
        response = error_response(error)
    except web.HTTPException:
        raise
    except ConnectionError:
        raise  # the client went away: aiohttp ends the connection
    except Exception:
        log.exception("%s %s failed", request.method, path)
        response = error_response(ApiError(500, "Internal server error"))
    size = response.content_length
    if size and request.method != "HEAD":
        service.stats.count(route, sent=size)
    return response


async def _instead(request: web.Request, fault: Fault) -> web.StreamResponse | None:
    """Answer by a fault that replaces the whole answer; None: the handler looks at it."""
    match fault.action:
        case "status":
            if not fault.body:
                return error_response(ApiError(fault.status, "fault", headers=fault.headers))
            return web.Response(
                status=fault.status,
                text=fault.body,
                headers=dict(fault.headers),
            )
        case "garbage":
            return web.Response(text=fault.body or "<html>login</html>", content_type="text/html")
        case "stall":
            await fault.wait_released()
        case "drop" if not fault.bytes and request.transport is not None:
            request.transport.abort()
            await asyncio.sleep(0)
            raise ConnectionResetError("fault")
        case _:
            pass
    return None
