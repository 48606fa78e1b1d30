"""Set up logging once per process. Modules log through ``logging.getLogger(__name__)``.

Nothing that happens to the output reaches whoever logs: a disk that is full and a reader that has
gone cost messages, which are counted and reported as soon as one can be written again; a reader
that stands still keeps nobody waiting. Repeats are counted (``folding``), secrets are masked.
"""

import contextlib
import logging
import os
import stat
import threading
import time
from collections import deque
from pathlib import Path
from typing import Any

from jfs.errors import ConfigError
from jfs.folding import Folding
from jfs.words import masked

_BACKLOG = 1000  # messages that wait for a slow reader
_FLUSH_S = 1.0  # how long the end waits for one


class Output(logging.Handler):
    """Writes records to a file or to a descriptor. Any thread.

    To a regular file at once. To a pipe, a socket or a terminal by a thread of its own, since such
    a write lasts until somebody reads.

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
        self._out = os.dup(descriptor) if file is None else _opened(file)
        self._lost, self._reason = 0, ""
        self._torn = False  # the last line was written in part
        self._skipped = 0  # as the backlog was full
        self._folding = Folding()
        self._backlog: deque[str] = deque()
        self._changed = threading.Condition()
        self._writer: threading.Thread | None = None
        self._direct = stat.S_ISREG(os.fstat(self._out).st_mode)

    def stand_for(self, descriptor: int) -> None:
        """Make *descriptor* the same file, also after ``reopen``: for what other code prints."""
        with self._changed:
            os.dup2(self._out, descriptor)
            self._also = descriptor

    def reopen(self) -> None:
        """Open the file by its name again: a program that rotates logs has renamed it.

        Raises:
            OSError: it cannot be opened; the old one is written on.
        """
        if self._file is None:
            return
        fresh = _opened(self._file)
        with self._changed:
            os.dup2(fresh, self._out, inheritable=False)
            os.close(fresh)
            self._direct = stat.S_ISREG(os.fstat(self._out).st_mode)
            if self._also is not None:
                os.dup2(self._out, self._also)

    def emit(self, record: logging.LogRecord) -> None:
        with self._changed:
            takes = self._folding.takes(record)
            self._say_repeats()
            if takes:
                self._put(self._text(record))

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

    def _put(self, text: str) -> None:
        if self._direct:
            self._write(text)
        elif len(self._backlog) >= _BACKLOG:
            self._skipped += 1
        else:
            if self._skipped:
                text = f"{_lost(self._skipped, 'nobody read them')}\n{text}"
                self._skipped = 0
            self._backlog.append(text)
            self._changed.notify_all()
            if self._writer is None:
                writer = threading.Thread(target=self._write_backlog, name="jfs-log", daemon=True)
                with contextlib.suppress(RuntimeError):  # no thread is left: tried again
                    writer.start()
                    self._writer = writer

    def flush(self) -> None:
        """Say what was counted so far, and wait a moment for what was logged to be written."""
        deadline = time.monotonic() + _FLUSH_S
        with self._changed:
            self._say_repeats(now=True)
            while self._backlog and (left := deadline - time.monotonic()) > 0:
                self._changed.wait(left)

    def _write_backlog(self) -> None:
        while True:
            with self._changed:
                while not self._backlog:
                    self._changed.wait()
                text = self._backlog[0]  # taken away when it is written: flush waits for it
            self._write(text)
            with self._changed:
                self._backlog.popleft()
                self._changed.notify_all()

    def _write(self, text: str) -> None:
        if self._lost:
            text = f"{_lost(self._lost, self._reason)}\n{text}"
        data = ("\n" * self._torn + text + "\n").encode("utf-8", "backslashreplace")
        whole = len(data)
        try:
            while data:
                data = data[os.write(self._out, data) :]
        except OSError as error:
            self._torn = self._torn or len(data) < whole
            self._lose(error.strerror or str(error))
        else:
            self._torn = False
            with self._changed:
                self._lost = 0

    def _lose(self, reason: str) -> None:
        with self._changed:
            self._lost += 1
            self._reason = reason


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
