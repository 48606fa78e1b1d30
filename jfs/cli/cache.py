"""``jfs cache``: look at the block cache of this node, check it, pin and remove contents."""

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path

import click
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from jfs import cache
from jfs.cli.options import NotNegative, Size
from jfs.config import CacheSettings, default_cache_directory
from jfs.errors import ConfigError
from jfs.metrics import Metrics

_DAY_S = 86400.0


def _directory(_: click.Context, __: click.Parameter, given: Path | None) -> Path:
    return (given or default_cache_directory(os.environ)).absolute()


_cache_dir = click.option(
    "--cache-dir",
    "directory",
    type=click.Path(path_type=Path),
    callback=_directory,
    help="Block cache.  [default: /var/cache/jfs, ~/.cache/jfs]",
)
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_digests = click.argument("digests", nargs=-1, metavar="DIGEST…")


@click.group("cache")
def command() -> None:
    """Look after the block cache of this node; mounts that use it may run meanwhile.

    A DIGEST is a sha256, or the beginning of one, as `jfs cache ls` prints it.

    \b
    Example:
      jfs cache ls
      jfs cache pin 3f2a9c

    Exit codes: 0 done, 1 something was damaged or could not be removed, 2 wrong use.
    """


@command.command("ls")
@_cache_dir
@_json
def ls(directory: Path, as_json: bool) -> None:
    """List what is cached, the one used last first.

    \b
    Example:
      jfs cache ls --json | jq '.[] | select(.pinned)'

    Exit codes: 0 done, 1 there is no cache.
    """
    entries = list(cache.inventory(directory))
    if as_json:
        click.echo(json.dumps([_row(entry) for entry in entries], indent=1))
        return
    table = Table("digest", "size", "cached", "", "last use", box=None, pad_edge=False)
    for entry in entries:
        states = [
            word
            for word, holds in (
                ("verified", entry.verified),
                ("pinned", entry.pinned),
                ("in use", entry.in_use),
            )
            if holds
        ]
        table.add_row(
            entry.content.digest.partition(":")[2][:16],
            decimal(entry.content.size),
            f"{entry.present_bytes * 100 // entry.content.size} %",
            ", ".join(states),
            time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.last_used)),
        )
    Console().print(table)
    click.echo(f"{len(entries)} contents, {decimal(sum(e.used_bytes for e in entries))} on disk")


@command.command("check")
@_digests
@_cache_dir
@_json
def check(digests: Sequence[str], directory: Path, as_json: bool) -> None:
    """Read everything back and verify it, block by block and whole; drop what is damaged.

    \b
    Example:
      jfs cache check

    Exit codes: 0 all is well, 1 something was damaged (it is fetched again when it is read).
    """
    entries = _chosen(directory, digests, everything=True)
    # Only reads: neither budget nor floor matter.
    store = cache.DiskBlockStore(CacheSettings(directory), Metrics())
    try:
        results = [cache.check(store, entry) for entry in entries]
    finally:
        store.close()
    damaged = [result for result in results if result.damaged_bytes]
    if as_json:
        rows = [{**_row(result.entry), "damaged_bytes": result.damaged_bytes} for result in results]
        click.echo(json.dumps(rows, indent=1))
    else:
        for result in damaged:
            click.echo(
                f"{result.entry.content.digest}: {decimal(result.damaged_bytes)} damaged, dropped"
            )
        click.echo(f"{len(results)} contents checked, {len(damaged)} damaged")
    if damaged:
        raise click.exceptions.Exit(1)


@command.command("evict")
@_digests
@_cache_dir
@click.option("--all", "everything", is_flag=True, help="Every content.")
@click.option(
    "--older", type=NotNegative(), metavar="DAYS", help="What was not used for this long."
)
@click.option("--to-size", type=Size(), help="The least recently used, until so much is left.")
@click.option("--force", is_flag=True, help="Pinned contents too.")
def evict(
    digests: Sequence[str],
    directory: Path,
    everything: bool,
    older: float | None,
    to_size: int | None,
    force: bool,
) -> None:
    """Remove contents from the cache. What is open in a mount, or pinned, stays.

    \b
    Example:
      jfs cache evict --older 30

    Exit codes: 0 done, 1 something that was named is in use or pinned, 2 wrong use.
    """
    if sum((bool(digests), everything, older is not None, to_size is not None)) != 1:
        raise ConfigError("jfs cache evict: give one of DIGEST…, --all, --older or --to-size")
    entries = _chosen(directory, digests, everything=not digests)
    left = sum(entry.used_bytes for entry in entries)
    freed = removed = 0
    kept = []
    for entry in reversed(entries):  # the least recently used first
        if older is not None and time.time() - entry.last_used < older * _DAY_S:
            continue
        if to_size is not None and left - freed <= to_size:
            break
        if cache.remove(entry, even_pinned=force):
            freed += entry.used_bytes
            removed += 1
        else:
            kept.append(entry)
    for entry in kept:
        why = "pinned" if entry.pinned and not force else "in use"
        click.echo(f"{entry.content.digest}: {why}, kept")
    click.echo(f"{removed} contents removed, {decimal(freed)}")
    if kept and digests:
        raise click.exceptions.Exit(1)


@command.command("pin")
@_digests
@_cache_dir
@click.option("--undo", is_flag=True, help="Let eviction take them again.")
def pin(digests: Sequence[str], directory: Path, undo: bool) -> None:
    """Let eviction leave contents alone.

    \b
    Example:
      jfs cache pin 3f2a9c

    Exit codes: 0 done, 1 there is no cache, 2 wrong use.
    """
    if not digests:
        raise ConfigError("jfs cache pin: give the DIGEST of a content (jfs cache ls)")
    for entry in _chosen(directory, digests, everything=False):
        cache.pin(entry, pinned=not undo)
        click.echo(f"{entry.content.digest}: {'no longer pinned' if undo else 'pinned'}")


def _chosen(
    directory: Path, digests: Sequence[str], *, everything: bool
) -> list[cache.CachedEntry]:
    """Return the entries that the digests name; without digests all, if *everything*."""
    entries = list(cache.inventory(directory))
    if not digests and everything:
        return entries
    chosen = []
    for wanted in digests:
        prefix = wanted.lower().removeprefix("sha256:").removeprefix("sha1:")
        found = [e for e in entries if e.content.digest.partition(":")[2].startswith(prefix)]
        if not prefix or not found:
            raise ConfigError(f"{wanted}: not in the cache {directory} (jfs cache ls)")
        if len(found) > 1:
            raise ConfigError(f"{wanted}: the beginning of {len(found)} digests: give more of it")
        chosen += found
    return chosen


def _row(entry: cache.CachedEntry) -> dict[str, object]:
    return {
        "digest": entry.content.digest,
        "size": entry.content.size,
        "present_bytes": entry.present_bytes,
        "used_bytes": entry.used_bytes,
        "last_used": entry.last_used,
        "complete": entry.complete,
        "verified": entry.verified,
        "pinned": entry.pinned,
        "in_use": entry.in_use,
    }
