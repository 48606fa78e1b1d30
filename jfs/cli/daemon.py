"""Run in the background, and tell the caller how the start went."""

import hashlib
import json
import logging
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from jfs import logs
from jfs.config import user_directory
from jfs.errors import ConfigError, JfsError

_LONGEST_NAME = 200  # bytes; a file name has 255, and the mountpoint that names it may be longer


def default_log_file(name: str) -> Path:
    """``/var/log/jfs/NAME.log`` for root, else in the state folder of the user.

    Raises:
        ConfigError: the user has no home.
    """
    if len(os.fsencode(name)) > _LONGEST_NAME:
        digest = hashlib.sha256(os.fsencode(name)).hexdigest()[:16]
        name = os.fsdecode(os.fsencode(name)[-_LONGEST_NAME:]) + f"-{digest}"
    if os.geteuid() == 0:
        return Path("/var/log/jfs") / f"{name}.log"
    base = user_directory(os.environ, "XDG_STATE_HOME", ".local/state", instead="give --log-file")
    return base / "jfs" / f"{name}.log"


def make_log(log_file: Path) -> None:
    """Make the file of a daemon's log, unless it is there. Raises ConfigError."""
    try:
        log_file.parent.mkdir(parents=True, exist_ok=True)
        log_file.touch(0o600)
    except OSError as error:
        raise ConfigError(f"--log-file {log_file}: {error.strerror}") from None


def start(service: Callable[[Callable[[], None]], None], log_file: Path, level: int) -> None:
    """Run *service* in a child that outlives us; return when it calls its argument.

    Must be called before any thread or event loop exists: it forks.

    Raises:
        ConfigError: the child's own error, or that it died without a word.
    """
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(receive)
        _child(service, log_file, level, send)
    os.close(send)
    try:
        with os.fdopen(receive, "rb") as pipe:
            text = pipe.read()
    except KeyboardInterrupt:
        # In a session of its own it has not heard the Ctrl-C. It would end by itself when it finds
        # nobody to report to, but not before its server answers.
        os.kill(child, signal.SIGTERM)
        raise
    if not text:
        _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        raise ConfigError(f"the daemon ended at its start ({code}): see {log_file}")
    report = json.loads(text)
    if report["error"] is not None:
        os.waitpid(child, 0)
        raise ConfigError(report["error"])


def _child(
    service: Callable[[Callable[[], None]], None], log_file: Path, level: int, send: int
) -> None:
    def report(error: str | None) -> None:
        nonlocal send
        if send < 0:
            return
        try:
            os.write(send, json.dumps({"error": error}).encode())
        except BrokenPipeError:  # killed, or out of patience: nobody would know of the mount
            logging.getLogger(__name__).warning("whoever started it has gone")
            os.kill(os.getpid(), signal.SIGTERM)
        os.close(send)
        send = -1

    status = 0
    try:
        os.setsid()
        os.chdir("/")  # never keep the caller's folder from being unmounted
        sys.stdout.flush()
        with open(os.devnull, "r+b") as null:
            os.dup2(null.fileno(), 0)
            os.dup2(null.fileno(), 1)
        logs.set_up(level, file=log_file).stand_for(2)
        service(lambda: report(None))
    except JfsError as error:
        logging.getLogger(__name__).error("%s", error)
        report(str(error))
        status = 1
    except BaseException as error:
        logging.getLogger(__name__).exception("the daemon ended")
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        report(f"{type(error).__name__}: {error}")
        status = 1
    finally:
        logging.shutdown()
        os._exit(status)  # the parent's cleanup (its buffers, its atexit) is not ours to run
