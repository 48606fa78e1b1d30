"""A request body that is a file which is still being written: sent in chunks. Blocking."""

import socket
import ssl

from jfs.artifactory.filebody import FileBody, has_come
from jfs.artifactory.pace import Pace
from jfs.extents import MiB
from jfs.protocols import Growing

_CHUNK = 4 * MiB  # between two looks for an early answer
_LOOK_S = 1.0  # a server that hangs up while the writer rests is found out so soon


class GrowingBody(FileBody):
    """As ``FileBody``, of which the end is not known yet (RFC 9112 7.1).

    Args:
        growing: says how much may be sent.
        settling: bytes that the server stores in a second once the last one has come.

    Attributes:
        ended: the server has been told that this is all.
    """

    def __init__(self, file: int, growing: Growing, *, answer_s: float, settling: int) -> None:
        super().__init__(file, -1, answer_s=answer_s)
        self._growing = growing
        self._settling = settling
        self.ended = False

    def go_on(self, sock: socket.socket) -> None:
        """As ``FileBody.go_on``. Raises OSError also if what was sent has changed."""
        pace = Pace(self.answer_s)
        while (ready := self._growing.ready(self.sent, _CHUNK, _LOOK_S)) is not None:
            if ready > self.sent:
                self._send_chunk(sock, ready - self.sent, pace)
            if has_come(sock):
                return  # as of a FileBody: a refusal, or it has hung up
        self.ended = True
        sock.sendall(b"0\r\n\r\n")
        self.size = self.sent
        self.answer_s += self.sent / self._settling

    def _send_chunk(self, sock: socket.socket, size: int, pace: Pace) -> None:
        # The kernel joins what belongs together; TLS knows no such flag.
        more = [] if isinstance(sock, ssl.SSLSocket) else [socket.MSG_MORE]
        sock.sendall(b"%x\r\n" % size, *more)
        left = size
        while left:
            with pace:
                count = self._send_piece(sock, left)
                pace.moved(count)
            self.sent += count
            left -= count
        sock.sendall(b"\r\n")
