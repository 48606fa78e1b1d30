"""The errors of sockets, TLS and h11, as httpx would raise them."""

import ssl

import h11
import httpx


class mapped:
    """Raise what httpx raises for the errors of sockets, TLS and h11."""

    def __init__(self, *, connecting: bool = False, writing: bool = False) -> None:
        self._connecting = connecting
        self._writing = writing

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
            if self._connecting:
                raise httpx.ConnectTimeout("no connection in time") from error
            if self._writing:
                raise httpx.WriteTimeout("the server takes no more") from error
            raise httpx.ReadTimeout("the server is silent") from error
        if isinstance(error, OSError):
            if self._connecting:
                raise httpx.ConnectError(str(error)) from error
            if self._writing:
                raise httpx.WriteError(str(error)) from error
            raise httpx.ReadError(str(error)) from error
