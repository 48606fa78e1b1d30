"""Memory follows the limit of the process: what does not fit is refused, not killed for."""

import gc
import json
import subprocess
import sys
import weakref
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing
from pathlib import Path

import pytest

from jfs import memory
from jfs.artifactory import pieces
from jfs.errors import NoMemory, Unavailable
from jfs.extents import MiB

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _no_limit_stays() -> Iterator[None]:
    yield
    memory.follow(None)


class Rows:
    """Keeps every row, as a listing does."""

    to_come = 0.65

    def __init__(self) -> None:
        self.kept: list[object] = []

    def take(self, row: object) -> None:
        self.kept.append(row)


async def answer(count: int, *, cut: bool) -> AsyncGenerator[bytes, None]:
    """Send a long object, 100 bytes a row; *cut*: the connection breaks near its end."""
    yield b'{"files":['
    row = json.dumps({"uri": "x" * 90}).encode()
    for start in range(0, count, 1000):
        yield b",".join([row] * min(1000, count - start)) + b","
    if cut:
        raise Unavailable("the connection was reset")
    yield row + b"]}"


async def read(
    rows: Rows, count: int, *, cut: bool = False, moved: Callable[[], None] = lambda: None
) -> None:
    async with aclosing(answer(count, cut=cut)) as body:
        reader = pieces.LongObject("files", rows.take, "/api/storage/r/big?list")
        await pieces._receive(body, reader, rows, moved)


async def _refused() -> None:
    memory.follow(int((memory.resident() + 8 * MiB) / 0.85))
    rows = Rows()
    with pytest.raises(NoMemory, match=r"/api/storage/r/big\?list: does not fit into the \d+ MiB"):
        await read(rows, 1_000_000)
    assert len(rows.kept) < 200_000
    rows.kept.clear()
    await read(rows, 1000)
    assert len(rows.kept) == 1001


def test_an_answer_that_does_not_fit_is_refused() -> None:
    """In a process of its own: this one has memory that tests before it have freed."""
    program = f"import trio; from {__name__} import _refused; trio.run(_refused)"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT, timeout=50)


@pytest.mark.parametrize("limit", [None, 1 << 40])
async def test_without_a_limit_in_reach_everything_fits(limit: int | None) -> None:
    memory.follow(limit)
    rows = Rows()
    await read(rows, 10_000)
    assert len(rows.kept) == 10_001
    assert not memory.is_tight()


async def test_an_answer_that_breaks_off_leaves_nothing_behind() -> None:
    """Its rows would stay for good: frozen objects are not collected."""
    rows = Rows()
    left = weakref.ref(rows)
    gc.disable()
    try:
        with pytest.raises(Unavailable):
            await read(rows, 5000, cut=True)
        del rows
        assert left() is None
    finally:
        gc.enable()


async def test_a_long_answer_says_that_it_moves() -> None:
    told: list[None] = []
    await read(Rows(), 50_000, moved=lambda: told.append(None))  # 5 MB
    assert 3 <= len(told) <= 5
