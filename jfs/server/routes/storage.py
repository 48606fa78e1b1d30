"""``GET api/storage``: what is known of items. Event loop only. Source: artifactory-rest 6."""

from jfs.model import RepoPath
from jfs.server.http.exchange import Answer, Call, json_answer
from jfs.server.routes.download import link, properties_answer
from jfs.server.store.catalogue import Downloads, Item
from jfs.server.store.rights import ANONYMOUS, CACHE, Right
from jfs.server.store.store import now_ms
from jfs.server.wire import answers
from jfs.server.wire.answers import ApiError, iso_date, quoted
from jfs.server.wire.paths import parse_target

_NO_STORE = {"Cache-Control": "no-store"}


async def get(call: Call) -> Answer:
    """Answer by the selector that comes first in the order of section 6."""
    path = parse_target(call.rest).path
    if call.store.repositories.remote(path.repo) is not None:
        path = RepoPath(path.repo + CACHE, path.path)  # what it has fetched, and no more
    if call.lacks(Right.READ, path.repo):
        name = call.user.name
        raise ApiError(
            403, f"Request for '{path.repo}:{path.path}' is forbidden for user: '{name}'."
        )
    query = call.query
    if "list" in query:
        return await _list(call, path)
    if "stats" in query:
        try:
            downloads = await call.run(lambda: call.store.downloads(path))
        except ApiError:
            raise ApiError(404, "Unable to find item path") from None
        return _stats(call, path, downloads)
    if "lastModified" in query:
        return await _last_modified(call, path)
    try:
        found = call.store.lookup(path)
        if found is None:
            found = await call.run(lambda: call.store.read(path))
    except ApiError:
        if "properties" in query:
            raise ApiError(404, "No properties could be found.") from None
        raise ApiError(404, "Unable to find item") from None
    if "properties" in query:
        return properties_answer(call, found, query["properties"])
    if found.item.is_folder:
        children = await call.run(lambda: call.store.children(path))
        return _folder(call, found.item, children)
    return _file(call, found.item)


def flag(call: Call, name: str, *, default: bool) -> bool:
    """Read ``0`` or ``1`` of the query. Raises ApiError 400."""
    return bool(number(call, name, int(default)))


def number(call: Call, name: str, default: int) -> int:
    text = call.query.get(name)
    if text is None:
        return default
    try:
        return int(text[:18])
    except ValueError:
        raise ApiError(400, f"{name} must be a number, not '{text[:80]}'.") from None


def _uri(call: Call, path: RepoPath) -> str:
    return f"{call.base}/api/storage/{link(path)}"


def _common(item: Item) -> dict[str, object]:
    return {
        "repo": item.path.repo,
        "path": f"/{item.path.path}",
        "created": iso_date(item.created),
        "createdBy": item.created_by,
        "lastModified": iso_date(item.modified),
        "modifiedBy": item.modified_by,
        "lastUpdated": iso_date(item.updated),
    }


def _file(call: Call, item: Item) -> Answer:
    assert item.blob is not None
    return json_answer(
        {
            **_common(item),
            "downloadUri": f"{call.base}/{link(item.path)}",
            "mimeType": answers.mime_type(item.path.name),
            "size": str(item.blob.size),
            "checksums": item.blob.known,
            "originalChecksums": {**item.original, "sha256": item.blob.sha256},
            "uri": _uri(call, item.path),
        },
        answers.FILE_INFO,
    )


def _folder(call: Call, item: Item, children: list[Item]) -> Answer:
    return json_answer(
        {
            **_common(item),
            "children": [
                {"uri": f"/{child.path.name}", "folder": child.is_folder} for child in children
            ],
            "uri": _uri(call, item.path),
        },
        answers.FOLDER_INFO,
        headers=_NO_STORE,
    )


def _stats(call: Call, path: RepoPath, downloads: Downloads) -> Answer:
    answer: dict[str, object] = {
        "uri": f"{call.base}/{link(path)}",
        "downloadCount": downloads.count,
        "lastDownloaded": downloads.last,
    }
    if downloads.last_by:
        answer["lastDownloadedBy"] = downloads.last_by
    answer |= {"remoteDownloadCount": 0, "remoteLastDownloaded": 0}
    return json_answer(answer, answers.STATS_INFO)


async def _last_modified(call: Call, path: RepoPath) -> Answer:
    try:
        newest = await call.run(lambda: call.store.last_modified(path))
    except ApiError:
        raise ApiError(404, "Unable to find item") from None
    return json_answer(
        {"uri": _uri(call, newest.path), "lastModified": answers.offset_date(newest.modified)},
        answers.ITEM_LAST_MODIFIED,
        headers={"Last-Modified": answers.http_date(newest.modified)},
    )


async def _list(call: Call, path: RepoPath) -> Answer:
    """Answer ``?list`` (6.2)."""
    if call.user == ANONYMOUS:
        raise ApiError(403, "This resource is available to authenticated users only.")
    if not path.repo:
        raise ApiError(400, "Cannot list files of root.")
    deep = flag(call, "deep", default=False)
    depth = number(call, "depth", 0)
    levels = (depth if depth > 0 else None) if deep else 1
    folders = flag(call, "listFolders", default=False)
    timestamps = flag(call, "mdTimestamps", default=False)
    with_stats = flag(call, "statsTimestamps", default=False)
    with_root = flag(call, "includeRootPath", default=False)

    def work() -> bytes:
        try:
            root, below = call.store.listing(path, levels)
        except ApiError as error:
            raise (ApiError(404, "Unable to find item") if error.status == 404 else error) from None
        listed = [item for item in below if folders or not item.is_folder]
        if with_root:
            listed.insert(0, root)
        start = len(path.path) + 1 if path.path else 0
        rows = []
        for item in listed:
            times = {}
            if timestamps and item.properties_changed:
                times["properties"] = item.properties_changed
            if with_stats and (last := call.store.downloads(item.path).last):
                times["artifactory.stats"] = last
            rows.append(_row(item, item.path.path[start:], times))
        text = (
            f'{{\n  "uri" : {quoted(_uri(call, path))},\n'
            f'  "created" : "{iso_date(now_ms())}",\n'
            f'  "files" : [ {", ".join(rows)} ]\n}}'
        )
        return text.encode()

    body = await call.run(work)
    return Answer(200, {"Content-Type": answers.FILE_LIST, **_NO_STORE}, [body])


def _row(item: Item, name: str, times: dict[str, int]) -> str:
    """Render a row, by hand: a listing may have 100,000, and ``json`` indents them in Python."""
    fields = [
        f'"uri" : {quoted(f"/{name}")}',
        f'"size" : {item.blob.size if item.blob else -1}',
        f'"lastModified" : "{iso_date(item.modified)}"',
        f'"folder" : {"false" if item.blob else "true"}',
    ]
    if item.blob is not None:
        if item.blob.sha1:
            fields.append(f'"sha1" : "{item.blob.sha1}"')
        fields.append(f'"sha2" : "{item.blob.sha256}"')
    if times:
        listed = ", ".join(f'"{key}" : "{iso_date(value)}"' for key, value in times.items())
        fields.append(f'"mdTimestamps" : {{ {listed} }}')
    return "{\n    " + ",\n    ".join(fields) + "\n  }"
