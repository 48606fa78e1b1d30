"""A request body that is a local file, sent without a copy of it in our memory. Blocking."""

import contextlib
import errno
import os
import select
import socket
import threading
from collections.abc import Iterator

import httpx

from jfs.artifactory.encrypted import TlsSocket
from jfs.artifactory.pace import Pace
from jfs.errors import is_not_supported
from jfs.extents import MiB

_SEND_PIECE = 4 * MiB  # between looks for an early answer
_READ_PIECE = 1 * MiB  # of what goes through our memory
# What sendfile(2) says of the socket: the other end has gone, or takes nothing. All else is the
# file's: a disk that fails must not be taken for a server that is down.
_OF_THE_SOCKET = frozenset(
    [
        *(errno.EPIPE, errno.ECONNRESET, errno.ECONNABORTED, errno.ENOTCONN, errno.ESHUTDOWN),
        *(errno.ETIMEDOUT, errno.EAGAIN, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETDOWN),
        *(errno.ENETRESET, errno.ENOBUFS, errno.ENOMEM, errno.EBADF, errno.ENOTSOCK, errno.EINTR),
    ]
)


class Unreadable(Exception):
    """The file cannot be read: *error* says why. No fault of the server's or of the way to it."""

    def __init__(self, error: OSError) -> None:
        super().__init__(str(error))
        self.error = error


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
        self._place: memoryview | None = None

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
            Unreadable: the disk failed, or the file is shorter than it was.
        """
        self.sent = 0
        self.go_on(sock)

    def go_on(self, sock: socket.socket) -> None:
        """Send what is left: what came was no answer. Raises as ``send``."""
        pace = Pace(self.answer_s)
        while self.sent < self.size:
            with pace:
                count = self._send_piece(sock, min(_SEND_PIECE, self.size - self.sent))
                pace.moved(count)
            self.sent += count
            # An answer before the end of the body is a refusal; the rest would be in vain.
            if self.sent < self.size and has_come(sock):
                return

    def _send_piece(self, sock: socket.socket, count: int) -> int:
        if not isinstance(sock, TlsSocket):
            try:
                sent = os.sendfile(sock.fileno(), self.file, self.sent, count)
            except OSError as error:
                if error.errno in _OF_THE_SOCKET:
                    raise
                if not is_not_supported(error):  # some file systems cannot: read and send
                    raise Unreadable(error) from None
            else:
                if sent:
                    return sent
        if self._place is None:
            size = _READ_PIECE if self.size < 0 else min(_READ_PIECE, self.size)
            self._place = memoryview(bytearray(size))
        place = self._place[:count]
        try:
            count = os.preadv(self.file, [place], self.sent)
        except OSError as error:
            raise Unreadable(error) from None
        if not count:
            ends = f"a staged file ends at {self.sent}, not at {self.size}"
            raise Unreadable(OSError(errno.EIO, ends))
        if isinstance(sock, TlsSocket):
            return sock.push(place[:count])
        sock.sendall(place[:count])
        return count

    def __iter__(self) -> Iterator[bytes]:
        raise RuntimeError("a FileBody is sent by BulkTransport only")


def has_come(sock: socket.socket) -> bool:
    """Whether something was received, as far as that can be told."""
    if isinstance(sock, TlsSocket):
        # A ticket of TLS 1.3 looks like an answer from outside, and Python cannot look inside.
        return sock.is_hasty and not sock.is_quiet()
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(0))
