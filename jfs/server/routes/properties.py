"""Writing properties: ``api/storage`` and ``api/metadata``. Event loop only.

Source: artifactory-rest 7.
"""

import json
from collections.abc import Callable

from jfs.model import RepoPath
from jfs.server.http.exchange import Answer, Call
from jfs.server.routes.storage import flag
from jfs.server.store.rights import Right
from jfs.server.wire.answers import ApiError
from jfs.server.wire.paths import check_properties, parse_keys, parse_property_list, parse_target

_MAX_METADATA_BYTES = 4 << 20


async def put(call: Call) -> Answer:
    """Answer PUT ``api/storage/R/P?properties=…``: the named keys get these values."""
    path = parse_target(call.rest).path
    change = parse_property_list(call.query.get("properties", ""))
    recursive = flag(call, "recursive", default=True)
    return await _change(
        call, path, lambda: call.store.change_properties(path, change, recursive=recursive)
    )


async def delete(call: Call) -> Answer:
    """Answer DELETE ``api/storage/R/P?properties=a,b``."""
    path = parse_target(call.rest).path
    keys = parse_keys(call.query.get("properties", ""))
    if not keys:
        raise ApiError(400, "Unspecified properties to delete.")
    gone = dict.fromkeys(keys)
    recursive = flag(call, "recursive", default=True)
    return await _change(
        call, path, lambda: call.store.change_properties(path, gone, recursive=recursive)
    )


async def patch_metadata(call: Call) -> Answer:
    """Answer PATCH ``api/metadata/R/P``: merge; null deletes."""
    path = parse_target(call.rest).path
    change = _read_patch(await call.body(_MAX_METADATA_BYTES))
    recursive = flag(call, "recursiveProperties", default=True)
    return await _change(
        call, path, lambda: call.store.change_properties(path, change, recursive=recursive)
    )


async def delete_metadata(call: Call) -> Answer:
    """Answer DELETE ``api/metadata/R/P``: all properties go."""
    path = parse_target(call.rest).path
    recursive = flag(call, "recursiveProperties", default=True)
    return await _change(call, path, lambda: call.store.clear_properties(path, recursive=recursive))


async def _change(call: Call, path: RepoPath, work: Callable[[], None]) -> Answer:
    if call.lacks(Right.ANNOTATE, path.repo):
        raise ApiError(
            403,
            f"Not enough permissions to annotate '{path.repo}:{path.path}' "
            f"(user: '{call.user.name}' needs ANNOTATE permission).",
        )
    try:
        await call.run(work)
    except ApiError as error:
        raise (ApiError(404, "Unable to find item") if error.status == 404 else error) from None
    return Answer(204)


def _read_patch(body: bytes) -> dict[str, tuple[str, ...] | None]:
    try:
        value = json.loads(body)
    except ValueError:
        raise ApiError(400, "The body is not JSON.") from None
    if not isinstance(value, dict) or ("props" not in value and "stats" not in value):
        raise ApiError(400, "props or stats fields required")
    props = value.get("props") or {}
    if not isinstance(props, dict):
        raise ApiError(400, "props must be an object")
    change: dict[str, tuple[str, ...] | None] = {}
    for key, given in props.items():
        values = [given] if isinstance(given, str) else given
        if values is not None and not (
            isinstance(values, list) and all(isinstance(each, str) for each in values)
        ):
            raise ApiError(400, f"The value of property {key} is neither text, list nor null.")
        change[key] = tuple(dict.fromkeys(values)) if values else None
    check_properties({key: values or () for key, values in change.items()})
    return change
