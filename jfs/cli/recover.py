"""``jfs recover``: files that were written into a mount and are on no server yet."""

import functools
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.filesize import decimal

from jfs.cli import connection as server
from jfs.cli import queued
from jfs.cli.connection import Connection
from jfs.cli.places import refresh_mounts
from jfs.cli.queued import place_of
from jfs.cli.tables import moment, print_rows
from jfs.config import Source, default_cache_directory
from jfs.credentials import credentials_for
from jfs.errors import ConfigError, JfsError
from jfs.model import RepoPath
from jfs.mount.table import mount_above
from jfs.vfs.writing import recovery, undo
from jfs.vfs.writing.journal import Entry, Journal, Sighting, closing
from jfs.vfs.writing.records import Record, State
from jfs.vfs.writing.recovery import Outcome

_F = TypeVar("_F", bound=Callable[..., Any])
_PATH = click.Path(path_type=Path)
# The kernel tells a mount that a file was closed a moment after close() has failed.
_PATIENCE_S, _POLL_S = 2.0, 0.05
_STATES = {
    State.WRITING: "never closed",
    State.DEPLOYING: "interrupted",
    State.PENDING: "pending",
    State.FAILED: "refused",
}


def _directories(command: _F) -> _F:
    """Add the options that name the staging directory, and pass on the parameter ``journal``."""

    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        cache_dir, staging_dir = kwargs.pop("cache_dir"), kwargs.pop("staging_dir")
        directory = staging_dir or (cache_dir or default_cache_directory(os.environ)) / "staging"
        if not directory.is_dir() and (cache_dir or staging_dir):
            raise ConfigError(
                f"{directory}: no such directory: give the --cache-dir or --staging-dir of the "
                "mount that was written to"
            )
        journal = Journal(directory.absolute()) if directory.is_dir() else None
        return command(*args, journal=journal, **kwargs)

    for option in (
        click.option(
            "--staging-dir", type=_PATH, help="Staged files.  [default: staging in --cache-dir]"
        ),
        click.option(
            "--cache-dir", type=_PATH, help="Block cache.  [default: /var/cache/jfs, ~/.cache/jfs]"
        ),
    ):
        option(wrapped)
    return wrapped  # type: ignore[return-value]  # the same command, with other parameters


_ids = click.argument("ids", nargs=-1, metavar="[ID…]")


@click.group("recover")
def command() -> None:
    """Deal with files whose upload failed, or was interrupted by the end of their mount.

    Their bytes are in the staging directory until they are uploaded or dropped. An ID is one that
    `jfs recover ls` prints, or the beginning of it. Mounts may run meanwhile; what a running mount
    is writing is shown, and left to it. What waits for its upload (jfs mount --write-back,
    --settle) is uploaded, or dropped, by the mount that has it.

    \b
    Example:
      jfs recover ls
      jfs recover retry --all

    Exit codes: 0 done, 1 something failed, 2 wrong use.
    """


@command.command("ls")
@_directories
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def ls(journal: Journal | None, as_json: bool) -> None:
    """List the staged files, the oldest first, and why each waits.

    \b
    Example:
      jfs recover ls --json | jq -r '.[] | select(.state == "failed") | .path'

    Exit codes: 0 done (also when nothing waits), 2 wrong use.
    """
    found = [] if journal is None else journal.survey()
    found.sort(key=lambda each: (each.record.created_ns, each.name))
    if as_json:
        click.echo(json.dumps([_row(each) for each in found]))
        return
    if not found:
        if journal is None:
            click.echo("no staged files: nothing was written yet, or --cache-dir is another")
        else:
            said = "everything written by way of it is uploaded"
            click.echo(f"no staged files in {journal.directory}: {said}")
        return
    print_rows(
        ("ID", "SIZE", "STATE", "WRITTEN", "PLACE", "WHY"),
        [
            (
                each.name,
                decimal(each.size),
                _state(each),
                moment(each.record.created_ns) if each.record.created_ns else "-",
                place_of(each.record),
                _why(each),
            )
            for each in found
        ],
    )


