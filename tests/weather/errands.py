"""Run errands in a mount, and know what must come of each: ``python -m … ROOT COUNT SEED``.

Each of a few threads has a folder of its own, ``wN``, and knows everything that is in it: every
byte, every property, every name. What a call answers is held against that. At the end the process
prints, as JSON, what has to be on the server: digest and properties of every file.

A process of its own, which has nothing of the server in it. Standard library only.
"""

import hashlib
import json
import os
import random
import sys
import threading
from collections.abc import Callable, Iterator

WORKERS = 6
_PIECE = 1 << 20


def content(name: str) -> bytes:
    """Return what a file that was there before holds: 64 KiB, other bytes for every name."""
    seed = hashlib.sha256(name.encode()).digest()
    return b"".join(seed + number.to_bytes(8, "big") for number in range((1 << 16) // 40))


def cold(worker: int, number: int) -> str:
    """Return the name of a file that one worker reads once."""
    return f"w{worker}/cold/{number}"


class Worker:
    """One thread and its folder.

    Attributes:
        files: what must be there by name: bytes, and properties.
    """

    def __init__(self, root: str, number: int, seed: str) -> None:
        self._root = root
        self._number = number
        self._home = f"w{number}"
        self._choose = random.Random(f"{seed}/{number}")
        self._names = 0
        self._read = 0
        self.files: dict[str, tuple[bytes, dict[str, str]]] = {}
        self._folders: set[str] = {f"{self._home}/cold"}
        self.calls = 0
        self._folders.add(f"{self._home}/made")
        os.mkdir(self._at(f"{self._home}/made"))
        for _ in range(3):
            self.create()

    def step(self) -> None:
        """Do one thing."""
        kinds: list[tuple[Callable[[], None], int]] = [
            (self.stat, 3),
            (self.stat_missing, 1),
            (self.ls, 2),
            (self.read, 3),
            (self.read_cold, 3),
            (self.getfattr, 2),
            (self.setfattr, 2),
            (self.create, 3),
            (self.append, 1),
            (self.replace, 1),
            (self.rename, 2),
            (self.rename_over, 1),
            (self.rename_folder, 1),
            (self.unlink, 2),
            (self.folder, 1),
            (self.statfs, 1),
        ]
        ((what, _),) = self._choose.choices(kinds, [weight for _, weight in kinds])
        try:
            what()
        except OSError as error:
            raise AssertionError(f"{what.__name__}: {error}") from error
        self.calls += 1

    # what asks

    def stat(self) -> None:
        name = self._some()
        size = os.stat(self._at(name)).st_size
        assert size == len(self.files[name][0]), f"{name}: {size} bytes"

    def stat_missing(self) -> None:
        try:
            os.stat(self._at(f"{self._home}/made/nothing"))
        except FileNotFoundError:
            return
        raise AssertionError("nothing is there")

    def ls(self) -> None:
        folder = self._choose.choice(sorted(self._folders - {f"{self._home}/cold"}))
        found = set(os.listdir(self._at(folder)))
        below = [*self.files, *self._folders]
        right = {name.rpartition("/")[2] for name in below if name.rpartition("/")[0] == folder}
        assert found == right, f"{folder}: {found ^ right}"

    def read(self) -> None:
        name = self._some()
        assert self._content(name) == self.files[name][0], f"{name}: other bytes"

    def read_cold(self) -> None:
        name = cold(self._number, self._read)
        self._read += 1
        assert self._content(name) == content(name), f"{name}: other bytes"

    def getfattr(self) -> None:
        name = self._some()
        path, right = self._at(name), self.files[name][1]
        names = [each for each in os.listxattr(path) if not each.startswith("user.jfs.")]
        found = {each.removeprefix("user."): os.getxattr(path, each).decode() for each in names}
        assert found == right, f"{name}: {found}, not {right}"

    def statfs(self) -> None:
        assert os.statvfs(self._root).f_namemax

    # what changes

    def setfattr(self) -> None:
        name = self._some()
        value = f"v{self._choose.randrange(10**9)}"
        key = self._choose.choice(["env", "stage"])
        os.setxattr(self._at(name), f"user.{key}", value.encode())
        self.files[name][1][key] = value

    def create(self) -> None:
        name, data = self._new(), self._bytes()
        flags = os.O_WRONLY | os.O_CREAT | self._choose.choice([os.O_EXCL, os.O_TRUNC])
        self._write(name, flags, data)
        self.files[name] = data, {}

    def append(self) -> None:
        name, data = self._some(), self._bytes()
        before, properties = self.files[name]
        self._write(name, os.O_WRONLY | os.O_APPEND, data)
        self.files[name] = before + data, properties

    def replace(self) -> None:
        name, data = self._some(), self._bytes()
        self._write(name, os.O_WRONLY | os.O_TRUNC, data)
        self.files[name] = data, self.files[name][1]

    def rename(self) -> None:
        old, new = self._some(), self._new()
        os.rename(self._at(old), self._at(new))
        self.files[new] = self.files.pop(old)

    def rename_over(self) -> None:
        old, new = self._some(), self._some()
        if old != new:
            os.rename(self._at(old), self._at(new))
            data, properties = self.files.pop(old)
            # A file without any that takes the place of one with properties keeps them.
            self.files[new] = data, properties or self.files[new][1]

    def rename_folder(self) -> None:
        old, new = self._new(), self._new()
        os.mkdir(self._at(old))
        data = self._bytes()
        self._write(f"{old}/inside", os.O_WRONLY | os.O_CREAT, data)
        os.rename(self._at(old), self._at(new))
        self._folders.add(new)
        self.files[f"{new}/inside"] = data, {}

    def unlink(self) -> None:
        if len(self.files) > 3:
            name = self._some()
            os.unlink(self._at(name))
            del self.files[name]

    def folder(self) -> None:
        name = self._new()
        os.mkdir(self._at(name))
        os.rmdir(self._at(name))

    def _at(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _some(self) -> str:
        return self._choose.choice(list(self.files))

    def _new(self) -> str:
        self._names += 1
        return f"{self._home}/made/{self._names}"

    def _bytes(self) -> bytes:
        return self._choose.randbytes(self._choose.choice([0, 1, 3000, 100_000]))

    def _content(self, name: str) -> bytes:
        file = os.open(self._at(name), os.O_RDONLY)
        try:
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
            return b"".join(iter(lambda: os.read(file, _PIECE), b""))
        finally:
            os.close(file)

    def _write(self, name: str, flags: int, data: bytes) -> None:
        file = os.open(self._at(name), flags, 0o644)
        try:
            assert os.write(file, data) == len(data)
        finally:
            os.close(file)


def main(root: str, count: str, seed: str) -> None:
    left = iter(range(int(count)))
    lock = threading.Lock()
    workers: list[Worker] = []
    failures: list[str] = []

    def taken() -> Iterator[int]:
        while not failures:
            with lock:
                number = next(left, None)
            if number is None:
                return
            yield number

    def work(number: int) -> None:
        try:
            worker = Worker(root, number, seed)
            workers.append(worker)
            for _ in taken():
                worker.step()
        except BaseException as error:
            failures.append(f"worker {number}: {error}")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(WORKERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    right = {
        name: [hashlib.sha256(data).hexdigest(), properties]
        for worker in workers
        for name, (data, properties) in worker.files.items()
    }
    calls = sum(worker.calls for worker in workers)
    print(json.dumps({"failures": failures, "calls": calls, "files": right}))


if __name__ == "__main__":
    main(*sys.argv[1:])
