"""Bodies of servers that send a file from its first byte only: one body, many fetches.

Some proxies ignore Range, or compress what passes them, which makes ranges of something else. Then
every fetch would receive all that lies before it: a sequential read of n bytes in pieces of p
would cost n * n / 2p. Here the body stays open between fetches, and those that wait for it take
their turn in the order of the file. Only going back costs the bytes before it once more.

Blocking; any thread.
"""

import contextlib
import threading
import time
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator

import httpx

from jfs.artifactory.bodies import BodyStream
from jfs.errors import ProtocolViolation, Stale, Unavailable
from jfs.extents import KiB, MiB
from jfs.model import ArtifactVersion, RepoPath

# Open bodies hold a connection each, and the server's patience with a slow reader is short.
_KEPT = 8
_IDLE_S = 20.0


class WholeBody:
    """A body from byte 0 on, decoded, and how far it was received. One thread at a time."""

    def __init__(self, response: httpx.Response, version: ArtifactVersion) -> None:
        body = response.extensions["body"]
        assert isinstance(body, BodyStream)
        self.version = version
        self.position = 0
        self.idle_since = 0.0
        self._response = response
        self._body = body
        self._decoder = _decoder(response)
        self._compressed = memoryview(bytearray(64 * KiB))

    def readinto(self, buffer: memoryview) -> int:
        """Receive up to ``len(buffer)`` bytes, at least 1.

        Raises:
            Unavailable: the body ended before the file did.
            ProtocolViolation: it cannot be decoded.
        """
        count = self._body.readinto(buffer) if self._decoder is None else self._decoded(buffer)
        if not count:
            raise Unavailable("the body ended too early")
        self.position += count
        return count

    def skip_to(self, position: int) -> None:
        """Receive, and throw away, what lies before *position*."""
        waste = memoryview(bytearray(min(MiB, max(0, position - self.position))))
        while self.position < position:
            self.readinto(waste[: position - self.position])

    def check_end(self) -> None:
        """At the end of the file: raises Stale if the body goes on."""
        surplus = memoryview(bytearray(1))
        decoder = self._decoder
        more = self._body.readinto(surplus) if decoder is None else self._decoded(surplus)
        if more:
            raise Stale("the file is longer now", method="GET")

    def close(self) -> None:
        self._response.close()

    def _decoded(self, buffer: memoryview) -> int:
        decoder = self._decoder
        assert decoder is not None
        try:
            while not decoder.eof:
                held = decoder.unconsumed_tail
                if not held:
                    count = self._body.readinto(self._compressed)
                    if not count:
                        return 0
                    held = bytes(self._compressed[:count])
                piece = decoder.decompress(held, len(buffer))
                if piece:
                    buffer[: len(piece)] = piece
                    return len(piece)
        except zlib.error as error:
            raise ProtocolViolation(f"the body is not what it says: {error}") from error
        return 0


class WholeBodies:
    """The open bodies, by path, and who may receive from them next.

    Args:
        open_body: asks for a version from its first byte on.
    """

    def __init__(self, open_body: Callable[[ArtifactVersion], WholeBody]) -> None:
        self._open_body = open_body
        self._turns = threading.Condition()
        self._busy: set[RepoPath] = set()
        self._waiting: dict[RepoPath, list[int]] = {}
        self._kept: OrderedDict[RepoPath, WholeBody] = OrderedDict()

    @contextlib.contextmanager
    def at(self, version: ArtifactVersion, position: int) -> Iterator[WholeBody]:
        """Return a body of *version* that stands at *position*; waits for its turn."""
        path = version.path
        with self._turns:
            waiting = self._waiting.setdefault(path, [])
            waiting.append(position)
            self._turns.wait_for(lambda: path not in self._busy and min(waiting) == position)
            waiting.remove(position)
            if not waiting:
                del self._waiting[path]
            self._busy.add(path)
            body = self._kept.pop(path, None)
        try:
            body = self._usable(body, version, position)
            try:
                body.skip_to(position)
                yield body
                if body.position == version.size:
                    body.check_end()
            except BaseException:
                body.close()
                raise
            self._keep(path, body)
        finally:
            with self._turns:
                self._busy.discard(path)
                self._turns.notify_all()

    def offer(self, body: WholeBody) -> None:
        """Keep a body that an ordinary fetch got instead of its range."""
        self._keep(body.version.path, body)

    def close(self) -> None:
        """Close what is kept; those that receive are cut by the transport."""
        with self._turns:
            kept, self._kept = self._kept, OrderedDict()
        for body in kept.values():
            body.close()

    def _usable(self, body: WholeBody | None, version: ArtifactVersion, position: int) -> WholeBody:
        if body is not None:
            fresh = time.monotonic() - body.idle_since < _IDLE_S
            if fresh and body.version == version and body.position <= position:
                return body
            body.close()
        return self._open_body(version)

    def _keep(self, path: RepoPath, body: WholeBody) -> None:
        if body.position >= body.version.size:
            body.close()
            return
        body.idle_since = time.monotonic()
        with self._turns:
            old = self._kept.get(path)
            if old is None or body.position < old.position:
                # Of two the one that stands earlier: it can still serve more.
                self._kept[path], body_to_close = body, old
            else:
                body_to_close = body
            if body_to_close is None and len(self._kept) > _KEPT:
                body_to_close = self._kept.popitem(last=False)[1]
        if body_to_close is not None:
            body_to_close.close()


def _decoder(response: httpx.Response) -> "zlib._Decompress | None":
    encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding in ("", "identity"):
        return None
    if encoding in ("gzip", "x-gzip"):
        return zlib.decompressobj(wbits=31)
    raise ProtocolViolation(f"Content-Encoding {encoding[:50]}", method="GET")
