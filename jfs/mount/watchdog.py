"""Notices that the mount itself does not answer, and ends it before it takes others along.

A thread of its own looks every few seconds:

- whether the event loop runs: it counts;
- if the kernel has requests that wait (``waiting`` of fusectl), or that cannot be seen, now and
  then: whether a STATFS is answered (``looks``).

Requests that wait for a server are no sign: their deadlines end them. After a third of the limit
the stacks of every thread and task are in the log. After the limit the connection is cut, so that
whoever waits gets ECONNABORTED, and whoever comes ENOTCONN, instead of waiting for ever; the
process ends with exit code 1, for whoever restarts it. Bytes of uploads are in the journal. Time in
which the machine or this process was stopped does not count.

While the mount answers, systemd is told so (``WATCHDOG=1``).
"""

import contextlib
import faulthandler
import logging
import math
import os
import threading
import time
from collections.abc import Callable
from enum import Enum, auto
from pathlib import Path

import trio
from trio.lowlevel import Task

from jfs import fusectl
from jfs.errors import ConfigError
from jfs.mount import requests, supervisor
from jfs.mount.looks import Looker, ustat_number
from jfs.mount.mountpoint import unmount
from jfs.mount.stacks import stacks
from jfs.mount.table import mounts

log = logging.getLogger(__name__)

EXIT_CODE = 1
_LONGEST_TICK_S = 5.0
_TICKS = 12  # to the limit
_SAY_AT = 1 / 3  # of the limit
_CUT_AT = 0.75  # of the time that the end may take: to unmount and to answer takes 10 s at most
_BLIND_TICKS = 6  # between STATFS where nobody says how many wait
_STEP_S = 3.0  # for each step of the end: the log, the connection, the unmounting


class Verdict(Enum):
    """What to do about a silence."""

    WAIT = auto()
    SAY = auto()
    END = auto()


class Silence:
    """How long the mount has not answered: the times in which somebody listened."""

    def __init__(self, limit_s: float, tick_s: float) -> None:
        self._limit_s = limit_s
        self._tick_s = tick_s
        self._before = 0.0
        self._said = False
        self.lasted_s = 0.0

    def heard(self, now: float) -> bool:
        """Note an answer; True: the first one after ``SAY``."""
        said, self._said = self._said, False
        self._before, self.lasted_s = now, 0.0
        return said

    def goes_on(self, now: float) -> Verdict:
        """Note that there was none."""
        # If more has passed we were stopped ourselves: nobody's fault.
        self.lasted_s += min(now - self._before, 2 * self._tick_s)
        self._before = now
        if self.lasted_s >= self._limit_s:
            return Verdict.END
        if self.lasted_s >= self._limit_s * _SAY_AT and not self._said:
            self._said = True
            return Verdict.SAY
        return Verdict.WAIT


