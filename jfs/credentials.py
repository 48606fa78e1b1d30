"""Where credentials are found: options, environment, the ``jf`` command's configuration, netrc.

What a file holds is read once here and can be read again (``Credentials.kept_in``): Kubernetes,
``jf`` and people rotate tokens in place.
"""

import json
import netrc
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from jfs.config import Credentials, KeptIn, Secret, user_directory
from jfs.errors import ConfigError

_OPEN_TO_OTHERS = 0o077


@dataclass(frozen=True, slots=True)
class JfServer:
    """A server as the ``jf`` command knows it (artifactory-rest 14.1).

    Attributes:
        url: of the Artifactory service; exact: as it is.
        platform: else that of the platform, whose service is at ``artifactory`` below it.
    """

    url: str
    platform: str
    credentials: Credentials
    client_cert: Path | None = None
    client_key: Path | None = None


def credentials_from(environ: Mapping[str, str], token_file: Path | None = None) -> Credentials:
    """Take credentials from ``--token-file``, else from the environment.

    The names are those of the ``jf`` command and of JFrog's integrations (artifactory-rest 14.2).

    Raises:
        ConfigError: the token file cannot be read, or holds no token.
    """
    if token_file is not None:
        path = token_file.absolute()  # a daemon changes its directory
        first = _from_token_file(path)
        return Credentials(token=first.token, kept_in=KeptIn(path, lambda: _from_token_file(path)))
    for name in (
        "JF_ACCESS_TOKEN",
        "JFROG_ACCESS_TOKEN",
        "JFROG_TOKEN",
        "ARTIFACTORY_ACCESS_TOKEN",
        "ARTIFACTORY_API_KEY",
    ):
        if environ.get(name):
            return Credentials(token=_token(environ[name], name))
    for user_name, password_name in (
        ("JF_USER", "JF_PASSWORD"),
        ("ARTIFACTORY_USERNAME", "ARTIFACTORY_PASSWORD"),
    ):
        if environ.get(user_name) and environ.get(password_name):
            return Credentials(user=environ[user_name], password=Secret(environ[password_name]))
    return Credentials()


def credentials_for(
    url: str, environ: Mapping[str, str], token_file: Path | None = None
) -> Credentials:
    """Take credentials as ``credentials_from`` does, else those that netrc has for the server.

    Raises:
        ConfigError: a file that is meant cannot be used.
    """
    given = credentials_from(environ, token_file)
    return _from_netrc(urlsplit(url).hostname or "", environ) if given == Credentials() else given


def jf_configuration(environ: Mapping[str, str]) -> Path:
    """Return where the ``jf`` command keeps its servers (artifactory-rest 14.1).

    Raises:
        ConfigError: the user has no home.
    """
    given = environ.get("JFROG_CLI_HOME_DIR")
    home = (
        Path(given)
        if given
        else user_directory(environ, "", ".jfrog", instead="set JFROG_CLI_HOME_DIR")
    )
    return home.absolute() / "jfrog-cli.conf.v6"


def jf_server(server_id: str, environ: Mapping[str, str]) -> JfServer:
    """Look a server up in the configuration of the ``jf`` command.

    Raises:
        ConfigError: it is not there, or cannot be used; one line.
    """
    path = jf_configuration(environ)
    found = _from_jf(path, server_id)
    if found.credentials == Credentials():
        return found

    def again() -> Credentials:
        now = _from_jf(path, server_id)
        if (now.url, now.platform) != (found.url, found.platform):
            raise ConfigError(f"{server_id}: has another URL in {path} now: mount it anew")
        return now.credentials

    kept = Credentials(
        found.credentials.token,
        found.credentials.user,
        found.credentials.password,
        KeptIn(path, again),
    )
    return JfServer(found.url, found.platform, kept, found.client_cert, found.client_key)


def _from_token_file(path: Path) -> Credentials:
    try:
        text = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text"
        raise ConfigError(f"--token-file {path}: {reason}") from None
    if not text:
        raise ConfigError(f"--token-file {path}: the file is empty")
    return Credentials(token=_token(text, f"--token-file {path}"))


def _token(text: str, name: str) -> Secret:
    text = text.strip()
    if not text.isascii() or not text.isprintable():
        raise ConfigError(f"{name}: holds no token: it has to be one line of ASCII")
    return Secret(text)


def _from_jf(path: Path, server_id: str) -> JfServer:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        servers = {
            server["serverId"]: server
            for server in document.get("servers", [])
            if isinstance(server.get("serverId"), str)
        }
    except FileNotFoundError:
        raise ConfigError(f"{server_id}: no configuration of the jf command at {path}") from None
    except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: cannot be read as the jf command's configuration") from error
    if server_id not in servers:
        known = ", ".join(sorted(servers)) or "none"
        raise ConfigError(f"{server_id}: not a server of {path} (known: {known})")
    server = {key: value for key, value in servers[server_id].items() if isinstance(value, str)}
    url, platform = server.get("artifactoryUrl", ""), server.get("url", "")
    if not url and not platform:
        raise ConfigError(f"{server_id}: its entry in {path} has no URL")
    if document.get("enc") and (server.get("accessToken") or server.get("password")):
        raise ConfigError(
            f"{server_id}: the secrets in {path} are encrypted: give the token with --token-file"
        )
    credentials = Credentials()
    if server.get("accessToken"):
        credentials = Credentials(token=Secret(server["accessToken"]))
    elif server.get("user") and server.get("password"):
        credentials = Credentials(user=server["user"], password=Secret(server["password"]))
    certificate, key = server.get("clientCertPath"), server.get("clientCertKeyPath")
    return JfServer(
        url,
        platform,
        credentials,
        Path(certificate) if certificate else None,
        Path(key) if certificate and key else None,
    )


def _from_netrc(host: str, environ: Mapping[str, str]) -> Credentials:
    """Look for a host in ``NETRC``, else in ``~/.netrc``; nothing there: nothing."""
    named = environ.get("NETRC")
    try:
        path = Path(named) if named else user_directory(environ, "", ".netrc", instead="")
    except ConfigError:  # no home
        return Credentials()
    path = path.absolute()
    if not named and not path.exists():
        return Credentials()
    found = _in_netrc(path, host, private=not named)
    if found == Credentials():
        return found
    again = KeptIn(path, lambda: _in_netrc(path, host, private=not named))
    return Credentials(found.token, found.user, found.password, again)


def _in_netrc(path: Path, host: str, *, private: bool) -> Credentials:
    """Read the entry of a host, else the default one.

    Args:
        private: nobody else may read a password there, as ftp has always asked of ``~/.netrc``.
    """
    try:
        mode = os.stat(path).st_mode
        hosts = netrc.netrc(path).hosts
    except netrc.NetrcParseError:  # its message may repeat a password, its line is often the next
        raise ConfigError(f"{path}: not in the form of netrc") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text"
        raise ConfigError(f"{path}: {reason}") from None
    entries = {name.lower(): entry for name, entry in hosts.items() if name != "default"}
    user, _, password = entries.get(host.lower()) or hosts.get("default") or ("", "", "")
    if not password:
        return Credentials()
    if private and mode & _OPEN_TO_OTHERS:
        raise ConfigError(f"{path}: others can read its passwords: chmod 600 {path}")
    if not user:
        return Credentials(token=_token(password, f"{path}, {host}"))
    return Credentials(user=user, password=Secret(password))
