"""TLS of both planes: whose certificates are trusted, and who we are. Any thread.

Trusted are the certificates of the first of these that is given, and no others:

1. ``--ca-file``;
2. ``REQUESTS_CA_BUNDLE``, then ``CURL_CA_BUNDLE``, as requests has them;
3. ``SSL_CERT_FILE`` and ``SSL_CERT_DIR``, both if both are set, as OpenSSL has them;
4. those of the system; where it has none, those of certifi.

Each may be a file, or a directory: all certificates of its files, whatever their names.

The client's own certificate is shown to the server itself and to nobody else: not to a proxy, nor
to the storage that a redirect leads to. All of these files are looked at before each connection.
"""

import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx

from jfs import threads
from jfs.artifactory import encrypted
from jfs.artifactory.watched import Watched
from jfs.config import ServerSettings
from jfs.errors import ConfigError

VARIABLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR")

_BEGINS = b"-----BEGIN "


@dataclass(frozen=True, slots=True)
class _Named:
    """A file or directory, and the option or variable that names it."""

    name: str
    path: Path

    def __str__(self) -> str:
        return f"{self.name} {self.path}"


@dataclass(frozen=True, slots=True)
class _Contexts:
    ours: ssl.SSLContext  # for the server itself
    others: ssl.SSLContext


class Trust:
    """The TLS contexts that connections to one server and its storage are made with.

    A context that was handed out is not changed: new files make new ones.

    Raises:
        ConfigError: which file cannot be used, and why.
    """

    def __init__(self, settings: ServerSettings, environ: Mapping[str, str]) -> None:
        url = httpx.URL(settings.url)
        self._server = (url.host, url.port or 443)
        self._verify = settings.verify_tls
        self._authorities = _authorities(settings, environ)
        self._certificate = self._key = None
        if settings.client_cert is not None:
            self._certificate = _Named("--client-cert", settings.client_cert)
            if settings.client_key is not None:
                self._key = _Named("--client-key", settings.client_key)
        files = [*self._authorities, self._certificate, self._key]
        self._paths = [each.path for each in files if each is not None]
        self._files: Watched[_Contexts] | None = None
        self._fixed: _Contexts | None = None
        # Variables are of no concern to who never speaks TLS: they are read when somebody does.
        if url.scheme == "https" or settings.ca_file or settings.client_cert:
            self._begin()

    def context(self, *, ours: bool) -> ssl.SSLContext:
        """Return the one for the server, or for others.

        Blocking, for a second at most: not for the event loop.
        """
        if self._files is None and self._fixed is None:
            self._begin()
        contexts = self._fixed if self._files is None else self._files.now()
        assert contexts is not None
        return contexts.ours if ours else contexts.others

    def is_of_server(self, host: str, port: int | None) -> bool:
        """Whether a host is the server itself, who may see our certificate."""
        return (host, port or 443) == self._server

    async def current(self, *, ours: bool) -> ssl.SSLContext:
        """Return what ``context`` does, on the event loop. Trio thread only."""
        if self._files is None and self._fixed is not None:
            return self.context(ours=ours)
        return await threads.looking(lambda: self.context(ours=ours))

    def _begin(self) -> None:
        contexts = self._read()
        if self._paths:
            self._files = Watched(self._paths, self._read, contexts)
        else:
            self._fixed = contexts

    def _read(self) -> _Contexts:
        others = ours = self._context()
        if self._certificate is not None:
            ours = self._context()
            _identify(ours, self._certificate, self._key)
        return _Contexts(ours, others)

    def _context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        encrypted.makes(context)
        if not self._verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        for each in self._authorities:
            _trust(context, each)
        if not self._authorities:
            context.load_default_certs()
            if not context.get_ca_certs():
                import certifi

                context.load_verify_locations(certifi.where())
        return context


def _authorities(settings: ServerSettings, environ: Mapping[str, str]) -> list[_Named]:
    if settings.ca_file is not None:
        return [_Named("--ca-file", settings.ca_file)]
    for names in (("REQUESTS_CA_BUNDLE",), ("CURL_CA_BUNDLE",), ("SSL_CERT_FILE", "SSL_CERT_DIR")):
        given = [_Named(name, Path(environ[name])) for name in names if environ.get(name)]
        if given:
            return given
    return []


def _trust(context: ssl.SSLContext, named: _Named) -> None:
    """Add certificates of a file or directory. Raises ConfigError."""
    # SSL_CERT_DIR may be a list; nobody does it, but OpenSSL and Go read it.
    places = [named.path]
    if named.name == "SSL_CERT_DIR":
        places = [Path(each) for each in str(named.path).split(os.pathsep) if each]
    for place in places:
        if not place.is_dir():
            _require_readable(_Named(named.name, place))
            try:
                context.load_verify_locations(cafile=place)
            except (OSError, ssl.SSLError):
                raise ConfigError(f"{named}: not a file of PEM certificates") from None
            continue
        # Hashed names, which OpenSSL wants, are links to files that are there too.
        try:
            files = {each.resolve() for each in sorted(place.iterdir()) if each.is_file()}
            for file in sorted(files):
                if _BEGINS in file.read_bytes():
                    _add(context, file)
        except OSError as error:
            raise ConfigError(f"{named}: {error.strerror}") from None
    if not context.cert_store_stats()["x509"]:
        raise ConfigError(f"{named}: holds no PEM certificates")


def _add(context: ssl.SSLContext, file: Path) -> None:
    try:
        context.load_verify_locations(cafile=file)
    except ssl.SSLError:
        return  # a key, a list of revoked ones


def _identify(context: ssl.SSLContext, certificate: _Named, key: _Named | None) -> None:
    """Load a client certificate and its key. Raises ConfigError."""
    holds_key = key or certificate
    for each in (certificate, holds_key):
        _require_readable(each)

    def ask() -> str:  # without it OpenSSL asks at the terminal
        raise _EncryptedError

    try:
        context.load_cert_chain(certificate.path, None if key is None else key.path, ask)
    except _EncryptedError:
        raise ConfigError(
            f"{holds_key}: the key is encrypted, and nobody is there to ask for its passphrase: "
            f"give one without, as from `openssl pkey -in {holds_key.path} -out NEW`"
        ) from None
    except (OSError, ssl.SSLError) as error:
        reason = getattr(error, "reason", None)
        if reason == "KEY_VALUES_MISMATCH":
            raise ConfigError(f"{holds_key}: is not the key of {certificate}") from None
        if key is None and b"PRIVATE KEY-" not in certificate.path.read_bytes():
            raise ConfigError(
                f"{certificate}: holds no private key: give it with --client-key"
            ) from None
        raise ConfigError(
            f"{certificate}{f', {key}' if key else ''}: not a certificate and a key in PEM"
        ) from None


class _EncryptedError(Exception):
    pass


def _require_readable(named: _Named) -> None:
    try:
        with open(named.path, "rb") as file:
            file.read(1)
    except OSError as error:
        raise ConfigError(f"{named}: {error.strerror}") from None
