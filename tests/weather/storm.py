"""Random faults, one after the other and at once, while several mounts are worked in.

The machine of ``tests/concurrency`` with weather that never ends: the server fails requests, hangs,
cuts bodies off or asks for patience, and is gone or stopped for a while. Its judge knows every byte
and every property that was acknowledged. In a round nothing is calm for ``Plan.seconds``; then the
weather is good, everything must be right within ``HEALS_S``, and all that was acknowledged is
looked for in every mount, of which one has just been started, and on the server.

What a mount asks goes over a ``Line``: a server that is stopped or gone is so for the mounts alone,
while another client works on. Each mount has ``MEMORY`` bytes of memory, where there are cgroups.
"""

import random
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

from jfs.extents import MiB
from jfs.server import EmbeddedServer, Fault
from jfs.server.http.faults import When
from tests.concurrency.book import Folder, Plan
from tests.concurrency.judge import FIXED, PRIVATE
from tests.concurrency.machine import PLAIN, SIGNED, Machine, Wrong
from tests.concurrency.nodes import Hand, Node
from tests.mount.mounting import Mounted
from tests.weather.group import Group, limited
from tests.weather.line import Line, Mode

MEMORY = 256 * MiB
HEALS_S = 30.0
_LOOK_S = 0.1
_SPELLS_S = (0.1, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0)
_CALM_S = 3.0  # between two of a kind, at most
# Everything, a repository, what is asked about names, properties and bytes.
_PLACES = ("*", "*", f"/{PLAIN}/*", f"/api/storage/{SIGNED}*", "/api/*", "/bucket/*")
# The first mount lets nothing stand in: what it shows is true now, whatever the weather. The other
# one is as users have it.
PLAN = Plan(
    ttls=(0.0, 2.0),
    stand_in=(1,),
    hands=5,
    steps=1_000_000,
    seconds=12.0,
    tags=True,
    kills=0.8,
    weather=1.0,
)
# Deadlines below those of a real mount: more weather fits into ten minutes.
_SHORT = ("--timeout", "3", "--connect-timeout", "2", "--retry-for", "5", "--drain-timeout", "5")
Kind = Callable[[random.Random], AbstractContextManager[None]]


