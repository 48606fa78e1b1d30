"""``jfs mount``: options to settings, then run in the foreground or as a daemon."""

import logging
import math
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

import jfs
from jfs import logs
from jfs.artifactory import trust
from jfs.cli import daemon, output, standstill
from jfs.cli.connection import FILES, client_certificate
from jfs.cli.options import (
    Command,
    Duration,
    ListedOptions,
    OptionalValue,
    Place,
    Size,
    Umask,
    parse_listed,
)
from jfs.cli.properties import properties_of
from jfs.config import (
    CacheSettings,
    Credentials,
    Fetch,
    MountSettings,
    ReadSettings,
    ServerSettings,
    TreeSettings,
    WriteSettings,
    build_from,
    default_cache_directory,
)
from jfs.credentials import jf_configuration
from jfs.errors import ConfigError
from jfs.mount import serving, supervisor
from jfs.mount.mountpoint import refuse_inside
from jfs.sources import parse_source

_Command = TypeVar("_Command", bound=Callable[..., Any])
_PATH = click.Path(path_type=Path)
_LONGEST_S = 3600.0  # somebody waits for the answer
# A machine that swaps, or a container that has used up its share of the CPU, stands still for a
# second or two: a mount is not to be ended for that.
_SHORTEST_SILENCE_S = 3.0
log = logging.getLogger(__name__)
_FOR_EVER = "36500d"  # longer than any machine runs


def _time(flag: str, default: float, text: str) -> Callable[[_Command], _Command]:
    return click.option(
        flag, type=Duration(), default=default, show_default=True, metavar="TIME", help=text
    )


def _files(command: Callable[..., None]) -> Callable[..., None]:
    for option in reversed(FILES):
        command = option(command)
    return command


