"""FALLOCATE, for which pyfuse3 (3.5) has no handler.

Without an answer fallocate(2) says EOPNOTSUPP, and glibc's posix_fallocate(3) writes a byte to
every 4 KiB in turn: 100 MiB took 43 s on a loaded machine. Downloaders reserve their files so.
"""

import ctypes
import logging
from collections.abc import Callable
from functools import partial

from jfs.errors import errno_of
from jfs.mount.libfuse import Table, adding, handle_of, library

log = logging.getLogger(__name__)

# Request, then inode and handle, mode, offset, length, and what answers by an errno.
Start = Callable[[int, tuple[int, int], int, int, int, Callable[[int], object]], None]

_HANDLER = ctypes.CFUNCTYPE(
    None,
    *(ctypes.c_void_p, ctypes.c_uint64, ctypes.c_int, ctypes.c_int64, ctypes.c_int64),
    ctypes.c_void_p,
)


def handled_by(start: Start) -> Callable[[Table], object]:
    """Return a change for ``libfuse.table_changed_by``, which adds a handler.

    Args:
        start: called for each request; what it is given last is to be called exactly once. Must
            neither block nor raise.
    """

    def handler() -> object:
        reply = library().fuse_reply_err
        reply.argtypes = (ctypes.c_void_p, ctypes.c_int)
        return _HANDLER(partial(_request, start, reply))

    return adding("fallocate", handler)


def _request(
    start: Start,
    reply: Callable[[int, int], int],
    request: int,
    ino: int,
    mode: int,
    offset: int,
    length: int,
    info: int,
) -> None:
    """Take a request from libfuse."""
    handle = handle_of(info)
    try:
        start(request, (ino, handle), mode, offset, length, lambda code: reply(request, code))
    except Exception as error:  # without an answer the kernel would wait for ever
        log.exception("FALLOCATE cannot be answered")
        reply(request, errno_of(error))
