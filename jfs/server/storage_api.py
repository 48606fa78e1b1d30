"""``api/storage`` and ``api/metadata``: what is known of items. Source: artifactory-rest 6, 7."""

import json
from collections.abc import Awaitable, Callable

from aiohttp import web

from jfs.server.answers import ApiError, json_response
from jfs.server.content import content_type_of
from jfs.server.context import Service, base_url, service_of
from jfs.server.paths import ItemPath, check_key, parse_property_query
from jfs.server.ranges import http_date, iso_date
from jfs.server.store import Item, now_ms
from jfs.server.urls import encoded

_NO_STORE = {"Cache-Control": "no-store"}
_Selector = Callable[[web.Request, Service, Item], Awaitable[web.Response]]


async def describe(request: web.Request, at: ItemPath) -> web.Response:
    """Answer GET; only the presence of a selector counts (artifactory-rest 6)."""
    service = service_of(request)
    if "list" in request.query and not at.repo:
        raise ApiError(400, "Cannot list files of root.")
    item = await find(service, at, "Unable to find item")
    for name, selector in _SELECTORS:
        if name in request.query:
            return await selector(request, service, item)
    return await _info(request, service, item)


async def set_properties(request: web.Request, at: ItemPath) -> web.Response:
    """Answer PUT: the named keys get these values; others stay."""
    service = service_of(request)
    changes = parse_property_query(_query(request, "properties"))
    item = await find(service, at, "Unable to find item")
    recursive = _flag(request, "recursive", default=True)
    await _change(service, item, dict(changes), recursive=recursive)
    return web.Response(status=204)


async def delete_properties(request: web.Request, at: ItemPath) -> web.Response:
    """Answer DELETE: remove the named keys."""
    service = service_of(request)
    keys = [key for key in _query(request, "properties").split(",") if key]
    if not keys:
        raise ApiError(400, "Unspecified properties to delete.")
    item = await find(service, at, "Unable to find item")
    recursive = _flag(request, "recursive", default=True)
    await _change(service, item, dict.fromkeys(keys), recursive=recursive)
    return web.Response(status=204)


async def patch_metadata(request: web.Request, at: ItemPath) -> web.Response:
    """Answer PATCH ``api/metadata``: merge, null deletes (artifactory-rest 7.3)."""
    service = service_of(request)
    try:
        document = json.loads(await request.read())
        props = document.get("props")
    except (ValueError, AttributeError):
        raise ApiError(400, "The body is not a JSON object") from None
    if props is None and document.get("stats") is None:
        raise ApiError(400, "props or stats fields required")
    changes: dict[str, list[str] | None] = {}
    for key, value in (props or {}).items():
        check_key(key)
        values = value if isinstance(value, list) else [value]
        if value is not None and not all(isinstance(one, str) for one in values):
            raise ApiError(400, f"The value of property {key} is not a string")
        changes[key] = None if value is None else list(dict.fromkeys(values))
    item = await find(service, at, "Unable to find item")
    recursive = _flag(request, "recursiveProperties", default=True)
    await _change(service, item, changes, recursive=recursive)
    return web.Response(status=204)


async def delete_metadata(request: web.Request, at: ItemPath) -> web.Response:
    """Answer DELETE ``api/metadata``: remove every property."""
    service = service_of(request)
    item = await find(service, at, "Unable to find item")
    await service.db(service.store.clear_properties, item)
    return web.Response(status=204)


async def find(service: Service, at: ItemPath, message: str) -> Item:
    """Give an item or raise ApiError 404."""
    item = await service.db(service.store.find, at)
    if item is None:
        raise ApiError(404, message)
    return item


async def _info(request: web.Request, service: Service, item: Item) -> web.Response:
    uri = f"{base_url(request)}/api/storage/{encoded(item)}"
    document: dict[str, object] = {
        "repo": item.repo,
        "path": f"/{item.path}",
        "created": iso_date(item.created),
        "createdBy": item.created_by,
        "lastModified": iso_date(item.modified),
        "modifiedBy": item.modified_by,
        "lastUpdated": iso_date(item.updated),
    }
    if item.is_folder:
        children = await service.db(service.store.children, item.repo, item.path)
        document["children"] = [
            {"uri": f"/{child.name}", "folder": child.is_folder} for child in children
        ]
        document["uri"] = uri
        return json_response(document, kind="storage.FolderInfo", headers=_NO_STORE)
    blob = item.blob
    document |= {
        "downloadUri": f"{base_url(request)}/{encoded(item)}",
        "mimeType": content_type_of(item.name),
        "size": str(blob.size),
        "checksums": {"sha1": blob.sha1, "md5": blob.md5, "sha256": blob.sha256},
        "originalChecksums": {"sha256": blob.sha256, **json.loads(item.original)},
        "uri": uri,
    }
    return json_response(document, kind="storage.FileInfo")


