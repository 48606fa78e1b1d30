"""Many files written and read at once through one mount: ``python -m … ROOT SEED TIMES SECONDS``.

A process of its own, with a thread that writes and one that reads for each of the files. Every file
is written TIMES times at least, and until SECONDS have passed. Whoever reads checks every word: it
belongs to this file, and to this place in it; the file may be written meanwhile. Prints, as JSON,
the last version of each file as ``[write, size]``.
"""

import faulthandler
import json
import os
import random
import sys
import threading
import time
from collections.abc import Callable

from tests.concurrency.content import Content, runs_of, words

FILES = 60
_SIZES, _WEIGHTS = (8, 4096, 50_000, 200_000, 3_000_000), (4, 4, 4, 4, 1)
_VERSIONS = 1 << 20  # of a file at most: a write's number is FILE * _VERSIONS + VERSION
_PIECES = (8192, 65_536, 1 << 20)


def path_of(root: str, number: int) -> str:
    return os.path.join(root, f"folder{number % 4}", f"file{number}")


class Crowd:
    def __init__(self, root: str, seed: str, times: int, seconds: float) -> None:
        self._root = root
        self._seed = seed
        self._times = times
        self._end = time.monotonic() + seconds
        self.last: dict[int, tuple[int, int]] = {}
        self.failures: list[str] = []
        self._done = [threading.Event() for _ in range(FILES)]

    def run(self) -> None:
        for number in range(4):
            os.mkdir(os.path.join(self._root, f"folder{number}"))
        for number in range(FILES):
            self._write(number, 1, random.Random(f"{self._seed}/{number}"))
        threads = [
            threading.Thread(target=self._guarded, args=(task, number))
            for number in range(FILES)
            for task in (self._writes, self._reads)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _guarded(self, task: Callable[[int, random.Random], None], number: int) -> None:
        try:
            task(number, random.Random(f"{self._seed}/{number}/{task.__name__}"))
        except BaseException as error:
            self.failures.append(f"{task.__name__} {number}: {error!r}")
        finally:
            if task == self._writes:
                self._done[number].set()

    def _writes(self, number: int, choose: random.Random) -> None:
        version = 1
        while version <= self._times or (time.monotonic() < self._end and not self.failures):
            version += 1
            self._write(number, version, choose)

    def _write(self, number: int, version: int, choose: random.Random) -> None:
        write, size = number * _VERSIONS + version, choose.choices(_SIZES, _WEIGHTS)[0]
        piece = choose.choice(_PIECES)
        flags = choose.choice((os.O_WRONLY, os.O_RDWR)) | os.O_CREAT | os.O_TRUNC
        file = os.open(path_of(self._root, number), flags, 0o644)
        try:
            for at in range(0, size, piece):
                os.pwrite(file, words(write, at // 8, min(at + piece, size) // 8), at)
        finally:
            os.close(file)
        self.last[number] = write, size

    def _reads(self, number: int, choose: random.Random) -> None:
        while not self._done[number].is_set():
            # Mostly its own, so that every file has somebody.
            other = number if choose.random() < 0.7 else choose.randrange(FILES)
            file = os.open(path_of(self._root, other), os.O_RDONLY)
            try:
                for _ in range(choose.randrange(1, 4)):
                    self._read(file, other, choose)
            finally:
                os.close(file)

    def _read(self, file: int, number: int, choose: random.Random) -> None:
        size = os.fstat(file).st_size
        place = choose.randrange(0, size // 8 + 1) * 8
        data = os.pread(file, choose.choice(_PIECES), place)
        self._check(number, runs_of(data[: len(data) // 8 * 8], place))

    def _check(self, number: int, runs: Content) -> None:
        for write, start, stop in runs:
            if write and write // _VERSIONS != number:
                raise AssertionError(f"words {start} to {stop} of {write}")


def main(root: str, seed: str, times: str, seconds: str) -> None:
    faulthandler.enable()
    crowd = Crowd(root, seed, int(times), float(seconds))
    crowd.run()
    if crowd.failures:
        sys.exit("; ".join(crowd.failures[:10]))
    print(json.dumps(crowd.last))


if __name__ == "__main__":
    main(*sys.argv[1:])
