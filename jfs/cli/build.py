"""``jfs build``: record which artifacts a run made, and read it back."""

import json
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import click

from jfs import __version__
from jfs.artifactory import ArtifactoryClient, builds
from jfs.artifactory.builds import BuildInfo, BuiltFile
from jfs.cli import connection as server
from jfs.cli.connection import Connection, Place
from jfs.cli.places import require, require_one_server
from jfs.cli.tables import print_rows
from jfs.config import Build, build_from
from jfs.errors import ConfigError, JfsError, NotFound
from jfs.model import Criteria, FileInfo, Match, RepoPath
from jfs.mount.table import mount_above
from jfs.sources import parse_source, server_url_from

_PUBLISHED = "-build-info"  # ends the names of the repositories that hold published builds


@click.group("build")
def command() -> None:
    """Record which artifacts a run made: build info, as the jf command publishes it.

    Artifacts belong to a build by their properties build.name and build.number, which
    `jfs mount --build-name --build-number` sets on everything that is written into it.

    \b
    Example:
      jfs build publish --build-name train-bert --build-number 42 ml-models-local
      jfs build show train-bert 42

    Exit codes: 0 done, 1 the server refused, or there is no such build, 2 wrong use.
    """


@command.command("publish")
@click.argument("scopes", nargs=-1, metavar="[SCOPE…]")
@click.option("--build-name", help="Name of the build.  [default: JFROG_CLI_BUILD_NAME]")
@click.option("--build-number", help="Its number.  [default: JFROG_CLI_BUILD_NUMBER]")
@click.option(
    "--dependency",
    "dependencies",
    multiple=True,
    metavar="PATH",
    help="What it was made from: a file, or all of a folder.",
)
@click.option("--url", help="Page about the run.")
@click.option("--vcs-url", help="Address of the source code.")
@click.option("--vcs-revision", help="Its revision.")
@click.option("--dry-run", is_flag=True, help="Print the document and send nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
@server.options
def publish(
    scopes: tuple[str, ...],
    build_name: str | None,
    build_number: str | None,
    dependencies: tuple[str, ...],
    url: str | None,
    vcs_url: str | None,
    vcs_revision: str | None,
    dry_run: bool,
    as_json: bool,
    connection: Connection,
) -> None:
    """Publish the build whose artifacts are found below every SCOPE, by their properties.

    SCOPE is a repository or folder inside a mount of jfs, or on a server as `jfs mount` takes it;
    without one, the current folder of a mount, else everything that may be read on the server in
    JF_URL. The build started at the earliest build.timestamp of its artifacts. The same run once
    more replaces it.

    \b
    Example:
      jfs build publish --build-name train-bert --build-number 42 ml-models-local \\
          --dependency ml-models-local/nlp/bert/1.0.0 --vcs-revision "$(git rev-parse HEAD)"

    Exit codes: 0 published, 1 it has no artifacts, or the server refused, 2 wrong use.
    """
    build = _build(build_name, build_number)
    places = [connection.place(scope) for scope in scopes] or [_whole_server(None, connection)]
    require_one_server(places)
    source = places[0].source
    matches = connection.ask(source, lambda client: _find(client, build, places))
    if not matches:
        where = ", ".join(place.shown for place in places)
        raise JfsError(
            f"build {build.name}, number {build.number}: {where}: nothing has these in its "
            "properties build.name and build.number: check them with `jfs find --prop "
            f"build.name={build.name}`; mounts set them with --build-name and --build-number"
        )
    build = replace(build, started_ms=_started_ms(matches, build.started_ms))
    inputs = [info for each in dependencies for info in _inputs(connection.place(each), connection)]
    artifacts = [match.info for match in matches if isinstance(match.info, FileInfo)]
    document = builds.document(
        build,
        artifacts,
        inputs,
        version=__version__,
        url=url,
        vcs_url=vcs_url,
        vcs_revision=vcs_revision,
    )
    if dry_run:
        click.echo(json.dumps(document, indent=1))
        return
    try:
        connection.ask(source, lambda client: client.publish_build(document))
    except ConfigError:
        raise
    except JfsError as error:
        raise JfsError(f"build {build.name}, number {build.number}: {error}") from None
    address = source.server_url + builds.address(build.name, build.number)
    if as_json:
        counts = {"artifacts": len(artifacts), "dependencies": len(inputs), "address": address}
        click.echo(json.dumps(counts))
        return
    click.echo(
        f"published {build.name} {build.number}: {len(artifacts)} artifacts, "
        f"{len(inputs)} dependencies: {address}"
    )


@command.command("show")
@click.argument("name")
@click.argument("number")
@click.option(
    "--server", "at", metavar="PATH", help="Its server, or any place on it.  [default: JF_URL]"
)
@click.option("--json", "as_json", is_flag=True, help="Print the document.")
@server.options
def show(name: str, number: str, at: str | None, as_json: bool, connection: Connection) -> None:
    """Print what was published of a build: its artifacts and what they were made from.

    \b
    Example:
      jfs build show train-bert 42
      jfs build show --json train-bert 42 | jq -r '.modules[].artifacts[].sha256'

    Exit codes: 0 done, 1 there is no such build, or the server failed, 2 wrong use.
    """
    source = _whole_server(at, connection).source
    try:
        found = connection.ask(source, lambda client: client.build(name, number))
    except NotFound:
        raise JfsError(
            f"build {name}, number {number}: no such build on {source.server_url}, or no right to "
            "read it"
        ) from None
    except ConfigError:
        raise
    except JfsError as error:
        raise JfsError(f"build {name}, number {number}: {error}") from None
    if as_json:
        click.echo(json.dumps(found.document, indent=1))
        return
    _print(found)


def _print(found: BuildInfo) -> None:
    click.echo(f"{found.name} {found.number}, started {found.started}: {found.url}")
    for title, files in (("ARTIFACT", found.artifacts), ("DEPENDENCY", found.dependencies)):
        if files:
            click.echo()
            print_rows(("CHECKSUM", title), [(_digest(each), each.place) for each in files])


def _digest(file: BuiltFile) -> str:
    sums = file.checksums
    for name, value in (("sha256", sums.sha256), ("sha1", sums.sha1), ("md5", sums.md5)):
        if value:
            return f"{name}:{value[:16]}"
    return "-"


def _build(name: str | None, number: str | None) -> Build:
    found = build_from(name, number, os.environ, time.time_ns() // 1_000_000)
    if found is None:
        raise ConfigError(
            "which build: give --build-name and --build-number, or set JFROG_CLI_BUILD_NAME and "
            "JFROG_CLI_BUILD_NUMBER"
        )
    return found


def _whole_server(text: str | None, connection: Connection) -> Place:
    """Return a server: of a PATH, else of the mount that we are in, else of JF_URL."""
    if text is not None:
        return connection.place(text)
    if mount_above(Path.cwd()) is not None:
        return connection.place(".")
    if server_url_from(os.environ) is None:
        raise ConfigError("which server: set JF_URL, or name a place on it (--help)")
    source = parse_source("", os.environ, token_file=connection.token_file)
    return Place(source, source.server_url)


async def _find(
    client: ArtifactoryClient, build: Build, places: Sequence[Place]
) -> Sequence[Match]:
    """Find what belongs to a build, in the order of its paths."""
    pairs = (("build.name", build.name), ("build.number", build.number))
    found: dict[RepoPath, Match] = {}
    for place in places:
        for match in await client.search(Criteria(place.source.path, pairs)):
            # A wildcard in a name finds others too, and what was published carries the same.
            its = all(value in match.properties.get(key, ()) for key, value in pairs)
            if its and not match.info.path.repo.endswith(_PUBLISHED):
                found[match.info.path] = match
    return [found[path] for path in sorted(found)]


def _started_ms(matches: Sequence[Match], default: int) -> int:
    stamps = [
        int(stamp)
        for match in matches
        for stamp in match.properties.get("build.timestamp", ())
        if stamp.isascii() and stamp.isdigit() and len(stamp) < 15
    ]
    return min(stamps, default=default)


def _inputs(place: Place, connection: Connection) -> Sequence[FileInfo]:
    """Describe a file, or every file below a folder. Raises JfsError."""

    async def ask(client: ArtifactoryClient) -> list[FileInfo]:
        path = place.source.path
        info = await require(client, place) if path.path else None
        if isinstance(info, FileInfo):
            return [info]
        matches = await client.search(Criteria(path))
        return sorted(
            (each.info for each in matches if isinstance(each.info, FileInfo)),
            key=lambda each: each.path,
        )

    found = connection.ask(place.source, ask)
    if not found:
        raise JfsError(f"--dependency {place.shown}: holds no files")
    return found
