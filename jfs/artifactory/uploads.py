"""Deploy content: by checksum where the server has it already, else whole.

Zero bytes first: a checksum deploy costs one small request, and answers 404 where the content is
not known (artifactory-rest 4.3). It also settles a body whose answer was lost: the server has the
content then, and asking again moves nothing. Content that is no longer than that question takes is
sent at once, unless it was deployed from here before. The server's checksums are held against ours
whatever way it went.

Trio thread; bodies are sent by worker threads.
"""

import contextlib
import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from urllib.parse import quote

import httpx
import trio

from jfs import threads, waiting
from jfs.artifactory import wire
from jfs.artifactory.circuits import Plane
from jfs.artifactory.exchange import USER_AGENT, failure, mapped
from jfs.artifactory.filebody import FileBody, Unreadable
from jfs.artifactory.growing import GrowingBody
from jfs.artifactory.mutations import not_local
from jfs.artifactory.session import Session
from jfs.artifactory.transport import BulkTransport
from jfs.clocks import boot_time
from jfs.errors import (
    AlreadyExists,
    ChangedElsewhere,
    Conflict,
    DiskHangs,
    IntegrityError,
    JfsError,
    NotFound,
    ProtocolViolation,
    Unavailable,
)
from jfs.extents import KiB, MiB
from jfs.folding import fold_as
from jfs.metrics import Metrics
from jfs.model import Checksums, Deployment, FileInfo, Properties, RepoPath
from jfs.protocols import Growing, Still

log = logging.getLogger(__name__)

# After the last byte a server with remote storage still has to store it: so many bytes a second.
_SETTLING_RATE = 20 * MiB
# How often a body is sent when connections break off in the middle of it. A small one is sent again
# as any other request is: as often as its deadline allows.
_BODIES, _SMALL = 4, 8 * MiB
# What is sent at once. A question whose answer is 404 costs this side 1.3 ms of CPU and the server
# as much, and a round trip: in 1 ms a line of 1 Gbit/s moves as many bytes.
_AT_ONCE = 128 * KiB
_DIGESTS_KEPT = 10_000
# How often when the server says that it got other bytes, or that somebody else was writing there.
_REFUSALS = 2
# Who has waited for his turn for so long looks again whether somebody else has written there.
_LATE_S = 1.0
# An upload that stands still for so long waits for the server, or for a disk that hangs.
_LOOK_S = 1.0
# What is uploaded behind is tried again later: meanwhile it keeps its name from a rename.
_HURRIED_S = 3.0
# Request lines of Tomcat end at 8 KiB with everything else in them; the rest is set afterwards.
_MAX_MATRIX = 4 * KiB
# In a matrix parameter servers differ about these, whatever their encoding (artifactory-rest 2.2).
_UNSAFE = frozenset(";,\\")


