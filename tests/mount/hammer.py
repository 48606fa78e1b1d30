"""Read a file of known content in every way, by several threads: ``python -m … PATH ROUNDS SEED``.

A process of its own: a page fault on a mapping holds the interpreter's lock, and the server that
answers it may live in the test's process. The content tells its own place: byte 4096 * n begins a
page that ``page(n)`` makes.
"""

import hashlib
import mmap
import os
import random
import sys
import threading
from pathlib import Path

PAGE = 4096


def page(number: int) -> bytes:
    """Return page *number* of the content."""
    return hashlib.sha256(number.to_bytes(8, "big")).digest() * (PAGE // 32)


def write_content(path: Path, pages: int) -> None:
    """Make the file that ``hammer`` expects."""
    with path.open("wb") as file:
        for number in range(pages):
            file.write(page(number))


def _check(data: bytes | memoryview, place: int) -> None:
    first = place // PAGE
    expected = b"".join(page(first + i) for i in range((place % PAGE + len(data)) // PAGE + 1))
    start = place % PAGE
    if bytes(data) != expected[start : start + len(data)]:
        raise SystemExit(f"wrong bytes at {place} + {len(data)}")


def _one(path: str, rounds: int, choose: random.Random, failures: list[str]) -> None:
    try:
        for _ in range(rounds):
            file = os.open(path, os.O_RDONLY)
            size = os.fstat(file).st_size
            kind = choose.randrange(4)
            if kind == 0:  # a mapping, page by page, as a model loader faults
                with mmap.mmap(file, 0, prot=mmap.PROT_READ) as mapped:
                    start = choose.randrange(size // PAGE) * PAGE
                    for place in range(start, min(size, start + 64 * PAGE), PAGE):
                        _check(mapped[place : place + 8], place)
            elif kind == 1:  # forward
                start = choose.randrange(size)
                for place in range(start, min(size, start + 8 * 2**20), 2**20):
                    _check(os.pread(file, 2**16, place), place)
                    os.pread(file, 2**20, place)
            elif kind == 2:  # here and there
                for _ in range(8):
                    place = choose.randrange(size)
                    _check(os.pread(file, choose.randrange(1, 200_000), place), place)
            else:  # let the kernel forget what it has
                os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(file)
    except BaseException as error:
        failures.append(repr(error))


def main(path: str, rounds: str, seed: str) -> None:
    failures: list[str] = []
    threads = [
        threading.Thread(
            target=_one, args=(path, int(rounds), random.Random(f"{seed}/{i}"), failures)
        )
        for i in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        sys.exit("; ".join(failures))


if __name__ == "__main__":
    main(*sys.argv[1:])
