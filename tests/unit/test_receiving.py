"""Receiving and summing in the native part, on sockets of our own."""

import random
import socket
import struct
import threading
from collections.abc import Iterator
from itertools import pairwise

import pytest
import xxhash

from jfs.cache.blockmap import checksums
from jfs.extents import KiB, MiB
from jfs.native import receiving
from jfs.native.receiving import Arrival, Run

DATA = random.Random(15).randbytes(2 * MiB + 100 * KiB + 77)
BLOCK = 32 * KiB
PIECE = 256 * KiB
START = 10 * BLOCK
STOP = START + len(DATA)


class Line:
    """Two ends of a connection; *ours* has a deadline."""

    def __init__(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.theirs = socket.create_connection(listener.getsockname())
            self.ours, _ = listener.accept()
        self.set_deadline(30)
        self._sender = threading.Thread()

    def set_deadline(self, seconds: int, microseconds: int = 0) -> None:
        value = struct.pack("@ll", seconds, microseconds)
        self.ours.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, value)

    def send(self, data: bytes) -> None:
        self._sender = threading.Thread(target=self.theirs.sendall, args=(data,))
        self._sender.start()

    def close(self) -> None:
        self.ours.close()
        if self._sender.ident is not None:
            self._sender.join(30)
        self.theirs.close()


@pytest.fixture
def line() -> Iterator[Line]:
    line = Line()
    yield line
    line.close()


def make(size: int = len(DATA), arrival: Arrival | None = None) -> tuple[bytearray, Run]:
    buffer = bytearray(size)
    run = receiving.run(memoryview(buffer), START, BLOCK, arrival)
    assert run is not None
    return buffer, run


def the_arrival() -> Arrival:
    arrival = receiving.arrival(START)
    assert arrival is not None
    return arrival


def expected(data: bytes) -> list[int]:
    starts = range(0, len(data), BLOCK)
    return [
        xxhash.xxh3_64_intdigest(data[at : at + BLOCK], number) or 1
        for number, at in enumerate(starts, 10)
    ]


def test_all_comes_in_one_call_with_its_sums(line: Line) -> None:
    arrival = the_arrival()
    buffer, run = make(arrival=arrival)
    line.send(DATA + b"the next answer")
    assert run.receive(line.ours.fileno(), START, STOP, PIECE) == len(DATA)
    assert bytes(buffer) == DATA
    assert arrival.filled == STOP
    sums = run.sums()
    assert sums is not None
    assert sums.tolist() == expected(DATA)
    assert line.ours.recv(100) == b"the next answer"  # not one byte of it was taken, nor waited for


@pytest.mark.parametrize("until", [1, PIECE, PIECE + 1, MiB + 5, len(DATA)])
def test_it_returns_when_what_is_wanted_is_there(line: Line, until: int) -> None:
    arrival = the_arrival()
    buffer, run = make(arrival=arrival)
    assert arrival.want(START + until) == START
    line.send(DATA)
    count = run.receive(line.ours.fileno(), START, STOP, PIECE)
    assert until <= count < until + PIECE
    assert arrival.want(START + until) == START + count  # late: it is there
    # What was wanted once does not end later calls.
    if count < len(DATA):
        rest = run.receive(line.ours.fileno(), START + count, STOP, PIECE)
        assert count + rest == len(DATA)
    assert bytes(buffer) == DATA


def test_what_comes_is_seen_by_others_meanwhile(line: Line) -> None:
    """Who looks sees ever more, and never a byte that is not there yet."""
    arrival = the_arrival()
    buffer, run = make(arrival=arrival)
    seen = [START]
    wrong: list[int] = []
    over = threading.Event()

    def look() -> None:
        while seen[-1] < STOP and not over.is_set():
            filled = arrival.filled
            if filled != seen[-1]:
                seen.append(filled)
                if buffer[: filled - START] != DATA[: filled - START]:
                    wrong.append(filled)

    looker = threading.Thread(target=look)
    looker.start()
    line.send(DATA)
    for at in range(0, len(DATA), MiB):
        stop = min(START + at + MiB, STOP)
        assert run.receive(line.ours.fileno(), START + at, stop, PIECE) == stop - START - at
    looker.join(30)
    over.set()
    looker.join(30)
    assert wrong == []
    assert all(before < after for before, after in pairwise(seen))


