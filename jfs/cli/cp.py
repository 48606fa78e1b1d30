"""``jfs cp``: copy on the server."""

import click

from jfs.cli import connection as server
from jfs.cli import transfers
from jfs.cli.connection import Connection


@click.command("cp")
@click.argument("sources", nargs=-1, required=True, metavar="SRC…")
@click.argument("target", metavar="DST")
@click.option("-r", "--recursive", is_flag=True, help="Folders, with everything in them.")
@click.option("-n", "--no-clobber", is_flag=True, help="Leave alone what is at DST.")
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@server.options
def command(
    sources: tuple[str, ...],
    target: str,
    recursive: bool,
    no_clobber: bool,
    dry_run: bool,
    as_json: bool,
    connection: Connection,
) -> None:
    """Copy every SRC to DST on the server. No content moves, whatever its size.

    If DST is a folder, SRC goes inside; otherwise DST is its new name, and folders above it are
    made. A folder goes into one of the same name as with cp -r: what both have is replaced.
    Properties go along. SRC and DST are files or folders inside a mount of jfs, or places on a
    server as `jfs mount` takes them, all on the same server.

    \b
    Example:
      jfs cp ml-models-local/nlp/bert/2.0.0/model.onnx ml-models-local/nlp/bert/latest.onnx
      jfs cp -r /models/nlp/bert/2.0.0 /models/nlp/archive/

    Exit codes: 0 all are copied (or skipped by -n), 1 at least one is not, 2 wrong use.
    """
    transfers.carry_out(
        sources,
        target,
        connection,
        move=False,
        recursive=recursive,
        no_clobber=no_clobber,
        dry_run=dry_run,
        as_json=as_json,
    )
