"""Reading through a mount, beside curl, local files, other mounts: ``python -m tests.bench.reads``.

One run prints medians and ratios; bytes and requests are what the server counted, CPU seconds and
peak RSS are the daemon's. The peer, ``rclone mount``, reads the same file from nginx, which is at
least as fast as the embedded server that jfs and curl read from. Needs root, curl, nginx, openssl
and rclone (without it: ``--no-peers``).
"""

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import click
import numpy as np
from safetensors.numpy import save_file

from jfs.model import ContentKey
from jfs.server import EmbeddedServer
from tests.bench import loads
from tests.bench.machine import (
    Contender,
    Sample,
    cpu_of,
    cpu_of_children,
    forget_pages,
    peak_rss_of,
    race,
    timed,
    touch_memory,
)
from tests.bench.pieces import SHARDS, SMALL_FILES, pieces
from tests.bench.server import nginx, serving
from tests.component.composed import block_store
from tests.mount.mounting import Mounted

KiB, MiB, GiB = 1024, 1024**2, 1024**3
_REPO = "bench"
_HUGE = 10 * GiB


@dataclass(frozen=True, slots=True)
class Served:
    """The embedded server, and where it keeps its files."""

    url: str
    token: str
    filestore: Path

    def curl(self, name: str, *options: str) -> list[str]:
        secret = f"Authorization: Bearer {self.token}"
        return ["curl", "-sSfk", "-H", secret, *options, f"{self.url}/{_REPO}/{name}"]

    def counters(self) -> tuple[int, int]:
        """Bytes sent and requests so far."""
        root = urlsplit(self.url)
        request = urllib.request.Request(f"{root.scheme}://{root.netloc}/jfs/stats")
        request.add_header("Authorization", f"Bearer {self.token}")
        with urllib.request.urlopen(request, context=loads.unverified()) as answer:
            stats = json.load(answer)
        return stats["bytes_sent"], stats["requests"] - 1


class Bench:
    """Mounts that are made anew for every cold sample, and what reading them cost."""

    def __init__(self, work: Path, served: Served, touch: int) -> None:
        self._work = work
        self._served = served
        self._touch = touch

    @contextmanager
    def mount(self, cache: Path, *options: str) -> Iterator[Mounted]:
        root = Path(tempfile.mkdtemp(prefix="mount-", dir=self._work))
        mounted = Mounted(
            f"{self._served.url}/{_REPO}",
            root,
            environ={"JF_ACCESS_TOKEN": self._served.token},
            cache=cache,
            options=["--insecure", *options],
        )
        try:
            yield mounted
        finally:
            mounted.stop()

    @contextmanager
    def fresh_cache(self) -> Iterator[Path]:
        path = Path(tempfile.mkdtemp(prefix="cache-", dir=self._work))
        path.chmod(0o700)
        try:
            yield path
        finally:
            shutil.rmtree(path)

    def measured(self, mounts: list[Mounted], commands: list[list[str]]) -> Sample:
        """Run commands side by side and say what they cost the daemons and the server."""
        sent, requests = self._served.counters()
        cpu = sum(cpu_of(mounted.process.pid) for mounted in mounts)
        load = cpu_of_children()
        start = time.perf_counter()
        running = [subprocess.Popen(each, stdout=subprocess.DEVNULL) for each in commands]
        for process in running:
            if process.wait(600) != 0:
                raise SystemExit(f"failed: {process.args!r}")
        seconds = time.perf_counter() - start
        sent_after, requests_after = self._served.counters()
        return Sample(
            seconds,
            sum(cpu_of(mounted.process.pid) for mounted in mounts) - cpu,
            max((peak_rss_of(mounted.process.pid) for mounted in mounts), default=0),
            sent_after - sent,
            requests_after - requests - 1,  # the question itself
            cpu_of_children() - load,
        )

    def quiet(self) -> None:
        """Nothing of the last sample is left to be written, and memory is touched."""
        os.sync()
        touch_memory(self._touch)

    def cold(
        self,
        name: str,
        *load: str,
        readers: int = 1,
        mounts: int = 1,
        options: Sequence[str] = (),
    ) -> Sample:
        """Read a file that no cache has; *load* is a command of ``loads``, else ``dd``."""
        with self.fresh_cache() as cache, ExitStack() as stack:
            living = [stack.enter_context(self.mount(cache, *options)) for _ in range(mounts)]
            self.quiet()
            commands = [
                command(mounted.root / name, *load) for mounted in living for _ in range(readers)
            ]
            return self.measured(living, commands)

    def disk_warm(self, cache: Path, name: str, *load: str, options: Sequence[str] = ()) -> Sample:
        with self.mount(cache, *options) as mounted:
            forget_pages(cache)
            self.quiet()
            return self.measured([mounted], [command(mounted.root / name, *load)])

    def page_warm(self, cache: Path, name: str, *load: str, options: Sequence[str] = ()) -> Sample:
        with self.mount(cache, *options) as mounted:
            # Twice: the second look at a page makes the kernel take it for one in use, once.
            for _ in range(2):
                self.measured([mounted], [command(mounted.root / name, *load)])
            return self.measured([mounted], [command(mounted.root / name, *load)])

    def listing(self) -> Sample:
        with self.fresh_cache() as cache, self.mount(cache) as mounted:
            return self.measured([mounted], [["ls", "-l", str(mounted.root / "many")]])

    def curl(self, name: str, *options: str, quiet: bool = True) -> Sample:
        if quiet:
            self.quiet()
        return timed(self._served.curl(name, *options))


