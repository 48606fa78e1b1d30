"""The content plane, writing: PUT and DELETE. The server's event loop only.

A body is hashed and written by threads while the next part is received; what becomes visible is
a whole artifact or none. Source: artifactory-rest 4 and 5.
"""

import asyncio
import re
from functools import partial

from jfs.extents import KiB, MiB
from jfs.model import Checksums, RepoPath
from jfs.server.http.exchange import BODY_IDLE_S, Answer, Call, holds_body_back, json_answer
from jfs.server.http.intake import Intake
from jfs.server.routes import builds
from jfs.server.routes.download import SIDE_FILES, link
from jfs.server.store import placement
from jfs.server.store.catalogue import Item
from jfs.server.store.filestore import Incoming
from jfs.server.store.placement import Deployment
from jfs.server.store.rights import Right
from jfs.server.store.store import Store, no_room
from jfs.server.wire import answers
from jfs.server.wire.answers import ApiError
from jfs.server.wire.paths import Target, parse_target

_HEX = re.compile(r"[0-9a-f]+")
_LENGTHS = {"sha256": 64, "sha1": 40, "md5": 32}
# Handed to threads at a time: waking them costs a hundredth of hashing as much (4 ms).
_WRITE_BYTES = 2 * MiB
_SIDE_FILE_BYTES = 1024
# A body that is no longer is received first, and then one thread does everything: to wake one for
# each step costs more than to hash it.
_AT_ONCE_BYTES = 64 * KiB


async def put(call: Call) -> Answer:
    """Answer PUT ``<ctx>/R/P[;props]``."""
    target = parse_target(call.rest)
    if target.folder or not target.path.path:
        return await _make_folder(call, target)
    if call.headers.get("X-Explode-Archive", "").lower() == "true":
        raise ApiError(400, "This server does not unpack archives: deploy the files one by one.")
    if target.path.repo == builds.BUILD_INFO:
        await builds.publish(call)  # as real servers forward it (4.1)
        return Answer(201)
    store, path, deployment = call.store, target.path, _deployment(call, target)
    if call.headers.get("X-Checksum-Deploy", "").lower() == "true":
        if not (deployment.original.sha256 or deployment.original.sha1):
            raise ApiError(
                400, "Checksum deploy failed. No sha256 or sha1 was given in X-Checksum headers."
            )
        return _created(call, await call.run(lambda: placement.known(store, path, deployment)))
    if (answer := await _side_file(call, path)) is not None:
        return answer
    size = call.request.content_length
    if size is not None and size <= _AT_ONCE_BYTES and not holds_body_back(call.request):
        body = await call.body(size)
        return _created(call, await call.run(lambda: _stored(store, path, deployment, body)))
    room = await call.run(lambda: placement.check(store, path, deployment))
    if room is not None and (call.request.content_length or 0) > room:
        raise no_room()
    incoming = await call.run(store.receive)
    try:
        call.ask_for_body()
        await _receive(call, incoming, room)
        item = await call.run(lambda: placement.received(store, path, incoming, deployment))
    finally:
        await call.run(incoming.discard)
    return _created(call, item)


def _stored(store: Store, path: RepoPath, deployment: Deployment, body: bytes) -> Item:
    """Publish a body that was received whole. Blocking."""
    room = placement.check(store, path, deployment)
    if room is not None and len(body) > room:
        raise no_room()
    incoming = store.receive()
    try:
        incoming.write(body)
        return placement.received(store, path, incoming, deployment)
    finally:
        incoming.discard()


async def delete(call: Call) -> Answer:
    """Answer DELETE ``<ctx>/R/P``; a folder goes with everything in it."""
    path = parse_target(call.rest).path
    # To empty a whole repository is administration (5).
    if call.lacks(Right.DELETE if path.path else Right.MANAGE, path.repo):
        raise ApiError(
            403,
            f"Not enough permissions to delete/overwrite all artifacts under '{path.path}' "
            f"(user: '{call.user.name}' needs DELETE permission).",
        )
    await call.run(lambda: call.store.delete(path))
    return Answer(204)


async def _make_folder(call: Call, target: Target) -> Answer:
    await call.drain()
    item = await call.run(
        lambda: placement.make_folder(
            call.store, target.path, user=call.user, properties=target.properties
        )
    )
    uri = f"{call.base}/{link(item.path)}/"
    return json_answer(
        {
            "repo": item.path.repo,
            "path": f"/{item.path.path}/" if item.path.path else "/",
            "created": answers.iso_date(item.created),
            "createdBy": item.created_by,
            "uri": uri,
        },
        answers.ITEM_CREATED,
        status=201,
        headers={"Location": uri},
    )


