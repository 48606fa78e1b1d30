"""READs that are answered beside the interpreter: the native part between a kernel and libfuse.

The kernel is a socket that keeps packets apart, as its device does; libfuse is the test.
"""

import ctypes
import select
import socket
import struct
import threading
from collections.abc import Callable, Iterator

import pytest

from jfs import native
from jfs.extents import KiB, MiB
from jfs.native.replies import Content, Kind, Note, Piece, Replies

_HEADER = struct.Struct("=IIQQIIII")  # struct fuse_in_header
_READ = struct.Struct("=QQIIQII")
_OUT = struct.Struct("=IiQ")
_LOOKUP, _READS, _INTERRUPT = 1, 15, 36
_HANDLE = 7
_PATIENCE_S = 20.0
_EXITED = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class _Buffer(ctypes.Structure):
    """The beginning of struct fuse_buf."""

    _fields_ = (("size", ctypes.c_size_t), ("flags", ctypes.c_int), ("memory", ctypes.c_void_p))


class _Kernel:
    """The kernel's end, and libfuse's."""

    def __init__(self) -> None:
        library = native.library()
        assert library is not None
        self.exits: list[int | None] = []
        self._exit = _EXITED(self.exits.append)
        address = ctypes.cast(self._exit, ctypes.c_void_p).value or 0
        self.replies = Replies(library, address)
        self.notes: list[Note] = []
        self.replies.tell(self.notes.append)
        self._socket, self._device = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.settimeout(_PATIENCE_S)
        self.replies.start(self._device.fileno())
        self._receive = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)(
            self.replies.receive
        )
        self._buffer = _Buffer()

    def close(self) -> None:
        self.replies.stop()
        self._socket.close()
        self._device.close()
        ctypes.CDLL(None).free(ctypes.c_void_p(self._buffer.memory))

    def content(self, size: int, *handles: int) -> Content:
        content = Content(self.replies, size)
        for handle in handles or (_HANDLE,):
            content.publish(handle)
        return content

    def send(self, opcode: int, unique: int, body: bytes) -> None:
        size = _HEADER.size + len(body)
        self._socket.send(_HEADER.pack(size, opcode, unique, 1, 0, 0, 0, 0) + body)

    def read(self, unique: int, start: int, size: int, handle: int = _HANDLE) -> None:
        self.send(_READS, unique, _READ.pack(handle, start, size, 0, 0, 0, 0))

    def answer(self, unique: int) -> bytes:
        """Return the answer to a request."""
        data = self._socket.recv(MiB)
        size, error, answered = _OUT.unpack_from(data)
        assert (size, error, answered) == (len(data), 0, unique)
        return data[_OUT.size :]

    def passed_on(self) -> tuple[int, int, bytes]:
        """Return what libfuse is given next: operation, number and body."""
        data = self.received()
        _, opcode, unique, *_ = _HEADER.unpack_from(data)
        return opcode, unique, data[_HEADER.size :]

    def received(self) -> bytes:
        assert select.select([self.replies.ready], [], [], _PATIENCE_S)[0]
        size = self._receive(1, ctypes.addressof(self._buffer))
        assert size >= 0
        return ctypes.string_at(self._buffer.memory, size) if size else b""

    def nothing_is_passed_on(self) -> None:
        assert not select.select([self.replies.ready], [], [], 0)[0]
        assert self._receive(1, ctypes.addressof(self._buffer)) < 0

    def heard(self) -> list[tuple[int, int, Kind]]:
        self.replies.hear()
        notes, self.notes[:] = list(self.notes), []
        return [(note.start, note.stop, note.kind) for note in notes]

    def waits(self, count: int = 1) -> None:
        """Return once so many READs wait."""
        while count:
            assert select.select([self.replies.noted], [], [], _PATIENCE_S)[0]
            count -= sum(kind is Kind.WAITS for _, _, kind in self.heard())


@pytest.fixture
def kernel() -> Iterator[_Kernel]:
    kernel = _Kernel()
    yield kernel
    kernel.close()


