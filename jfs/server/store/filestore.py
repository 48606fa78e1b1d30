"""Content on disk, one file per sha256; knows nothing of repositories.

Content enters as a temporary file of the same filesystem and is published by a rename, so that a
name in the store is always a whole file. Blocking; any thread, one thread per ``Incoming`` at a
time. ``OpenFiles`` may be asked on an event loop: it never touches the disk.
"""

import contextlib
import hashlib
import os
import secrets
import shutil
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from jfs.extents import KiB, MiB
from jfs.model import Checksums

_COPY_BYTES = 1 * MiB
_PARALLEL_BYTES = 64 * KiB  # hashed in 0.2 ms: waking three threads costs as much
_IDLE_FILES = 64  # far below the usual limit of 1024 descriptors


@dataclass(frozen=True, slots=True)
class Blob:
    """Content: its size in bytes and checksums; sha1 and md5 are absent where only declared."""

    sha256: str
    sha1: str | None
    md5: str | None
    size: int

    @property
    def checksums(self) -> Checksums:
        return Checksums(self.sha256, self.sha1, self.md5)

    @property
    def etag(self) -> str:
        """The bare sha1 (artifactory-rest 3.1); stable per content where sha1 is not known."""
        return self.sha1 or self.sha256[:40]

    @property
    def known(self) -> dict[str, str]:
        """The checksums by name, as JSON has them."""
        return named_checksums(self.checksums)


def named_checksums(sums: Checksums) -> dict[str, str]:
    """Return those that are known, by name."""
    pairs = (("sha1", sums.sha1), ("md5", sums.md5), ("sha256", sums.sha256))
    return {name: value for name, value in pairs if value}


class Incoming:
    """Content on its way in: a temporary file, hashed as it is written."""

    def __init__(self, path: Path, hashers: Executor) -> None:
        self.path = path
        self._file = path.open("xb", buffering=0)
        self._hashers = hashers
        self._size = 0
        self._hashing: list[Future[None]] = []  # of the last piece
        self._hashes = [
            hashlib.new(name, usedforsecurity=False) for name in ("md5", "sha256", "sha1")
        ]

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append. *data* must not change afterwards: it may be hashed until ``finish``.

        Hashing and writing all drop the GIL, so each has a thread of its own; md5 takes twice as
        long as the others, so it may lag a piece behind.
        """
        view = memoryview(data)
        lagging = self._hashing
        if view.nbytes < _PARALLEL_BYTES:
            _wait(lagging)
            self._hashing = []
            for one in self._hashes:
                one.update(view)
        else:
            previous: Sequence[Future[None] | None] = lagging or [None] * len(self._hashes)
            self._hashing = [
                self._hashers.submit(_update, one, view, before)
                for one, before in zip(self._hashes, previous, strict=True)
            ]
        self._size += view.nbytes
        while view:
            view = view[self._file.write(view) :]
        _wait(lagging)

    def finish(self, *, durable: bool) -> Blob:
        """Close the file; with *durable* its bytes survive a loss of power."""
        if durable:
            os.fdatasync(self._file.fileno())
        self._file.close()
        _wait(self._hashing)
        md5, sha256, sha1 = (each.hexdigest() for each in self._hashes)
        return Blob(sha256, sha1, md5, self._size)

    def discard(self) -> None:
        """Remove what was not published; harmless afterwards."""
        self._file.close()
        self.path.unlink(missing_ok=True)


def _update(digest: "hashlib._Hash", data: memoryview, before: "Future[None] | None") -> None:
    """Hash a piece after the one before it, which was submitted earlier and so is under way."""
    if before is not None:
        before.result()
    digest.update(data)


def _wait(hashing: "Sequence[Future[None]]") -> None:
    for each in hashing:
        each.result()


class OpenFiles:
    """Files that were open lately, each lent to one request at a time: its position is its own."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: OrderedDict[IO[bytes], str] = OrderedDict()
        self._closed = False

    def borrow(self, sha256: str) -> IO[bytes] | None:
        """Take an open file, if one is idle. Never blocks on the disk."""
        with self._lock:
            for file, key in reversed(self._idle.items()):
                if key == sha256:
                    del self._idle[file]
                    return file
        return None

    def give_back(self, sha256: str, file: IO[bytes]) -> None:
        """Keep a file for the next request, unless its content was removed meanwhile."""
        with self._lock:
            if not self._closed and os.fstat(file.fileno()).st_nlink:
                self._idle[file] = sha256
                if len(self._idle) <= _IDLE_FILES:
                    return
                file, _ = self._idle.popitem(last=False)
        file.close()

    def forget(self, sha256: str) -> None:
        """Close what is idle of removed content, so that the disk gets its space back."""
        with self._lock:
            gone = [file for file, key in self._idle.items() if key == sha256]
            for file in gone:
                del self._idle[file]
        for file in gone:
            file.close()

    def close(self) -> None:
        with self._lock:
            self._closed = True
            files, self._idle = list(self._idle), OrderedDict()
        for file in files:
            file.close()


