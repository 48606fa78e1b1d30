"""What all who work in a round share: the plan, the numbers, and the record of what happened."""

import itertools
import math
import os
import random
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from tests.concurrency.history import Record

NAMES = ("a", "b", "c")
TAGGED, KEYS = "tagged", ("k", "l")  # the name of which everybody changes properties, and which
SIZES = (8, 4096, 5000, 131_072, 700_000, 1_500_000, 5_000_000)


@dataclass(frozen=True)
class Plan:
    """How much is done.

    Attributes:
        ttls: times to live in seconds: of one mount each.
        stand_in: mounts in which what is known stands in during an outage, counted from 0.
        hands: in every mount.
        steps: of each hand in a round.
        seconds: after which nobody begins another step.
        tags: hands set, remove and read properties too.
        kills: the share of rounds in which a mount is killed, or ended.
        weather: the share of rounds in which requests of mounts fail now and then.
        deadline_s: of every call; not a measure of speed, but of hanging.
    """

    ttls: tuple[float, ...] = (0.0, 10.0)
    stand_in: tuple[int, ...] = ()
    hands: int = 3
    steps: int = 40
    seconds: float = math.inf
    tags: bool = False
    kills: float = 0.5
    weather: float = 0.5
    deadline_s: float = 60.0


def chosen(name: str, minutes: float) -> tuple[float, str]:
    """Return how many minutes a proof takes, and its seed: by ``NAME_MINUTES`` and ``NAME_SEED``.

    Args:
        minutes: if nothing else is said; 0: the slice, the same in every run.
    """
    minutes = float(os.environ.get(f"{name}_MINUTES") or minutes)
    seed = str(random.SystemRandom().randrange(1 << 32)) if minutes else "1"
    return minutes, os.environ.get(f"{name}_SEED") or seed


@dataclass
class Folder:
    """A folder of one round, ``REPO/NAME``, and what was done in it."""

    place: str
    records: list[Record] = field(default_factory=list)


def own(mount: str) -> str:
    """Name the file that one mount alone writes, and sets properties of."""
    return f"own-{mount}"


class Book:
    """Any thread."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.counts: Counter[str] = Counter()
        self.failed = threading.Event()  # somebody could not go on: everybody stops
        self._numbers = itertools.count(1)
        self._end = math.inf

    def begin(self) -> None:
        """A round begins."""
        self._end = time.monotonic() + self.plan.seconds

    @property
    def left_s(self) -> float:
        """For how long this round goes on; 0: nobody begins anything."""
        return 0.0 if self.failed.is_set() else max(0.0, self._end - time.monotonic())

    def wait(self, seconds: float) -> None:
        """Let others go on for a while, not beyond the end of the round."""
        self.failed.wait(min(seconds, self.left_s))

    def fresh(self) -> int:
        """Return a number that nobody else has."""
        return next(self._numbers)

    def note(self, folder: Folder, actor: str, kind: str, path: str, reply: Any, **of: Any) -> None:
        """Put a call on record; see ``Record``."""
        record = Record(self.fresh(), actor, kind, path, reply, **of)
        folder.records.append(record)
        what = f", {record.stage}: {os.strerror(record.errno)}" if record.errno else ""
        self.counts[f"{kind}{what}"] += 1


def size_at_random(choose: random.Random) -> int:
    """Often one of few sizes, so that versions of one size follow each other; else any."""
    size = choose.choice(SIZES)
    return size if choose.random() < 0.5 else choose.randrange(1, size // 8 + 1) * 8