def _created(call: Call, item: Item) -> Answer:
    blob = item.blob
    assert blob is not None
    url = f"{call.base}/{link(item.path)}"
    return json_answer(
        {
            "repo": item.path.repo,
            "path": f"/{item.path.path}",
            "created": answers.iso_date(item.created),
            "createdBy": item.created_by,
            "downloadUri": url,
            "mimeType": answers.mime_type(item.path.name),
            "size": str(blob.size),
            "checksums": blob.known,
            "originalChecksums": {**item.original, "sha256": blob.sha256},
            "uri": url,
        },
        answers.ITEM_CREATED,
        status=201,
        headers={"Location": url, "X-Checksum-Sha256": blob.sha256},
    )


async def _receive(call: Call, incoming: Incoming, room: int | None) -> None:
    """Read the body into *incoming*. Raises what the connection raises when the client goes.

    Raises:
        ApiError: 413, more than *room* came.
    """
    received = 0
    writing: asyncio.Future[None] | None = None
    try:
        while (rest := call.take_body(received)) is None:
            batch = bytearray()
            while len(batch) < _WRITE_BYTES and (chunk := await call.chunk()):
                batch += chunk
            if writing is not None:
                await writing
                writing = None
            if not batch:
                return
            received += len(batch)
            if room is not None and received > room:
                raise no_room()
            writing = asyncio.ensure_future(call.run(partial(incoming.write, batch)))
    finally:
        if writing is not None:  # the file must not be closed under the thread
            await asyncio.wait([writing])
    await _receive_rest(call, incoming, rest)


async def _receive_rest(call: Call, incoming: Incoming, rest: Intake) -> None:
    try:
        while piece := await rest.piece(BODY_IDLE_S):
            await call.run(partial(incoming.write, piece))
    except OSError as error:
        if not isinstance(error, ConnectionError):  # the disk's
            await rest.drain(BODY_IDLE_S)
        raise
    finally:
        rest.end()


def _deployment(call: Call, target: Target) -> Deployment:
    """Read what the headers state. Raises ApiError 400 for what is no digest."""
    headers = call.headers
    date = answers.parse_http_date(headers.get("Last-Modified", ""))
    modified = None if date is None or date < 0 else date * 1000
    admin = call.user.is_admin
    stated = _milliseconds(headers.get("X-Artifactory-Last-Modified", "")) if admin else None
    return Deployment(
        call.user,
        target.properties,
        _declared(call),
        modified=modified if stated is None else stated,
        created=_milliseconds(headers.get("X-Artifactory-Created", "")) if admin else None,
        created_by=headers.get("X-Artifactory-Created-By") if admin else None,
        modified_by=headers.get("X-Artifactory-Modified-By") if admin else None,
    )


def _milliseconds(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 15 else None


def _declared(call: Call) -> Checksums:
    found: dict[str, str] = {}
    for name, length in _LENGTHS.items():
        header = f"X-Checksum-{name.capitalize()}"
        value = call.headers.get(header, "").strip().lower()
        if not value:
            continue
        if len(value) != length or not _HEX.fullmatch(value):
            raise ApiError(400, f"{header} is not a {name}: {value[:80]}")
        found[name] = value
    plain = call.headers.get("X-Checksum", "").strip().lower()
    for name, length in _LENGTHS.items():
        if len(plain) == length and _HEX.fullmatch(plain):
            found.setdefault(name, plain)
    return Checksums(found.get("sha256"), found.get("sha1"), found.get("md5"))


async def _side_file(call: Call, path: RepoPath) -> Answer | None:
    """Compare a PUT of ``P.sha1`` with ``P``; it is not stored (3.6)."""
    stem, _, kind = path.path.rpartition(".")
    if kind not in SIDE_FILES or not stem:
        return None
    await call.run(lambda: placement.require_target(call.store, path, call.user))
    try:
        body = await call.body(_SIDE_FILE_BYTES)
    except ApiError as error:
        if error.status != 413:
            raise
        raise ApiError(409, "A checksum file is at most 1024 bytes long.") from None
    item = await call.run(lambda: call.store.find(RepoPath(path.repo, stem)))
    if item is None or item.blob is None:
        raise ApiError(404, f"Target file to set checksum on doesn't exist: {path.repo}:{stem}")
    words = body.decode("ascii", "replace").split()
    if not words or words[0].lower() != item.blob.known.get(kind):
        raise ApiError(409, f"Checksum error for '{path}': it is not the {kind} of the artifact.")
    return Answer(201, {"Location": f"{call.base}/{link(path)}"})
