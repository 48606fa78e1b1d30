"""A tiny forward proxy: absolute URLs for http, CONNECT for https."""

import contextlib
import http.client
import select
import socket
import ssl
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar
from urllib.parse import urlsplit

from jfs.server import TlsFiles

_DEADLINE_S = 30


class Handler(BaseHTTPRequestHandler):
    """Where hosts really are, who may come, and what was asked."""

    protocol_version = "HTTP/1.1"
    timeout = _DEADLINE_S
    hosts: ClassVar[Mapping[str, int]] = {}
    authorization: ClassVar[str | None] = None
    seen: ClassVar[list[str]] = []
    refusal: ClassVar[int | None] = None
    dies_after: ClassVar[int | None] = None
    context: ClassVar[str | None] = None
    moved_to: ClassVar[str | None] = None

    def log_message(self, *_: object) -> None:
        pass

    def _lets_in(self) -> bool:
        self.seen.append(self.command)
        status = self.refusal
        if status is None and self.headers.get("Proxy-Authorization") != self.authorization:
            status = 407
        if status is not None:
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.send_header("Connection", "close")
            self.end_headers()
            self.close_connection = True
        return status is None

    def _forward(self) -> None:
        if not self._lets_in():
            return
        url = urlsplit(self.path)
        if self.moved_to is not None:
            self.send_response(301)
            self.send_header("Location", self.moved_to + self.path)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if self.context is not None:
            inside = url.path.removeprefix(self.context)
            found = url.path.startswith(f"{self.context}/")
            url = url._replace(path=f"/artifactory{inside}" if found else "/nothing")
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        connection = http.client.HTTPConnection(
            "127.0.0.1", self.hosts[url.hostname or ""], timeout=_DEADLINE_S
        )
        with contextlib.closing(connection):
            headers = {
                name: value for name, value in self.headers.items() if not name.startswith("Proxy-")
            }
            target = url.path + (f"?{url.query}" if url.query else "")
            connection.request(self.command, target, body, headers)
            answer = connection.getresponse()
            data = answer.read()
            self.send_response_only(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in ("connection", "keep-alive"):
                    self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

    do_GET = do_HEAD = do_PUT = do_POST = do_PATCH = do_DELETE = _forward

    def do_CONNECT(self) -> None:
        self.close_connection = True
        if not self._lets_in():
            return
        host = self.path.rpartition(":")[0]
        with socket.create_connection(("127.0.0.1", self.hosts[host]), _DEADLINE_S) as server:
            self.send_response_only(200)
            self.end_headers()
            with contextlib.suppress(OSError):
                self._carry(server)

    def _carry(self, server: socket.socket) -> None:
        """Copy both ways until either ends, or as far as ``dies_after`` says; one thread: TLS."""
        client = self.connection
        left = self.dies_after if len(self.seen) == 1 else None
        while left is None or left > 0:
            waiting = isinstance(client, ssl.SSLSocket) and client.pending()
            ready = [client] if waiting else select.select([client, server], [], [], _DEADLINE_S)[0]
            for source in ready:
                data = source.recv(64 * 1024)
                if not data:
                    return
                if source is server and left is not None:
                    data = data[:left]
                    left -= len(data)
                (client if source is server else server).sendall(data)


class ForwardProxy:
    """A running proxy. *seen* are the methods that it was asked with."""

    def __init__(self, port: int, seen: list[str]) -> None:
        self.port = port
        self.seen = seen


@contextlib.contextmanager
def reverse_proxy(
    port: int = 0, *, context: str | None = None, moved_to: str | None = None
) -> Iterator[str]:
    """Run one in front of a server at ``/artifactory``; the address of the service there.

    Args:
        context: where the service is on it instead.
        moved_to: it only redirects there.
    """
    name = {"context": context, "moved_to": moved_to, "hosts": {"": port}, "seen": []}
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("_Handler", (Handler,), name))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}{context or ''}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextlib.contextmanager
def forward_proxy(
    hosts: Mapping[str, int],
    *,
    authorization: str | None = None,
    refusal: int | None = None,
    dies_after: int | None = None,
    tls: TlsFiles | None = None,
) -> Iterator[ForwardProxy]:
    """Run one that knows where *hosts* are: ports of this machine.

    Args:
        authorization: what ``Proxy-Authorization`` must be.
        refusal: a status for everybody.
        dies_after: how many bytes it brings through its first tunnel before it hangs up.
        tls: it is reached by TLS itself.
    """
    seen: list[str] = []
    handler = type(
        "_Handler",
        (Handler,),
        {
            "hosts": hosts,
            "authorization": authorization,
            "seen": seen,
            "refusal": refusal,
            "dies_after": dies_after,
        },
    )
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    if tls is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tls.certificate, tls.key)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield ForwardProxy(server.server_address[1], seen)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
