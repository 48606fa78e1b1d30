"""Receive many pieces in one call, and sum their blocks while the CPU still has them in its cache.

A piece of 1 MiB that returns to Python waits for the interpreter's lock, mostly to say that nobody
waits for it. Here whoever wants bytes leaves word of it in memory that both see (``Arrival``), and
the call returns when they have come.
"""

import ctypes
import errno
import functools
import os
from array import array
from collections.abc import Callable
from functools import partial

from jfs import native
from jfs.native.sums import hashing


class _Words(ctypes.Structure):
    """``struct jfs_arrival``."""

    _fields_ = (
        ("filled", ctypes.c_uint64),
        ("wanted", ctypes.c_uint64),
        ("piece", ctypes.c_uint64),
    )


class _Run(ctypes.Structure):
    """``struct jfs_run``."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("size", ctypes.c_uint64),
        ("position", ctypes.c_uint64),
        ("hash", ctypes.c_void_p),
        ("block", ctypes.c_uint64),
        ("first", ctypes.c_uint64),
        ("words", ctypes.c_void_p),
        ("count", ctypes.c_uint64),
        ("summed", ctypes.c_uint64),
    )


# Of what `Run.receive_by` hands to a call: the run, from where, to where, piece, who is told.
RUN_TYPES = (ctypes.POINTER(_Run), *(ctypes.c_uint64,) * 3, ctypes.POINTER(_Words))


@functools.cache
def _looks(library: ctypes.CDLL) -> ctypes.PyDLL:
    """Return the part whose calls take no time: they keep the interpreter's lock."""
    looks = ctypes.PyDLL(library._name, handle=library._handle)
    address, word = ctypes.POINTER(_Words), ctypes.c_uint64
    looks.jfs_arrival_filled.restype = looks.jfs_arrival_want.restype = word
    looks.jfs_arrival_filled.argtypes = (address,)
    looks.jfs_arrival_want.argtypes = looks.jfs_arrival_set.argtypes = (address, word)
    looks.jfs_arrival_tell.argtypes = (address, word)
    looks.jfs_arrival_set.restype = looks.jfs_arrival_tell.restype = None
    return looks


@functools.cache
def _receive(library: ctypes.CDLL) -> "ctypes._NamedFuncPointer":
    call = library.jfs_receive
    call.restype = ctypes.c_int64
    call.argtypes = (ctypes.c_int, *RUN_TYPES)
    return call


class Arrival:
    """How far a file has come, of a place in it: one thread fills, others look. Any thread.

    The order of memory is kept: who sees a byte counted sees the byte.
    """

    __slots__ = ("_looks", "_words")

    def __init__(self, library: ctypes.CDLL, filled: int) -> None:
        self._looks = _looks(library)
        self._words = _Words(filled, 0, 0)

    @property
    def filled(self) -> int:
        """Every byte before it is there."""
        return int(self._looks.jfs_arrival_filled(self._words))

    @filled.setter
    def filled(self, filled: int) -> None:
        self._looks.jfs_arrival_set(self._words, filled)

    def want(self, until: int) -> int:
        """Have the call that fills return when it gets to *until*, 0: nowhere; return ``filled``.

        One of the two sees the other: it returns, or *until* was there already.
        """
        return int(self._looks.jfs_arrival_want(self._words, until))

    def tell(self, piece: int) -> None:
        """Have READs answered as what they want comes; see ``jfs.native.replies``.

        Args:
            piece: the pointer of a ``Piece``, which whoever fills must hold; 0: of none.
        """
        self._looks.jfs_arrival_tell(self._words, piece)


def arrival(filled: int) -> Arrival | None:
    """Make one; None: there is no native part."""
    library = native.library()
    return Arrival(library, filled) if library is not None else None


class Run:
    """A run of bytes that is received into memory. One thread at a time.

    Args:
        data: all of it; held while this object is.
        position: of its first byte in the file: the start of a block.
        block_size: of the sums; 0: none are wanted.
        arrival: told of what comes.
    Attributes:
        first: the number of the first block.
    """

    def __init__(
        self,
        library: ctypes.CDLL,
        data: memoryview,
        position: int,
        block_size: int,
        arrival: Arrival | None,
    ) -> None:
        self._call = _receive(library)
        self._arrival = arrival
        self._memory = (ctypes.c_uint8 * len(data)).from_buffer(data)
        self._run = _Run(ctypes.addressof(self._memory), len(data), position)
        self._words: array[int] | None = None
        self.first = position // block_size if block_size else 0
        address = hashing() if block_size else None
        if address is not None:
            count = -(-len(data) // block_size)
            self._words = array("Q", bytes(8 * count))
            self._room = (ctypes.c_uint64 * count).from_buffer(self._words)
            self._run.hash, self._run.block = address, block_size
            self._run.first = self.first
            self._run.words, self._run.count = ctypes.addressof(self._room), count

    def receive(self, socket: int, start: int, stop: int, piece: int) -> int:
        """Receive places *start* to *stop* of the file, as far as one call goes.

        Args:
            socket: blocking, with a deadline of its own for each receive.
            piece: bytes that one receive waits for.
        Returns:
            How many bytes came: fewer when the deadline has passed, the body ends, or a byte that
            is wanted is there. 0: it has ended.
        Raises:
            OSError: as recv(2). BlockingIOError: nothing came in time.
        """
        count = self.receive_by(partial(self._call, socket), start, stop, piece)
        if count < 0:
            assert count != -errno.EINVAL, "a run, or a place in it, that cannot be"
            raise OSError(-count, os.strerror(-count))
        return int(count)

    def receive_by(
        self, call: Callable[..., int], start: int, stop: int, piece: int, *more: object
    ) -> int:
        """As ``receive``, by another call of the native part; return what that returns.

        Args:
            call: takes the run, two places in it, *piece*, who is told of it, and *more*.
        """
        position = self._run.position
        words = self._arrival._words if self._arrival is not None else None
        return call(self._run, start - position, stop - position, piece, words, *more)

    def sums(self) -> "array[int] | None":
        """Return the sum of every block; None: some of them were not made."""
        return self._words if self._run.summed == self._run.size else None


def run(data: memoryview, position: int, block_size: int, arrival: Arrival | None) -> Run | None:
    """Make one; None: there is no native part."""
    library = native.library()
    return Run(library, data, position, block_size, arrival) if library is not None else None
