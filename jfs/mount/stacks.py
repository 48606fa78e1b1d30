"""Where every thread and every task is, as text: for a mount that does not answer.

Any thread, also while the event loop hangs. If it does not, tasks change meanwhile: best effort.
"""

import gc
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from types import FrameType
from typing import Any

from trio.lowlevel import Task

_TASKS = 20_000
_DEPTH = 60
_REFERENTS = 20


def stacks(root: Task) -> str:
    """Return the stacks of every thread, and of every task below *root*."""
    return f"{_threads()}\n\n{_tasks(root)}"


def _threads() -> str:
    # Not by faulthandler: it stops after 100 thread states, and each thread that could not be
    # started has left one behind (Python 3.11), without a frame.
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    return "\n\n".join(
        f"Thread {names.get(ident, hex(ident))} (most recent call first):\n{_calls(frame)}"
        for ident, frame in sys._current_frames().items()
    )


def _calls(frame: FrameType | None) -> str:
    lines: list[str] = []
    while frame is not None and len(lines) < _DEPTH:
        code = frame.f_code
        lines.append(f"  File {code.co_filename}, line {frame.f_lineno} in {code.co_name}")
        frame = frame.f_back
    return "\n".join(lines)


def _tasks(root: Task) -> str:
    found: Counter[str] = Counter()
    names: dict[str, str] = {}
    for task in _below(root):
        where = "\n".join(f"  {line}" for line in _frames(task.coro)) or "  (unknown)"
        found[where] += 1
        names.setdefault(where, str(task.name))
    return "\n".join(
        f"Task {names[where]}{f' and {count - 1} more' if count > 1 else ''}:\n{where}"
        for where, count in found.most_common()
    )


def _below(root: Task) -> Iterator[Task]:
    waiting = [root]
    for _ in range(_TASKS):
        if not waiting:
            return
        task = waiting.pop()
        yield task
        try:
            for nursery in list(task.child_nurseries):
                waiting += list(nursery.child_tasks)
        except RuntimeError:  # it changed while we looked: the loop runs
            continue


def _frames(coroutine: Any) -> Iterator[str]:
    """Say where a task waits, from the outside in."""
    for _ in range(_DEPTH):
        if coroutine is None:
            return
        frame = _of(coroutine, "cr_frame", "gi_frame", "ag_frame")
        if frame is not None:
            name = getattr(coroutine, "__qualname__", frame.f_code.co_name)
            yield f"File {frame.f_code.co_filename}, line {frame.f_lineno} in {name}"
        coroutine = _of(coroutine, "cr_await", "gi_yieldfrom", "ag_await") or _wrapped(coroutine)


def _of(thing: Any, *attributes: str) -> Any:
    return next((found for name in attributes if (found := getattr(thing, name, None))), None)


def _wrapped(thing: Any) -> Any:
    """Return the coroutine that an iterator without any attribute is of."""
    if hasattr(thing, "cr_await") or hasattr(thing, "gi_yieldfrom"):
        return None
    referents = gc.get_referents(thing)[:_REFERENTS]
    return next((each for each in referents if hasattr(each, "cr_await")), None)
