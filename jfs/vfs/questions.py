"""Questions that are under way: one at a time for each cell, for everybody who asks meanwhile.

Everybody gets the answer or the failure who asked while it was under way; who asks later asks anew.
A question runs in a task of its own: a caller that is cancelled takes it from nobody. While the
server cannot be asked, what was known before may stand in: see ``standing``. Trio thread only.
"""

import logging
import math
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import trio

from jfs.clocks import boot_time
from jfs.errors import JfsError, MountEnding, ServerDown
from jfs.vfs.freshness import OUTAGES, Answer, Asked, Cell, Question
from jfs.vfs.standing import Stand, Standing, Subject

log = logging.getLogger(__name__)

_T = TypeVar("_T")


class NotYet(Exception):
    """The caller's patience has ended; the question is still under way."""


class StandsIn(Exception):
    """The server cannot be asked, and something is known that may stand in.

    Attributes:
        stand: for the cell of what is used instead.
    """

    def __init__(self, stand: Stand) -> None:
        super().__init__("what is known stands in")
        self.stand = stand


class Questions:
    """Every question of one mount that is under way.

    Args:
        nursery: where questions run; cancelled with the mount at the latest.
        standing: what stands in while the server cannot be asked.
    """

    def __init__(self, nursery: trio.Nursery, standing: Standing) -> None:
        self.standing = standing
        self._nursery = nursery
        self._running: set[trio.CancelScope] = set()
        self._asked: set[Question[Any]] = set()
        self._closed = False

    def __len__(self) -> int:
        return len(self._running)

    def up(self, name: str) -> None:
        """Ask anew for what stands in, also for those who wait; see ``Standing.up``."""
        self.standing.up(name)
        for question in self._asked:
            question.heard.set()

    async def answer(
        self,
        cell: Cell[_T],
        ask: Callable[[Asked], Awaitable[_T]],
        subject: str,
        *,
        stands: Cell[Any] | None = None,
        patience_s: float = math.inf,
        anew: bool = False,
        recall: Callable[[], Awaitable[Cell[Any] | None]] | None = None,
    ) -> Answer[_T]:
        """Ask the server, or wait with those who do; whether it is necessary is the caller's.

        Args:
            ask: asks and returns the answer, which is stored if nothing newer is known by then.
                It is called only if nobody asks yet.
            subject: what is asked, as far as it may fail by itself: see ``standing``.
            stands: what may be used instead while the server cannot be asked, for as long as it
                may stand in; None: nothing.
            patience_s: how old the question may become before the caller waits no longer.
            anew: what the server says now is wanted: no patience ends before it has failed.
            recall: where *stands* knows nothing and the server cannot be asked: finds what an
                earlier mount knew, and returns what is to stand in; None: nothing.
        Raises:
            NotYet: it was not answered in that time.
            StandsIn: *stands* is to be used; the question may be under way still.
            Exception: what *ask* raised, for everybody who waited.
        """
        if self._closed:
            raise MountEnding("the mount is ending")
        standing = self.standing
        known = standing.subject(subject)
        may = hurried = False
        if recall is not None and (stands is None or not stands.is_known):
            if standing.doubts() or known.spell is not None:
                stands = await recall() or stands
        else:
            recall = None
        if stands is not None:
            may = self.may_stand_in(stands)
            # What was refreshed, or changed here, is waited for; but not where nothing answers.
            is_expired = stands.asked.at > -math.inf
            hurried = may and not anew and (is_expired or known.is_silent)
        question = cell.question
        if question is None or not cell.accepts(question.asked) or self._is_vain(question, known):
            waits_not = hurried or patience_s < math.inf
            if waits_not and not known.may_ask():
                # Before the checkpoint, in which it may come up: that is no new spell.
                stand = standing.stand(subject, known.refused) if hurried else None
                await trio.lowlevel.checkpoint()
                raise StandsIn(stand) if stand is not None else NotYet
            question = cell.question = Question(standing.ups)
            self._nursery.start_soon(self._run, cell, question, ask, subject)
        question.waiting += 1
        try:
            if hurried:
                await self._heard(question, known)
            elif patience_s == math.inf:
                await question.done.wait()
            else:
                with trio.move_on_at(question.asked.at + patience_s):
                    await question.done.wait()
        finally:
            question.waiting -= 1
        answer, error = question.answer, question.error
        try:
            if answer is not None:
                return answer
            is_over = question.ups != standing.ups  # the outage that it was asked in
            if hurried and is_over and (error is None or isinstance(error, OUTAGES)):
                return await self.answer(
                    cell, ask, subject, stands=stands, patience_s=patience_s, recall=recall
                )
            if error is None:
                if not hurried:
                    raise NotYet
                raise StandsIn(standing.stand(subject, ""))
            if isinstance(error, OUTAGES):
                if not may and recall is not None:
                    stands = await recall()
                    may = stands is not None and self.may_stand_in(stands)
                if may:
                    raise StandsIn(standing.stand(subject, error)) from None
            raise error
        finally:
            del question, error  # the traceback of an error that is kept must not hold this frame

    def may_stand_in(self, cell: Cell[Any]) -> bool:
        """Whether what a cell knows was confirmed so lately that it may stand in."""
        window_s = self.standing.window_s
        return cell.is_known and window_s > 0 and boot_time() < cell.asked.confirmed + window_s

    async def _heard(self, question: Question[Any], subject: Subject) -> None:
        """Wait as long as it makes sense for somebody who can do without."""
        if question.given_up == subject.answers:
            await trio.lowlevel.checkpoint()
        elif not await subject.heard(question.heard, self.standing.patience_s):
            if question.given_up is None:
                subject.in_vain += 1
            question.given_up = subject.answers

    def _is_vain(self, question: Question[Any], subject: Subject) -> bool:
        """Whether nobody need join a question: its connection is dead, and the server is not."""
        given_up = question.given_up
        return question.ups != self.standing.ups or given_up not in (None, subject.answers)

    def run(self, work: Callable[..., Awaitable[None]], *args: object) -> None:
        """Start *work* in the background, until ``close``. It raises nothing."""
        if not self._closed:
            self._nursery.start_soon(self._guarded, work, *args)

    def close(self) -> None:
        """Cancel what is under way; nothing is asked any more. For the end of the mount."""
        self._closed = True
        for scope in list(self._running):
            scope.cancel()

    async def _guarded(self, work: Callable[..., Awaitable[None]], *args: object) -> None:
        with trio.CancelScope() as scope:
            self._running.add(scope)
            if self._closed:  # before this task had its first turn
                scope.cancel()
            try:
                await work(*args)
            finally:
                self._running.discard(scope)

    async def _run(
        self,
        cell: Cell[_T],
        question: Question[_T],
        ask: Callable[[Asked], Awaitable[_T]],
        subject: str,
    ) -> None:
        with trio.CancelScope() as scope, self.standing.asking(subject) as known:
            self._running.add(scope)
            self._asked.add(question)
            if self._closed:  # before this task had its first turn
                scope.cancel()
            try:
                value = await ask(question.asked)
                # no checkpoint until it is stored and those who wait are told
                stored = cell.put(value, question.asked)
                question.answer = Answer(value, question.asked, stored)
                self.standing.answered(known)
            except Exception as error:
                refused = isinstance(error, ServerDown) and question.ups == self.standing.ups
                known.refused = str(error) if refused else ""
                if isinstance(error, JfsError) and not isinstance(error, OUTAGES):
                    self.standing.answered(known)
                question.error = error.with_traceback(None) if _is_expected(error) else error
                if not question.waiting and not _is_expected(error):
                    log.error("a question that nobody waited for failed", exc_info=error)
            finally:
                if question.answer is None and question.error is None:  # cancelled
                    question.error = MountEnding("the mount is ending")
                self._running.discard(scope)
                self._asked.discard(question)
                if cell.question is question:
                    cell.question = None
                question.done.set()
                question.heard.set()


def _is_expected(error: Exception) -> bool:
    return isinstance(error, JfsError)
