"""The data plane: bytes of artifacts by HTTP Range. Blocking; worker threads, several at a time."""

import logging
import os
import threading
from collections.abc import Callable

import httpx
from cachetools import TTLCache

from jfs.artifactory import wire
from jfs.artifactory.access import Access
from jfs.artifactory.bodies import BodyStream
from jfs.artifactory.breaker import Breakers
from jfs.artifactory.circuits import Plane
from jfs.artifactory.exchange import failure, mapped, redacted
from jfs.artifactory.opening import Opener
from jfs.artifactory.parallelism import Parallelism
from jfs.artifactory.transport import BulkTransport
from jfs.artifactory.whole import WholeBodies, WholeBody
from jfs.config import ServerSettings
from jfs.errors import JfsError, NotFound, ProtocolViolation, Stale, Unavailable
from jfs.extents import Extent, KiB, MiB
from jfs.metrics import Metrics
from jfs.model import ArtifactVersion
from jfs.native.receiving import Run
from jfs.protocols import Sink

log = logging.getLogger(__name__)

# A repository behind a proxy that does no ranges is asked for them again after so long.
_RANGELESS_LIFE_S = 300.0
# What a try must bring for the deadline to begin anew.
_MOVED = 16 * KiB
_FIRST_PIECE, _PIECE = 256 * KiB, 1 * MiB
# Of these the CPU has what was received in its cache when it sums it: 0.27 s for each GiB, the sums
# among them; 0.35 s for pieces of 1 MiB.
_SUMMED_PIECE = 256 * KiB