class Uploads:
    """The deploys of one client."""

    def __init__(self, session: Session, metrics: Metrics) -> None:
        settings = session.settings
        self._session = session
        self._metrics = metrics
        self._transport = BulkTransport(
            session.access,
            connect_timeout_s=settings.connect_timeout_s,
            idle_timeout_s=settings.idle_timeout_s,
        )
        self._closed = False
        # What was deployed from here: the server has it, unless all who had it were removed.
        self._deployed: OrderedDict[str, None] = OrderedDict()

    def close(self) -> None:
        """Cut what is under way; later deploys fail. Any thread."""
        self._closed = True
        self._transport.close()

    async def deploy(
        self,
        deployment: Deployment,
        file: int | None,
        *,
        patient: bool = True,
        still: Still | None = None,
    ) -> FileInfo:
        """See ``ArtifactStore.deploy``; the caller sets what ``set_afterwards`` returns."""
        settings = self._session.settings
        hurried_s = min(_HURRIED_S, settings.jobs_retries_s)
        tries = bodies = refusals = 0
        late = boot_time() + _LATE_S
        stored: set[str] = set()
        call = self._session.breakers.call(
            deployment.path.repo,
            Plane.CHANGES,
            patience_s=settings.jobs_retries_s if patient else hurried_s,
            deadline_s=settings.request_deadline_s,
        )
        try:
            while True:
                if held := call.hold_s():
                    await trio.sleep(held)
                    continue
                at_once = file is not None and not tries and self._is_short(deployment)
                attempt = _Attempt(deployment, file, settings.idle_timeout_s, at_once=at_once)
                turn = threads.asking("uploads", deployment.path.repo, settings.connections)
                try:
                    async with turn:
                        if still is not None and (tries or boot_time() > late):
                            await still(stored)
                        tries += 1
                        found = await self._once(attempt)
                    if found.checksums.sha256:
                        stored.add(found.checksums.sha256)
                    _compare(found, deployment)
                    self._note(deployment)
                    call.succeeded()
                    return found
                except (ChangedElsewhere, AlreadyExists):
                    raise
                except JfsError as error:
                    if self._closed or (file is None and isinstance(error, NotFound)):
                        raise
                    self._metrics.count("deploy_errors")
                    if attempt.sent > _SMALL:
                        # A long upload over a bad line is not given up for the time that it took.
                        bodies += 1
                        call.moved(settings.request_deadline_s)
                    refused = isinstance(error, Conflict | IntegrityError)
                    refusals += refused
                    wait = call.failed(error)
                    if refused and refusals < _REFUSALS:
                        wait = 0.0
                    if wait is None or bodies >= _BODIES:
                        raise
                    once = fold_as("deploying again", deployment.path.repo)
                    log.info("%s: deploying again: %s", deployment.path, error, extra=once)
                await trio.sleep(wait)
        finally:
            call.end()

    async def stream(self, path: RepoPath, file: Path, growing: Growing) -> FileInfo:
        """See ``ArtifactStore.stream``."""
        settings, repo = self._session.settings, path.repo
        call = self._session.breakers.call(
            repo, Plane.CHANGES, patience_s=0.0, deadline_s=settings.request_deadline_s, once=True
        )
        try:
            if call.hold_s():
                raise Unavailable("the server has asked for a pause")
        finally:
            # How it ends says little: whoever writes the file may have rested, and its upload asks.
            call.end()
        attempt = _Attempt(Deployment(path, 0, Checksums()), None, settings.idle_timeout_s)
        workers = threads.asking("streams", repo, settings.connections)
        async with threads.cut_when_cancelled(attempt.cut):
            run = partial(self._stream, attempt, file, growing)
            return await threads.abandoning(workers, run)

    def _stream(self, attempt: "_Attempt", path: Path, growing: Growing) -> FileInfo:
        """Blocking; a worker thread."""
        bodies: list[GrowingBody] = []
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

        def next_body() -> FileBody:
            bodies.append(
                GrowingBody(file, growing, answer_s=attempt.idle_s, settling=_SETTLING_RATE)
            )
            return attempt.carry(bodies[-1])

        try:
            found = _parsed(self._put(next_body, attempt.deployment, {}), attempt.deployment)
            if not bodies[-1].ended:
                raise ProtocolViolation(f"{attempt.deployment.path}: accepted before its end")
            return found
        finally:
            os.close(file)
            self._metrics.count("sent_bytes", sum(body.sent for body in bodies))

    def _is_short(self, deployment: Deployment) -> bool:
        """Whether to ask first would cost more than to send it."""
        return deployment.size <= _AT_ONCE and deployment.checksums.sha256 not in self._deployed

    def _note(self, deployment: Deployment) -> None:
        if (sha256 := deployment.checksums.sha256) is not None:
            self._deployed[sha256] = None
            self._deployed.move_to_end(sha256)
            if len(self._deployed) > _DIGESTS_KEPT:
                self._deployed.popitem(last=False)

    async def _once(self, attempt: "_Attempt") -> FileInfo:
        """Make one attempt in a worker thread, in its turn; cancelling cuts its connection."""
        deployment = attempt.deployment
        repo, tokens = deployment.path.repo, self._session.settings.connections
        workers = threads.asking("upload threads", repo, tokens)
        failure: JfsError | OSError | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_cut_when_cancelled, attempt)
            with trio.CancelScope(shield=True) as reading:  # the thread reads the caller's file
                hung = await nursery.start(_give_up_a_disk_that_hangs, attempt, reading)
                try:
                    call = partial(self._attempt, attempt)
                    found = await threads.abandoning(workers, call)
                except (JfsError, OSError) as error:  # raised here it would leave as a group
                    failure = error
            nursery.cancel_scope.cancel()
        if reading.cancelled_caught:
            failure = hung[0]
        if failure is not None:
            raise failure
        return found

    def _attempt(self, attempt: "_Attempt") -> FileInfo:
        """Deploy by checksum, else whole, on one connection. Blocking; a worker thread."""
        deployment = attempt.deployment
        # An empty body is smaller than the question whether it is known.
        if deployment.size and not attempt.at_once:
            with contextlib.suppress(*(() if attempt.file is None else (NotFound,))):
                answer = self._put(attempt.question, deployment, {"X-Checksum-Deploy": "true"})
                self._metrics.count("checksum_deploys")
                return _parsed(answer, deployment)
        try:
            return _parsed(self._put(attempt.body, deployment, {}), deployment)
        except NotFound as error:
            raise not_local(error) from None
        except Conflict as error:
            if "checksum" in error.message.lower():
                raise IntegrityError(f"{deployment.path}: {error}") from None
            raise
        finally:
            self._metrics.count("sent_bytes", attempt.sent)

    def _put(
        self, make_body: Callable[[], FileBody], deployment: Deployment, headers: Mapping[str, str]
    ) -> bytes:
        body = make_body()
        url = httpx.URL(self._session.settings.url + _address(deployment))
        headers = {
            **_headers(deployment),
            **headers,
            "Host": url.netloc.decode("ascii"),
            **_length(body),
            "User-Agent": USER_AGENT,
            "Accept": "*/*",
            **self._session.access.authenticator.headers(),
        }
        response, answer = self._send(url, headers, body)
        renewed = self._session.access.renewal.headers(response, headers)
        if renewed is not None:
            response, answer = self._send(url, renewed, make_body())
        # Not followed to another place: a redirected write would become another request.
        if not 200 <= response.status_code < 300:
            raise failure(response, answer)
        return answer

    def _send(
        self, url: httpx.URL, headers: dict[str, str], body: FileBody
    ) -> tuple[httpx.Response, bytes]:
        self._metrics.count("requests")
        with mapped("PUT", url):
            request = httpx.Request("PUT", url, headers=headers, stream=body)
            try:
                # Not by an httpx client: see Session.
                response = self._transport.handle_request(request)
            except Unreadable as unreadable:
                raise unreadable.error from None
            response.request = request
            try:
                return response, response.read()
            finally:
                response.close()


