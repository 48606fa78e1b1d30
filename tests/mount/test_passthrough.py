"""What is cached and verified is read by the kernel itself, where the kernel can (Linux 6.9, root).

Where it cannot, everything below holds all the same, but for what ``passes`` says.
"""

import contextlib
import hashlib
import json
import mmap
import os
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from jfs.cache import inventory, remove
from jfs.extents import MiB
from jfs.model import ContentKey
from jfs.server import EmbeddedServer
from tests.component.composed import block_store
from tests.component.server_requests import REPO, Requests
from tests.mount.conftest import Mounter
from tests.mount.mounting import Mounted
from tests.processes import killed

pytestmark = pytest.mark.fuse
SIZE = 2 * MiB + 1234


def content(name: str) -> bytes:
    return random.Random(name).randbytes(SIZE)


def cache(directory: Path, *contents: bytes) -> None:
    """Put contents into the cache, verified."""
    store = block_store(directory)
    for data in contents:
        key = ContentKey(f"sha256:{hashlib.sha256(data).hexdigest()}", len(data))
        opened = store.open(key)
        assert opened.publish(0, memoryview(data))
        opened.close()
        assert store.verify(key)
    store.close()


class Node:
    """A mount of files that are cached already, and its server."""

    def __init__(self, mounted: Mounted, server: EmbeddedServer, cache: Path) -> None:
        self.mounted = mounted
        self.root = mounted.root
        self.ask = Requests(server)
        self.server = server
        self.cache = cache
        self.passes = self.figures()["passthrough"]["state"] == "on"

    def figures(self) -> dict[str, dict[str, object]]:
        figures: dict[str, dict[str, object]] = json.loads(
            (self.root / ".jfs/stats.json").read_text()
        )
        return figures

    @property
    def passed(self) -> object:
        """How many opens the kernel was given a file for."""
        return self.figures()["counters"].get("passthrough_opens", 0)

    def data_of(self, data: bytes) -> Path:
        """Return the file of a content in the cache."""
        (found,) = self.cache.glob(f"??/sha256-{hashlib.sha256(data).hexdigest()}-*.data")
        return found


@pytest.fixture
def names() -> str:
    return "abc"


@pytest.fixture
def node(server: EmbeddedServer, mounter: Mounter, tmp_path: Path, names: str) -> Node:
    for name in names:
        server.deploy(REPO, name, content(name))
    cache(tmp_path / "cache", *map(content, names))
    return mount(server, mounter, tmp_path)


def mount(server: EmbeddedServer, mounter: Mounter, tmp_path: Path, *options: str) -> Node:
    mounted = mounter(f"{server.url}/{REPO}", *options, JF_ACCESS_TOKEN=server.token)
    return Node(mounted, server, tmp_path / "cache")


# A process of its own: a page fault holds the interpreter's lock, which the server needs.
_READER = """
import mmap, os, sys
file = os.open(sys.argv[1], os.O_RDONLY)
size = os.fstat(file).st_size
mapped = mmap.mmap(file, size, prot=mmap.PROT_READ)
own = mmap.mmap(file, size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
print("open", flush=True)
for line in sys.stdin:
    whole = os.pread(file, 1 << 30, 0)
    assert (os.fstat(file).st_size, len(whole)) == (size, size)
    assert mapped[:] == whole
    again = os.open(f"/proc/self/fd/{file}", os.O_RDONLY)
    assert os.read(again, 1 << 30) == whole
    os.close(again)
    own[:100] = bytes(100)  # nobody else sees it
    assert own[100:] == whole[100:]
    print(__import__("hashlib").sha256(whole).hexdigest(), flush=True)
"""


