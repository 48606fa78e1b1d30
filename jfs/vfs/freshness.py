"""Freshness: what the server said, and how long it is believed. A ``Cell`` keeps one answer of it.

The rules, for names, listings, attributes, properties and queries alike:

- An answer is as old as its question: its time to live counts from the moment of asking. With a
  time to live of 0 every new question goes to the server.
- Moments of asking, local changes and refreshes have serial numbers, one order for all. An answer
  is stored only if nothing newer is known: it is dropped when its cell was refreshed or changed
  here since the question was asked, or got the answer to a later question. Who waited for it gets
  it all the same. After a refresh or a change nobody joins a question that was asked before it.

Who asks, and who waits: ``questions``. What is believed during an outage: ``standing``. Trio thread
only. No locks: nothing here is held while something else is waited for.
"""

import itertools
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final, Generic, NamedTuple, TypeVar

import trio

from jfs.clocks import boot_time
from jfs.errors import ProtocolViolation, RateLimited, Unavailable
from jfs.vfs.standing import KERNEL_S, Stand

# Failures that say nothing about the item: nobody there, too busy, or somebody else answers (the
# login page of a network, a proxy's error page).
OUTAGES: Final = (Unavailable, RateLimited, ProtocolViolation)

# Work on large answers is done in pieces of this many entries, with a checkpoint after each: about
# 5 ms on a slow machine.
PIECE = 1000

# ``Asked.at`` of what another process asked: expired by time, and not because it was changed.
_EXPIRED: Final = -sys.float_info.max

_T = TypeVar("_T")
_serials = itertools.count(1)


class Asked(NamedTuple):
    """When something was asked, changed or refreshed.

    Attributes:
        serial: orders all of these moments; the later, the larger.
        at: ``trio.current_time()``; -inf: what was known then is not believed.
        confirmed: when the answer was last the server's, or made true here, by ``boot_time``; -inf:
            never. It says how long the answer may stand in, also when it is not believed.
    """

    serial: int
    at: float
    confirmed: float = -math.inf

    @classmethod
    def now(cls) -> "Asked":
        """Return this moment."""
        return cls(next(_serials), trio.current_time(), boot_time())

    @classmethod
    def restored(cls, confirmed_at: float) -> "Asked":
        """Return a moment of an earlier process: expired, older than all of ours.

        Args:
            confirmed_at: what ``confirmed_at`` returned then. A wall clock that was ahead then, or
                is behind now, makes the answer new at worst, never younger than that.
        """
        age_s = max(0.0, time.time() - confirmed_at)
        return cls(0, _EXPIRED, boot_time() - age_s)

    @property
    def confirmed_at(self) -> float:
        """When the answer was confirmed, as Unix time: for ``restored``, in another process.

        It is counted back from now, so that it fits the wall clock of this moment.
        """
        return time.time() - max(0.0, boot_time() - self.confirmed)

    def as_hint(self) -> "Asked":
        """Return the same moment for an answer that shall not be believed."""
        return self if self.at == -math.inf else self._replace(at=-math.inf)


NEVER: Final = Asked(0, -math.inf)


# When the machine woke, by ``trio.current_time``, and for how long it had been suspended.
_sleeps: list[tuple[float, float]] = []
_SLEEPS_KEPT = 32


@contextmanager
def ageing() -> Iterator[Callable[[float], None]]:
    """Let answers get older by the seconds that the yielded function is told, for the block.

    The clock of the event loop stands still while the machine is suspended.
    """

    def age(seconds: float) -> None:
        _sleeps.append((trio.current_time(), seconds))
        if len(_sleeps) > _SLEEPS_KEPT:  # what is from between the two gets too old
            (_, first_s), (woken, second_s), *_ = _sleeps
            _sleeps[:2] = [(woken, first_s + second_s)]

    try:
        yield age
    finally:
        _sleeps.clear()


def _now_for(at: float) -> float:
    """Return the time for what was asked then."""
    now = trio.current_time()
    if _sleeps:
        now += sum(seconds for woken, seconds in _sleeps if woken > at)
    return now


class _Nothing:
    """No answer so far."""


_NOTHING: Final = _Nothing()


