"""``jfs mv``: move on the server."""

import click

from jfs.cli import connection as server
from jfs.cli import transfers
from jfs.cli.connection import Connection


@click.command("mv")
@click.argument("sources", nargs=-1, required=True, metavar="SRC…")
@click.argument("target", metavar="DST")
@click.option("-n", "--no-clobber", is_flag=True, help="Leave alone what is at DST.")
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@server.options
def command(
    sources: tuple[str, ...],
    target: str,
    no_clobber: bool,
    dry_run: bool,
    as_json: bool,
    connection: Connection,
) -> None:
    """Move every SRC to DST on the server, also to another repository. No content moves.

    If DST is a folder, SRC goes inside; otherwise DST is its new name, and folders above it are
    made. A file replaces a file; a folder that is not empty is never replaced. Properties go
    along; folders that are left empty go. SRC and DST are files or folders inside a mount of jfs,
    or places on a server as `jfs mount` takes them, all on the same server.

    \b
    Example:
      jfs mv ml-models-local/nlp/bert/rc1 ml-models-local/nlp/bert/2.0.0
      jfs mv staging-local/nlp/bert/2.0.0 prod-local/nlp/bert/

    Exit codes: 0 all are moved (or skipped by -n), 1 at least one is not, 2 wrong use.
    """
    transfers.carry_out(
        sources,
        target,
        connection,
        move=True,
        recursive=True,
        no_clobber=no_clobber,
        dry_run=dry_run,
        as_json=as_json,
    )