@command.command("retry")
@_ids
@_directories
@click.option("--all", "everything", is_flag=True, help="All that were closed.")
@click.option("--to", metavar="PATH", help="Upload to this place instead.")
@click.option("--force", is_flag=True, help="Also over content that came to the server meanwhile.")
@server.options
def retry(
    ids: Sequence[str],
    journal: Journal | None,
    everything: bool,
    to: str | None,
    force: bool,
    connection: Connection,
) -> None:
    """Upload staged files; what is on the server then is no longer staged.

    Each goes to the server and path it was written for, with the credentials of the options or the
    environment. Where other content came there since the file was opened, nothing is uploaded
    without --force. A file that its writer never closed may be incomplete: --all leaves it alone,
    its ID takes it. PATH is REPO/PATH on the same server, or a place as `jfs mount` takes it.

    \b
    Example:
      jfs recover retry --all
      jfs recover retry 3f2a9c --to ml-models-local/rescued/model.safetensors

    Exit codes: 0 all are uploaded, 1 at least one is not, 2 wrong use.
    """
    if to is not None and len(ids) != 1:
        raise ConfigError("--to: give exactly one ID with it (jfs recover ls)")
    failed = False
    for name in _chosen(journal, ids, everything, "retry"):
        try:
            if queued.is_queued(journal, name) and to is None:
                click.echo(f"{name}: {queued.retry(journal, name)}")
                continue
            with closing(_claim_whole(journal, name)) as entry:
                _retry_one(entry, to, force, connection, even_open=not everything)
        except ConfigError:
            raise
        except (JfsError, OSError) as error:
            _complain(str(error))
            failed = True
    if failed:
        raise click.exceptions.Exit(1)


@command.command("export")
@click.argument("name", metavar="ID")
@click.argument("target", metavar="FILE", type=_PATH)
@_directories
@click.option("--force", is_flag=True, help="Replace FILE.")
@click.option("--drop", "drops", is_flag=True, help="Then forget the staged file.")
def export(name: str, target: Path, journal: Journal | None, force: bool, drops: bool) -> None:
    """Copy the bytes of a staged file to FILE. It stays staged, unless --drop.

    \b
    Example:
      jfs recover export 3f2a9c /tmp/model.safetensors

    Exit codes: 0 done, 1 it could not be copied, 2 wrong use.
    """
    target = target.absolute()
    if target.is_dir():
        raise ConfigError(f"{target}: is a directory: give the name of a file")
    if os.path.lexists(target) and not force:
        raise ConfigError(f"{target}: exists: give another name, or --force to replace it")
    name = _whole_name(journal, name)
    if queued.is_queued(journal, name):
        if drops:
            raise ConfigError(f"{name}: a mount uploads it yet: export it, then drop it")
        with closing(queued.look(journal, name)) as entry:
            queued.export(journal, entry, target)
            click.echo(f"{target}: {decimal(entry.size)} copied")
        return
    with closing(_claim_whole(journal, name)) as entry:
        try:
            recovery.export(entry, target)
        except OSError as error:
            raise JfsError(f"{target}: {error.strerror}") from None
        size = entry.size
        if entry.record.state is State.WRITING:
            _complain(f"{entry.name}: was never closed by its writer, so it may be incomplete")
        if drops:
            entry.remove()
    click.echo(f"{target}: {decimal(size)} copied{', no longer staged' if drops else ''}")


