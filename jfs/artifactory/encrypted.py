"""TLS connections of the bulk transport: Python's, in bulk, and safe to be cut.

Python's ssl makes them: its handshake, its certificates, its settings. But it returns a record of
16 KiB at a time, and takes the interpreter's lock for each. The native part receives and sends a
MiB in one call, where it is there (``native``) and where Python's ssl is OpenSSL's own: see
``native/tls.c``.

TLS in the kernel (kTLS) is not asked for: Python has it from 3.12 on, and no machine at hand has it
to test it on.

Blocking; one thread at a time, but ``shutdown`` may be called by any.
"""

import _ssl
import ctypes
import errno
import functools
import os
import socket
import ssl
import time
from collections.abc import Callable
from functools import partial

from jfs import native
from jfs.native.receiving import RUN_TYPES, Run

# As `struct jfs_tls` has them. Macros of OpenSSL's headers are not among them.
_FUNCTIONS = (
    *("SSL_read_ex", "SSL_peek_ex", "SSL_write_ex", "SSL_get_error", "SSL_get_fd", "SSL_up_ref"),
    *("SSL_free", "SSL_get_rbio", "SSL_set0_rbio", "BIO_f_buffer", "BIO_new", "BIO_free"),
    *("BIO_up_ref", "BIO_push", "BIO_int_ctrl", "ERR_clear_error", "ERR_peek_last_error"),
    "CRYPTO_get_ex_new_index",
)


class TlsSocket(ssl.SSLSocket):
    """See the module. Made by the contexts that ``makes`` was told of.

    Its waits are bounded by ``settimeout`` alone: with SO_RCVTIMEO or SO_SNDTIMEO on a blocking
    socket Python's TLS asks again whenever the time is up, for ever.
    """

    _held: "_Held | None" = None

    def hasten(self) -> None:
        """Receive and send in bulk from now on, if it can be done.

        Only in the thread that has just made it. Who polls it is not told of what was received
        then, and waits in our buffer.
        """
        calls = _calls()
        self._held = None if calls is None else calls.held(self.fileno())

    @property
    def is_hasty(self) -> bool:
        """Whether it does."""
        return self._held is not None

    def shutdown(self, how: int) -> None:
        """Cut it: who receives or sends fails at once. Any thread.

        Python's own forgets that the socket speaks TLS before it is shut down: another thread
        that is receiving gets what is encrypted as if it was the body, and one that is sending
        sends without TLS.
        """
        socket.socket.shutdown(self, how)

    def fill(self, buffer: memoryview) -> int:
        """Receive until *buffer* is full or time is up, as MSG_WAITALL does.

        Returns:
            How much came. What was there when time was up, or when the connection failed, is not
            lost: the next call meets the failure. 0: the other end has ended it.
        Raises:
            OSError: nothing came; TimeoutError: in time.
        """
        if self._held is not None:
            return self._held.receive(self.fileno(), buffer, self._patience_s)
        return self._by_records(lambda done: self.recv_into(buffer[done:]), len(buffer))

    def fill_run(self, run: Run, start: int, stop: int, piece: int) -> int:
        """As ``fill``, of many pieces: see ``Run.receive``. Only if it is hasty."""
        assert self._held is not None
        return self._held.receive_run(self.fileno(), run, start, stop, piece, self._patience_s)

    def push(self, data: memoryview) -> int:
        """Send as much as there is time for; it goes on with the rest, nothing else.

        Returns:
            How much was sent, at least 1.
        Raises:
            OSError: nothing was; TimeoutError: in time.
        """
        if self._held is not None:
            return self._held.send(self.fileno(), data, self._patience_s)
        return self._by_records(lambda done: self.send(data[done:]), len(data))

    def is_quiet(self) -> bool:
        """Whether nothing has come, and the other end has not ended it.

        Does not wait. Unless it is hasty something that has come is lost.
        """
        if self._held is not None:
            return self._held.is_quiet()
        timeout = self.gettimeout()
        self.setblocking(False)
        try:
            self.recv(1)
        except ssl.SSLWantReadError:
            return True
        except OSError:
            return False
        else:
            return False
        finally:
            self.settimeout(timeout)

    @property
    def _patience_s(self) -> float:
        timeout = self.gettimeout()
        assert timeout is not None
        return timeout

    def _by_records(self, move: Callable[[int], int], size: int) -> int:
        """Move *size* bytes, a record at a time; *move* is told how many are done."""
        deadline = time.monotonic() + self._patience_s
        done = 0
        while done < size and time.monotonic() < deadline:
            try:
                count = move(done)
            except OSError:
                if not done:
                    raise
                break
            if not count:
                break
            done += count
        return done


def makes(context: ssl.SSLContext) -> None:
    """Have a context make connections of ours."""
    context.sslsocket_class = TlsSocket
    _calls()  # OpenSSL tells of connections that it makes after it was asked to


