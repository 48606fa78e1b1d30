"""Ten thousand calls in a mount while one request in ten is refused: nobody notices."""

import json
import random
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jfs.server import EmbeddedServer, Fault
from tests.mount.conftest import Mounter
from tests.mount.mounting import run_jfs
from tests.weather.errands import WORKERS, cold, content

pytestmark = pytest.mark.fuse

REPO = "ml-models-local"


def _bad_weather() -> list[Fault]:
    """10 % are refused, and 1 % are cut: before, amid and after what they ask for."""
    return [
        Fault.cut(share=0.003),
        Fault.cut(method="PUT", after_bytes=1000, share=0.02),
        Fault.drop(share=0.005),
        Fault.drop(method="GET", after_bytes=700, share=0.003),
        Fault.status(503, early=True, share=0.02),
        Fault.status(503, share=0.08),
    ]


def _ask(server: EmbeddedServer, path: str) -> Any:
    """Ask the server itself; None: it has nothing there."""
    request = urllib.request.Request(
        f"{server.url}/api/storage/{REPO}{path}",
        headers={"Authorization": f"Bearer {server.token}"},
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.loads(answer.read())
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return None
        raise


def _on_the_server(server: EmbeddedServer) -> dict[str, list[object]]:
    """Return digest and properties of every file that was made."""
    found = {}
    for row in _ask(server, "?list&deep=1")["files"]:
        name = row["uri"].removeprefix("/")
        if "/cold/" not in name:
            tags = _ask(server, f"/{name}?properties")
            properties = tags["properties"] if tags is not None else {}
            found[name] = [row["sha2"], {key: ",".join(each) for key, each in properties.items()}]
    return found


@pytest.mark.timeout(900)
def test_ten_thousand_calls_in_bad_weather(
    server: EmbeddedServer,
    mounter: Mounter,
    scale: Callable[[int, int], int],
    tmp_path: Path,
) -> None:
    """No error reaches the user, every byte, name and property is right, and nothing is lost."""
    count = scale(100, 10_000)
    for worker in range(WORKERS):
        for number in range(count // WORKERS):
            name = cold(worker, number)
            server.deploy(REPO, name, content(name))
    mounted = mounter(
        f"{server.url}/{REPO}",
        *("--attr-ttl", "0", "--negative-ttl", "0", "--staging-dir", str(tmp_path / "staging")),
        JF_ACCESS_TOKEN=server.token,
    )
    plan = [server.faults.add(fault) for fault in _bad_weather()]
    asked = server.stats.requests
    began = time.monotonic()
    seed = str(scale(1, random.randrange(10**9)))
    command = [sys.executable, "-m", "tests.weather.errands", str(mounted.root), str(count), seed]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=800, check=False)
    assert ended.returncode == 0, ended.stderr
    report = json.loads(ended.stdout)
    hits, requests = sum(fault.hits for fault in plan), server.stats.requests - asked
    print(f"{report['calls']} calls in {time.monotonic() - began:.1f} s, seed {seed}")
    print(f"{requests} requests, {hits} of them spoilt")
    assert report["failures"] == [], f"seed {seed}\n{mounted.log()}"
    assert report["calls"] == count
    assert hits > requests // 20
    server.faults.clear()
    # On a busy machine an answer may take longer than what is known waits for it.
    mounted.stop(expected=["cannot be asked, serving what was known before"])
    assert _on_the_server(server) == report["files"]
    left = run_jfs("recover", "ls", "--json", "--staging-dir", str(tmp_path / "staging"))
    assert json.loads(left.stdout) == []