async def _list(request: web.Request, service: Service, item: Item) -> web.Response:
    if not item.is_folder:
        raise ApiError(400, f"Expected a folder but found a file, at: {item.repo}:{item.path}")
    deep = _flag(request, "deep", default=False)
    depth = _number(request, "depth")
    if deep:
        items = await service.db(service.store.descendants, item.repo, item.path)
    else:
        items = await service.db(service.store.children, item.repo, item.path)
    above = len(item.path) + 1 if item.path else 0
    rows: list[dict[str, object]] = []
    if _flag(request, "includeRootPath", default=False):
        rows.append(_row("/", item))
    folders = _flag(request, "listFolders", default=False)
    for one in items:
        relative = one.path[above:]
        if one.is_folder and not folders:
            continue
        if depth is not None and deep and relative.count("/") >= depth:
            continue
        rows.append(_row(f"/{relative}", one))
    document = {
        "uri": f"{base_url(request)}/api/storage/{encoded(item)}",
        "created": iso_date(now_ms()),
        "files": rows,
    }
    return json_response(document, kind="storage.FileList")


def _row(uri: str, item: Item) -> dict[str, object]:
    row: dict[str, object] = {
        "uri": uri,
        "size": -1 if item.size is None else item.size,
        "lastModified": iso_date(item.modified),
        "folder": item.is_folder,
    }
    if not item.is_folder:
        row |= {"sha1": item.blob.sha1, "sha2": item.blob.sha256}
    return row


async def _properties(request: web.Request, service: Service, item: Item) -> web.Response:
    properties = await service.db(service.store.properties, item)
    wanted = [key for key in request.query.get("properties", "").split(",") if key]
    if wanted:
        properties = {key: values for key, values in properties.items() if key in wanted}
    if not properties:
        raise ApiError(404, "No properties could be found.")
    uri = f"{base_url(request)}/api/storage/{encoded(item)}"
    document = {"properties": properties, "uri": uri}
    return json_response(document, kind="storage.ItemProperties", headers=_NO_STORE)


async def _stats(request: web.Request, service: Service, item: Item) -> web.Response:
    await service.flush_downloads()
    downloads, last, last_by = await service.db(service.store.stats, item)
    document: dict[str, object] = {
        "uri": f"{base_url(request)}/{encoded(item)}",
        "downloadCount": downloads,
        "lastDownloaded": last,
        "remoteDownloadCount": 0,
        "remoteLastDownloaded": 0,
    }
    if last_by:
        document["lastDownloadedBy"] = last_by
    return json_response(document, kind="storage.StatsInfo")


async def _last_modified(request: web.Request, service: Service, item: Item) -> web.Response:
    newest = item
    if item.is_folder:
        below = await service.db(service.store.descendants, item.repo, item.path)
        newest = max([item, *below], key=lambda one: one.modified)
    document = {
        "uri": f"{base_url(request)}/api/storage/{encoded(newest)}",
        # This answer alone writes the offset without a colon (artifactory-rest 1.6).
        "lastModified": iso_date(newest.modified).replace("Z", "+0000"),
    }
    headers = {"Last-Modified": http_date(newest.modified)}
    return json_response(document, kind="storage.ItemLastModified", headers=headers)


_SELECTORS: list[tuple[str, _Selector]] = [
    ("list", _list),
    ("stats", _stats),
    ("lastModified", _last_modified),
    ("properties", _properties),
]


async def _change(
    service: Service, item: Item, changes: dict[str, list[str] | None], *, recursive: bool
) -> None:
    await service.db(lambda: service.store.change_properties(item, changes, recursive=recursive))


def _query(request: web.Request, name: str) -> str:
    """Read a query value in which a raw ``;`` is not a separator."""
    return request.query.get(name, "")


def _flag(request: web.Request, name: str, *, default: bool) -> bool:
    value = request.query.get(name)
    return default if value is None else value not in ("0", "false")


def _number(request: web.Request, name: str) -> int | None:
    value = request.query.get(name)
    if value is None:
        return None
    if not value.isdigit():
        raise ApiError(400, f"{name} must be a number, not '{value}'")
    return int(value)
