"""HTTP/1.1 for bulk bodies: an httpx transport whose response can be received into memory.

httpx reads 64 KiB at a time through h11, several copies and the interpreter's lock (0.3 to 0.45
GB/s). Here h11 speaks the heads only; a body of known length is received by ``recv_into`` straight
into the caller's memory, which releases the lock (and so does TLS decryption).

Blocking; each request belongs to one thread, the kept connections to all. ``close`` may be called
by any thread and cuts every socket, so that a blocked receive fails at once.
"""

import select
import socket
import ssl
import struct
import time
from collections.abc import Callable

import h11
import httpx

from jfs import clocks
from jfs.artifactory import dialling
from jfs.artifactory.access import Access
from jfs.artifactory.bodies import BodyStream
from jfs.artifactory.connections import Connection, Connections, Key
from jfs.artifactory.encrypted import TlsSocket
from jfs.artifactory.failures import as_httpx
from jfs.artifactory.filebody import FileBody
from jfs.extents import KiB

_HEAD_CHUNK = 16 * KiB
_MAX_HEAD = 256 * KiB
# How a request fails on a kept connection that the server had closed.
_ENDS_OF_OLD_ONES = (httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError)


class BulkTransport(httpx.BaseTransport):
    """See the module. Any thread.

    Args:
        access: TLS, and which proxy leads where.
        connect_timeout_s, idle_timeout_s: of one connection attempt; of one receive.
        now: seconds that go on while the machine is suspended, in which servers and NAT forget us.
    """

    def __init__(
        self,
        access: Access,
        *,
        connect_timeout_s: float,
        idle_timeout_s: float,
        now: Callable[[], float] = clocks.boot_time,
    ) -> None:
        self._access = access
        self._connections = Connections(now)
        self._connect_timeout_s = connect_timeout_s
        self._idle_timeout_s = idle_timeout_s

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send *request* and receive the head of its answer.

        It has no body, or a ``FileBody`` as its stream. The answer's body is
        ``response.extensions["body"]``, a ``BodyStream``.

        Raises:
            httpx.TransportError: of the class that httpx itself would raise.
        """
        url = request.url
        key = (url.scheme, url.host, url.port or (443 if url.scheme == "https" else 80))
        connection = self._connections.take(key)
        if connection is not None:
            try:
                return self._exchange(connection, request)
            except BaseException as error:
                self._connections.discard(connection)
                # The server may have closed it while it was idle: no answer to this request.
                is_old = isinstance(error, _ENDS_OF_OLD_ONES)
                sent = request.stream.sent if isinstance(request.stream, FileBody) else 0
                if not is_old or self._connections.is_closed or sent:
                    raise
        connection = self._connect(key)
        try:
            return self._exchange(connection, request)
        except BaseException:
            self._connections.discard(connection)
            raise

    def close(self) -> None:
        """Cut every connection; later requests fail. Any thread."""
        self._connections.close()

    def _connect(self, key: Key) -> Connection:
        scheme, host, port = key
        proxy = self._access.proxies.leading_to(scheme, host, port)
        with as_httpx("connect"):
            if self._connections.is_closed:
                raise OSError("closed")
            trust, timeout_s = self._access.trust, self._connect_timeout_s
            if proxy is None:
                sock = dialling.connect(host, port, timeout_s)
            else:
                context = trust.context(ours=False) if proxy.scheme == "https" else None
                sock = dialling.connect_to_proxy(proxy, context, timeout_s)
            try:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if scheme == "https":
                    if proxy is not None:
                        dialling.tunnel(sock, host, port, proxy, timeout_s)
                    context = trust.context(ours=trust.is_of_server(host, port))
                    sock = dialling.wrapped(sock, context, host)
                sock.settimeout(None)
                _wait_at_most(sock, self._idle_timeout_s, also_to_send=True)
                if isinstance(sock, TlsSocket):
                    sock.hasten()
            except BaseException:
                sock.close()
                raise
            return self._connections.add(sock, key, proxy)

    def _exchange(self, connection: Connection, request: httpx.Request) -> httpx.Response:
        protocol = h11.Connection(h11.CLIENT, max_incomplete_event_size=_MAX_HEAD)
        target = request.url.raw_path
        headers = list(request.headers.raw)
        if connection.proxy is not None and connection.key[0] == "http":
            target = b"http://" + request.url.netloc + target
            if authorization := connection.proxy.authorization:
                headers.append((b"Proxy-Authorization", authorization))
        body = request.stream if isinstance(request.stream, FileBody) else None
        with as_httpx("read"):  # a head fits into the socket: what fails is that nobody answers
            head = h11.Request(method=request.method.encode(), target=target, headers=headers)
            data = protocol.send(head) or b""
            if body is None:
                data += protocol.send(h11.EndOfMessage()) or b""
            connection.sock.sendall(data)
        if body is not None:
            self._send_body(connection, body, body.send)
        # Each receive has its timeout; all of them together have one too.
        patience_s = self._idle_timeout_s if body is None else body.answer_s
        deadline = time.monotonic() + patience_s
        with as_httpx("read"):
            while True:
                event = protocol.next_event()
                if event is h11.NEED_DATA:
                    if time.monotonic() > deadline:
                        raise TimeoutError
                    protocol.receive_data(connection.sock.recv(_HEAD_CHUNK))
                elif isinstance(event, h11.Response):
                    break
                elif not isinstance(event, h11.InformationalResponse):
                    raise httpx.RemoteProtocolError("the server closed without an answer")
                elif body is not None and body.sent != body.size:
                    # Nobody has asked for it (some gateways say 100 at every PUT): no refusal.
                    self._send_body(connection, body, body.go_on)
                    deadline = time.monotonic() + body.answer_s
        length = _body_length(request, event)
        leftover = b""
        if length is not None:
            leftover = bytes(protocol.trailing_data[0])
            if len(leftover) > length:
                raise httpx.RemoteProtocolError("the server sent more than it said")
        keep = event.http_version == b"1.1" and not any(
            name == b"connection" and b"close" in value.lower() for name, value in event.headers
        )
        if body is not None:
            body.bind(None)
            _wait_at_most(connection.sock, self._idle_timeout_s)
            keep = keep and body.sent == body.size
        answer = BodyStream(
            self._connections,
            connection,
            protocol,
            length,
            leftover,
            reusable=keep,
            idle_timeout_s=self._idle_timeout_s,
        )
        return httpx.Response(
            event.status_code,
            headers=event.headers.raw_items(),
            stream=answer,
            extensions={"body": answer, "http_version": b"HTTP/" + event.http_version},
        )

    def _send_body(
        self, connection: Connection, body: FileBody, send: Callable[[socket.socket], None]
    ) -> None:
        sock = connection.sock
        body.bind(sock)
        try:
            with as_httpx("write"):
                send(sock)
        except httpx.WriteError:
            # A server that refuses may hang up at once; its answer is here all the same.
            poll = select.poll()
            poll.register(sock, select.POLLIN)
            if not poll.poll(0):
                raise
        _wait_at_most(sock, body.answer_s)


def _body_length(request: httpx.Request, response: h11.Response) -> int | None:
    """Return the length of the body when it is known beforehand (RFC 9112 section 6.3)."""
    if request.method == "HEAD" or response.status_code in (204, 304):
        return 0
    fields = dict(response.headers)
    if b"transfer-encoding" in fields or b"content-length" not in fields:
        return None
    return int(fields[b"content-length"])


def _wait_at_most(sock: socket.socket, seconds: float, *, also_to_send: bool = False) -> None:
    """Bound each wait for the other end.

    Python's own timeout makes a socket non-blocking, which defeats MSG_WAITALL and costs a poll
    for every receive; the kernel's does neither. For TLS see ``TlsSocket``.
    """
    if isinstance(sock, ssl.SSLSocket):
        sock.settimeout(seconds)
        return
    whole = int(seconds)
    value = struct.pack("@ll", whole, int((seconds - whole) * 1_000_000))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, value)
    if also_to_send:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, value)