class HttpRangeSource:
    """``RangeSource`` over HTTP; see the protocol for the contract.

    Args:
        access: shared with the control plane; by default what the settings and environment say.
        breakers: shared with the control plane.
    """

    def __init__(
        self,
        settings: ServerSettings,
        metrics: Metrics,
        access: Access | None = None,
        breakers: Breakers | None = None,
    ) -> None:
        access = access or Access(settings, os.environ)
        self._settings = settings
        self._breakers = breakers or Breakers(settings.url, metrics)
        self._metrics = metrics
        self._transport = BulkTransport(
            access,
            connect_timeout_s=settings.connect_timeout_s,
            idle_timeout_s=settings.idle_timeout_s,
        )
        self._opener = Opener(
            settings.url,
            access,
            self._transport,
            metrics,
        )
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._rangeless: TTLCache[str, bool] = TTLCache(1024, _RANGELESS_LIFE_S)
        self._whole = WholeBodies(self._open_whole)
        self._parallelism: dict[str, Parallelism] = {}  # by repository

    def close(self) -> None:
        self._closed.set()
        self._transport.close()
        self._whole.close()
        with self._lock:
            gates = list(self._parallelism.values())
        for gate in gates:
            gate.close()

    def fetch(self, version: ArtifactVersion, extent: Extent, sink: Sink) -> None:
        position = extent.start
        deadline_s = self._settings.request_deadline_s
        call = self._breakers.call(
            version.path.repo,
            Plane.BYTES,
            patience_s=self._settings.jobs_retries_s,
            deadline_s=deadline_s,
        )
        try:
            while True:
                wait = call.hold_s()
                if not wait:
                    progress = _Progress(position, extent.stop, sink)
                    asked = False
                    try:
                        with self._gate(version.path.repo).request(call.left_s):
                            if not (wait := call.hold_s()):  # it may have been a long wait
                                asked = True
                                self._fetch_once(version, Extent(position, extent.stop), progress)
                                call.succeeded()
                                return
                    except JfsError as error:
                        self._metrics.count("fetch_errors")
                        if self._closed.is_set():
                            raise Unavailable("the mount is ending") from error
                        if not asked:
                            raise
                        if progress.position - position >= _MOVED:
                            # A long download over a bad line is not given up.
                            call.moved(deadline_s)
                        position = progress.position
                        again = call.failed(error)
                        if again is None:
                            raise
                        wait = again
                        log.debug("%s %s: asking again: %s", version.path, extent, error)
                if self._closed.wait(wait):
                    raise Unavailable("the mount is ending")
        finally:
            call.end()

    def _fetch_once(self, version: ArtifactVersion, extent: Extent, progress: "_Progress") -> None:
        try:
            comes = not self._is_rangeless(version)
            while comes and progress.position < extent.stop:
                rest = Extent(progress.position, extent.stop)
                comes = self._fetch_range(version, rest, progress)
            if progress.position < extent.stop:
                with (
                    mapped("GET", self._opener.origin(version)),
                    self._whole.at(version, progress.position) as whole,
                ):
                    progress.receive(whole.readinto)
        finally:
            self._metrics.count("received_bytes", progress.position - extent.start)

    def _fetch_range(self, version: ArtifactVersion, extent: Extent, progress: "_Progress") -> bool:
        """Receive a range, or as much of its beginning as the server sends.

        Returns:
            Whether any of it came; False: the server turns out to ignore ranges.
        """
        response = self._opener.open(version, extent)
        offered = False
        try:
            stop = self._check(response, version, extent)
            if not stop:
                self._note_rangeless(version)
                if response.status_code == 200:
                    self._whole.offer(WholeBody(response, version))
                    offered = True
                return False
            body = response.extensions["body"]
            assert isinstance(body, BodyStream)
            with mapped("GET", response.request.url):
                progress.receive(body.readinto, stop, body)
            return True
        finally:
            if not offered:
                response.close()

    def _open_whole(self, version: ArtifactVersion) -> WholeBody:
        response = self._opener.open(version, None)
        try:
            self._check(response, version, Extent(0, version.size))
            if response.status_code != 200:
                raise ProtocolViolation("a range that nobody asked for", method="GET")
            return WholeBody(response, version)
        except BaseException:
            response.close()
            raise

    def _check(self, response: httpx.Response, version: ArtifactVersion, extent: Extent) -> int:
        """Hold the head against what was asked.

        Returns:
            Up to where its body has the range: some send less (RFC 9110 section 15.3.7). 0: its
            body is not the range.
        Raises:
            Stale: the artifact has other content now.
            RemoteError: an error status, or an answer to another question.
        """
        status = response.status_code
        if status == 416:
            raise Stale("the file is shorter now", status=status, method="GET", url=_url(response))
        if status not in (200, 206):
            with mapped("GET", response.request.url):
                body = response.read()
            error = failure(response, body)
            if isinstance(error, NotFound):
                raise Stale(
                    "the file is gone", status=status, method="GET", url=_url(response)
                ) from error
            raise error
        encoded = response.headers.get("Content-Encoding", "identity").lower() != "identity"
        if status == 206:
            if encoded:
                return 0  # a part of something else: the whole can be decoded
            got, total = wire.parse_content_range(response.headers.get("Content-Range", ""))
            if total != version.size:
                raise Stale(f"{total} bytes now", status=status, method="GET", url=_url(response))
            if got.start != extent.start or not extent.start < got.stop <= extent.stop:
                raise ProtocolViolation(
                    f"asked for bytes {extent.start}-{extent.stop}, got {got.start}-{got.stop}",
                    method="GET",
                    url=_url(response),
                )
            return got.stop
        length = response.headers.get("Content-Length", "")
        if length and not encoded and length != str(version.size):
            raise Stale(f"{length} bytes now", status=status, method="GET", url=_url(response))
        is_all = not encoded and bool(length) and extent == Extent(0, version.size)
        return extent.stop if is_all else 0

    def _is_rangeless(self, version: ArtifactVersion) -> bool:
        with self._lock:
            return version.path.repo in self._rangeless

    def _note_rangeless(self, version: ArtifactVersion) -> None:
        self._metrics.count("ranges_ignored")
        with self._lock:
            known = version.path.repo in self._rangeless
            self._rangeless[version.path.repo] = True
        if not known:
            log.info("%s: is sent from the first byte only: ranges are ignored", version.path.repo)

    def _gate(self, repo: str) -> Parallelism:
        with self._lock:
            gate = self._parallelism.get(repo)
            if gate is None:
                gate = self._parallelism[repo] = Parallelism(self._settings.connections)
                if self._closed.is_set():
                    gate.close()
            return gate


def _url(response: httpx.Response) -> str:
    return redacted(response.request.url)


class _Progress:
    """How far a fetch has come; its sink never gets a byte beyond the extent."""

    def __init__(self, position: int, stop: int, sink: Sink) -> None:
        self.position = position
        self._stop = stop
        self._sink = sink

    def receive(
        self,
        readinto: Callable[[memoryview], int],
        stop: int | None = None,
        body: BodyStream | None = None,
    ) -> None:
        """Fill what is left of the extent, or of what is before *stop*.

        Args:
            body: what *readinto* is of, if it is not changed on its way.
        """
        stop = self._stop if stop is None else stop
        run: Run | None = getattr(self._sink, "run", None)
        # The first piece is small: somebody may wait for no more than its first page.
        piece = _FIRST_PIECE
        while self.position < stop:
            if run is not None and body is not None and piece == _PIECE and body.takes_runs:
                count = body.receive(run, self.position, stop, _SUMMED_PIECE)
            else:
                count = readinto(self._sink.buffer()[: min(piece, stop - self.position)])
            if not count:
                raise Unavailable("the body ended too early")
            self._sink.advance(count)
            self.position += count
            piece = _PIECE
