"""The local disk, read by position: whole, whatever it does.

Blocking; any thread.
"""

import os


def read_at(file: int, size: int, position: int) -> bytes:
    """Read *size* bytes; fewer only at the end of the file. Raises OSError.

    A disk that fails answers what it could read before the place, and says so at the next call.
    """
    data = os.pread(file, size, position)
    while len(data) < size and (more := os.pread(file, size - len(data), position + len(data))):
        data += more
    return data
