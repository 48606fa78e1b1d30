"""What both planes share: TLS, the one place that knows httpx's exceptions, redirect rules."""

import contextlib
import socket
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path

import httpx

from jfs import descriptors
from jfs.artifactory import wire
from jfs.artifactory.auth import SECRET_HEADERS
from jfs.errors import (
    AccessDenied,
    DeadlineExceeded,
    NoDescriptor,
    NoThread,
    ProtocolViolation,
    RateLimited,
    RemoteError,
    Unavailable,
    Untrusted,
    is_of_descriptors,
)
from jfs.extents import GiB

USER_AGENT = "jfs/0.1"
REDIRECTS = (301, 302, 303, 307, 308)
MAX_HOPS = 5
# Bytes of a JSON answer: a listing of a million files has 250 MB.
MAX_DOCUMENT = 2 * GiB

_PROXY_WANTS_CREDENTIALS = 407
_WANTS_CREDENTIALS = (
    "the proxy wants other credentials than it is given: "
    "write them in HTTPS_PROXY or HTTP_PROXY, as in http://USER:PASSWORD@proxy:3128"
)
_IS_TLS = "it speaks TLS: is it an https:// server?"
# What nginx and Go's servers answer to plain HTTP.
_PLAIN_ON_TLS = (
    b"plain HTTP request was sent to HTTPS port",
    b"Client sent an HTTP request to an HTTPS server",
)
# What servers do to a client whose certificate they do not accept: alerts, as openssl has them, and
# words of nginx.
_WANTS_CERTIFICATE = (
    "CERTIFICATE_REQUIRED",
    "ALERT_BAD_CERTIFICATE",
    "ALERT_UNKNOWN_CA",
    "ALERT_CERTIFICATE_",
    "ALERT_ACCESS_DENIED",
    "ALERT_HANDSHAKE_FAILURE",
)
_NO_CERTIFICATE = (b"No required SSL certificate was sent", b"The SSL certificate error")
_WANTS_ANOTHER = (
    "the server wants a client certificate, or another one: "
    "give one that it accepts with --client-cert"
)
_ONE_DAY = timedelta(days=1)
# What a connection that was made ends with, if the other side ends it: httpx's errors, and those of
# a TLS handshake, which are part of a ConnectError.
_CUTS = (
    *(httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError),
    *(ConnectionResetError, ConnectionAbortedError, BrokenPipeError, ssl.SSLEOFError),
)
# How openssl reads an answer that is not TLS at all, by its first bytes.
_NOT_TLS = (
    "WRONG_VERSION_NUMBER",
    "HTTP_REQUEST",
    "RECORD_LAYER_FAILURE",
    "PACKET_LENGTH_TOO_LONG",
)


def redacted(url: httpx.URL) -> str:
    """Return a URL fit for logs: a signed location's query is a secret."""
    return str(url.copy_with(username=None, password=None, query=None, fragment=None))


@contextlib.contextmanager
def mapped(method: str, url: httpx.URL) -> Iterator[None]:
    """Turn httpx's exceptions into ours; the most specific class wins."""
    try:
        yield
    except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, httpx.CookieConflict) as error:
        for cause in _causes(error):
            if isinstance(cause, OSError) and is_of_descriptors(cause):
                descriptors.relieve()  # for the next try
                raise NoDescriptor(descriptors.shortage(cause)) from error
        kind, text = _explained(error)
        raise kind(text, method=method, url=redacted(url)) from error
    except RuntimeError as error:
        if "start new thread" not in str(error):
            raise
        raise NoThread(f"{method} {redacted(url)}: no thread to resolve its name") from error


def _explained(error: Exception) -> tuple[type[RemoteError], str]:
    """Return the class for an exception, and words that a person can act on.

    The reason is often in what httpx's exception was made of, three or four steps down.
    """
    text = str(error) or type(error).__name__
    kind = _class_for(error)
    if isinstance(error, httpx.ProxyError):
        if text.startswith(str(_PROXY_WANTS_CREDENTIALS)):
            return AccessDenied, _WANTS_CREDENTIALS
        if text[:3].isdigit():
            return kind, f"the proxy answers {text}"
        reason = _reason(error)
        if reason is None:
            return kind, f"the proxy {text}"
        return reason[0] or kind, f"the proxy {text}: {reason[1]}"
    if isinstance(error, httpx.RemoteProtocolError) and "illegal request line" in text:
        return Untrusted, _IS_TLS  # so h11 calls a first byte that no status line can begin with
    reason = _reason(error)
    if reason is not None:
        return reason[0] or kind, reason[1]
    for cause in _causes(error):
        if isinstance(cause, ConnectionRefusedError):
            return kind, "nothing listens there (connection refused): is the server running?"
    return kind, f"cannot be reached: {text}" if isinstance(error, httpx.ConnectError) else text


