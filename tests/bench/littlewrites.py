"""Programs that write little at a time, in a mount beside a local directory.

Uploads are included: what they make is on the server when they end. Part of ``tests.bench.writes``.
"""

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.bench.machine import Contender, Sample, race, timed
from tests.bench.reads import Bench

KiB, MiB = 1024, 1024**2
_PIECES = 64 * MiB
_FILES, _FILE = 10_000, 2 * KiB

# Each is called with the folder that it reads, and with what it makes.
_PYTHON = {
    "64 MiB in writes of 4 KiB": """
file = os.open(target, os.O_WRONLY | os.O_CREAT)
piece = os.urandom(4096)
for _ in range(64 << 8):
    os.write(file, piece)
os.close(file)
""",
    "zip of 10,000 small files": """
with zipfile.ZipFile(target, "w") as archive:
    for path in sorted(pathlib.Path(source).iterdir()):
        archive.write(path, path.name)
""",
    "pickle of 300,000 small objects": """
with open(target, "wb") as file:
    pickle.dump([(n, str(n), {"n": n}) for n in range(300_000)], file)
""",
    "TFRecord of 20,000 records of 2 KiB": """
record = os.urandom(2048)
with open(target, "wb") as file:
    for _ in range(20_000):
        file.write(struct.pack("<QI", len(record), 0) + record + bytes(4))
""",
}
_IMPORTS = "import os, pathlib, pickle, struct, sys, zipfile\nsource, target = sys.argv[1:]\n"


def programs() -> Iterator[tuple[str, list[str]]]:
    """Yield names and commands; the source and the target are to be added."""
    for name, text in _PYTHON.items():
        yield name, [sys.executable, "-c", _IMPORTS + text]
    yield "tar of 10,000 small files", ["sh", "-c", 'tar cf "$1" -C "$0" .']
    yield "cp -r of 10,000 small files", ["cp", "-r"]


def littles(bench: Bench, work: Path, rounds: int) -> None:
    """Print how long each takes in a mount, and in a directory."""
    source = work / "little"
    source.mkdir()
    for number in range(_FILES):
        (source / f"{number:05}.txt").write_bytes(os.urandom(_FILE))
    for name, command in programs():

        def local(command: list[str] = command) -> Sample:
            target = work / "made"
            sample = timed([*command, str(source), str(target)])
            shutil.rmtree(target) if target.is_dir() else target.unlink()
            return sample

        def mounted(*options: str, command: list[str] = command) -> Sample:
            with bench.fresh_cache() as cache, bench.mount(cache, *options) as mount:
                sample = bench.measured(
                    [mount], [[*command, str(source), str(mount.root / "made")]]
                )
                shutil.rmtree(mount.root / "made", ignore_errors=True)
                (mount.root / "made").unlink(missing_ok=True)
            return sample

        run: dict[str, Contender] = {
            "a local directory": local,
            "jfs": mounted,
            "jfs --passthrough off": lambda mounted=mounted: mounted("--passthrough", "off"),
        }
        race(name, _PIECES, rounds, run)
