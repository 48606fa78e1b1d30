"""A request that is withdrawn between waiting and reading stops nothing."""

import ctypes
import errno
import os

from jfs.answers import Answers
from jfs.mount import requests


async def test_a_read_that_would_block_is_interrupted() -> None:
    """As libfuse reads: outside Python, which would begin again."""
    libc = ctypes.PyDLL(None, use_errno=True)  # keeps the interpreter's lock, as pyfuse3 does
    reader, writer = os.pipe()
    requests.prepare()
    try:
        for _ in range(3):
            os.write(writer, b"a request")
            await requests.Trio(Answers()).lowlevel.wait_readable(reader)
            assert os.read(reader, 100) == b"a request"  # it is withdrawn
            assert libc.read(reader, ctypes.create_string_buffer(100), 100) == -1
            assert ctypes.get_errno() == errno.EINTR
    finally:
        requests.rest()
        os.close(reader)
        os.close(writer)
