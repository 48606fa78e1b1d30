"""Tensors of a mapped model, one after another as its program wants them, not as they lie."""

import hashlib
import json
import random
from collections.abc import Iterator
from contextlib import AsyncExitStack, closing
from pathlib import Path

import pytest

from jfs.extents import Extent, KiB, MiB
from jfs.metrics import Metrics
from jfs.server import EmbeddedServer
from tests.component.composed import block_store, composed, find
from tests.component.server_requests import REPO
from tests.component.test_no_byte_too_many import PAGE, SIZE, Mapping, heard, piece
from tests.unit.models import safetensors_head

_TENSORS, _SIZE = 16, 8 * MiB
_HEADER = 2 * MiB + 808  # a tensor does not begin where a page does


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A model of zeros, and its sha256."""
    entries = {
        f"layers.{number}": {
            "dtype": "U8",
            "shape": [_SIZE],
            "data_offsets": [number * _SIZE, (number + 1) * _SIZE],
        }
        for number in range(_TENSORS)
    }
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    path.write_bytes(safetensors_head(json.dumps(entries).encode().ljust(_HEADER - 8)))
    with path.open("r+b") as file:
        file.truncate(2 * MiB + SIZE)  # as long as the mapping
    with path.open("rb") as file:
        return path, hashlib.file_digest(file, "sha256").hexdigest()


def tensors(numbers: list[int]) -> Iterator[Extent]:
    for number in numbers:
        yield Extent(_HEADER + number * _SIZE, _HEADER + (number + 1) * _SIZE)


async def loaded(
    server: EmbeddedServer, model: tuple[Path, str], cache: Path, numbers: list[int]
) -> tuple[int, int]:
    """Touch all of some tensors; return the bytes sent, and how many pages were asked for alone."""
    server.deploy(REPO, "m/model.safetensors", model[0], sha256=model[1])
    before = server.stats.bytes_sent
    mapping, metrics = Mapping(), Metrics()
    async with AsyncExitStack() as stack:
        store = stack.enter_context(closing(block_store(cache)))
        filesystem = await stack.enter_async_context(
            composed(server, REPO, store=store, asker=mapping, metrics=metrics)
        )
        handle = (await filesystem.open(await find(filesystem, "m/model.safetensors"), 0)).handle

        async def read(extent: Extent) -> None:
            data = filesystem.read_at_once(handle, extent)
            assert len(data or await filesystem.read(handle, extent)) == extent.size

        for extent in (*piece(0, 2 * MiB), Extent(2 * MiB, 2 * MiB + PAGE)):
            await read(extent)
        await heard(metrics)  # else it is not known where the first tensor begins
        mapping.read = read
        await mapping.touch(tensors(numbers))
        await filesystem.release(handle)
    return server.stats.bytes_sent - before - 2 * MiB, mapping.singles


async def test_every_second_tensor_costs_itself_and_is_not_asked_for_page_by_page(
    server: EmbeddedServer, model: tuple[Path, str], tmp_path: Path
) -> None:
    numbers = list(range(1, _TENSORS, 2))
    random.Random(7).shuffle(numbers)
    sent, singles = await loaded(server, model, tmp_path / "cache", numbers)
    assert sent <= len(numbers) * (_SIZE + 64 * KiB) + 4 * MiB  # nothing is known of the first two
    assert singles <= 2 * len(numbers)


async def test_all_tensors_in_any_order_are_sent_once_and_not_asked_for_page_by_page(
    server: EmbeddedServer, model: tuple[Path, str], tmp_path: Path
) -> None:
    numbers = list(range(_TENSORS))
    random.Random(7).shuffle(numbers)
    sent, singles = await loaded(server, model, tmp_path / "cache", numbers)
    assert sent <= _TENSORS * _SIZE + 4 * MiB
    assert singles <= 2 * _TENSORS