class Reader:
    """A process that has a file open, and mapped."""

    def __init__(self, path: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", _READER, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._read() == "open"

    def digest(self) -> str:
        """Have it read all, in several ways which must agree."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self._read()

    def close(self) -> None:
        self.process.communicate(timeout=30)
        assert self.process.returncode == 0

    def _read(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()


@contextmanager
def reading(path: Path) -> Iterator[Reader]:
    reader = Reader(path)
    with killed(reader.process):
        yield reader
        reader.close()


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("options", [(), ("--passthrough", "off"), ("--verify-reads",)])
def test_what_is_verified_is_read_right(
    server: EmbeddedServer, mounter: Mounter, tmp_path: Path, options: tuple[str, ...]
) -> None:
    """By every road, with passthrough and without; what is not verified, or small, without."""
    data, small = content("a"), b"x" * 1000
    for name, each in (("a", data), ("small", small), ("cold", content("cold"))):
        server.deploy(REPO, name, each)
    cache(tmp_path / "cache", data, small)
    node = mount(server, mounter, tmp_path, *options)
    assert not (options and node.passes)
    with reading(node.root / "a") as reader:
        assert reader.digest() == digest(data)
        with (node.root / "a").open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)  # READs, even so
            assert file.read() == data
        subprocess.run(["cp", str(node.root / "a"), str(tmp_path / "copy")], check=True)
        assert (tmp_path / "copy").read_bytes() == data
    assert node.passed == (4 if node.passes else 0)
    assert (node.root / "small").read_bytes() == small
    assert (node.root / "cold").read_bytes() == content("cold")
    assert node.passed == (4 if node.passes else 0)
    node.mounted.stop()
    said = node.mounted.log_after()
    assert ("through this process" in said) == (not options and not node.passes)
    assert node.data_of(data).read_bytes() == data


@pytest.mark.parametrize("names", ["abcdefg"])
def test_who_reads_goes_on_whatever_becomes_of_the_name(node: Node) -> None:
    """No write, through whatever call, gets into the cache; nobody is refused."""
    contents = {name: content(name) for name in "abcdef"}
    readers = {name: Reader(node.root / name) for name in contents}
    with (node.root / "a").open("r+b") as file:
        file.seek(SIZE)
        file.write(b"more")
    contents["a"] += b"more"
    (node.root / "b").write_bytes(b"emptied")
    contents["b"] = b"emptied"
    os.truncate(node.root / "c", 1000)
    contents["c"] = contents["c"][:1000]
    os.unlink(node.root / "d")
    os.rename(node.root / "g", node.root / "e")
    contents["e"] = content("g")
    node.server.deploy(REPO, "f", b"replaced")
    os.getxattr(node.root, "user.jfs.refresh")
    contents["f"] = b"replaced"
    with pytest.raises(FileNotFoundError):
        (node.root / "d").read_bytes()
    del contents["d"]
    for name, data in contents.items():
        assert (node.root / name).read_bytes() == data, name
        assert node.ask.get(f"/{REPO}/{name}").body == data, name
    for name, reader in readers.items():
        keeps = node.passes or name in "def"  # else it is the file that was written
        assert reader.digest() == digest(content(name) if keeps else contents[name]), name
        reader.close()
        assert node.data_of(content(name)).read_bytes() == content(name), name
    for name, data in contents.items():  # and with nobody left
        assert (node.root / name).read_bytes() == data, name


def test_no_open_is_refused_for_how_another_reads(node: Node, tmp_path: Path) -> None:
    """All handles of an inode are read by the kernel, or none: else it says EIO."""
    path, data = node.root / "a", content("a")
    with reading(path) as reader:
        file = os.open(path, os.O_RDONLY | os.O_DIRECT)
        buffer = mmap.mmap(-1, MiB)  # aligned
        assert os.preadv(file, [buffer], 0) == MiB
        assert buffer[:] == data[:MiB]
        os.close(file)
        writing = os.open(path, os.O_RDWR)
        assert os.pread(writing, 100, 5) == data[5:105]
        assert path.read_bytes() == data
        assert reader.digest() == digest(data)
        os.close(writing)
        assert path.read_bytes() == data
    passed = node.passed
    with (node.root / "b").open("r+b") as file_b, reading(node.root / "b") as reader:
        file_b.write(b"B" * 100)
        file_b.flush()
        assert reader.digest() == digest(b"B" * 100 + content("b")[100:])
    assert path.read_bytes() == data
    assert (node.root / "b").read_bytes() == b"B" * 100 + content("b")[100:]
    assert node.passed == passed  # what was written here may be again

    data = content("cold")  # becomes whole while it is open
    node.server.deploy(REPO, "cold", data)
    path = node.root / "cold"
    file = os.open(path, os.O_RDONLY)
    assert os.pread(file, 100, 0) == data[:100]
    cache(tmp_path / "cache", data)
    mapped = mmap.mmap(file, 0, prot=mmap.PROT_READ)
    os.close(file)
    assert path.read_bytes() == data  # the mapping is left
    assert node.passed == passed
    mapped.close()
    while path.read_bytes() == data and node.passes:
        if node.passed != passed:  # the kernel has told that the mapping has gone
            break
    with reading(path) as reader:
        assert reader.digest() == digest(data)


def test_what_was_changed_on_disk_is_not_passed_on(node: Node) -> None:
    """Neither before it is opened, nor to who opens it next."""
    for name in "ab":
        path, data = node.root / name, content(name)
        with reading(path if name == "a" else node.root / "c"):
            with node.data_of(data).open("r+b") as file:
                file.seek(100_000)
                file.write(b"damaged")
            assert path.read_bytes() == data
    assert node.passed == (2 if node.passes else 0)
    node.mounted.stop(expected=["does not match its checksum: fetching it again"])


def test_what_the_kernel_reads_is_not_evicted(node: Node) -> None:
    data = content("a")
    key = ContentKey(f"sha256:{digest(data)}", SIZE)
    with reading(node.root / "a") as reader:
        (entry,) = [each for each in inventory(node.cache) if each.content == key]
        assert entry.in_use
        assert not remove(entry)
        assert reader.digest() == digest(data)
    node.mounted.stop()
    assert remove(entry)
    with pytest.raises(ValueError, match="not enough values"):
        node.data_of(data)


@pytest.fixture
def stacked(tmp_path: Path) -> Iterator[Path]:
    """A directory on overlayfs on overlayfs, as deep as the kernel stacks them."""
    base = tmp_path / "stacked"
    base.mkdir()
    with contextlib.ExitStack() as mounts:

        def add(kind: str, place: Path, options: str) -> None:
            command = ["mount", "-t", kind, "-o", options, "none", str(place)]
            subprocess.run(command, check=True)
            mounts.callback(subprocess.run, ["umount", "-l", str(place)], check=True)

        add("tmpfs", base, "size=64m")
        lower = base / "lower"
        lower.mkdir()
        for layer in (base / "1", base / "2"):
            for name in ("upper", "work", "merged"):
                (layer / name).mkdir(parents=True)
            options = f"lowerdir={lower},upperdir={layer}/upper,workdir={layer}/work"
            lower = layer / "merged"
            add("overlay", lower, options)
        yield lower


def test_a_file_system_that_the_kernel_does_not_take_is_read_as_ever(
    server: EmbeddedServer, mounter: Mounter, stacked: Path
) -> None:
    data = content("a")
    server.deploy(REPO, "a", data)
    cache(stacked / "cache", data)
    mounted = mounter(
        f"{server.url}/{REPO}", "--cache-dir", str(stacked / "cache"), JF_ACCESS_TOKEN=server.token
    )
    node = Node(mounted, server, stacked / "cache")
    assert not node.passes
    assert (node.root / "a").read_bytes() == data
    mounted.stop()
    (said,) = [line for line in mounted.log_after().splitlines() if "passthrough" in line]
    assert re.search(r"INFO .* what is cached is read through this process, as ever: .", said)
