"""``jfs status``: the mounts of this machine, and how they are."""

import json
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import click
from rich.filesize import decimal

from jfs.cli import mounted
from jfs.cli.mounted import Asked
from jfs.cli.options import Duration, Place
from jfs.cli.tables import print_rows
from jfs.errors import ConfigError, JfsError
from jfs.model import RepoPath
from jfs.mount.table import MountEntry, resolve
from jfs.sources import parse_source
from jfs.vfs.namespace.tree import below
from jfs.vfs.writing.journal import Journal, Sighting
from jfs.vfs.writing.records import State

_AT_A_TIME = 32


@click.command("status")
@click.argument("mountpoints", nargs=-1, metavar="[MOUNTPOINT…]", type=Place())
@click.option(
    "--timeout",
    "patience_s",
    type=Duration(),
    default=mounted.PATIENCE_S,
    show_default=True,
    metavar="SECONDS",
    help="How long a mount may take to answer.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(mountpoints: Sequence[Path], patience_s: float, as_json: bool) -> None:
    """Show the mounts of this machine: do they answer, is their server up, what waits.

    A mount is asked for what it knows: it asks nobody, and one that hangs is not waited for.
    PENDING files were closed and are on no server yet (--write-back, --settle); FAILED ones were
    refused (`jfs recover ls`). A file that is being fetched whole (--fetch) has a line of its own.

    \b
    Example:
      jfs status --json | jq '.[] | select(.uploads.pending > 0)'

    Exit codes: 0 all of them answer, 1 at least one does not, 2 wrong use.
    """
    entries = mounted.ours()
    if mountpoints:
        entries = [_entry(place, entries) for place in mountpoints]
    with ThreadPoolExecutor(_AT_A_TIME) as pool:
        answers = list(pool.map(lambda entry: mounted.ask(entry.mountpoint, patience_s), entries))
    rows = [_row(entry, answer) for entry, answer in zip(entries, answers, strict=True)]
    if as_json:
        click.echo(json.dumps(rows))
    elif not rows:
        click.echo("nothing of jfs is mounted here")
    else:
        _print(rows)
    if any(answer.state in ("dead", "does not answer") for answer in answers):
        raise click.exceptions.Exit(1)


def _entry(place: Path, entries: Sequence[MountEntry]) -> MountEntry:
    """Return the mount at a place, which is not asked for it. Raises ConfigError."""
    wanted = str(resolve(place))
    found = next((entry for entry in entries if entry.mountpoint == wanted), None)
    if found is None:
        raise ConfigError(f"{place}: nothing of jfs is mounted there")
    return found


def _row(entry: MountEntry, asked: Asked) -> dict[str, Any]:
    mount, uploads = asked.section("mount"), asked.section("uploads")
    return {
        "mountpoint": entry.mountpoint,
        "source": entry.source,
        "pid": mount.get("pid"),
        "state": asked.state,
        "server": asked.section("server"),
        "fetches": asked.section("fetches").get("files", []),
        "uploads": {**uploads, "failed": _failed(entry, asked)} if uploads else {},
    }


def _failed(entry: MountEntry, asked: Asked) -> int | None:
    """Count what was refused of the place of a mount; None: its staging directory is private."""
    mount = asked.section("mount")
    staging = asked.section("uploads").get("staging")
    if not isinstance(staging, str):
        return None
    try:
        seen = Journal(Path(staging)).survey()
        root = parse_source(entry.source, {**os.environ, "JF_URL": str(mount.get("server"))}).path
    except (JfsError, OSError):
        return None
    return sum(_is_failed(each, str(mount.get("server")), root) for each in seen)


def _is_failed(sighting: Sighting, server: str, root: RepoPath) -> bool:
    record = sighting.record
    here = record.server == server and bool(below(root, record.path))
    return here and record.state is State.FAILED


def _print(rows: Sequence[dict[str, Any]]) -> None:
    headers = ("MOUNTPOINT", "SOURCE", "PID", "STATE", "SERVER", "UPLOADING", "PENDING", "FAILED")
    print_rows(headers, [_cells(row) for row in rows])
    for row in rows:
        for fetch in row["fetches"]:
            done, total = decimal(fetch["bytes"]), decimal(fetch["total"])
            rate, waiting = decimal(fetch["rate"]), fetch["waiting"]
            line = f"{done} of {total}, {rate}/s; {waiting} waiting"
            click.echo(f"{row['mountpoint']}: fetching {fetch['path']}: {line}")
        for error in (row["server"].get("reason"), row["uploads"].get("error")):
            if error:
                click.echo(f"{row['mountpoint']}: {error}")


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    uploads = row["uploads"]
    pending = str(uploads.get("pending", "-"))
    if uploads.get("pending"):
        pending += f" ({decimal(uploads['pending_bytes'])})"
    failed = uploads.get("failed")
    return (
        row["mountpoint"],
        row["source"],
        str(row["pid"] or "-"),
        row["state"],
        _server(row["server"]),
        str(uploads.get("uploading", "-")),
        pending,
        "-" if failed is None else str(failed),
    )


def _server(section: dict[str, Any]) -> str:
    if not section:
        return "-"
    state, since = str(section.get("state", "-")), section.get("since")
    return f"{state} for {max(0.0, time.time() - since):.0f} s" if since else state
