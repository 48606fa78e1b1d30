"""The content plane, reading: GET and HEAD. The server's event loop only.

A file that was asked for before is answered without leaving the loop: no thread, no database.
Source: artifactory-rest 3.
"""

import html
import secrets
from collections.abc import Sequence
from functools import partial
from typing import IO
from urllib.parse import quote

from jfs.extents import Extent
from jfs.model import RepoPath
from jfs.server.http.exchange import Answer, Call, Part, Slice, json_answer, text_answer
from jfs.server.store.catalogue import Item
from jfs.server.store.filestore import Blob
from jfs.server.store.rights import Right
from jfs.server.store.store import Found
from jfs.server.wire import answers, ranges
from jfs.server.wire.answers import ApiError
from jfs.server.wire.paths import Target, parse_keys, parse_target

SIDE_FILES = ("sha1", "sha256", "md5")


async def read(call: Call) -> Answer:
    """Answer GET and HEAD ``<ctx>/R/P``, and below ``list/`` and ``simple/``, which browse it."""
    return await read_target(call, parse_target(call.rest))


def require_readable(call: Call, path: RepoPath) -> None:
    """Refuse a download before anything is looked up or fetched. Raises ApiError 403."""
    if call.lacks(Right.READ, path.repo):
        raise ApiError(
            403,
            f"Download request for repo:path '{path.repo}:{path.path}' is forbidden for user: "
            f"'{call.user.name}'.",
        )


async def read_target(call: Call, target: Target) -> Answer:
    """Answer GET and HEAD of an item that is here."""
    try:
        found, file = await _open(call, target.path)
    except ApiError as error:
        if error.status != 404:
            raise
        checksum = await call.run(lambda: _side_file(call, target.path))
        if checksum is None:
            raise
        return text_answer(checksum, media_type="application/x-checksum")
    blob = found.item.blob
    if blob is None or file is None:
        return await _folder(call, target, found)
    done = partial(call.store.files.open_files.give_back, blob.sha256, file)
    try:
        answer = _file(call, target, found, blob, file)
    except BaseException:
        done()
        raise
    answer.done = done
    return answer


def properties_answer(call: Call, found: Found, wanted: str) -> Answer:
    """Answer ``?properties[=k1,k2]``. Raises ApiError 404 when there are none."""
    keys = parse_keys(wanted) or list(found.properties)
    chosen = {
        key: list(values)
        for key, values in sorted(found.properties.items())
        if any(key == each or _is_prefix(each, key) for each in keys)
    }
    if not chosen:
        raise ApiError(404, "No properties could be found.")
    return json_answer(
        {"properties": chosen, "uri": f"{call.base}/api/storage/{link(found.item.path)}"},
        answers.ITEM_PROPERTIES,
        headers={"Cache-Control": "no-store"},
    )


def link(path: RepoPath) -> str:
    """Encode a path for a URL below the service."""
    return answers.quote_path(str(path))


def _is_prefix(pattern: str, key: str) -> bool:
    return pattern.endswith("*") and key.startswith(pattern[:-1])


async def _open(call: Call, path: RepoPath) -> tuple[Found, IO[bytes] | None]:
    found = call.store.lookup(path)
    if found is not None:
        if found.item.blob is None:
            return found, None
        file = call.store.files.open_files.borrow(found.item.blob.sha256)
        if file is not None:
            return found, file
    return await call.run(lambda: call.store.open(path))


def _file(call: Call, target: Target, found: Found, blob: Blob, file: IO[bytes]) -> Answer:
    if target.folder:
        raise ApiError(404, "File not found.")
    for key in target.mandatory:
        if not set(target.properties[key]) & set(found.properties.get(key, ())):
            raise ApiError(404, f"No artifact has the mandatory property {key}.")
    if "properties" in call.query:
        return properties_answer(call, found, call.query["properties"])
    modified_s = found.item.modified // 1000
    headers = describe(found, blob)
    if ranges.not_modified(call.headers, blob.etag, modified_s):
        return Answer(304, headers)
    extents: list[Extent] = []
    if call.request.method == "GET":
        try:
            extents = ranges.requested(call.headers, blob.size, blob.etag, modified_s)
        except ranges.Unsatisfiable:
            return Answer(416, {"Content-Range": f"bytes */{blob.size}"})
        # Only what begins at the beginning: a download in pieces is one download.
        if (not extents or extents[0].start == 0) and "skipUpdateStats" not in call.query:
            call.store.count_download(found.item, call.user.name)
    if not extents:
        return Answer(200, headers, [Slice(file, Extent(0, blob.size))])
    if len(extents) > 1:
        return _multipart(headers, blob.size, file, extents)
    headers["Content-Range"] = _content_range(extents[0], blob.size)
    return Answer(206, headers, [Slice(file, extents[0])])


