"""Circuit breakers of one server: in an outage calls fail at once, and it heals by itself.

There is one circuit for the server and one for each of its subjects: a repository on one plane
(names, bytes, changes), or an endpoint that is about no repository. No connection (refused, DNS,
TLS, nothing answers to SYN) is the server's; 502, 503, 504, silence and a connection that breaks
are the subject's, and make the watch ask how the server is.

A circuit is *troubled since* the first failure after which nothing went well, and *down* once a
call has given up on it. **Patience counts from the beginning of the trouble, not of the call**: a
`stat` waits for 5 s, the bytes of an open file for 30 s, so that restarts are ridden out; who comes
later waits for what is left of it, and after that for nothing: the thousandth `stat` of an outage
fails at once with ``ServerDown``.

A circuit that is down is probed, one probe at a time, at intervals that grow with the outage, with
jitter. ``Session.watch`` does it in the background of a mount; where nobody watches (commands), and
for planes that only a real call can try, one of the callers is let through. It heals by any answer
to what was asked after the last failure. 4xx are answers; 429 holds calls for its Retry-After.

Any thread; nothing here waits.
"""

import math
import random
import threading
import time
from collections.abc import Callable

import httpx

from jfs.artifactory import circuits, retry
from jfs.artifactory.circuits import PROBE_LAST_S, SERVER, Circuit, Key, Listener, Outage, Plane
from jfs.errors import (
    DeadlineExceeded,
    JfsError,
    ProtocolViolation,
    RateLimited,
    RemoteError,
    ServerDown,
    Unavailable,
)
from jfs.metrics import Metrics

# A call that may not be repeated proves an outage only together with others, or if it took so long.
_SURE_S = 3.0
# How often a call that still has patience looks whether it is over.
_LOOK_S = 0.25
# A server that asks for a longer pause is asked again after this all the same.
_LONGEST_HOLD_S = 60.0
_TROUBLES_KEPT = 1000  # circuits that are troubled; a healthy one is not kept at all

_DOWN = (502, 503, 504)
_NO_CONNECTION = (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError)


