"""``jfs props``: read and change properties, without a mount."""

import json

import click

from jfs.artifactory import ArtifactoryClient
from jfs.cli import connection as server
from jfs.cli.connection import Connection, Place
from jfs.cli.places import missing
from jfs.cli.properties import properties_of
from jfs.cli.tables import print_rows
from jfs.errors import ConfigError, JfsError, NamespaceError, NotFound
from jfs.model import Properties
from jfs.vfs.attributes.xattrs import PREFIX, encode_values, key_to_write


@click.group("props")
def command() -> None:
    """Read and change the properties of artifacts and folders.

    PATH is a file or folder inside a mount of jfs, or a place on a server as `jfs mount` takes it.
    Several values are joined with a comma; a comma that belongs to a value has a backslash before.

    \b
    Example:
      jfs props set ml-models-local/nlp/bert/2.0.0/model.onnx env=production approved-by=alice
      jfs props get /models/nlp/bert/2.0.0/model.onnx

    Exit codes: 0 done, 1 the server refused, 2 wrong use.
    """


@command.command("get")
@click.argument("path")
@click.argument("keys", nargs=-1, metavar="[KEY…]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@server.options
def get(path: str, keys: tuple[str, ...], as_json: bool, connection: Connection) -> None:
    """Print the properties of PATH, or those named.

    \b
    Example:
      jfs props get --json ml-models-local/nlp/bert/2.0.0/model.onnx | jq -r .env[0]

    Exit codes: 0 done, 1 a named property is not there, or the server failed, 2 wrong use.
    """
    place = connection.place(path)
    source = place.source

    async def question(client: ArtifactoryClient) -> Properties:
        await client.stat(source.path)  # or nothing there would look like no properties
        return await client.properties(source.path)

    try:
        found = connection.ask(source, question)
    except ConfigError:
        raise
    except JfsError as error:
        raise _failure(place, error) from None
    shown = {key: found[key] for key in sorted(keys or found) if key in found}
    if as_json:
        click.echo(json.dumps(shown))
    else:
        rows = [(key, encode_values(values).decode()) for key, values in shown.items()]
        print_rows(("PROPERTY", "VALUE"), rows)
    if missing := [key for key in keys if key not in found]:
        click.echo(f"jfs: {path}: has no property {', '.join(missing)}", err=True)
        raise click.exceptions.Exit(1)


@command.command("set")
@click.argument("path")
@click.argument("pairs", nargs=-1, required=True, metavar="KEY=VALUE…")
@click.option("-r", "--recursive", is_flag=True, help="And of everything below a folder.")
@server.options
def set_(path: str, pairs: tuple[str, ...], recursive: bool, connection: Connection) -> None:
    """Set properties of PATH; others stay.

    \b
    Example:
      jfs props set --recursive ml-models-local/nlp/bert/2.0.0 env=staging

    Exit codes: 0 done, 1 the server refused, 2 wrong use.
    """
    _change(path, dict(properties_of(pairs)), recursive, connection)


@command.command("rm")
@click.argument("path")
@click.argument("keys", nargs=-1, required=True, metavar="KEY…")
@click.option("-r", "--recursive", is_flag=True, help="And of everything below a folder.")
@server.options
def rm(path: str, keys: tuple[str, ...], recursive: bool, connection: Connection) -> None:
    """Remove properties of PATH; a key that is not there is no mistake.

    \b
    Example:
      jfs props rm ml-models-local/nlp/bert/1.0.0/model.onnx env

    Exit codes: 0 done, 1 the server refused, 2 wrong use.
    """
    _change(path, {_key(key): None for key in keys}, recursive, connection)


def _key(text: str) -> str:
    try:
        return key_to_write(f"{PREFIX}{text}".encode("utf-8", "surrogateescape"))
    except NamespaceError as error:
        raise ConfigError(str(error).removeprefix(PREFIX)) from None


def _change(
    path: str,
    change: dict[str, tuple[str, ...] | None],
    recursive: bool,
    connection: Connection,
) -> None:
    place = connection.place(path)
    source = place.source
    try:
        connection.ask(
            source,
            lambda client: client.set_properties(source.path, change, recursive=recursive),
        )
    except ConfigError:
        raise
    except JfsError as error:
        raise _failure(place, error) from None
    server.refresh(path)


def _failure(place: Place, error: JfsError) -> JfsError:
    return missing(place) if isinstance(error, NotFound) else JfsError(f"{place.shown}: {error}")
