"""``jfs find``: artifacts by property, name and time."""

import json
import re
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

import click

from jfs.artifactory import ArtifactoryClient
from jfs.cli import connection as server
from jfs.cli.connection import Connection
from jfs.cli.places import missing
from jfs.cli.tables import as_record
from jfs.errors import ConfigError, NotFound
from jfs.model import Criteria, FileInfo, Match, problem_with_key

_SPAN = re.compile(r"(\d+)([smhdw])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}


class Moment(click.ParamType[int]):
    """A time as ns since the epoch: a date, or how long ago (``7d``)."""

    name = "WHEN"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        if isinstance(value, int):
            return value
        span = _SPAN.fullmatch(str(value))
        if span is not None:
            return time.time_ns() - int(span[1]) * _SECONDS[span[2]] * 1_000_000_000
        try:
            moment = datetime.fromisoformat(str(value))
        except ValueError:
            self.fail(f"{value!r} is neither a date such as 2026-01-31 nor a span such as 7d")
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        return int(moment.timestamp() * 1_000_000_000)


@click.command("find")
@click.argument("path", required=False)
@click.option(
    "--prop", "properties", multiple=True, metavar="KEY=VALUE", help="* and ? are wildcards."
)
@click.option("--name", metavar="GLOB", help="Of the last component.")
@click.option("--newer", type=Moment(), help="Modified after: a date, or 7d.")
@click.option("--older", type=Moment(), help="Modified before.")
@click.option(
    "--type",
    "kind",
    type=click.Choice(["file", "folder", "any"]),
    default="file",
    show_default=True,
)
@click.option("-0", "--print0", "null", is_flag=True, help="End paths by NUL, for xargs -0.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with properties.")
@server.options
def command(
    path: str | None,
    properties: tuple[str, ...],
    name: str | None,
    newer: int | None,
    older: int | None,
    kind: str,
    null: bool,
    as_json: bool,
    connection: Connection,
) -> None:
    """Print the path of everything below PATH that fits.

    All conditions must hold. PATH is a file or folder inside a mount of jfs, or a place on a server
    as `jfs mount` takes it; no mount is needed. Without one it is the current directory of a mount,
    or all repositories of the server. Wildcards are for --name and the values of --prop.

    \b
    Example:
      jfs find ml-models-local --prop env=production --prop approved-by=alice
      jfs find /models --name '*.gguf' --newer 7d -0 | xargs -0 ls -l

    Exit codes: 0 done (also when nothing fits), 1 no such PATH, or the server failed, 2 wrong use.
    """
    pairs = []
    for text in properties:
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise ConfigError(f"--prop {text}: give KEY=VALUE, such as env=production")
        if (problem := problem_with_key(key)) is not None:
            raise ConfigError(f"--prop {text}: {problem}; wildcards are for the value")
        pairs.append((key, value))
    if name is not None and "/" in name:
        raise ConfigError(f"--name {name}: is of the last component alone: give folders as PATH")
    place = connection.here() if path is None else connection.place(path)
    criteria = Criteria(
        place.source.path, tuple(pairs), name, kind=kind, newer_ns=newer, older_ns=older
    )
    try:
        matches = connection.ask(place.source, lambda client: _search(client, criteria))
    except NotFound:
        raise missing(place) from None
    ordered = sorted(matches, key=lambda match: match.info.path)
    if as_json:
        records = [
            as_record(each.info, place.show(each.info.path), each.properties) for each in ordered
        ]
        click.echo(json.dumps(records))
        return
    for match in ordered:
        click.echo(place.show(match.info.path), nl=False)
        click.echo("\0" if null else "\n", nl=False)


async def _search(client: ArtifactoryClient, criteria: Criteria) -> Sequence[Match]:
    """Find what fits at or below a place. Raises NotFound where nothing is.

    A query about what does not exist is answered as one that nothing fits.
    """
    scope = criteria.scope
    if scope.repo and isinstance(await client.stat(scope), FileInfo):
        beside = replace(criteria, scope=scope.parent, direct=True)
        return [match for match in await client.search(beside) if match.info.path == scope]
    return await client.search(criteria)