class Breakers:
    """Every circuit of one server. See the module.

    Args:
        url: of the service. What is redirected elsewhere (signed storage) may fail to be reached
            for reasons of its own.
    """

    def __init__(
        self, url: str, metrics: Metrics, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._origin = _origin(url)
        self._metrics = metrics
        self.clock = clock
        self._rng = random.Random()
        self._lock = threading.Lock()
        self._circuits: dict[Key, Circuit] = {}
        self._listeners: list[Listener] = []
        self._deliver: Callable[[Callable[[], None]], None] | None = None
        self._wake: Callable[[], None] | None = None
        self._suspected = False
        self._healed: dict[Key, float] = {}  # when what was down came back
        self._answers = circuits.Answers()

    def call(
        self,
        subject: str,
        plane: Plane,
        *,
        patience_s: float,
        deadline_s: float,
        once: bool = False,
    ) -> "Call":
        """Begin a call.

        Args:
            subject: the repository, or the endpoint if it is about none.
            patience_s: how long after the beginning of a trouble it is asked again.
            deadline_s: and how long after the call's own beginning at the latest.
            once: what is asked must not be done twice.
        """
        return Call(self, (subject, plane), patience_s, deadline_s, once=once)

    def on_change(self, listener: Listener) -> None:
        """Tell *listener* whenever something goes down or is up again."""
        with self._lock:
            self._listeners.append(listener)

    def outages(self) -> list[Outage]:
        """Return what is down now, the server first."""
        if not self._circuits:
            return []
        with self._lock:
            found = [circuit.outage(key) for key, circuit in self._circuits.items() if circuit.down]
        return sorted(found, key=lambda outage: (outage.subject, outage.plane))

    @property
    def is_down(self) -> bool:
        """Whether the server itself is down."""
        circuit = self._circuits.get(SERVER)
        return circuit is not None and circuit.down

    # for who watches

    def attend(
        self, deliver: Callable[[Callable[[], None]], None], wake: Callable[[], None]
    ) -> None:
        """From now on somebody probes in the background.

        Args:
            deliver: runs a call on the thread of who listens. Any thread.
            wake: called when something went down. Any thread.
        """
        with self._lock:
            self._deliver, self._wake = deliver, wake

    def leave(self) -> None:
        """Nobody watches any more: callers probe, as without a mount."""
        with self._lock:
            self._deliver = self._wake = None

    def due(self) -> list[str]:
        """Return what is to be probed now: repositories by their names, the server as "".

        The server is looked at too while a part of it is down, or answers 500.
        """
        now = self.clock()
        with self._lock:
            down = {key: circuit for key, circuit in self._circuits.items() if circuit.down}
            server = down.pop(SERVER, None)
            if server is not None:
                return [""] if server.probe_at <= now else []
            names = [key[0] for key, each in down.items() if _is_repo(key) and each.probe_at <= now]
            suspected, self._suspected = self._suspected, False
        return ["", *names] if down or suspected else []

    def next_probe_s(self) -> float:
        """Return in how many seconds the next probe is due; inf: nothing is down."""
        now = self.clock()
        with self._lock:
            down = {key: circuit for key, circuit in self._circuits.items() if circuit.down}
        if SERVER in down:
            return max(0.0, down[SERVER].probe_at - now)
        names = [each.probe_at - now for key, each in down.items() if _is_repo(key)]
        return max(0.0, min([*names, PROBE_LAST_S])) if down else math.inf

    def probed(self, repo: str, error: JfsError | None, began: float) -> None:
        """Say how a probe ended; *error*: the server did not answer, or something else did."""
        key = (repo, Plane.NAMES)
        now = self.clock()
        change = None
        with self._lock:
            circuit = self._circuits.get(key)
            if error is None:
                change = self._heal(key, began)
            elif isinstance(error, Unavailable):
                circuit = self._fail(key, error, began, now)
                change = self._trip(key, circuit)
            elif circuit is not None:  # a proxy that lets no ping through: real calls must tell
                circuit.blind = True
            if circuit is not None:
                circuit.schedule(now, self._rng)
        self._tell(change, up=error is None)

    # for calls; each with the lock held

    def _weigh(self, error: JfsError, subject: Key) -> Key | None:
        """Return whose failure it is; None: nobody's, it is an answer or our own mistake."""
        if not isinstance(error, Unavailable):
            return None
        if error.status is None:
            cause = error.__cause__
            if isinstance(cause, _NO_CONNECTION):
                return SERVER if self._is_ours(error) else subject
            return subject if self._is_ours(error) or subject[1] is Plane.BYTES else None
        return subject if error.status in _DOWN else None

    def _is_ours(self, error: RemoteError) -> bool:
        if not error.url:
            return True
        return _origin(error.url) == self._origin

    def _fail(self, key: Key, error: RemoteError, began: float, now: float) -> Circuit:
        circuit = self._circuits.get(key)
        if circuit is None:
            if len(self._circuits) >= _TROUBLES_KEPT:
                for other in [k for k, c in self._circuits.items() if not c.down]:
                    del self._circuits[other]
            circuit = self._circuits[key] = Circuit(began)
        circuit.fail(error, began, now)
        return circuit

    def _trip(self, key: Key, circuit: Circuit) -> Outage | None:
        if circuit.down:
            return None
        circuit.down = True
        circuit.schedule(self.clock(), self._rng)
        self._metrics.count("outages")
        if self._wake is not None:
            self._wake()
        return circuit.outage(key)

    def _suspect(self) -> None:
        if self._wake is not None:
            self._suspected = True
            self._wake()

    def _heal(self, key: Key, began: float) -> Outage | None:
        circuit = self._circuits.get(key)
        if circuit is None:
            return None
        circuit.probed_by = None
        if began < circuit.failed_at:  # an answer to what was asked before it went down
            return None
        if circuit.held_until > self.clock():
            return None
        del self._circuits[key]
        if circuit.down:
            self._healed[key] = self.clock()
        if key == SERVER:  # what was down with it is probed at once
            for other in self._circuits.values():
                other.probe_at = 0.0
        return circuit.outage(key) if circuit.down else None

    # without the lock

    def _tell(self, change: Outage | None, *, up: bool) -> None:
        if change is None:
            return
        with self._lock:
            listeners, deliver = list(self._listeners), self._deliver
        for listener in listeners:
            if deliver is None:
                listener(change, up)
            else:
                deliver(lambda told=listener: told(change, up))  # type: ignore[misc]


class Call:
    """One call and its attempts; belongs to one task or thread. Made by ``Breakers.call``.

    As long as ``hold_s`` returns more than 0: wait for so long. Then attempt, and say how that
    ended: ``succeeded``, or ``failed``, which returns when to attempt again. ``end`` at last.
    """

    __slots__ = (
        "_attempted",
        "_breakers",
        "_delays",
        "_first_failed",
        "_once",
        "_patience_s",
        "_subject",
        "began",
        "deadline",
    )

    def __init__(
        self,
        breakers: Breakers,
        subject: Key,
        patience_s: float,
        deadline_s: float,
        *,
        once: bool,
    ) -> None:
        self._breakers = breakers
        self._subject = subject
        self._patience_s = patience_s
        self._once = once
        self._delays = retry.delays()
        self._first_failed = math.inf  # began the first attempt that failed
        self.began = self._attempted = breakers.clock()
        self.deadline = self.began + deadline_s

    @property
    def left_s(self) -> float:
        """Until the deadline."""
        return max(0.0, self.deadline - self._breakers.clock())

    def moved(self, deadline_s: float) -> None:
        """Bytes came before it failed: patience and deadline begin anew."""
        self.succeeded()
        self.began = self._attempted = self._breakers.clock()
        self.deadline = self.began + deadline_s
        self._delays = retry.delays()
        self._first_failed = math.inf

    def hold_s(self) -> float:
        """Return how long to wait before the attempt; 0: make it.

        Raises:
            ServerDown: what it needs is down, and its patience with that has ended.
            RateLimited, Unavailable: the server asked for a pause that is longer than the deadline.
        """
        breakers = self._breakers
        self._attempted = now = breakers.clock()
        if not breakers._circuits:  # all is well
            return 0.0
        with breakers._lock:
            probed = []
            for key in (SERVER, self._subject):
                circuit = breakers._circuits.get(key)
                if circuit is None:
                    continue
                if now < circuit.held_until:
                    return self._held(circuit, now)
                if circuit.down:
                    if not self._may_probe(key, circuit, now):
                        return self._refused(circuit, now)
                    probed.append(circuit)
            for circuit in probed:
                circuit.probed_by = self
        return 0.0

    def end(self) -> None:
        """Nothing more is attempted: another one may probe."""
        breakers = self._breakers
        if breakers._circuits:
            with breakers._lock:
                for key in (SERVER, self._subject):
                    circuit = breakers._circuits.get(key)
                    if circuit is not None and circuit.probed_by is self:
                        circuit.probed_by = None

    def _may_probe(self, key: Key, circuit: Circuit, now: float) -> bool:
        watched = self._breakers._wake is not None and _is_repo(key) and not circuit.blind
        return not watched and circuit.is_due_for(self, now)

    def _held(self, circuit: Circuit, now: float) -> float:
        error = circuit.held
        assert error is not None
        if circuit.pause_until >= self.deadline:
            self._breakers._metrics.count("refused_calls")
            raise retry.still(error, circuit.pause_until - now)
        # All who wait would come back at the same moment.
        return circuit.held_until - now + self._breakers._rng.uniform(0.0, _LOOK_S)

    def _refused(self, circuit: Circuit, now: float) -> float:
        error = circuit.error
        assert error is not None
        patience_s = self._patience_s if error.retryable else 0.0
        left = min(self.deadline, circuit.since + patience_s) - now
        if left > 0:
            return min(left, self._breakers._rng.uniform(_LOOK_S / 2, _LOOK_S))
        circuit.refused += 1
        self._breakers._metrics.count("refused_calls")
        raise ServerDown.after(error, now - circuit.since)

    def succeeded(self) -> None:
        """The server answered: it is up."""
        self._breakers._answers.note(self._subject, self._attempted)
        if not self._breakers._circuits:
            return
        with self._breakers._lock:
            changes = [self._breakers._heal(k, self._attempted) for k in (SERVER, self._subject)]
        for change in changes:
            self._breakers._tell(change, up=True)

    def failed(self, error: JfsError) -> float | None:
        """Return how long to wait before the next attempt; None: there is none, raise *error*."""
        if isinstance(error, ServerDown):
            return None
        breakers = self._breakers
        now = breakers.clock()
        healed = change = None
        with breakers._lock:
            key = breakers._weigh(error, self._subject)
            if key is not None and self._attempted < breakers._healed.get(key, 0.0):
                key = None  # asked while it was down, which is over
            late = key == self._subject and isinstance(error, DeadlineExceeded)
            if late and breakers._answers.is_later(self._subject, self._attempted):
                key = None  # a slow folder, not a repository that is down
            if key is not None and breakers.is_down:
                key = SERVER  # what a part of it does is no news then
            began = self.began
            circuit = None
            if key is not None:
                assert isinstance(error, RemoteError)
                circuit = breakers._fail(key, error, self._attempted, now)
                began = min(began, circuit.since)
            hold = retry.after_s(error)
            if hold is not None:
                self._hold(error, hold, now)
            # A server that says when to come again is waited for until the deadline.
            limit = self.deadline if hold else min(self.deadline, began + self._patience_s)
            wait = None
            self._first_failed = min(self._first_failed, self._attempted)
            if not self._once or _did_nothing(error):
                wait = retry.wait_before_retry(error, next(self._delays), limit - now)
            if circuit is not None and key is not None:
                sure_s = min(_SURE_S, self._patience_s) if self._once else 0.0
                sure = now - circuit.since >= sure_s
                if wait is None and sure and circuit.since <= self._first_failed:
                    change = breakers._trip(key, circuit)
                circuit.schedule(now, breakers._rng)
            elif wait is None and isinstance(error, Unavailable):  # 500 is no outage by itself
                breakers._suspect()
            if key != SERVER and _is_an_answer(error):
                healed = breakers._heal(SERVER, self._attempted)
        breakers._tell(change, up=False)
        breakers._tell(healed, up=True)
        if key is None and hold is None and _is_an_answer(error):
            self.succeeded()
        return wait

    def _hold(self, error: JfsError, seconds: float, now: float) -> None:
        assert isinstance(error, RateLimited | Unavailable)
        circuit = self._breakers._circuits.get(self._subject)
        if circuit is None:
            circuit = self._breakers._fail(self._subject, error, self._attempted, now)
        circuit.held = error
        circuit.pause_until = max(circuit.pause_until, now + seconds)
        circuit.held_until = max(circuit.held_until, now + min(seconds, _LONGEST_HOLD_S))


def _origin(url: str) -> tuple[str, str, int | None]:
    parsed = httpx.URL(url)
    return parsed.scheme, parsed.host, parsed.port


def _did_nothing(error: JfsError) -> bool:
    """Whether the server surely has not carried out what was asked."""
    return isinstance(error, RateLimited) or isinstance(error.__cause__, _NO_CONNECTION)


def _is_an_answer(error: JfsError) -> bool:
    """Whether somebody was there to answer, and it was the server."""
    known = isinstance(error, RemoteError) and error.status is not None
    return known and not isinstance(error, ProtocolViolation)


def _is_repo(key: Key) -> bool:
    """Whether a probe from outside can tell: the server, and the names of a repository."""
    return key[1] is Plane.NAMES and not key[0].startswith("/")
