"""Every error that jfs raises on purpose, and the only place that knows errnos.

::

    JfsError                      EIO
    ├── ConfigError               no errno: raised before the mount exists, one line for a person
    │   └── NotReachable          no errno: nobody can be asked now; waiting may help
    ├── RemoteError               the server's answer or its absence
    │   ├── NotFound              ENOENT     404, and only a real 404
    │   ├── AccessDenied          EACCES     401, 403, 451
    │   ├── ReadOnly              EROFS      405, no local repository there, a read-only mount
    │   ├── QuotaExceeded         ENOSPC     413, 507
    │   ├── Conflict              EBUSY      409, 423
    │   ├── Stale                 ESTALE     the artifact was replaced since it was opened
    │   │   ├── Replaced          ESTALE     its name is gone: the kernel looks it up again
    │   │   └── ChangedElsewhere  ESTALE     what was written is not uploaded over what others wrote
    │   ├── RateLimited           EIO        429, retried first
    │   ├── Unavailable           EIO        5xx, no connection, cut body; retried first
    │   │   ├── DeadlineExceeded  ETIMEDOUT  no answer in time
    │   │   ├── Untrusted         EIO        TLS refuses the server: asking again is of no use
    │   │   ├── ServerDown        as before  refused at once: it was down a moment ago
    │   │   └── Offline           EIO        a mount that never asks
    │   └── ProtocolViolation     EIO        an answer that breaks the protocol
    ├── IntegrityError            EIO        bytes that do not match their checksum: never published
    ├── MalformedFile             EIO        what a file says of its parts does not fit it
    ├── NoDescriptor              EMFILE     no connection, for want of one; retried first
    ├── NoMemory                  ENOMEM     an answer that is larger than the memory limit allows
    ├── NoThread                  EIO        no thread could be started for it; waited for first
    ├── CacheError                EIO        internal: treated as a miss
    │   ├── CacheFull             ENOSPC     nothing evictable is left
    │   └── CachePaused           EIO        the disk failed a moment ago, which was logged then
    ├── MountEnding               ENOTCONN   the mount is being taken away
    ├── LetGo                     EINTR      whoever asked was told to end by a signal
    ├── Unasked                   EAGAIN     a READ that the kernel repeats, page by page
    ├── Interrupted               no errno: a signal ended a command before it was done
    └── NamespaceError
        ├── NoEntry ENOENT · NotADirectory ENOTDIR · IsADirectory EISDIR · NotEmpty ENOTEMPTY
        ├── AlreadyExists EEXIST · InvalidName EINVAL · NameTooLong ENAMETOOLONG · BadHandle EBADF
        └── NoAttribute ENODATA · Unsupported ENOTSUP · NotPermitted EPERM · InvalidProperty EINVAL
            InvalidArgument EINVAL · FileTooLarge EFBIG

429 when retries are exhausted is EIO, not EAGAIN: on a regular file many readers spin on EAGAIN.
"""

import errno
import logging
import os
from typing import ClassVar


class JfsError(Exception):
    """Base of the tree; class attributes say how the boundary in ``fuse.py`` reports it."""

    errno: int = errno.EIO  # of the class, but for errors that stand for another
    retryable: ClassVar[bool] = False
    log_level: ClassVar[int] = logging.WARNING


class ConfigError(JfsError):
    """A mistake in options, environment or files: one line that says what to do."""

    exit_code: ClassVar[int] = 2
    log_level = logging.ERROR


class NotReachable(ConfigError):
    """The server cannot be asked at the moment: no mistake of the user's, and waiting may help."""


