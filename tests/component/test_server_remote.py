"""Remote repositories: the server that fetches, and the client that never makes it by listing."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from jfs.errors import ConfigError, NoEntry
from jfs.server import EmbeddedServer, Fault
from tests.component.composed import composed, content, find, names
from tests.component.server_requests import REPO, Requests

WEIGHTS = bytes(range(256)) * 8000
PATH = "openai/whisper-v3.1/resolve/main/model.safetensors"


@pytest.fixture
def upstream(tmp_path: Path) -> Iterator[EmbeddedServer]:
    with EmbeddedServer(tmp_path / "upstream", anonymous=True) as running:
        running.create_repository("hub")
        running.deploy("hub", PATH, WEIGHTS)
        running.deploy("hub", "openai/whisper-v3.1/resolve/main/config.json", b"{}")
        yield running


@pytest.fixture
def ask(server: EmbeddedServer, upstream: EmbeddedServer) -> Requests:
    server.create_repository("hf-remote", upstream=f"{upstream.url}/hub")
    upstream.stats.reset()
    return Requests(server)


def test_a_file_is_fetched_once_and_kept(ask: Requests, upstream: EmbeddedServer) -> None:
    reply = ask.get(f"/hf-remote/{PATH}")
    assert reply.body == WEIGHTS
    assert ask.get(f"/hf-remote/{PATH}", Range="bytes=5-9").body == WEIGHTS[5:10]
    assert ask.head(f"/hf-remote/{PATH}").headers["ETag"] == reply.headers["ETag"]
    assert upstream.stats.requests == 1
    upstream.stop()
    assert ask.get(f"/hf-remote/{PATH}").body == WEIGHTS
    assert ask.get(f"/hf-remote-cache/{PATH}").body == WEIGHTS
    info = ask.get(f"/api/storage/hf-remote-cache/{PATH}").json()
    assert (info["repo"], info["size"]) == ("hf-remote-cache", str(len(WEIGHTS)))


def test_one_download_is_shared(ask: Requests, upstream: EmbeddedServer) -> None:
    stall = upstream.faults.add(Fault.stall(f"/hub/{PATH}"))
    bodies: list[bytes] = []
    threads = [
        threading.Thread(target=lambda: bodies.append(ask.get(f"/hf-remote/{PATH}").body))
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    stall.wait_hit()
    stall.release()
    for thread in threads:
        thread.join(30)
    assert bodies == [WEIGHTS] * 6
    assert upstream.stats.requests == 1


def test_what_upstream_lacks_is_missing(ask: Requests, upstream: EmbeddedServer) -> None:
    for _ in range(3):
        assert ask.get("/hf-remote/openai/none.bin").status == 404
    assert upstream.stats.requests == 1
    assert ask.get("/hf-remote/openai").status == 404  # a folder: upstream has a page, no file


def test_a_failing_upstream_is_no_missing_file(
    ask: Requests, upstream: EmbeddedServer, expected_logs: list[str]
) -> None:
    expected_logs.append("upstream failed")
    upstream.faults.add(Fault.status(500, "/hub/*", times=1))
    assert ask.get(f"/hf-remote/{PATH}").status == 502
    upstream.faults.add(Fault.drop(f"/hub/{PATH}", after_bytes=1000, times=1))
    assert ask.get(f"/hf-remote/{PATH}").status == 502
    assert ask.get(f"/api/storage/hf-remote-cache/{PATH}").status == 404  # no half of it
    assert ask.get(f"/hf-remote/{PATH}").body == WEIGHTS
    upstream.stop()
    assert ask.get("/hf-remote/other.bin").status == 502


def test_nothing_is_written_to_it(ask: Requests) -> None:
    for repo in ("hf-remote", "hf-remote-cache"):
        assert ask.put(f"/{repo}/x", b"x").status == 404
    ask.get(f"/hf-remote/{PATH}")
    assert ask.delete(f"/hf-remote-cache/{PATH}").status == 204


def test_repositories_by_rest(ask: Requests, upstream: EmbeddedServer) -> None:
    config = {"rclass": "remote", "packageType": "generic", "url": f"{upstream.url}/hub"}
    secret = {**config, "username": "u", "password": "s3cret"}
    assert ask.put("/api/repositories/two-remote", json.dumps(secret).encode()).status == 200
    shown = ask.get("/api/repositories/two-remote")
    assert shown.json()["rclass"] == "remote"
    assert b"s3cret" not in shown.body
    rows = {row["key"]: row for row in ask.get("/api/repositories?type=remote").json()}
    assert set(rows) == {"hf-remote", "two-remote"}
    assert rows["two-remote"]["url"] == config["url"]
    keys = [row["key"] for row in ask.get("/api/repositories").json()]
    assert keys == ["hf-remote", REPO, "two-remote"]
    for bad in ({**config, "url": "ftp://x"}, {"rclass": "remote"}, {"rclass": "virtual"}):
        assert ask.put("/api/repositories/bad-remote", json.dumps(bad).encode()).status == 400
    changed = json.dumps({"rclass": "local"}).encode()
    assert ask.post("/api/repositories/two-remote", changed).status == 400
    assert ask.delete("/api/repositories/two-remote").status == 200
    assert ask.get("/api/storage/two-remote-cache").status == 404


def test_it_is_kept_across_restarts(ask: Requests, upstream: EmbeddedServer) -> None:
    ask.get(f"/hf-remote/{PATH}")
    ask.server.stop()
    ask.server.start()
    upstream.stop()
    assert ask.get(f"/hf-remote/{PATH}").body == WEIGHTS
    with pytest.raises(ConfigError):
        ask.server.create_repository("bad-remote", upstream="nonsense")


async def test_a_listing_never_makes_the_server_download(
    ask: Requests, upstream: EmbeddedServer
) -> None:
    async with composed(ask.server, "hf-remote") as fs:
        assert await names(fs, "") == {}
    assert upstream.stats.requests == 0
    async with composed(ask.server, "hf-remote") as fs:
        assert await content(fs, PATH) == WEIGHTS  # by its name, through folders nobody has seen
        folder = PATH.rpartition("/")[0]
        with pytest.raises(NoEntry):
            await find(fs, f"{folder}/none.bin")
    sent = upstream.stats.bytes_sent
    async with composed(ask.server, "") as fs:
        assert set(await names(fs, "")) == {"hf-remote", REPO}
        assert set(await names(fs, f"hf-remote/{folder}")) == {"model.safetensors"}
        assert await content(fs, f"hf-remote/{PATH}") == WEIGHTS
        ino = await find(fs, f"hf-remote/{PATH}")
        await fs.setxattr(ino, b"user.env", b"production")
        shown = await find(fs, f".by/env=production/hf-remote/{PATH}")
        assert shown == ino
    assert upstream.stats.bytes_sent == sent
