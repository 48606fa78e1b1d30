"""Credentials to headers. Any thread; files of credentials are read again when they change."""

import base64
import threading
from collections.abc import Mapping

from jfs import threads
from jfs.artifactory.watched import Watched
from jfs.config import Credentials, KeptIn
from jfs.errors import AccessDenied, ConfigError

# API keys start so and are at least this long; everything else in that slot is a token.
_API_KEY_PREFIX, _API_KEY_LENGTH = "AKCp8", 73

# What must never follow a redirect to another origin (artifactory-rest 3.4).
SECRET_HEADERS = ("authorization", "x-jfrog-art-api", "cookie")

# A web token (RFC 7519), which is what Artifactory's access tokens are, begins so: `{"` in base64.
_WEB_TOKEN = "eyJ"


class Authenticator:
    """The headers that authenticate a request; one for both planes.

    Args:
        credentials: those of a file are read again when it changes. While there are none in it, or
            only the beginning of some, those that it held before serve on.
    """

    def __init__(self, credentials: Credentials) -> None:
        self._lock = threading.Lock()
        self._fixed: dict[str, str] = {}
        self._file: Watched[dict[str, str]] | None = None
        self.use(credentials)

    def use(self, credentials: Credentials) -> None:
        """Authenticate with other credentials from the next request on."""
        kept = credentials.kept_in
        with self._lock:
            self._fixed = _headers(credentials)
            file, self._file = self._file, None
            if kept is not None:
                known = self._fixed or None
                if known is None and file is not None and file.paths == (kept.path,):
                    known = file.known
                self._file = _watched(kept, known)

    def headers(self) -> dict[str, str]:
        """Return them as of now. Blocking, for a second at most: not for the event loop.

        The file is looked at in every call: it is the only way to notice that it was rotated before
        the old token fails.

        Raises:
            AccessDenied: the file was never good.
        """
        file = self._file
        return dict(self._fixed) if file is None else _now(file)

    async def current(self) -> dict[str, str]:
        """Return what ``headers`` does, on the event loop. Trio thread only."""
        return self.headers() if self._file is None else await threads.looking(self.headers)

    def renewed(self, sent: Mapping[str, str]) -> bool:
        """Read credentials again after a 401. Blocking, for a second at most.

        Args:
            sent: the headers of the request that was refused.
        Returns:
            Whether there are others now: the request is worth repeating once.
        """
        file = self._file
        try:
            now = self._fixed if file is None else _now(file, surely=True)
        except AccessDenied:
            return False
        return any(sent.get(name) != value for name, value in now.items())

    async def renewed_now(self, sent: Mapping[str, str]) -> bool:
        """Return what ``renewed`` does, on the event loop. Trio thread only."""
        if self._file is None:
            return self.renewed(sent)
        return await threads.looking(self.renewed, sent)


def _now(file: Watched[dict[str, str]], *, surely: bool = False) -> dict[str, str]:
    try:
        return dict(file.now(surely=surely))
    except TimeoutError:
        raise AccessDenied(f"{file.paths[0]}: cannot be read: no answer in time") from None


def _watched(kept: KeptIn, known: dict[str, str] | None) -> Watched[dict[str, str]]:
    def read() -> dict[str, str]:
        try:
            credentials = kept.read()
        except ConfigError as error:
            raise AccessDenied(str(error)) from None
        headers = _headers(credentials)
        if not headers:
            raise AccessDenied(f"{kept.path}: holds no credentials any more")
        if _is_cut(headers, watched.known):
            raise AccessDenied(f"{kept.path}: holds only the beginning of a token")
        return headers

    watched = Watched([kept.path], read, known)
    return watched


def _is_cut(headers: Mapping[str, str], known: Mapping[str, str] | None) -> bool:
    """Whether these are the beginning of what is known, or of a web token."""
    new = _secret(headers)
    old = _secret(known or {})
    if new != old and old.startswith(new):
        return True
    if not new.startswith(_WEB_TOKEN):
        return False
    head, _, rest = new.partition(".")
    signature = rest.partition(".")[2]
    # Signatures of one key have one length.
    of_one_key = old.startswith(f"{head}.")
    return len(signature) < (len(old.rpartition(".")[2]) if of_one_key else 1)


def _secret(headers: Mapping[str, str]) -> str:
    return "".join(headers.values()).removeprefix("Bearer ")


def _headers(credentials: Credentials) -> dict[str, str]:
    if credentials.token is not None:
        return _token_headers(credentials.token.reveal())
    if credentials.user is not None and credentials.password is not None:
        pair = f"{credentials.user}:{credentials.password.reveal()}".encode()
        return {"Authorization": "Basic " + base64.b64encode(pair).decode("ascii")}
    return {}


def _token_headers(token: str) -> dict[str, str]:
    if token.startswith(_API_KEY_PREFIX) and len(token) >= _API_KEY_LENGTH:
        return {"X-JFrog-Art-Api": token}
    return {"Authorization": f"Bearer {token}"}
