"""The crowd: 60 files, 120 threads, one mount; and whoever asks meanwhile gets an answer."""

import json
import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jfs.server import EmbeddedServer
from tests.component.server_requests import REPO, Requests
from tests.concurrency.content import bytes_of, whole
from tests.concurrency.crowd import FILES, path_of
from tests.mount.conftest import Mounter
from tests.mount.mounting import clean_environ

pytestmark = pytest.mark.fuse

_DEADLINE_S = 60  # of every call of somebody who only looks


@pytest.mark.timeout(1500)
def test_sixty_files_are_written_and_read_at_once(
    server: EmbeddedServer,
    mounter: Mounter,
    tmp_path: Path,
    scale: Callable[[float, float], float],
) -> None:
    mount = mounter(f"{server.url}/{REPO}", JF_ACCESS_TOKEN=server.token)
    seconds = 60 * float(os.environ.get("JFS_CROWD_MINUTES") or scale(0, 10))
    seed = str(scale(1, random.SystemRandom().randrange(1 << 32)))
    program = [sys.executable, "-m", "tests.concurrency.crowd", str(mount.root), seed]
    environ = {**clean_environ(), "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [*program, "2", str(seconds)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environ
    ) as crowd:
        ended = threading.Event()
        asked = threading.Thread(target=_ask, args=(mount.root, ended, results := []))
        asked.start()
        try:
            out, err = crowd.communicate(timeout=seconds + 10 * _DEADLINE_S)
        finally:
            crowd.kill()
            ended.set()
            asked.join()
    assert crowd.returncode == 0, (seed, err.decode()[-4000:])
    assert results == [], seed
    last: dict[str, Any] = json.loads(out)
    assert len(last) == FILES
    ask = Requests(server)
    for number, (write, size) in last.items():
        content = bytes_of(whole(write, size))
        path = Path(path_of(str(mount.root), int(number)))
        with path.open("rb") as file:
            os.fsync(file.fileno())  # what is opened again and again waits until it rests
            assert file.read() == content, (seed, path)
        assert ask.get(f"/{REPO}/{path.relative_to(mount.root)}").body == content, (seed, path)


def _ask(root: Path, ended: threading.Event, failures: list[str]) -> None:
    """Ask for the mount and for files in it until the crowd has gone; each call has a deadline."""
    places = [root, *(Path(path_of(str(root), number)) for number in range(FILES))]
    while not ended.is_set():
        for place in places:
            command = ["stat", "--printf=%s", *(["-f"] if place == root else []), str(place)]
            try:
                subprocess.run(command, capture_output=True, check=False, timeout=_DEADLINE_S)
            except subprocess.TimeoutExpired:
                failures.append(f"stat {place} has not returned")
                return
