"""``api/repositories``. Event loop only. Source: artifactory-rest 9.1."""

import json

from jfs.server.http.exchange import Answer, Call, json_answer, text_answer
from jfs.server.routes.upstreams import check_upstream
from jfs.server.store.rights import Right
from jfs.server.wire.answers import ApiError
from jfs.server.wire.paths import parse_target

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
    for key, config in call.store.repositories.all().items():
        kind, package = str(config["rclass"]), str(config["packageType"])
        if not call.user.may(Right.READ, key):
            continue
        wanted_kind = call.query.get("type") or kind
        wanted_package = call.query.get("packageType") or package
        if wanted_kind.lower() != kind or wanted_package.lower() != package:
            continue
        row = {"key": key}
        if config.get("description"):
            row["description"] = str(config["description"])
        row |= {"type": kind.upper(), "url": str(config.get("url") or f"{call.base}/{key}")}
        rows.append({**row, "packageType": package.capitalize()})
    return json_answer(rows)


async def get(call: Call) -> Answer:
    """Answer GET and HEAD ``api/repositories/R``."""
    key = _key(call)
    config = call.store.repositories.all().get(key)
    if config is None:
        raise ApiError(400, f"Repository '{key}' does not exist.")
    if call.lacks(Right.READ, key):
        raise ApiError(403, f"Request for '{key}' is forbidden for user: '{call.user.name}'.")
    shown = {name: value for name, value in config.items() if name != "password"}
    return json_answer({"key": key, **_DEFAULTS, **shown})


async def create(call: Call) -> Answer:
    """Answer PUT: text, not JSON."""
    key = _key(call)
    call.require_admin(key)
    config = _config(key, await call.body(_MAX_CONFIG_BYTES))
    known = call.store.repositories.all()
    if key.lower() in (each.lower() for each in known):
        raise ApiError(400, f"Case insensitive repository key already exists: {key}", plain=True)
    settled = _settled(config)
    await call.run(lambda: call.store.repositories.put(key, settled))
    return text_answer(f"Successfully created repository '{key}' \n")


async def update(call: Call) -> Answer:
    """Answer POST: what is not named stays."""
    key = _key(call)
    call.require_admin(key)
    config = _config(key, await call.body(_MAX_CONFIG_BYTES))
    old = call.store.repositories.all().get(key)
    if old is None:
        raise ApiError(400, f"Repository '{key}' does not exist.", plain=True)
    if str(config.get("rclass", old["rclass"])).lower() != old["rclass"]:
        raise ApiError(400, f"The kind of repository '{key}' cannot be changed.", plain=True)
    settled = _settled({**old, **config})
    await call.run(lambda: call.store.repositories.put(key, settled))
    return text_answer(f"Repository {key} update successfully.\n")


async def delete(call: Call) -> Answer:
    """Answer DELETE: the repository goes with everything in it."""
    key = _key(call)
    call.require_admin(key)
    if not await call.run(lambda: call.store.repositories.delete(key)):
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
    return read


def _settled(config: dict[str, object]) -> dict[str, object]:
    """Check what a whole configuration says. Raises ApiError 400."""
    kind = str(config.get("rclass", "local")).lower()
    if kind not in ("local", "remote"):
        raise ApiError(
            400, f"This server has local and remote repositories only, no {kind} ones.", plain=True
        )
    package = str(config.get("packageType", "generic")).lower()
    if package != "generic":
        raise ApiError(
            400, f"This server has generic repositories only: packageType '{package}'.", plain=True
        )
    settled = {**config, "rclass": kind, "packageType": package}
    if kind == "remote":
        settled["url"] = check_upstream(config.get("url"))
    return settled
