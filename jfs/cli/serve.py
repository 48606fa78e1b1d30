"""``jfs serve``: the embedded server on a directory, until a signal. Main thread only."""

import json
import logging
import os
import select
import signal
from pathlib import Path

import click

from jfs import logs
from jfs.cli import output
from jfs.cli.options import Size
from jfs.errors import ConfigError, Interrupted, JfsError
from jfs.server import EmbeddedServer, FaultPlan, TlsFiles, samples

_WATCH_S = 1.0  # how soon an end of the server's thread is noticed
_PATH = click.Path(path_type=Path)


@click.command("serve")
@click.argument("directory", metavar="DIR", type=_PATH)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8081, show_default=True, help="0: any free."
)
@click.option("--anonymous", is_flag=True, help="Let everybody who connects read and write.")
@click.option(
    "--user",
    multiple=True,
    metavar="NAME=RIGHTS[@REPOS]",
    help="Let NAME in, token in DIR/NAME.token; RIGHTS of rwndm, REPOS a glob.",
)
@click.option("--quota", type=Size(), help="Refuse content beyond this.")
@click.option("--repo", multiple=True, metavar="NAME", help="Create this repository if missing.")
@click.option(
    "--remote",
    multiple=True,
    metavar="NAME=URL",
    help="Create this repository, which fetches from URL and keeps.",
)
@click.option("--samples", "with_samples", is_flag=True, help="Fill empty repositories: jfs demo.")
@click.option("--tls-cert", type=_PATH, help="Certificate chain, PEM: serve https.")
@click.option("--tls-key", type=_PATH, help="Its key, PEM.")
@click.option("--allow-remote", is_flag=True, help="Listen beyond loopback without TLS.")
@click.option("--faults", type=_PATH, help="JSON list of faults to act out: a test aid.")
@click.option("--fsync", is_flag=True, help="Let uploads survive a loss of power: slower.")
@click.option("--json", "as_json", is_flag=True, help="Print the ready line as JSON.")
def command(
    directory: Path,
    host: str,
    port: int,
    anonymous: bool,
    user: tuple[str, ...],
    quota: int | None,
    repo: tuple[str, ...],
    remote: tuple[str, ...],
    with_samples: bool,
    tls_cert: Path | None,
    tls_key: Path | None,
    allow_remote: bool,
    faults: Path | None,
    fsync: bool,
    as_json: bool,
) -> None:
    """Serve Artifactory's REST interface from DIR until SIGTERM or Ctrl-C.

    Prints one line when it is ready. The first start makes an administrator's token in
    DIR/admin.token. What the server did so far: GET /jfs/stats, and DELETE to begin anew.

    \b
    Example:
      jfs serve /srv/models --repo ml-models-local --remote hf=https://huggingface.co
      export JF_ACCESS_TOKEN=$(cat /srv/models/admin.token)
      jfs mount http://127.0.0.1:8081/artifactory/ml-models-local /models

    --user may be repeated, also for one NAME: r read, w deploy, n set properties, d delete and
    overwrite, m all of these and manage. Without @REPOS, rights are on every repository.

    Exit codes: 0 ended by a signal, 1 it failed, 2 it could not start, and the message says why.
    """
    if (tls_cert is None) != (tls_key is None):
        raise ConfigError("--tls-cert and --tls-key go together")
    logs.set_up(logging.INFO)
    woken, wake = os.pipe()
    ready = False

    def end(number: int, _: object) -> None:
        if ready:
            os.write(wake, b"\0")
        elif number == signal.SIGINT:
            raise KeyboardInterrupt
        else:
            raise Interrupted(f"{signal.Signals(number).name}: ended before it served", number)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, end)
    server = EmbeddedServer(
        directory.absolute(),
        host=host,
        port=port,
        anonymous=anonymous,
        faults=FaultPlan.load(faults) if faults else None,
        tls=TlsFiles(tls_cert, tls_key) if tls_cert and tls_key else None,
        allow_remote=allow_remote,
        durable=fsync,
        users=_users(user),
        quota_bytes=quota,
    )
    try:
        for name in repo:
            server.create_repository(name)
            if with_samples and server.is_empty(name):
                samples.seed(server, name)
        for pair in remote:
            name, equals, upstream = pair.partition("=")
            if not equals:
                raise ConfigError(f"--remote {pair}: give NAME=URL")
            server.create_repository(name, upstream=upstream)
        server.start()
        ready = True
        token = directory.absolute() / "admin.token"
        if as_json:
            output.announce(json.dumps({"url": server.url, "token_file": str(token)}))
        else:
            output.announce(f"jfs: serving {server.url}, token in {token}")
        while not select.select([woken], [], [], _WATCH_S)[0]:
            if not server.running:
                raise JfsError("the server ended by itself; its log says why")
    finally:
        server.stop()


def _users(pairs: tuple[str, ...]) -> dict[str, list[str]]:
    """Collect the rights of each name. Raises ConfigError."""
    users: dict[str, list[str]] = {}
    for pair in pairs:
        name, equals, rights = pair.partition("=")
        if not equals:
            raise ConfigError(f"--user {pair}: give NAME=RIGHTS or NAME=RIGHTS@REPOS")
        users.setdefault(name, []).append(rights)
    return users