class RemoteError(JfsError):
    """The server answered with an error, or not at all.

    Args:
        message: the server's own text, or what went wrong on the way.
        status: HTTP status, if there was an answer.
        method: HTTP method of the request.
        url: redacted: no credentials, no query of a signed location.
    """

    def __init__(
        self, message: str, *, status: int | None = None, method: str = "", url: str = ""
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.method = method
        self.url = url

    def __str__(self) -> str:
        where = f" ({f'{self.method} {self.url}'.lstrip()})" if self.url else ""
        code = f"{self.status}: " if self.status is not None else ""
        return f"{code}{self.message}{where}"


class NotFound(RemoteError):
    errno = errno.ENOENT
    log_level = logging.DEBUG


class AccessDenied(RemoteError):
    errno = errno.EACCES


class ReadOnly(RemoteError):
    errno = errno.EROFS
    log_level = logging.INFO


class QuotaExceeded(RemoteError):
    errno = errno.ENOSPC


class Conflict(RemoteError):
    errno = errno.EBUSY


class Stale(RemoteError):
    errno = errno.ESTALE


class Replaced(Stale):
    """The name that led to an inode does so no more; nobody hears of it.

    The kernel looks every name of the path up again (LOOKUP_REVAL), and repeats the call with what
    it finds, or says that the name is missing.
    """

    log_level = logging.DEBUG


class ChangedElsewhere(Stale):
    """The server has other content than the file was opened on: it is not overwritten."""


class RateLimited(RemoteError):
    """429; *retry_after_s* is the server's ``Retry-After``, if it sent one."""

    retryable = True
    retry_after_s: float | None = None


class Unavailable(RemoteError):
    """*retry_after_s* is the server's ``Retry-After``, if it sent one."""

    retryable = True
    retry_after_s: float | None = None


class DeadlineExceeded(Unavailable):
    errno = errno.ETIMEDOUT


class Untrusted(Unavailable):
    """A certificate that is not accepted, or no TLS where it is expected; not asked again."""

    retryable = False


class ServerDown(Unavailable):
    """Not asked: the server, or this part of it, has been down for a while.

    It has the errno and the words of the last failure.
    """

    retryable = False

    @classmethod
    def after(cls, error: RemoteError, seconds: float) -> "ServerDown":
        """Make it of the last failure, and for how long it has been so."""
        message = f"down for {seconds:.0f} s: {error.message}"
        down = cls(message, status=error.status, method=error.method, url=error.url)
        down.errno = error.errno
        return down


class Offline(Unavailable):
    """Not asked: the mount never asks (``--offline``)."""

    retryable = False


class ProtocolViolation(RemoteError):
    log_level = logging.ERROR


class IntegrityError(JfsError):
    log_level = logging.ERROR


class MalformedFile(JfsError):
    """A file is not of the format that its name says; it is read as any other."""

    log_level = logging.DEBUG


class MountEnding(JfsError):
    errno = errno.ENOTCONN
    log_level = logging.DEBUG


class LetGo(JfsError):
    """Whoever asked was told to end by a signal: there is nobody to answer."""

    errno = errno.EINTR
    log_level = logging.DEBUG


class Unasked(JfsError):
    """The kernel asks for more than anybody wants; nobody but the kernel gets this answer."""

    errno = errno.EAGAIN
    log_level = logging.DEBUG


class Interrupted(JfsError):
    """A signal ended a command before it was done; *number* is the signal's."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + number  # as a shell reports it


class NoDescriptor(JfsError):
    """No connection, as no file descriptor is left for it: not the server's fault; retried."""

    errno = errno.EMFILE
    retryable = True


class NoMemory(JfsError):
    """An answer that does not fit into the memory that this process may have."""

    errno = errno.ENOMEM


class NoThread(JfsError):
    """No thread could be started for a call, for longer than it may wait."""

    retryable = True


class CacheError(JfsError):
    pass


class CacheFull(CacheError):
    errno = errno.ENOSPC


class CachePaused(CacheError):
    log_level = logging.DEBUG


class NamespaceError(JfsError):
    """A request that the namespace cannot grant; expected, so logged at DEBUG only."""

    errno = errno.EINVAL
    log_level = logging.DEBUG


class NoEntry(NamespaceError):
    errno = errno.ENOENT


class NotADirectory(NamespaceError):
    errno = errno.ENOTDIR


class IsADirectory(NamespaceError):
    errno = errno.EISDIR


class NotEmpty(NamespaceError):
    errno = errno.ENOTEMPTY


class AlreadyExists(NamespaceError):
    errno = errno.EEXIST


class InvalidName(NamespaceError):
    """A name that cannot be made; logged, since EINVAL alone does not say why."""

    errno = errno.EINVAL
    log_level = logging.INFO


class InvalidProperty(NamespaceError):
    """A property that Artifactory cannot hold; logged, since EINVAL alone does not say why."""

    errno = errno.EINVAL
    log_level = logging.WARNING


class NameTooLong(NamespaceError):
    errno = errno.ENAMETOOLONG


class BadHandle(NamespaceError):
    errno = errno.EBADF


class NoAttribute(NamespaceError):
    errno = errno.ENODATA


class Unsupported(NamespaceError):
    errno = errno.ENOTSUP


class NotPermitted(NamespaceError):
    """An operation that a mode of the mount, or Artifactory's nature, forbids; logged: say why."""

    errno = errno.EPERM
    log_level = logging.INFO


class InvalidArgument(NamespaceError):
    errno = errno.EINVAL


class FileTooLarge(NamespaceError):
    errno = errno.EFBIG
    log_level = logging.INFO


class DiskHangs(OSError):
    """The local disk has not answered in time; whoever asked it may go on without it.

    *asked* says whether it was asked at all: what was asked may be done yet, at any time.
    """

    def __init__(self, words: str, *, asked: bool) -> None:
        super().__init__(errno.EIO, words)
        self.asked = asked


_OF_THE_DISK = frozenset([errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
_OF_DESCRIPTORS = frozenset([errno.EMFILE, errno.ENFILE])
# What a mistake of ours would be answered with; everything else is the disk's.
_OF_A_PROGRAM = frozenset([errno.EBADF, errno.EINVAL, errno.EFAULT])
_KEPT = _OF_THE_DISK | _OF_DESCRIPTORS | {errno.EROFS}
# What kernels and file systems answer to a call that they do not have: overlayfs and tmpfs to
# RWF_NOWAIT EOPNOTSUPP, tmpfs before Linux 6.6 to O_DIRECT EINVAL, NFS without a lock server to
# flock ENOLCK, FUSE without a handler ENOSYS.
_NOT_SUPPORTED = frozenset(
    [errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL, errno.ENOLCK, errno.ENOTTY]
)


def is_of_the_disk(error: BaseException) -> bool:
    """Whether the local disk refused in a way that a user can act on: full, quota, too large."""
    return isinstance(error, OSError) and error.errno in _OF_THE_DISK


def is_local(error: BaseException) -> bool:
    """Whether the local disk refused or failed: full, read-only, broken, or not there any more."""
    if not isinstance(error, OSError) or is_of_descriptors(error):
        return False
    return error.errno not in _OF_A_PROGRAM


def disk_words(error: OSError) -> str:
    """Put into words that the disk of the staging directory failed."""
    where = f" ({error.filename})" if error.filename else ""
    return f"the staging directory's disk: {error.strerror or error}{where}"


def disk_advice(error: OSError, option: str) -> str:
    """Say what to do about a disk that failed, which *option* chooses."""
    if is_of_the_disk(error):
        return f"free some space there, or give another {option}"
    if error.errno == errno.EROFS:
        return f"look why it is read-only (dmesg) and remount it, or give another {option}"
    return f"look at that disk (dmesg), or give another {option}"


def is_of_descriptors(error: BaseException) -> bool:
    """Whether no file descriptor was left, in this process (EMFILE) or on the machine (ENFILE)."""
    return isinstance(error, OSError) and error.errno in _OF_DESCRIPTORS


def out_of_descriptors() -> OSError:
    """Return what a call raises that finds no file descriptor."""
    return OSError(errno.EMFILE, os.strerror(errno.EMFILE))


def no_room() -> OSError:
    """Return what a call raises that finds no room on a disk."""
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def is_of_the_machine(error: BaseException) -> bool:
    """Whether it is the machine that has no file descriptor left (ENFILE)."""
    return isinstance(error, OSError) and error.errno == errno.ENFILE


def is_not_supported(error: BaseException) -> bool:
    """Whether the file system does not have what was asked of it; no fault of the disk."""
    return isinstance(error, OSError) and error.errno in _NOT_SUPPORTED


def errno_name(error: BaseException) -> str:
    """Return the name of ``errno_of``, such as ``EACCES``."""
    number = errno_of(error)
    return errno.errorcode.get(number, str(number))


def errno_of(error: BaseException) -> int:
    """Return the errno that a system call reports for *error*.

    An ``OSError`` of the local machine keeps ENOSPC, EDQUOT, EFBIG, EROFS, EMFILE and ENFILE, which
    a user can act on; everything else that is not ours is EIO.
    """
    if isinstance(error, JfsError):
        return error.errno
    if isinstance(error, OSError) and error.errno in _KEPT:
        return error.errno
    return errno.EIO
