"""Contents that say of every word who wrote it and where it belongs. Pure.

A content is made of words of 8 bytes: the number of the write that made it, then the word's own
place in the file. From any piece of a file a reader can tell which writes it saw, and whether
something lies where it does not belong. A piece is told as runs ``(write, start, stop)``, in words;
write 0 is a hole, and a negative one says that the word is at a wrong place, or damaged.
"""

from array import array
from collections.abc import Iterable

WORD = 8

Run = tuple[int, int, int]
Content = tuple[Run, ...]


def words(write: int, start: int, stop: int) -> bytes:
    """Make words *start* to *stop* of a write."""
    return array("Q", range(write << 32 | start, write << 32 | stop)).tobytes()


def whole(write: int, size: int) -> Content:
    """Describe a file of *size* bytes that one write made."""
    return ((write, 0, size // WORD),) if size else ()


def size_of(content: Content) -> int:
    """Return the size in bytes."""
    return content[-1][2] * WORD if content else 0


def bytes_of(content: Content) -> bytes:
    return b"".join(words(*run) if run[0] else bytes((run[2] - run[1]) * WORD) for run in content)


def runs_of(data: bytes | memoryview, offset: int) -> Content:
    """Describe bytes that were read at *offset*, which is a multiple of 8."""
    if len(data) % WORD:
        return ((-1, offset // WORD, (offset + len(data)) // WORD + 1),)
    found = array("Q")
    found.frombytes(data)
    runs: list[Run] = []
    place, here = offset // WORD, 0
    while here < len(found):
        write = found[here] >> 32
        length = _same(found, here, write, place + here)
        if not length:  # a wrong word: its run is one word long, neighbours are joined below
            write, length = -1 - write, 1
        _append(runs, (write, place + here, place + here + length))
        here += length
    return tuple(runs)


def _same(found: "array[int]", here: int, write: int, place: int) -> int:
    """Count the words from *here* on that belong to *write* (0: that are zero)."""
    low, high = 0, len(found) - here
    step = high  # the whole rest first: it nearly always is of one write
    while low < high:
        middle = low + step
        expected = (
            array("Q", range(write << 32 | (place + low), write << 32 | (place + middle)))
            if write
            else array("Q", bytes(step * WORD))
        )
        if found[here + low : here + middle] == expected:
            low = middle
        else:
            high = middle - 1
        step = -(-(high - low) // 2)
    return low


def overlaid(base: Content, patch: Run) -> Content:
    """Describe a content after a write into it; beyond its end there is a hole first."""
    write, start, stop = patch
    runs = list(_between(base, 0, start))
    end = runs[-1][2] if runs else 0
    if end < start:
        runs.append((0, end, start))
    result: list[Run] = []
    for run in (*runs, (write, start, stop), *_between(base, stop, 1 << 32)):
        _append(result, run)
    return tuple(result)


def piece(content: Content, offset: int, size: int) -> Content:
    """Describe what a read of *size* bytes at *offset* returns."""
    return tuple(_between(content, offset // WORD, (offset + size) // WORD))


def joined(pieces: Iterable[Content]) -> Content:
    """Describe adjoining pieces as one."""
    result: list[Run] = []
    for each in pieces:
        for run in each:
            _append(result, run)
    return tuple(result)


def _between(content: Content, start: int, stop: int) -> Iterable[Run]:
    for write, first, last in content:
        if first < stop and last > start:
            yield write, max(first, start), min(last, stop)


def _append(runs: list[Run], run: Run) -> None:
    if runs and runs[-1][0] == run[0] and runs[-1][2] == run[1]:
        runs[-1] = (run[0], runs[-1][1], run[2])
    elif run[1] < run[2]:
        runs.append(run)
