"""``api/repositories``. Source: artifactory-rest section 9.1."""

import re

from aiohttp import web

from jfs.server.answers import ApiError, json_response
from jfs.server.context import base_url, service_of

_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_RESERVED = frozenset({"api", "list", "simple", "ui", "webapp", "artifactory-build-info"})
_DEFAULTS = {
    "description": "",
    "notes": "",
    "includesPattern": "**/*",
    "excludesPattern": "",
    "repoLayoutRef": "simple-default",
}


async def list_repositories(request: web.Request) -> web.Response:
    service = service_of(request)
    rows = []
    for config in await service.db(service.store.repositories):
        kind, package = config["rclass"], config["packageType"]
        if request.query.get("type", kind).lower() != kind:
            continue
        if request.query.get("packageType", package).lower() != package:
            continue
        rows.append(
            {
                "key": config["key"],
                "description": config.get("description", ""),
                "type": kind.upper(),
                "url": f"{base_url(request)}/{config['key']}",
                "packageType": package.capitalize(),
            }
        )
    return json_response(rows)


async def get_repository(request: web.Request) -> web.Response:
    service = service_of(request)
    config = await service.db(service.store.repository, request.match_info["key"])
    if config is None:
        raise ApiError(400, f"Bad Request: no repository {request.match_info['key']}")
    return json_response(config)


async def create_repository(request: web.Request) -> web.Response:
    """Answer PUT: a local generic repository, for now."""
    service = service_of(request)
    key = request.match_info["key"]
    config = configuration(key, await _document(request))
    if await service.db(service.store.repository, key) is not None:
        raise ApiError(400, f"Case insensitive repository key already exists: {key}", plain=True)
    await service.db(service.store.put_repository, config)
    return web.Response(text=f"Successfully created repository '{key}' \n")


async def update_repository(request: web.Request) -> web.Response:
    service = service_of(request)
    key = request.match_info["key"]
    old = await service.db(service.store.repository, key)
    if old is None:
        raise ApiError(400, f"Repository {key} does not exist", plain=True)
    config = configuration(key, {**old, **await _document(request)})
    await service.db(service.store.put_repository, config)
    return web.Response(text=f"Successfully updated repository '{key}' \n")


async def delete_repository(request: web.Request) -> web.Response:
    service = service_of(request)
    key = request.match_info["key"]
    if await service.db(service.store.repository, key) is None:
        raise ApiError(404, f"Repository {key} does not exist", plain=True)
    await service.db(service.store.delete_repository, key)
    return web.Response(
        text=f"Repository '{key}' and all its content have been removed successfully."
    )


def configuration(key: str, document: dict[str, str]) -> dict[str, str]:
    """Check a configuration and fill its defaults. Raises ApiError 400."""
    if not _KEY.fullmatch(key) or key in _RESERVED or key.endswith("-cache"):
        raise ApiError(400, f"Invalid repository key: '{key}'", plain=True)
    if document.get("key", key) != key:
        raise ApiError(400, "The repository key in the body differs from the path's", plain=True)
    rclass = str(document.get("rclass", "local")).lower()
    package = str(document.get("packageType", "generic")).lower()
    if rclass != "local" or package != "generic":
        raise ApiError(
            400, f"Only local generic repositories exist here, not {rclass} {package}", plain=True
        )
    return {**_DEFAULTS, **document, "key": key, "rclass": rclass, "packageType": package}


async def _document(request: web.Request) -> dict[str, str]:
    body = await request.read()
    try:
        document = await request.json() if body else {}
    except ValueError:
        document = None
    if not isinstance(document, dict):
        raise ApiError(400, "The body is not a JSON object", plain=True)
    return document
