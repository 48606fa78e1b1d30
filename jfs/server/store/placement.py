"""The rules of deploys: who may put what where, and what becomes of what was there.

Blocking; any thread. Everything is checked twice: before a body is read, and in the transaction
that makes it visible, since rights, room and neighbours may have changed meanwhile.
Source: artifactory-rest 4.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

from jfs.model import Checksums, Properties, RepoPath
from jfs.server.store.catalogue import Item
from jfs.server.store.filestore import Blob, Incoming, named_checksums
from jfs.server.store.patterns import accepts
from jfs.server.store.rights import ADMIN, Right, User
from jfs.server.store.store import Store, no_room, now_ms
from jfs.server.wire.answers import ApiError

_SERVER_GENERATED = "server-generated-checksums"


@dataclass(frozen=True, slots=True)
class Deployment:
    """What a deploy states besides path and content.

    Args:
        properties: replace the whole set if there are any; otherwise an artifact whose bytes do
            not change keeps its own, and one whose bytes change loses them (4.4). Of a user who
            may not annotate they are dropped silently (4.5).
        original: the checksums that the client sent.
        modified, created: ms since 1970; None: now.
        created_by, modified_by: None: the user.
    """

    user: User
    properties: Properties = field(default_factory=dict)
    original: Checksums = field(default_factory=Checksums)
    modified: int | None = None
    created: int | None = None
    modified_by: str | None = None
    created_by: str | None = None


def check(store: Store, path: RepoPath, deployment: Deployment) -> int | None:
    """Refuse a deploy before its body is read; return how long it may be (None: any length).

    Raises:
        ApiError: 403, 404, 409.
    """
    sums = deployment.original
    with store.lock:
        _check(store, path, deployment)
        declared = sums.sha256 or sums.sha1
        if declared and store.catalogue.blob(sha256=sums.sha256, sha1=sums.sha1) is not None:
            return None  # what is here already takes no room
        return store.room()


def received(
    store: Store, path: RepoPath, incoming: Incoming, deployment: Deployment, *, cache: bool = False
) -> Item:
    """Publish received content at *path*; in the *cache* of a remote repository.

    Raises:
        ApiError: as ``check``; 409, also when a declared checksum differs. Nothing is stored then.
    """
    blob = incoming.finish(durable=store.durable)
    policy = store.repositories.config(path.repo).get("checksumPolicyType")
    for name, declared in named_checksums(deployment.original).items():
        if declared != blob.known[name] and policy != _SERVER_GENERATED:
            raise ApiError(
                409,
                "Checksum policy 'LocalRepoChecksumPolicy: CLIENT' rejected the artifact "
                f"'{path.repo}:{path.path}'. Checksums info: {name}: original='{declared}', "
                f"actual='{blob.known[name]}'",
            )
    return publish(store, path, blob, deployment, temporary=incoming.path, cache=cache)


def known(store: Store, path: RepoPath, deployment: Deployment) -> Item:
    """Deploy stored content, named by ``original``; it needs no room.

    Only what the user can read somewhere counts: knowing a checksum gives nobody the content.

    Raises:
        ApiError: 403, 404, 409.
    """
    sums, user = deployment.original, deployment.user
    with store.lock:
        _check(store, path, deployment)
        blob = store.catalogue.blob(sha256=sums.sha256, sha1=sums.sha1)
        if (
            blob is None
            or (sums.sha1 and blob.sha1 and sums.sha1 != blob.sha1)
            or not any(user.may(Right.READ, each) for each in store.catalogue.homes(blob.sha256))
        ):
            name, value = ("sha256", sums.sha256) if sums.sha256 else ("sha1", sums.sha1)
            raise ApiError(404, f"Checksum deploy failed. No existing file with {name}: {value}")
        return publish(store, path, blob, deployment)


def publish(
    store: Store,
    path: RepoPath,
    blob: Blob,
    deployment: Deployment,
    *,
    temporary: Path | None = None,
    cache: bool = False,
) -> Item:
    """Make content the artifact at *path*, with its parents, in one step.

    Args:
        temporary: a file with the content; None: it is stored already.
    Raises:
        ApiError: 403, 404, 409, 413.
    """
    now, user, catalogue = now_ms(), deployment.user, store.catalogue
    with store.transaction() as unused:
        _check(store, path, deployment, cache=cache)
        stored = catalogue.blob(sha256=blob.sha256)
        if stored is not None and stored.size != blob.size:
            raise ApiError(409, f"Content with sha256 {blob.sha256} has another size.")
        if stored is None and (room := store.room()) is not None and blob.size > room:
            raise no_room()
        if temporary is not None:
            store.files.publish(temporary, blob.sha256, durable=store.durable)
        catalogue.add_blob(blob)
        store.make_folders(path.parent, now, user.name)
        old = catalogue.find(path)
        if old is None:
            number = catalogue.insert(path, blob.sha256, now, user.name)
            created, created_by = now, user.name
        else:
            number, created, created_by = old.id, old.created, old.created_by
            if old.blob is not None and old.blob.sha256 != blob.sha256:
                unused.append(old.blob.sha256)
                store.forget_downloads(number)
                store.replace_properties(number, {}, now)
        if deployment.properties and user.may(Right.ANNOTATE, path.repo):
            store.replace_properties(number, deployment.properties, now)
        catalogue.update(
            number,
            sha256=blob.sha256,
            created=created if deployment.created is None else deployment.created,
            created_by=deployment.created_by or created_by,
            modified=now if deployment.modified is None else deployment.modified,
            modified_by=deployment.modified_by or user.name,
            updated=now,
            original=json.dumps(named_checksums(deployment.original)),
        )
        return store.existing(path)


def adopt(
    store: Store, path: RepoPath, source: Path, sums: Checksums, properties: Properties
) -> Item:
    """Deploy a file as it is, believing *sums*: nothing is read, holes stay holes.

    The store may hard-link *source*: do not change it in place afterwards.
    """
    assert sums.sha256 is not None
    blob = Blob(sums.sha256, sums.sha1, sums.md5, source.stat().st_size)
    temporary = store.files.adopt(source)
    try:
        return publish(store, path, blob, Deployment(ADMIN, properties), temporary=temporary)
    finally:
        temporary.unlink(missing_ok=True)


def make_folder(store: Store, path: RepoPath, *, user: User, properties: Properties) -> Item:
    """Make a folder and its parents, or set properties on one. Raises ApiError 403, 404, 409."""
    now = now_ms()
    with store.transaction():
        require_target(store, path, user)
        store.make_folders(path, now, user.name)
        item = store.existing(path)
        if properties and user.may(Right.ANNOTATE, path.repo):
            store.replace_properties(item.id, properties, now)
        return store.existing(path)


def require_target(store: Store, path: RepoPath, user: User, *, cache: bool = False) -> None:
    """Refuse a place that *user* can put nothing at. Raises ApiError 403, 404."""
    repositories = store.repositories
    if repositories.is_of_remote(path.repo) is not cache or not repositories.exists(path.repo):
        raise ApiError(404, f"Could not find a local repository named {path.repo} to deploy to.")
    if not user.may(Right.DEPLOY, path.repo):
        raise ApiError(
            403,
            f"The user: '{user.name}' is not permitted to deploy '{path.path}' into "
            f"'{path.repo}:{path.path}'.",
        )
    if repositories.config(path.repo).get("blackedOut") is True:
        raise ApiError(
            404,
            f"The repository '{path.repo}' is blacked out and cannot accept artifact "
            f"'{path.repo}:{path.path}'.",
        )


def refusal_by_patterns(store: Store, path: RepoPath) -> str | None:
    """Return why a file is refused, if the repository's include or exclude patterns do that."""
    if accepts(store.repositories.config(path.repo), path.path):
        return None
    return (
        f"The repository '{path.repo}' rejected the artifact '{path.repo}:{path.path}' due to "
        "its configured include/exclude patterns settings."
    )


