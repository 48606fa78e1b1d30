"""What both planes share: TLS, the one place that knows httpx's exceptions, redirect rules."""

import contextlib
import os
import ssl
from collections.abc import Iterator

import httpx

from jfs.artifactory import wire
from jfs.artifactory.auth import SECRET_HEADERS
from jfs.config import ServerSettings
from jfs.errors import (
    ConfigError,
    DeadlineExceeded,
    ProtocolViolation,
    RateLimited,
    RemoteError,
    Unavailable,
)
from jfs.extents import GiB

USER_AGENT = "jfs/0.1"
REDIRECTS = (301, 302, 303, 307, 308)
MAX_HOPS = 5
# Bytes of a JSON answer: a listing of a million files has 250 MB.
MAX_DOCUMENT = 2 * GiB


def tls_context(settings: ServerSettings) -> ssl.SSLContext:
    """Make the TLS context of both planes. Raises ConfigError for an unusable file."""
    ca_file = settings.ca_file or os.environ.get("SSL_CERT_FILE") or None
    try:
        context = ssl.create_default_context(cafile=str(ca_file) if ca_file else None)
        if ca_file is None and not context.get_ca_certs():
            import certifi

            context.load_verify_locations(certifi.where())
    except (OSError, ssl.SSLError):
        raise ConfigError(f"--ca-file {ca_file}: not a file of PEM certificates") from None
    if not settings.verify_tls:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def redacted(url: httpx.URL) -> str:
    """Give a URL fit for logs: a signed location's query is a secret."""
    return str(url.copy_with(username=None, password=None, query=None, fragment=None))


@contextlib.contextmanager
def mapped(method: str, url: httpx.URL) -> Iterator[None]:
    """Turn httpx's exceptions into ours; the most specific class wins."""
    try:
        yield
    except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, httpx.CookieConflict) as error:
        text = str(error) or type(error).__name__
        raise _class_for(error)(text, method=method, url=redacted(url)) from error


def _class_for(error: Exception) -> type[RemoteError]:
    if isinstance(error, httpx.TimeoutException):
        return DeadlineExceeded
    if isinstance(error, httpx.NetworkError | httpx.ProxyError | httpx.RemoteProtocolError):
        return Unavailable
    # LocalProtocolError, UnsupportedProtocol, DecodingError, TooManyRedirects, InvalidURL,
    # HTTPStatusError, StreamError, CookieConflict: no retry would change the answer.
    return ProtocolViolation


def failure(response: httpx.Response, body: bytes) -> RemoteError:
    """Make the error of an answer that is not a success."""
    request = response.request
    error = wire.error_of(
        response.status_code, body, method=request.method, url=redacted(request.url)
    )
    if isinstance(error, RateLimited):
        text = response.headers.get("Retry-After", "")
        error.retry_after_s = float(text) if text.isascii() and text.isdigit() else None
    return error


def next_hop(response: httpx.Response, headers: dict[str, str]) -> tuple[httpx.URL, dict[str, str]]:
    """Give where a redirect leads and the headers to send there.

    Raises:
        ProtocolViolation: no or a useless Location, or one that leaves TLS.
    """
    here = response.request.url
    try:
        there = here.join(response.headers["Location"])
    except (KeyError, httpx.InvalidURL):
        raise ProtocolViolation(
            "a redirect without a usable Location", method="GET", url=redacted(here)
        ) from None
    if there.scheme not in ("http", "https") or (here.scheme, there.scheme) == ("https", "http"):
        raise ProtocolViolation(
            "a redirect that leaves TLS was refused", method="GET", url=redacted(here)
        )
    if (there.scheme, there.host, there.port) != (here.scheme, here.host, here.port):
        headers = {n: v for n, v in headers.items() if n.lower() not in SECRET_HEADERS}
    return there, headers
