"""The data plane: bytes of artifacts by HTTP Range. Blocking; worker threads, several at a time."""

import logging
import re
import threading
import time

import httpx
from cachetools import TTLCache

from jfs.artifactory import retry, wire
from jfs.artifactory.auth import Authenticator
from jfs.artifactory.exchange import (
    MAX_HOPS,
    REDIRECTS,
    USER_AGENT,
    failure,
    mapped,
    next_hop,
    redacted,
    tls_context,
)
from jfs.artifactory.transport import BodyStream, BulkTransport
from jfs.config import ServerSettings
from jfs.errors import JfsError, NotFound, ProtocolViolation, Stale, Unavailable
from jfs.extents import Extent, KiB, MiB
from jfs.metrics import Metrics
from jfs.model import ArtifactVersion, RepoPath
from jfs.protocols import Sink

log = logging.getLogger(__name__)

# Signed locations live 30 s by default (artifactory-rest 3.4): reuse one well within that.
_LOCATION_LIFE_S = 10.0
_LOCATIONS_KEPT = 1024
_FIRST_PIECE, _PIECE = 256 * KiB, 1 * MiB
_ETAG = re.compile(r'(?:W/)?"?([0-9a-f]{40})"?')


class HttpRangeSource:
    """``RangeSource`` over HTTP; see the protocol for the contract."""

    def __init__(self, settings: ServerSettings, metrics: Metrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self._authenticator = Authenticator(settings.credentials)
        self._transport = BulkTransport(
            tls_context(settings),
            connect_timeout_s=settings.connect_timeout_s,
            idle_timeout_s=settings.idle_timeout_s,
        )
        self._client = httpx.Client(transport=self._transport, follow_redirects=False)
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._locations: TTLCache[RepoPath, httpx.URL] = TTLCache(_LOCATIONS_KEPT, _LOCATION_LIFE_S)

    def close(self) -> None:
        self._closed.set()
        self._transport.close()

    def fetch(self, version: ArtifactVersion, extent: Extent, sink: Sink) -> None:
        position = extent.start
        delays = retry.delays()
        deadline = time.monotonic() + self._settings.request_deadline_s
        while True:
            progress = _Progress(position, extent.stop, sink)
            try:
                self._fetch_once(version, Extent(position, extent.stop), progress)
                return
            except JfsError as error:
                self._metrics.count("fetch_errors")
                if self._closed.is_set():
                    raise Unavailable("the mount is ending") from error
                if progress.position > position:
                    # It moved: a long download over a bad line is not given up.
                    position = progress.position
                    delays = retry.delays()
                    deadline = time.monotonic() + self._settings.request_deadline_s
                wait = retry.wait_before_retry(error, next(delays), deadline - time.monotonic())
                if wait is None:
                    raise
                log.debug("%s %s: asking again: %s", version.path, extent, error)
            self._closed.wait(wait)

    def _fetch_once(self, version: ArtifactVersion, extent: Extent, progress: "_Progress") -> None:
        response, direct = self._open(version, extent)
        try:
            skip = self._check(response, version, extent, direct=direct)
            body = response.extensions["body"]
            assert isinstance(body, BodyStream)
            with mapped("GET", response.request.url):
                _discard(body, skip)
                # The first piece is small: somebody may wait for no more than its first page.
                piece = _FIRST_PIECE
                while progress.position < extent.stop:
                    count = body.readinto(progress.sink.buffer()[:piece])
                    if not count:
                        raise Unavailable("the body ended too early")
                    progress.advance(count)
                    piece = _PIECE
        finally:
            self._metrics.count("received_bytes", progress.position - extent.start)
            response.close()

    def _open(self, version: ArtifactVersion, extent: Extent) -> tuple[httpx.Response, bool]:
        """Ask for the range; follow to signed storage. True: Artifactory itself answered."""
        origin = httpx.URL(self._settings.url + wire.encode_path(version.path))
        kept = self._location(version.path)
        if kept is not None:
            response = self._send(kept, self._headers(extent, secret=False))
            if response.status_code in (200, 206):
                return response, False
            response.close()  # expired, or moved: ask for a new one
            self._forget_location(version.path)
        url, headers = origin, self._headers(extent, secret=True)
        for hop in range(MAX_HOPS):
            response = self._send(url, headers)
            if response.status_code not in REDIRECTS:
                if hop and response.status_code in (200, 206):
                    self._keep_location(version.path, url)
                return response, hop == 0
            try:
                url, headers = next_hop(response, headers)
            finally:
                response.close()
        raise ProtocolViolation("too many redirects", method="GET", url=redacted(origin))

    def _headers(self, extent: Extent, *, secret: bool) -> dict[str, str]:
        headers = {
            "Range": f"bytes={extent.start}-{extent.stop - 1}",
            # A proxy that compresses would make ranges of something else.
            "Accept-Encoding": "identity",
            "Cache-Control": "no-transform",
            "User-Agent": USER_AGENT,
            "Accept": "*/*",
        }
        return {**headers, **self._authenticator.headers()} if secret else headers

    def _send(self, url: httpx.URL, headers: dict[str, str]) -> httpx.Response:
        self._metrics.count("range_requests")
        with mapped("GET", url):
            request = httpx.Request("GET", url, headers=headers)
            return self._client.send(request, stream=True)

    def _check(
        self, response: httpx.Response, version: ArtifactVersion, extent: Extent, *, direct: bool
    ) -> int:
        """Hold the head against what was asked; give the bytes to skip (a 200 has them all).

        Raises:
            Stale: the artifact has other content now.
            RemoteError: an error status, or an answer to another question.
        """
        url = redacted(response.request.url)
        status = response.status_code
        if status == 416:
            raise Stale("the file is shorter now", status=status, method="GET", url=url)
        if status not in (200, 206):
            with mapped("GET", response.request.url):
                body = response.read()
            error = failure(response, body)
            if isinstance(error, NotFound):
                raise Stale("the file is gone", status=status, method="GET", url=url) from error
            raise error
        if direct:
            _same_content(response, version, url)
        encoding = response.headers.get("Content-Encoding", "identity")
        if encoding.lower() != "identity":
            raise ProtocolViolation(f"Content-Encoding {encoding}", method="GET", url=url)
        if status == 206:
            got, total = wire.parse_content_range(response.headers.get("Content-Range", ""))
            if total != version.size:
                raise Stale(f"{total} bytes now", status=status, method="GET", url=url)
            if got != extent:
                raise ProtocolViolation(
                    f"asked for bytes {extent.start}-{extent.stop}, got {got.start}-{got.stop}",
                    method="GET",
                    url=url,
                )
            return 0
        length = response.headers.get("Content-Length", "")
        if length and length != str(version.size):
            raise Stale(f"{length} bytes now", status=status, method="GET", url=url)
        # The server does not do ranges for this file: what stands before is received in vain.
        self._metrics.count("ranges_ignored")
        return extent.start

    def _location(self, path: RepoPath) -> httpx.URL | None:
        with self._lock:
            return self._locations.get(path)

    def _keep_location(self, path: RepoPath, url: httpx.URL) -> None:
        with self._lock:
            self._locations[path] = url

    def _forget_location(self, path: RepoPath) -> None:
        with self._lock:
            self._locations.pop(path, None)


class _Progress:
    """How far a fetch has come; its sink never gets a byte beyond the extent."""

    def __init__(self, position: int, stop: int, sink: Sink) -> None:
        self.position = position
        self._stop = stop
        self.sink = sink

    def advance(self, count: int) -> None:
        self.sink.advance(count)
        self.position += count


def _same_content(response: httpx.Response, version: ArtifactVersion, url: str) -> None:
    """Compare the checksums that Artifactory sends with every answer (artifactory-rest 3.1)."""
    algorithm, _, digest = version.content.digest.partition(":")
    etag = _ETAG.fullmatch(response.headers.get("ETag", "").strip())
    sha1 = version.sha1 or (digest if algorithm == "sha1" else None)
    stated = [
        (digest if algorithm == "sha256" else None, response.headers.get("X-Checksum-Sha256")),
        (sha1, response.headers.get("X-Checksum-Sha1")),
        (sha1, etag[1] if etag is not None else None),
    ]
    for wanted, got in stated:
        if wanted is not None and got is not None and got.strip().lower() != wanted:
            raise Stale("other content now", status=response.status_code, method="GET", url=url)


def _discard(body: BodyStream, count: int) -> None:
    buffer = memoryview(bytearray(min(count, MiB)))
    while count:
        received = body.readinto(buffer[: min(count, len(buffer))])
        if not received:
            raise Unavailable("the body ended too early")
        count -= received
