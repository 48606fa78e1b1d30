"""What ``jfs cp`` and ``jfs mv`` share: the rules of cp(1) and mv(1), carried out by the server.

Artifactory puts what is copied onto an existing folder inside it (artifactory-rest 8), whatever
was meant: so every target is looked at first, and asked for by the name that it shall have.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass

import click

from jfs.artifactory import ArtifactoryClient
from jfs.cli.connection import Connection, Place
from jfs.cli.places import (
    is_inside,
    look,
    refresh_mounts,
    require,
    require_item,
    require_name,
    require_one_server,
    require_writable,
)
from jfs.errors import ConfigError, JfsError
from jfs.model import EntryInfo, FileInfo, FolderInfo, RepoPath


@dataclass(frozen=True, slots=True)
class Wish:
    """What was asked for on the command line."""

    sources: Sequence[Place]
    target: Place
    move: bool
    recursive: bool
    no_clobber: bool
    dry_run: bool


@dataclass(frozen=True, slots=True)
class Step:
    """What became of one source."""

    source: Place
    target: RepoPath | None = None
    result: str = "failed"
    error: str = ""


def carry_out(
    sources: Sequence[str],
    target: str,
    connection: Connection,
    *,
    move: bool,
    recursive: bool,
    no_clobber: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Do everything that a command does. Raises ConfigError, JfsError, Exit."""
    wish = Wish(
        [connection.place(each) for each in sources],
        connection.place(target),
        move,
        recursive,
        no_clobber,
        dry_run,
    )
    require_one_server([wish.target, *wish.sources])
    for source in wish.sources:
        require_item(source)
    steps = connection.ask(wish.target.source, lambda client: _run(client, wish))
    done = [each for each in steps if each.result in ("copied", "moved")]
    if done:
        changed = [each.target for each in done if each.target is not None]
        if move:
            changed += [each.source.source.path for each in done]
        refresh_mounts(wish.target.source.server_url, changed)
    _report(steps, wish.target, as_json)
    if any(each.error for each in steps):
        raise click.exceptions.Exit(1)


def _report(steps: Sequence[Step], target: Place, as_json: bool) -> None:
    rows = []
    for step in steps:
        shown = target.show(step.target) if step.target is not None else None
        row: dict[str, str | None] = {
            "source": step.source.shown,
            "target": shown,
            "result": step.result,
        }
        if step.error:
            row["error"] = step.error
            click.echo(f"jfs: {step.error}", err=True)
        elif not as_json:
            click.echo(f"{step.result} {step.source.shown} -> {shown}")
        rows.append(row)
    if as_json:
        click.echo(json.dumps(rows))


async def _run(client: ArtifactoryClient, wish: Wish) -> list[Step]:
    there = await _look_at_target(client, wish)
    steps: list[Step] = []
    taken: set[RepoPath] = set()
    for source in wish.sources:
        try:
            step = await _one(client, wish, source, there, taken)
        except JfsError as error:
            text = str(error)
            step = Step(source, error=text if source.shown in text else f"{source.shown}: {text}")
        if step.target is not None:
            taken.add(step.target)
        steps.append(step)
    return steps


async def _look_at_target(client: ArtifactoryClient, wish: Wish) -> EntryInfo | None:
    """Return what is at the target. Raises JfsError when nothing can go there."""
    path, shown = wish.target.source.path, wish.target.shown
    if not path.repo:
        raise ConfigError(f"{shown}: is a whole server: give REPO/PATH")
    if path.path:
        require_name(wish.target, path)
    await require_writable(client, wish.target)
    there = await look(client, path)
    if there is None and not path.path:
        raise JfsError(f"{shown}: no such repository on the server, or no right to read it")
    if len(wish.sources) > 1 and not isinstance(there, FolderInfo):
        what = "is a file" if there is not None else "no such folder on the server"
        raise JfsError(f"{shown}: {what}: several files go into a folder only")
    if shown.endswith("/") and isinstance(there, FileInfo):
        raise JfsError(f"{shown}: is a file, not a folder")
    return there


async def _one(
    client: ArtifactoryClient,
    wish: Wish,
    source: Place,
    there: EntryInfo | None,
    taken: set[RepoPath],
) -> Step:
    """Copy or move one source. Raises JfsError."""
    info = await require(client, source)
    is_folder = isinstance(info, FolderInfo)
    if source.shown.endswith("/") and not is_folder:
        raise JfsError(f"{source.shown}: is a file, not a folder")
    if is_folder and not (wish.move or wish.recursive):
        raise JfsError(f"{source.shown}: is a folder: give -r to copy it with everything in it")
    if there is None and wish.target.shown.endswith("/") and not is_folder:
        raise JfsError(f"{wish.target.shown}: no such folder on the server")
    path, target = source.source.path, wish.target.source.path
    existing = there
    if isinstance(there, FolderInfo):
        target = target.child(path.name)
        existing = await look(client, target)
    _require_possible(wish, source, target, taken)
    if existing is not None and wish.no_clobber:
        return Step(source, target, "skipped")
    if existing is not None:
        await _require_replaceable(client, wish, is_folder, existing)
    if wish.dry_run:
        return Step(source, target, f"would {'move' if wish.move else 'copy'}")
    # What merges into a folder of its own name is put into the one above.
    merges = existing is not None and is_folder
    transfer = client.move if wish.move else client.copy
    await transfer(path, target.parent if merges else target, tree=is_folder)
    return Step(source, target, "moved" if wish.move else "copied")


def _require_possible(wish: Wish, source: Place, target: RepoPath, taken: set[RepoPath]) -> None:
    """Raises JfsError."""
    path, shown = source.source.path, wish.target.show(target)
    if target == path:
        raise JfsError(f"{source.shown}: is the same as {shown}")
    if is_inside(target, path):
        raise JfsError(f"{source.shown}: cannot go into itself, {shown}")
    if target in taken:
        raise JfsError(f"{source.shown}: another of this name went to {shown} a moment ago")


async def _require_replaceable(
    client: ArtifactoryClient, wish: Wish, is_folder: bool, existing: EntryInfo
) -> None:
    """Raises JfsError."""
    shown = wish.target.show(existing.path)
    if isinstance(existing, FolderInfo) is not is_folder:
        here, there = ("file", "folder") if is_folder else ("folder", "file")
        raise JfsError(f"{shown}: is a {here}, which a {there} cannot replace")
    if is_folder and wish.move and not await client.is_empty(existing.path):
        raise JfsError(f"{shown}: is there, and not empty")
