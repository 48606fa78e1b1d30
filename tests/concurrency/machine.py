"""Several mounts over one server and one cache, and hands that do things to them at random.

A round has folders of its own, in a repository that is read plainly and in one whose downloads go
to signed storage. Hands work in every mount, another client changes the same names over REST, and
in some rounds a mount is killed, or ended, and started again. Then everybody stops, every mount is
refreshed and read, the server is read, and ``judge`` looks at each folder. What each actor does
follows from the seed; how they meet does not.

The driving threads live in the test's process, with the server; whatever touches a mount is a
``hand``, a process of its own.
"""

import errno
import random
import re
import signal
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from jfs.server import EmbeddedServer, Fault
from jfs.server.http.faults import When
from tests.component.server_requests import Requests, connected
from tests.concurrency.book import KEYS, NAMES, TAGGED, Book, Folder, Plan, own, size_at_random
from tests.concurrency.content import bytes_of, runs_of, whole
from tests.concurrency.driver import REFRESH, Driver
from tests.concurrency.history import ELSEWHERE
from tests.concurrency.judge import FIXED, PRIVATE, Judge
from tests.concurrency.nodes import Hand, Node
from tests.concurrency.timeline import ENDED
from tests.mount.mounting import Mounted

PLAIN, SIGNED = "plain-local", "signed-local"
_SHOWER_S = 1.0
_STEP_S = 0.03  # how long a step takes about: a kill comes in the middle of a round
# What a mount says rightly when others replace what is open, when it was killed, and at its end.
_LOG = re.compile(
    r" (INFO|DEBUG) | jfs\.vfs\.refusals: [a-z]+ \S+: (Stale|ChangedElsewhere)"
    r"|that crashed$|was not closed, so not uploaded"
    # In bad weather, and on a machine that is too busy to answer in time.
    r"| WARNING jfs\.vfs\.standing: | WARNING \S+: .*(Unavailable|DeadlineExceeded|ServerDown)"
)


class Wrong(Exception):
    """Something was seen that cannot be right, or something was lost."""