def _bytes(size: int, first: int = 0) -> bytearray:
    return bytearray((first + at // KiB) % 251 for at in range(size))


def test_what_is_in_memory_is_answered_and_noted(kernel: _Kernel) -> None:
    content, data = kernel.content(100 * KiB), _bytes(64 * KiB)
    piece = Piece(content, data, 10 * KiB, 74 * KiB, 74 * KiB)
    kernel.read(2, 12 * KiB, 4 * KiB)
    assert kernel.answer(2) == data[2 * KiB : 6 * KiB]
    assert kernel.heard() == [(12 * KiB, 16 * KiB, Kind.ANSWERED)]
    kernel.nothing_is_passed_on()
    piece.end()


def test_an_answer_ends_with_the_file(kernel: _Kernel) -> None:
    content, data = kernel.content(10_000), _bytes(10_000)
    piece = Piece(content, data, 0, 10_000, 10_000)
    kernel.read(2, 8192, 8192)
    assert kernel.answer(2) == data[8192:]
    kernel.read(4, 12288, 4096)  # begins beyond it
    assert kernel.passed_on()[:2] == (_READS, 4)
    piece.end()


def test_a_read_of_several_pieces_is_one_answer(kernel: _Kernel) -> None:
    size = 32 * KiB
    content, whole = kernel.content(3 * size), _bytes(3 * size)
    pieces = [
        Piece(content, whole[at : at + size], at, at + size, at + size)
        for at in (2 * size, 0, size)
    ]
    kernel.read(2, size - 5, size + 10)
    assert kernel.answer(2) == whole[size - 5 : 2 * size + 5]
    for piece in pieces:
        piece.end()


def test_what_is_on_its_way_is_answered_by_who_brings_it(kernel: _Kernel) -> None:
    content, data = kernel.content(64 * KiB), bytearray(64 * KiB)
    piece = Piece(content, data, 0, 64 * KiB, 0)
    kernel.read(2, 0, 4 * KiB)
    kernel.read(4, 4 * KiB, 4 * KiB)
    kernel.waits(2)
    data[: 6 * KiB] = b"x" * 6 * KiB
    piece.filled(6 * KiB)
    assert kernel.answer(2) == b"x" * 4 * KiB
    data[6 * KiB :] = b"y" * 58 * KiB
    piece.filled(64 * KiB)
    assert kernel.answer(4) == b"x" * 2 * KiB + b"y" * 2 * KiB
    assert {kind for *_, kind in kernel.heard()} == {Kind.ANSWERED_LATE}
    kernel.nothing_is_passed_on()
    piece.end()


def test_what_comes_to_two_pieces_is_answered_once_both_are_there(kernel: _Kernel) -> None:
    content = kernel.content(8 * KiB)
    first = Piece(content, bytearray(b"a" * 4 * KiB), 0, 4 * KiB, 0)
    second = Piece(content, bytearray(b"b" * 4 * KiB), 4 * KiB, 8 * KiB, 4 * KiB)
    kernel.read(2, 0, 8 * KiB)
    kernel.waits()
    second.filled(8 * KiB)
    first.filled(4 * KiB)
    assert kernel.answer(2) == b"a" * 4 * KiB + b"b" * 4 * KiB
    first.end()
    second.end()


def test_everything_else_goes_to_libfuse_in_order(kernel: _Kernel) -> None:
    content = kernel.content(64 * KiB)
    piece = Piece(content, _bytes(8 * KiB), 0, 8 * KiB, 8 * KiB)
    large = bytes(100 * KiB)
    kernel.send(_LOOKUP, 2, b"name\0")
    kernel.read(4, 0, 4 * KiB, handle=_HANDLE + 1)
    kernel.read(6, 4 * KiB, 8 * KiB)  # not all of it
    kernel.send(16, 8, large)
    assert kernel.passed_on() == (_LOOKUP, 2, b"name\0")
    assert [kernel.passed_on()[:2] for _ in range(2)] == [(_READS, 4), (_READS, 6)]
    assert kernel.passed_on() == (16, 8, large)
    assert kernel.heard() == []
    kernel.nothing_is_passed_on()
    piece.end()


def test_without_a_handle_libfuse_reads_for_itself(kernel: _Kernel) -> None:
    for number in (2, 4):
        kernel.send(_LOOKUP, number, bytes(number * 20 * KiB))
    assert kernel.passed_on() == (_LOOKUP, 2, bytes(40 * KiB))
    content = kernel.content(64 * KiB)
    assert kernel.passed_on() == (_LOOKUP, 4, bytes(80 * KiB))
    piece = Piece(content, _bytes(8 * KiB), 0, 8 * KiB, 8 * KiB)
    kernel.read(6, 0, 4 * KiB)
    assert kernel.answer(6) == _bytes(4 * KiB)
    content.revoke()
    kernel.read(8, 0, 4 * KiB)
    assert kernel.passed_on()[:2] == (_READS, 8)
    kernel.nothing_is_passed_on()
    piece.end()


def _end(piece: Piece, content: Content) -> None:
    piece.end()


def _fail(piece: Piece, content: Content) -> None:
    piece.failed()


def _revoke(piece: Piece, content: Content) -> None:
    content.revoke()


def _revoke_one(piece: Piece, content: Content) -> None:
    content.revoke_one(_HANDLE)


def _pause(piece: Piece, content: Content) -> None:
    content.replies.pause()


def _nothing(piece: Piece, content: Content) -> None:
    """Who waits for long is passed on, too."""


@pytest.mark.parametrize("happens", [_end, _fail, _revoke, _revoke_one, _pause, _nothing])
def test_a_read_that_waits_is_passed_on(
    kernel: _Kernel, happens: Callable[[Piece, Content], None]
) -> None:
    content, data = kernel.content(64 * KiB), bytearray(64 * KiB)
    piece = Piece(content, data, 0, 64 * KiB, 0)
    kernel.read(2, 4 * KiB, 4 * KiB)
    kernel.waits()
    happens(piece, content)
    assert kernel.passed_on() == (
        _READS,
        2,
        _READ.pack(_HANDLE, 4 * KiB, 4 * KiB, 0, 0, 0, 0),
    )
    # What it is known by is there before it.
    noted = [(note.start, note.stop, note.kind) for note in kernel.notes] + kernel.heard()
    assert noted[-1:] == [(4 * KiB, 8 * KiB, Kind.PASSED_ON)]
    piece.filled(64 * KiB)  # answers nobody
    kernel.send(_LOOKUP, 4, b"x\0")
    assert kernel.passed_on()[1] == 4
    piece.end()


def test_an_interrupted_read_is_passed_on_before_its_interrupt(kernel: _Kernel) -> None:
    content = kernel.content(64 * KiB)
    piece = Piece(content, bytearray(64 * KiB), 0, 64 * KiB, 0)
    kernel.read(2, 0, 4 * KiB)
    kernel.read(4, 4 * KiB, 4 * KiB)
    kernel.send(_INTERRUPT, 3, struct.pack("=Q", 2))
    assert [kernel.passed_on()[:2] for _ in range(2)] == [(_READS, 2), (_INTERRUPT, 3)]
    piece.end()


@pytest.mark.parametrize("happens", [_end, _revoke, _revoke_one, _pause])
def test_nothing_is_answered_any_more(
    kernel: _Kernel, happens: Callable[[Piece, Content], None]
) -> None:
    content = kernel.content(64 * KiB)
    piece = Piece(content, _bytes(64 * KiB), 0, 64 * KiB, 64 * KiB)
    kernel.read(2, 0, 4 * KiB)
    kernel.answer(2)
    happens(piece, content)
    kernel.read(4, 0, 4 * KiB)
    assert kernel.passed_on()[:2] == (_READS, 4)
    piece.end()


def test_a_handle_that_was_revoked_can_be_published_again(kernel: _Kernel) -> None:
    content = kernel.content(64 * KiB)
    piece = Piece(content, _bytes(64 * KiB), 0, 64 * KiB, 64 * KiB)
    for revoke in (content.revoke, kernel.replies.pause):
        revoke()
        assert not content.is_published(_HANDLE)
        content.publish(_HANDLE)
        kernel.read(2, 0, 4 * KiB)
        kernel.answer(2)
    kernel.replies.end()
    content.publish(_HANDLE)
    kernel.read(4, 0, 4 * KiB)
    assert kernel.passed_on()[1] == 4
    piece.end()


def test_quiet_reads_wake_nobody_and_are_one_note(kernel: _Kernel) -> None:
    content = kernel.content(64 * KiB)
    content.quiet(0, 12 * KiB)
    piece = Piece(content, _bytes(64 * KiB), 0, 64 * KiB, 64 * KiB)
    for number in range(3):
        kernel.read(2 + number, number * 4 * KiB, 4 * KiB)
        kernel.answer(2 + number)
    assert not select.select([kernel.replies.noted], [], [], 0)[0]
    kernel.replies.hear()
    assert [(note.start, note.stop, note.count) for note in kernel.notes] == [(0, 12 * KiB, 3)]
    kernel.read(8, 12 * KiB, 4 * KiB)
    kernel.answer(8)
    assert select.select([kernel.replies.noted], [], [], _PATIENCE_S)[0]
    piece.end()


def test_more_reads_than_notes_lose_none(kernel: _Kernel) -> None:
    content = kernel.content(MiB)
    piece = Piece(content, _bytes(MiB), 0, MiB, MiB)
    answered = passed_on = 0
    for number in range(2500):
        kernel.read(2 + number, (number * 7 % 256) * 4 * KiB, 4 * KiB)
        if select.select([kernel._socket, kernel.replies.ready], [], [], _PATIENCE_S)[0] == [
            kernel._socket
        ]:
            kernel.answer(2 + number)
            answered += 1
        else:
            assert kernel.passed_on()[1] == 2 + number
            passed_on += 1
    assert passed_on
    assert len(kernel.heard()) == answered
    piece.end()


def test_a_buffer_is_given_back_only_after_its_last_reply(kernel: _Kernel) -> None:
    """Threads that answer, and one that takes buffers back and writes into them."""
    content = kernel.content(MiB)
    wrong: list[bytes] = []
    number = 2
    for turn in range(60):
        letter = bytes([65 + turn % 26])
        data = bytearray(letter * 32 * KiB)
        piece = Piece(content, data, 0, 32 * KiB, 0)
        for _ in range(4):
            kernel.read(number, 0, 32 * KiB)
            number += 1
        if turn % 3:
            kernel.waits(4)
        ends = threading.Thread(target=piece.end)
        filler = threading.Thread(target=piece.filled, args=(32 * KiB,))
        filler.start()
        ends.start()
        ends.join()
        data[:] = b"?" * len(data)  # another's now
        filler.join()
        for _ in range(4):
            ready = select.select([kernel._socket, kernel.replies.ready], [], [], _PATIENCE_S)[0]
            if kernel._socket in ready:
                got = kernel._socket.recv(MiB)[_OUT.size :]
                if got != letter * len(got):
                    wrong.append(got[:16])
            else:
                assert kernel.passed_on()[0] == _READS
        kernel.heard()
    assert wrong == []


def test_the_end_of_the_mount_reaches_libfuse(kernel: _Kernel) -> None:
    kernel.send(_LOOKUP, 2, b"x\0")
    kernel.replies.stop()
    while kernel.received():
        pass
    assert kernel.exits == [1]
    assert kernel.received() == b""  # as often as it asks


def test_a_connection_that_is_cut_is_the_end(kernel: _Kernel) -> None:
    kernel._socket.close()
    assert kernel.received() == b""
    assert kernel.exits == [1]
