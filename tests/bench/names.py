"""Names and properties at scale, through a mount: ``python -m tests.bench.names``.

Two trees of 100,000 artifacts: 10 folders of 10,000, and 1,000 folders of 100. Requests are what
the server counted, peak RSS is the daemon's. Needs root.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from jfs.server import EmbeddedServer
from tests.bench.machine import cpu_of, peak_rss_of
from tests.mount.mounting import Mounted

_REPO = "bench"
_WIDE = [(f"wide/d{d}", 10_000) for d in range(10)]
_DEEP = [(f"deep/{a}/{b}", 100) for a in range(10) for b in range(100)]


def fill(server: EmbeddedServer, folders: list[tuple[str, int]], scale: int) -> None:
    """Deploy small artifacts, each with two properties."""
    for folder, count in folders:
        for number in range(count // scale):
            server.deploy(
                _REPO,
                f"{folder}/m{number:05}.bin",
                b"x" * (number % 7 + 1),
                {"env": ["production"], "n": [str(number % 100)]},
            )


@contextmanager
def mounted(server: EmbeddedServer, work: Path, *options: str) -> Iterator[Mounted]:
    root = Path(tempfile.mkdtemp(prefix="mount-", dir=work))
    mount = Mounted(
        f"{server.url}/{_REPO}",
        root,
        environ={"JF_ACCESS_TOKEN": server.token},
        cache=work / "cache",
        options=["--attr-ttl", "600", *options],
    )
    try:
        yield mount
    finally:
        mount.stop(expected=[".*"])


def walk_attributes(root: str) -> None:
    """Read every attribute of everything, as ``getfattr -d -R`` does."""
    for folder, _, files in os.walk(root):
        for path in [folder, *(os.path.join(folder, name) for name in files)]:
            for name in os.listxattr(path):
                os.getxattr(path, name)


def stat_missing(root: str) -> None:
    """Look up 10,000 names that are not there."""
    for number in range(10_000):
        assert not os.path.exists(f"{root}/missing{number}")


_WORK: dict[str, Callable[[str], None]] = {"attributes": walk_attributes, "missing": stat_missing}


def _self(what: str, root: Path) -> list[str]:
    return [sys.executable, "-m", "tests.bench.names", "--do", what, str(root)]


@click.command()
@click.option("--scale", default=1, show_default=True, help="Divide every folder by this.")
@click.option("--do", "task", type=(str, str), hidden=True)
def main(scale: int, task: tuple[str, str] | None) -> None:
    if task is not None:
        _WORK[task[0]](task[1])
        return
    table = Table(title=f"names at scale (÷ {scale})")
    for header in ("what", "seconds", "requests", "CPU s", "peak RSS MiB"):
        table.add_column(header, justify="left" if header == "what" else "right")
    with tempfile.TemporaryDirectory(prefix="jfs-bench-") as directory:
        work = Path(directory)
        with EmbeddedServer(work / "server") as server:
            server.create_repository(_REPO)
            fill(server, _WIDE, scale)
            fill(server, _DEEP, max(1, scale // 10))

            def measure(title: str, commands: Callable[[Path], list[str]]) -> None:
                with mounted(server, work) as mount:
                    server.stats.reset()
                    cpu = cpu_of(mount.process.pid)
                    start = time.perf_counter()
                    subprocess.run(commands(mount.root), check=True, stdout=subprocess.DEVNULL)
                    table.add_row(
                        title,
                        f"{time.perf_counter() - start:.2f}",
                        str(server.stats.requests),
                        f"{cpu_of(mount.process.pid) - cpu:.2f}",
                        f"{peak_rss_of(mount.process.pid) / 2**20:.0f}",
                    )

            for tree in ("wide", "deep"):
                measure(f"ls -lR {tree}", lambda root, t=tree: ["ls", "-lR", str(root / t)])
                measure(f"find {tree} -type f", lambda root, t=tree: ["find", str(root / t)])
            measure("every attribute of 10,000 files", lambda r: _self("attributes", r / "wide/d0"))
            measure("10,000 missing names", lambda r: _self("missing", r / "wide/d0"))
            measure(
                ".by/env=production: find of 200,000",
                lambda r: ["find", str(r / ".by" / "env=production"), "-type", "f"],
            )
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
