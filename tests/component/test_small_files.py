"""What a small new file costs: requests, and whether its bytes are sent."""

import random
from pathlib import Path

from jfs.extents import KiB
from jfs.server import Fault
from tests.component.server_requests import REPO, Requests
from tests.component.test_writing import put, writing


async def test_a_small_new_file_is_one_upload(ask: Requests, tmp_path: Path) -> None:
    data = random.Random(3).randbytes(10 * KiB)
    async with writing(ask, tmp_path / "staging") as fs:
        await put(fs, "first", data)
        ask.server.stats.reset()
        await put(fs, "f", data[1:])
        routes = ask.server.stats.by_route
        assert routes["PUT content"] == 1
        # whether the name is taken, at open; whether somebody took it meanwhile, at close
        assert routes.keys() == {"PUT content", "GET api/storage"}
        assert routes["GET api/storage"] <= 3  # once more if it had to wait for its turn
    assert ask.get(f"/{REPO}/f").body == data[1:]


async def test_what_was_uploaded_from_here_is_not_sent_again(ask: Requests, tmp_path: Path) -> None:
    data = random.Random(4).randbytes(10 * KiB)
    async with writing(ask, tmp_path / "staging") as fs:
        await put(fs, "f", data)
        ask.server.stats.reset()
        await put(fs, "g", data)
        assert ask.server.stats.bytes_received == 0
        # nobody has it any more: what was known is asked, not believed
        for name in "fg":
            ask("DELETE", f"/{REPO}/{name}")
        await put(fs, "h", data)
    assert ask.get(f"/{REPO}/h").body == data


async def test_a_small_body_whose_answer_was_lost_is_settled_by_its_checksum(
    ask: Requests, tmp_path: Path
) -> None:
    data = random.Random(5).randbytes(10 * KiB)
    async with writing(ask, tmp_path / "staging") as fs:
        ask.server.faults.add(Fault.drop(f"/{REPO}/f", method="PUT", times=1))
        ask.server.stats.reset()
        await put(fs, "f", data)
        assert ask.server.stats.bytes_received == len(data)  # once
    assert ask.get(f"/{REPO}/f").body == data