def describe(found: Found, blob: Blob) -> dict[str, str]:
    """Return the headers that describe a file (3.1)."""
    name = found.item.path.name
    override = found.properties.get("artifactory.content-type", ())
    media_type = override[0] if override and _is_header(override[0]) else answers.mime_type(name)
    headers = {
        "Last-Modified": answers.http_date(found.item.modified),
        "ETag": blob.etag,
        "Accept-Ranges": "bytes",
        "X-Artifactory-Filename": quote(name, safe=""),
        "Content-Disposition": answers.disposition(name),
        "Content-Type": media_type,
        "X-Checksum-Sha256": blob.sha256,
    }
    if blob.sha1:
        headers["X-Checksum-Sha1"] = blob.sha1
    if blob.md5:
        headers["X-Checksum-Md5"] = blob.md5
    return headers


def _is_header(text: str) -> bool:
    return text.isascii() and text.isprintable() and text != ""


def _content_range(extent: Extent, size: int) -> str:
    return f"bytes {extent.start}-{extent.stop - 1}/{size}"


def _multipart(
    headers: dict[str, str], size: int, file: IO[bytes], extents: Sequence[Extent]
) -> Answer:
    boundary = secrets.token_hex(12)
    parts: list[Part] = []
    for extent in extents:
        head = (
            f"\r\n--{boundary}\r\nContent-Type: {headers['Content-Type']}\r\n"
            f"Content-Range: {_content_range(extent, size)}\r\n\r\n"
        )
        parts += [head.encode(), Slice(file, extent)]
    parts.append(f"\r\n--{boundary}--\r\n".encode())
    media_type = f"multipart/byteranges; boundary={boundary}"
    return Answer(206, {**headers, "Content-Type": media_type}, parts)


def _side_file(call: Call, path: RepoPath) -> str | None:
    """Return the checksum that ``P.sha1`` and the like stand for, if ``P`` is a file (3.6)."""
    stem, _, kind = path.path.rpartition(".")
    if kind not in SIDE_FILES or not stem:
        return None
    item = call.store.find(RepoPath(path.repo, stem))
    if item is None or item.blob is None:
        return None
    return item.blob.known.get(kind)


async def _folder(call: Call, target: Target, found: Found) -> Answer:
    path = found.item.path
    if "properties" in call.query:
        return properties_answer(call, found, call.query["properties"])
    if not target.folder:
        return Answer(302, {"Location": f"{call.base}/{link(path)}/"})
    children = await call.run(lambda: call.store.children(path))
    return text_answer(_index(path, children), media_type="text/html;charset=UTF-8")


def _index(path: RepoPath, children: Sequence[Item]) -> str:
    title = html.escape(f"Index of {path}")
    lines = [f'<html><head><meta charset="utf-8"><title>{title}</title></head>']
    lines += [f"<body><h1>{title}</h1><pre>Name    Last modified      Size</pre><hr/><pre>"]
    if path.path:
        lines.append('<a href="../">../</a>')
    for child in children:
        slash = "" if child.blob else "/"
        name = child.path.name
        size = f"{child.blob.size} bytes" if child.blob else "-"
        href = html.escape(f"./{answers.quote_path(name)}{slash}")
        when = answers.iso_date(child.modified)
        lines.append(f'<a href="{href}">{html.escape(name)}{slash}</a>    {when}  {size}')
    lines.append("</pre><hr/></body></html>\n")
    return "\n".join(lines)
