"""What programs do to a file, in a process of its own: ``python -m tests.bench.loads WHAT …``."""

import mmap
import random
import ssl
import subprocess
import sys
import time
from pathlib import Path


def tensors(path: str) -> None:
    """Map a safetensors file and touch every page of every tensor, with one thread."""
    from safetensors import safe_open

    with safe_open(path, framework="np") as model:
        for name in model.keys():  # noqa: SIM118 -- not a mapping
            model.get_tensor(name)


def shards(path: str) -> None:
    """Load what is in a folder, file by file, and do something else after each."""
    for each in sorted(Path(path).iterdir()):
        tensors(str(each))
        time.sleep(0.5)


def quarters(path: str) -> None:
    """Read the first quarter of every tensor, as one of four ranks does."""
    from safetensors import safe_open

    with safe_open(path, framework="np") as model:
        for name in model.keys():  # noqa: SIM118 -- not a mapping
            part = model.get_slice(name)
            part[: part.get_shape()[0] // 4]


def store(source: str, path: str) -> None:
    """Copy a file and print how many seconds its close took."""
    with Path(source).open("rb", buffering=0) as data, Path(path).open("wb", buffering=0) as file:
        buffer = memoryview(bytearray(256 * 1024))
        while count := data.readinto(buffer):
            file.write(buffer[:count])
        start = time.perf_counter()
        file.close()
        print(time.perf_counter() - start)


def others(path: str) -> None:
    """Read every second tensor, as who wants one projection of every layer."""
    from safetensors import safe_open

    with safe_open(path, framework="np") as model:
        for name in sorted(model.keys())[::2]:
            model.get_tensor(name)


def faults(count: str, path: str) -> None:
    """Map a file and touch pages at random places."""
    choose = random.Random(7)
    with Path(path).open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as pages:
        for _ in range(int(count)):
            pages[choose.randrange(len(pages))]


def rows(size: str, count: str, path: str) -> None:
    """Map a file as an array and copy rows of it, from random places."""
    import numpy as np

    row = int(size)
    array = np.memmap(path, dtype="u1", mode="r")
    array = array[: len(array) // row * row].reshape(-1, row)
    for number in np.random.default_rng(7).choice(len(array), int(count), replace=False):
        array[number].tobytes()


def shuffled(size: str, count: str, path: str) -> None:
    """Map a file and copy slices that lie one beside the other, in any order."""
    order = list(range(int(count)))
    random.Random(7).shuffle(order)
    with Path(path).open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as pages:
        for number in order:
            pages[number * int(size) : (number + 1) * int(size)]


def piece(start: str, size: str, path: str) -> None:
    """Read one piece, with one call."""
    with Path(path).open("rb", buffering=0) as file:
        file.seek(int(start))
        assert file.readinto(bytearray(int(size))) == int(size)


def header(path: str) -> None:
    """Open a safetensors file and read what its header says."""
    from safetensors import safe_open

    with safe_open(path, framework="np") as model:
        list(model.keys())


def at(place: str, path: str) -> None:
    """Read one byte."""
    with Path(path).open("rb", buffering=0) as file:
        file.seek(int(place))
        assert len(file.read(1)) == 1


def pages(path: str) -> None:
    """Map a file and touch every page of it, in order, with one thread."""
    with (
        Path(path).open("rb") as file,
        mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped,
    ):
        mapped[:: mmap.PAGESIZE]


def random_reads(size: str, count: str, path: str) -> None:
    """Read pieces at random places."""
    choose = random.Random(7)
    whole = Path(path).stat().st_size
    with Path(path).open("rb", buffering=0) as file:
        for _ in range(int(count)):
            file.seek(choose.randrange(whole - int(size)))
            assert len(file.read(int(size))) == int(size)


def unverified() -> ssl.SSLContext:
    """A context that trusts the certificates that ``self_signed`` makes, and all others."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def self_signed(directory: Path) -> None:
    """Make ``key.pem`` and ``cert.pem``."""
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-subj", "/CN=localhost", "-keyout", str(directory / "key.pem")),
            *("-out", str(directory / "cert.pem")),
        ],
        check=True,
        capture_output=True,
    )


if __name__ == "__main__":
    what, *arguments = sys.argv[1:]
    {
        "tensors": tensors,
        "shards": shards,
        "pages": pages,
        "quarters": quarters,
        "others": others,
        "faults": faults,
        "piece": piece,
        "rows": rows,
        "shuffled": shuffled,
        "header": header,
        "at": at,
        "random": random_reads,
        "store": store,
    }[what](*arguments)
