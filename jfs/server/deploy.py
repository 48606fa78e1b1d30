"""PUT and DELETE of content. Source: artifactory-rest sections 4 and 5."""

import asyncio
import re
from collections.abc import Mapping
from email.utils import parsedate_to_datetime

from aiohttp import web

from jfs.server.answers import ApiError, json_response
from jfs.server.content import content_type_of
from jfs.server.context import USER, Service, base_url, service_of
from jfs.server.filestore import Blob, Upload
from jfs.server.paths import ItemPath
from jfs.server.ranges import iso_date
from jfs.server.store import Deployment, Item
from jfs.server.urls import encoded

# Received bytes are hashed and written in pieces of this size: handing 64 KiB (what aiohttp reads
# at a time) to four threads costs more than hashing it.
_PIECE = 1024 * 1024
_LENGTHS = {32: "md5", 40: "sha1", 64: "sha256"}
_HEX = re.compile(r"[0-9a-f]+")
_INTERCEPTED = (".sha1", ".md5", ".sha256")


async def deploy(request: web.Request, at: ItemPath) -> web.Response:
    """Answer PUT of a file or a folder."""
    service = service_of(request)
    config = await service.db(service.store.repository, at.repo)
    if config is None or config["rclass"] != "local":
        await _drain(request)
        raise ApiError(404, f"Could not find a local repository named {at.repo} to deploy to.")
    if at.folder or not at.path:
        await _drain(request)
        item = await service.db(service.store.make_folder, at, request[USER])
        return _folder_created(request, item)
    declared = declared_checksums(request.headers)
    if request.headers.get("X-Checksum-Deploy", "").lower() == "true":
        await _drain(request)
        blob = await _known_content(service, declared)
        item = await service.db(
            service.store.deploy, _deployment(request, at, declared), blob, None
        )
        return _file_created(request, item, declared)
    if at.path.endswith(_INTERCEPTED):
        return await _client_checksum(request, service, at)
    upload = await asyncio.to_thread(service.filestore.receive)
    try:
        await _receive(request, service, upload)
        blob = await asyncio.to_thread(upload.finish)
        _verify(at, blob, declared)
        item = await service.db(
            service.store.deploy, _deployment(request, at, declared), blob, upload.path
        )
    finally:
        await asyncio.to_thread(upload.close)
    return _file_created(request, item, declared)


async def delete(request: web.Request, at: ItemPath) -> web.Response:
    """Answer DELETE: files, and folders with everything in them."""
    service = service_of(request)
    if await service.db(service.store.repository, at.repo) is None:
        raise ApiError(404, "", plain=True)
    item = await service.db(service.store.find, at)
    if item is None:
        raise ApiError(404, f"Could not locate artifact '{at}' (Nothing to delete).")
    await service.db(service.store.delete, item)
    return web.Response(status=204)


def declared_checksums(headers: Mapping[str, str]) -> dict[str, str]:
    """Read the checksums that the client sent; malformed ones are ignored."""
    declared = {}
    for name in ("Sha256", "Sha1", "Md5"):
        value = headers.get(f"X-Checksum-{name}", "").strip().lower()
        if _LENGTHS.get(len(value)) == name.lower() and _HEX.fullmatch(value):
            declared[name.lower()] = value
    value = headers.get("X-Checksum", "").strip().lower()
    if len(value) in _LENGTHS and _HEX.fullmatch(value):
        declared.setdefault(_LENGTHS[len(value)], value)
    return declared


async def _known_content(service: Service, declared: Mapping[str, str]) -> Blob:
    """Find the content of a checksum deploy; md5 alone is not enough."""
    sha256, sha1 = declared.get("sha256"), declared.get("sha1")
    if not sha256 and not sha1:
        raise ApiError(400, "Checksum deploy failed. No checksum header 'X-Checksum-Sha256' found")
    blob = await service.db(service.store.blob_by_checksum, sha256, sha1)
    if blob is None:
        name, value = ("sha256", sha256) if sha256 else ("sha1", sha1)
        raise ApiError(404, f"Checksum deploy failed. No existing file with {name}: {value}")
    return blob


