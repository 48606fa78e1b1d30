"""Run one row of the matrix: a server, a line, a mount, and all operations in bad weather."""

import contextlib
import json
import select
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jfs.server import EmbeddedServer
from tests.component.server_requests import Requests
from tests.mount import namespaces
from tests.mount.mounting import Mounted, run_jfs
from tests.weather.line import Line
from tests.weather.names import NAME, NameServer
from tests.weather.operations import OPERATIONS, content
from tests.weather.rows import Certificates, Row, World, lift

REPO = "ml-models-local"
UNMOUNT = "unmount"
LONGEST_S = 100.0  # what takes longer hangs: a READ waits for 30 s, a page fault for two
_HEALS_S = 30.0
# Deadlines far below those of a real mount: what waits for one is not waited for long.
_SHORT = (
    "--timeout",
    "1",
    "--attr-ttl",
    "0",
    "--negative-ttl",
    "0",
    "--drain-timeout",
    "1",
    "--retry-for",
    "2",
)
# What can be done again when the weather is good.
_AGAIN = [name for name in OPERATIONS if name not in ("rename", "unlink")]


@dataclass(frozen=True)
class Cell:
    """How an operation ended, and how long it took."""

    outcome: str
    seconds: float


@dataclass(frozen=True)
class Seen:
    """What became of a row.

    Attributes:
        cells: by operation.
        heals_s: from good weather until everything was right.
        lost: what was acknowledged and is not so, or what is neither on the server nor kept.
        log: of the mount.
    """

    cells: dict[str, Cell]
    heals_s: float
    lost: Sequence[str]
    log: str


class Hand:
    """A process that does what it is told in a mount."""

    def __init__(self, mount: Mounted, module: str = "tests.weather.operations") -> None:
        self._process = subprocess.Popen(
            [
                *namespaces.inside(mount.process.pid),
                *(sys.executable, "-m", module, str(mount.root)),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def do(self, name: str | list[str | int]) -> Cell:
        """Do one operation, which the module knows by *name*."""
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        print(json.dumps(name), file=process.stdin, flush=True)
        if not select.select([process.stdout], [], [], LONGEST_S)[0]:
            return Cell("hangs", LONGEST_S)
        outcome, seconds = json.loads(process.stdout.readline())
        return Cell(outcome, seconds)

    def end(self) -> None:
        """Kill it."""
        process = self._process
        process.kill()
        process.wait(LONGEST_S)
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


def run(row: Row, directory: Path, certificates: Certificates) -> Seen:
    """Do everything while the fault lasts, and once more when it is over."""
    directory.mkdir()
    with contextlib.ExitStack() as ends:
        server = ends.enter_context(EmbeddedServer(directory / "server"))
        server.create_repository(REPO)
        for name in ("known", "cached", "cold", "mapped", "old", "gone", "tagged"):
            server.deploy(REPO, name, content(name))
        server.deploy(REPO, "deep/unknown", content("unknown"))
        server.set_properties(REPO, "tagged", {"env": ["production"]})
        line = ends.enter_context(Line(server.port, certificates.good if row.tls else None))
        names = ends.enter_context(NameServer(line.host))
        world = World(server, line, names, certificates)
        ends.callback(namespaces.leave, directory / "namespace")
        mount = _mounted(row, world, directory)
        ends.callback(_gone, mount)
        hand = Hand(mount)
        ends.callback(hand.end)
        for name in ("ls", "stat of what is known", "read, cached", "getfattr"):
            assert hand.do(name).outcome == "ok", f"{name}: {mount.log()}"
        cells: dict[str, Cell] = {}
        for name in OPERATIONS:
            if row.each:
                lift(row, world)
            if row.each or not cells:
                row.begin(world)
            cells[name] = hand.do(name)
        lift(row, world)
        heals_s = _healed(hand)
        row.begin(world)
        cells[UNMOUNT] = _unmounted(mount)
        lift(row, world)
        lost = _lost(world, directory, cells)
        return Seen(cells, heals_s, lost, mount.log_after())


def _mounted(row: Row, world: World, directory: Path) -> Mounted:
    root = directory / "mnt"
    root.mkdir()
    options = [*_SHORT, "--staging-dir", str(directory / "staging")]
    if row.tls:
        options += ["--ca-file", str(world.certificates.authority)]
    under: Sequence[str] = ()
    if row.named:
        under = _named(world.names, directory)
    return Mounted(
        f"{world.line.url_of(NAME) if row.named else world.line.url}/{REPO}",
        root,
        environ={"JF_ACCESS_TOKEN": world.server.token, "NO_PROXY": "*"},
        cache=directory / "cache",
        options=options,
        under=under,
    )


def _named(names: NameServer, directory: Path) -> Sequence[str]:
    """Return what to put before a command that asks *names* where a host is, and nobody else."""
    place = directory / "namespace"
    place.mkdir()
    setup = []
    for name, text in (("resolv.conf", names.resolv_conf), ("nsswitch.conf", "hosts: dns\n")):
        (directory / name).write_text(text)
        ours, shown = shlex.quote(str(directory / name)), f"/etc/{name}"
        setup.append(f"{{ [ ! -e {shown} ] || mount --bind {ours} {shown}; }}")
    return namespaces.namespace(place, " && ".join(setup))


def _healed(hand: Hand) -> float:
    """Return after how long everything was right again; infinite: never."""
    began = time.monotonic()
    left = list(_AGAIN)
    while left and time.monotonic() < began + _HEALS_S:
        left = [name for name in left if hand.do(name).outcome != "ok"]
    return time.monotonic() - began if not left else float("inf")


def _unmounted(mount: Mounted) -> Cell:
    began = time.monotonic()
    try:
        mount.stop(expected=["."])
    except (AssertionError, subprocess.TimeoutExpired) as error:
        return Cell(f"wrong: {error}", time.monotonic() - began)
    return Cell("ok", time.monotonic() - began)


def _gone(mount: Mounted) -> None:
    if mount.process.poll() is None:
        mount.kill()


def _lost(world: World, directory: Path, cells: dict[str, Cell]) -> list[str]:
    """Look at the server and at what is kept, and say what is not as it was promised."""
    lost, get = [], Requests(world.server).content
    made = get("made")
    if made not in (None, content("made")):
        lost.append("made: other bytes")
    # It was made again when the weather was good.
    if made is None:
        lost.append("made: is not on the server")
    old, new = get("old"), get("new")
    if (old is None) is (new is None) or content("old") not in (old, new):
        lost.append(f"rename: old is {_said(old)}, new is {_said(new)}")
    if cells["rename"].outcome == "ok" and new is None:
        lost.append("rename: did not take place")
    if cells["unlink"].outcome == "ok" and get("gone") is not None:
        lost.append("unlink: did not take place")
    lost += [
        f"{name}: is not what it was"
        for name in ("known", "cached", "cold", "mapped", "tagged")
        if get(name) != content(name)
    ]
    listed = run_jfs("recover", "ls", "--json", "--staging-dir", str(directory / "staging"))
    if listed.returncode != 0:
        lost.append(f"jfs recover ls: {listed.stderr}")
    return lost


def _said(data: bytes | None) -> str:
    return "missing" if data is None else f"{len(data)} bytes"
