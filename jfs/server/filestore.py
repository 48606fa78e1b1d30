"""Content on disk: one file per sha256, received beside its place and renamed into it.

Blocking calls for worker threads; ``Upload`` belongs to one request. A server that is killed
leaves at most files under ``incoming/``, which the next start removes, or a content file that no
row of the database names, which ``sweep`` removes.
"""

import hashlib
import os
import shutil
import tempfile
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

_HASHERS = ThreadPoolExecutor(4, thread_name_prefix="jfs-serve-hash")


@dataclass(frozen=True, slots=True)
class Blob:
    """Identity of stored bytes."""

    sha256: str
    sha1: str
    md5: str
    size: int


class Upload:
    """Bytes on their way in; ``close`` removes what was not taken over."""

    def __init__(self, directory: Path) -> None:
        handle, name = tempfile.mkstemp(dir=directory)
        self.path = Path(name)
        self._file = os.fdopen(handle, "wb", buffering=0)
        self._hashes = [hashlib.new(name) for name in ("sha256", "sha1", "md5")]
        self.size = 0

    def write(self, data: bytes | bytearray) -> None:
        """Append; the three hashes run beside the write, each in a thread (they drop the lock)."""
        pending = [_HASHERS.submit(one.update, data) for one in self._hashes]
        view = memoryview(data)
        while view:
            view = view[self._file.write(view) :]
        self.size += len(data)
        for one in pending:
            one.result()

    def finish(self) -> Blob:
        """Make the bytes durable and give their identity."""
        os.fsync(self._file.fileno())
        self._file.close()
        sha256, sha1, md5 = (one.hexdigest() for one in self._hashes)
        return Blob(sha256, sha1, md5, self.size)

    def close(self) -> None:
        self._file.close()
        self.path.unlink(missing_ok=True)


class Filestore:
    """See the module."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory / "filestore"
        self._incoming = directory / "incoming"
        shutil.rmtree(self._incoming, ignore_errors=True)
        self._incoming.mkdir(parents=True)
        self._directory.mkdir(exist_ok=True)
        self._lock = threading.Lock()

    def receive(self) -> Upload:
        """Begin an upload."""
        return Upload(self._incoming)

    def place_of(self, sha256: str) -> Path:
        """Where content lies."""
        return self._directory / sha256[:2] / sha256

    def adopt(self, source: Path, sha256: str) -> None:
        """Move a finished upload into its place; what is there already stays."""
        place = self.place_of(sha256)
        with self._lock:
            if place.exists():
                return
            place.parent.mkdir(exist_ok=True)
            os.replace(source, place)
        _sync(place.parent)

    def link(self, source: Path, sha256: str) -> None:
        """Take a local file over without reading it, by a hard link where possible."""
        upload = self.receive()
        upload.close()
        try:
            os.link(source, upload.path)
        except OSError:
            shutil.copyfile(source, upload.path)
        self.adopt(upload.path, sha256)

    def remove(self, sha256: str) -> None:
        """Remove content that nothing names any more; who has it open reads on."""
        self.place_of(sha256).unlink(missing_ok=True)

    def sweep(self, known: Iterable[str]) -> int:
        """Remove every content that is not *known*; give how many. Only before serving."""
        keep = set(known)
        removed = 0
        for place in self._directory.glob("??/*"):
            if place.name not in keep:
                place.unlink()
                removed += 1
        return removed


def _sync(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
