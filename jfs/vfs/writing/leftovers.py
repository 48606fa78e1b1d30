"""Names that this node has given to uploads on their way, on disk: what a crash leaves is removed.

A note is a file of the staging directory, locked by the process that has made it for as long as it
lives. Only what has a note is ever removed from a server: what other nodes put there is theirs.
Blocking; any thread.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import secrets
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

from jfs import waiting
from jfs.model import RepoPath, is_passing, passing_name

_NOTE = ".passing"


class Leftover:
    """One note, locked. *path* may be on the server."""

    def __init__(self, note: Path, file: int, path: RepoPath) -> None:
        self._note = note
        self._file = file
        self.path = path

    def remove(self) -> None:
        """Forget it: it is not on the server. Raises OSError."""
        self._note.unlink(missing_ok=True)
        self._close()

    def close(self) -> None:
        """Let go of it; the note stays for the next mount. Does not wait for a disk that hangs."""
        if waiting.may_hang():
            threading.Thread(target=self._close, daemon=True).start()
        else:
            self._close()

    def _close(self) -> None:
        file, self._file = self._file, -1
        if file >= 0:
            os.close(file)


class Leftovers:
    """The notes of one staging directory that are about one *server*.

    Attributes:
        node: 8 digits of this node, for who wonders whose a name is.
    """

    def __init__(self, directory: Path, server: str) -> None:
        self._directory = directory
        self._server = server
        self.node = hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]

    def note(self, folder: RepoPath) -> Leftover:
        """Make a name in *folder*, and note it before it is used. Raises OSError."""
        number = secrets.token_hex(8)
        path = folder.child(passing_name(self.node, number))
        note = self._directory / (number + _NOTE)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        file = os.open(note, flags, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            document = {"server": self._server, "path": str(path)}
            os.write(file, json.dumps(document).encode())
            os.fdatasync(file)
        except BaseException:
            os.close(file)
            note.unlink(missing_ok=True)
            raise
        return Leftover(note, file, path)

    def left(self) -> Iterator[Leftover]:
        """Yield what processes have noted that live no more; the caller closes each."""
        for note in self._directory.glob(f"*{_NOTE}"):
            with contextlib.suppress(OSError):
                file = os.open(note, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
                found = None
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    found = self._read(file)
                    if found is None:
                        note.unlink()  # cut off in the middle: its name was never used
                    elif found[0] == self._server:
                        yield Leftover(note, os.dup(file), found[1])
                finally:
                    os.close(file)

    def _read(self, file: int) -> tuple[str, RepoPath] | None:
        try:
            document = json.loads(os.pread(file, 1 << 16, 0))
            path = RepoPath.parse(document["path"])
        except (ValueError, KeyError, TypeError, AttributeError):
            return None
        if not is_passing(path.name):
            return None
        return str(document.get("server", "")), path