def _reason(error: Exception) -> tuple[type[RemoteError] | None, str] | None:
    """Return what TLS or the resolver said, and the class for it unless it is the usual one."""
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return Untrusted, _certificate(cause)
        if isinstance(cause, ssl.SSLError) and cause.reason in _NOT_TLS:
            return Untrusted, f"TLS failed ({cause.reason}): is it an http:// server?"
        if isinstance(cause, ssl.SSLError) and _is_about_us(cause):
            return Untrusted, f"TLS failed ({cause.reason}): {_WANTS_ANOTHER}"
        if isinstance(cause, ssl.SSLError) and cause.reason:
            return None, f"TLS failed ({cause.reason})"
        if isinstance(cause, socket.gaierror):
            again = cause.errno == socket.EAI_AGAIN
            advice = "is the name server well?" if again else "is the address right?"
            return None, f"its name cannot be resolved ({cause.strerror}): {advice}"
    return None


def _is_about_us(error: ssl.SSLError) -> bool:
    return any(word in (error.reason or "") for word in _WANTS_CERTIFICATE)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
        if isinstance(error, BaseExceptionGroup):  # of a host with several addresses: the last one
            error = error.exceptions[-1]


def _certificate(error: ssl.SSLCertVerificationError) -> str:
    """Return what is wrong with a certificate; the codes are those of openssl's x509_vfy.h."""
    match error.verify_code:
        case 9:
            return f"its certificate is not valid yet {_by_our_clock()}"
        case 10:
            return f"its certificate has expired {_by_our_clock()}: the server needs a new one"
        case 62 | 64:
            return (
                f"its certificate is for another name ({error.verify_message.rstrip('.')}): "
                "is the address right?"
            )
    return f"its certificate is not trusted ({error.verify_message}): give the CA's with --ca-file"


def _by_our_clock() -> str:
    now = datetime.now(UTC)
    try:
        return clock_remark(now, datetime.fromtimestamp(Path(__file__).stat().st_mtime, UTC))
    except (OSError, ValueError):
        return clock_remark(now, now)


def clock_remark(now: datetime, installed: datetime) -> str:
    """Say what a certificate's dates were held against, and that it is wrong if that is sure.

    Args:
        installed: when our own files were written.
    """
    said = f"by the clock of this machine ({now:%Y-%m-%d})"
    if now < installed - _ONE_DAY:
        return f"{said}, which is wrong: jfs was installed on {installed:%Y-%m-%d}"
    return said


def was_cut(error: RemoteError) -> bool:
    """Whether the server took the connection and then hung up."""
    return any(isinstance(cause, _CUTS) for cause in _causes(error))


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
    status, url = response.status_code, redacted(request.url)
    if status == _PROXY_WANTS_CREDENTIALS:
        return AccessDenied(_WANTS_CREDENTIALS, status=status, method=request.method, url=url)
    if status == 400 and any(words in body for words in _PLAIN_ON_TLS):
        return Untrusted(_IS_TLS, status=status, method=request.method, url=url)
    if status in REDIRECTS:
        message = f"{request.method} is redirected{_to(response)}: give that address of the service"
        return ProtocolViolation(message, status=status, method=request.method, url=url)
    if status == 400 and any(words in body for words in _NO_CERTIFICATE):
        return Untrusted(_WANTS_ANOTHER, status=status, method=request.method, url=url)
    error = wire.error_of(status, body, method=request.method, url=url)
    if isinstance(error, RateLimited | Unavailable):
        error.retry_after_s = _retry_after(response.headers)
    return error


def _to(response: httpx.Response) -> str:
    """Say where a redirect leads: a host; the rest may be a secret."""
    try:
        there = response.request.url.join(response.headers["Location"])
    except (KeyError, httpx.InvalidURL):
        return ""
    return f" to {there.scheme}://{there.netloc.decode('ascii')}"


def _retry_after(headers: httpx.Headers) -> float | None:
    """Read Retry-After: seconds, or a date (RFC 9110 section 10.2.3) by the server's own clock."""
    text = headers.get("Retry-After", "").strip()
    if text.isascii() and text.isdigit():
        return float(text)
    try:
        moment = parsedate_to_datetime(text)
        now = parsedate_to_datetime(headers.get("Date", ""))
        return max(0.0, (moment - now).total_seconds())
    except (ValueError, TypeError):
        return None


def next_hop(response: httpx.Response, headers: dict[str, str]) -> tuple[httpx.URL, dict[str, str]]:
    """Return where a redirect leads and the headers to send there.

    Raises:
        ProtocolViolation: no or a useless Location, or one that leaves TLS.
    """
    here = response.request.url
    try:
        there = here.join(response.headers["Location"])
        there.raw_host.decode("ascii").encode("idna")  # as whoever asks for its address does
    except (KeyError, UnicodeError, httpx.InvalidURL):
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
