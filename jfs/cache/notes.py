"""What is remembered of how contents were read: a word of yes or no by a key, beside the cache.

Each is an empty file that is named for both, so that processes which note at the same time, or are
killed, leave nothing half-written; where two disagree it is no. Few are kept: those noted last.
Blocking; any thread.
"""

import contextlib
import os
import re
from pathlib import Path

_FOLDER = "habits"
_NAME = re.compile(r"([0-9a-f]{32})-([01])")
_MOST = 4096


class Notes:
    """Those in one cache directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory / _FOLDER

    def load(self) -> dict[str, bool]:
        """Return all that is remembered, and drop what is too much. Raises OSError."""
        found: dict[str, tuple[int, bool]] = {}
        with contextlib.suppress(FileNotFoundError), os.scandir(self._directory) as files:
            for file in files:
                if (match := _NAME.fullmatch(file.name)) is not None:
                    key, value = match[1], match[2] == "1"
                    at, other = found.get(key, (0, True))
                    noted = file.stat(follow_symlinks=False).st_mtime_ns
                    found[key] = max(at, noted), value and other
        newest = sorted(found, key=lambda key: found[key][0], reverse=True)
        for key in newest[_MOST:]:
            self._remove(key, True)
            self._remove(key, False)
        return {key: found[key][1] for key in newest[:_MOST]}

    def keep(self, key: str, value: bool) -> None:
        """Remember *value* for *key*, 32 hexadecimal digits. Raises OSError."""
        self._directory.mkdir(mode=0o700, exist_ok=True)
        path = self._path(key, value)
        path.touch(mode=0o600)
        self._remove(key, not value)

    def _remove(self, key: str, value: bool) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path(key, value))

    def _path(self, key: str, value: bool) -> Path:
        return self._directory / f"{key}-{int(value)}"