class Storm(Machine):
    """See the module. A context manager.

    Attributes:
        healed_s: how long it took after each round.
        peaks: the most memory of each mount, in bytes.
    """

    pause_s = 0.3
    log = re.compile(" (DEBUG|INFO|WARNING) ")

    def __init__(self, directory: Path, server: EmbeddedServer, seed: str, plan: Plan) -> None:
        super().__init__(directory, server, seed, plan)
        self._line = Line(server.port)
        self._groups: dict[str, Group | None] = {}
        self.healed_s: list[float] = []
        self.peaks: dict[str, int] = {}

    def prepare(self, stack: ExitStack) -> None:
        stack.enter_context(self._line)
        for number in range(len(self.book.plan.ttls)):
            name = f"mount{number}"
            self._groups[name] = stack.enter_context(limited(f"storm-{name}", MEMORY))

    def mount(self, node: Node) -> Mounted:
        ttl, group = str(node.ttl_s), self._groups[node.name]
        stands_in = node.name in {f"mount{number}" for number in self.book.plan.stand_in}
        return Mounted(
            self._line.url,
            node.root,
            environ={"JF_ACCESS_TOKEN": self.server.token},
            cache=self.directory / "cache",
            options=(
                *("--attr-ttl", ttl, "--entry-ttl", ttl, "--negative-ttl", ttl),
                # What a close has promised is looked for on the server.
                *("--cache-size", "512M", "-v", "--settle", "0", *_SHORT),
                *("--wait-for-server", *(() if stands_in else ("--stale-if-error", "0"))),
            ),
            under=group.under if group is not None else (),
        )

    def weather(self, folders: list[Folder], choose: random.Random) -> None:
        """Let the server fail, and beside it the line to it, for as long as the round goes on."""
        kinds = (self._fail, self._fail, self._cut_off)
        threads = [
            threading.Thread(
                target=self._spells, args=(folders, random.Random(choose.random()), kind)
            )
            for kind in kinds
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _spells(self, folders: list[Folder], choose: random.Random, kind: Kind) -> None:
        while self.book.left_s:
            self.book.wait(choose.random() * _CALM_S)
            start = time.monotonic()
            with kind(choose):
                self.book.wait(choose.choice(_SPELLS_S))
            self.note_weather(folders, start)

    @contextmanager
    def _fail(self, choose: random.Random) -> Iterator[None]:
        fault = self.server.faults.add(_fault(choose))
        try:
            yield
        finally:
            self.server.faults.remove(fault)

    @contextmanager
    def _cut_off(self, choose: random.Random) -> Iterator[None]:
        self._line.set(choose.choice((Mode.REFUSE, Mode.BLACK_HOLE, Mode.SILENT)))
        try:
            yield
        finally:
            self._line.set(Mode.PASS)

    def settle(self, folders: list[Folder]) -> None:
        """The weather is good: wait until all is right again."""
        began = time.monotonic()
        left = [(hand, folder) for hand in self.first_hands() for folder in folders]
        while left := [each for each in left if (wrong := self._wrong(*each))]:
            if time.monotonic() > began + HEALS_S:
                raise Wrong(f"after {HEALS_S:.0f} s of good weather: {wrong}")
            self.book.failed.wait(_LOOK_S)
        self.healed_s.append(time.monotonic() - began)
        self._look_at_memory()
        # What was acknowledged is seen by who was not there.
        self.restart(self.nodes[self.rounds % len(self.nodes)], folders, signal.SIGTERM)

    def _wrong(self, hand: Hand, folder: Folder) -> str:
        """Say what does not work yet, in one mount."""
        place = hand.node.root / folder.place
        fixed, fresh = str(place / FIXED), str(place / f"{PRIVATE}{hand.name}")
        number = self.book.fresh()
        for request in (
            {"do": "read", "path": fixed, "pieces": None, "mapped": False},
            {"do": "list", "path": str(place)},
            {"do": "tag", "path": fixed, "key": "healed", "value": number},
            {"do": "tagged", "path": fixed, "key": "healed"},
            {"do": "write", "path": fresh, "mode": "store", "write": number, "size": 8, "sync": 0},
            {"do": "fact", "path": fixed, "fact": "state"},
            {"do": "fact", "path": str(place), "fact": "state"},
        ):
            reply = hand.ask(self.book.plan.deadline_s, **request)
            known = "errno" in reply or reply.get("fact", "clean") != "clean"
            if known or reply.get("value", number) != number:
                return f"{hand.name}: {request}: {reply}"
        return ""

    def _look_at_memory(self) -> None:
        for node in self.nodes:
            group = self._groups[node.name]
            peak = node.mounted.peak() if group is None else group.peak
            if peak is not None:
                self.peaks[node.name] = max(peak, self.peaks.get(node.name, 0))
            if group is not None and group.killed:
                raise Wrong(f"{node.name} was killed: {MEMORY >> 20} MiB are not enough")
            if group is None and peak is not None and peak > MEMORY:
                raise Wrong(f"{node.name} had {peak >> 20} MiB")


def _fault(choose: random.Random) -> Fault:
    """Choose how the server fails requests of mounts."""
    path = choose.choice(_PLACES)
    when: When = {"agent": "jfs/*", "share": choose.choice((0.3, 1.0))}
    part = choose.randrange(200_000)
    match choose.randrange(8):
        case 0:
            return Fault.status(503, path, **when)
        case 1:
            return Fault.status(429, path, headers={"Retry-After": "1"}, **when)
        case 2:
            return Fault.cut(path, **when)
        case 3:
            return Fault.drop(path, **when)
        case 4:
            return Fault.drop(path, after_bytes=part, method="GET", **when)
        case 5:
            return Fault.short(path, size=part, method="GET", **when)
        case 6:
            return Fault.stall(path, after_bytes=part, method="GET", **when)
        case _:
            return Fault.stall(path, **when)
