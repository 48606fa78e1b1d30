"""Credentials to headers. Any thread; the token file is read again when it changes."""

import base64
import os
import threading
from pathlib import Path

from jfs.config import Credentials
from jfs.errors import AccessDenied

# API keys start so and are at least this long; everything else in that slot is a token.
_API_KEY_PREFIX, _API_KEY_LENGTH = "AKCp8", 73

# What must never follow a redirect to another origin (artifactory-rest 3.4).
SECRET_HEADERS = ("authorization", "x-jfrog-art-api", "cookie")


class Authenticator:
    """The headers that authenticate a request."""

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials
        self._lock = threading.Lock()
        self._stamp: tuple[int, int, int] | None = None
        self._token = ""

    def use(self, credentials: Credentials) -> None:
        """Authenticate with other credentials from the next request on."""
        with self._lock:
            self._credentials = credentials
            self._stamp = None

    def headers(self) -> dict[str, str]:
        """Return them as of now.

        The token file is looked at in every call: a ``stat`` of a local file, and the only way to
        notice that it was rotated before the old token fails.

        Raises:
            AccessDenied: the token file cannot be read, or is empty.
        """
        credentials = self._credentials
        if credentials.token_file is not None:
            return _token_headers(self._from_file(credentials.token_file))
        if credentials.token is not None:
            return _token_headers(credentials.token.reveal())
        if credentials.user is not None and credentials.password is not None:
            pair = f"{credentials.user}:{credentials.password.reveal()}".encode()
            return {"Authorization": "Basic " + base64.b64encode(pair).decode("ascii")}
        return {}

    def _from_file(self, path: Path) -> str:
        with self._lock:
            try:
                status = os.stat(path)
                stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
                if stamp != self._stamp:
                    self._token = path.read_text(encoding="utf-8").strip()
                    self._stamp = stamp
            except (OSError, UnicodeDecodeError) as error:
                reason = error.strerror if isinstance(error, OSError) else "not text"
                raise AccessDenied(f"token file {path}: {reason}") from None
            if not self._token or not self._token.isascii() or not self._token.isprintable():
                raise AccessDenied(f"token file {path}: holds no token")
            return self._token


def _token_headers(token: str) -> dict[str, str]:
    if token.startswith(_API_KEY_PREFIX) and len(token) >= _API_KEY_LENGTH:
        return {"X-JFrog-Art-Api": token}
    return {"Authorization": f"Bearer {token}"}
