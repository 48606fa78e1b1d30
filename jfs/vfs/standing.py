"""While the server cannot be asked: what stands in, for how long, and who waits for how long.

What was known stands in for ``stale_if_error_s`` after it was last confirmed, where its question
fails with one of ``OUTAGES``, or gets no answer. It never stands in where the server answers in
time:

- Who has something that can stand in waits for ``patience_s``, and that counts only while nothing
  at all of the same *subject* is answered: a large listing takes long on a server that is well.
  Then the question goes on behind, and its answer is known when it comes.
- After two such waits in a row, with no answer of the subject between, the subject is *silent*:
  nobody waits for it who has something that can stand in, and it is asked once a second, until it
  answers.
- So is one of which a question was *refused*, since the server is down (``ServerDown``): a walk
  through 100,000 names that are known would make as many questions that nobody asks.
- An answer that stands in is asked for again after ``_STAND_IN_S``, and as soon as somebody tells
  that the server is up (``up``).

A subject is what may fail by itself: a repository; "" is what is about several, or their list. No
network here, no cells: those are in ``freshness`` and ``questions``. Trio thread only.
"""

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import trio

from jfs.errors import JfsError
from jfs.metrics import Metrics

log = logging.getLogger(__name__)

# An expired answer stands in for this long before the next try, so that a failure that takes its
# time is not waited for at every call.
_STAND_IN_S = 5.0
# The kernel asks again after this: what stands in shall be seen to heal within seconds.
KERNEL_S = 1.0
# Patience is counted in parts, each from its own beginning: a process that did not run for a while
# finds the answer in the next part, and does not take its own sleep for the server's.
_PARTS = 4
_SILENT_AFTER = 2  # waits in vain
_ASKED_EVERY_S = 1.0  # while it is silent
_SUBJECTS_KEPT = 1000


class _Spell:
    """A time in which one subject cannot be asked."""

    __slots__ = ("ended", "failed_at")

    def __init__(self) -> None:
        self.ended = False
        self.failed_at = trio.current_time()


class Stand:
    """That an answer stands in, since its question failed; kept in its cell until it is asked."""

    __slots__ = ("_spell", "until")

    def __init__(self, spell: _Spell) -> None:
        self.until = trio.current_time() + _STAND_IN_S
        self._spell = spell

    @property
    def left_s(self) -> float:
        """For how long nobody need ask again; 0: the next use asks."""
        return 0.0 if self._spell.ended else max(0.0, self.until - trio.current_time())

    @property
    def is_over(self) -> bool:
        """Whether the server is up again, as far as is known."""
        return self._spell.ended


class Subject:
    """What is known of how one subject answers.

    Attributes:
        answers: how many there were so far.
        asked_at: when it was last asked for somebody who has something that can stand in.
        refused: why nobody was asked last time; "": somebody was, or it may be up again.
    """

    __slots__ = ("answers", "asked_at", "asking", "in_vain", "refused", "spell")

    def __init__(self) -> None:
        self.answers = 0
        self.refused = ""
        self.asked_at = -math.inf
        self.asking = 0
        self.in_vain = 0
        self.spell: _Spell | None = None

    @property
    def is_silent(self) -> bool:
        return self.in_vain >= _SILENT_AFTER

    def may_ask(self) -> bool:
        """Whether a question may begin for somebody who will not wait for it."""
        now = trio.current_time()
        if (self.is_silent or self.refused) and now < self.asked_at + _ASKED_EVERY_S:
            return False
        self.asked_at = now
        return True

    async def heard(self, event: trio.Event, patience_s: float) -> bool:
        """Wait for *event*; False: it did not come, and nor did any answer, for so long."""
        if self.is_silent:
            await trio.lowlevel.checkpoint()
            return event.is_set()
        parts, answers = 0, self.answers
        while parts < _PARTS:
            with trio.move_on_after(patience_s / _PARTS):
                await event.wait()
            if event.is_set():
                return True
            parts = parts + 1 if answers == self.answers else 0
            answers = self.answers
        return False