async def _receive(request: web.Request, service: Service, upload: Upload) -> None:
    """Write the body as it comes; memory stays at a piece or two, whatever the size."""
    piece = bytearray()
    writing: asyncio.Task[None] | None = None
    try:
        async for chunk in request.content.iter_any():
            piece += chunk
            if len(piece) >= _PIECE:
                if writing is not None:
                    await writing
                writing = asyncio.create_task(asyncio.to_thread(upload.write, piece))
                service.stats.count("", received=len(piece))
                piece = bytearray()
    finally:
        if writing is not None:
            await writing
    await asyncio.to_thread(upload.write, piece)
    service.stats.count("", received=len(piece))


async def _drain(request: web.Request) -> None:
    async for _ in request.content.iter_any():
        pass


def _verify(at: ItemPath, blob: Blob, declared: Mapping[str, str]) -> None:
    for name, value in declared.items():
        actual = getattr(blob, name)
        if actual != value:
            raise ApiError(
                409,
                "Checksum policy 'ChecksumPolicy: CLIENT' rejected the artifact "
                f"'{at}'. Checksums info: {name}: client '{value}', actual '{actual}'",
            )


def _deployment(request: web.Request, at: ItemPath, declared: dict[str, str]) -> Deployment:
    modified = None
    if "Last-Modified" in request.headers:
        try:
            date = parsedate_to_datetime(request.headers["Last-Modified"])
        except ValueError:
            date = None
        modified = int(date.timestamp() * 1000) if date else None
    return Deployment(at, request[USER], modified, declared)


async def _client_checksum(request: web.Request, service: Service, at: ItemPath) -> web.Response:
    """``PUT P.sha1`` registers a checksum of P; no such file comes to be (artifactory-rest 3.6)."""
    body = await request.content.read(1025)
    if len(body) > 1024:
        await _drain(request)
        raise ApiError(409, "Suspicious checksum file: longer than 1024 bytes")
    stem, _, extension = at.path.rpartition(".")
    item = await service.db(service.store.find, ItemPath(at.repo, stem))
    if item is None or item.is_folder:
        raise ApiError(404, f"Target file to set checksum on doesn't exist: {at.repo}:{stem}")
    words = body.decode("ascii", "replace").split()
    if not words or words[0].lower() != getattr(item.blob, extension):
        raise ApiError(409, f"Checksum error for '{stem}': it is not {words[0] if words else ''}")
    return web.Response(status=201, headers={"Location": f"{base_url(request)}/{encoded(at)}"})


def _file_created(request: web.Request, item: Item, declared: Mapping[str, str]) -> web.Response:
    blob = item.blob
    location = f"{base_url(request)}/{encoded(item)}"
    document = {
        "repo": item.repo,
        "path": f"/{item.path}",
        "created": iso_date(item.created),
        "createdBy": item.created_by,
        "downloadUri": location,
        "mimeType": content_type_of(item.name),
        "size": str(blob.size),
        "checksums": {"sha1": blob.sha1, "md5": blob.md5, "sha256": blob.sha256},
        "originalChecksums": {"sha256": blob.sha256, **declared},
        "uri": location,
    }
    return json_response(
        document,
        kind="storage.ItemCreated",
        status=201,
        headers={"Location": location, "X-Checksum-Sha256": blob.sha256},
    )


def _folder_created(request: web.Request, item: Item) -> web.Response:
    location = f"{base_url(request)}/{encoded(item)}/"
    document = {
        "repo": item.repo,
        "path": f"/{item.path}/" if item.path else "/",
        "created": iso_date(item.created),
        "createdBy": item.created_by,
        "uri": location,
    }
    return json_response(
        document, kind="storage.ItemCreated", status=201, headers={"Location": location}
    )
