"""``api/repositories``. Event loop only. Source: artifactory-rest 9.1."""

import json

from jfs.server.answers import ApiError
from jfs.server.exchange import Answer, Call, json_answer, text_answer
from jfs.server.paths import parse_target

_MAX_CONFIG_BYTES = 1 << 20
_DEFAULTS = {
    "description": "",
    "notes": "",
    "includesPattern": "**/*",
    "excludesPattern": "",
    "repoLayoutRef": "simple-default",
    "checksumPolicyType": "client-checksums",
    "archiveBrowsingEnabled": False,
    "blackedOut": False,
    "handleReleases": True,
    "handleSnapshots": True,
    "propertySets": [],
    "xrayIndex": False,
    "priorityResolution": False,
    "downloadRedirect": False,
    "cdnRedirect": False,
}


async def listing(call: Call) -> Answer:
    """Answer GET ``api/repositories[?type=][&packageType=]``."""
    rows = []
    for key, config in (await call.run(call.store.repositories)).items():
        kind, package = str(config["rclass"]), str(config["packageType"])
        wanted_kind = call.query.get("type") or kind
        wanted_package = call.query.get("packageType") or package
        if wanted_kind.lower() != kind or wanted_package.lower() != package:
            continue
        row = {"key": key}
        if config.get("description"):
            row["description"] = str(config["description"])
        row |= {"type": kind.upper(), "url": f"{call.base}/{key}"}
        rows.append({**row, "packageType": package.capitalize()})
    return json_answer(rows)


async def get(call: Call) -> Answer:
    """Answer GET and HEAD ``api/repositories/R``."""
    key = _key(call)
    config = (await call.run(call.store.repositories)).get(key)
    if config is None:
        raise ApiError(400, f"Repository '{key}' does not exist.")
    return json_answer({"key": key, **_DEFAULTS, **config})


async def create(call: Call) -> Answer:
    """Answer PUT: text, not JSON."""
    call.require_admin()
    key = _key(call)
    config = _config(key, await call.body(_MAX_CONFIG_BYTES))
    known = await call.run(call.store.repositories)
    if key.lower() in (each.lower() for each in known):
        raise ApiError(400, f"Case insensitive repository key already exists: {key}", plain=True)
    await call.run(lambda: call.store.put_repository(key, config))
    return text_answer(f"Successfully created repository '{key}' \n")


async def update(call: Call) -> Answer:
    """Answer POST: what is not named stays."""
    call.require_admin()
    key = _key(call)
    config = _config(key, await call.body(_MAX_CONFIG_BYTES))
    old = (await call.run(call.store.repositories)).get(key)
    if old is None:
        raise ApiError(400, f"Repository '{key}' does not exist.", plain=True)
    await call.run(lambda: call.store.put_repository(key, {**old, **config}))
    return text_answer(f"Repository {key} update successfully.\n")


async def delete(call: Call) -> Answer:
    """Answer DELETE: the repository goes with everything in it."""
    call.require_admin()
    key = _key(call)
    if not await call.run(lambda: call.store.delete_repository(key)):
        raise ApiError(404, f"Repository '{key}' does not exist.", plain=True)
    return text_answer(f"Repository {key} and all its content have been removed successfully.\n")


def _key(call: Call) -> str:
    path = parse_target(call.rest).path
    if path.path:
        raise ApiError(404, "Not Found")
    return path.repo


def _config(key: str, body: bytes) -> dict[str, object]:
    """Read a configuration. Raises ApiError 400."""
    try:
        config = json.loads(body) if body.strip() else {}
    except ValueError:
        raise ApiError(400, "The body is not JSON.", plain=True) from None
    if not isinstance(config, dict):
        raise ApiError(400, "The body is not a JSON object.", plain=True)
    if config.get("key", key) != key:
        raise ApiError(400, f"The body is about '{config['key']}', not '{key}'.", plain=True)
    read = {str(name): value for name, value in config.items() if name != "key"}
    for name, only in (("rclass", "local"), ("packageType", "generic")):
        if name in read and str(read[name]).lower() != only:
            raise ApiError(
                400, f"This server has {only} repositories only: {name} '{read[name]}'.", plain=True
            )
        read.pop(name, None)
    return read
