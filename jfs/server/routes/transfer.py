"""Copy and move: rules on the store, and the endpoints. No byte of content moves.

``transfer`` blocks (any thread); the endpoints belong to the event loop. One transaction: all of
a tree or nothing, whatever ``failFast`` says; all repositories have one layout, so that
``suppressLayouts`` changes nothing. Source: artifactory-rest 8.
"""

from dataclasses import dataclass
from functools import partial
from urllib.parse import quote

from jfs.model import RepoPath
from jfs.server.http.exchange import Answer, Call, json_answer
from jfs.server.routes.storage import flag
from jfs.server.store import placement
from jfs.server.store.catalogue import Item
from jfs.server.store.rights import Right, User
from jfs.server.store.store import Store, now_ms
from jfs.server.wire.answers import COPY_OR_MOVE, ApiError
from jfs.server.wire.paths import parse_target


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
    places = f"{_id(source)} to {_id(target)}"
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
    store: Store, source: RepoPath, target: RepoPath, user: User, *, move: bool, dry: bool
) -> _Counts:
    """Copy or move an item with everything below it.

    A target that is a folder gets the item inside; a file is overwritten; otherwise the item gets
    that name. Properties and times are carried over, download counts are not. Folders that a move
    has emptied are removed, up to the root of their repository.

    Raises:
        ApiError: 404 no source or no target repository; 400 a rule is broken; 403, and 401 for an
            overwrite: the user lacks a right.
    """
    catalogue = store.catalogue
    with store.transaction() as unused:
        _check_rights(store, source, target, user, move=move)
        item = catalogue.find(source)
        if item is None:
            raise ApiError(404, f"Could not find item '{_id(source)}'.")
        if source == target:
            raise ApiError(400, "Source and destination are the same.")
        existing = catalogue.find(target)
        if existing is not None and existing.is_folder:
            target = target.child(source.name)
        _check(store, item, target)
        below = list(catalogue.below(source)) if item.is_folder else []
        places = [
            (each, RepoPath(target.repo, f"{target.path}{each.path.path[len(source.path) :]}"))
            for each in (item, *below)
        ]
        for each, place in places:
            _check_place(store, each, place, user)
        files = sum(not each.is_folder for each, _ in places)
        counts = _Counts(files, len(places) - files)
        if dry:
            return counts
        now = now_ms()
        store.make_folders(target.parent, now, user.name)
        for each, place in places:
            _transfer_one(store, each, place, now, user, unused, move=move)
        if move:
            catalogue.delete(source)  # folders that were merged into others
            _prune(store, source.parent)
        return counts


def _check_rights(
    store: Store, source: RepoPath, target: RepoPath, user: User, *, move: bool
) -> None:
    """Raises ApiError 400, 403, 404."""
    known = store.repositories.exists(source.repo)
    if known and not user.may(Right.READ, source.repo):
        raise ApiError(403, f"User doesn't have permissions to read '{_id(source)}'.")
    if store.repositories.is_of_remote(target.repo):
        raise ApiError(400, f"Target repository '{target.repo}' is not a local one.")
    placement.require_target(store, target, user)
    if known and move and not user.may(Right.DELETE, source.repo):
        raise ApiError(
            403,
            f"User doesn't have permissions to move '{_id(source)}'. Needs delete permissions.",
        )


def _prune(store: Store, folder: RepoPath) -> None:
    """Remove emptied folders, upwards."""
    while folder.path and not store.catalogue.has_children(folder):
        store.catalogue.delete(folder)
        folder = folder.parent


def _id(path: RepoPath) -> str:
    return f"{path.repo}:{path.path}"


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
        raise ApiError(400, f"Can't move under file '{_id(place)}'.")
    if place == target and item.is_folder and not there.is_folder:
        raise ApiError(400, f"Can't move folder under file '{_id(place)}'.")
    if place == target and not item.is_folder and there.is_folder:
        raise ApiError(400, f"'{_id(place)}' is a folder.")


def _check_place(store: Store, item: Item, place: RepoPath, user: User) -> None:
    """Raises ApiError 400, 401, 403."""
    if not item.is_folder and (refusal := placement.refusal_by_patterns(store, place)):
        raise ApiError(403, refusal)
    there = store.catalogue.find(place)
    if there is None:
        return
    if there.is_folder != item.is_folder:
        raise ApiError(400, f"A file and a folder meet at '{_id(place)}'.")
    if not item.is_folder and not user.may(Right.DELETE, place.repo):
        raise ApiError(
            401,  # as 6.20 has it (8), where 403 would be expected
            f"User doesn't have permissions to override '{_id(place)}'. Needs delete permissions.",
        )


def _transfer_one(
    store: Store,
    item: Item,
    place: RepoPath,
    now: int,
    user: User,
    unused: list[str],
    *,
    move: bool,
) -> None:
    catalogue = store.catalogue
    there = catalogue.find(place)
    if there is not None and item.is_folder:
        number = there.id  # merged
    else:
        if there is not None and there.blob is not None:
            unused.append(there.blob.sha256)
            catalogue.delete(place)
        if move:
            catalogue.rename(item.id, place)
            store.forget_downloads(item.id)
            catalogue.update(item.id, updated=now)
            return
        number = catalogue.insert(place, item.blob.sha256 if item.blob else None, now, user.name)
        catalogue.carry_over(item.id, number)
    for key, values in catalogue.properties(item.id).items():
        catalogue.set_property(number, key, values)
    catalogue.update(number, updated=now, properties_changed=item.properties_changed and now)