def _check(store: Store, path: RepoPath, deployment: Deployment, *, cache: bool = False) -> None:
    require_target(store, path, deployment.user, cache=cache)
    if refusal := refusal_by_patterns(store, path):
        raise ApiError(409, refusal)
    there = store.catalogue.find(path)
    if there is not None and there.is_folder:
        raise store.in_the_way(path, "folder")
    parent = path.parent
    while (item := store.catalogue.find(parent)) is None:
        parent = parent.parent
    if not item.is_folder:
        raise store.in_the_way(parent, "file")
    if there is not None and not deployment.user.may(Right.DELETE, path.repo):
        _require_same(path, there, deployment)


def _require_same(path: RepoPath, there: Item, deployment: Deployment) -> None:
    """Refuse a body whose declared checksum is not that of what it would replace (4.4).

    What is declared decides, not what comes: without a checksum it counts as an overwrite.
    """
    assert there.blob is not None
    declared = deployment.original
    if declared.sha256 and declared.sha256 == there.blob.sha256:
        return
    if declared.sha1 and declared.sha1 == there.blob.sha1:
        return
    raise ApiError(
        403,
        f"Not enough permissions to delete/overwrite artifact '{path.repo}:{path.path}' "
        f"(user: '{deployment.user.name}' needs DELETE permission).",
    )