class Watchdog:
    """Watches one mount.

    Args:
        device: of the mount, ``major:minor``.
        limit_s: how long it may not answer; 0: for ever.
        root: every task of the event loop is below it.
    """

    def __init__(self, device: str, limit_s: float, root: Task) -> None:
        self._device = device
        self._limit_s = limit_s or math.inf
        self._root = root
        self._expected_s = supervisor.watchdog_s()
        self.tick_s = min(
            _LONGEST_TICK_S, self._limit_s / _TICKS, (self._expected_s or math.inf) / 2
        )
        self._beats = 0
        self._stopped = threading.Event()
        self._seen = 0  # beats
        self._waited = False  # requests did, at the tick before
        self._blind = 0
        self.has_bitten = False

    async def beat(self) -> None:
        """Show that the event loop runs, until cancelled."""
        while True:
            self._beats += 1
            await trio.sleep(self.tick_s / 3)

    def start(self) -> None:
        """Begin to watch."""
        try:
            threading.Thread(target=self._watch, name="jfs-watchdog", daemon=True).start()
        except RuntimeError as error:  # at the limit of processes
            log.warning("nobody watches whether the mount answers: %s", error)

    def stop(self, end_s: float) -> None:
        """Watch no more: the mount ends, and the process after *end_s* at the latest.

        Before that whoever still waits is cut off: a process of which one thread waits for a disk
        that hangs does not go away, and nor would its connection.
        """
        self._stopped.set()
        # Not even a kernel or a disk that never answers keeps the process: this needs neither
        # the event loop nor the interpreter, and says where each thread was.
        faulthandler.dump_traceback_later(end_s, exit=True)
        # And this no log, which may be on a disk that hangs.
        at_last = end_s + _STEP_S
        for at, act in ((end_s * _CUT_AT, self._end_waiting), (at_last, _exit)):
            later = threading.Timer(at, act)
            later.daemon, later.name = True, "jfs-watchdog-end"
            with contextlib.suppress(RuntimeError):  # at the limit of processes
                later.start()

    def _watch(self) -> None:
        looker = Looker(self._device, ustat_number())
        try:
            self._watch_with(looker)
        finally:
            looker.close()

    def _watch_with(self, looker: Looker) -> None:
        silence = Silence(self._limit_s, self.tick_s)
        silence.heard(time.monotonic())
        while not self._stopped.wait(self.tick_s):
            if self._answers(looker):
                if silence.heard(time.monotonic()):
                    log.warning("the mount answers again")
                    supervisor.tell("STATUS=mounted")
                if self._expected_s is not None:
                    supervisor.tell("WATCHDOG=1")
                continue
            match silence.goes_on(time.monotonic()):
                case Verdict.SAY:
                    self._dump(silence.lasted_s)
                case Verdict.END if not self._stopped.is_set():
                    self._bite(silence.lasted_s)

    def _answers(self, looker: Looker) -> bool:
        beats, self._seen = self._seen, self._beats
        if beats == self._seen:
            return False
        waiting = fusectl.waiting(self._device)
        if waiting is None:
            self._blind = (self._blind + 1) % _BLIND_TICKS
            doubtful = self._blind == 0
        else:
            doubtful = bool(waiting) and self._waited
            self._waited = bool(waiting)
        if doubtful and not looker.is_looking:
            looker.begin()
        # A look that waits while nothing waits for us waits for somebody else.
        return looker.is_answered(self.tick_s) or waiting == 0

    def _dump(self, silent_s: float) -> None:
        supervisor.tell(f"STATUS=does not answer for {silent_s:.0f} s")
        _within(
            _STEP_S,
            lambda: log.error(
                "the mount has not answered for %.0f s; where everything is:\n%s",
                silent_s,
                stacks(self._root),
            ),
        )

    def _bite(self, silent_s: float) -> None:
        """End the mount and the process, whatever hangs."""
        self.has_bitten = True
        supervisor.tell("STOPPING=1", "STATUS=ended: it did not answer")
        _within(
            _STEP_S,
            lambda: log.critical(
                "the mount has not answered for %.0f s: it is cut off and ends with exit code %d; "
                "the next start clears it, and goes on with what was closed",
                silent_s,
                EXIT_CODE,
            ),
        )
        self._cut()
        _within(_STEP_S, logging.shutdown)
        os._exit(EXIT_CODE)

    def _end_waiting(self) -> None:
        if requests.is_connected():
            said = "the mount does not end: whoever still waits for it is cut off"
            _within(_STEP_S, lambda: log.error("%s", said))
            self._cut()

    def _cut(self) -> None:
        if requests.is_connected():  # else its number is another's by now
            _within(_STEP_S, lambda: fusectl.abort(self._device))
            # Taken away too, so that it is a plain directory again whoever looks.
            _within(_STEP_S, self._take_away)

    def _take_away(self) -> None:
        for entry in mounts():
            if entry.device == self._device:
                try:
                    unmount(Path(entry.mountpoint), lazy=True)
                except ConfigError as error:
                    log.warning("%s", error)


def _exit() -> None:
    os._exit(EXIT_CODE)


def _within(limit_s: float, call: Callable[[], object]) -> None:
    """Call what may hang, in a thread that is left behind then."""
    thread = threading.Thread(target=call, name="jfs-watchdog-step", daemon=True)
    try:
        thread.start()
    except RuntimeError:  # no thread is left: then without a limit
        call()
        return
    thread.join(limit_s)
