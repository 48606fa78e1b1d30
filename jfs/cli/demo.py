"""``jfs demo``: embedded server, sample models and a mount in one command.

Owns the order of things: what is made is unmade in reverse, whatever happens. The server and the
mount are child processes, since a process that reads its own mount can wait for itself for ever.
Trio thread only, except for the checks before.
"""

import contextlib
import json
import os
import re
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import trio
from rich.console import Console
from rich.markup import escape

from jfs import threads
from jfs.artifactory import ArtifactoryClient
from jfs.cli import children, tour
from jfs.config import ServerSettings
from jfs.credentials import credentials_from
from jfs.errors import ConfigError, JfsError, NotFound
from jfs.metrics import Metrics
from jfs.model import FileInfo, RepoPath
from jfs.mount.mountpoint import check_mountpoint, unmount
from jfs.mount.table import mount_at

REPOSITORY = "ml-models-local"
_READY_S = 60.0  # a cold start of Python on a slow, busy machine
_STEP_S = 60.0
_MOUNT_GRACE_S = 15.0  # well beyond what a mount needs that lives: killed, it leaves ENOTCONN
_SERVER_GRACE_S = 5.0  # it cuts what is in flight after 1 s by itself
_CLEARED_S = 5.0


@dataclass(frozen=True, slots=True)
class _Places:
    mountpoint: Path
    data: Path
    scratch: Path  # ours alone: mode 0700
    port: int


@dataclass(frozen=True, slots=True)
class _Running:
    server: children.Child
    mount: children.Child
    url: str
    token_file: Path  # never the token itself: every user can read our command lines


@click.command("demo")
@click.argument("mountpoint", type=click.Path(path_type=Path))
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Keep the server's content here.  [default: a temporary directory]",
)
@click.option("--check", is_flag=True, help="Run the tour instead of printing it, then end.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=0,
    help="Port of the server on 127.0.0.1.  [default: any that is free]",
)
def command(mountpoint: Path, data: Path | None, check: bool, port: int) -> None:
    """Try jfs: mount sample models from an embedded server on MOUNTPOINT.

    Starts `jfs serve` with a repository of small genuine models and `jfs mount`, prints commands to
    try, and takes everything away again at Ctrl-C. MOUNTPOINT is made if it is missing.

    \b
    Example:
      jfs demo /tmp/models
      jfs demo --check /tmp/models

    Exit codes: 0 ended (with --check: every step worked), 1 a step failed or the server or the
    mount died, 2 nothing was started, and the message says what to do, 130 Ctrl-C came too early.
    """
    sys.exit(trio.run(_demo, mountpoint.absolute(), data, port, check))


@contextlib.contextmanager
def _directories(mountpoint: Path, data: Path | None, port: int) -> Iterator[_Places]:
    """Make a scratch directory, and MOUNTPOINT if it is missing. Raises ConfigError."""
    if data is not None:
        one, other = mountpoint.resolve(), data.resolve()
        if one.is_relative_to(other) or other.is_relative_to(one):
            raise ConfigError(f"--data {data}: must not lie in MOUNTPOINT, nor MOUNTPOINT in it")
    with _made(mountpoint):
        check_mountpoint(mountpoint)
        with tempfile.TemporaryDirectory(
            prefix="jfs-demo-", dir=_temporary(), ignore_cleanup_errors=True
        ) as temporary:
            scratch = Path(temporary)
            kept = scratch / "data" if data is None else data.absolute()
            yield _Places(mountpoint, kept, scratch, port)


def _temporary() -> Path:
    """Return where temporary files go. Raises ConfigError.

    Python's own choice ends with the current directory, which is the user's.
    """
    places = [os.environ.get(name, "") for name in ("TMPDIR", "TEMP", "TMP")]
    for place in filter(os.path.isabs, [*places, "/tmp", "/var/tmp"]):
        if os.path.isdir(place) and os.access(place, os.W_OK | os.X_OK):
            return Path(place)
    raise ConfigError("no directory for temporary files can be written: set TMPDIR to one")


@contextlib.contextmanager
def _made(directory: Path) -> Iterator[None]:
    """Have *directory* for the time of the block; what had to be made is removed after it."""
    missing = []
    place = directory
    while not os.path.lexists(place):
        missing.append(place)
        place = place.parent
    made: list[Path] = []
    try:
        for place in reversed(missing):
            try:
                place.mkdir()
            except OSError as error:
                raise ConfigError(f"{place}: cannot be made: {error.strerror}") from None
            made.append(place)
        yield
    finally:
        for place in reversed(made):
            with contextlib.suppress(OSError):  # in use by someone else by now
                place.rmdir()


async def _demo(mountpoint: Path, data: Path | None, port: int, check: bool) -> int:
    """Run until the tour or the person is done; return the exit code.

    Raises:
        KeyboardInterrupt: Ctrl-C came before there was anything to end.
    """
    failure: JfsError | None = None
    code = 0
    received: list[int] = []
    shown = False
    console = Console(highlight=False)
    with (
        trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals,
        # Inside, so that no signal cuts its clearing up short; nothing else runs at that time.
        _directories(mountpoint, data, port) as places,
    ):
        async with trio.open_nursery() as readers:
            with trio.CancelScope() as scope:
                readers.start_soon(_cancel_on_signal, signals, received, scope)
                try:
                    async with _mounted(places, readers) as running:
                        steps = await _tour(places, running)
                        if check:
                            code = await _check(steps, places, running, console)
                        else:
                            _show(steps, places, running.url, console)
                            shown = True
                            await _until_an_end(running)
                except JfsError as error:
                    failure = error
            readers.cancel_scope.cancel()
    if failure is not None:
        raise failure
    if scope.cancelled_caught:
        if not shown and signal.SIGINT in received:
            raise KeyboardInterrupt
        code = 1 if check else 0
        console.print("jfs: interrupted" if check else "jfs: ended")
    return code


