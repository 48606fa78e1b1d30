"""The errors of sockets, TLS and h11, as httpx would raise them."""

import ssl
from typing import Literal

import h11
import httpx

Step = Literal["connect", "write", "read"]

_TIMEOUTS: dict[Step, tuple[type[httpx.TransportError], str]] = {
    "connect": (httpx.ConnectTimeout, "no connection in time"),
    "write": (httpx.WriteTimeout, "the server takes no more"),
    "read": (httpx.ReadTimeout, "the server is silent"),
}
_ERRORS: dict[Step, type[httpx.TransportError]] = {
    "connect": httpx.ConnectError,
    "write": httpx.WriteError,
    "read": httpx.ReadError,
}


class as_httpx:
    """Raise what httpx raises where its own *step* fails. Some are entered for each receive."""

    def __init__(self, step: Step) -> None:
        self._step = step

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if error is None or isinstance(error, httpx.TransportError):
            return
        if isinstance(error, h11.RemoteProtocolError):
            raise httpx.RemoteProtocolError(str(error)) from error
        if isinstance(error, h11.LocalProtocolError):
            raise httpx.LocalProtocolError(str(error)) from error
        if isinstance(error, TimeoutError | BlockingIOError | ssl.SSLWantReadError):
            timeout, words = _TIMEOUTS[self._step]
            raise timeout(words) from error
        if isinstance(error, OSError):
            raise _ERRORS[self._step](str(error)) from error
