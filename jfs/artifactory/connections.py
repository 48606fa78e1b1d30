"""The connections of a transport: those in use, and those that are kept for the next request.

Any thread. A connection in use belongs to one thread; only ``close`` touches it from another.
"""

import contextlib
import itertools
import select
import socket
import threading
from collections.abc import Callable

from jfs import descriptors
from jfs.artifactory.encrypted import TlsSocket
from jfs.artifactory.proxies import Proxy

# A server may close a connection that is idle (nginx after 75 s, many load balancers after 60):
# older ones are not worth trying.
_IDLE_S = 30.0
# Nor are those that were made long ago: a name leads elsewhere one day, and the old server may go
# on answering (a load balancer that is being replaced).
_LIFE_S = 600.0
_KEPT = 16  # to one server

Key = tuple[str, str, int]  # scheme, host, port


class Connection:
    """A socket to a server, in use from the beginning."""

    def __init__(self, sock: socket.socket, key: Key, proxy: Proxy | None, made: float) -> None:
        self.sock = sock
        self.key = key
        self.proxy = proxy
        self.made = made
        self.idle_since = 0.0
        self.used = True


class Connections:
    """See the module.

    Args:
        now: as of ``BulkTransport``.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._lock = threading.Lock()
        self._idle: dict[Key, list[Connection]] = {}
        self._open: set[Connection] = set()
        self._closed = False
        self._end_holding = descriptors.add_holder(self._close_idle)

    @property
    def is_closed(self) -> bool:
        """Whether ``close`` was called."""
        return self._closed

    def take(self, key: Key) -> Connection | None:
        """Return one that is kept, and that nobody has closed as far as can be seen."""
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
            return self.take(key)
        return found

    def add(self, sock: socket.socket, key: Key, proxy: Proxy | None) -> Connection:
        """Take a new one. Raises OSError if ``close`` was called: it is closed then."""
        connection = Connection(sock, key, proxy, self._now())
        with self._lock:
            self._open.add(connection)
            closed = self._closed
        if closed:
            self.discard(connection)
            raise OSError("closed")
        return connection

    def release(self, connection: Connection) -> None:
        """Keep a connection whose body was received exactly to its end."""
        with self._lock:
            kept = self._idle.setdefault(connection.key, [])
            if not self._closed and len(kept) < _KEPT:
                connection.idle_since = self._now()
                connection.used = False
                kept.append(connection)
                return
        self.discard(connection)

    def discard(self, connection: Connection) -> None:
        """Close a connection."""
        with self._lock:
            self._open.discard(connection)
        connection.sock.close()

    def close(self) -> None:
        """Cut every connection; ``add`` fails from now on."""
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

    def _close_idle(self) -> int:
        """Close every connection that nobody uses; returns how many."""
        with self._lock:
            idle = list(itertools.chain(*self._idle.values()))
            self._idle.clear()
        for connection in idle:
            self.discard(connection)
        return len(idle)


def _is_quiet(sock: socket.socket) -> bool:
    """Whether nothing came after the last answer. What did is the server's farewell, or surplus,
    which would be taken for the next answer."""
    if isinstance(sock, TlsSocket):
        return sock.is_quiet()
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return not poll.poll(0)
