"""Real mounts of the embedded server."""

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from jfs.server import EmbeddedServer
from tests.mount.mounting import Mounted
from tests.weather.disks import Disk


@dataclass
class MountedServer:
    """A mount of ``ml-models-local`` and the server behind it."""

    root: Path
    server: EmbeddedServer
    mount: Mounted


Mounter = Callable[..., Mounted]


@pytest.fixture
def mounter(tmp_path: Path) -> Iterator[Mounter]:
    """Mount sources; whatever still runs at the end is stopped and checked."""
    ends = contextlib.ExitStack()  # of every mount, whatever is wrong with another

    def mount(
        source: str, *options: str, name: str = "mnt", under: Sequence[str] = (), **environ: str
    ) -> Mounted:
        root = tmp_path / name
        with contextlib.suppress(FileExistsError):  # never a look at it: a mount there may be dead
            os.mkdir(root)
        cache = tmp_path / "cache"
        mounted = Mounted(source, root, environ=environ, cache=cache, options=options, under=under)
        ends.callback(_end, mounted)
        return mounted

    with ends:
        yield mount


def _end(mounted: Mounted) -> None:
    if mounted.process.returncode is None:
        mounted.stop()
    else:
        mounted.clear()
    mounted.close()


@pytest.fixture
def mounted(server: EmbeddedServer, mounter: Mounter) -> MountedServer:
    """``ml-models-local`` of a fresh server, mounted."""
    mount = mounter(f"{server.url}/ml-models-local", JF_ACCESS_TOKEN=server.token)
    return MountedServer(mount.root, server, mount)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """A disk that fails when it is told to."""
    made = Disk(tmp_path)
    yield made
    made.end()