class _Attempt:
    """One attempt: what is under way of it, so that it can be cut.

    *at_once*: the server is not asked first whether it has the content. Without a *file* it is
    asked alone.
    """

    def __init__(
        self, deployment: Deployment, file: int | None, idle_s: float, *, at_once: bool = False
    ) -> None:
        self.deployment = deployment
        self.at_once = at_once
        self.file = file
        self._file = -1 if file is None else file  # of an empty body nothing is read
        self.idle_s = idle_s
        self._lock = threading.Lock()
        self._current: FileBody | None = None
        self._body: FileBody | None = None
        self._cut = False

    @property
    def sent(self) -> int:
        """Bytes of the content that were sent."""
        return self._body.sent if self._body is not None else 0

    def question(self) -> FileBody:
        """Return the body of a checksum deploy, which is empty."""
        return self.carry(FileBody(self._file, 0, answer_s=self.idle_s))

    def body(self) -> FileBody:
        """Return the content."""
        size = self.deployment.size
        self._body = FileBody(self._file, size, answer_s=self.idle_s + size / _SETTLING_RATE)
        return self.carry(self._body)

    def cut(self) -> None:
        """End what is under way at once. Any thread."""
        with self._lock:
            self._cut = True
            if self._current is not None:
                self._current.cut()

    def carry(self, body: FileBody) -> FileBody:
        """Let *body* be what is cut."""
        with self._lock:
            self._current = body
            if self._cut:
                body.cut()
        return body


def _compare(found: FileInfo, deployment: Deployment) -> None:
    """Hold what the server says that it stored against what it was sent."""
    ours, theirs = deployment.checksums, found.checksums
    pairs = ((ours.sha256, theirs.sha256), (ours.sha1, theirs.sha1), (ours.md5, theirs.md5))
    if any(a and b and a != b for a, b in pairs) or found.size != deployment.size:
        raise IntegrityError(f"{deployment.path}: the server stored other bytes than it was sent")


def set_afterwards(properties: Properties) -> Mapping[str, tuple[str, ...]]:
    """Return the properties that a deploy cannot carry safely: set them once it is done."""
    carried = _carried(properties)
    return {key: values for key, values in properties.items() if key not in carried}


def _carried(properties: Properties) -> Properties:
    room = _MAX_MATRIX
    carried = {}
    for key, values in properties.items():
        room -= len(_matrix({key: values}))
        if room >= 0 and not any(_UNSAFE.intersection(value) for value in values):
            carried[key] = values
    return carried


def _matrix(properties: Properties) -> str:
    return "".join(
        f";{quote(key, safe='')}={quote(value, safe='')}"
        for key, values in properties.items()
        for value in values
    )


def _address(deployment: Deployment) -> str:
    return wire.encode_path(deployment.path) + _matrix(_carried(deployment.properties))


def _headers(deployment: Deployment) -> dict[str, str]:
    sums = deployment.checksums
    headers = {
        f"X-Checksum-{name.capitalize()}": value
        for name, value in (("sha256", sums.sha256), ("sha1", sums.sha1), ("md5", sums.md5))
        if value
    }
    if deployment.modified_ns is not None:
        headers["Last-Modified"] = wire.http_date(deployment.modified_ns)
    return headers


def _length(body: FileBody) -> dict[str, str]:
    if body.size < 0:
        return {"Transfer-Encoding": "chunked"}
    return {"Content-Length": str(body.size)}


def _parsed(answer: bytes, deployment: Deployment) -> FileInfo:
    if not answer:
        raise ProtocolViolation(f"{deployment.path}: the answer to a deploy is empty")
    document = wire.parse_json(answer, f"PUT {deployment.path}")
    return wire.parse_deployed(document, deployment.path)


async def _give_up_a_disk_that_hangs(
    attempt: _Attempt,
    reading: trio.CancelScope,
    task_status: trio.TaskStatus[list[OSError]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Leave the thread of an upload to itself if its file cannot be read, and say so."""
    hung: list[OSError] = []
    task_status.started(hung)
    sent = 0
    while attempt.file is not None:
        await trio.sleep(_LOOK_S)
        sent, before = attempt.sent, sent
        if sent != before:
            continue
        try:
            await waiting.on_disk(os.pread, attempt.file, 1, sent)
        except DiskHangs as error:
            attempt.cut()
            hung.append(error)
            reading.cancel()
            return
        except OSError:
            pass  # the thread will find out


async def _cut_when_cancelled(attempt: _Attempt) -> None:
    try:
        await trio.sleep_forever()
    finally:
        attempt.cut()
