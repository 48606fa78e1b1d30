"""What goes on behind a request that was let go, as if whoever asked were still there.

Two things are missing then: the kernel's hold on the inodes, which it forgets once it has the
answer; and its locks of the folders, so that others look at the names meanwhile, and the kernel
believes what they see. So the inodes are held until the end, and the kernel is told to forget.
Trio thread only.
"""

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from jfs.answers import Answer, Answers, Left
from jfs.errors import MountEnding
from jfs.notifier import forget
from jfs.vfs.filesystem import Attributes, Filesystem, Opened

_T = TypeVar("_T")


class Behind:
    """Runs the changes of one mount."""

    def __init__(self, answers: Answers, filesystem: Filesystem) -> None:
        self._answers = answers
        self._filesystem = filesystem

    async def run(self, work: Callable[[], Awaitable[_T]]) -> _T:
        """Return what *work* returns. If the request is let go meanwhile it goes on."""
        return await self._answers.behind(work, lambda answer: _Left(self._filesystem, answer))


class _Left(Left[Any]):
    def __init__(self, filesystem: Filesystem, answer: Answer) -> None:
        self._filesystem = filesystem
        self._call, self._arguments = answer.call, answer.arguments
        self._held = filesystem.boundary.hold(self._call, self._arguments)

    async def done(self, value: object) -> None:
        """Give back what only the asker could have given back."""
        made, opened = value if isinstance(value, tuple) else (value, value)
        try:
            if isinstance(made, Opened):
                await self._filesystem.release(made.handle)
            if isinstance(opened, Attributes) and self._call != "setattr":
                self._filesystem.forget(opened.ino, 1)
        finally:
            await self._end()

    async def failed(self, error: Exception) -> None:
        """Say why, where the user looks."""
        if not isinstance(error, MountEnding):
            self._filesystem.boundary.refused(self._call, self._arguments, error)
        await self._end()

    async def _end(self) -> None:
        try:
            match self._call, self._arguments:
                case "rename", (int(parent), bytes(name), int(new_parent), bytes(new_name), *_):
                    await forget(((parent, name), (new_parent, new_name)))
                case _, (int(parent), bytes(name), *_) if self._call not in _OF_PROPERTIES:
                    await forget(((parent, name),))
                case (("setattr" | "fallocate"), (int(inode), *_)):
                    await forget((), inode)
        finally:
            for ino in self._held:
                self._filesystem.forget(ino, 1)


_OF_PROPERTIES = frozenset(["setxattr", "removexattr"])
