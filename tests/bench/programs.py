"""Real programs that write into a mount, beside a local disk: ``python -m tests.bench.programs``.

Uploaded bytes and requests are what the server counted, divided by the size of what is there in the
end; seconds are those of the program, beside the same in a plain directory. What Python programs
need (numpy, safetensors, h5py, zarr, onnx, spacy) is imported by ``--python``; what it lacks is
left out, and said so. Needs root, git, rsync, tar, zip, sed, vim.
"""

import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from jfs.server import EmbeddedServer
from tests.mount.mounting import Mounted

MiB = 1024**2
_REPO = "bench"
_DEADLINE_S = 600
# What is written, in Python, below the working directory.
_PYTHON = {
    "safetensors.save_file": """
import numpy as np; from safetensors.numpy import save_file
save_file({f"w{i}": np.random.rand(1 << 20) for i in range(8)}, "m.safetensors")""",
    "safetensors, 8 shards and an index": """
import json, numpy as np; from safetensors.numpy import save_file
for shard in range(8):
    save_file({f"w{shard}": np.random.rand(1 << 20)}, f"model-{shard}-of-8.safetensors")
json.dump({"weight_map": {}}, open("model.safetensors.index.json", "w"))
json.dump({"a": 1}, open("config.json", "w"))""",
    "numpy.save, savez, memmap": """
import numpy as np
np.save("a.npy", np.random.rand(1 << 21)); np.savez("b.npz", x=np.random.rand(1 << 20), y=[1])
m = np.lib.format.open_memmap("c.npy", "w+", float, (1 << 21,)); m[:] = 1.5; m.flush(); del m""",
    "onnx, external data in one file": """
import numpy as np, onnx; from onnx import helper, numpy_helper, TensorProto
weights = [numpy_helper.from_array(np.random.rand(1 << 17), f"w{i}") for i in range(64)]
graph = helper.make_graph([], "g", [], [], weights)
onnx.save_model(helper.make_model(graph), "m.onnx", save_as_external_data=True,
                all_tensors_to_one_file=True, location="m.data", size_threshold=0)""",
    "h5py, datasets and attributes": """
import h5py, numpy as np
with h5py.File("m.h5", "w") as file:
    for i in range(50):
        made = file.create_dataset(f"g{i}/w", data=np.random.rand(1 << 16), chunks=True)
        made.attrs["n"] = i""",
    "h5py, opened again and again": """
import h5py, numpy as np
for i in range(10):
    with h5py.File("m.h5", "a") as file:
        file.create_dataset(f"w{i}", data=np.random.rand(1 << 16))""",
    "zarr, a chunk a file": """
import numpy as np, zarr
array = zarr.open("m.zarr", mode="w", shape=(1 << 21,), chunks=(1 << 15,), dtype="f8")
array[:] = np.random.rand(1 << 21)""",
    "spacy to_disk": """
import spacy
nlp = spacy.blank("en"); nlp.add_pipe("sentencizer")
for i in range(2000): nlp.vocab.strings.add(f"word{i}")
nlp.to_disk("model")""",
    "pickle of 20,000 small objects": """
import os, pickle
pickle.dump([os.urandom(500) for _ in range(20_000)], open("m.pkl", "wb"))""",
    "torch.save: a zip of records": """
import os, zipfile
with zipfile.ZipFile("m.pt", "w") as file:
    for i in range(64): file.writestr(f"archive/data/{i}", os.urandom(200_000))
    file.writestr("archive/data.pkl", b"x" * 1000)""",
    "distributed checkpoint: 4 ranks, a temporary name and a rename": """
import os, threading
def rank(n):
    with open(f"__{n}_0.distcp.tmp", "wb") as file:
        for _ in range(8): file.write(os.urandom(1 << 20))
        file.flush(); os.fsync(file.fileno())
    os.rename(f"__{n}_0.distcp.tmp", f"__{n}_0.distcp")
ranks = [threading.Thread(target=rank, args=(n,)) for n in range(4)]
[each.start() for each in ranks]; [each.join() for each in ranks]
open(".metadata.tmp", "wb").write(b"m" * 5000); os.rename(".metadata.tmp", ".metadata")""",
    "TFRecord: 20,000 records": """
import os, struct
with open("m.tfrecord", "wb") as file:
    for _ in range(20_000):
        data = os.urandom(500)
        file.write(struct.pack("<QI", len(data), 1)); file.write(data); file.write(b"crc4")""",
    "8 threads with descriptors of their own": """
import os, threading
os.truncate(os.open("m.bin", os.O_RDWR | os.O_CREAT), 32 << 20)
def part(n):
    file = os.open("m.bin", os.O_WRONLY)
    for i in range(8): os.pwrite(file, os.urandom(1 << 19), (n << 22) + (i << 19))
    os.close(file)
parts = [threading.Thread(target=part, args=(n,)) for n in range(8)]
[each.start() for each in parts]; [each.join() for each in parts]""",
    "a downloader: fallocate, ranges, rename": """
import os, random
file = os.open("m.part", os.O_RDWR | os.O_CREAT)
os.posix_fallocate(file, 0, 16 << 20)
pieces = list(range(16)); random.Random(1).shuffle(pieces)
for n in pieces: os.pwrite(file, os.urandom(1 << 20), n << 20)
os.close(file); os.rename("m.part", "m.bin")""",
    "a logger: 200 appends, opened each time": """
for i in range(200):
    with open("log.jsonl", "a") as file: file.write('{"step": %d, "loss": 1.5}\\n' % i * 5)""",
    "a logger: one descriptor, flushed": """
with open("log.jsonl", "a") as file:
    for i in range(200): file.write('{"step": %d, "loss": 1.5}\\n' % i * 5); file.flush()""",
    "shutil.copytree of 100 files": """
import os, shutil, tempfile
with tempfile.TemporaryDirectory() as source:
    for i in range(100): open(f"{source}/{i}", "wb").write(os.urandom(20_000))
    shutil.copytree(source, "tree")""",
    "zipfile -c": """
import os, subprocess, sys, tempfile
with tempfile.TemporaryDirectory() as source:
    for i in range(50): open(f"{source}/{i}", "wb").write(os.urandom(100_000))
    subprocess.run([sys.executable, "-m", "zipfile", "-c", "m.zip", source], check=True)""",
}
_SHELL = {
    "cp of 64 MiB": "head -c 67108864 /dev/urandom > $SCRATCH/f; cp $SCRATCH/f f",
    "cp inside of it": "cp $BEFORE/model model; cp model again; cp --reflink=auto again third",
    "tar -x of 300 files": "tar -xf $SCRATCH/small.tar",
    "tar -c": "tar -cf m.tar -C $SCRATCH small",
    "tar -r, three times": (
        "tar -cf m.tar -C $SCRATCH small/1; for i in 2 3 4; do tar -rf m.tar -C $SCRATCH small/$i;"
        " done"
    ),
    "zip -r": "cd $SCRATCH && zip -qr $OLDPWD/m.zip small",
    "rsync -a": "rsync -a $SCRATCH/small .",
    "rsync --inplace": "rsync -a --inplace $SCRATCH/small .",
    "git clone, commit": (
        "git clone -q $SCRATCH/repo r && cd r && echo 1 > new && git add . && git commit -qm 1"
    ),
    "sed -i, 5 times": (
        "head -c 100000 /dev/urandom | base64 > f; for i in 1 2 3 4 5; do sed -i s/A/B/ f; done"
    ),
    ">> in a loop, 50 times": "for i in $(seq 50); do echo $i >> f; done",
    "vim, saved twice": (
        "seq 1000 > f; for i in 1 2; do vim -es -u NONE -N +'normal Gox' +wq f < /dev/null; done"
    ),
    "mv between folders": "mkdir a b; head -c 3000000 /dev/urandom > a/f; mv a/f b/g; mv b c",
    "split and cat": "head -c 8000000 /dev/urandom | split -b 1000000; cat x* > whole",
    "dd conv=fsync, oflag=direct": "dd if=/dev/urandom of=f bs=1M count=16 conv=fsync status=none",
}


