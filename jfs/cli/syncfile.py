"""``jfs sync-file``: have files uploaded now, and hear what became of it."""

import os
from collections.abc import Sequence
from pathlib import Path

import click

from jfs.errors import ConfigError, JfsError
from jfs.mount.table import mount_above

_REASON = "user.jfs.last_error"


@click.command("sync-file")
@click.argument("paths", nargs=-1, required=True, metavar="PATH…")
def command(paths: Sequence[str]) -> None:
    """Upload what waits of every PATH of a mount now, and return once the server has it.

    What waits was closed with --write-back, or is opened again and again (--settle); what is being
    written is uploaded as it is. It is the same as fsync(2), or `sync PATH`, which say less.

    \b
    Example:
      jfs sync-file /models/logs/train.jsonl

    Exit codes: 0 the server has all of them, 1 it has not, and the message says why, 2 PATH is no
    file inside a mount of jfs.
    """
    failed = False
    for path in paths:
        if mount_above(Path(path)) is None:
            raise ConfigError(f"{path}: is not inside a mount of jfs")
        if os.path.isdir(path):
            raise ConfigError(f"{path}: is a folder: give files")
        try:
            _sync(path)
        except OSError as error:
            click.echo(f"jfs: {path}: {_reason(path) or error.strerror}", err=True)
            failed = True
    if failed:
        raise JfsError("the server has not all of it; it stays on this disk (jfs recover ls)")


def _sync(path: str) -> None:
    file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def _reason(path: str) -> str | None:
    """Return what the server said, where it did."""
    try:
        return os.getxattr(path, _REASON).decode("utf-8", "replace")
    except OSError:
        return None
