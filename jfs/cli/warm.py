"""``jfs warm``: bring models into the cache before somebody waits for them."""

import json
import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path

import click
from rich.console import Console
from rich.filesize import decimal
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from jfs import logs, warming
from jfs.cli import connection as server
from jfs.cli.connection import Connection
from jfs.cli.options import Size
from jfs.config import CacheSettings, default_cache_directory
from jfs.model import RepoPath

_PATH = click.Path(path_type=Path)


@click.command("warm")
@click.argument("paths", nargs=-1, required=True, metavar="PATH…")
@click.option("--check", is_flag=True, help="Verify every content against its checksum too.")
@server.options
@click.option(
    "--cache-dir", type=_PATH, help="Block cache.  [default: /var/cache/jfs, ~/.cache/jfs]"
)
@click.option("--cache-size", type=Size(), default="64G", show_default=True, help="Its budget.")
@click.option(
    "--connections",
    type=click.IntRange(1, 64),
    default=4,
    show_default=True,
    help="Parallel downloads.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
def command(
    paths: Sequence[str],
    check: bool,
    cache_dir: Path | None,
    cache_size: int,
    connections: int,
    as_json: bool,
    connection: Connection,
) -> None:
    """Bring the files at or below every PATH into the block cache, whole.

    PATH is a file or folder inside a mount of jfs, or a place on a server as `jfs mount` takes it;
    no mount is needed. What is cached already is not fetched again, so an interrupted run is
    simply repeated. The cache is the one that the mounts use which were given the same --cache-dir.

    \b
    Example:
      jfs warm ml-models-local/llm/llama3-8b/v1
      jfs warm /models/llm/llama3-8b/v1

    Exit codes: 0 everything is cached (--check: and verified), 1 something is not, 2 wrong use.
    """
    logs.set_up(logging.WARNING)
    sources = [connection.place(path).source for path in paths]
    cache = CacheSettings(
        (cache_dir or default_cache_directory(os.environ)).absolute(), budget_bytes=cache_size
    )
    start = time.monotonic()
    results = []
    with _progress(quiet=as_json) as progress:
        task = progress.add_task("", total=0)

        def found(path: RepoPath, size: int) -> None:
            progress.update(task, description=path.name, total=_total(progress) + size)

        def advanced(_: RepoPath, size: int) -> None:
            progress.advance(task, size)

        for source in sources:
            settings = connection.settings(source, connections=connections)
            results.append(
                warming.warm(
                    settings, cache, [source.path], verify=check, found=found, advanced=advanced
                )
            )
    seconds = time.monotonic() - start
    failures = [failure for result in results for failure in result.failures]
    files = sum(result.files for result in results)
    cached = files - sum(result.failed for result in results)
    total = sum(result.total for result in results)
    fetched = sum(result.fetched for result in results)
    if as_json:
        click.echo(
            json.dumps(
                {
                    "files": files,
                    "bytes": total,
                    "fetched_bytes": fetched,
                    "seconds": round(seconds, 3),
                    "failures": [{"path": str(path), "error": text} for path, text in failures],
                }
            )
        )
    elif files or not failures:
        click.echo(
            f"{cached} of {files} files cached, {decimal(total)}, "
            f"of which {decimal(fetched)} fetched in {seconds:.1f} s"
        )
    for path, text in failures:
        click.echo(f"jfs: {path}: {text}", err=True)
    if failures:
        raise click.exceptions.Exit(1)


def _progress(*, quiet: bool) -> Progress:
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=quiet or not console.is_terminal,
    )


def _total(progress: Progress) -> float:
    return progress.tasks[0].total or 0
