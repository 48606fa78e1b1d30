"""Open the bytes of a version, from Artifactory or by a redirect from signed storage. Blocking.

Storage knows nothing of artifacts: whether its bytes are those of the version that was asked for
must be known otherwise, before the first of them is believed. Without that, a reader would get two
versions mixed, and the cache shared by all would keep the mixture under the digest of one.

An answer is *bound* to a version when one of these holds; the first that does is enough:

1. Artifactory sends the bytes itself and states the checksum in the same answer.
2. It redirects to an address that names the content by its checksum, as a real one does. Whatever
   is deployed before or after, this address has these bytes.
3. It redirects, and the storage states the checksum in the answer that carries the bytes.
4. None of these, or the storage cannot be reached from here: Artifactory is asked to send the bytes
   itself (``artifactory.disableRedirect``), which is case 1.
5. It redirects all the same, or states nothing: what it has at the path is asked once more, after
   the head of the answer has come and before its body is read, for each answer anew.

What may happen between the steps, and why no byte of another version gets through:

- A deploy after the version was pinned, before the redirect: in 2 the address names the new
  content, in 3 the storage states it, in 5 the question afterwards is answered with it: Stale.
- A deploy between the redirect and the storage's answer, or between that and the question: 2 and 3
  do not depend on it. In 5 the question is asked last, so it is answered with the new content.
  Asked before, it would be answered with the old one: the order is the proof.
- A deploy while the body is sent: a store sends the object that it has begun to send.
- 5 is blind to one thing: the version was replaced and put back between being pinned and the
  question. 4 is tried first for that reason.

A redirect that states another checksum (its own X-Checksum or ETag) is Stale at once. Only
locations of 2 and 3 are kept, for one version each and for seconds; the storage's statement of 3 is
asked of every answer. The table is bounded. A location that has expired is asked for anew, once.
"""

import contextlib
import functools
import logging
import threading
from dataclasses import dataclass

import httpx
from cachetools import TTLCache

from jfs.artifactory import statements, wire
from jfs.artifactory.access import Access
from jfs.artifactory.exchange import (
    MAX_HOPS,
    REDIRECTS,
    USER_AGENT,
    failure,
    mapped,
    next_hop,
    redacted,
)
from jfs.artifactory.session import CACHE
from jfs.artifactory.transport import BulkTransport
from jfs.errors import (
    AccessDenied,
    NotFound,
    ProtocolViolation,
    RemoteError,
    Stale,
    Unavailable,
)
from jfs.extents import Extent
from jfs.metrics import Metrics
from jfs.model import ArtifactVersion, Checksums, FileInfo, RepoPath

log = logging.getLogger(__name__)

# Signed locations live 30 s by default (artifactory-rest 3.4): reuse one well within that.
_LOCATION_LIFE_S = 10.0
_LOCATIONS_KEPT = 1024
# How long it is remembered that a repository redirects to addresses that name nothing.
_HABIT_LIFE_S = 300.0
_GOOD = (200, 206)
# What storage answers once a location has expired, or its object was moved.
_EXPIRED = (400, 401, 403, 404, 410)
_NO_CONNECTION = (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError)
_WITHOUT_REDIRECT = "artifactory.disableRedirect=true"


@dataclass(frozen=True, slots=True)
class _Location:
    """Where storage has a content; *named*: the address itself says so."""

    url: httpx.URL
    known: Checksums
    named: bool


