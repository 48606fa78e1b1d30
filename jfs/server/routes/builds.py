"""``api/build``: what builds say of themselves, kept as artifacts.

Endpoints belong to the event loop; what takes a ``Store`` blocks, and runs in a thread.

A run is a JSON file ``NAME/NUMBER-STARTED.json`` in the repository ``artifactory-build-info``,
which the first build makes; name and number are percent-encoded there and STARTED is in ms since
1970, so that everything a listing needs is in the path. ``?project=`` is accepted and changes
nothing: this server has no projects. Source: artifactory-rest 11.
"""

import json
import re
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import quote, unquote

from jfs.model import RepoPath
from jfs.server.http.exchange import Answer, Call, json_answer, text_answer
from jfs.server.store import placement
from jfs.server.store.placement import Deployment
from jfs.server.store.rights import Right, User
from jfs.server.store.store import Store
from jfs.server.wire.answers import ApiError, offset_date
from jfs.server.wire.paths import check_path

BUILD_INFO = "artifactory-build-info"
_CONFIG = {"packageType": "buildinfo", "description": "Build Info repository"}
_MAX_BYTES = 64 << 20
_REQUIRED = ("name", "number", "started")
_STARTED = "%Y-%m-%dT%H:%M:%S.%f%z"
_FILE = re.compile(r"(.+)-(\d+)\.json")


@dataclass(frozen=True, slots=True)
class _Run:
    name: str
    number: str
    started: int  # ms since 1970

    @property
    def path(self) -> RepoPath:
        """Raises ApiError 400 for what is too long."""
        file = f"{_quoted(self.number)}-{self.started}.json"
        return RepoPath(BUILD_INFO, check_path(f"{_quoted(self.name)}/{file}"))


async def publish(call: Call) -> Answer:
    """Answer PUT ``api/build``: 204. The run of that name, number and start is replaced."""
    body = await call.body(_MAX_BYTES)
    run = _read(body)
    await call.run(lambda: _store(call.store, run, body, call.user))
    return Answer(204)


async def listing(call: Call) -> Answer:
    """Answer GET ``api/build``: every build with its last run."""
    last: dict[str, int] = {}
    for run in await _runs(call, ""):
        last[run.name] = max(run.started, last.get(run.name, 0))
    if not last:
        raise ApiError(404, "No builds were found")
    rows = [
        {"uri": f"/{quote(name, safe='')}", "lastStarted": offset_date(started)}
        for name, started in sorted(last.items())
    ]
    return json_answer({"builds": rows, "uri": f"{call.base}/api/build"})


async def get(call: Call) -> Answer:
    """Answer GET ``api/build/NAME`` and ``api/build/NAME/NUMBER``."""
    name, number = _named(call)
    runs = await _runs(call, name)
    uri = f"{call.base}/api/build/{quote(name, safe='')}"
    if number is None:
        if not runs:
            raise ApiError(404, f"No build was found for build name: {name}")
        newest = sorted(runs, key=lambda run: run.started, reverse=True)
        rows = [
            {"uri": f"/{quote(run.number, safe='')}", "started": offset_date(run.started)}
            for run in newest
        ]
        return json_answer({"buildsNumbers": rows, "uri": uri})
    same = [run for run in runs if run.number == number]
    if not same:
        raise ApiError(404, f"No build was found for build name: {name}, build number: {number}")
    last = max(same, key=lambda run: run.started)
    info = await call.run(lambda: _load(call.store, last))
    return json_answer({"buildInfo": info, "uri": f"{uri}/{quote(number, safe='')}"})


