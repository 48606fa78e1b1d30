"""``jfs refresh``: see at once what others have changed."""

from collections.abc import Sequence
from pathlib import Path

import click

from jfs.cli import connection as server
from jfs.errors import ConfigError, JfsError
from jfs.mount.table import mount_above


@click.command("refresh")
@click.argument("paths", nargs=-1, required=True, metavar="PATH…")
def command(paths: Sequence[str]) -> None:
    """Believe nothing of what was known at and below every PATH of a mount.

    Names, sizes, times, properties and queries are asked for again at their next use, instead of
    when --attr-ttl or --entry-ttl have passed. Files that are open keep their version.

    \b
    Example:
      jfs refresh /models/nlp/sentiment

    Exit codes: 0 done, 1 the mount does not answer, 2 PATH is not inside a mount of jfs.
    """
    for path in paths:
        if mount_above(Path(path)) is None:
            raise ConfigError(f"{path}: is not inside a mount of jfs")
        try:
            server.refresh(path)
        except OSError as error:
            raise JfsError(f"{path}: {error.strerror}") from None
