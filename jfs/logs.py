"""Set up logging once per process. Modules log through ``logging.getLogger(__name__)``.

Nothing that happens to the output reaches whoever logs: a disk that is full and a reader that has
gone cost messages, which are counted and reported as soon as one can be written again; a disk that
hangs and a reader that stands still keep nobody waiting. Repeats are counted (``folding``), secrets
are masked.
"""

import contextlib
import logging
import os
import signal
import stat
import threading
from collections import deque
from pathlib import Path
from typing import Any

from jfs.errors import ConfigError
from jfs.folding import Folding
from jfs.words import masked

_BACKLOG = 1000  # messages that wait for a slow reader, or for a disk
_FLUSH_S = 1.0  # how long the end waits for one
# Whoever logs to a file waits for its line, so that a crash right after loses none; so long at
# most, and not at all while the disk is behind.
_PATIENCE_S = 0.5


class _Message:
    __slots__ = ("text", "written")

    def __init__(self, text: str) -> None:
        self.text = text
        self.written = False


class _Sink:
    """An open file that is written to by one thread, which may hang in it."""

    def __init__(self, file: int) -> None:
        self.file = file
        self.is_regular = stat.S_ISREG(os.fstat(file).st_mode)
        self.writes: _Message | None = None
        self.has_thread = False
        self._torn = False  # the last line was written in part

    def write(self, text: str) -> str | None:
        """Write lines; return what went wrong."""
        data = ("\n" * self._torn + text + "\n").encode("utf-8", "backslashreplace")
        whole = len(data)
        try:
            while data:
                data = data[os.write(self.file, data) :]
        except OSError as error:
            self._torn = self._torn or len(data) < whole
            return error.strerror or str(error)
        self._torn = False
        return None


class Output(logging.Handler):
    """Writes records to a file or to a descriptor, by a thread of its own. Any thread.

    Args:
        file: appended to, and made if it is missing.
        descriptor: written to if there is no file.
    Raises:
        OSError: the file cannot be opened.
    """

    def __init__(self, file: Path | None = None, descriptor: int = 2) -> None:
        super().__init__()
        self._file = file
        self._also: int | None = None
        self._sink = _Sink(os.dup(descriptor) if file is None else _opened(file))
        self._lost, self._reason = 0, ""
        self._skipped = 0  # as the backlog was full
        self._behind = False  # somebody has waited for a line in vain
        self._folding = Folding()
        self._backlog: deque[_Message] = deque()
        self._changed = threading.Condition()

    def stand_for(self, descriptor: int) -> None:
        """Make *descriptor* the same file, also after ``reopen``: for what other code prints."""
        os.dup2(self._sink.file, descriptor)
        self._also = descriptor

    def reopen(self) -> None:
        """Open the file by its name again: a program that rotates logs has renamed it.

        Blocking, where its disk hangs.

        Raises:
            OSError: it cannot be opened; the old one is written on.
        """
        if self._file is None:
            return
        fresh = _Sink(_opened(self._file))
        if self._also is not None:
            os.dup2(fresh.file, self._also)
        with self._changed:
            before, self._sink = self._sink, fresh
            self._behind = False
            self._start()
            self._changed.notify_all()
        if not before.has_thread:  # else that closes it, once it comes back
            _close(before.file)

    def emit(self, record: logging.LogRecord) -> None:
        with self._changed:
            takes = self._folding.takes(record)
            self._say_repeats()
            message = self._put(self._text(record)) if takes else None
            if message is not None and self._sink.is_regular and not self._behind:
                is_written = self._changed.wait_for(lambda: message.written, _PATIENCE_S)
                self._behind = not is_written

    def settle(self) -> None:
        """Say what was counted in the minute before, if nobody has logged since. Any thread."""
        with self._changed:
            self._say_repeats()

    def _say_repeats(self, *, now: bool = False) -> None:
        for last, count, seconds in self._folding.due(now=now):
            times = "once more" if count == 1 else f"{count} times"
            self._put(f"{self._text(last)} (… {times} in {max(1, round(seconds))} s)")

    def _text(self, record: logging.LogRecord) -> str:
        try:
            return self.format(record)
        except Exception as error:  # a wrong call of the logger: no reason to fail, nor to be mute
            return f"{record.pathname}:{record.lineno}: cannot be formatted: {error!r}"

    def _put(self, text: str) -> _Message | None:
        """Have a line written; return it, None: there are too many."""
        if len(self._backlog) >= _BACKLOG:
            self._skipped += 1
            return None
        if self._skipped:
            why = "the disk did not take them" if self._sink.is_regular else "nobody read them"
            text = f"{_lost(self._skipped, why)}\n{text}"
            self._skipped = 0
        message = _Message(text)
        self._backlog.append(message)
        self._start()
        self._changed.notify_all()
        return message

    def _start(self) -> None:
        """Start the thread of the sink, if it has none and something is to be written."""
        sink = self._sink
        if sink.has_thread or not self._backlog:
            return
        writer = threading.Thread(
            target=self._write_backlog, args=(sink,), name="jfs-log", daemon=True
        )
        # A signal that this thread took would be lost: they are for the main thread (signals).
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            writer.start()
            sink.has_thread = True
        except RuntimeError:  # no thread is left: tried again
            while sink.is_regular and self._backlog:
                self._write(sink, self._backlog.popleft())
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def flush(self) -> None:
        """Say what was counted so far, and wait a moment for what was logged to be written."""
        with self._changed:
            self._say_repeats(now=True)
            self._changed.wait_for(lambda: not self._backlog and not self._sink.writes, _FLUSH_S)

    def _write_backlog(self, sink: _Sink) -> None:
        """Write what is logged until another file takes its place."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._backlog or self._sink is not sink)
                if self._sink is not sink:
                    break
                message = sink.writes = self._backlog.popleft()
            self._write(sink, message)
        _close(sink.file)

    def _write(self, sink: _Sink, message: _Message) -> None:
        text = message.text
        with self._changed:
            lost, self._lost = self._lost, 0  # the thread of another file shall not say it, too
            if lost:
                text = f"{_lost(lost, self._reason)}\n{text}"
        failure = sink.write(text)
        with self._changed:
            if failure is not None:
                self._lost, self._reason = self._lost + lost + 1, failure
            message.written, sink.writes = True, None
            if not self._backlog:
                self._behind = False
            self._changed.notify_all()


def _lost(count: int, reason: str) -> str:
    return f"{count} messages before this one were lost: {reason}"


class _Lines(logging.Formatter):
    """Keeps a message in its line, whatever the names in it hold. A traceback follows in others."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return masked(super().formatMessage(record)).translate(_CONTROLS)

    def formatException(self, ei: Any) -> str:
        return masked(super().formatException(ei))