class Filestore:
    """See the module.

    Args:
        hashers: threads that hash while ``Incoming.write`` writes.
    """

    def __init__(self, directory: Path, hashers: Executor) -> None:
        self._content = directory / "filestore"
        self._incoming = directory / "incoming"
        self._hashers = hashers
        self.open_files = OpenFiles()
        self._content.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(self._incoming, ignore_errors=True)  # what a crash left half-done
        self._incoming.mkdir(exist_ok=True)

    def close(self) -> None:
        self.open_files.close()

    def receive(self) -> Incoming:
        return Incoming(self._temporary(), self._hashers)

    def adopt(self, source: Path) -> Path:
        """Take *source* in as a temporary file: a hard link, or a copy that keeps its holes."""
        path = self._temporary()
        try:
            os.link(source, path)
        except OSError:
            try:
                _copy_sparse(source, path)
            except BaseException:
                path.unlink(missing_ok=True)
                raise
        return path

    def publish(self, temporary: Path, sha256: str, *, durable: bool) -> None:
        """Rename a temporary file to its name; content that is there already is left alone."""
        path = self._path(sha256)
        if path.exists():
            temporary.unlink()
            return
        path.parent.mkdir(exist_ok=True)
        temporary.rename(path)
        if durable:
            _sync(path.parent)
            _sync(self._content)

    def open(self, sha256: str, size: int) -> IO[bytes]:
        """Open content. Raises OSError, also when it is not of that size."""
        if idle := self.open_files.borrow(sha256):
            return idle
        file = self._path(sha256).open("rb", buffering=0)
        found = os.fstat(file.fileno()).st_size
        if found != size:
            file.close()
            raise OSError(f"{self._path(sha256)} has {found} bytes, not {size}")
        return file

    def remove(self, sha256: str) -> None:
        """Remove content that nothing names; who has it open reads on."""
        with contextlib.suppress(FileNotFoundError):
            self._path(sha256).unlink()
        self.open_files.forget(sha256)

    def sweep(self, is_known: Callable[[str], bool]) -> int:
        """Remove content that nothing names, as a crash leaves it; return how many files.

        Only before serving: what is just being published has no name yet.
        """
        removed = 0
        for path in self._content.glob("??/*"):
            if not is_known(path.name):
                path.unlink()
                removed += 1
        return removed

    def _path(self, sha256: str) -> Path:
        return self._content / sha256[:2] / sha256

    def _temporary(self) -> Path:
        return self._incoming / secrets.token_hex(12)


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _copy_sparse(source: Path, target: Path) -> None:
    with source.open("rb", buffering=0) as reader, target.open("xb", buffering=0) as writer:
        size = os.fstat(reader.fileno()).st_size
        os.truncate(writer.fileno(), size)
        position = 0
        while position < size:
            try:
                start = os.lseek(reader.fileno(), position, os.SEEK_DATA)
            except OSError:  # ENXIO: only a hole is left
                break
            stop = os.lseek(reader.fileno(), start, os.SEEK_HOLE)
            for offset in range(start, stop, _COPY_BYTES):
                data = os.pread(reader.fileno(), min(_COPY_BYTES, stop - offset), offset)
                os.pwrite(writer.fileno(), data, offset)
            position = stop
