"""The state of one circuit, and how an outage is told: what ``breaker`` is made of."""

import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from jfs.errors import RemoteError

log = logging.getLogger(__name__)

# Between probes: a tenth of the outage so far. At most 3 s, or it would not heal within seconds;
# a thousand nodes then send some 500 pings a second to a server that starts.
_PROBE_SHARE, _PROBE_FIRST_S, PROBE_LAST_S = 0.1, 0.25, 3.0
_ANSWERS_KEPT = 1000
# Failures so far apart are not of one outage, unless a call gave up.
_APART_S = 10.0


class Plane(StrEnum):
    """What of a repository is asked for: each may fail while the others are well."""

    NAMES = "names"
    BYTES = "bytes"
    CHANGES = "changes"


@dataclass(frozen=True, slots=True)
class Outage:
    """What is down. Times are ``time.time()``.

    Attributes:
        subject: a repository, or the path of an endpoint; empty: the server.
        plane: of a repository; of no meaning for the server.
        reason: the words of the last failure.
        refused: calls that failed at once because of it, so far.
    """

    subject: str
    plane: Plane
    since: float
    reason: str
    refused: int

    @property
    def what(self) -> str:
        """Name it for a person."""
        if not self.subject:
            return "the server"
        return f"{self.subject} ({self.plane})"


# Called with True when what is named is up again, with False when it is down. While a mount watches
# it is called on the trio thread, else in the thread that noticed. It must not wait nor raise.
Listener = Callable[[Outage, bool], None]
Key = tuple[str, Plane]
SERVER: Key = ("", Plane.NAMES)


class Answers:
    """When that began which was answered last. Any thread: a loser of a race costs nothing."""

    def __init__(self) -> None:
        self._began: dict[Key, float] = {}

    def note(self, key: Key, began: float) -> None:
        """Note that what began then was answered."""
        if len(self._began) >= _ANSWERS_KEPT and key not in self._began:
            self._began = {}
        self._began[key] = began

    def is_later(self, key: Key, began: float) -> bool:
        """Whether something was answered that began later than that."""
        return began < self._began.get(key, 0.0)


class Circuit:
    """One that is troubled; its fields belong to the lock of its ``Breakers``."""

    __slots__ = (
        "blind",
        "down",
        "error",
        "failed_at",
        "held",
        "held_until",
        "pause_until",
        "probe_at",
        "probed_by",
        "refused",
        "since",
        "wall",
    )

    def __init__(self, began: float) -> None:
        self.since = began
        self.wall = 0.0
        self.failed_at = began
        self.error: RemoteError | None = None
        self.down = False
        self.blind = False  # probes from outside cannot tell
        self.refused = 0
        self.probe_at = 0.0
        self.probed_by: object = None
        self.held_until = 0.0  # nobody asks before
        self.pause_until = 0.0  # as the server wants it
        self.held: RemoteError | None = None

    def fail(self, error: RemoteError, began: float, now: float) -> None:
        if self.error is None or (not self.down and began - self.failed_at > _APART_S):
            self.since = began
            self.wall = time.time() - (now - began)
        self.failed_at = now
        self.error = error
        self.probed_by = None

    def is_due_for(self, caller: object, now: float) -> bool:
        """Whether *caller* is to probe it, and nobody else does at the moment."""
        if self.probed_by is None:
            return now >= self.probe_at
        return self.probed_by is caller

    def schedule(self, now: float, rng: random.Random) -> None:
        interval = _PROBE_SHARE * (now - self.since)
        interval = min(PROBE_LAST_S, max(_PROBE_FIRST_S, interval))
        self.probe_at = now + rng.uniform(interval / 2, interval)

    def outage(self, key: Key) -> Outage:
        assert self.error is not None
        return Outage(key[0], key[1], self.wall, self.error.message, self.refused)


def log_changes(outage: Outage, up: bool) -> None:
    """Log one line when something goes down, and one when it is up again: a ``Listener``."""
    if up:
        log.info(
            "%s is back after %.1f s; %d calls were refused meanwhile",
            outage.what,
            max(0.0, time.time() - outage.since),
            outage.refused,
        )
    else:
        log.warning("%s is down: %s", outage.what, outage.reason)
