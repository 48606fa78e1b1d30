"""What the mount has refused: what was wanted, where, why in the server's own words, what to do.

Everything that is answered with an error a user did not expect passes here once: the log gets one
line, repeats are counted (``jfs.folding``), and the last refusals are kept for ``.jfs/errors`` and
``user.jfs.last_error``. What programs ask to find out (a name that is missing, an attribute that is
not there) is no refusal. Trio thread only; no I/O but the log's.
"""

import logging
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from jfs import descriptors, words
from jfs.errors import (
    AccessDenied,
    ChangedElsewhere,
    Conflict,
    DeadlineExceeded,
    IntegrityError,
    JfsError,
    Offline,
    ProtocolViolation,
    QuotaExceeded,
    RateLimited,
    RemoteError,
    Stale,
    Unavailable,
    Untrusted,
    disk_advice,
    disk_words,
    errno_name,
    is_local,
    is_of_descriptors,
)
from jfs.folding import fold_as
from jfs.model import RepoPath

log = logging.getLogger(__name__)

READING = "read"  # an operation
_KEPT = 256  # refusals: of a KiB at most, each
_PATH_MAX = 1024  # characters of a path that are shown
_WORDS_MAX = 600
_NUMBER = re.compile(r"\b[0-9a-fA-F]{8,}\b|\d+")
_POLICY = re.compile(r"block|polic|violat|curat|xray|quarantin|vulnerab|malicious", re.IGNORECASE)

_ADVICE: Final[tuple[tuple[type[BaseException], str], ...]] = (  # the first that fits
    (ChangedElsewhere, "`jfs recover ls` has your bytes: retry --force, or --to another name"),
    (Stale, "open it again"),
    (QuotaExceeded, "make room on the server, or have its quota raised"),
    (Conflict, "try again when it is free"),
    (RateLimited, "try again later; fewer --connections ask less"),
    (Offline, "mount without --offline"),
    (Untrusted, "see README, Troubleshooting"),
    (DeadlineExceeded, "the server or the way to it is slow or down: try again"),
    (Unavailable, "the server or the way to it is down: try again"),
    (ProtocolViolation, "is it Artifactory that answers there, or a proxy or a login page?"),
    (IntegrityError, "have the artifact checked on the server, and what lies between"),
)


@dataclass(slots=True)
class Refusal:
    """One thing that was refused.

    Attributes:
        at: seconds since 1970, of the last time.
        count: how often, for this reason, since it last succeeded.
        over: the same thing has succeeded since.
    """

    at: float
    operation: str
    path: str
    errno_name: str
    words: str
    advice: str
    count: int = 1
    over: bool = False

    def __str__(self) -> str:
        advice = f": {self.advice}" if self.advice else ""
        return f"{self.errno_name}: {self.words}{advice}"


