"""READs whose bytes are in memory are answered at once: without a task, beside the interpreter.

Nine of ten READs of a stream find their bytes there. pyfuse3 makes a coroutine for each, which
costs as much again as copying its MiB, and copies that with the interpreter's lock held, while the
threads that receive want it. Here the request is answered before pyfuse3 hears of it: a function of
ours stands before its handler, as in ``withdrawals``, and libfuse copies with the lock released.

What is answered must stand still meanwhile. Buffers are used again on the trio thread alone, and
that is here until the reply is out.
"""

import ctypes
import logging
from collections.abc import Callable
from functools import partial

from jfs.mount.libfuse import PLACES, Table, handle_of, library

log = logging.getLogger(__name__)

_HANDLER = ctypes.PYFUNCTYPE(None, *[ctypes.c_uint64] * PLACES["read"][1])

# Handle, offset, size: the bytes, or None if that takes more.
Read = Callable[[int, int, int], memoryview | None]


def answered_by(read: Read) -> Callable[[Table], object]:
    """Return a change for ``libfuse.table_changed_by``. The last one: others stand behind it.

    Args:
        read: called for each READ. Must not block; what it raises, the handler will meet, too.
    """

    def change(table: Table) -> object:
        reply = library().fuse_reply_buf
        reply.argtypes = (ctypes.c_uint64, ctypes.c_void_p, ctypes.c_size_t)
        proceed = _HANDLER(table.get("read") or 0)
        handler = _HANDLER(partial(_request, read, reply, proceed))
        table.put("read", handler)
        return proceed, handler

    return change


def _request(
    read: Read,
    reply: Callable[[int, int, int], int],
    proceed: Callable[[int, int, int, int, int], None],
    request: int,
    ino: int,
    size: int,
    offset: int,
    info: int,
) -> None:
    """Take a request from libfuse."""
    handle = handle_of(info)
    try:
        data = read(handle, offset, size)
        place = None if data is None else ctypes.addressof(ctypes.c_char.from_buffer(data))
    except Exception as error:
        log.debug("READ is answered by its handler: %r", error)
        data = place = None
    if data is None or place is None:
        proceed(request, ino, size, offset, info)
        return
    failure = reply(request, place, len(data))
    if failure:  # the mount is gone, or whoever asked
        log.debug("READ was not answered: %d", failure)
