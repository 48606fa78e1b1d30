"""Standard output and error of a command, which may be closed, full, or read by nobody."""

import contextlib
import os
import sys


def open_all() -> None:
    """Open something to print to where a process was started without standard output or error."""
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - for its life
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    # Names are any bytes: what was typed comes back as it was.
    with contextlib.suppress(AttributeError):  # replaced by a test
        sys.stdout.reconfigure(errors="surrogateescape")  # type: ignore[union-attr]


def announce(line: str) -> None:
    """Print a line that nobody has to read: that it cannot be written is no reason to fail.

    Blocks as long as whoever reads a pipe stands still. Any thread.
    """
    data = (line + "\n").encode("utf-8", "surrogateescape")
    # Not through sys.stdout: a thread that waits in there keeps the interpreter from ending.
    with contextlib.suppress(OSError):
        while data:
            data = data[os.write(1, data) :]


def complain(text: str) -> None:
    """Print why a command failed."""
    with contextlib.suppress(OSError, ValueError):
        print(f"jfs: {text}", file=sys.stderr, flush=True)


def give_up() -> None:
    """Drop what was printed and could not be written, lest the interpreter try it once more."""
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        return
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)