def command(path: Path, *load: str) -> list[str]:
    if load and load[0] == "dd":
        return ["dd", f"if={path}", "of=/dev/null", f"bs={load[1]}", "count=1", "status=none"]
    if load:
        return [sys.executable, "-m", "tests.bench.loads", *load, str(path)]
    return ["dd", f"if={path}", "of=/dev/null", "bs=1M", "status=none"]


def local(path: Path, *load: str, warm: bool) -> Sample:
    if warm:
        for _ in range(2):
            timed(command(path, *load))
    else:
        forget_pages(path)
        touch_memory(path.stat().st_size * 2)
    return timed(command(path, *load))


def rclone(bench: Bench, work: Path, url: str, name: str, *options: str) -> Sample:
    """A cold read through ``rclone mount`` of the same file on nginx."""
    root = work / "rclone"
    root.mkdir(exist_ok=True)
    process = subprocess.Popen(
        [
            *("rclone", "mount", ":http:", str(root), "--http-url", url, "--read-only"),
            *("--no-check-certificate", "--config", "/dev/null", *options),
        ],
        stderr=subprocess.DEVNULL,
    )
    try:
        while not os.path.ismount(root):
            time.sleep(0.05)
        bench.quiet()
        cpu = cpu_of(process.pid)
        sample = timed(command(root / name))
        sample.cpu = cpu_of(process.pid) - cpu
        sample.rss = peak_rss_of(process.pid)
        return sample
    finally:
        subprocess.run(["fusermount3", "-uz", str(root)])
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def seed(work: Path, plain: Path, mib: int) -> None:
    """Fill the server, and nginx's root by hard links to the same files."""
    root = work / "root"
    root.mkdir()
    big, model = root / "big.bin", root / "model.safetensors"
    with big.open("wb") as file:
        for number in range(mib):
            block = os.urandom(MiB)
            file.write(number.to_bytes(8, "big") + block[8:])
    rng = np.random.default_rng(1)
    tensors = max(1, mib // 32)
    save_file({f"layer{i}": rng.random(4 * MiB) for i in range(tensors)}, model)
    huge = work / "huge.safetensors"
    header = json.dumps({"w": {"dtype": "U8", "shape": [_HUGE], "data_offsets": [0, _HUGE]}})
    text = header.encode().ljust(64 * KiB)
    with huge.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + _HUGE)
    with EmbeddedServer(plain) as server:
        server.create_repository(_REPO)
        for path in (big, model):
            server.deploy(_REPO, path.name, path)
        server.deploy(_REPO, huge.name, huge, sha256="1" * 64)  # nobody reads all of it
        shard = work / "shard"
        for number in range(1, SHARDS + 1):
            save_file({f"layer{number}.{i}": rng.random(4 * MiB) for i in range(4)}, shard)
            server.deploy(_REPO, f"shards/m-{number:05}-of-{SHARDS:05}.safetensors", shard)
        for number in range(SMALL_FILES):
            server.deploy(_REPO, f"many/{number:04}.bin", number.to_bytes(8, "big"))


@contextmanager
def served(data: Path, work: Path, *, tls: bool) -> Iterator[Served]:
    options = ("--tls-cert", str(work / "cert.pem"), "--tls-key", str(work / "key.pem"))
    with serving(data, *(options if tls else ())) as (url, token, _):
        yield Served(url.replace("127.0.0.1", "localhost"), token, data / "filestore")


def sequential(bench: Bench, work: Path, url: str, mib: int, rounds: int, peers: bool) -> None:
    out = work / "curl.out"
    name = "big.bin"

    def to_file() -> Sample:
        out.unlink(missing_ok=True)
        return bench.curl(name, "-o", str(out))

    run: dict[str, Contender] = {
        "curl to a file": to_file,
        "curl to /dev/null": lambda: bench.curl(name, "-o", "/dev/null"),
        "jfs, cold": lambda: bench.cold(name),
        "jfs, cold mmap load": lambda: bench.cold("model.safetensors", "tensors"),
        "jfs, 4 readers": lambda: bench.cold(name, readers=4),
        "jfs, 2 mounts of 4": lambda: bench.cold(name, readers=4, mounts=2),
    }
    if peers:
        run["rclone mount"] = lambda: rclone(bench, work, url, name)
        run["rclone, tuned"] = lambda: rclone(
            bench, work, url, name, "--buffer-size", "64M", "--vfs-read-chunk-size", "128M"
        )
    race(f"cold, {mib} MiB", mib * MiB, rounds, run)
    out.unlink(missing_ok=True)


