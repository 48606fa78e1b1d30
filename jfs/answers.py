"""Who answers the kernel's requests, and how one is let go whose asker was told to end.

A thread that waits for an answer of FUSE waits uninterruptibly once its request was read: also
SIGKILL ends it only with an answer. So a request may be *let go*: it is answered EINTR at once.
Where its handler only looks, that is cancelled; where it changes something, it goes on
(``Answers.behind``) to the end that it would have had. Trio thread only.
"""

import contextlib
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar

import trio
from trio.lowlevel import Task

from jfs.errors import MountEnding

_T = TypeVar("_T")
_NO_FILE = (0, 0)


class Answer:
    """One task that answers, one request after another. Made by ``Answers.answering``.

    Attributes:
        call: the name of the handler that runs, and its arguments; empty: none.
        number: how many requests it has begun to answer.
        request: libfuse's, 0 if it is not known; freed when it is answered.
        file: of a READ: the inode, and the flags of the open file as they are now.
    """

    __slots__ = ("_leaving", "_scope", "_task", "arguments", "call", "file", "number", "request")

    def __init__(self, task: Task, scope: trio.CancelScope, leaving: set[Task]) -> None:
        self._task = task
        self._scope = scope
        self._leaving = leaving
        self.call = ""
        self.arguments: Sequence[Any] = ()
        self.number = 0
        self.request = 0
        self.file = _NO_FILE

    def begin(
        self, call: str, arguments: Sequence[Any], request: int, file: tuple[int, int]
    ) -> None:
        """Note what is answered now. Without a *request* it is a part of the last one."""
        self.call = call
        self.arguments = arguments
        if request:
            self.request = request
            self.file = file
            self.number += 1

    def end(self) -> None:
        """Note that the handler has run."""
        self.call = ""
        self.arguments = ()

    def let_go(self) -> None:
        """Cancel the handler that runs, which answers EINTR then; the task is to end with that."""
        self._leaving.add(self._task)
        self._scope.cancel()

    @property
    def is_let_go(self) -> bool:
        """Whether it was told so."""
        return self._task in self._leaving


class Left(Generic[_T]):
    """What becomes of work that nobody waits for any more."""

    async def done(self, value: _T) -> None:
        """It has come to its end."""

    async def failed(self, error: Exception) -> None:
        """It has failed."""


class Answers:
    """Those of one mount.

    Attributes:
        arrived: the request that libfuse passes to a handler right now; 0: it is not known.
        file: of that, if it is a READ.
        nursery: where work goes on that nobody waits for; None: nowhere.
        leaving: the tasks whose request was let go, and that are to end.
    """

    def __init__(self) -> None:
        self.arrived = 0
        self.file = _NO_FILE
        self.nursery: trio.Nursery | None = None
        self.leaving: set[Task] = set()
        self._of: dict[Task, Answer] = {}

    @contextlib.contextmanager
    def answering(self) -> Iterator[Answer]:
        """Answer in this task. A task whose request was let go must not answer another."""
        task = trio.lowlevel.current_task()
        with trio.CancelScope() as scope:
            answer = self._of[task] = Answer(task, scope, self.leaving)
            try:
                yield answer
            finally:
                del self._of[task]
                self.leaving.discard(task)

    def begun(self, call: str, arguments: Sequence[Any]) -> Answer | None:
        """Note that the handler *call* runs in this task; None: it is no task that answers."""
        # Not a scope for each request: entering one costs more than answering a STATFS does.
        answer = self._of.get(trio.lowlevel.current_task())
        if answer is not None:
            answer.begin(call, arguments, self.arrived, self.file)
        self.arrived, self.file = 0, _NO_FILE
        return answer

    def here(self) -> Answer | None:
        """Return what this task answers; None: it is no task that answers."""
        return self._of.get(trio.lowlevel.current_task())

    def busy(self) -> list[Answer]:
        """Return those whose handler runs, and whose request is known."""
        return [answer for answer in self._of.values() if answer.call and answer.request]

    async def behind(
        self, work: Callable[[], Awaitable[_T]], left: Callable[[Answer], Left[_T]]
    ) -> _T:
        """Run *work* to its end, whoever waits for it. Cancellation ends the waiting alone.

        Args:
            left: called when the request is let go, before it is answered.
        """
        answer = self.here()
        if self.nursery is None or answer is None:
            return await work()
        waited: _Waited[_T] = _Waited()
        self.nursery.start_soon(_run, waited, work)
        try:
            await waited.done.wait()
        except trio.Cancelled:
            if waited.done.is_set():  # in the same turn: it would be lost
                return waited.outcome()
            # Else the mount ends, and whose bytes are on no server is told by the journal.
            waited.left = left(answer) if answer.is_let_go else Left()
            raise
        return waited.outcome()


class _Waited(Generic[_T]):
    """Work, and whether anybody waits for it."""

    def __init__(self) -> None:
        self.done = trio.Event()
        self.left: Left[_T] | None = None
        self.values: list[_T] = []
        self.error: Exception | None = None

    def outcome(self) -> _T:
        error, self.error = self.error, None
        try:
            if error is not None:
                raise error
            if not self.values:
                raise MountEnding("the mount is ending")
            return self.values[0]
        finally:
            del error  # its traceback holds this frame


async def _run(waited: _Waited[_T], work: Callable[[], Awaitable[_T]]) -> None:
    try:
        value = await work()
        # no checkpoint until the event: until then the waiting may end, and after it not
        waited.values.append(value)
        if waited.left is not None:
            await waited.left.done(value)
    except Exception as error:
        if waited.left is None:
            waited.error = error
        else:
            await waited.left.failed(error)
    finally:
        waited.done.set()
