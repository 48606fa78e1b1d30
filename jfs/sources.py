"""SOURCE: which server, and which place on it. Pure but for files of credentials.

A URL names the service and a place in it at once. Where one ends and the other begins:

- ``https://host/tools/art#repo/path``: at the ``#``, whatever comes before;
- ``https://host/x/artifactory/repo/path``: after the first segment ``artifactory``;
- ``https://host/repo/path``: a platform, whose service is at ``/artifactory``.
"""

from collections.abc import Mapping
from pathlib import Path
from urllib.parse import unquote, urlsplit

from jfs.config import Credentials, Source
from jfs.credentials import credentials_for, credentials_from, jf_server
from jfs.errors import ConfigError
from jfs.model import RepoPath

_SERVICE = "artifactory"


def split_server_url(url: str) -> tuple[str, str]:
    """Split a URL into the service base and the repository path below it, still encoded.

    Raises:
        ConfigError: not an http(s) URL, or one with credentials inside.
    """
    origin, segments, fragment = _parsed(url)
    if fragment is not None:
        if _SERVICE in segments[:-1]:
            raise ConfigError(
                "the URL has a #, which ends the address of the service: "
                "write %23 where it belongs to a name"
            )
        place = [segment for segment in fragment.split("/") if segment]
        return "/".join([origin, *segments]), "/".join(place)
    if _SERVICE in segments:
        at = segments.index(_SERVICE) + 1
        return "/".join([origin, *segments[:at]]), "/".join(segments[at:])
    return f"{origin}/{_SERVICE}", "/".join(segments)


def service_url(url: str, *, exact: bool) -> str:
    """Return the base of the service for a URL that names no place in it.

    Args:
        exact: it is that of the service and not of the platform, as far as it has a path.
    Raises:
        ConfigError: not an http(s) URL, or one with credentials inside.
    """
    origin, segments, fragment = _parsed(url)
    if fragment is None and _SERVICE in segments:
        segments = segments[: segments.index(_SERVICE) + 1]
    elif fragment is None and not (exact and segments):
        segments.append(_SERVICE)
    return "/".join([origin, *segments])


def server_url_from(environ: Mapping[str, str]) -> str | None:
    """Take the server's URL from the environment, if it is there."""
    for name in ("JF_URL", "JFROG_URL", "ARTIFACTORY_URL"):
        if environ.get(name):
            try:
                return service_url(environ[name], exact=name == "ARTIFACTORY_URL")
            except ConfigError as error:
                raise ConfigError(f"{name}: {error}") from None
    return None


def parse_source(
    text: str, environ: Mapping[str, str], *, token_file: Path | None = None
) -> Source:
    """Understand SOURCE: a URL, ``SERVER_ID:repo/path`` of the ``jf`` command, or ``repo/path``.

    The last form takes its server from the environment (``JF_URL`` and the like).

    Raises:
        ConfigError: what is wrong with which value, and what to do.
    """
    if "://" in text:
        url, encoded = split_server_url(text)
        credentials = credentials_for(url, environ, token_file)
        return Source(url, RepoPath.parse(unquote(encoded)), credentials)
    server_id, colon, rest = text.partition(":")
    if colon and "/" not in server_id:
        server = jf_server(server_id, environ)
        url = service_url(server.url or server.platform, exact=bool(server.url))
        credentials = server.credentials
        if token_file is not None:
            credentials = credentials_from(environ, token_file)
        elif credentials == Credentials():
            credentials = credentials_for(url, environ)
        return Source(
            url,
            RepoPath.parse(rest),
            credentials,
            server_id,
            client_cert=server.client_cert,
            client_key=server.client_key,
        )
    found = server_url_from(environ)
    if found is None:
        raise ConfigError(
            f"{text}: no server: give a URL such as https://company.example/artifactory/{text}, "
            "SERVER_ID:repo/path of the jf command, or set JF_URL"
        )
    return Source(found, RepoPath.parse(text), credentials_for(found, environ, token_file))


def _parsed(url: str) -> tuple[str, list[str], str | None]:
    """Return the origin, the segments of the path, and what is behind a ``#`` if there is one."""
    url, sharp, fragment = url.partition("#")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ConfigError(f"not a usable URL: {error}") from None
    if parts.scheme not in ("http", "https") or not host:
        raise ConfigError(
            f"{parts.scheme or 'the source'}: only http:// and https:// URLs can be mounted"
        )
    if parts.username is not None or parts.password is not None:
        raise ConfigError(
            "the URL holds credentials, which every user could read in the process list: "
            "use --token-file or the environment (JF_ACCESS_TOKEN) instead"
        )
    if "%" in host:
        raise ConfigError(
            f"{host}: an address with a zone is of one machine only: "
            "give a name, or an address without a zone"
        )
    if not host.isprintable() or any(letter in ' "<>\\^`{|}' for letter in host):
        raise ConfigError(f"not a usable URL: {host!r} is not the name of a host")
    if parts.query:
        raise ConfigError("the URL has a query: give the plain address of a folder")
    host = f"[{host}]" if ":" in host else host
    origin = f"{parts.scheme}://{host}" + (f":{port}" if port is not None else "")
    segments = [segment for segment in parts.path.split("/") if segment]
    return origin, segments, fragment if sharp else None
