"""Writing through a mount, beside curl, sha256sum and rclone: ``python -m tests.bench.writes``.

One run prints medians and ratios; bytes and requests are what the server counted, CPU seconds and
peak RSS are the daemon's. The peer, ``rclone mount``, writes to ``rclone serve webdav``: it has no
backend for Artifactory. Needs root, curl, openssl and rclone (without it: ``--no-peers``).
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import click

from tests.bench import loads
from tests.bench.littlewrites import littles
from tests.bench.machine import Contender, Sample, compete, cpu_of, peak_rss_of, report, timed
from tests.bench.reads import Bench, Served, served, unmount_left
from tests.bench.server import serving

KiB, MiB, GiB = 1024, 1024**2, 1024**3
_REPO = "bench"
_SMALL, _SMALL_FILES = 10 * KiB, 1000
# Its close returns before the upload, and says nothing of it.
_CACHED = ("--vfs-cache-mode", "writes", "--vfs-write-back", "0s")


class Writes:
    """What is written, and how it is taken away again."""

    def __init__(self, bench: Bench, target: Served, work: Path) -> None:
        self.bench = bench
        self.served = target
        self.work = work
        self.big = work / "big.bin"
        self.small = work / "small"

    def remove(self, name: str) -> None:
        url = urlsplit(self.served.url)
        request = Request(
            f"{url.scheme}://{url.netloc}/artifactory/{_REPO}/{name}", method="DELETE"
        )
        request.add_header("Authorization", f"Bearer {self.served.token}")
        with urlopen(request, context=loads.unverified()):
            pass

    def curl(self) -> Sample:
        self.bench.quiet()
        sample = timed(self.served.curl("curl.bin", "-T", str(self.big), "-o", "/dev/null"))
        self.remove("curl.bin")
        return sample

    def copied(self, *options: str, again: bool = False) -> Sample:
        """``cp`` into a fresh mount; *again*: of content that this node has uploaded before."""
        with self.bench.fresh_cache() as cache:
            with self.bench.mount(cache, *options) as mounted:
                if again:
                    timed(["cp", str(self.big), str(mounted.root / "known.bin")])
                self.bench.quiet()
                received = self.received()
                sample = self.bench.measured(
                    [mounted], [["cp", str(self.big), str(mounted.root / "cp.bin")]]
                )
                sample.sent = self.received() - received
            self.remove("cp.bin")
            if again:
                self.remove("known.bin")
        return sample

    def closed(self, *options: str) -> Sample:
        """The seconds between the last write of a large file and the return of its close."""
        with self.bench.fresh_cache() as cache:
            with self.bench.mount(cache, *options) as mounted:
                self.bench.quiet()
                load = (sys.executable, "-m", "tests.bench.loads", "store")
                said = subprocess.run(
                    [*load, str(self.big), str(mounted.root / "closed.bin")],
                    check=True,
                    capture_output=True,
                    text=True,
                )
            self.remove("closed.bin")
        return Sample(float(said.stdout))

    def received(self) -> int:
        url = urlsplit(self.served.url)
        request = Request(f"{url.scheme}://{url.netloc}/jfs/stats")
        request.add_header("Authorization", f"Bearer {self.served.token}")
        with urlopen(request, context=loads.unverified()) as answer:
            return int(json.load(answer)["bytes_received"])

    def many(self, *options: str) -> Sample:
        with self.bench.fresh_cache() as cache, self.bench.mount(cache, *options) as mounted:
            received = self.received()
            sample = self.bench.measured(
                [mounted], [["cp", "-r", str(self.small), str(mounted.root / "many")]]
            )
            sample.sent = self.received() - received
        self.remove("many")
        return sample


@contextmanager
def rclone_mount(work: Path, *options: str) -> Iterator[tuple[Path, int]]:
    """Mount an ``rclone serve webdav`` by ``rclone mount``; return the root and its process."""
    store, root = work / "webdav", work / "rclone"
    store.mkdir(exist_ok=True)
    root.mkdir(exist_ok=True)
    port = 18393
    quiet = ("--config", "/dev/null")
    serve = subprocess.Popen(
        ["rclone", "serve", "webdav", str(store), "--addr", f"127.0.0.1:{port}", *quiet],
        stderr=subprocess.DEVNULL,
    )
    process = subprocess.Popen(
        [
            *("rclone", "mount", ":webdav:", str(root), "--webdav-url"),
            *(f"http://127.0.0.1:{port}", *quiet, *options),
        ],
        stderr=subprocess.DEVNULL,
    )
    try:
        while not os.path.ismount(root):
            time.sleep(0.05)
        yield root, process.pid
    finally:
        subprocess.run(["fusermount3", "-uz", str(root)], check=False)
        for one in (process, serve):
            one.send_signal(signal.SIGTERM)
            one.wait(30)
        shutil.rmtree(store)


def rclone(writes: Writes, source: Path, *options: str) -> Sample:
    """Copy through ``rclone mount``, which writes through: its close says what became of it."""
    with rclone_mount(writes.work, *options) as (root, pid):
        writes.bench.quiet()
        cpu = cpu_of(pid)
        sample = timed(["cp", "-r", str(source), str(root / "copy")])
        sample.cpu = cpu_of(pid) - cpu
        sample.rss = peak_rss_of(pid)
        return sample


def race(title: str, amount: int, rounds: int, run: dict[str, Contender]) -> None:
    report(title, compete(amount, rounds, run), next(iter(run)))


@click.command()
@click.option("--mib", default=2048, show_default=True, help="Size of the file.")
@click.option("--rounds", default=3, show_default=True)
@click.option("--peers/--no-peers", default=True, show_default=True)
@click.option("--only", type=click.Choice(["big", "small", "little"]), help="One part of it.")
def main(mib: int, rounds: int, peers: bool, only: str | None) -> None:
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="jfs-bench-")))
        stack.callback(lambda: unmount_left(work))
        loads.self_signed(work)
        with (work / "big.bin").open("wb") as file:
            for _ in range(mib):
                file.write(os.urandom(MiB))
        (work / "small").mkdir()
        for number in range(_SMALL_FILES):
            (work / "small" / f"{number:04}.bin").write_bytes(os.urandom(_SMALL))
        with serving(work / "data"):
            pass  # makes the repository
        for tls in (False, True):
            click.echo(f"\n{'HTTPS' if tls else 'HTTP'}")
            with served(work / "data", work, tls=tls) as target:
                writes = Writes(Bench(work, target, int(3.5 * mib * MiB) + GiB), target, work)
                if only in (None, "big"):
                    large(writes, mib, rounds, peers=peers and not tls, hashed=not tls)
                if only in (None, "small") and not tls:
                    run: dict[str, Contender] = {"jfs": writes.many}
                    if peers:
                        run["rclone mount"] = lambda writes=writes: rclone(writes, writes.small)
                        run["rclone, cached"] = lambda writes=writes: rclone(
                            writes, writes.small, *_CACHED
                        )
                    title = f"{_SMALL_FILES} files of {_SMALL // KiB} KiB"
                    race(title, _SMALL * _SMALL_FILES, rounds, run)
                if only in (None, "little") and not tls:
                    littles(writes.bench, work, rounds)


def large(writes: Writes, mib: int, rounds: int, *, peers: bool, hashed: bool) -> None:
    late = "--no-overlap-uploads"
    run: dict[str, Contender] = {
        "curl -T": writes.curl,
        "jfs, cp": writes.copied,
        f"jfs {late}, cp": lambda: writes.copied(late),
    }
    if peers:
        run["rclone mount, cp"] = lambda: rclone(writes, writes.big)
    race(f"{mib} MiB", mib * MiB, rounds, run)
    race(
        f"from the last write of {mib} MiB to the return of close",
        mib * MiB,
        rounds,
        {f"jfs {late}": lambda: writes.closed(late), "jfs": writes.closed},
    )
    if hashed:
        race(
            f"{mib} MiB that was uploaded from here before",
            mib * MiB,
            rounds,
            {
                "sha256sum": lambda: timed(["sha256sum", str(writes.big)]),
                "jfs, cp": lambda: writes.copied(again=True),
            },
        )


if __name__ == "__main__":
    main()
