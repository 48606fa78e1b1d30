"""Copy and move: rules on the store, and the endpoints. No byte of content moves.

``transfer`` blocks (any thread); the endpoints belong to the event loop. One transaction: all of
a tree or nothing. Source: artifactory-rest 8.
"""

from dataclasses import dataclass
from functools import partial
from urllib.parse import quote

from jfs.model import RepoPath
from jfs.server.answers import COPY_OR_MOVE, ApiError
from jfs.server.catalogue import Item
from jfs.server.exchange import Answer, Call, json_answer
from jfs.server.paths import parse_target
from jfs.server.storage_api import flag
from jfs.server.store import Store, now_ms


@dataclass(frozen=True, slots=True)
class _Counts:
    files: int
    folders: int


async def copy(call: Call) -> Answer:
    """Answer POST ``api/copy/R/P?to=/R/P``."""
    return await _answer(call, move=False)


async def move(call: Call) -> Answer:
    """Answer POST ``api/move/R/P?to=/R/P``."""
    return await _answer(call, move=True)


async def _answer(call: Call, *, move: bool) -> Answer:
    await call.drain()
    source = parse_target(call.rest).path
    to = call.query.get("to", "")
    if not to.strip("/"):
        raise ApiError(400, "The query parameter 'to' is missing: /repository/path")
    target = parse_target(quote(to)).path
    dry = flag(call, "dry", default=False)
    verb, past = ("moving", "moved") if move else ("copying", "copied")
    places = f"{source.repo}:{source.path} to {target.repo}:{target.path}"
    try:
        counts = await call.run(
            partial(transfer, call.store, source, target, call.user, move=move, dry=dry)
        )
    except ApiError as error:
        text = f"{verb} {places} failed: {error.message}"
        document = {"messages": [{"level": "ERROR", "message": text}]}
        return json_answer(document, COPY_OR_MOVE, status=error.status)
    text = (
        f"{'Dry run for ' if dry else ''}{verb} {places} completed successfully, "
        f"{counts.files} artifacts and {counts.folders} folders were {past}"
    )
    return json_answer({"messages": [{"level": "INFO", "message": text}]}, COPY_OR_MOVE)


def transfer(
    store: Store, source: RepoPath, target: RepoPath, user: str, *, move: bool, dry: bool
) -> _Counts:
    """Copy or move an item with everything below it.

    A target that is a folder gets the item inside; a file is overwritten; otherwise the item gets
    that name. Properties and times are carried over, download counts are not.

    Raises:
        ApiError: 404 no source or no target repository; 400 a rule is broken.
    """
    catalogue = store.catalogue
    with store.transaction() as unused:
        item = catalogue.find(source)
        if item is None:
            raise ApiError(404, f"Could not find item '{source.repo}:{source.path}'.")
        store.require_local(target)
        if source == target:
            raise ApiError(400, "Source and destination are the same.")
        existing = catalogue.find(target)
        if existing is not None and existing.is_folder:
            target = target.child(source.name)
        _check(store, item, target)
        below = list(catalogue.below(source)) if item.is_folder else []
        counts = _Counts(
            sum(not each.is_folder for each in (item, *below)),
            sum(each.is_folder for each in (item, *below)),
        )
        if dry:
            return counts
        now = now_ms()
        store.make_folders(target.parent, now, user)
        for each in (item, *below):
            place = RepoPath(target.repo, f"{target.path}{each.path.path[len(source.path) :]}")
            _transfer_one(store, each, place, now, user, unused, move=move)
        if move:
            catalogue.delete(source)  # folders that were merged into others
        return counts


def _check(store: Store, item: Item, target: RepoPath) -> None:
    """Raises ApiError 400."""
    source = item.path
    if source == target:
        raise ApiError(400, "Source and destination are the same.")
    if not source.path:
        raise ApiError(400, "A repository cannot be copied or moved whole: name what is in it.")
    if target.repo == source.repo and target.path.startswith(f"{source.path}/"):
        raise ApiError(400, "Destination lies inside the source.")
    place = target
    while (there := store.catalogue.find(place)) is None:
        place = place.parent
    if place != target and not there.is_folder:
        raise ApiError(400, f"Can't move under file '{place.repo}:{place.path}'.")
    if place == target and item.is_folder and not there.is_folder:
        raise ApiError(400, f"Can't move folder under file '{place.repo}:{place.path}'.")
    if place == target and not item.is_folder and there.is_folder:
        raise ApiError(400, f"'{place.repo}:{place.path}' is a folder.")


def _transfer_one(
    store: Store,
    item: Item,
    place: RepoPath,
    now: int,
    user: str,
    unused: list[str],
    *,
    move: bool,
) -> None:
    catalogue = store.catalogue
    there = catalogue.find(place)
    if there is not None and there.is_folder != item.is_folder:
        raise ApiError(400, f"A file and a folder meet at '{place.repo}:{place.path}'.")
    if there is not None and item.is_folder:
        number = there.id  # merged
    else:
        if there is not None and there.blob is not None:
            unused.append(there.blob.sha256)
            catalogue.delete(place)
        if move:
            catalogue.rename(item.id, place)
            catalogue.clear_downloads(item.id)
            catalogue.update(item.id, updated=now)
            return
        number = catalogue.insert(place, item.blob.sha256 if item.blob else None, now, user)
        catalogue.carry_over(item.id, number)
    for key, values in catalogue.properties(item.id).items():
        catalogue.set_property(number, key, values)
    catalogue.update(number, updated=now, properties_changed=item.properties_changed and now)
