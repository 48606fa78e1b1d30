"""HTTP/1.1 for bulk bodies: an httpx transport whose response can be received into memory.

httpx reads 64 KiB at a time through h11, several copies and the interpreter's lock (0.3 to 0.45
GB/s). Here h11 speaks the heads only; a body of known length is received by ``recv_into`` straight
into the caller's memory, which releases the lock (and so does TLS decryption).

Blocking; each request belongs to one thread, the pool to all. ``close`` may be called by any
thread and cuts every socket, so that a blocked receive fails at once.
"""

import contextlib
import itertools
import select
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator

import h11
import httpx

from jfs import clocks, descriptors
from jfs.artifactory import dialling
from jfs.artifactory.access import Access
from jfs.artifactory.encrypted import TlsSocket
from jfs.artifactory.filebody import FileBody
from jfs.artifactory.pace import Pace
from jfs.artifactory.proxies import Proxy
from jfs.extents import KiB
from jfs.native.receiving import Run

_HEAD_CHUNK = 16 * KiB
_MAX_HEAD = 256 * KiB
# A server may close a connection that is idle (nginx after 75 s, many load balancers after 60):
# older ones are not worth trying.
_IDLE_S = 30.0
# Nor are those that were made long ago: a name leads elsewhere one day, and the old server may go
# on answering (a load balancer that is being replaced).
_LIFE_S = 600.0
_KEPT = 16
# How a request fails on one that the server had closed.
_ENDS_OF_OLD_ONES = (httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError)


class _Connection:
    def __init__(
        self, sock: socket.socket, key: tuple[str, str, int], proxy: Proxy | None, made: float
    ) -> None:
        self.sock = sock
        self.key = key
        self.proxy = proxy
        self.made = made
        self.idle_since = 0.0
        self.used = False


