"""``jfs promote``: copy or move a version on the server, and set its properties."""

import json

import click

from jfs.cli import connection as server
from jfs.cli import promotion
from jfs.cli.connection import Connection
from jfs.cli.places import refresh_mounts, require_item, require_name, require_one_server
from jfs.cli.promotion import Promoted, Wish
from jfs.cli.properties import properties_of
from jfs.errors import ConfigError, JfsError
from jfs.vfs.attributes.xattrs import encode_values


@click.command("promote")
@click.argument("source", metavar="SRC")
@click.argument("target", metavar="[DST]", required=False)
@click.option(
    "--prop", "pairs", multiple=True, metavar="KEY=VALUE", help="Property that it shall have."
)
@click.option("--move", is_flag=True, help="Instead of a copy.")
@click.option("--replace", is_flag=True, help="Replace what is at DST.")
@click.option(
    "--unset-siblings",
    "unset",
    multiple=True,
    metavar="KEY",
    help="Take the values that --prop gives KEY from everything else in DST's folder.",
)
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@server.options
def command(
    source: str,
    target: str | None,
    pairs: tuple[str, ...],
    move: bool,
    replace: bool,
    unset: tuple[str, ...],
    dry_run: bool,
    as_json: bool,
    connection: Connection,
) -> None:
    """Copy the version SRC to DST on the server, then set properties on all of it.

    SRC is a file or folder, DST its new name: it never goes inside what is there. Without DST the
    version stays where it is. Properties that it has go along; those of --prop are set on
    everything in it. --unset-siblings KEY makes `@KEY=VALUE` mean this version alone. PATHs are
    places inside a mount of jfs, or on a server as `jfs mount` takes them.

    \b
    Example:
      jfs promote staging-local/nlp/bert/2.0.0 prod-local/nlp/bert/2.0.0 \\
          --prop env=production --prop approved-by=alice --unset-siblings env
      # roll back to an older version, which is there still
      jfs promote prod-local/nlp/bert/1.0.0 --prop env=production --unset-siblings env
      # demote
      jfs props rm --recursive prod-local/nlp/bert/2.0.0 env

    Exit codes: 0 done, 1 it failed, and the message says what is left, 2 wrong use.
    """
    properties = properties_of(pairs)
    if lost := [key for key in unset if key not in properties]:
        raise ConfigError(f"--unset-siblings {lost[0]}: give its value too: --prop {lost[0]}=VALUE")
    if target is None and (move or replace):
        raise ConfigError(f"{'--move' if move else '--replace'}: give DST too")
    if target is None and not properties:
        raise ConfigError(f"{source}: nothing to do: give DST, or --prop KEY=VALUE")
    here = connection.place(source)
    there = here if target is None else connection.place(target)
    require_one_server([here, there])
    require_item(here)
    require_name(there, there.source.path)
    if target is not None and here.source.path == there.source.path:
        raise ConfigError(f"{source}: is the same as {target}: leave DST out to set properties")
    wish = Wish(here, there, move, replace, properties, unset, dry_run)
    done: Promoted | None = None
    try:
        done = connection.ask(there.source, lambda client: promotion.promote(client, wish))
    except ConfigError:
        raise
    except JfsError as error:
        text = str(error)
        raise JfsError(text if there.shown in text else f"{there.shown}: {text}") from None
    finally:
        if not dry_run:
            unset_at = done.unset if done is not None else ()
            changed = [here.source.path, there.source.path, *unset_at]
            refresh_mounts(there.source.server_url, changed)
    _report(wish, done, as_json)
    if done.problem:
        raise JfsError(f"{there.shown}: was replaced, but {done.problem}")


def _report(wish: Wish, done: Promoted, as_json: bool) -> None:
    here, there = wish.source.shown, wish.target.shown
    if as_json:
        document = {
            "source": here,
            "target": there,
            "result": "in place" if wish.in_place else "moved" if wish.move else "copied",
            "replaced": done.replaced,
            "dry_run": wish.dry_run,
            "properties": {key: list(values) for key, values in wish.properties.items()},
            "unset": {str(path): list(keys) for path, keys in done.unset.items()},
        }
        click.echo(json.dumps(document))
        return
    would = "would be " if wish.dry_run else ""
    if not wish.in_place:
        old = f", in place of what {'is' if wish.dry_run else 'was'} there" if done.replaced else ""
        click.echo(f"{would}{'moved' if wish.move else 'copied'} {here} -> {there}{old}")
    if wish.properties:
        pairs = " ".join(
            f"{key}={encode_values(values).decode()}" for key, values in wish.properties.items()
        )
        click.echo(f"{would}set {pairs} on {there}")
    for path, keys in done.unset.items():
        click.echo(f"{would}unset {', '.join(keys)} on {path}")
