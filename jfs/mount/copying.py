"""COPY_FILE_RANGE, for which pyfuse3 (3.5) has no handler.

Without an answer the kernel copies by itself: it reads all of the source through the mount, and
writes it back. So ``cp`` of an artifact would be a download and an upload of what the server has.
"""

import ctypes
import logging
from collections.abc import Callable
from functools import partial

from jfs.errors import errno_of
from jfs.mount.libfuse import PLACES, Table, adding, handle_of, library

log = logging.getLogger(__name__)

# Request; handle and offset of the source, of the target; length; and what answers with how many
# bytes were copied, or with an errno.
Start = Callable[[int, tuple[int, int], tuple[int, int], int, Callable[[int, int], object]], None]

_HANDLER = ctypes.CFUNCTYPE(None, *[ctypes.c_uint64] * PLACES["copy_file_range"][1])


def copied_by(start: Start) -> Callable[[Table], object]:
    """Return a change for ``libfuse.table_changed_by``, which adds a handler.

    Args:
        start: called for each request; what it is given last is to be called exactly once. Must
            neither block nor raise.
    """

    def handler() -> object:
        failed, copied = library().fuse_reply_err, library().fuse_reply_write
        failed.argtypes = (ctypes.c_uint64, ctypes.c_int)
        copied.argtypes = (ctypes.c_uint64, ctypes.c_size_t)

        def reply(request: int, count: int, code: int) -> object:
            return failed(request, code) if code else copied(request, count)

        return _HANDLER(partial(_request, start, reply))

    return adding("copy_file_range", handler)


def _request(
    start: Start,
    reply: Callable[[int, int, int], object],
    request: int,
    _ino: int,
    offset: int,
    info: int,
    _target: int,
    target_offset: int,
    target_info: int,
    length: int,
    _flags: int,
) -> None:
    """Take a request from libfuse."""
    source = handle_of(info), offset
    target = handle_of(target_info), target_offset
    try:
        start(request, source, target, length, partial(reply, request))
    except Exception as error:  # without an answer the kernel would wait for ever
        log.exception("COPY_FILE_RANGE cannot be answered")
        reply(request, 0, errno_of(error))
