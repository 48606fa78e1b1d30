"""READs that are answered beside the interpreter: the native part between a kernel and libfuse.

The kernel is one of our own, and libfuse is the test.
"""

import ctypes
import select
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from jfs.extents import KiB, MiB
from jfs.native.replies import Content, Kind, Piece
from tests import compiling
from tests.fakekernel import HANDLE, INTERRUPT, LOOKUP, OUT, PATIENCE_S, READ, READ_IN, Kernel


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    kernel = Kernel()
    yield kernel
    kernel.close()


def _bytes(size: int, first: int = 0) -> bytearray:
    return bytearray((first + at // KiB) % 251 for at in range(size))


def test_what_is_in_memory_is_answered_and_noted(kernel: Kernel) -> None:
    content, data = kernel.content(100 * KiB), _bytes(64 * KiB)
    piece = Piece(content, data, 10 * KiB, 74 * KiB, 74 * KiB)
    kernel.read(2, 12 * KiB, 4 * KiB)
    assert kernel.answer(2) == data[2 * KiB : 6 * KiB]
    assert kernel.heard() == [(12 * KiB, 16 * KiB, Kind.ANSWERED)]
    kernel.nothing_is_passed_on()
    piece.end()


def test_an_answer_ends_with_the_file(kernel: Kernel) -> None:
    content, data = kernel.content(10_000), _bytes(10_000)
    piece = Piece(content, data, 0, 10_000, 10_000)
    kernel.read(2, 8192, 8192)
    assert kernel.answer(2) == data[8192:]
    kernel.read(4, 12288, 4096)  # begins beyond it
    assert kernel.passed_on()[:2] == (READ, 4)
    piece.end()


def test_a_read_of_several_pieces_is_one_answer(kernel: Kernel) -> None:
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


def test_what_is_on_its_way_is_answered_by_who_brings_it(kernel: Kernel) -> None:
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


def test_what_comes_to_two_pieces_is_answered_once_both_are_there(kernel: Kernel) -> None:
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


def test_everything_else_goes_to_libfuse_in_order(kernel: Kernel) -> None:
    content = kernel.content(64 * KiB)
    piece = Piece(content, _bytes(8 * KiB), 0, 8 * KiB, 8 * KiB)
    large = bytes(100 * KiB)
    kernel.send(LOOKUP, 2, b"name\0")
    kernel.read(4, 0, 4 * KiB, handle=HANDLE + 1)
    kernel.read(6, 4 * KiB, 8 * KiB)  # not all of it
    kernel.send(16, 8, large)
    assert kernel.passed_on() == (LOOKUP, 2, b"name\0")
    assert [kernel.passed_on()[:2] for _ in range(2)] == [(READ, 4), (READ, 6)]
    assert kernel.passed_on() == (16, 8, large)
    assert kernel.heard() == []
    kernel.nothing_is_passed_on()
    piece.end()


def test_without_a_handle_libfuse_reads_for_itself(kernel: Kernel) -> None:
    for number in (2, 4):
        kernel.send(LOOKUP, number, bytes(number * 20 * KiB))
    assert kernel.passed_on() == (LOOKUP, 2, bytes(40 * KiB))
    content = kernel.content(64 * KiB)
    assert kernel.passed_on() == (LOOKUP, 4, bytes(80 * KiB))
    piece = Piece(content, _bytes(8 * KiB), 0, 8 * KiB, 8 * KiB)
    kernel.read(6, 0, 4 * KiB)
    assert kernel.answer(6) == _bytes(4 * KiB)
    content.revoke()
    kernel.read(8, 0, 4 * KiB)
    assert kernel.passed_on()[:2] == (READ, 8)
    kernel.nothing_is_passed_on()
    piece.end()


def _end(piece: Piece, content: Content) -> None:
    piece.end()


def _fail(piece: Piece, content: Content) -> None:
    piece.failed()


def _revoke(piece: Piece, content: Content) -> None:
    content.revoke()


def _revoke_one(piece: Piece, content: Content) -> None:
    content.revoke_one(HANDLE)


def _pause(piece: Piece, content: Content) -> None:
    content.replies.pause()


def _nothing(piece: Piece, content: Content) -> None:
    """Who waits for long is passed on, too."""


@pytest.mark.parametrize("happens", [_end, _fail, _revoke, _revoke_one, _pause, _nothing])
def test_a_read_that_waits_is_passed_on(
    kernel: Kernel, happens: Callable[[Piece, Content], None]
) -> None:
    content, data = kernel.content(64 * KiB), bytearray(64 * KiB)
    piece = Piece(content, data, 0, 64 * KiB, 0)
    kernel.read(2, 4 * KiB, 4 * KiB)
    kernel.waits()
    happens(piece, content)
    assert kernel.passed_on() == (
        READ,
        2,
        READ_IN.pack(HANDLE, 4 * KiB, 4 * KiB, 0, 0, 0, 0),
    )
    # What it is known by is there before it.
    noted = [(note.start, note.stop, note.kind) for note in kernel.notes] + kernel.heard()
    assert noted[-1:] == [(4 * KiB, 8 * KiB, Kind.PASSED_ON)]
    piece.filled(64 * KiB)  # answers nobody
    kernel.send(LOOKUP, 4, b"x\0")
    assert kernel.passed_on()[1] == 4
    piece.end()


def test_an_interrupted_read_is_passed_on_before_its_interrupt(kernel: Kernel) -> None:
    content = kernel.content(64 * KiB)
    piece = Piece(content, bytearray(64 * KiB), 0, 64 * KiB, 0)
    kernel.read(2, 0, 4 * KiB)
    kernel.read(4, 4 * KiB, 4 * KiB)
    kernel.send(INTERRUPT, 3, struct.pack("=Q", 2))
    assert [kernel.passed_on()[:2] for _ in range(2)] == [(READ, 2), (INTERRUPT, 3)]
    piece.end()


@pytest.mark.parametrize("happens", [_end, _revoke, _revoke_one, _pause])
def test_nothing_is_answered_any_more(
    kernel: Kernel, happens: Callable[[Piece, Content], None]
) -> None:
    content = kernel.content(64 * KiB)
    piece = Piece(content, _bytes(64 * KiB), 0, 64 * KiB, 64 * KiB)
    kernel.read(2, 0, 4 * KiB)
    kernel.answer(2)
    happens(piece, content)
    kernel.read(4, 0, 4 * KiB)
    assert kernel.passed_on()[:2] == (READ, 4)
    piece.end()


def test_a_handle_that_was_revoked_can_be_published_again(kernel: Kernel) -> None:
    content = kernel.content(64 * KiB)
    piece = Piece(content, _bytes(64 * KiB), 0, 64 * KiB, 64 * KiB)
    for revoke in (content.revoke, kernel.replies.pause):
        revoke()
        assert not content.is_published(HANDLE)
        content.publish(HANDLE)
        kernel.read(2, 0, 4 * KiB)
        kernel.answer(2)
    kernel.replies.end()
    content.publish(HANDLE)
    kernel.read(4, 0, 4 * KiB)
    assert kernel.passed_on()[1] == 4
    piece.end()


def test_nothing_is_answered_once_it_is_revoked_while_another_thread_pauses(
    kernel: Kernel,
) -> None:
    content = kernel.content(64 * KiB)
    piece = Piece(content, _bytes(64 * KiB), 0, 64 * KiB, 64 * KiB)
    kernel.replies.round += 1  # it has come so far
    assert not content.is_published(HANDLE)
    content.revoke()
    kernel.read(2, 0, 4 * KiB)
    assert kernel.passed_on()[:2] == (READ, 2)
    piece.end()


def test_quiet_reads_wake_nobody_and_are_one_note(kernel: Kernel) -> None:
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
    assert select.select([kernel.replies.noted], [], [], PATIENCE_S)[0]
    piece.end()


def test_more_reads_than_notes_lose_none(kernel: Kernel) -> None:
    content = kernel.content(MiB)
    piece = Piece(content, _bytes(MiB), 0, MiB, MiB)
    answered = passed_on = 0
    for number in range(2500):
        kernel.read(2 + number, (number * 7 % 256) * 4 * KiB, 4 * KiB)
        if kernel.is_answered():
            kernel.answer(2 + number)
            answered += 1
        else:
            assert kernel.passed_on()[1] == 2 + number
            passed_on += 1
    assert passed_on
    assert len(kernel.heard()) == answered
    piece.end()


def test_a_buffer_is_given_back_only_after_its_last_reply(kernel: Kernel) -> None:
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
            if kernel.is_answered():
                got = kernel.socket.recv(MiB)[OUT.size :]
                if got != letter * len(got):
                    wrong.append(got[:16])
            else:
                assert kernel.passed_on()[0] == READ
        kernel.heard()
    assert wrong == []


_SCARCE = """
#include <stdlib.h>
__attribute__((weak, visibility("default"))) _Atomic int scarce;
static inline void *scarce_malloc(size_t size) { return scarce ? NULL : malloc(size); }
#define malloc scarce_malloc
#include <errno.h>
#include <sys/epoll.h>
static inline int scarce_add(int epoll, int operation, int file, struct epoll_event *event) {
    if (!scarce || operation != EPOLL_CTL_ADD) return epoll_ctl(epoll, operation, file, event);
    errno = ENOMEM;
    return -1;
}
#define epoll_ctl scarce_add
"""


@pytest.fixture
def scarce_library(tmp_path: Path) -> ctypes.CDLL:
    """A native part that has no memory while its ``scarce`` is set."""
    (tmp_path / "scarce.h").write_text(_SCARCE)
    compiling.build(tmp_path / "scarce.so", "-include", str(tmp_path / "scarce.h"))
    return ctypes.CDLL(str(tmp_path / "scarce.so"))


def test_without_memory_to_have_libfuse_read_again_all_comes_to_it(
    scarce_library: ctypes.CDLL,
) -> None:
    scarce = ctypes.c_int.in_dll(scarce_library, "scarce")
    kernel = Kernel(scarce_library)
    content = kernel.content(64 * KiB)
    scarce.value = 1
    content.revoke()
    scarce.value = 0
    kernel.send(LOOKUP, 2, b"x\0")
    assert kernel.passed_on() == (LOOKUP, 2, b"x\0")
    content.publish(HANDLE)
    content.revoke()
    kernel.send(LOOKUP, 4, b"y\0")
    assert kernel.passed_on() == (LOOKUP, 4, b"y\0")
    kernel.close()


def test_where_there_is_no_memory_a_request_waits_in_the_kernel(
    scarce_library: ctypes.CDLL,
) -> None:
    scarce = ctypes.c_int.in_dll(scarce_library, "scarce")
    kernel = Kernel(scarce_library)
    kernel.send(LOOKUP, 2, b"x\0")
    scarce.value = 1
    kernel.asks_again()  # and other work of its thread goes on
    scarce.value = 0
    assert kernel.passed_on() == (LOOKUP, 2, b"x\0")
    piece = Piece(kernel.content(64 * KiB), _bytes(64 * KiB), 0, 64 * KiB, 64 * KiB)
    scarce.value = 1
    kernel.send(LOOKUP, 4, b"y\0")
    kernel.asks_again()
    scarce.value = 0
    assert kernel.passed_on() == (LOOKUP, 4, b"y\0")
    piece.end()
    kernel.close()


def test_the_end_of_the_mount_reaches_libfuse(kernel: Kernel) -> None:
    kernel.send(LOOKUP, 2, b"x\0")
    kernel.replies.stop()
    while kernel.received():
        pass
    assert kernel.exits == [1]
    assert kernel.received() == b""  # as often as it asks


def test_a_connection_that_is_cut_is_the_end(kernel: Kernel) -> None:
    kernel.socket.close()
    assert kernel.received() == b""
    assert kernel.exits == [1]