class Machine:
    """Runs rounds and judges them. A context manager.

    Methods without an underscore may be other ones in a machine of another kind.

    Args:
        directory: for mounts, cache and logs.
    """

    pause_s = 0.0  # of who changes things elsewhere, at most
    log = _LOG

    def __init__(self, directory: Path, server: EmbeddedServer, seed: str, plan: Plan) -> None:
        self.directory = directory
        self.server = server
        self.nodes: list[Node] = []
        self._ask = Requests(server)
        self._seed = seed
        self.book = Book(plan)
        self.rounds = 0
        self._stack = ExitStack()
        self._hands: list[Hand] = []

    def __enter__(self) -> "Machine":
        plan = self.book.plan
        for repo in (PLAIN, SIGNED):
            self.server.create_repository(repo)
        self.server.faults.add(Fault.redirect(f"/{SIGNED}/*"))
        with ExitStack() as stack:
            self.prepare(stack)
            for index, ttl_s in enumerate(plan.ttls):
                root = self.directory / f"mount{index}"
                root.mkdir()
                node = Node(f"mount{index}", root, ttl_s, self.mount)
                stack.callback(node.end)
                self.nodes.append(node)
                for number in range(plan.hands):
                    hand = Hand(f"{node.name}.{number}", node)
                    stack.callback(hand.end)
                    self._hands.append(hand)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def prepare(self, stack: ExitStack) -> None:
        """Make what mounts need; it ends behind them."""

    def mount(self, node: Node) -> Mounted:
        """Start a mount."""
        ttl = str(node.ttl_s)
        return Mounted(
            self.server.url,
            node.root,
            environ={"JF_ACCESS_TOKEN": self.server.token},
            cache=self.directory / "cache",
            options=(
                *("--attr-ttl", ttl, "--entry-ttl", ttl, "--negative-ttl", ttl),
                *("--cache-size", "512M", "-v"),
                # What stands in for a server that is slow to answer may be older than the judge
                # allows: it is for outages, and a loaded machine is none.
                *("--stale-if-error", "0"),
                *("--settle", "0"),  # what a close has promised is looked for on the server
            ),
        )

    def run_round(self) -> None:
        """Raises Wrong, Hung."""
        self.rounds += 1
        name = f"{self._seed}/{self.rounds}"
        choose = random.Random(name)
        plan = self.book.plan
        folders = [Folder(f"{repo}/r{self.rounds}") for repo in (PLAIN, SIGNED)]
        for folder in folders:
            owned = (TAGGED, *(own(node.name) for node in self.nodes)) if plan.tags else ()
            for path in (FIXED, *owned, *NAMES[: choose.randrange(len(NAMES) + 1)]):
                self._put(folder, path, choose)
        self._refresh(folders)
        self.book.begin()
        tasks: list[Callable[[], None]] = [
            Driver(self.book, hand, folders, f"{name}/{hand.name}").run for hand in self._hands
        ]
        tasks.append(lambda: self._elsewhere(folders, random.Random(f"{name}/elsewhere")))
        if choose.random() < plan.kills:
            node = choose.choice(self.nodes)
            tasks.append(lambda: self._restart(node, folders, random.Random(f"{name}/end")))
        if choose.random() < plan.weather:
            tasks.append(lambda: self.weather(folders, random.Random(f"{name}/weather")))
        self._together(tasks)
        self.settle(folders)
        self._refresh(folders)
        for folder in folders:
            self._look(folder)
        self._judge(folders)
        for folder in folders:
            self._ask("DELETE", f"/{folder.place}")

    def _together(self, tasks: list[Callable[[], None]]) -> None:
        errors: list[BaseException] = []

        def run(task: Callable[[], None]) -> None:
            try:
                task()
            except BaseException as error:
                errors.append(error)
                self.book.failed.set()

        threads = [threading.Thread(target=run, args=(task,)) for task in tasks]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]

    def settle(self, folders: list[Folder]) -> None:
        """Everybody has stopped."""

    def first_hands(self) -> list[Hand]:
        return [hand for hand in self._hands if hand.name.endswith(".0")]

    def _refresh(self, folders: list[Folder]) -> None:
        for hand in self.first_hands():
            node = hand.node
            reply = hand.ask(
                self.book.plan.deadline_s, do="refresh", path=str(node.root), attribute=REFRESH
            )
            for folder in folders:
                self.book.note(folder, node.name, "refresh", "", reply)

    # another client

    def _put(self, folder: Folder, path: str, choose: random.Random) -> None:
        write, size = self.book.fresh(), size_at_random(choose)
        body = bytes_of(whole(write, size))
        start = time.monotonic()
        reply = self._ask.put(f"/{folder.place}/{path}", body)
        assert reply.status == 201, reply
        times = {"start": start, "end": time.monotonic()}
        if path != FIXED:
            self.book.note(folder, ELSEWHERE, "put", path, times, write=write, size=size)

    def _elsewhere(self, folders: list[Folder], choose: random.Random) -> None:
        for _ in range(self.book.plan.steps):
            if not self.book.left_s:
                return
            folder, path = choose.choice(folders), choose.choice(NAMES)
            self.book.wait(choose.random() * self.pause_s)
            if self.book.plan.tags and choose.random() < 0.3:
                self._tag(folder, choose)
            elif choose.random() < 0.75:
                self._put(folder, path, choose)
            else:
                self._delete(folder, path)

    def _delete(self, folder: Folder, path: str) -> None:
        start = time.monotonic()
        status = self._ask("DELETE", f"/{folder.place}/{path}").status
        assert status in (204, 404), status
        if status == 204:
            times = {"start": start, "end": time.monotonic()}
            self.book.note(folder, ELSEWHERE, "delete", path, times)

    def _tag(self, folder: Folder, choose: random.Random) -> None:
        key, write = choose.choice(KEYS), self.book.fresh()
        start = time.monotonic()
        place = f"/api/storage/{folder.place}/{TAGGED}?properties={key}={write}"
        status = self._ask("PUT", place).status
        assert status == 204, status
        times = {"start": start, "end": time.monotonic()}
        self.book.note(folder, ELSEWHERE, "tag", TAGGED, times, key=key, write=write)

    def _restart(self, node: Node, folders: list[Folder], choose: random.Random) -> None:
        """End a mount in the middle of everything, by force or not, and start it again."""
        how = choose.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGTERM))
        plan = self.book.plan
        self.book.wait(choose.random() * min(plan.steps * _STEP_S, plan.seconds))
        self.restart(node, folders, how)

    def restart(self, node: Node, folders: list[Folder], how: signal.Signals) -> None:
        """End a mount and start it again. Raises Hung."""
        start = time.monotonic()
        node.restart(self.book.plan.deadline_s, how)
        times = {"start": start, "end": time.monotonic()}
        mode = ENDED if how is signal.SIGTERM else ""
        for folder in folders:
            self.book.note(folder, node.name, "kill", "", times, mode=mode)

    def weather(self, folders: list[Folder], choose: random.Random) -> None:
        """Let requests of the mounts fail for moments."""
        for _ in range(choose.randrange(1, 5)):
            self.book.wait(choose.random() * self.book.plan.steps * _STEP_S)
            start = time.monotonic()
            fault = self.server.faults.add(_fault(choose))
            self.book.failed.wait(choose.random() * _SHOWER_S)
            self.server.faults.remove(fault)
            self.note_weather(folders, start)

    def note_weather(self, folders: list[Folder], start: float) -> None:
        """It was bad from *start* until now."""
        times = {"start": start, "end": time.monotonic()}
        for folder in folders:
            self.book.note(folder, ELSEWHERE, "weather", "", times)

    # the end of a round

    def _look(self, folder: Folder) -> None:
        """Read everything, in every mount and on the server."""
        paths = {path for r in folder.records for path in (r.path, r.to)}
        for path in sorted(paths - {"", "."}):
            if path.startswith(PRIVATE):
                continue
            for hand in self.first_hands():
                node = hand.node
                reply = hand.ask(
                    self.book.plan.deadline_s,
                    do="read",
                    path=str(node.root / folder.place / path),
                    pieces=None,
                    mapped=False,
                )
                self.book.note(folder, node.name, "read", path, reply)
            self.book.note(folder, ELSEWHERE, "server", path, self._on_server(folder, path))
        for path, key in sorted({(r.path, r.key) for r in folder.records if r.key}):
            for hand in self.first_hands():
                place = str(hand.node.root / folder.place / path)
                reply = hand.ask(self.book.plan.deadline_s, do="tagged", path=place, key=key)
                self.book.note(folder, hand.node.name, "tagged", path, reply, key=key)
            self.book.note(folder, ELSEWHERE, "tags", path, self._value(folder, path, key), key=key)

    def _on_server(self, folder: Folder, path: str) -> dict[str, Any]:
        start = time.monotonic()
        found = self._ask.get(f"/{folder.place}/{path}")
        status, body = found.status, found.body
        if status == 302:
            location = urlsplit(found.headers["Location"])
            with connected(location.geturl()) as connection:
                connection.request("GET", f"{location.path}?{location.query}")
                answer = connection.getresponse()
                status, body = answer.status, answer.read()
        reply: dict[str, Any] = {"start": start, "end": time.monotonic(), "stage": "get"}
        if status == 404:
            return {**reply, "errno": errno.ENOENT}
        assert status == 200, (folder.place, path, status)
        return {**reply, "chunks": [(0, len(body) + 8, runs_of(body, 0))], "sizes": [len(body)]}

    def _value(self, folder: Folder, path: str, key: str) -> dict[str, Any]:
        start = time.monotonic()
        place = folder.place if path == "." else f"{folder.place}/{path}"
        found = self._ask.get(f"/api/storage/{place}?properties={key}")
        assert found.status in (200, 404), (place, key, found.status)
        values = found.json()["properties"][key] if found.status == 200 else ["0"]
        value = int(values[0]) if len(values) == 1 and values[0].isdigit() else -1
        return {"start": start, "end": time.monotonic(), "value": value}

    def _judge(self, folders: list[Folder]) -> None:
        kept = set()
        for path in (self.directory / "cache").rglob("*.data"):
            kept.add(runs_of(path.read_bytes(), 0))
        ttl_s = {node.name: node.ttl_s for node in self.nodes}
        stand_in = {self.nodes[number].name for number in self.book.plan.stand_in}
        found = [
            (folder.place, each)
            for folder in folders
            for each in Judge(ttl_s, folder.records, kept, stand_in).verdict()
        ]
        logged = [line for n in self.nodes for line in n.logged() if not self.log.search(line)]
        if found or logged:
            with (self.directory / "history.txt").open("w") as file:
                for folder in folders:
                    print(folder.place, *folder.records, sep="\n", file=file)
            for node in self.nodes:  # of all that were started there
                path = self.directory / f"{node.name}.all.log"
                path.write_text("\n".join(node.logged()))
            raise Wrong(
                f"seed {self._seed}, round {self.rounds}: {len(found)} findings\n"
                + "\n".join(f"{place}/{each.text}" for place, each in found[:3])
                + "".join(f"\n{place}/{each.record.path} {each.rule}" for place, each in found[3:])
                + "".join(f"\nlogged: {line}" for line in logged)
            )


def _fault(choose: random.Random) -> Fault:
    """Choose how requests of mounts fail, and which: those to Artifactory, or to signed storage."""
    path = choose.choice(("*", "*", "/bucket/*"))
    when: When = {"agent": "jfs/*", "times": choose.randrange(1, 30), "after": choose.randrange(3)}
    match choose.randrange(4):
        case 0:
            return Fault.status(503, path, **when)
        case 1:
            return Fault.cut(path, **when)
        case 2:
            return Fault.drop(path, **when)
        case _:
            return Fault.drop(path, after_bytes=choose.randrange(100_000), method="GET", **when)