def test_silence_ends_at_the_deadline_of_the_socket(line: Line) -> None:
    buffer, run = make()
    line.set_deadline(0, 50_000)
    line.send(DATA[: MiB + 7])
    file = line.ours.fileno()
    count = 0
    while count < MiB + 7:  # a busy machine may pause in the middle
        count += run.receive(file, START + count, STOP, PIECE)
    with pytest.raises(BlockingIOError):
        run.receive(file, START + count, STOP, PIECE)
    assert run.sums() is None
    line.set_deadline(30)
    line.send(DATA[MiB + 7 :])
    while count < len(DATA):
        count += run.receive(file, START + count, STOP, PIECE)
    assert bytes(buffer) == DATA
    sums = run.sums()
    assert sums is not None
    assert sums.tolist() == expected(DATA)


def test_a_body_that_ends_early(line: Line) -> None:
    _, run = make()
    line.theirs.sendall(DATA[:1000])
    line.theirs.shutdown(socket.SHUT_WR)
    assert run.receive(line.ours.fileno(), START, STOP, PIECE) == 1000
    assert run.receive(line.ours.fileno(), START + 1000, STOP, PIECE) == 0


def test_a_connection_that_is_cut(line: Line) -> None:
    _, run = make()
    line.theirs.sendall(DATA[:1000])
    assert run.receive(line.ours.fileno(), START, START + 1000, PIECE) == 1000
    line.theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    line.theirs.close()
    with pytest.raises(ConnectionResetError):
        run.receive(line.ours.fileno(), START + 1000, STOP, PIECE)
    with pytest.raises(OSError, match="Bad file"):
        run.receive(-1, START + 1000, STOP, PIECE)


def test_what_comes_once_more_is_summed_once_more(line: Line) -> None:
    """A try that failed may have brought more than was told."""
    _, run = make()
    file = line.ours.fileno()
    line.send(bytes(MiB) + DATA[100_000:])
    assert run.receive(file, START, START + MiB, PIECE) == MiB
    run.receive(file, START + 100_000, STOP, PIECE)
    sums = run.sums()
    assert sums is not None
    assert sums.tolist() == expected(bytes(100_000) + DATA[100_000:])


@pytest.mark.parametrize(
    ("start", "stop", "piece"),
    [
        (START - 1, STOP, PIECE),
        (START, STOP + 1, PIECE),
        (START, START, PIECE),
        (STOP, START, PIECE),
        (START, STOP, 0),
        (START, 2**64 - 1, PIECE),
    ],
)
def test_nothing_is_written_beyond_the_run(line: Line, start: int, stop: int, piece: int) -> None:
    buffer, run = make()
    line.theirs.sendall(DATA[:1000])
    with pytest.raises(AssertionError, match="cannot be"):
        run.receive(line.ours.fileno(), start, stop, piece)
    assert bytes(buffer) == bytes(len(DATA))


@pytest.mark.usefixtures("road")
@pytest.mark.parametrize("size", [1, BLOCK - 1, BLOCK, BLOCK + 1, 4 * BLOCK, len(DATA)])
def test_sums_are_the_same_on_both_roads(size: int) -> None:
    assert checksums(memoryview(DATA)[:size], BLOCK, 10).tolist() == expected(DATA[:size])
    assert checksums(memoryview(bytearray(DATA))[:size], BLOCK, 10).tolist() == expected(
        DATA[:size]
    )


def test_a_buffer_is_held_while_it_is_received_into() -> None:
    buffer, run = make()
    with pytest.raises(BufferError):
        buffer.clear()
    del run
    buffer.clear()