class Refusals:
    """The last refusals of one mount.

    Args:
        stands: called when a READ was refused.
    Attributes:
        standing: whether there is any whose thing has not succeeded since.
    """

    def __init__(self, stands: Callable[[], None] = lambda: None) -> None:
        self._stands = stands
        self.standing = False
        self._kept: dict[tuple[RepoPath | None, str], Refusal] = {}  # newest last

    def note(self, operation: str, path: RepoPath | None, error: BaseException) -> None:
        """Log an error that is about to be answered, and keep it.

        Args:
            operation: what was wanted, in the words of a system call.
            path: of what; None: of no entry of the server.
        """
        if not is_refusal(error):
            log.debug("%s %s: %s: %s", operation, path, type(error).__name__, error)
            return
        self._log(self.keep(operation, path, error), error)

    def keep(self, operation: str, path: RepoPath | None, error: BaseException) -> Refusal:
        """Keep an error that the caller logs itself."""
        refusal = described(operation, path, error)
        known = self._kept.pop((path, operation), None)
        if known is not None and not known.over and known.words == refusal.words:
            refusal.count += known.count
        while len(self._kept) >= _KEPT:
            del self._kept[next(iter(self._kept))]
        self._kept[path, operation] = refusal
        self.standing = True
        if operation == READING:
            self._stands()
        return refusal

    def succeeded(self, operation: str, path: RepoPath | None) -> None:
        """Note that something was answered; what was said of it before is over."""
        refusal = self._kept.get((path, operation))
        if refusal is not None and not refusal.over:
            refusal.over = True
            self.standing = any(not each.over for each in self._kept.values())

    def stands(self, operation: str, path: RepoPath) -> bool:
        """Whether this of all was refused, and has not succeeded since."""
        refusal = self._kept.get((path, operation)) if self.standing else None
        return refusal is not None and not refusal.over

    def last(self, path: RepoPath) -> str | None:
        """Say why something of a path was refused last, unless the same has succeeded since."""
        for (where, _), refusal in reversed(self._kept.items()):
            if where == path and not refusal.over:
                return f"{_moment(refusal.at)} {refusal.operation}: {refusal}"
        return None

    def text(self) -> str:
        """Return what ``.jfs/errors`` shows: a line for each, the newest last."""
        lines = []
        for each in self._kept.values():
            count = f" ({each.count} times)" if each.count > 1 else ""
            over = " (has succeeded since)" if each.over else ""
            lines.append(f"{_moment(each.at)} {each.operation} {each.path}: {each}{count}{over}\n")
        return "".join(lines)

    def __len__(self) -> int:
        return len(self._kept)

    def _log(self, refusal: Refusal, error: BaseException) -> None:
        if isinstance(error, OSError) and is_of_descriptors(error):
            descriptors.complain(error)  # says it once a minute, whatever was wanted
            return
        known = isinstance(error, JfsError) or is_local(error)
        status = error.status if isinstance(error, RemoteError) else None
        log.log(
            error.log_level if isinstance(error, JfsError) else _level(known=known),
            "%s %s: %s: %s",
            refusal.operation,
            refusal.path,
            type(error).__name__,
            refusal,
            exc_info=None if known else error,
            extra=fold_as(refusal.operation, type(error).__name__, status, reason_of(refusal)),
        )


def is_refusal(error: BaseException) -> bool:
    """Whether an error is more than the answer to a question: a user may want to know why."""
    return not isinstance(error, JfsError) or error.log_level >= logging.INFO


def described(operation: str, path: RepoPath | None, error: BaseException) -> Refusal:
    """Put an error into words."""
    shown = words.clean(str(path), _PATH_MAX) if path is not None else "-"
    name = errno_name(error)
    return Refusal(time.time(), operation, shown or "/", name, _words(error), advice(error))


def advice(error: BaseException) -> str:
    """Say what to do about an error; empty: its own words do."""
    if isinstance(error, OSError) and is_of_descriptors(error):
        return ""  # its words say it
    if isinstance(error, OSError) and is_local(error):
        return disk_advice(error, "--staging-dir")
    if isinstance(error, AccessDenied):
        return _denied(error)
    if not isinstance(error, JfsError):
        return "this should not happen: the log has the details"
    return next((said for kind, said in _ADVICE if isinstance(error, kind)), "")


def reason_of(refusal: Refusal) -> str:
    """Return the words without what differs from file to file: places and numbers."""
    said = refusal.words
    if len(name := refusal.path.rpartition("/")[2]) > 1:
        said = said.replace(name, "#")
    return _NUMBER.sub("#", " ".join("#" if "/" in word else word for word in said.split()))


def _denied(error: AccessDenied) -> str:
    if _POLICY.search(error.message):
        return "ask those who keep the policy, or take another version"
    if error.status == 401:
        return "is the token right, and has it not expired? A --token-file is read again"
    if error.status == 407:
        return ""  # its words say it
    return "ask for the right to do this with the token's user"


def _words(error: BaseException) -> str:
    if isinstance(error, OSError) and is_of_descriptors(error):
        return descriptors.shortage(error)
    if isinstance(error, JfsError):
        return words.clean(str(error), _WORDS_MAX)
    if isinstance(error, OSError) and is_local(error):
        return words.clean(disk_words(error), _WORDS_MAX)
    return words.clean(f"unexpected error {type(error).__name__}: {error}", _WORDS_MAX)


def _level(*, known: bool) -> int:
    return logging.WARNING if known else logging.ERROR


def _moment(at: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(at))
