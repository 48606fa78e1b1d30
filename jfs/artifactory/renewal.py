"""What to do about a 401: read credentials again, and ask once more. One for both planes.

A token may have been rotated between being read and being refused. And the part of the server that
knows tokens may have been away for a moment: so what has not changed is tried again too, but once a
second at most for all calls, and never a password, of which Artifactory counts wrong ones and locks
the user out.
"""

import threading
import time
from collections.abc import Mapping

import httpx

from jfs.artifactory.auth import SECRET_HEADERS, Authenticator

_REFUSED = 401
_UNCHANGED_EVERY_S = 1.0


class Renewal:
    """See the module. Any thread, unless a method says otherwise."""

    def __init__(self, authenticator: Authenticator) -> None:
        self._authenticator = authenticator
        self._lock = threading.Lock()
        self._tried_at = float("-inf")

    def headers(self, response: httpx.Response, sent: Mapping[str, str]) -> dict[str, str] | None:
        """Return the headers to repeat a request with, once; None: that is of no use.

        Blocking, for a second at most: not for the event loop.

        Args:
            sent: the headers of the request; without credentials in them it is not repeated.
        """
        if not _is_refused(response, sent):
            return None
        changed = self._authenticator.renewed(sent)
        if not changed and not self._may_try_unchanged(sent):
            return None
        return {**_without_secrets(sent), **self._authenticator.headers()}

    async def headers_now(
        self, response: httpx.Response, sent: Mapping[str, str]
    ) -> dict[str, str] | None:
        """Return what ``headers`` does, on the event loop. Trio thread only."""
        if not _is_refused(response, sent):
            return None
        changed = await self._authenticator.renewed_now(sent)
        if not changed and not self._may_try_unchanged(sent):
            return None
        return {**_without_secrets(sent), **await self._authenticator.current()}

    def _may_try_unchanged(self, sent: Mapping[str, str]) -> bool:
        if any(value.startswith("Basic ") for value in sent.values()):
            return False
        now = time.monotonic()
        with self._lock:
            if now < self._tried_at + _UNCHANGED_EVERY_S:
                return False
            self._tried_at = now
        return True


def _is_refused(response: httpx.Response, sent: Mapping[str, str]) -> bool:
    return response.status_code == _REFUSED and any(n.lower() in SECRET_HEADERS for n in sent)


def _without_secrets(sent: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in sent.items() if name.lower() not in SECRET_HEADERS}