class Standing:
    """See the module.

    Args:
        window_s: for how long after it was confirmed an answer may stand in; 0: never; inf: the
            server is never asked, which need not be said.
        patience_s: see the module.
        doubts: whether the server could not be asked when the mount began, nor since: nobody waits
            for the first answer who has something that can stand in.

    Attributes:
        ups: how often something was up again; nobody joins a question from before.
    """

    def __init__(
        self,
        window_s: float,
        patience_s: float,
        metrics: Metrics,
        doubts: Callable[[], bool] = lambda: False,
    ) -> None:
        self.window_s = window_s
        self.patience_s = patience_s
        self._metrics = metrics
        self._subjects: dict[str, Subject] = {}
        self._since: float | None = None
        self._count = 0
        self.doubts = doubts
        self.ups = 0

    @property
    def since(self) -> float | None:
        """Since when something stands in, as Unix time; None: nothing does."""
        return self._since

    def subject(self, name: str) -> Subject:
        """Return what is known of a subject."""
        found = self._subjects.get(name)
        if found is None:
            if len(self._subjects) >= _SUBJECTS_KEPT:
                idle = [n for n, s in self._subjects.items() if s.spell is None and not s.asking]
                for each in idle:
                    del self._subjects[each]
            found = self._subjects[name] = Subject()
            found.in_vain = _SILENT_AFTER if self.doubts() else 0
        return found

    def failed_since(self, name: str, moment: float) -> bool:
        """Whether something of a subject stands in that was asked for after a moment of trio's."""
        found = self._subjects.get(name)
        return found is not None and found.spell is not None and found.spell.failed_at > moment

    def stand(self, name: str, error: JfsError | str) -> Stand:
        """Note that an answer stands in. Logs the first one.

        Args:
            error: why; "": there was no answer in time.
        """
        subject = self.subject(name)
        spell = subject.spell
        if spell is None:
            spell = subject.spell = _Spell()
        spell.failed_at = trio.current_time()
        self._metrics.count("stale_answers")
        self._count += 1
        if self._since is None:
            self._since = time.time()
            self._count = 1
            self._metrics.set("stale_since", int(self._since))
            if self.window_s < math.inf:
                log.warning(
                    "%s cannot be asked, serving what was known before, up to %.0f s old: %s",
                    name or "the server",
                    self.window_s,
                    error or self._silence(),
                )
        return Stand(spell)

    def _silence(self) -> str:
        if self.doubts():
            return "it could not be asked when the mount began"
        return f"no answer for {self.patience_s:g} s"

    def answered(self, subject: Subject) -> None:
        """Note an answer of a subject, also one that refuses."""
        subject.answers += 1
        subject.in_vain, subject.refused = 0, ""
        spell = subject.spell
        # Others may go on failing, one path of a server that is well: a beginning and an end for
        # each of them would fill the log.
        if spell is not None and trio.current_time() > spell.failed_at + _STAND_IN_S:
            self._end(subject)

    def up(self, name: str) -> None:
        """Ask anew for what stands in, at its next use.

        Args:
            name: the subject that is up again; "": the server, and so all of them.
        """
        self.ups += 1
        for known, subject in self._subjects.items():
            if name in (known, ""):
                subject.in_vain, subject.refused = 0, ""
                if subject.spell is not None:
                    self._end(subject)

    def _end(self, subject: Subject) -> None:
        assert subject.spell is not None
        subject.spell.ended = True
        subject.spell = None
        if self._since is None or any(each.spell for each in self._subjects.values()):
            return
        log.info(
            "the server can be asked again: for %.0f s what was known stood in, %d times",
            max(0.0, time.time() - self._since),
            self._count,
        )
        self._since = None
        self._metrics.set("stale_since", 0)

    @contextmanager
    def asking(self, name: str) -> Iterator[Subject]:
        """Hold what is known of a subject while it is asked."""
        subject = self.subject(name)
        subject.asking += 1
        try:
            yield subject
        finally:
            subject.asking -= 1