class BodyStream(httpx.SyncByteStream):
    """A response body; either iterate it or call ``readinto``, not both."""

    def __init__(
        self,
        transport: "BulkTransport",
        connection: _Connection,
        protocol: h11.Connection,
        length: int | None,
        leftover: bytes,
        *,
        reusable: bool,
    ) -> None:
        self._transport = transport
        self._connection: _Connection | None = connection
        self._protocol = protocol
        self._remaining = length  # None: chunked, or until the connection closes
        self._leftover = memoryview(leftover)
        self._reusable = reusable
        self._pace = Pace(2 * transport.idle_timeout_s)

    def readinto(self, buffer: memoryview) -> int:
        """Receive up to ``len(buffer)`` bytes; 0 at the end.

        Raises:
            httpx.ReadTimeout, httpx.ReadError, httpx.RemoteProtocolError: as httpx would.
        """
        if self._remaining is None:
            return self._read_decoded(buffer)
        if not self._remaining:
            return 0
        want = min(len(buffer), self._remaining)
        if self._leftover:
            count = min(want, len(self._leftover))
            buffer[:count] = self._leftover[:count]
            self._leftover = self._leftover[count:]
        else:
            count = self._receive(buffer[:want])
            if not count:
                raise httpx.RemoteProtocolError(f"the body ended {self._remaining} bytes too early")
        self._remaining -= count
        return count

    @property
    def takes_runs(self) -> bool:
        """Whether what comes next can be received by ``receive``: not if it is decoded."""
        if self._connection is None or not self._remaining or self._leftover:
            return False
        sock = self._connection.sock
        return sock.is_hasty if isinstance(sock, TlsSocket) else True

    def receive(self, run: Run, start: int, stop: int, piece: int) -> int:
        """As ``readinto``, of many pieces in one call: see ``Run.receive``."""
        assert self._remaining is not None
        assert self._connection is not None
        stop = min(stop, start + self._remaining)
        with _mapped(), self._pace:
            sock = self._connection.sock
            if isinstance(sock, TlsSocket):
                count = sock.fill_run(run, start, stop, piece)
            else:
                count = run.receive(sock.fileno(), start, stop, piece)
            self._pace.moved(count)
        if not count:
            raise httpx.RemoteProtocolError(f"the body ended {self._remaining} bytes too early")
        self._remaining -= count
        return count

    def __iter__(self) -> Iterator[bytes]:
        buffer = memoryview(bytearray(64 * KiB))
        while count := self.readinto(buffer):
            yield bytes(buffer[:count])

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is None:
            return
        whole = self._reusable and self._remaining == 0
        (self._transport.release if whole else self._transport.discard)(connection)

    def _receive(self, buffer: memoryview) -> int:
        if self._connection is None:
            raise httpx.ReadError("the response is closed")
        sock = self._connection.sock
        with _mapped(), self._pace:
            if isinstance(sock, TlsSocket):
                count = sock.fill(buffer)
            else:
                # One call, and one turn of the interpreter's lock, for as much as is wanted.
                count = sock.recv_into(buffer, 0, socket.MSG_WAITALL)
            self._pace.moved(count)
        return count

    def _read_decoded(self, buffer: memoryview) -> int:
        """Chunked bodies and those that end with the connection: rare, so h11 decodes them."""
        while not self._leftover:
            with _mapped(), self._pace:
                event = self._protocol.next_event()
                if event is h11.NEED_DATA:
                    assert self._connection is not None
                    data = self._connection.sock.recv(64 * KiB)
                    self._protocol.receive_data(data)
                    self._pace.moved(len(data))
                    continue
            if isinstance(event, h11.Data):
                self._leftover = memoryview(bytes(event.data))
            else:
                self._remaining = 0
                return 0
        count = min(len(buffer), len(self._leftover))
        buffer[:count] = self._leftover[:count]
        self._leftover = self._leftover[count:]
        return count


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
        self._now = now
        self._connect_timeout_s = connect_timeout_s
        self.idle_timeout_s = idle_timeout_s
        self._lock = threading.Lock()
        self._idle: dict[tuple[str, str, int], list[_Connection]] = {}
        self._open: set[_Connection] = set()
        self._closed = False
        self._end_holding = descriptors.add_holder(self._close_idle)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send *request* and receive the head of its answer.

        It has no body, or a ``FileBody`` as its stream. The answer's body is
        ``response.extensions["body"]``, a ``BodyStream``.

        Raises:
            httpx.TransportError: of the class that httpx itself would raise.
        """
        url = request.url
        key = (url.scheme, url.host, url.port or (443 if url.scheme == "https" else 80))
        connection = self._take_idle(key)
        if connection is not None:
            try:
                return self._exchange(connection, request)
            except BaseException as error:
                self.discard(connection)
                # The server may have closed it while it was idle: no answer to this request.
                is_old = isinstance(error, _ENDS_OF_OLD_ONES)
                sent = request.stream.sent if isinstance(request.stream, FileBody) else 0
                if not is_old or self._closed or sent:
                    raise
        connection = self._connect(key)
        try:
            return self._exchange(connection, request)
        except BaseException:
            self.discard(connection)
            raise

    def close(self) -> None:
        """Cut every connection; later requests fail. Any thread."""
        self._end_holding()
        with self._lock:
            self._closed = True
            connections = list(self._open)
            self._idle.clear()
        for connection in connections:
            # shutdown wakes a thread that is blocked in recv; close alone would not.
            with contextlib.suppress(OSError):
                connection.sock.shutdown(socket.SHUT_RDWR)
            if not connection.used:
                self.discard(connection)

    def release(self, connection: _Connection) -> None:
        """Keep a connection whose body was received exactly to its end."""
        with self._lock:
            kept = self._idle.setdefault(connection.key, [])
            if not self._closed and len(kept) < _KEPT:
                connection.idle_since = self._now()
                connection.used = False
                kept.append(connection)
                return
        self.discard(connection)

    def discard(self, connection: _Connection) -> None:
        """Close a connection."""
        with self._lock:
            self._open.discard(connection)
        connection.sock.close()

    def _close_idle(self) -> int:
        """Close every connection that nobody uses; returns how many."""
        with self._lock:
            idle = list(itertools.chain(*self._idle.values()))
            self._idle.clear()
        for connection in idle:
            self.discard(connection)
        return len(idle)

    def _take_idle(self, key: tuple[str, str, int]) -> _Connection | None:
        now = self._now()
        expired = []
        found = None
        with self._lock:
            kept = self._idle.get(key, [])
            while kept and found is None:
                connection = kept.pop()
                if now - connection.idle_since < _IDLE_S and now - connection.made < _LIFE_S:
                    found = connection
                    found.used = True
                else:
                    expired.append(connection)
        for connection in expired:
            self.discard(connection)
        if found is not None and not _is_quiet(found.sock):
            self.discard(found)
            return self._take_idle(key)
        return found

    def _connect(self, key: tuple[str, str, int]) -> _Connection:
        scheme, host, port = key
        proxy = self._access.proxies.leading_to(scheme, host, port)
        with _mapped(connecting=True):
            if self._closed:
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
                _wait_at_most(sock, self.idle_timeout_s, also_to_send=True)
                if isinstance(sock, TlsSocket):
                    sock.hasten()
            except BaseException:
                sock.close()
                raise
        connection = _Connection(sock, key, proxy, self._now())
        connection.used = True
        with self._lock:
            self._open.add(connection)
            closed = self._closed
        if closed:
            self.discard(connection)
            raise httpx.ConnectError("closed")
        return connection

    def _exchange(self, connection: _Connection, request: httpx.Request) -> httpx.Response:
        protocol = h11.Connection(h11.CLIENT, max_incomplete_event_size=_MAX_HEAD)
        target = request.url.raw_path
        headers = list(request.headers.raw)
        if connection.proxy is not None and connection.key[0] == "http":
            target = b"http://" + request.url.netloc + target
            if authorization := connection.proxy.authorization:
                headers.append((b"Proxy-Authorization", authorization))
        body = request.stream if isinstance(request.stream, FileBody) else None
        with _mapped():
            head = h11.Request(method=request.method.encode(), target=target, headers=headers)
            data = protocol.send(head) or b""
            if body is None:
                data += protocol.send(h11.EndOfMessage()) or b""
            connection.sock.sendall(data)
        if body is not None:
            self._send_body(connection, body, body.send)
        # Each receive has its timeout; all of them together have one too.
        patience_s = self.idle_timeout_s if body is None else body.answer_s
        deadline = time.monotonic() + patience_s
        with _mapped():
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
            _wait_at_most(connection.sock, self.idle_timeout_s)
            keep = keep and body.sent == body.size
        answer = BodyStream(self, connection, protocol, length, leftover, reusable=keep)
        return httpx.Response(
            event.status_code,
            headers=event.headers.raw_items(),
            stream=answer,
            extensions={"body": answer, "http_version": b"HTTP/" + event.http_version},
        )

    def _send_body(
        self, connection: _Connection, body: FileBody, send: Callable[[socket.socket], None]
    ) -> None:
        sock = connection.sock
        body.bind(sock)
        try:
            with _mapped(writing=True):
                send(sock)
        except httpx.WriteError:
            # A server that refuses may hang up at once; its answer is here all the same.
            poll = select.poll()
            poll.register(sock, select.POLLIN)
            if not poll.poll(0):
                raise
        _wait_at_most(sock, body.answer_s)


class _mapped:
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


def _is_quiet(sock: socket.socket) -> bool:
    """Whether nothing came after the last answer. What did is the server's farewell, or surplus,
    which would be taken for the next answer."""
    if isinstance(sock, TlsSocket):
        return sock.is_quiet()
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return not poll.poll(0)


def _body_length(request: httpx.Request, response: h11.Response) -> int | None:
    """Return the length of the body when it is known beforehand (RFC 9112 section 6.3)."""
    if request.method == "HEAD" or response.status_code in (204, 304):
        return 0
    fields = dict(response.headers)
    if b"transfer-encoding" in fields or b"content-length" not in fields:
        return None
    return int(fields[b"content-length"])