def whole(bench: Bench, work: Path, mib: int, rounds: int) -> None:
    """Fetch a file and map every page of it: by one open, and by a copy made first."""
    out, name = work / "curl.out", "big.bin"

    def copied() -> Sample:
        out.unlink(missing_ok=True)
        fetched = bench.curl(name, "-o", str(out))
        fetched.seconds += timed(command(out, "pages")).seconds
        return fetched

    def opened(*options: str) -> Sample:
        return bench.cold(name, "pages", options=options)

    race(
        "fetched whole, then every page mapped",
        mib * MiB,
        rounds,
        {
            "curl to a file, which is mapped": copied,
            "jfs --fetch whole": lambda: opened("--fetch", "whole"),
            "jfs --fetch whole, without passthrough": lambda: opened(
                *("--fetch", "whole", "--passthrough", "off")
            ),
            "jfs --fetch lazy": lambda: opened("--fetch", "lazy"),
        },
    )
    out.unlink(missing_ok=True)


def fill(cache: Path, path: Path) -> None:
    """Have the content of a file in a cache, verified."""
    staged = cache / "staged"
    shutil.copyfile(path, staged)
    with staged.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    store = block_store(cache)
    if not store.adopt(ContentKey(f"sha256:{digest}", path.stat().st_size), staged):
        raise SystemExit("the cache does not take it in")
    store.close()


def warm(bench: Bench, work: Path, mib: int, rounds: int) -> None:
    """Read and map what is cached and verified: by the kernel itself, and without."""
    name = "big.bin"
    big = work / "root" / name
    off = ("--passthrough", "off")
    with bench.fresh_cache() as cache:
        fill(cache, big)
        for how, load in (("read", ()), ("mmap of every page", ("pages",))):
            for what, measure, kept in (
                ("page-warm", bench.page_warm, True),
                ("disk-warm: page cache dropped", bench.disk_warm, False),
            ):
                race(
                    f"{what}, {how}",
                    mib * MiB,
                    rounds,
                    {
                        "local file": partial(local, big, *load, warm=kept),
                        "jfs": partial(measure, cache, name, *load),
                        "jfs without passthrough": partial(
                            measure, cache, name, *load, options=off
                        ),
                    },
                )


@click.command()
@click.option("--mib", default=2048, show_default=True, help="Size of the file.")
@click.option("--rounds", default=5, show_default=True)
@click.option("--tls/--no-tls", "secure", default=None, help="Only one of the two.")
@click.option("--peers/--no-peers", default=True, show_default=True)
@click.option(
    "--only", type=click.Choice(["cold", "whole", "warm", "pieces"]), help="One part of it."
)
@click.option("--port", default=18380, show_default=True, help="nginx takes it and the next one.")
def main(
    mib: int, rounds: int, secure: bool | None, peers: bool, only: str | None, port: int
) -> None:
    touch = int(2.5 * mib * MiB) + GiB
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="jfs-bench-")))
        stack.callback(lambda: unmount_left(work))
        loads.self_signed(work)
        seed(work, work / "data", mib)
        if peers and only in (None, "cold"):
            stack.enter_context(nginx(work, work / "root", port, port + 1))
        for tls in (False, True) if secure is None else (secure,):
            url = f"https://127.0.0.1:{port + 1}/" if tls else f"http://127.0.0.1:{port}/"
            click.echo(f"\n{'HTTPS' if tls else 'HTTP'}")
            with served(work / "data", work, tls=tls) as server:
                bench = Bench(work, server, touch)
                if only in (None, "cold"):
                    sequential(bench, work, url, mib, rounds, peers)
                if only in (None, "whole"):
                    whole(bench, work, mib, rounds)
                if only in (None, "warm") and not tls:
                    warm(bench, work, mib, rounds)
                if only in (None, "pieces"):
                    pieces(bench, mib, rounds)


def unmount_left(work: Path) -> None:
    """Nothing below *work* may stay mounted when it is removed."""
    for line in Path("/proc/mounts").read_text(errors="replace").splitlines():
        place = line.split()[1]
        if place.startswith(str(work)):
            with contextlib.suppress(OSError):
                subprocess.run(["umount", "-l", place])


if __name__ == "__main__":
    main()
