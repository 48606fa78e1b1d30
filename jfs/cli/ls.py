"""``jfs ls``: what a folder on the server holds, without a mount."""

import json
from collections.abc import Sequence

import click

from jfs.artifactory import ArtifactoryClient
from jfs.cli import connection as server
from jfs.cli.connection import Connection, Place
from jfs.cli.places import missing
from jfs.cli.tables import as_record, print_rows, print_table
from jfs.errors import NotFound
from jfs.model import EntryInfo, FileInfo, RepoPath


@click.command("ls")
@click.argument("path", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@server.options
def command(path: str | None, as_json: bool, connection: Connection) -> None:
    """List the folder PATH, or show the file PATH; without one, list the repositories.

    PATH is a file or folder inside a mount of jfs, or a place on a server as `jfs mount` takes it;
    no mount is needed. Inside a mount PATH is the current directory, unless it is given.

    \b
    Example:
      jfs ls ml-models-local/nlp/sentiment
      jfs ls --json /models/nlp | jq -r '.[].name'

    Exit codes: 0 done, 1 there is no such place, or the server failed, 2 wrong use.
    """
    place = connection.here() if path is None else connection.place(path)
    if not place.source.path.repo:
        _print_repositories(place, connection, as_json)
        return
    try:
        entries = connection.ask(place.source, lambda client: _list(client, place.source.path))
    except NotFound:
        raise missing(place) from None
    ordered = sorted(entries, key=lambda entry: entry.path)
    if as_json:
        click.echo(json.dumps([as_record(entry, place.show(entry.path)) for entry in ordered]))
        return
    print_table(
        ("SIZE", "MODIFIED", "NAME"),
        [
            (entry, entry.path.name + ("" if isinstance(entry, FileInfo) else "/"))
            for entry in ordered
        ],
    )


def _print_repositories(place: Place, connection: Connection, as_json: bool) -> None:
    found = connection.ask(place.source, lambda client: client.repositories())
    ordered = sorted(found, key=lambda repository: repository.key)
    if as_json:
        records = [
            {
                "path": place.show(RepoPath(each.key)),
                "repo": each.key,
                "name": each.key,
                "type": "repository",
                "kind": each.kind,
                "package_type": each.package_type,
            }
            for each in ordered
        ]
        click.echo(json.dumps(records))
        return
    rows = [(each.kind, each.package_type, f"{each.key}/") for each in ordered]
    print_rows(("KIND", "PACKAGES", "NAME"), rows)


async def _list(client: ArtifactoryClient, path: RepoPath) -> Sequence[EntryInfo]:
    info = await client.stat(path)
    return [info] if isinstance(info, FileInfo) else await client.list_children(path)
