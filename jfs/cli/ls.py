"""``jfs ls``: what a folder on the server holds, without a mount."""

import json
from collections.abc import Sequence

import click

from jfs.artifactory import ArtifactoryClient
from jfs.cli import connection as server
from jfs.cli.connection import Connection
from jfs.cli.tables import as_record, print_table
from jfs.errors import JfsError, NotFound
from jfs.model import EntryInfo, FileInfo, RepoPath


@click.command("ls")
@click.argument("path", default=".")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@server.options
def command(path: str, as_json: bool, connection: Connection) -> None:
    """List the folder PATH, or show the file PATH.

    PATH is a file or folder inside a mount of jfs, or a place on a server as `jfs mount` takes it;
    no mount is needed.

    \b
    Example:
      jfs ls ml-models-local/nlp/sentiment
      jfs ls --json /models/nlp | jq -r '.[].name'

    Exit codes: 0 done, 1 there is no such place, or the server failed, 2 wrong use.
    """
    place = connection.place(path)
    try:
        entries = connection.ask(place.source, lambda client: _list(client, place.source.path))
    except NotFound:
        raise JfsError(f"{path}: no such file or folder on the server") from None
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


async def _list(client: ArtifactoryClient, path: RepoPath) -> Sequence[EntryInfo]:
    info = await client.stat(path)
    return [info] if isinstance(info, FileInfo) else await client.list_children(path)