async def _cancel_on_signal(
    signals: AsyncIterator[int], received: list[int], scope: trio.CancelScope
) -> None:
    async for number in signals:  # later ones change nothing: the end is bounded already
        received.append(number)
        scope.cancel()


@contextlib.asynccontextmanager
async def _mounted(places: _Places, readers: trio.Nursery) -> AsyncIterator[_Running]:
    """Have the server and the mount running; the mount ends first."""
    async with children.running(
        "the server",
        [
            *(*children.JFS, "serve", str(places.data), "--port", str(places.port)),
            *("--repo", REPOSITORY, "--samples", "--json"),
        ],
        readers,
        ready=re.compile(r"(\{.*\})"),
        ready_within_s=_READY_S,
        grace_s=_SERVER_GRACE_S,
    ) as (server, match):
        served = json.loads(match[1])
        url, token_file = str(served["url"]), Path(served["token_file"])
        try:
            async with children.running(
                "the mount",
                [
                    *(*children.JFS, "mount", f"{url}/{REPOSITORY}", str(places.mountpoint)),
                    *("--token-file", str(token_file)),
                    *("--cache-dir", str(places.scratch / "cache")),
                ],
                readers,
                ready=re.compile(r"jfs: .* mounted at "),
                ready_within_s=_READY_S,
                grace_s=_MOUNT_GRACE_S,
            ) as (mounted, _):
                yield _Running(server, mounted, url, token_file)
        finally:
            await _clear(places.mountpoint)


async def _clear(mountpoint: Path) -> None:
    """Take away what a mount that died left behind: its mountpoint, answering ENOTCONN."""
    with trio.move_on_after(_CLEARED_S, shield=True):
        if mount_at(mountpoint) is not None:
            with contextlib.suppress(ConfigError):  # someone else took it away just now
                await threads.own_mount(lambda: unmount(mountpoint, lazy=True))


async def _tour(places: _Places, running: _Running) -> list[tour.Step]:
    """Make the tour, with what the server says about its content."""
    settings = ServerSettings(url=running.url, credentials=credentials_from({}, running.token_file))
    async with contextlib.aclosing(ArtifactoryClient(settings, Metrics())) as client:
        try:
            info = await client.stat(RepoPath(REPOSITORY, tour.DIGITS))
        except NotFound:
            raise ConfigError(
                f"{places.data}: its repository {REPOSITORY} holds something else than the "
                "samples: give --data a new directory"
            ) from None
    stated = info.checksums.sha256 if isinstance(info, FileInfo) else None
    if stated is None:
        raise JfsError(f"{tour.DIGITS}: the server states no sha256 for it")
    return tour.steps(places.mountpoint, stated)


async def _until_an_end(running: _Running) -> None:
    """Wait until a child ends. Raises ChildEnded, unless someone has unmounted in good order."""
    first = await _first_end((running.server, running.mount))
    if first is not running.mount or first.process.returncode != 0:
        raise await first.ended()


async def _first_end(group: tuple[children.Child, ...]) -> children.Child:
    ended: list[children.Child] = []
    async with trio.open_nursery() as nursery:

        async def wait(child: children.Child) -> None:
            await child.wait()
            ended.append(child)
            nursery.cancel_scope.cancel()

        for child in group:
            nursery.start_soon(wait, child)
    return ended[0]


def _show(steps: list[tour.Step], places: _Places, url: str, console: Console) -> None:
    console.print(f"[bold]{escape(str(places.mountpoint))}[/] shows {escape(url)}/{REPOSITORY}")
    console.print("Try, in another terminal:\n")
    for step in steps:
        console.print(f"[dim]# {escape(step.title)}[/]")
        # Not wrapped: a line that was broken for the screen is broken for the shell too.
        console.print(step.command, markup=False, soft_wrap=True)
        console.print()
    console.print("Ctrl-C ends the demo and unmounts.")


async def _check(
    steps: list[tour.Step],
    places: _Places,
    running: _Running,
    console: Console,
) -> int:
    """Run the steps; print each with its result. Raises ChildEnded if server or mount dies."""
    failed = 0
    for step in steps:
        problem = await _run_step(step, places.scratch)
        for child in (running.server, running.mount):
            if child.process.returncode is not None:
                raise await child.ended()
        result = "[red]failed[/]" if problem else "[green]ok[/]"
        console.print(f"{result}  {escape(step.title)}")
        console.print(f"    $ {step.command}", style="dim", markup=False, soft_wrap=True)
        if problem:
            failed += 1
            console.print(f"    {problem}", markup=False, soft_wrap=True)
    console.print(f"{len(steps) - failed} of {len(steps)} steps ok")
    return 1 if failed else 0


async def _run_step(step: tour.Step, scratch: Path) -> str | None:
    """Run one step as a shell would; say what went wrong with it, if anything did."""
    # onnxruntime 1.32 leaves a file .ses in TMPDIR when it is imported; it goes with ours.
    environ = {**os.environ, "TMPDIR": str(scratch)}
    code, output = await children.run(step.command, within_s=_STEP_S, environ=environ)
    if code is None:
        return f"no end within {_STEP_S:g} s"
    if code != 0:
        return f"exit code {code}: {output}"
    return None if step.expected in output else f"{step.expected!r} is not in: {output}"
