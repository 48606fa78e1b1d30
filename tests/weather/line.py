"""A line between a mount and its server that can go bad: a TCP forwarder of the test's process."""

import contextlib
import socket
import ssl
import struct
import threading
from collections.abc import Callable
from enum import Enum

_PIECE = 1 << 16
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close with RST


class Mode(Enum):
    """What becomes of connections."""

    PASS = "pass"
    REFUSE = "refuse"  # nobody listens; what was connected is reset
    BLACK_HOLE = "black hole"  # packets get lost: no connection comes about, none ends
    SILENT = "silent"  # connections come about; no byte passes, as with a server that is stopped


class Line:
    """Forwards to *port* of this machine. A context manager.

    Args:
        tls: terminates TLS, if there is one; may be replaced meanwhile.
    Attributes:
        host: the address where it begins.
    """

    def __init__(self, port: int, tls: ssl.SSLContext | None = None) -> None:
        self.tls = tls
        self.host = "127.0.0.1"
        self._target = port
        self._passing = threading.Event()
        self._passing.set()
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._plugs: list[socket.socket] = []
        self._listener: socket.socket | None = self._listen(0, 100)
        self.port = int(self._listener.getsockname()[1])
        self._start(self._accept, self._listener)

    def __enter__(self) -> "Line":
        return self

    def __exit__(self, *_: object) -> None:
        self._unplug()
        self._passing.set()
        self._cut()

    @property
    def url(self) -> str:
        """The service, as a mount reaches it."""
        return self.url_of(self.host)

    def url_of(self, host: str) -> str:
        """The service, by another name of the same host."""
        return f"{'https' if self.tls else 'http'}://{host}:{self.port}/artifactory"

    def move(self) -> str:
        """Pass at another address from now on, and not here any more; return that."""
        self._unplug()
        self.host = f"127.0.0.{int(self.host.rpartition('.')[2]) + 1}"
        self.set(Mode.PASS)
        return self.host

    def set(self, mode: Mode) -> None:
        """Let the line be so from now on."""
        self._unplug()
        if mode in (Mode.PASS, Mode.SILENT):
            self._listener = self._listen(self.port, 100)
            self._start(self._accept, self._listener)
        elif mode is Mode.BLACK_HOLE:
            # The kernel drops SYNs for a listener whose queue is full.
            self._listener = self._listen(self.port, 0)
            for _ in range(4):
                plug = socket.socket()
                plug.setblocking(False)
                plug.connect_ex((self.host, self.port))
                self._plugs.append(plug)
        if mode in (Mode.PASS, Mode.REFUSE):
            self._cut()  # what waited for the line to come back is of no use: peers gave it up
            self._passing.set()
        else:
            self._passing.clear()

    def _unplug(self) -> None:
        listener, self._listener = self._listener, None
        if listener is not None:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)  # wakes the thread in accept()
            listener.close()
        plugs, self._plugs = self._plugs, []
        for plug in plugs:
            plug.close()

    def _cut(self) -> None:
        with self._lock:
            ends, self._open = self._open, set()
        for end in ends:
            with contextlib.suppress(OSError):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                end.shutdown(socket.SHUT_RDWR)

    def _listen(self, port: int, backlog: int) -> socket.socket:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((self.host, port))
        listener.listen(backlog)
        return listener

    @staticmethod
    def _start(run: Callable[..., None], *args: object) -> None:
        threading.Thread(target=run, args=args, name="line", daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            self._start(self._connect, client)

    def _connect(self, client: socket.socket) -> None:
        with self._lock:
            self._open.add(client)
        self._passing.wait()
        try:
            if self.tls is not None:
                client = self._secured(client, self.tls)
            server = socket.create_connection(("127.0.0.1", self._target), 30)
        except OSError:
            client.close()
            return
        server.settimeout(None)
        with self._lock:
            self._open.add(server)
        self._start(self._forward, client, server)
        self._forward(server, client)
        for end in (client, server):
            end.close()

    def _secured(self, client: socket.socket, tls: ssl.SSLContext) -> socket.socket:
        with self._lock:
            self._open.discard(client)
        try:
            secured = tls.wrap_socket(client, server_side=True)
        except OSError:
            client.close()
            raise
        with self._lock:
            self._open.add(secured)
        return secured

    def _forward(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError, ValueError):
            while data := source.recv(_PIECE):
                self._passing.wait()
                target.sendall(data)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