@dataclass
class Run:
    seconds: float
    uploaded: int
    sent: int
    requests: int
    size: int
    error: str = ""


class Programs:
    """Runs them, in a directory of its own each."""

    def __init__(self, python: str, work: Path) -> None:
        self._python = python
        self._scratch = work / "scratch"
        self._scratch.mkdir()
        small = self._scratch / "small"
        small.mkdir()
        for number in range(300):
            (small / str(number)).write_bytes(os.urandom(10_000))
        self._must("tar -cf small.tar small")

    def _must(self, script: str) -> None:
        subprocess.run(["sh", "-ec", script], cwd=self._scratch, check=True, env=self._environ())

    def _environ(self, root: Path | None = None) -> dict[str, str]:
        who = {
            f"GIT_{role}_{what}": "b@b"
            for role in ("AUTHOR", "COMMITTER")
            for what in ("NAME", "EMAIL")
        }
        return {**os.environ, **who, "SCRATCH": str(self._scratch), "BEFORE": str(root)}

    def run(self, number: int, root: Path, server: EmbeddedServer | None) -> Run:
        name, command = self.commands()[number]
        place = root / f"p{number}"
        place.mkdir()
        if name.startswith("git") and not (self._scratch / "repo").exists():
            git = "git init -q repo && cd repo && cp -r ../small . && git add . && git commit -qm 0"
            self._must(git)
        if name == "cp inside of it":
            (root / "model").write_bytes(os.urandom(16 * MiB))
        if server is not None:
            server.stats.reset()
        began = time.monotonic()
        done = subprocess.run(
            command,
            cwd=place,
            env=self._environ(root),
            capture_output=True,
            text=True,
            check=False,
            timeout=_DEADLINE_S,
        )
        seconds = time.monotonic() - began
        error = "" if done.returncode == 0 else (done.stderr.strip() or "failed").splitlines()[-1]
        files = [path.lstat() for path in place.rglob("*") if path.is_file()]
        size = sum(status.st_size for status in files)
        if server is None:
            return Run(seconds, 0, 0, 0, size, error)
        if not error and (left := _uploads(root)):
            error = left
        stats = server.stats
        return Run(seconds, stats.bytes_received, stats.bytes_sent, stats.requests, size, error)

    def commands(self) -> list[tuple[str, list[str]]]:
        found = [(name, [self._python, "-c", text]) for name, text in _PYTHON.items()]
        return found + [(name, ["sh", "-ec", text]) for name, text in _SHELL.items()]


