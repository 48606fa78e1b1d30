"""Replies to READs beside the interpreter: what the native part is told, and tells.

While any handle is published, a thread of the native part reads what the kernel asks. A READ of
such a handle whose bytes are in memory, or on their way there, is answered without Python: by that
thread, or by the one that brings the last of its bytes. Everything else goes to libfuse as ever.

Python decides what is answered, and hears of every READ, if later: ``Replies.hear``.
"""

import contextlib
import ctypes
import mmap
import os
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

_PLACE, _PLACES = ctypes.c_uint64, (ctypes.c_uint64, ctypes.c_uint64)
_AT_ONCE = 256  # notes


class _Note(ctypes.Structure):
    """struct jfs_note."""

    _fields_ = (
        ("handle", ctypes.c_uint64),
        ("start", ctypes.c_uint64),
        ("stop", ctypes.c_uint64),
        ("kind", ctypes.c_uint64),
        ("count", ctypes.c_uint64),
        ("is_quiet", ctypes.c_uint64),
    )


class Kind(IntEnum):
    """What became of a READ."""

    ANSWERED = 0
    WAITS = 1  # it will be answered, or passed on
    ANSWERED_LATE = 2  # after that
    PASSED_ON = 3  # to libfuse, so it comes again


@dataclass(frozen=True, slots=True)
class Note:
    """READs of one handle, one after another.

    Attributes:
        start, stop: what they read, cut at the end of the file.
        count: how many they are.
    """

    handle: int
    start: int
    stop: int
    kind: Kind
    count: int


Listener = Callable[[Note], None]


class _Calls:
    """The functions of ``reply.c`` and ``requests.c``.

    Those that copy, or wait for a copy, release the interpreter's lock. The others take less time
    than that: they wait for nothing.
    """

    def __init__(self, native: ctypes.CDLL) -> None:
        quick = ctypes.PyDLL(native._name, handle=native._handle)
        pointer, none = ctypes.c_void_p, None

        def call(library: ctypes.CDLL, name: str, result: Any, *arguments: Any) -> Any:
            # Of our own: others may have declared those of the library otherwise.
            kind = ctypes.PYFUNCTYPE if library is quick else ctypes.CFUNCTYPE
            return kind(result, *arguments)((name, library))

        self.new = call(quick, "jfs_replies_new", ctypes.c_int, pointer, pointer)
        self.free = call(native, "jfs_replies_free", none, pointer)
        self.ready = call(quick, "jfs_replies_ready", ctypes.c_int, pointer)
        self.noted = call(quick, "jfs_replies_noted", ctypes.c_int, pointer)
        self.start = call(quick, "jfs_replies_start", ctypes.c_int, pointer, ctypes.c_int)
        self.stop = call(native, "jfs_replies_stop", none, pointer)
        self.notes = call(
            quick, "jfs_replies_notes", ctypes.c_size_t, pointer, pointer, ctypes.c_size_t
        )
        self.revoke = call(native, "jfs_replies_revoke", none, pointer, _PLACE)
        self.revoke_all = call(native, "jfs_replies_revoke_all", none, pointer)
        self.reader_new = call(quick, "jfs_reader_new", pointer, pointer, _PLACE)
        self.reader_free = call(native, "jfs_reader_free", none, pointer)
        self.publish = call(quick, "jfs_reader_publish", ctypes.c_int, pointer, _PLACE)
        self.reader_revoke = call(native, "jfs_reader_revoke", none, pointer)
        self.quiet = call(quick, "jfs_reader_quiet", none, pointer, *_PLACES)
        self.piece_new = call(quick, "jfs_piece_new", pointer, pointer, pointer, *_PLACES, _PLACE)
        self.filled = call(native, "jfs_piece_filled", none, pointer, _PLACE)
        self.failed = call(quick, "jfs_piece_failed", none, pointer)
        self.end = call(native, "jfs_piece_end", none, pointer)
        self.piece_free = call(native, "jfs_piece_free", none, pointer)
        self.receive = ctypes.cast(native.jfs_replies_receive, pointer).value


