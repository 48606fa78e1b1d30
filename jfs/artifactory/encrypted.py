"""TLS connections of the bulk transport: Python's, without what hurts those that are shared.

Blocking; one thread at a time, but ``shutdown`` may be called by any.
"""

import socket
import ssl
import time


class TlsSocket(ssl.SSLSocket):
    """See the module. Made by the contexts of ``Trust``.

    Its waits are bounded by ``settimeout`` alone: with SO_RCVTIMEO or SO_SNDTIMEO on a blocking
    socket Python's TLS asks again whenever the time is up, for ever.
    """

    def shutdown(self, how: int) -> None:
        """Cut it: who receives or sends fails at once. Any thread.

        Python's own forgets that the socket speaks TLS before it is shut down: another thread
        that is receiving gets what is encrypted as if it was the body, and one that is sending
        sends without TLS.
        """
        socket.socket.shutdown(self, how)

    def fill(self, buffer: memoryview, patience_s: float) -> int:
        """Receive until *buffer* is full, as MSG_WAITALL does: TLS has records of 16 KiB.

        Returns:
            How much came. What was there when time was up, or when the connection failed, is not
            lost: the next call meets the failure. 0: the body ends here.
        Raises:
            OSError: nothing came; TimeoutError: in time.
        """
        deadline = time.monotonic() + patience_s
        filled = 0
        while filled < len(buffer) and time.monotonic() < deadline:
            try:
                count = self.recv_into(buffer[filled:])
            except OSError:
                if not filled:
                    raise
                break
            if not count:
                break
            filled += count
        return filled