def _uploads(root: Path) -> str:
    """Wait until nothing waits for its upload; "": so it is."""
    for _ in range(200):
        if os.getxattr(root, "user.jfs.upload") == b"0":
            return ""
        time.sleep(0.05)
    return "uploads are left"


@click.command()
@click.option("--python", default=sys.executable, help="Has the libraries of the programs.")
@click.option("--only", default="", help="Programs whose name has this in it.")
def main(python: str, only: str) -> None:
    """Print a table."""
    table = Table("program", "size", "uploaded ÷ size", "fetched", "requests", "s", "÷ local")
    with tempfile.TemporaryDirectory(prefix="jfs-bench-") as name:
        work = Path(name)
        programs = Programs(python, work)
        plain, root = work / "plain", work / "mnt"
        plain.mkdir()
        root.mkdir()
        with EmbeddedServer(work / "server") as server:
            server.create_repository(_REPO)
            mounted = Mounted(
                f"{server.url}/{_REPO}",
                root,
                environ={"JF_ACCESS_TOKEN": server.token},
                cache=work / "cache",
            )
            try:
                for number, (title, _) in enumerate(programs.commands()):
                    if only and only not in title:
                        continue
                    local = programs.run(number, plain, None)
                    if local.error:
                        table.add_row(title, f"left out: {local.error[:60]}")
                        continue
                    table.add_row(*_row(title, local, programs.run(number, root, server)))
            finally:
                mounted.stop(expected=[".*"])
    Console(width=140).print(table)


def _row(title: str, local: Run, run: Run) -> list[str]:
    if run.error:
        return [title, f"failed: {run.error[:80]}"]
    return [
        title,
        f"{run.size / MiB:.2f} MiB" + ("" if run.size == local.size else f" ({local.size})"),
        f"{run.uploaded / max(run.size, 1):.2f}",
        f"{run.sent / MiB:.2f} MiB",
        str(run.requests),
        f"{run.seconds:.2f}",
        f"{run.seconds / max(local.seconds, 0.001):.1f}",
    ]


if __name__ == "__main__":
    main()