class Replies:
    """Those of one mount.

    Args:
        native: the native part.
        exit_session: address of libfuse's ``fuse_session_exit``.
    Attributes:
        receive: address of what replaces ``fuse_session_receive_buf``.
        round: how often ``pause`` was called.
    Raises:
        OSError, AttributeError: it cannot be made.
    """

    def __init__(self, native: ctypes.CDLL, exit_session: int) -> None:
        self.calls = _Calls(native)
        made = ctypes.c_void_p()
        failure = self.calls.new(exit_session, ctypes.byref(made))
        if failure:
            raise OSError(-failure, os.strerror(-failure))
        self.pointer = made.value
        self.receive = self.calls.receive
        self.ready: int = self.calls.ready(self.pointer)
        self.noted: int = self.calls.noted(self.pointer)
        self.round = 0
        self.is_open = True
        self._listener: Listener | None = None
        self._notes = (_Note * _AT_ONCE)()

    def start(self, device: int) -> None:
        """Read what the kernel asks through *device*. Raises OSError."""
        failure = self.calls.start(self.pointer, device)
        if failure:
            raise OSError(-failure, os.strerror(-failure))

    def stop(self) -> None:
        """Read nothing more of the kernel. Takes no longer than one answer."""
        self.end()
        self.calls.stop(self.pointer)

    def tell(self, listener: Listener) -> None:
        """Have *listener* called by ``hear``."""
        self._listener = listener

    def hear(self) -> None:
        """Have every READ noted that was taken until now. In the thread of the listener."""
        while count := self.calls.notes(self.pointer, self._notes, _AT_ONCE):
            notes = [
                Note(note.handle, note.start, note.stop, Kind(note.kind), note.count)
                for note in self._notes[:count]
            ]
            if self._listener is not None:
                for each in notes:
                    self._listener(each)

    def pause(self) -> None:
        """Answer no READ of any handle until that is published again. Any thread."""
        self.round += 1
        self.calls.revoke_all(self.pointer)

    def end(self) -> None:
        """Answer no READ from now on."""
        self.is_open = False
        self.pause()

    def __del__(self) -> None:
        if getattr(self, "pointer", None):
            self.calls.free(self.pointer)


class Content:
    """What READs of one content are answered from. One thread, that of the listener.

    Args:
        size: of the file, bytes.
    """

    def __init__(self, replies: Replies, size: int) -> None:
        self.replies = replies
        self._calls = replies.calls
        self._handles: set[int] = set()
        self._round = replies.round
        self.pointer = self._calls.reader_new(replies.pointer, size)
        if not self.pointer:
            raise MemoryError

    def is_published(self, handle: int) -> bool:
        """Whether READs of a handle are answered from the pieces."""
        if self._round != self.replies.round:
            self._round = self.replies.round
            self._handles.clear()
        return handle in self._handles

    def publish(self, handle: int) -> None:
        """Have the READs of a handle answered from the pieces."""
        is_open = self.replies.is_open and not self.is_published(handle)
        if is_open and not self._calls.publish(self.pointer, handle):
            self._handles.add(handle)

    def revoke(self, *, hears: bool = True) -> None:
        """Have no READ answered any more; returns when none is, and all were noted.

        Args:
            hears: else they will be.
        """
        # Also if we know of no handle: another thread may be about to end a pause of all.
        self._handles.clear()
        self._calls.reader_revoke(self.pointer)
        if hears:
            self.replies.hear()

    def revoke_one(self, handle: int) -> None:
        """As ``revoke``, of one handle."""
        self._handles.discard(handle)
        self._calls.revoke(self.replies.pointer, handle)
        self.replies.hear()

    def quiet(self, start: int, stop: int) -> None:
        """Say that READs of these bytes need not be noted before any other."""
        self._calls.quiet(self.pointer, start, stop)

    def __del__(self) -> None:
        if getattr(self, "pointer", None):
            self._calls.reader_free(self.pointer)


class Piece:
    """Bytes of a content that come, or have come, to a buffer.

    Args:
        start, stop: which they are.
        filled: up to where they have come.
    Attributes:
        pointer: valid while this object is.
    """

    def __init__(
        self,
        content: Content,
        buffer: mmap.mmap | bytearray,
        start: int,
        stop: int,
        filled: int,
    ) -> None:
        self._content = content  # the pointer is into it
        self._calls = content.replies.calls
        self._buffer = buffer  # may be read until ``end``
        place = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
        self.pointer = self._calls.piece_new(content.pointer, place, start, stop, filled)
        if not self.pointer:
            raise MemoryError

    def filled(self, upto: int) -> None:
        """Say that everything before *upto* is there, and answer who waited for it. Any thread."""
        self._calls.filled(self.pointer, upto)

    def failed(self) -> None:
        """Say that nothing more will come."""
        self._calls.failed(self.pointer)

    def end(self) -> None:
        """Return when nobody reads the buffer any more. It takes no longer than to copy a MiB."""
        self._calls.end(self.pointer)

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError):
            self._calls.piece_free(self.pointer)
