"""The body of an answer, received straight into the caller's memory.

Blocking; a body belongs to one thread.
"""

import socket
from collections.abc import Iterator

import h11
import httpx

from jfs.artifactory.connections import Connection, Connections
from jfs.artifactory.encrypted import TlsSocket
from jfs.artifactory.failures import as_httpx
from jfs.artifactory.pace import Pace
from jfs.extents import KiB
from jfs.native.receiving import Run


class BodyStream(httpx.SyncByteStream):
    """A response body; either iterate it or call ``readinto``, not both."""

    def __init__(
        self,
        connections: Connections,
        connection: Connection,
        protocol: h11.Connection,
        length: int | None,
        leftover: bytes,
        *,
        reusable: bool,
        idle_timeout_s: float,
    ) -> None:
        self._connections = connections
        self._connection: Connection | None = connection
        self._protocol = protocol
        self._remaining = length  # None: chunked, or until the connection closes
        self._leftover = memoryview(leftover)
        self._reusable = reusable
        self._pace = Pace(2 * idle_timeout_s)

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
        with as_httpx("read"), self._pace:
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
        (self._connections.release if whole else self._connections.discard)(connection)

    def _receive(self, buffer: memoryview) -> int:
        if self._connection is None:
            raise httpx.ReadError("the response is closed")
        sock = self._connection.sock
        with as_httpx("read"), self._pace:
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
            with as_httpx("read"), self._pace:
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
