"""Which server, and which place on it: options and paths that several commands share.

A PATH is a file or folder inside a mount of jfs, or a place on a server as ``jfs mount`` takes it.
"""

import functools
import os
import re
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from jfs import interrupts, threads
from jfs.artifactory import ArtifactoryClient, explain
from jfs.config import ServerSettings, Source
from jfs.errors import ConfigError, JfsError, Unavailable, Untrusted
from jfs.metrics import Metrics
from jfs.model import RepoPath
from jfs.mount.table import mount_above
from jfs.sources import parse_source, server_url_from
from jfs.vfs.filesystem import REFRESH

_T = TypeVar("_T")
_F = TypeVar("_F", bound=Callable[..., Any])
# A person waits, who sees nothing meanwhile; a mount goes on for longer.
_RETRIES_S = 10.0
_PATH = click.Path(path_type=Path)
_WILDCARDS = re.compile(r"[*?]")


# Options of `jfs mount`, too. All of these files are read again when they change.
FILES: Sequence[Callable[[Any], Any]] = (
    click.option(
        "--token-file",
        type=_PATH,
        help="Access token.  [default: JF_ACCESS_TOKEN …, JF_USER and JF_PASSWORD; netrc]",
    ),
    click.option(
        "--ca-file",
        type=_PATH,
        help="Certificates to trust, PEM, in a file or directory.  "
        "[default: REQUESTS_CA_BUNDLE, CURL_CA_BUNDLE, SSL_CERT_FILE and SSL_CERT_DIR, the system]",
    ),
    click.option("--client-cert", type=_PATH, help="Certificate to show to the server, PEM."),
    click.option(
        "--client-key", type=_PATH, help="Its key, PEM, not encrypted.  [default: --client-cert]"
    ),
)


@dataclass(frozen=True, slots=True)
class Place:
    """A place on a server, and how its user wrote it: below *shown* is what lies below it."""

    source: Source
    shown: str

    def show(self, path: RepoPath) -> str:
        """Return a path at or below this place as its user would write it."""
        base, text = str(self.source.path), str(path)
        rest = text[len(base) :].lstrip("/") if text.startswith(base) else text
        if not rest:
            return self.shown
        return f"{self.shown.rstrip('/')}/{rest}" if self.shown else text


@dataclass(frozen=True, slots=True)
class Connection:
    """What the options say about the way to a server."""

    token_file: Path | None
    ca_file: Path | None
    client_cert: Path | None
    client_key: Path | None
    insecure: bool

    def place(self, text: str) -> Place:
        """Understand a PATH; one below a mount is the place that the mount shows there.

        Raises:
            ConfigError: what is wrong with it.
        """
        place = self._place(text)
        _require_no_wildcards(place)
        return place

    def here(self) -> Place:
        """Return the place of the current directory in a mount; elsewhere, the server itself.

        Raises:
            ConfigError: neither is known.
        """
        if mount_above(Path()) is not None:
            return self._place(".")
        if server_url_from(os.environ) is None:
            raise ConfigError(
                "which server? set JF_URL, or give a PATH: a URL, REPO/PATH, or a place in a mount"
            )
        return Place(parse_source("", os.environ, token_file=self.token_file), "")

    def _place(self, text: str) -> Place:
        found = None if "://" in text else mount_above(Path(text))
        if found is None:
            if text.partition("/")[0] in (".", ".."):
                raise ConfigError(f"{text}: is in no mount of jfs: give REPO/PATH, or a URL")
            return Place(parse_source(text, os.environ, token_file=self.token_file), text)
        entry, inside = found
        mounted = parse_source(entry.source, os.environ, token_file=self.token_file)
        parts = [part for part in (str(mounted.path), *inside) if part]
        source = Source(mounted.server_url, RepoPath.parse("/".join(parts)), mounted.credentials)
        return Place(source, text)

    def settings(self, source: Source, *, connections: int = 4) -> ServerSettings:
        client_cert, client_key = client_certificate(source, self.client_cert, self.client_key)
        return ServerSettings(
            url=source.server_url,
            credentials=source.credentials,
            ca_file=_absolute(self.ca_file),
            client_cert=client_cert,
            client_key=client_key,
            verify_tls=not self.insecure,
            connections=connections,
            retries_s=_RETRIES_S,
            jobs_retries_s=_RETRIES_S,
        )

    def ask(self, source: Source, question: Callable[[ArtifactoryClient], Awaitable[_T]]) -> _T:
        """Ask a server something, within an event loop of its own.

        Raises:
            ConfigError: TLS refuses the server, or its proxy cannot be used: what to do.
            JfsError: what the server answered instead, or why it did not.
        """

        async def run() -> _T:
            client = ArtifactoryClient(self.settings(source), Metrics())
            async with aclosing(client), threads.cut_when_cancelled(client.cut_uploads):
                return await question(client)

        try:
            return interrupts.run(run)
        except Unavailable as error:
            if error.status is not None and not isinstance(error, Untrusted):
                raise
            kind = ConfigError if isinstance(error, Untrusted) else JfsError
            raise kind(f"{source.server_url}: {explain(error)}") from None


def client_certificate(
    source: Source, certificate: Path | None, key: Path | None
) -> tuple[Path | None, Path | None]:
    """Return the files of a certificate and its key, of options or as the jf command knows them.

    Raises:
        ConfigError: a key without its certificate.
    """
    if certificate is None:
        if key is not None:
            raise ConfigError(f"--client-key {key}: give its certificate with --client-cert")
        certificate, key = source.client_cert, source.client_key
    return _absolute(certificate), _absolute(key)


def _absolute(path: Path | None) -> Path | None:
    return path.absolute() if path is not None else None


def _require_no_wildcards(place: Place) -> None:
    """Artifactory's names hold no wildcards: they are for `jfs find`."""
    path = place.source.path
    if not _WILDCARDS.search(str(path)):
        return
    if _WILDCARDS.search(path.repo):
        hint = "`jfs ls` without a PATH lists the repositories"
    else:
        before = _WILDCARDS.split(place.shown)[0]
        hint = f"jfs find {before.rpartition('/')[0]} --name '{path.name}'"
    raise ConfigError(f"{place.shown}: a PATH holds no wildcards: {hint}")


def options(command: _F) -> _F:
    """Add to a command the options of a connection, and its parameter ``connection``."""

    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        names = ("token_file", "ca_file", "client_cert", "client_key", "insecure")
        connection = Connection(**{name: kwargs.pop(name) for name in names})
        return command(*args, connection=connection, **kwargs)

    for option in (
        click.option("--insecure", is_flag=True, help="Do not verify the server's certificate."),
        *reversed(FILES),
    ):
        option(wrapped)
    return wrapped  # type: ignore[return-value]  # the same command, with other parameters


def refresh(path: str) -> None:
    """Let a mount forget what it knew at and below a path; elsewhere, nothing. Raises OSError."""
    if "://" not in path and mount_above(Path(path)) is not None:
        interrupts.wait_for(lambda: os.getxattr(path, REFRESH))
