"""Promote a version: copy or move it, set its properties, and take them from its siblings.

The new place is a name, never a folder to go into. What is replaced lies beside it until its
successor is there: a failure at any point leaves one of the two in place, and says what it left.
Trio thread only.
"""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass

from jfs.artifactory import ArtifactoryClient
from jfs.cli.connection import Place
from jfs.cli.places import is_inside, look, require, require_writable
from jfs.errors import JfsError
from jfs.model import Criteria, EntryInfo, FileInfo, FolderInfo, Properties, RepoPath

Change = Mapping[str, tuple[str, ...] | None]


@dataclass(frozen=True, slots=True)
class Wish:
    """What was asked for.

    Attributes:
        target: the same as *source*: it is there already.
        unset: keys whose values nothing beside *target* shall have any more.
    """

    source: Place
    target: Place
    move: bool
    replace: bool
    properties: Properties
    unset: tuple[str, ...]
    dry_run: bool

    @property
    def in_place(self) -> bool:
        return self.source.source.path == self.target.source.path


@dataclass(frozen=True, slots=True)
class Promoted:
    """What was done. *unset*: keys that were taken, by path; *problem*: what failed at the end."""

    replaced: bool
    unset: Mapping[RepoPath, tuple[str, ...]]
    problem: str = ""


async def promote(client: ArtifactoryClient, wish: Wish) -> Promoted:
    """Carry out a wish, or with ``dry_run`` only look.

    Raises:
        JfsError: it failed; the message says in which state it left the target.
    """
    source, target = wish.source.source.path, wish.target.source.path
    info = await require(client, wish.source)
    existing = None
    if not wish.in_place:
        await require_writable(client, wish.target)
        existing = await look(client, target)
    if existing is not None and not wish.replace:
        raise JfsError(
            f"{wish.target.shown}: is there already: --replace replaces it; "
            "without DST a version stays where it is and gets its properties"
        )
    if not wish.in_place and (is_inside(target, source) or is_inside(source, target)):
        raise JfsError(f"{wish.source.shown} and {wish.target.shown}: one lies inside the other")
    marked = await _marked(client, wish)
    unset = {path: tuple(change) for path, change in sorted(marked.items())}
    replaced, problem = existing is not None, ""
    if not wish.dry_run:
        if not wish.in_place:
            problem = await _put(client, wish, info, existing)
        try:
            await _mark(client, wish, info, marked)
        except JfsError as error:
            raise JfsError(f"{error}; {problem}" if problem else str(error)) from None
    return Promoted(replaced, unset, problem)


async def _marked(client: ArtifactoryClient, wish: Wish) -> dict[RepoPath, Change]:
    """Find what carries the values beside the target, and what to change there."""
    source, target = wish.source.source.path, wish.target.source.path
    changes: dict[RepoPath, dict[str, tuple[str, ...] | None]] = {}
    for key in wish.unset:
        values = wish.properties[key]
        for value in values:
            found = await client.search(Criteria(target.parent, ((key, value),), kind="any"))
            for match in found:
                path, has = match.info.path, match.properties.get(key, ())
                # A value with a wildcard in it finds others too.
                beside = path != target.parent and not is_inside(path, target)
                if beside and value in has and not (wish.move and is_inside(path, source)):
                    left = tuple(each for each in has if each not in values)
                    changes.setdefault(path, {})[key] = left or None
    return dict(changes)


async def _mark(
    client: ArtifactoryClient, wish: Wish, info: EntryInfo, marked: Mapping[RepoPath, Change]
) -> None:
    """Set the properties, then take them from the others: some version always has them."""
    shown = wish.target.shown
    target = wish.target.source.path
    try:
        if wish.properties:
            await client.set_properties(
                target, dict(wish.properties), recursive=isinstance(info, FolderInfo)
            )
    except JfsError as error:
        there = "" if wish.in_place else "is there, but "
        raise JfsError(f"{shown}: {there}its properties are not set: {error}") from None
    for path, change in marked.items():
        try:
            await client.set_properties(path, change)
        except JfsError as error:
            keys = ", ".join(change)
            raise JfsError(f"{shown}: is promoted, but {path} keeps {keys}: {error}") from None


async def _put(
    client: ArtifactoryClient, wish: Wish, info: EntryInfo, existing: EntryInfo | None
) -> str:
    """Copy or move to the target; return what is left of the old one, if that stays; else empty."""
    source, target = wish.source.source.path, wish.target.source.path
    tree = isinstance(info, FolderInfo)
    if existing is None or (isinstance(existing, FileInfo) and not tree):
        transfer = client.move if wish.move else client.copy
        await transfer(source, target, tree=tree)  # the server replaces a file in one step
        return ""
    incoming = source if wish.move else _beside(target, "new")
    aside = _beside(target, "old")
    was_folder = isinstance(existing, FolderInfo)
    try:
        if not wish.move:
            await client.copy(source, incoming, tree=tree)
        await client.move(target, aside, tree=was_folder)
    except JfsError as error:
        rest = await _clean(client, wish, incoming)
        raise JfsError(f"{wish.target.shown}: is as it was: {error}{rest}") from None
    try:
        await client.move(incoming, target, tree=tree)
    except JfsError as error:
        await _put_back(client, wish, aside, incoming, error, tree=was_folder)
    try:
        await client.delete(aside)
    except JfsError as error:
        return f"the old one could not be removed, and is at {aside}: {error}"
    return ""


async def _put_back(
    client: ArtifactoryClient,
    wish: Wish,
    aside: RepoPath,
    incoming: RepoPath,
    error: JfsError,
    *,
    tree: bool,
) -> None:
    """Undo a replacement that failed with *error*, and raise JfsError in any case."""
    shown = wish.target.shown
    try:
        await client.move(aside, wish.target.source.path, tree=tree)
    except JfsError as second:
        raise JfsError(
            f"{shown}: is gone for now: the old one is at {aside}, the new one at {incoming}: "
            f"`jfs mv` one of them there: {error}; {second}"
        ) from None
    rest = await _clean(client, wish, incoming)
    raise JfsError(f"{shown}: is as it was: {error}{rest}")


async def _clean(client: ArtifactoryClient, wish: Wish, incoming: RepoPath) -> str:
    """Remove the copy that was to replace the target; return the problem if it stays."""
    if wish.move:
        return ""
    try:
        if await look(client, incoming) is not None:
            await client.delete(incoming)
    except JfsError as error:
        return f"; a copy is left at {incoming}: {error}"
    return ""


def _beside(path: RepoPath, what: str) -> RepoPath:
    """Name a place beside *path* that neither ``@latest`` nor a person takes for a version."""
    return path.parent.child(f".{path.name[:200]}.jfs-{what}-{secrets.token_hex(4)}")