@click.command("mount", cls=Command)
@click.argument("source")
@click.argument("mountpoint", type=Place())
@_files
@click.option("--insecure", is_flag=True, help="Do not verify the server's certificate.")
@click.option("--uid", type=click.IntRange(0), help="Owner of everything.  [default: who mounts]")
@click.option("--gid", type=click.IntRange(0), help="Group of everything.  [default: who mounts]")
@click.option("--umask", type=Umask(), default="022", show_default=True, help="Bits to take away.")
@click.option("--allow-other", is_flag=True, help="Let other users in.")
@click.option("--read-only", is_flag=True, help="Change nothing, properties neither.")
@click.option("--no-overwrite", is_flag=True, help="What is on the server keeps its content.")
@click.option(
    "--last-writer-wins",
    is_flag=True,
    help="Upload also over what others wrote since the file was opened.",
)
@click.option(
    "--write-back",
    is_flag=True,
    help="Let close return once the file is on this disk, and upload it behind.",
)
@click.option(
    "--no-overlap-uploads",
    is_flag=True,
    help="Send nothing of a large new file before it is closed.",
)
@_time(
    "--settle",
    2.0,
    "Upload what is opened again and again once it has rested so long; 0: at each close.",
)
@click.option("--no-delete", is_flag=True, help="Remove and move away nothing on the server.")
@click.option(
    "--upload-prop",
    "upload_props",
    multiple=True,
    metavar="KEY=VALUE",
    help="Property of everything that is uploaded.",
)
@click.option("--build-name", help="Build that uploads belong to.  [default: JFROG_CLI_BUILD_NAME]")
@click.option("--build-number", help="Its number.  [default: JFROG_CLI_BUILD_NUMBER]")
@click.option(
    "-o",
    "listed",
    multiple=True,
    is_eager=True,
    callback=parse_listed,
    metavar="OPT[,OPT…]",
    help="Options as mount(8) and fstab write them; long flags too (token_file=…).",
)
@click.option("--daemon", "background", is_flag=True, help="Return when the mount answers.")
@click.option(
    "--log-file", type=_PATH, help="Log here.  [default: stderr; /var/log/jfs/… if daemon]"
)
@click.option("-v", "--verbose", is_flag=True, help="Log every request that fails.")
@click.option(
    "--cache-dir", type=_PATH, help="Block cache.  [default: /var/cache/jfs, ~/.cache/jfs]"
)
@click.option(
    "--staging-dir", type=_PATH, help="What is being written.  [default: staging in --cache-dir]"
)
@_time("--drain-timeout", 30.0, "How long the end waits for uploads that are under way.")
@click.option("--cache-size", type=Size(), default="64G", show_default=True, help="Its budget.")
@_time("--attr-ttl", 10.0, "How long sizes, times and properties are believed.")
@click.option(
    "--entry-ttl",
    type=Duration(),
    metavar="TIME",
    help="How long names and listings are believed.  [default: as --attr-ttl]",
)
@_time("--negative-ttl", 5.0, "How long a missing name is believed to be missing.")
@click.option(
    "--stale-if-error",
    type=Duration(),
    default="1d",
    show_default=True,
    help="How long what is known is served while the server cannot be asked; 0: never.",
)
@click.option(
    "--offline",
    is_flag=True,
    help="Never ask: show what is known and cached, read-only.",
)
@click.option(
    "--wait-for-server",
    cls=OptionalValue,
    type=Duration(),
    bare=_FOR_EVER,
    metavar="[=TIME]",
    help="Wait for a server that is down.  [default: for ever under systemd, 60s from mount(8)]",
)
@click.option(
    "--passthrough",
    type=click.Choice(["auto", "off"]),
    default="auto",
    show_default=True,
    help="Let the kernel itself read what is cached and verified, and write what is made here.",
)
@click.option(
    "--verify-reads",
    is_flag=True,
    help="Check every byte that is read from the cache, of verified files too: no passthrough.",
)
@click.option(
    "--native",
    type=click.Choice(["auto", "off"]),
    default="auto",
    show_default=True,
    help="Move bytes by the compiled part of jfs, where it was built; off: by Python alone.",
)
@click.option(
    "--fetch",
    type=click.Choice([each.value for each in Fetch]),
    default="auto",
    show_default=True,
    help="lazy: what is read is fetched. auto: and all of a file, behind who reads it, if its like "
    "were read whole. whole: all of a file is here before an open returns.",
)
@click.option(
    "--no-prefetch-shards",
    is_flag=True,
    help="Do not fetch the next shards of a model that is being read whole.",
)
@click.option(
    "--connections",
    type=click.IntRange(1, 64),
    default=4,
    show_default=True,
    help="Parallel downloads.",
)
@click.option(
    "--read-ahead", type=Size(), default="32M", show_default=True, help="Window of one reader."
)
@click.option(
    "--timeout",
    type=Duration(1, _LONGEST_S),
    default=30.0,
    show_default=True,
    metavar="TIME",
    help="Give up on a server that is silent for so long; about one name, 10 s at most.",
)
@click.option(
    "--connect-timeout",
    type=Duration(0.1, _LONGEST_S),
    default=5.0,
    show_default=True,
    metavar="TIME",
    help="Give up on a connection that is not made in so long.",
)
@click.option(
    "--retry-for",
    type=Duration(0, _LONGEST_S),
    default=30.0,
    show_default=True,
    metavar="TIME",
    help="How long into an outage reads and changes wait for its end; names 5 s at most.",
)
@click.option(
    "--watchdog",
    type=Duration(_SHORTEST_SILENCE_S, or_zero=True),
    default=60.0,
    show_default=True,
    metavar="TIME",
    help="End a mount that itself does not answer for so long (3 or more); 0: never.",
)
def command(
    source: str,
    mountpoint: Path,
    token_file: Path | None,
    ca_file: Path | None,
    client_cert: Path | None,
    client_key: Path | None,
    insecure: bool,
    uid: int | None,
    gid: int | None,
    umask: int,
    allow_other: bool,
    read_only: bool,
    no_overwrite: bool,
    last_writer_wins: bool,
    write_back: bool,
    no_overlap_uploads: bool,
    settle: float,
    no_delete: bool,
    upload_props: tuple[str, ...],
    build_name: str | None,
    build_number: str | None,
    listed: ListedOptions,
    background: bool,
    log_file: Path | None,
    verbose: bool,
    cache_dir: Path | None,
    staging_dir: Path | None,
    drain_timeout: float,
    cache_size: int,
    attr_ttl: float,
    entry_ttl: float | None,
    negative_ttl: float,
    stale_if_error: float,
    offline: bool,
    wait_for_server: float | None,
    passthrough: str,
    verify_reads: bool,
    native: str,
    fetch: str,
    no_prefetch_shards: bool,
    connections: int,
    read_ahead: int,
    timeout: float,
    connect_timeout: float,
    retry_for: float,
    watchdog: float,
) -> None:
    """Mount SOURCE on the directory MOUNTPOINT.

    SOURCE is the URL of an Artifactory server, a repository or a folder in it; SERVER_ID:repo/path
    as the jf command knows servers; or repo/path on the server in JF_URL. A service whose address
    does not end in /artifactory is told from the place in it by a #, as in
    https://company.example/tools/art#repo/path. Credentials come from --token-file,
    JF_ACCESS_TOKEN (JFROG_TOKEN …), JF_USER and JF_PASSWORD, or netrc (NETRC, ~/.netrc). Files of
    credentials and certificates are read again when they change.

    \b
    Example:
      export JF_ACCESS_TOKEN=…
      jfs mount https://company.example/artifactory/ml-models-local /models

    Exit codes: 0 unmounted (with --daemon: mounted), 1 the mount failed while it was in use,
    2 nothing was mounted, and the message says what to do.
    """
    if wait_for_server is None:
        wait_for_server = math.inf if supervisor.supervises(os.environ) else 0.0
    parsed = parse_source(source, os.environ, token_file=token_file)
    client_cert, client_key = client_certificate(parsed, client_cert, client_key)
    for variable in (*trust.VARIABLES, "NETRC"):  # a daemon changes its directory
        if os.environ.get(variable):
            os.environ[variable] = os.path.abspath(os.environ[variable])
    cache_directory = (cache_dir or default_cache_directory(os.environ)).absolute()
    build = build_from(build_name, build_number, os.environ, time.time_ns() // 1_000_000)
    writing = WriteSettings(
        staging=(staging_dir or cache_directory / "staging").absolute(),
        properties={**properties_of(upload_props), **(build.properties if build else {})},
        no_overwrite=no_overwrite,
        last_writer_wins=last_writer_wins,
        write_back=write_back,
        settle_s=settle,
        no_delete=no_delete,
        overlap=not no_overlap_uploads,
        drain_s=drain_timeout,
    )
    settings = MountSettings(
        source=parsed,
        shown_source=source,
        mountpoint=mountpoint.absolute(),
        server=ServerSettings(
            url=parsed.server_url,
            credentials=parsed.credentials,
            ca_file=ca_file.absolute() if ca_file else None,
            client_cert=client_cert,
            client_key=client_key,
            verify_tls=not insecure,
            connect_timeout_s=connect_timeout,
            idle_timeout_s=timeout,
            request_deadline_s=max(60.0, timeout + retry_for),
            retries_s=min(5.0, retry_for),
            jobs_retries_s=retry_for,
            connections=connections,
        ),
        cache=CacheSettings(
            directory=cache_directory,
            budget_bytes=cache_size,
        ),
        tree=TreeSettings(
            uid=os.getuid() if uid is None else uid,
            gid=os.getgid() if gid is None else gid,
            umask=umask,
            entry_ttl_s=attr_ttl if entry_ttl is None else entry_ttl,
            attr_ttl_s=attr_ttl,
            negative_ttl_s=negative_ttl,
            stale_if_error_s=math.inf if offline else stale_if_error,
        ),
        read=ReadSettings(
            fetch=Fetch(fetch),
            prefetch_shards=not no_prefetch_shards,
            window_bytes=read_ahead,
        ),
        write=None if read_only or offline or "ro" in listed.kernel else writing,
        fuse_options=listed.kernel
        | ({"ro"} if read_only or offline else set())
        | _sharing(allow_other),
        nonempty=listed.nonempty,
        offline=offline,
        wait_s=wait_for_server,
        passthrough=passthrough == "auto" and not verify_reads,
        native=native == "auto",
        watchdog_s=watchdog,
    )
    level = logging.DEBUG if verbose else logging.INFO
    if background and log_file is None:
        name = str(settings.mountpoint).strip("/").replace("/", "-") or "root"
        log_file = daemon.default_log_file(name)
    target = log_file.absolute() if log_file else None
    token_file = token_file.absolute() if token_file else None  # a daemon changes its directory

    def reload() -> Credentials | None:
        try:
            logs.reopen()
        except ConfigError as error:  # the old one is written on
            log.warning("%s", error)
        again = parse_source(source, os.environ, token_file=token_file)
        if again.server_url != parsed.server_url:
            raise ConfigError(f"{source}: is {again.server_url} now: mount it anew")
        return again.credentials

    refuse_inside(settings.mountpoint, _own_places(settings, target, token_file))
    if target is not None and background:
        daemon.make_log(target)
        standstill.over()  # before it forks
        daemon.start(lambda ready: serving.serve(settings, ready, reload=reload), target, level)
        output.announce(f"jfs: {source} mounted at {settings.mountpoint}")
        return
    logs.set_up(level, file=target)
    standstill.over()
    serving.serve(settings, _announce(settings), reload=reload)


def _own_places(
    settings: MountSettings, log_file: Path | None, token_file: Path | None
) -> dict[str, Path]:
    """Return what the mount reads and writes itself, by the option that names it."""
    places = {
        "--ca-file": settings.server.ca_file,
        "--client-cert": settings.server.client_cert,
        "--client-key": settings.server.client_key,
        "--cache-dir": settings.cache.directory,
        "--staging-dir": settings.write.staging if settings.write else None,
        "--log-file": log_file,
        "the program": Path(jfs.__file__),  # modules are imported while it runs
        "Python": Path(sys.prefix),
    }
    kept_in = settings.server.credentials.kept_in
    if token_file is not None:
        places["--token-file"] = token_file
    elif kept_in is not None and settings.source.server_id is None:
        places["NETRC"] = kept_in.path
    if settings.source.server_id is not None:
        places["JFROG_CLI_HOME_DIR"] = jf_configuration(os.environ)
    return {option: path for option, path in places.items() if path is not None}


def _sharing(allow_other: bool) -> frozenset[str]:
    if not allow_other:
        return frozenset()
    if os.geteuid() != 0:
        try:
            lines = Path("/etc/fuse.conf").read_text(encoding="utf-8").splitlines()
        except OSError:
            lines = []
        if "user_allow_other" not in {line.strip() for line in lines}:
            raise ConfigError(
                "--allow-other: only root may, until /etc/fuse.conf has a line user_allow_other"
            )
    return frozenset({"allow_other"})


def _announce(settings: MountSettings) -> Callable[[], None]:
    def ready() -> None:
        output.announce(f"jfs: {settings.shown_source} mounted at {settings.mountpoint}")
        supervisor.tell("READY=1", f"STATUS={settings.shown_source} at {settings.mountpoint}")

    return ready