class Cell(Generic[_T]):
    """The last answer of the server to one question, and when that was asked. See the module.

    Attributes:
        asked: of the answer; or when it was changed here or refreshed since.
        as_of: the serial number of the question that the answer is to, or of the change that made
            it true. No refresh changes that: what was asked before is older still.
    """

    __slots__ = ("_stand", "_value", "as_of", "asked", "question")

    def __init__(self) -> None:
        self._value: _T | _Nothing = _NOTHING
        self.asked = NEVER
        self.as_of = 0
        self._stand: Stand | None = None
        self.question: Question[_T] | None = None

    @property
    def is_known(self) -> bool:
        """Whether there ever was an answer, fresh or not."""
        return self._value is not _NOTHING

    @property
    def value(self) -> _T:
        """The last answer, fresh or not. Raises LookupError if there is none."""
        value = self._value
        if value is _NOTHING:  # not isinstance: this is asked several times for every `stat`
            raise LookupError("the server has not answered yet")
        return value  # type: ignore[return-value]

    @property
    def asking(self) -> Asked | None:
        """When the question was asked that is under way, if there is one."""
        return self.question.asked if self.question is not None else None

    @property
    def is_idle(self) -> bool:
        """Whether nobody asks at the moment."""
        return self.question is None

    def is_answered(self, ttl_s: float) -> bool:
        """Whether the answer was asked for within its time to live."""
        return self.is_known and _now_for(self.asked.at) < self.asked.at + ttl_s

    def is_fresh(self, ttl_s: float) -> bool:
        """As ``is_answered``, or it stands in and is not yet to be asked for again."""
        if _now_for(self.asked.at) < self.asked.at + ttl_s:
            return self._value is not _NOTHING
        stand = self._stand
        return stand is not None and ttl_s > 0 and stand.left_s > 0

    def is_stale(self, ttl_s: float) -> bool:
        """Whether the answer stands in for one that could not be had."""
        stand = self._stand
        return stand is not None and not stand.is_over and not self.is_answered(ttl_s)

    def left_s(self, *ttls_s: float) -> list[float]:
        """Return for how long the answer may still be used, for each time to live; 0: not at all"""
        if self._value is _NOTHING:
            return [0.0 for _ in ttls_s]
        at = self.asked.at - _now_for(self.asked.at)
        stands = min(KERNEL_S, self._stand.left_s) if self._stand is not None else 0.0
        return [max(0.0, at + ttl_s, min(stands, ttl_s)) for ttl_s in ttls_s]

    def accepts(self, asked: Asked) -> bool:
        """Whether an answer to a question of this moment would be stored."""
        return asked.serial >= self.asked.serial

    def put(self, value: _T, asked: Asked) -> bool:
        """Store an answer, also one that came along with that to another question.

        Returns:
            False: something newer is known; nothing was changed.
        """
        if not self.accepts(asked):
            return False
        self._value = value
        self.asked = asked
        self.as_of = asked.serial
        self._stand = None
        return True

    def change(self, value: _T) -> None:
        """Store what was made true here, a moment ago."""
        self.put(value, Asked.now())

    def confirm(self, value: _T | _Nothing = _NOTHING) -> None:
        """Believe the answer as long as before, but no other that was asked for until now.

        Args:
            value: the answer in other words, if it needs any.
        """
        self.asked = self.asked._replace(serial=next(_serials))
        if value is not _NOTHING:
            self._value = value

    def expire(self, refreshed: Asked | None = None) -> None:
        """Believe the answer no more, nor one that was asked for until now.

        Args:
            refreshed: or until then. What was asked for later is believed.
        """
        serial = refreshed.serial if refreshed else next(_serials)
        if serial > self.as_of:
            self.asked = Asked(max(serial, self.asked.serial), -math.inf, self.asked.confirmed)
            self._stand = None

    def drop(self) -> None:
        """As ``expire``, and forget the answer."""
        self.expire()
        self._value = _NOTHING

    def stand_in(self, stand: Stand) -> None:
        """Let an expired answer stand in; it was asked for in vain."""
        self._stand = stand


class Answer(NamedTuple, Generic[_T]):
    """What the server said.

    Attributes:
        stored: False: something newer is known; this is for those alone who waited for it.
    """

    value: _T
    asked: Asked
    stored: bool


class Question(Generic[_T]):
    """A question that is under way, and how it ends.

    Attributes:
        given_up: ``Subject.answers`` when somebody gave it up; None: nobody did.
        heard: set with *done*, and when something is up again since it was asked.
        ups: ``Standing.ups`` when it began.
    """

    __slots__ = ("answer", "asked", "done", "error", "given_up", "heard", "ups", "waiting")

    def __init__(self, ups: int) -> None:
        self.given_up: int | None = None
        self.ups = ups
        self.asked = Asked.now()
        self.done = trio.Event()
        self.heard = trio.Event()
        self.waiting = 0
        self.answer: Answer[_T] | None = None
        self.error: Exception | None = None


def pieces(items: Sequence[_T]) -> Iterator[Sequence[_T]]:
    """Cut many items up; the caller makes a checkpoint after each piece."""
    return (items[start : start + PIECE] for start in range(0, len(items), PIECE))
