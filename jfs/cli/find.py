"""``jfs find``: artifacts by property, name and time, in one query."""

import json
import re
import time
from datetime import UTC, datetime

import click

from jfs.cli import connection as server
from jfs.cli.connection import Connection
from jfs.cli.tables import as_record
from jfs.errors import ConfigError
from jfs.model import Criteria

_SPAN = re.compile(r"(\d+)([smhdw])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}


class Moment(click.ParamType[int]):
    """A time: a date, or how long ago (``7d``). Gives ns since the epoch."""

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
@click.argument("path", default=".")
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
    path: str,
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

    All conditions must hold. PATH is a folder inside a mount of jfs, or a place on a server as
    `jfs mount` takes it; no mount is needed.

    \b
    Example:
      jfs find ml-models-local --prop env=production --prop approved-by=alice
      jfs find /models --name '*.gguf' --newer 7d -0 | xargs -0 ls -l

    Exit codes: 0 done (also when nothing fits), 1 the server failed, 2 wrong use.
    """
    pairs = []
    for text in properties:
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise ConfigError(f"--prop {text}: give KEY=VALUE, such as env=production")
        pairs.append((key, value))
    place = connection.place(path)
    criteria = Criteria(
        place.source.path, tuple(pairs), name, kind=kind, newer_ns=newer, older_ns=older
    )
    matches = connection.ask(place.source, lambda client: client.search(criteria))
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
