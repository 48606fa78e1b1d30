"""A request body that is a local file, sent without a copy of it in our memory. Blocking."""

import contextlib
import os
import select
import socket
import ssl
import threading
from collections.abc import Iterator

import httpx

from jfs.artifactory.pace import Pace
from jfs.extents import MiB

_SEND_PIECE = 4 * MiB  # between looks for an early answer


class FileBody(httpx.SyncByteStream):
    """A request body that is a file: sent by ``sendfile``, or in pieces through TLS.

    Args:
        file: descriptor, read by position only.
        answer_s: seconds to wait for the answer after the last byte.
    """

    def __init__(self, file: int, size: int, *, answer_s: float) -> None:
        self.file = file
        self.size = size
        self.answer_s = answer_s
        self.sent = 0
        self._lock = threading.Lock()
        self._sock: socket.socket | None = None
        self._cut = False

    def cut(self) -> None:
        """End the exchange at once: it fails. Any thread."""
        with self._lock:
            self._cut = True
            if self._sock is not None:
                with contextlib.suppress(OSError):
                    self._sock.shutdown(socket.SHUT_RDWR)

    def bind(self, sock: socket.socket | None) -> None:
        """Note which socket carries the body now."""
        with self._lock:
            self._sock = sock
            if self._cut and sock is not None:
                raise httpx.WriteError("cut")

    def send(self, sock: socket.socket) -> None:
        """Send the body, or as much as the server takes: one that refuses answers early.

        Raises:
            OSError: the server hung up, or took nothing for too long.
        """
        self.sent = 0
        pace = Pace(self.answer_s)
        poll = select.poll()
        poll.register(sock, select.POLLIN)
        encrypted = isinstance(sock, ssl.SSLSocket)
        while self.sent < self.size:
            with pace:
                count = self._send_piece(sock, min(_SEND_PIECE, self.size - self.sent))
                pace.moved(count)
            self.sent += count
            # An answer before the end of the body is a refusal; the rest would be in vain. Through
            # TLS 1.3 there is nothing to be seen: session tickets look the same from outside.
            if not encrypted and self.sent < self.size and poll.poll(0):
                return

    def _send_piece(self, sock: socket.socket, count: int) -> int:
        if isinstance(sock, ssl.SSLSocket):
            data = os.pread(self.file, count, self.sent)
            sock.sendall(data)
            count = len(data)
        else:
            count = os.sendfile(sock.fileno(), self.file, self.sent, count)
        if not count:
            raise httpx.LocalProtocolError("the file is shorter than its size")
        return count

    def __iter__(self) -> Iterator[bytes]:
        raise RuntimeError("a FileBody is sent by BulkTransport only")