class _Calls:
    """The functions of OpenSSL that Python's ssl calls, and ours that call them. Any thread."""

    def __init__(self, library: ctypes.CDLL) -> None:
        """Raises OSError, AttributeError: this ssl is another one."""
        if not ssl.OPENSSL_VERSION.startswith(("OpenSSL 1.", "OpenSSL 3.")):
            raise AttributeError(ssl.OPENSSL_VERSION)  # what these calls are there is not known
        # Where the names of this object lead to is what it calls itself.
        self._theirs = ctypes.CDLL(getattr(_ssl, "__file__", None))
        number = ctypes.c_void_p * len(_FUNCTIONS)
        places = (ctypes.cast(getattr(self._theirs, each), ctypes.c_void_p) for each in _FUNCTIONS)
        self._table = number(*(place.value for place in places))
        place, size, patience = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int64
        said = ctypes.POINTER(ctypes.c_ulong)
        library.jfs_tls_held.restype = ctypes.c_void_p
        library.jfs_tls_held.argtypes = (place, ctypes.c_int)
        for call in (library.jfs_tls_receive, library.jfs_tls_send):
            call.restype = ctypes.c_ssize_t
            call.argtypes = (place, place, ctypes.c_int, place, size, patience, said)
        library.jfs_tls_receive_run.restype = ctypes.c_ssize_t
        library.jfs_tls_receive_run.argtypes = (
            *(place, place, ctypes.c_int, *RUN_TYPES, patience, said),
        )
        library.jfs_tls_is_quiet.argtypes = (place, place)
        self._ours = library
        self.end = self._theirs.SSL_free
        self.end.argtypes, self.end.restype = (place,), None
        self._theirs.ERR_reason_error_string.argtypes = (ctypes.c_ulong,)
        self._theirs.ERR_reason_error_string.restype = ctypes.c_char_p
        if failure := library.jfs_tls_begin(self._table):
            raise OSError(-failure, os.strerror(-failure))

    def held(self, fd: int) -> "_Held | None":
        """Hold the connection that this thread has just made, if it is *fd*."""
        address = self._ours.jfs_tls_held(self._table, fd)
        return _Held(self, address) if address else None

    def is_quiet(self, address: int) -> bool:
        return bool(self._ours.jfs_tls_is_quiet(self._table, address))

    def receive(self, address: int, fd: int, buffer: memoryview, patience_s: float) -> int:
        return self._moved(self._ours.jfs_tls_receive, address, fd, buffer, patience_s)

    def receive_run(
        self, address: int, fd: int, run: Run, start: int, stop: int, piece: int, patience_s: float
    ) -> int:
        call = partial(self._ours.jfs_tls_receive_run, self._table, address, fd)
        said = ctypes.c_ulong()
        count = run.receive_by(call, start, stop, piece, int(patience_s * 1000), said)
        assert count != -errno.EINVAL, "a run, or a place in it, that cannot be"
        return self._checked(count, said.value)

    def send(self, address: int, fd: int, data: memoryview, patience_s: float) -> int:
        return self._moved(self._ours.jfs_tls_send, address, fd, data, patience_s)

    def _moved(
        self, call: Callable[..., int], address: int, fd: int, view: memoryview, patience_s: float
    ) -> int:
        place = (ctypes.c_char * len(view)).from_buffer(view)
        said = ctypes.c_ulong()
        patience_ms = int(patience_s * 1000)
        count = call(self._table, address, fd, place, len(view), patience_ms, said)
        return self._checked(count, said.value)

    def _checked(self, count: int, said: int) -> int:
        if count >= 0:
            return count
        if count == -errno.EPROTO and said:
            reason = self._theirs.ERR_reason_error_string(said) or b"unknown"
            raise _error(reason.decode("ascii", "replace"))
        raise OSError(-count, os.strerror(-count))


class _Held:
    """A reference to the SSL of one connection: it is there for as long as we are."""

    def __init__(self, calls: _Calls, address: int) -> None:
        self._calls = calls
        self._address = address

    def receive(self, fd: int, buffer: memoryview, patience_s: float) -> int:
        return self._calls.receive(self._address, fd, buffer, patience_s)

    def receive_run(
        self, fd: int, run: Run, start: int, stop: int, piece: int, patience_s: float
    ) -> int:
        return self._calls.receive_run(self._address, fd, run, start, stop, piece, patience_s)

    def send(self, fd: int, data: memoryview, patience_s: float) -> int:
        return self._calls.send(self._address, fd, data, patience_s)

    def is_quiet(self) -> bool:
        return self._calls.is_quiet(self._address)

    def __del__(self) -> None:
        self._calls.end(self._address)


def _calls() -> _Calls | None:
    library = native.library()
    return None if library is None else _calls_by(library)


@functools.lru_cache(maxsize=1)
def _calls_by(library: ctypes.CDLL) -> _Calls | None:
    try:
        return _Calls(library)
    except (OSError, AttributeError):
        return None


def _error(reason: str) -> ssl.SSLError:
    """Make the error that Python's ssl makes of what OpenSSL says."""
    error = ssl.SSLError(ssl.SSL_ERROR_SSL, f"[SSL] {reason}")
    error.library, error.reason = "SSL", reason.upper().replace(" ", "_")
    return error
