"""A kernel and a libfuse for the native part that stands between them.

The kernel is a socket that keeps packets apart, as its device does.
"""

import ctypes
import errno
import select
import socket
import struct

from jfs import native
from jfs.extents import MiB
from jfs.native.replies import Content, Kind, Note, Replies

_HEADER = struct.Struct("=IIQQIIII")  # struct fuse_in_header
READ_IN = struct.Struct("=QQIIQII")
OUT = struct.Struct("=IiQ")
LOOKUP, READ, INTERRUPT = 1, 15, 36
HANDLE = 7
PATIENCE_S = 20.0
_EXITED = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class _Buffer(ctypes.Structure):
    """The beginning of struct fuse_buf."""

    _fields_ = (("size", ctypes.c_size_t), ("flags", ctypes.c_int), ("memory", ctypes.c_void_p))


class Kernel:
    """The kernel's end, and libfuse's."""

    def __init__(self, library: ctypes.CDLL | None = None) -> None:
        library = library or native.library()
        assert library is not None
        self.exits: list[int | None] = []
        self._exit = _EXITED(self.exits.append)
        address = ctypes.cast(self._exit, ctypes.c_void_p).value or 0
        self.replies = Replies(library, address)
        self.notes: list[Note] = []
        self.replies.tell(self.notes.append)
        self.socket, self._device = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.settimeout(PATIENCE_S)
        self.replies.start(self._device.fileno())
        self._receive = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)(
            self.replies.receive
        )
        self._buffer = _Buffer()

    def close(self) -> None:
        self.replies.stop()
        self.socket.close()
        self._device.close()
        ctypes.CDLL(None).free(ctypes.c_void_p(self._buffer.memory))

    def content(self, size: int, *handles: int) -> Content:
        content = Content(self.replies, size)
        for handle in handles or (HANDLE,):
            content.publish(handle)
        return content

    def send(self, opcode: int, unique: int, body: bytes) -> None:
        size = _HEADER.size + len(body)
        self.socket.send(_HEADER.pack(size, opcode, unique, 1, 0, 0, 0, 0) + body)

    def read(self, unique: int, start: int, size: int, handle: int = HANDLE) -> None:
        self.send(READ, unique, READ_IN.pack(handle, start, size, 0, 0, 0, 0))

    def answer(self, unique: int) -> bytes:
        """Return the answer to a request."""
        data = self.socket.recv(MiB)
        size, error, answered = OUT.unpack_from(data)
        assert (size, error, answered) == (len(data), 0, unique)
        return data[OUT.size :]

    def is_answered(self) -> bool:
        """Wait for what becomes of a READ: whether it is answered, or libfuse's."""
        ready = select.select([self.socket, self.replies.ready], [], [], PATIENCE_S)[0]
        assert ready
        return self.socket in ready

    def passed_on(self) -> tuple[int, int, bytes]:
        """Return what libfuse is given next: operation, number and body."""
        data = self.received()
        _, opcode, unique, *_ = _HEADER.unpack_from(data)
        return opcode, unique, data[_HEADER.size :]

    def received(self) -> bytes:
        size = -errno.EINTR
        while size == -errno.EINTR:  # the thread beside took what both saw come, and passes it on
            assert select.select([self.replies.ready], [], [], PATIENCE_S)[0]
            size = self._receive(1, ctypes.addressof(self._buffer))
        assert size >= 0
        return ctypes.string_at(self._buffer.memory, size) if size else b""

    def nothing_is_passed_on(self) -> None:
        assert not select.select([self.replies.ready], [], [], 0)[0]
        self.asks_again()

    def asks_again(self) -> None:
        """Have libfuse be told that there is no request."""
        assert self._receive(1, ctypes.addressof(self._buffer)) == -errno.EINTR

    def heard(self) -> list[tuple[int, int, Kind]]:
        self.replies.hear()
        notes, self.notes[:] = list(self.notes), []
        return [(note.start, note.stop, note.kind) for note in notes]

    def waits(self, count: int = 1) -> None:
        """Return once so many READs wait."""
        while count:
            assert select.select([self.replies.noted], [], [], PATIENCE_S)[0]
            count -= sum(kind is Kind.WAITS for _, _, kind in self.heard())