class Opener:
    """See the module. Any thread.

    Args:
        url: of the service.
    """

    def __init__(
        self,
        url: str,
        access: Access,
        transport: BulkTransport,
        metrics: Metrics,
    ) -> None:
        self._url = url
        self._access = access
        self._transport = transport
        self._metrics = metrics
        self._origin_of = functools.lru_cache(_LOCATIONS_KEPT)(self._made_origin)
        self._lock = threading.Lock()
        self._locations: TTLCache[ArtifactVersion, _Location] = TTLCache(
            _LOCATIONS_KEPT, _LOCATION_LIFE_S
        )
        # By repository, once a location of it named nothing or could not be reached: whether asking
        # it not to redirect helps.
        self._streams: TTLCache[str, bool] = TTLCache(_LOCATIONS_KEPT, _HABIT_LIFE_S)

    def origin(self, version: ArtifactVersion) -> httpx.URL:
        """Return the address of the artifact itself."""
        return self._origin_of(version.path)

    def _made_origin(self, path: RepoPath) -> httpx.URL:
        # Kept: httpx takes a fifth of a millisecond to read an address, for each range.
        return httpx.URL(self._url + wire.encode_path(path))

    def open(self, version: ArtifactVersion, extent: Extent | None) -> httpx.Response:
        """Ask for a range of *version*, or for all of it; the body is the caller's to read.

        Returns:
            An answer of status 200 or 206 that is bound to the version, or any other of
            Artifactory's.
        Raises:
            Stale: there is other content now.
            AccessDenied, Unavailable: the storage does not honour what Artifactory has signed.
        """
        with self._lock:
            kept = self._locations.get(version)
        if kept is not None:
            try:
                response = self._send("GET", kept.url, self._headers(extent, secret=False))
            except RemoteError:
                self._forget(version)
                raise
            if response.status_code in _GOOD and self._still(kept, response):
                return response
            response.close()  # expired, or moved: ask for a new one
            self._forget(version)
        answer = self._ask(version, extent)
        if isinstance(answer, _Expired):
            answer = self._ask(version, extent)  # it took too long to get there: once more
        if isinstance(answer, _Expired):
            raise answer.error()
        return answer

    def _forget(self, version: ArtifactVersion) -> None:
        with self._lock:
            self._locations.pop(version, None)

    def _still(self, kept: _Location, response: httpx.Response) -> bool:
        agreed = statements.agree(statements.of_storage(response.headers), kept.known)
        return agreed is not False if kept.named else agreed is True

    def _ask(self, version: ArtifactVersion, extent: Extent | None) -> "httpx.Response | _Expired":
        """Ask Artifactory, follow, and bind."""
        with self._lock:
            streams = self._streams.get(version.path.repo)
        if streams is not True:
            answer = self._follow(version, extent, self.origin(version))
            if isinstance(answer, _OutOfReach) and streams is False:
                raise answer.error
            if isinstance(answer, _Opaque) and streams is False:
                return self._verified(answer.response, version, answer.known)
            if isinstance(answer, _Opaque):
                answer.response.close()
            elif not isinstance(answer, _OutOfReach):
                return answer
        url = self.origin(version).copy_with(query=_WITHOUT_REDIRECT.encode())
        answer = self._follow(version, extent, url)
        streams = not isinstance(answer, _Opaque | _OutOfReach)
        self._note_habit(version.path.repo, streams=streams)
        if isinstance(answer, _OutOfReach):
            raise answer.error
        if isinstance(answer, _Opaque):
            return self._verified(answer.response, version, answer.known)
        return answer

    def _follow(
        self, version: ArtifactVersion, extent: Extent | None, url: httpx.URL
    ) -> "httpx.Response | _Opaque | _Expired | _OutOfReach":
        """Ask at *url* and follow to where the bytes are; a plain response is bound already."""
        ours = _origin(url)
        known = statements.of_version(version)
        headers = self._headers(extent, secret=True)
        for hop in range(MAX_HOPS):
            try:
                response = self._send("GET", url, headers)
            except Unavailable as error:
                if _origin(url) != ours and isinstance(error.__cause__, _NO_CONNECTION):
                    return _OutOfReach(error)
                raise
            try:
                if response.status_code in REDIRECTS:
                    if _origin(url) == ours:
                        known = self._held(response, version, known)
                    url, headers = next_hop(response, headers)
                    response.close()
                    continue
                if hop == 0:
                    return self._direct(response, version, known)
                return self._of_storage(response, version, known, at_home=_origin(url) == ours)
            except BaseException:
                response.close()
                raise
        raise ProtocolViolation(
            "too many redirects", method="GET", url=redacted(self.origin(version))
        )

    def _held(
        self, response: httpx.Response, version: ArtifactVersion, known: Checksums
    ) -> Checksums:
        """Hold what an answer of Artifactory states against the version. Raises Stale."""
        stated = statements.of_artifactory(response.headers)
        agreed = statements.agree(stated, known)
        if agreed is False:
            raise _stale(response, "other content now")
        return statements.joined(known, response.headers) if agreed else known

    def _direct(
        self, response: httpx.Response, version: ArtifactVersion, known: Checksums
    ) -> httpx.Response:
        """Bind an answer of Artifactory itself (cases 1 and 5)."""
        if response.status_code not in _GOOD:
            return response
        agreed = statements.agree(statements.of_artifactory(response.headers), known)
        if agreed is None:  # a proxy took the headers away
            return self._verified(response, version, known)
        if not agreed:
            raise _stale(response, "other content now")
        return response

    def _of_storage(
        self,
        response: httpx.Response,
        version: ArtifactVersion,
        known: Checksums,
        *,
        at_home: bool,
    ) -> "httpx.Response | _Opaque | _Expired":
        """Bind an answer from behind a redirect (cases 2 and 3); *at_home*: of our own server."""
        url = response.request.url
        if response.status_code in _EXPIRED and not at_home:
            response.close()
            return _Expired(response.status_code, redacted(url))
        if response.status_code not in _GOOD:
            return response
        agreed = statements.agree(statements.of_storage(response.headers), known)
        if agreed is False:
            raise _stale(response, "storage has other content")
        named = statements.names_content(url, version.path, known)
        if not (agreed or named):
            return _Opaque(response, known)
        if not at_home:  # there it would be asked without credentials
            with self._lock:
                self._locations[version] = _Location(url, known, named)
        return response

    def _verified(
        self, response: httpx.Response, version: ArtifactVersion, known: Checksums
    ) -> httpx.Response:
        """Ask what is at the path now that *response* has come (case 5). Raises Stale."""
        if response.status_code not in _GOOD:
            return response
        try:
            if not self._is_there(version, known):
                raise _stale(response, "other content now")
        except BaseException:
            response.close()
            raise
        return response

    def _is_there(self, version: ArtifactVersion, known: Checksums) -> bool:
        """Whether the artifact has the content of the version at this moment.

        Raises:
            ProtocolViolation: nothing that the server states could tell.
        """
        headers = self._headers(None, secret=True)
        with contextlib.closing(self._send("HEAD", self.origin(version), headers)) as head:
            if head.status_code in _GOOD or head.status_code in REDIRECTS:
                agreed = statements.agree(statements.of_artifactory(head.headers), known)
                if agreed is not None:
                    return agreed
        info = self._info(version.path) or self._info(
            RepoPath(version.path.repo + CACHE, version.path.path)
        )
        if info is None or info.size != version.size:
            return False
        agreed = statements.agree([info.checksums], known)
        if agreed is None:
            raise ProtocolViolation(
                "the server states no checksum to hold the bytes against",
                method="GET",
                url=redacted(self.origin(version)),
            )
        return agreed

    def _info(self, path: RepoPath) -> FileInfo | None:
        """Ask ``api/storage`` for a file; None: there is none."""
        address = f"/api/storage{wire.encode_path(path)}"
        url = httpx.URL(self._url + address)
        with contextlib.closing(
            self._send("GET", url, self._headers(None, secret=True))
        ) as response:
            with mapped("GET", url):
                body = response.read()
            if response.status_code != 200:
                error = failure(response, body)
                if isinstance(error, NotFound):
                    return None
                raise error
        info = wire.parse_info(wire.parse_json(body, address), path)
        return info if isinstance(info, FileInfo) else None

    def _note_habit(self, repo: str, *, streams: bool) -> None:
        with self._lock:
            known = repo in self._streams
            self._streams[repo] = streams
        if not known:
            how = "Artifactory is asked for the bytes" if streams else "every answer is checked"
            log.info("%s: redirects to where content cannot be told or reached: %s", repo, how)

    def _headers(self, extent: Extent | None, *, secret: bool) -> dict[str, str]:
        headers = {
            # A proxy that compresses would make ranges of something else.
            "Accept-Encoding": "identity",
            "Cache-Control": "no-transform",
            "User-Agent": USER_AGENT,
            "Accept": "*/*",
        }
        if extent is not None:
            headers["Range"] = f"bytes={extent.start}-{extent.stop - 1}"
        return {**headers, **self._access.authenticator.headers()} if secret else headers

    def _send(self, method: str, url: httpx.URL, headers: dict[str, str]) -> httpx.Response:
        response = self._send_once(method, url, headers)
        renewed = self._access.renewal.headers(response, headers)
        if renewed is None:
            return response
        response.close()
        return self._send_once(method, url, renewed)

    def _send_once(self, method: str, url: httpx.URL, headers: dict[str, str]) -> httpx.Response:
        self._metrics.count("range_requests" if method == "GET" else "requests")
        with mapped(method, url):
            # Not by an httpx client: its cookies, hooks and log cost half a millisecond a range.
            request = httpx.Request(method, url, headers=headers)
            response = self._transport.handle_request(request)
            response.request = request
            return response


@dataclass(frozen=True, slots=True)
class _Opaque:
    """An answer of storage that nothing binds: its address names nothing, and it states nothing."""

    response: httpx.Response
    known: Checksums


@dataclass(frozen=True, slots=True)
class _OutOfReach:
    """No connection to the storage: a firewall lets us to Artifactory alone, perhaps."""

    error: Unavailable


@dataclass(frozen=True, slots=True)
class _Expired:
    """What storage answered instead of the bytes, and where."""

    status: int
    url: str

    def error(self) -> RemoteError:
        """Return the error of a location that does not hold although it is new."""
        missing = self.status in (404, 410)  # not copied there yet, perhaps
        kind, why = (Unavailable, "has not got") if missing else (AccessDenied, "refuses")
        message = f"the storage {why} what Artifactory redirects to"
        return kind(message, status=self.status, method="GET", url=self.url)


def _origin(url: httpx.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port


def _stale(response: httpx.Response, message: str) -> Stale:
    request = response.request
    return Stale(
        message, status=response.status_code, method=request.method, url=redacted(request.url)
    )