async def delete(call: Call) -> Answer:
    """Answer DELETE ``api/build/NAME?buildNumbers=1,2`` or ``?deleteAll=1``: text, not JSON."""
    name, number = _named(call)
    wanted = {each for each in call.query.get("buildNumbers", "").split(",") if each}
    everything = call.query.get("deleteAll") == "1"
    if number is not None or not (wanted or everything):
        raise ApiError(400, "Name the runs to delete: ?buildNumbers=1,2 or ?deleteAll=1")
    if call.query.get("artifacts", "0") != "0":
        raise ApiError(400, "This server does not delete the artifacts of builds.")
    if call.lacks(Right.DELETE, BUILD_INFO):
        raise _forbidden(call, name)
    gone = [run for run in await _runs(call, name) if everything or run.number in wanted]
    if not gone:
        raise ApiError(404, f"Could not find any of these runs of the build {name}")
    await call.run(lambda: _remove(call.store, gone))
    text = ", ".join(f"{name}#{each}" for each in sorted({run.number for run in gone}))
    return text_answer(f"The following builds has been deleted successfully: {text}. \n")


async def _runs(call: Call, name: str) -> list[_Run]:
    """List the runs of one build, or of all. Raises ApiError 403."""
    if call.lacks(Right.READ, BUILD_INFO):
        raise _forbidden(call, name)
    folder = RepoPath(BUILD_INFO, _quoted(name)) if name else RepoPath(BUILD_INFO)

    def work() -> list[_Run]:
        with call.store.lock:
            items = list(call.store.catalogue.below(folder))
        found = []
        for item in items:
            match = _FILE.fullmatch(item.path.name)
            if match and not item.is_folder:
                build = unquote(item.path.parent.path)
                found.append(_Run(build, unquote(match[1]), int(match[2])))
        return found

    return await call.run(work)


def _store(store: Store, run: _Run, body: bytes, user: User) -> None:
    """Raises ApiError 400, 403, 413."""
    path = run.path
    if not store.repositories.exists(BUILD_INFO) and user.may(Right.DEPLOY, BUILD_INFO):
        store.repositories.put(BUILD_INFO, _CONFIG)
    properties = {
        "build.name": (run.name,),
        "build.number": (run.number,),
        "build.timestamp": (str(run.started),),
    }
    deployment = Deployment(user, properties)
    incoming = store.receive()
    try:
        incoming.write(body)
        placement.received(store, path, incoming, deployment)
    finally:
        incoming.discard()


def _load(store: Store, run: _Run) -> Any:
    found, file = store.open(run.path)
    assert found.item.blob is not None
    assert file is not None
    try:
        file.seek(0)
        return json.loads(file.read())
    finally:
        store.files.open_files.give_back(found.item.blob.sha256, file)


def _remove(store: Store, runs: list[_Run]) -> None:
    """Remove runs, and the build with its last one."""
    for run in runs:
        store.delete(run.path)
    folder = runs[0].path.parent
    if not store.children(folder):
        store.delete(folder)


def _read(body: bytes) -> _Run:
    """Read what a build says of itself. Raises ApiError 400."""
    try:
        info = json.loads(body)
    except (ValueError, RecursionError):
        raise ApiError(400, "The build info is not JSON.") from None
    if not isinstance(info, dict):
        raise ApiError(400, "The build info is not a JSON object.")
    wrong = [key for key in _REQUIRED if not isinstance(info.get(key), str) or not info[key]]
    if wrong:
        raise ApiError(400, f"The build info lacks, as text: {', '.join(wrong)}")
    try:
        started = datetime.strptime(info["started"], _STARTED)
    except ValueError:
        raise ApiError(
            400, "The build info's 'started' is not like 2024-02-24T21:20:59.999+0400"
        ) from None
    return _Run(info["name"], info["number"], round(started.timestamp() * 1000))


def _named(call: Call) -> tuple[str, str | None]:
    """Read ``NAME`` or ``NAME/NUMBER``; slashes inside them are encoded. Raises ApiError 404."""
    name, slash, number = call.rest.rstrip("/").partition("/")
    if not name or "/" in number:
        raise ApiError(404, "Not Found")
    return unquote(name), unquote(number) if slash else None


def _quoted(text: str) -> str:
    """Encode a name for a path: no slash, and no character that paths must not hold."""
    encoded = quote(text, safe="")
    return encoded if encoded.strip(".") else encoded.replace(".", "%2E")


def _forbidden(call: Call, name: str) -> ApiError:
    return ApiError(
        403, f"Request for '{BUILD_INFO}:{name}' is forbidden for user: '{call.user.name}'."
    )