@command.command("drop")
@_ids
@_directories
@click.option("--all", "everything", is_flag=True, help="All that no running mount has.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def drop(ids: Sequence[str], journal: Journal | None, everything: bool, yes: bool) -> None:
    """Remove staged files. Their bytes are lost; asks first.

    \b
    Example:
      jfs recover drop 3f2a9c
      jfs recover drop --all --yes

    Exit codes: 0 removed, 1 not removed, 2 wrong use.
    """
    entries: list[Entry] = []
    left: list[str] = []  # to the mounts that upload them
    try:
        for name in _chosen(journal, ids, everything, "drop"):
            if queued.is_queued(journal, name):
                left.append(name)
                entries.append(queued.look(journal, name))
            else:
                entries.append(_claim(journal, name))
        lost = f"{len(entries)} files, {decimal(sum(entry.size for entry in entries))}"
        if entries and not yes:
            if not sys.stdin.isatty():
                raise ConfigError("jfs recover drop: nobody can be asked here: give --yes")
            for entry in entries:
                click.echo(f"{entry.name}: {place_of(entry.record)}, {decimal(entry.size)}")
            if not click.confirm(f"Remove {lost}? What is on no server is lost"):
                click.echo("nothing removed")
                raise click.exceptions.Exit(1)
        for entry in entries:
            if entry.name not in left:
                entry.remove()
        queued.drop(journal, left)
    finally:
        for entry in entries:
            entry.close()
    click.echo(f"{lost} removed")


def _chosen(
    journal: Journal | None, ids: Sequence[str], everything: bool, verb: str
) -> Sequence[str]:
    """Return the names of the staged files that are meant. Raises ConfigError."""
    if bool(ids) is everything:
        raise ConfigError(f"jfs recover {verb}: give either the ID of a file or --all")
    if ids:
        return list(dict.fromkeys(_whole_name(journal, each) for each in ids))
    found = _settled(journal) if journal else []
    more = verb == "retry"  # what a mount will upload is dropped one by one
    return [each.name for each in found if not each.in_use or (more and queued.waits(each))]


def _settled(journal: Journal) -> list[Sighting]:
    """Look at the staged files, once mounts have let go of those whose ``close`` has failed."""
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        found = journal.survey()
        held = any(each.in_use and each.record.state is State.FAILED for each in found)
        if not held or time.monotonic() > deadline:
            return found
        time.sleep(_POLL_S)


def _whole_name(journal: Journal | None, name: str) -> str:
    """Complete the beginning of a name. Raises ConfigError, or JfsError for one in use."""
    if journal is not None:
        waiting = [each.name for each in _settled(journal) if queued.waits(each)]
        found = [each for each in waiting if name and each.startswith(name)]
        if len(found) == 1:
            return found[0]
    entry = _claim(journal, name)
    entry.close()
    return entry.name


def _claim(journal: Journal | None, name: str) -> Entry:
    if journal is None:
        raise ConfigError(f"{name}: no staged file of this name (jfs recover ls)")
    return journal.find(name)


def _claim_whole(journal: Journal | None, name: str) -> Entry:
    """Claim a file as it was closed; what was newer in it is another one. Raises JfsError."""
    entry = _claim(journal, name)
    try:
        if journal is not None:
            undo.settled(journal, entry)
    except BaseException as error:
        entry.close()
        if isinstance(error, OSError):
            raise JfsError(f"{name}: {error.strerror}") from None
        raise
    return entry


def _retry_one(
    entry: Entry, to: str | None, force: bool, connection: Connection, *, even_open: bool
) -> None:
    """Upload one file, and say what was done. Raises JfsError, OSError."""
    name, record = entry.name, entry.record
    if record.state is State.WRITING:
        if not even_open:
            click.echo(
                f"{name}: {place_of(record)}: was never closed, may be incomplete: left alone "
                f"(jfs recover retry {name} takes it)"
            )
            return
        _complain(f"{name}: was never closed by its writer, so it may be incomplete")
    try:
        click.echo(f"{name}: {_upload(entry, to, force, connection)}")
    except ConfigError:
        raise
    except (JfsError, OSError) as error:
        raise JfsError(f"{name}: {to or place_of(record)}: {error}") from None


def _upload(entry: Entry, to: str | None, force: bool, connection: Connection) -> str:
    """Upload one file; give in words what was done. Raises JfsError, OSError."""
    source = _destination(entry.record, to, connection)
    try:
        outcome = connection.ask(
            source,
            lambda client: recovery.upload(entry, client, force=force, target=source.path),
        )
    finally:
        refresh_mounts(source.server_url, [source.path])
    if outcome is Outcome.CHANGED:
        raise JfsError(f"{outcome.value}: --force uploads over it, --to PATH puts it elsewhere")
    return f"{source.server_url}/{source.path}: {outcome.value}"


def _destination(record: Record, to: str | None, connection: Connection) -> Source:
    """Say where a file shall go. Raises ConfigError."""
    if to is None:
        if not record.server or not record.path.path:
            raise JfsError(f"{record.error or 'its place is not known'}: say where with --to PATH")
        path = record.path
    elif _is_whole_place(to) or not record.server:
        place = connection.place(to).source
        _require_file(to, place.path)
        return place
    else:
        path = RepoPath.parse(to)
        _require_file(to, path)
    credentials = credentials_for(record.server, os.environ, connection.token_file)
    return Source(record.server, path, credentials)


def _is_whole_place(text: str) -> bool:
    """Whether a PATH names its server too: by URL, by SERVER_ID, or by a mount it lies in."""
    return ":" in text.partition("/")[0] or mount_above(Path(text)) is not None


def _require_file(text: str, path: RepoPath) -> None:
    if not path.path or text.endswith("/"):
        raise ConfigError(f"--to {text}: give the whole path of the file, REPO/PATH")


def _state(sighting: Sighting) -> str:
    state = sighting.record.state
    return "in use" if sighting.in_use and state is not State.PENDING else _STATES[state]


def _why(sighting: Sighting) -> str:
    if sighting.record.state is State.PENDING:
        return recovery.describe_waiting(sighting)
    if not sighting.in_use:
        return recovery.describe(sighting.record)
    if sighting.record.state is State.FAILED:
        return f"still open; {recovery.describe(sighting.record)}"
    writing = sighting.record.state is State.WRITING
    return "a running mount is writing it" if writing else "a running mount sees to its upload"


def _row(sighting: Sighting) -> dict[str, object]:
    record = sighting.record
    return {
        "id": sighting.name,
        "size": sighting.size,
        "state": record.state.value,
        "in_use": sighting.in_use,
        "server": record.server,
        "path": str(record.path),
        "written": moment(record.created_ns) if record.created_ns else None,
        "properties": {key: list(values) for key, values in record.properties.items()},
        "waiting_since": moment(record.queued_ns) if record.queued_ns else None,
        "tries": record.tries,
        "next_try": moment(record.next_ns) if record.next_ns else None,
        "why": _why(sighting),
    }


def _complain(text: str) -> None:
    click.echo(f"jfs: {text}", err=True)