# Newlines that would forge a record, and escapes that would speak to a terminal.
_CONTROLS = {code: repr(chr(code))[1:-1] for code in (*range(9), *range(10, 32), *range(127, 160))}


def _close(file: int) -> None:
    with contextlib.suppress(OSError):  # of its disk; it is closed all the same
        os.close(file)


def _opened(file: Path) -> int:
    return os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)


def set_up(level: int = logging.INFO, *, file: Path | None = None) -> Output:
    """Send records of every logger to *file*, or to standard error.

    Call once, before threads start, in the process that logs. Libraries below WARNING are
    silenced: httpx logs whole URLs, and a signed location is a secret.

    Raises:
        ConfigError: the file cannot be opened.
    """
    try:
        output = Output(file)
    except OSError as error:
        raise ConfigError(f"--log-file {file}: {error.strerror}") from None
    output.setFormatter(
        _Lines("%(asctime)s %(levelname)s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%S%z")
    )
    root = logging.getLogger()
    root.handlers[:] = [output]
    root.setLevel(logging.WARNING)
    logging.getLogger("jfs").setLevel(level)
    return output


def reopen() -> None:
    """Open log files by their names again.

    Raises:
        ConfigError: one cannot be opened; the old one is written on.
    """
    for handler in logging.getLogger().handlers:
        if isinstance(handler, Output):
            try:
                handler.reopen()
            except OSError as error:
                raise ConfigError(f"the log file cannot be opened: {error.strerror}") from None


def settle() -> None:
    """Say what was counted and not said yet; call it now and then. Any thread; does not block."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, Output):
            handler.settle()


def no_gaps() -> None:
    """Put /dev/null where standard input, output or error is closed.

    Else the next file that is opened would take that number, the kernel's connection for one, and
    whoever prints would write into it.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            with contextlib.suppress(OSError):
                os.open(os.devnull, os.O_RDWR)  # the lowest that is free
