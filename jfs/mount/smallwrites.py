"""Small WRITEs are answered at once: without a task of pyfuse3's, as READs are in ``atonce``.

A WRITE of 4 KiB took 400 µs in a task and two threads, and takes 60 so; 40 of them are the event
loop's, which every request costs, and a local disk needs 4. What a handler would do more, or for
longer, it does.
"""

import ctypes
import logging
from collections.abc import Callable
from functools import partial

from jfs.mount.libfuse import PLACES, Table, handle_of, library
from jfs.vfs.smallwrites import LARGEST

log = logging.getLogger(__name__)

# In struct fuse_bufvec with its first struct fuse_buf, a public interface (fuse_common.h).
_COUNT, _INDEX, _SKIPPED, _SIZE, _FLAGS, _MEMORY = 0, 8, 16, 24, 32, 40
_HANDLER = ctypes.PYFUNCTYPE(None, *[ctypes.c_uint64] * PLACES["write_buf"][1])

# Handle, offset, bytes, and what answers by an errno: whether it was, or will be.
Write = Callable[[int, int, bytes, Callable[[int], object]], bool]


class SmallWrites:
    """The change of libfuse's table, and what it has begun."""

    def __init__(self, write: Write) -> None:
        self._write = write
        self._ended = False

    def end(self) -> None:
        """Answer nothing any more: what libfuse knows of requests is about to be freed."""
        self._ended = True

    def change(self, table: Table) -> object:
        """A change for ``libfuse.table_changed_by``. The last one: others stand behind it."""
        libfuse = library()
        wrote, failed = libfuse.fuse_reply_write, libfuse.fuse_reply_err
        wrote.argtypes = (ctypes.c_uint64, ctypes.c_size_t)
        failed.argtypes = (ctypes.c_void_p, ctypes.c_int)
        proceed = _HANDLER(table.get("write_buf") or 0)

        def answer(request: int, size: int, code: int) -> None:
            if self._ended:
                return
            failure = failed(request, code) if code else wrote(request, size)
            if failure:  # the mount is gone, or whoever asked
                log.debug("WRITE was not answered: %d", failure)

        handler = _HANDLER(partial(self._request, answer, proceed))
        table.put("write_buf", handler)
        return proceed, handler

    def _request(
        self,
        answer: Callable[[int, int, int], None],
        proceed: Callable[[int, int, int, int, int], None],
        request: int,
        ino: int,
        buffers: int,
        offset: int,
        info: int,
    ) -> None:
        """Take a request from libfuse."""
        word = ctypes.c_uint64.from_address
        size = word(buffers + _SIZE).value
        # One piece of memory, none of it taken, and no descriptor of a pipe.
        plain = (word(buffers + _COUNT).value, word(buffers + _INDEX).value) == (1, 0) and not (
            word(buffers + _SKIPPED).value or ctypes.c_uint32.from_address(buffers + _FLAGS).value
        )
        is_answered = False
        if plain and size <= LARGEST:
            handle = handle_of(info)
            try:
                data = ctypes.string_at(word(buffers + _MEMORY).value, size)
                is_answered = self._write(handle, offset, data, partial(answer, request, size))
            except Exception:
                log.exception("WRITE is answered by its handler")
        if not is_answered:
            proceed(request, ino, buffers, offset, info)
