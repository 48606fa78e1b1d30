"""Describe a file by the head of its content, where the server has no better answer.

Trio thread only. What one answer leaves out is looked for in the next: a proxy may take
Content-Length away, compress, or send elsewhere; a redirect states the checksums, and the storage
behind it the size. One byte is asked for where a HEAD tells no size: the total stands in
Content-Range. Signed storage refuses a HEAD by a location that was signed for GET.
"""

from dataclasses import dataclass, replace
from datetime import UTC
from email.utils import parsedate_to_datetime
from itertools import pairwise
from typing import Self

import httpx

from jfs.artifactory import statements, wire
from jfs.artifactory.session import CACHE, PASSED, Session
from jfs.errors import (
    NotFound,
    ProtocolViolation,
    RemoteError,
    Unavailable,
)
from jfs.model import Checksums, EntryInfo, FileInfo, FolderInfo, RepoPath

# Sizes and ranges of what a proxy compresses are those of something else.
_PLAIN = {"Accept-Encoding": "identity", "Cache-Control": "no-transform"}
_FIRST_BYTE = {"Range": "bytes=0-0"}
_NO_HEADS = (400, 405, 501)  # of what answers GET only
_NO_SUMS = Checksums()


@dataclass(frozen=True, slots=True)
class _Head:
    """What is known so far."""

    size: int | None = None
    checksums: Checksums = _NO_SUMS
    etag: str | None = None  # if it may be a sha1
    modified_ns: int = 0
    folder: bool = False

    @classmethod
    def of(cls, response: httpx.Response) -> Self:
        """Read an answer, and the redirects that led to it: what Artifactory itself said counts."""
        heads = [*response.extensions.get(PASSED, ()), response]
        stated = [statements.of_artifactory(head.headers) for head in heads]
        sums = next((sums for sums, _ in stated if sums != _NO_SUMS), _NO_SUMS)
        etag = next((etag.sha1 for _, etag in stated if etag.sha1), None)
        modified = [ns for head in heads if (ns := _time_ns(head.headers.get("Last-Modified")))]
        return cls(_size(response), sums, etag, modified[0] if modified else 0, _is_folder(heads))

    def without_gaps(self, older: "_Head") -> "_Head":
        """Fill from an older answer what this one leaves out, unless it is of other content."""
        if statements.agree([older.checksums], self.checksums) is False:
            return self
        return replace(
            self,
            size=older.size if self.size is None else self.size,
            checksums=older.checksums if self.checksums == _NO_SUMS else self.checksums,
            etag=self.etag or older.etag,
            modified_ns=self.modified_ns or older.modified_ns,
        )


async def ask(session: Session, path: RepoPath, *, accept: str = "*/*") -> EntryInfo:
    """Ask for what is at *path* of a remote repository; its server may download it for that.

    Args:
        accept: the types that are wanted; the server may answer 409 where there is another.
    Raises:
        NotFound: there is nothing. Conflict: it is of another type.
        ProtocolViolation: nothing tells its size.
    """
    head = await _ask(session, "HEAD", path, accept)
    if head is not None and head.folder:
        return FolderInfo(path, 0)
    if head is None or head.size is None:
        first = await _ask(session, "GET", path, accept)
        head = (first or _Head()).without_gaps(head or _Head())
    if head.size is None or not (head.checksums.sha256 or head.checksums.sha1):
        info = await _kept(session, path)
        if info is not None:
            return info
    if head.size is None:
        raise ProtocolViolation(f"{path}: the server names no size of it")
    # An ETag is the last resort: only Artifactory's own is the sha1 (artifactory-rest 3.1).
    sums = head.checksums
    sums = sums if sums.sha256 or sums.sha1 else replace(sums, sha1=head.etag)
    return FileInfo(path, head.size, sums, head.modified_ns)


async def _ask(session: Session, method: str, path: RepoPath, accept: str) -> _Head | None:
    """Ask for the head, or for the first byte; None: a HEAD is not the way to be told."""
    address = wire.encode_path(path)
    headers = {**_PLAIN, "Accept": accept}
    if method == "GET":
        # It is a look, not a download: 7.x does not count it then.
        address, headers = f"{address}?skipUpdateStats=true", {**headers, **_FIRST_BYTE}
    try:
        # a remote repository asks its upstream first
        return await session.read(
            method, address, _head, headers=headers, repo=path.repo, long=True
        )
    except RemoteError as error:
        if error.status == 416:
            return _Head(size=0)  # no first byte
        of_storage = not error.url.startswith(f"{session.settings.url}/")
        if method == "HEAD" and (error.status in _NO_HEADS or (of_storage and not error.retryable)):
            return None
        if isinstance(error, NotFound) and of_storage:
            raise Unavailable(
                "the storage has not got what Artifactory redirects to",
                status=error.status,
                method=method,
                url=error.url,
            ) from error
        raise


async def _head(response: httpx.Response) -> _Head:
    return _Head.of(response)  # its body is not read


async def _kept(session: Session, path: RepoPath) -> FileInfo | None:
    """Ask what the server has kept of it, now that it has looked itself."""
    kept = RepoPath(path.repo + CACHE, path.path)
    address = f"/api/storage{wire.encode_path(kept)}"
    try:
        info = wire.parse_info(wire.parse_json(await session.get(address), address), path)
    except (NotFound, ProtocolViolation):
        return None
    return info if isinstance(info, FileInfo) else None


def _size(response: httpx.Response) -> int | None:
    headers = response.headers
    if headers.get("Content-Encoding", "identity").strip().lower() not in ("", "identity"):
        return None
    if response.status_code == 206:
        try:
            return wire.parse_content_range(headers.get("Content-Range", ""))[1]
        except ProtocolViolation:
            return None
    lengths = set(headers.get_list("Content-Length", split_commas=True))
    length = lengths.pop().strip() if len(lengths) == 1 else ""
    chunked = "Transfer-Encoding" in headers
    if response.status_code != 200 or chunked or not (length.isascii() and length.isdigit()):
        return None
    return int(length) if len(length) < 19 else None


def _is_folder(heads: list[httpx.Response]) -> bool:
    """A folder is redirected to its path with a slash, which is a page (artifactory-rest 3.4)."""
    pairs = pairwise(heads)
    return any(after.request.url.path == f"{before.request.url.path}/" for before, after in pairs)


def _time_ns(text: str | None) -> int:
    """Read an HTTP date; 0 if it is none: a time is not worth a file."""
    try:
        moment = parsedate_to_datetime(text or "")
    except (ValueError, TypeError):
        return 0
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0, int(moment.timestamp())) * 1_000_000_000
