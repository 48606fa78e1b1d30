"""What every benchmark needs of the machine: clean caches, touched memory, processes with figures.

Run by hand, as root. Figures are medians of one run on one machine: read them as ratios.
"""

import contextlib
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

GiB = 1024**3


@dataclass
class Sample:
    """One timed run: seconds, and CPU seconds of the processes that did it.

    Attributes:
        load: CPU seconds of what read or wrote, where *cpu* is that of what served it.
    """

    seconds: float
    cpu: float = 0.0
    rss: int = 0
    sent: int = 0
    requests: int = 0
    load: float = 0.0


@dataclass
class Series:
    """Every run of one contender."""

    name: str
    amount: int
    samples: list[Sample] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        return statistics.median(sample.seconds for sample in self.samples)

    @property
    def rate(self) -> float:
        """Bytes a second, of the median run."""
        return self.amount / self.seconds


def forget_pages(*roots: Path) -> None:
    """Drop the page cache of the files below *roots*, and nothing else: what the server has in
    memory stays there, and so does memory that was touched.
    """
    os.sync()
    for root in roots:
        for path in [root, *root.rglob("*")]:
            if path.is_file():
                with path.open("rb") as file:
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def touch_memory(amount: int) -> None:
    """Touch *amount* bytes once, in a process of its own.

    On virtual machines whose host takes free pages back the first touch of a page costs five times
    its copy; every contender then pays it or none does.
    """
    script = (
        "import mmap, sys\n"
        "flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE\n"
        "mmap.mmap(-1, int(sys.argv[1]), flags=flags)\n"
    )
    subprocess.run([sys.executable, "-c", script, str(amount)], check=True)


def cpu_of(pid: int) -> float:
    """CPU seconds of a living process, all threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def peak_rss_of(pid: int) -> int:
    """Peak resident bytes of a living process, without the file pages it maps."""
    status = dict(
        line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines()
    )
    return int(status["VmHWM"].split()[0]) * 1024


def cpu_of_children() -> float:
    """CPU seconds of the processes that we have waited for so far."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def timed(command: Sequence[str]) -> Sample:
    """Run a command to its end; fails when it does."""
    before = cpu_of_children()
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    seconds = time.perf_counter() - start
    cpu = cpu_of_children() - before
    return Sample(seconds, cpu, load=cpu)


@contextlib.contextmanager
def patience(process: "subprocess.Popen[str]", what: str) -> Iterator[None]:
    """End *process* at the end of the block, whatever happened."""
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(30)
            click.echo(f"{what} had to be killed", err=True)


def report(title: str, series: Sequence[Series], baseline: str) -> None:
    """Print rates, ratios to *baseline*, and what the runs cost."""
    reference = next((one.rate for one in series if one.name == baseline), None)
    table = Table(title=title)
    for heading in (
        "",
        "GB/s",
        "min-max s",
        f"÷ {baseline}",
        "CPU s",
        "readers' CPU s",
        "peak RSS MiB",
        "sent MB",
        "requests",
    ):
        table.add_column(heading, justify="left" if not heading else "right")
    for one in series:
        seconds = sorted(sample.seconds for sample in one.samples)
        middle = one.samples[len(one.samples) // 2]
        table.add_row(
            one.name,
            f"{one.rate / 1e9:.2f}",
            f"{seconds[0]:.2f}-{seconds[-1]:.2f}",
            f"{one.rate / reference:.2f}" if reference else "",
            f"{statistics.median(s.cpu for s in one.samples):.2f}",
            f"{statistics.median(s.load for s in one.samples):.2f}" if middle.load else "",
            f"{max(s.rss for s in one.samples) / 1024**2:.0f}" if middle.rss else "",
            f"{statistics.median(s.sent for s in one.samples) / 1e6:.1f}" if middle.sent else "",
            f"{statistics.median(s.requests for s in one.samples):.0f}" if middle.sent else "",
        )
    Console(width=140).print(table)


Contender = Callable[[], Sample]


def compete(amount: int, rounds: int, contenders: dict[str, Contender]) -> list[Series]:
    """Run every contender *rounds* times, in turn, so that the machine's drift meets all alike."""
    series = [Series(name, amount) for name in contenders]
    for _ in range(rounds):
        for one in series:
            one.samples.append(contenders[one.name]())
    return series


def race(title: str, amount: int, rounds: int, run: dict[str, Contender]) -> None:
    report(title, compete(amount, rounds, run), next(iter(run)))
