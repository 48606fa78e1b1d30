"""What programs read, and how many bytes the server sends for it.

READs come as the kernel asks for them (measured, Linux 6.18, with the settings of
``jfs.fusectl``): a piece in READs of up to a MiB, one at a time; a page fault where nobody has read
before with a MiB before it and a MiB behind (``Mapping``).
"""

import contextlib
import hashlib
import itertools
import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest
import trio

from jfs.cache import DiskBlockStore
from jfs.errors import Unasked
from jfs.extents import Extent, KiB, MiB
from jfs.metrics import Metrics
from jfs.server import EmbeddedServer
from jfs.vfs.filesystem import Filesystem
from jfs.vfs.reading.scattered import Asker
from tests.component.composed import block_store, composed, find
from tests.component.server_requests import REPO
from tests.fakekernel import READ, Kernel
from tests.unit.models import onnx_model, safetensors_head

PAGE = 4 * KiB
LAYERS, TENSOR = 12, 8 * MiB
SIZE = LAYERS * 2 * TENSOR


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A model of 12 layers, q_proj and k_proj in each; zeros. And its sha256."""
    entries = {}
    for layer in range(LAYERS):
        for place, name in enumerate(("q_proj", "k_proj")):
            start = (2 * layer + place) * TENSOR
            entry = {"dtype": "U8", "shape": [1024, TENSOR // 1024]}
            entries[f"layers.{layer}.{name}"] = {**entry, "data_offsets": [start, start + TENSOR]}
    head = safetensors_head(json.dumps(entries).encode().ljust(2 * MiB - 8))
    path = tmp_path_factory.mktemp("content") / "model.safetensors"
    path.write_bytes(head)
    with path.open("r+b") as file:
        file.truncate(2 * MiB + SIZE)
    with path.open("rb") as file:
        return path, hashlib.file_digest(file, "sha256").hexdigest()


@asynccontextmanager
async def reading(
    server: EmbeddedServer,
    content: tuple[Path, str],
    name: str,
    store: DiskBlockStore | None,
    asker: Asker | None = None,
    kernel: Kernel | None = None,
) -> AsyncIterator[Callable[[Iterable[Extent]], Awaitable[None]]]:
    """Open the content and return what makes READs of it, beside the interpreter if they can be."""
    server.deploy(REPO, f"m/{name}", content[0], sha256=content[1])
    replies = kernel.replies if kernel is not None else None
    async with composed(server, REPO, store=store, asker=asker, replies=replies) as filesystem:
        handle = (await filesystem.open(await find(filesystem, f"m/{name}"), 0)).handle
        uniques = itertools.count(2, 2)

        async def is_beside(kernel: Kernel, extent: Extent) -> bool:
            unique = next(uniques)
            kernel.read(unique, extent.start, extent.size, handle)
            if await trio.to_thread.run_sync(kernel.is_answered):
                assert len(await trio.to_thread.run_sync(kernel.answer, unique)) == extent.size
                return True
            assert kernel.passed_on()[:2] == (READ, unique)
            return False

        async def read(reads: Iterable[Extent]) -> None:
            for extent in reads:
                if kernel is not None and await is_beside(kernel, extent):
                    continue
                data = filesystem.read_at_once(handle, extent)  # as jfs.mount.atonce does
                assert len(data or await filesystem.read(handle, extent)) == extent.size

        yield read
        await filesystem.release(handle)


async def sent_for(
    server: EmbeddedServer,
    content: tuple[Path, str],
    reads: Iterable[Extent],
    *,
    name: str = "model.bin",
    store: DiskBlockStore | None = None,
) -> int:
    """Return the bytes that the server has sent when everything that READs began has ended."""
    before = server.stats.bytes_sent
    async with reading(server, content, name, store) as read:
        await read(reads)
    return server.stats.bytes_sent - before


def piece(offset: int, size: int) -> Iterator[Extent]:
    """``pread`` of *size* bytes."""
    start, stop = offset - offset % PAGE, -(-(offset + size) // PAGE) * PAGE
    while start < stop:
        yield Extent(start, min(start + MiB, stop))
        start += MiB


class Mapping:
    """A mapping, as the kernel fills it: ``Asker``, and what touches its pages."""

    def __init__(self) -> None:
        self._filled: set[int] = set()
        self._empty: set[int] = set()
        self.singles = 0
        self.read: Callable[[Extent], Awaitable[None]] | None = None

    async def wanted(self, extent: Extent, told: int) -> int | None:
        return None if self.read is not None else 0  # before it is mapped, it is read

    def ask_again(self, inode: int, extents: list[Extent]) -> None:
        for start, stop in extents:
            for page in range(start // PAGE, stop // PAGE):
                self._empty.discard(page)
                self._filled.discard(page)

    async def touch(self, slices: Iterable[Extent]) -> None:
        """Touch every page of every slice, in order."""
        assert self.read is not None
        for start, stop in slices:
            for page in range(start // PAGE, -(-stop // PAGE)):
                if page not in self._filled and page not in self._empty:
                    await self._read_around(page)
                if page not in self._filled:
                    self.singles += 1
                    await self.read(Extent(page * PAGE, (page + 1) * PAGE))
                    self._filled.add(page)

    async def _read_around(self, fault: int) -> None:
        assert self.read is not None
        absent: list[list[int]] = [[]]
        for page in range(max(0, fault - 256), min(fault + 256, (2 * MiB + SIZE) // PAGE)):
            if page in self._filled or page in self._empty or len(absent[-1]) == 256:
                absent.append([])
            if page not in self._filled and page not in self._empty:
                absent[-1].append(page)
        for pages in absent:
            if len(pages) > 128:  # fewer are left out: the congestion threshold is 0
                try:
                    await self.read(Extent(pages[0] * PAGE, (pages[-1] + 1) * PAGE))
                except Unasked:
                    self._empty.update(pages)
                else:
                    self._filled.update(pages)


def slices(part: int, of: int) -> Iterator[Extent]:
    """A rank's part of every tensor."""
    for number in range(2 * LAYERS):
        start = 2 * MiB + number * TENSOR + part * TENSOR // of
        yield Extent(start, start + TENSOR // of)


def q_proj() -> Iterator[Extent]:
    for layer in range(LAYERS):
        start = 2 * MiB + 2 * layer * TENSOR
        yield Extent(start, start + TENSOR)


def at_random(count: int, size: int) -> Iterator[Extent]:
    choose = random.Random(7)
    for _ in range(count):
        start = choose.randrange((SIZE - size) // PAGE) * PAGE
        yield Extent(start, start + size)


def rows() -> Iterator[Extent]:
    choose = random.Random(5)
    for _ in range(100):
        yield from piece(choose.randrange(SIZE // MiB) * MiB + 5, 96 * KiB)


PATTERNS = {
    # bytes that are needed, READs, sent ÷ needed at most
    "the header": (256 * KiB, [Extent(0, 256 * KiB)], 1.05),
    "4 MiB": (4 * MiB, [*piece(37 * MiB, 4 * MiB)], 1.1),
    "4 MiB from the start": (4 * MiB, [*piece(0, 4 * MiB)], 1.1),
    "16 MiB": (16 * MiB, [*piece(37 * MiB + 5000, 16 * MiB)], 1.1),
    "64 MiB": (64 * MiB, [*piece(100 * MiB, 64 * MiB)], 1.1),
    "a dataset of 4.2 MB": (
        4_200_000,
        [*piece(0, 8 * KiB), *piece(3 * MiB + 96, 512), *piece(50 * MiB + 2048, 4_200_000)],
        1.3,
    ),
    "rows of 96 KiB at random places": (100 * 96 * KiB, [*rows()], 1.5),
}

MAPPED = {
    # bytes that are needed beside the header, what is touched, sent ÷ needed at most
    "a page at each of 300 places": (300 * 32 * KiB, [*at_random(300, 1)], 1.05),
    "rows of 96 KiB at 100 places": (100 * 96 * KiB, [*at_random(100, 96 * KiB)], 1.6),
    "the first half of every tensor": (12 * TENSOR, [*slices(0, 2)], 1.15),
    "the second quarter of every tensor": (6 * TENSOR, [*slices(1, 4)], 1.15),
    "q_proj of every layer": (12 * TENSOR, [*q_proj()], 1.15),
}


@pytest.mark.parametrize("pattern", PATTERNS)
async def test_no_byte_too_many(
    server: EmbeddedServer, content: tuple[Path, str], pattern: str
) -> None:
    needed, reads, most = PATTERNS[pattern]
    sent = await sent_for(server, content, reads)
    assert needed <= sent <= most * needed + 64 * KiB, f"{sent / needed:.2f} times"


@pytest.mark.parametrize(
    ("pattern", "name"),
    [
        *((pattern, "model.bin") for pattern in (*MAPPED,)[:2]),
        *((pattern, "model.safetensors") for pattern in (*MAPPED,)[1:]),
    ],
)
async def test_a_mapping_costs_what_is_touched_of_it(
    server: EmbeddedServer, content: tuple[Path, str], pattern: str, name: str
) -> None:
    needed, touched, most = MAPPED[pattern]
    before = server.stats.bytes_sent
    mapping = Mapping()
    async with reading(server, content, name, None, mapping) as read:
        await read(piece(0, 2 * MiB))
        mapping.read = lambda extent: read([extent])
        await mapping.touch(touched)
    sent = server.stats.bytes_sent - before - 2 * MiB
    assert 0.9 * needed <= sent <= most * needed + 64 * KiB, f"{sent / needed:.2f} times"


DATA = "model.onnx.data"
WITHIN = ("within", [2], dict[str, str]())
TOLD = {
    # of what else in the folder says where the tensors lie, and the tensor that is read
    "onnx": (
        [
            WITHIN,
            *(
                (f"{n}", [8, TENSOR // 32], {"location": DATA, "offset": f"{2 * MiB + n * TENSOR}"})
                for n in range(2 * LAYERS)
            ),
        ],
        Extent(2 * MiB + 3 * TENSOR, 2 * MiB + 4 * TENSOR),
    ),
    "onnx, a file for each tensor": (
        [("t", [3 * MiB], {"location": f"./{DATA}", "offset": "4096"})],
        Extent(4096, 4096 + 12 * MiB),
    ),
    "nothing": ([WITHIN], Extent(2 * MiB + 3 * TENSOR, 2 * MiB + 4 * TENSOR)),
}


@pytest.mark.parametrize(
    ("kind", "again"), [*((kind, False) for kind in TOLD), (next(iter(TOLD)), True)]
)
async def test_a_tensor_in_another_file_is_read_to_its_end_and_no_further(
    server: EmbeddedServer, content: tuple[Path, str], tmp_path: Path, kind: str, again: bool
) -> None:
    """Of 8 MiB in a file that nothing is known of half a MiB more is fetched."""
    tensors, extent = TOLD[kind]
    model = onnx_model(tensors)
    server.deploy(REPO, "m/model.onnx", model)
    server.deploy(REPO, f"m/{DATA}", content[0], sha256=content[1])
    metrics, first = Metrics(), [Extent(0, len(model))]
    with closing(block_store(tmp_path / "cache")) as store:
        if again:  # it is in the cache: its READs may not come to us
            async with composed(server, REPO, store=store) as filesystem:
                await open_and_read(filesystem, "m/model.onnx", first)
            first = []
        async with composed(server, REPO, store=store, metrics=metrics) as filesystem:
            await open_and_read(filesystem, "m/model.onnx", first)
            await heard(metrics)
            before = server.stats.bytes_sent
            await open_and_read(filesystem, f"m/{DATA}", piece(extent.start, extent.size))
    more = server.stats.bytes_sent - before - extent.size
    assert more > 256 * KiB if kind == "nothing" else more < 96 * KiB  # whole blocks, and names


async def test_a_file_that_is_opened_again_need_not_tell_again(
    server: EmbeddedServer, content: tuple[Path, str]
) -> None:
    """The kernel has its head: no READ of that comes here."""
    server.deploy(REPO, "m/model.safetensors", content[0], sha256=content[1])
    metrics = Metrics()
    async with composed(server, REPO, metrics=metrics) as filesystem:
        await open_and_read(filesystem, "m/model.safetensors", piece(0, 2 * MiB))
        await heard(metrics)
        before = server.stats.bytes_sent
        tensor = piece(2 * MiB + 3 * TENSOR, TENSOR)
        await open_and_read(filesystem, "m/model.safetensors", tensor)
    assert server.stats.bytes_sent - before < TENSOR + 96 * KiB


async def open_and_read(filesystem: Filesystem, path: str, reads: Iterable[Extent]) -> None:
    handle = (await filesystem.open(await find(filesystem, path), 0)).handle
    for extent in reads:
        assert len(await filesystem.read(handle, extent)) == extent.size
    await filesystem.release(handle)


async def heard(metrics: Metrics) -> None:
    """Wait until a file has been looked at that says where tensors lie."""
    while True:
        if "described_files" in metrics.snapshot():
            return
        await trio.sleep(0.002)


async def test_what_is_wanted_after_all_is_not_read_page_by_page_to_its_end(
    server: EmbeddedServer, content: tuple[Path, str]
) -> None:
    """Many small tensors, one beside the other, in any order."""
    small = [Extent(start, start + 256 * KiB) for start in range(2 * MiB, 34 * MiB, 256 * KiB)]
    random.Random(7).shuffle(small)
    before = server.stats.bytes_sent
    mapping = Mapping()
    async with reading(server, content, "model.bin", None, mapping) as read:
        mapping.read = lambda extent: read([extent])
        await read(piece(0, 2 * MiB))
        await mapping.touch(small)
    assert mapping.singles < 32 * MiB // PAGE // 2
    assert server.stats.bytes_sent - before < 38 * MiB


@pytest.mark.parametrize("beside", [False, True])
async def test_a_read_that_others_overtake_does_not_end_its_run(
    server: EmbeddedServer, content: tuple[Path, str], beside: bool
) -> None:
    """Those of what is under way are answered beside the interpreter, and known before it."""
    before, kernel, mapping = server.stats.bytes_sent, Kernel() if beside else None, Mapping()
    async with reading(server, content, "model.safetensors", None, mapping, kernel) as read:
        await read(steps(0, 2 * MiB))
        mapping.read = lambda extent: read([extent])
        for number, tensor in enumerate(q_proj()):
            reads = [*steps(*tensor)]
            if number > 1:
                reads.insert(40, reads.pop(16))
            await read(reads)
            for ahead in steps(tensor.stop + 128 * KiB, tensor.stop + 2 * MiB):  # the kernel
                with contextlib.suppress(Unasked):
                    await read([ahead])
    if kernel is not None:
        kernel.close()
    sent = server.stats.bytes_sent - before - 2 * MiB
    assert sent <= 1.1 * LAYERS * TENSOR, f"{sent / LAYERS / TENSOR:.2f} times"


def steps(start: int, stop: int) -> Iterator[Extent]:
    return (Extent(each, each + 128 * KiB) for each in range(start, stop, 128 * KiB))


class Call:
    """Who reads a piece with one call: ``Asker``."""

    def __init__(self, extent: Extent) -> None:
        self._extent = extent

    async def wanted(self, extent: Extent, told: int) -> int | None:
        return self._extent.stop if self._extent.stop - extent.start > 64 * KiB else None

    def ask_again(self, inode: int, extents: list[Extent]) -> None:
        pass


@pytest.mark.parametrize("start", [0, 37 * MiB + 5000])
@pytest.mark.parametrize("size", [4 * MiB, 16 * MiB, 64 * MiB])
async def test_a_piece_that_is_read_by_one_call_costs_itself(
    server: EmbeddedServer, content: tuple[Path, str], start: int, size: int
) -> None:
    before = server.stats.bytes_sent
    call = Call(Extent(start, start + size))
    async with reading(server, content, "model.bin", None, call) as read:
        await read(piece(start, size))
    assert server.stats.bytes_sent - before <= size + 128 * KiB  # whole blocks, and names


async def test_what_lies_beyond_the_end_of_a_call_is_refused(
    server: EmbeddedServer, content: tuple[Path, str]
) -> None:
    """The kernel asks for two MiB at a time, also for the last two pages."""
    before, size = server.stats.bytes_sent, 4 * MiB + 5000
    call = Call(Extent(40 * MiB, 40 * MiB + size))
    async with reading(server, content, "model.bin", None, call) as read:
        await read(piece(40 * MiB, 4 * MiB))
        for start in (44 * MiB, 45 * MiB):
            with pytest.raises(Unasked):
                await read([Extent(start, start + MiB)])
        for start in (44 * MiB, 44 * MiB + PAGE):
            await read([Extent(start, start + PAGE)])
    assert server.stats.bytes_sent - before <= size + 128 * KiB


async def test_what_is_read_again_starts_no_read_ahead(
    server: EmbeddedServer, content: tuple[Path, str], tmp_path: Path
) -> None:
    with closing(block_store(tmp_path / "cache")) as store:
        await sent_for(server, content, piece(40 * MiB, 8 * MiB), store=store)
        again = await sent_for(server, content, piece(40 * MiB, 8 * MiB), store=store)
        assert again < 64 * KiB  # names


async def test_after_a_file_that_was_read_whole_the_next_one_is_fetched_ahead(
    server: EmbeddedServer, content: tuple[Path, str]
) -> None:
    server.deploy(REPO, "whole/1", bytes(4 * MiB))
    server.deploy(REPO, "whole/2", content[0], sha256=content[1])
    server.deploy(REPO, "pieces/2", content[0], sha256=content[1])
    sent = []
    # In this order: what was fetched ahead may be on its way still when a mount has ended.
    for second in ("pieces/2", "whole/2"):
        before = server.stats.bytes_sent
        async with composed(server, REPO) as filesystem:
            for name in ("whole/1", second):
                handle = (await filesystem.open(await find(filesystem, name), 0)).handle
                for extent in piece(0, 4 * MiB):
                    await filesystem.read(handle, extent)
                await filesystem.release(handle)
        sent.append(server.stats.bytes_sent - before - 4 * MiB)
    assert sent[0] < 4.5 * MiB
    assert sent[1] > 6 * MiB
