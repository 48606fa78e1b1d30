"""The local disk, read by position: whole, whatever it does.

Blocking; any thread.
"""

import ctypes
import errno
import os

_PIECE = 1 << 20
_KEEP_SIZE, _PUNCH_HOLE = 1, 2  # linux/falloc.h


def copy_at(source: int, start: int, target: int, position: int, size: int) -> int:
    """Copy up to *size* bytes, at least 1; the file system may share them. Raises OSError."""
    try:
        count = os.copy_file_range(source, target, size, start, position)
    except OSError:  # not every file system can; what else is wrong is said again
        count = os.pwrite(target, os.pread(source, min(size, _PIECE), start), position)
    if not count:
        raise OSError(f"a file ends at {start}")
    return count


def allocate(file: int, start: int, size: int) -> None:
    """Have room for bytes of a file, or beyond its end, whose size stays. Raises OSError."""
    _fallocate(file, _KEEP_SIZE, start, size)


def punch(file: int, start: int, size: int) -> None:
    """Make bytes of a file zeros, and give their room back. Raises OSError."""
    _fallocate(file, _KEEP_SIZE | _PUNCH_HOLE, start, size)


def _fallocate(file: int, mode: int, start: int, size: int) -> None:
    call = ctypes.CDLL(None, use_errno=True).fallocate
    call.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    if call(file, mode, start, size):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def read_at(file: int, size: int, position: int) -> bytes:
    """Read *size* bytes; fewer only at the end of the file. Raises OSError.

    A disk that fails answers what it could read before the place, and says so at the next call.
    """
    data = os.pread(file, size, position)
    while len(data) < size and (more := os.pread(file, size - len(data), position + len(data))):
        data += more
    return data


def fill(buffer: memoryview, file: int, position: int, flags: int = 0) -> bool:
    """As ``read_at``, into *buffer*; False: the file ends before it is full. Raises OSError.

    Args:
        flags: of preadv2(2).
    """
    done = 0
    while done < len(buffer):
        count = os.preadv(file, [buffer[done:]], position + done, flags)
        if not count:
            return False
        done += count
    return True


def copy_data(file: int, out: int) -> None:
    """Copy the bytes of a file into an empty one, holes as holes. Blocking. Raises OSError."""
    size = os.fstat(file).st_size
    os.ftruncate(out, size)
    position = 0
    while position < size:
        try:
            position = os.lseek(file, position, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole
                return
            raise
        stop = os.lseek(file, position, os.SEEK_HOLE)
        while position < stop:
            data = os.pread(file, min(_PIECE, stop - position), position)
            if not data:
                raise OSError(errno.EIO, "a staged file became shorter")
            while data:
                written = os.pwrite(out, data, position)
                position += written
                data = data[written:]
