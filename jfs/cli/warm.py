"""``jfs warm``: bring models into the cache before somebody waits for them."""

import json
import logging
import os
import re
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
from jfs.formats import Selection
from jfs.model import RepoPath

_PATH = click.Path(path_type=Path)
_RANKS_AT_MOST = 65_536


class _Rank(click.ParamType[tuple[int, int]]):
    """One of several processes that share a model: its number, from 0, and how many there are."""

    name = "R/N"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        match = re.fullmatch(r"([0-9]{1,5})/([0-9]{1,5})", str(value))
        if match is None or not int(match[1]) < int(match[2]) <= _RANKS_AT_MOST:
            self.fail(f"{value!r} is no rank: R/N, with R from 0 to N-1, such as 0/4")
        return int(match[1]), int(match[2])


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
@click.option(
    "--tensors",
    multiple=True,
    metavar="PATTERN",
    help="Only tensors of such names, and what is below them. Repeatable.",
)
@click.option("--rank", type=_Rank(), help="Only rank R's rows of every tensor, of N ranks.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
def command(
    paths: Sequence[str],
    check: bool,
    cache_dir: Path | None,
    cache_size: int,
    connections: int,
    tensors: Sequence[str],
    rank: tuple[int, int] | None,
    as_json: bool,
    connection: Connection,
) -> None:
    """Bring the files at or below every PATH into the block cache.

    PATH is a file or folder inside a mount of jfs, or a place on a server as `jfs mount` takes it;
    no mount is needed. What is cached already is not fetched again, so an interrupted run is
    simply repeated. The cache is the one that the mounts use which were given the same --cache-dir.

    --tensors and --rank choose from models that tell where their tensors are: safetensors, GGUF,
    ONNX with its tensors in other files, and indices of shards (*.index.json), whose shards are
    left alone if they hold none of them. PATH may be such an index, or an ONNX file. What is no
    model is fetched whole. A tensor whose rows N ranks cannot share evenly goes to all of them.

    \b
    Example:
      jfs warm ml-models-local/llm/llama3-8b/v1
      jfs warm /models/llm/llama3-8b/v1
      jfs warm --tensors 'model.layers.*.q_proj' --rank 0/4 /models/llm/llama3-8b/v1

    Exit codes: 0 everything is cached (--check: and verified), 1 something is not, 2 wrong use.
    """
    selection = None
    if tensors or rank:
        if check:
            raise click.UsageError("--check needs whole files: not with --tensors or --rank")
        selection = Selection(tuple(tensors), *(rank or (0, 1)))
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
                    settings,
                    cache,
                    [source.path],
                    verify=check,
                    found=found,
                    advanced=advanced,
                    selection=selection,
                )
            )
    seconds = time.monotonic() - start
    failures = [failure for result in results for failure in result.failures]
    files = sum(result.files for result in results)
    cached = files - sum(result.failed for result in results)
    total = sum(result.total for result in results)
    fetched = sum(result.fetched for result in results)
    each = [row for result in results for row in result.each]
    if as_json:
        click.echo(
            json.dumps(
                {
                    "files": files,
                    "bytes": total,
                    "fetched_bytes": fetched,
                    "seconds": round(seconds, 3),
                    "by_file": [
                        {"path": str(path), "bytes": needed, "fetched_bytes": got}
                        for path, needed, got in each
                    ],
                    "failures": [{"path": str(path), "error": text} for path, text in failures],
                }
            )
        )
    elif files or not failures:
        for path, needed, got in each:
            click.echo(f"{path}: {decimal(needed)} needed, {decimal(got)} fetched")
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
