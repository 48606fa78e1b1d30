"""Who is told to end while the server does not answer ends at once; nothing is left half done."""

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from jfs.server import EmbeddedServer
from jfs.server.http.faults import Fault
from tests.component.server_requests import REPO, Requests
from tests.mount.conftest import Mounter
from tests.mount.mounting import clean_environ

pytestmark = pytest.mark.fuse

_AT_ONCE_S = 15  # on a loaded machine; the deadlines of the server are longer
_OPTIONS = ("--attr-ttl", "600", "--timeout", "600", "--connections", "16")

_MAP = """
import mmap, sys
with open(sys.argv[1], "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as pages:
    print("ready", flush=True)
    pages[1 << 20]
"""
_WRITE = """
import os, sys
file = os.open(sys.argv[1], os.O_WRONLY)
print("ready", flush=True)
os.pwrite(file, b"changed", 5)
"""
_LEAVE = """
import os, sys
file = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT)
os.write(file, b"left")
os.kill(os.getpid(), 9)
"""
_PYTHON = [sys.executable, "-I", "-c"]  # it does not look for modules in the mount
# What is done, each in a folder of its own, and the request to the server that it waits for.
_CALLS: dict[str, tuple[list[str], str]] = {
    "read": (["cat", "f"], "GET /{0}/f"),
    "map": ([*_PYTHON, _MAP, "f"], "GET /{0}/f"),
    "look": (["stat", "unknown"], "* /api/storage/{0}/unknown"),
    "list": (["ls", "."], "* /api/storage/{0}*"),
    "tags": (["getfattr", "-d", "f"], "* /api/storage/{0}/f"),
    "tag": (["setfattr", "-n", "user.a", "-v", "b", "f"], "* /api/metadata/{0}/f"),
    "write": ([*_PYTHON, _WRITE, "f"], "GET /{0}/f"),
    "close": (["cp", "/etc/passwd", "new"], "PUT /{0}/new"),
    "leave": ([*_PYTHON, _LEAVE, "new"], "PUT /{0}/new"),
    "move": (["mv", "f", "new"], "* /api/move/{0}/f"),
    "remove": (["rm", "f"], "DELETE /{0}/f"),
    "folder": (["mkdir", "new"], "PUT /{0}/new*"),
    "cut": (["truncate", "-s", "3", "f"], "PUT /{0}/f"),
}


def start(arguments: list[str], place: Path) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        arguments,
        cwd=place,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=clean_environ(),
    )


def content(name: str) -> bytes:
    """Every file another one: the same would come from the cache."""
    return name.encode() * (1 << 19 if name in ("read", "map") else 2)


def eventually(is_so: Callable[[], object]) -> None:
    """Return once it is; the test's own time limit ends a wait that is in vain."""
    while not is_so():
        os.sched_yield()


def test_kill_ends_whoever_waits_for_a_server_that_does_not_answer(
    server: EmbeddedServer, mounter: Mounter
) -> None:
    for name in _CALLS:
        server.deploy(REPO, f"{name}/f", content(name))
    mount = mounter(f"{server.url}/{REPO}", *_OPTIONS, JF_ACCESS_TOKEN=server.token)
    root = mount.root
    for name in _CALLS:
        (root / name / "f").stat()
    faults = {}
    for name, (_, request) in _CALLS.items():
        method, path = request.format(f"{REPO}/{name}").split()
        faults[name] = server.faults.add(Fault.hold(path, method=method))
    waiting = {name: start(call, root / name) for name, (call, _) in _CALLS.items()}
    for fault in faults.values():
        fault.wait_hit()
    for process in waiting.values():
        process.kill()
    codes = {name: process.wait(_AT_ONCE_S) for name, process in waiting.items()}
    assert set(codes.values()) == {-signal.SIGKILL}, codes

    # What changed something goes on, as if nobody had been killed; what did not is as it was.
    for fault in faults.values():
        fault.release()
    ask = Requests(server)
    eventually(lambda: ask.properties("tag/f") == {"a": ["b"]})
    eventually(lambda: ask.get(f"/{REPO}/close/new").body == Path("/etc/passwd").read_bytes())
    eventually(lambda: ask.get(f"/{REPO}/leave/new").body == b"left")
    eventually(lambda: ask.get(f"/{REPO}/move/f").status == 404)
    eventually(lambda: ask.get(f"/{REPO}/remove/f").status == 404)
    eventually(lambda: ask.get(f"/{REPO}/cut/f").body == b"cut")
    eventually(lambda: ask.get(f"/api/storage/{REPO}/folder/new").status == 200)
    eventually(lambda: not (root / "move" / "f").exists())
    eventually(lambda: not (root / "remove" / "f").exists())
    eventually(lambda: (root / "move" / "new").exists())
    assert (root / "move" / "new").read_bytes() == content("move")
    for name in ("write", "read", "map"):
        assert (root / name / "f").read_bytes() == content(name)
    assert sorted(os.listdir(root / "list")) == ["f"]
    eventually(lambda: (root / "folder" / "new").is_dir())
    mount.stop()


_HEARS = """
import os, sys, time
try:
    {call}
except KeyboardInterrupt:
    os._exit(7)
"""


_HEARING = {
    "open('file', 'rb').read()": "/{repo}/file",
    "os.stat('other/name')": "/api/storage/{repo}/other/name",
    "os.listdir('folder')": "/api/storage/{repo}/folder*",
    "open('made/new', 'wb').close()": "/{repo}/made/new",
}


def test_a_program_hears_ctrl_c_while_it_waits(server: EmbeddedServer, mounter: Mounter) -> None:
    """It gets its KeyboardInterrupt: the reader in the page cache, too."""
    server.deploy(REPO, "file", bytes(1 << 20))
    server.deploy(REPO, "folder/file", b"x")
    server.deploy(REPO, "made/file", b"x")
    server.deploy(REPO, "other/file", b"x")
    mount = mounter(f"{server.url}/{REPO}", *_OPTIONS, JF_ACCESS_TOKEN=server.token)
    for name in ("file", "folder/file", "made/file", "other/file"):
        (mount.root / name).stat()
    faults = [server.faults.add(Fault.hold(path.format(repo=REPO))) for path in _HEARING.values()]
    waiting = [start([*_PYTHON, _HEARS.format(call=call)], mount.root) for call in _HEARING]
    for fault in faults:
        fault.wait_hit()
    for process in waiting:
        process.send_signal(signal.SIGINT)
    assert [process.wait(_AT_ONCE_S) for process in waiting] == [7] * len(waiting)
    for fault in faults:
        fault.release()
    assert (mount.root / "file").read_bytes() == bytes(1 << 20)
    mount.stop()


# As C programs do: Python itself would call again.
_ONCE = """
import ctypes, os, signal
signal.signal(signal.SIGALRM, lambda *_: None)
signal.signal(signal.SIGUSR1, lambda *_: None)
libc = ctypes.CDLL(None, use_errno=True)
os._exit(ctypes.get_errno() if libc.access(b"{name}", os.F_OK) else 0)
"""


def test_a_signal_that_asks_nobody_to_end_disturbs_no_call(
    server: EmbeddedServer, mounter: Mounter
) -> None:
    """Timers, children that end, Go's own signals: a local disk returns EINTR for none."""
    server.deploy(REPO, "one/there", b"x")
    server.deploy(REPO, "two/file", b"x")
    mount = mounter(f"{server.url}/{REPO}", *_OPTIONS, JF_ACCESS_TOKEN=server.token)
    for name in ("one", "two"):
        (mount.root / name).stat()
    fault = server.faults.add(Fault.hold(f"/api/storage/{REPO}/one/there"))
    other = server.faults.add(Fault.hold(f"/api/storage/{REPO}/two/other"))
    process = start([*_PYTHON, _ONCE.format(name="one/there")], mount.root)
    fault.wait_hit()
    for number in (signal.SIGALRM, signal.SIGUSR1, signal.SIGCHLD):
        process.send_signal(number)
    status = Path(f"/proc/{process.pid}/status")
    eventually(lambda: re.search(r"ShdPnd:\s+0*[1-9a-f]", status.read_text()))
    killed = start(["stat", "two/other"], mount.root)  # it is looked at later than the first
    other.wait_hit()
    killed.kill()
    killed.wait(_AT_ONCE_S)
    assert process.poll() is None
    fault.release()
    other.release()
    assert process.wait(_AT_ONCE_S) == 0
    mount.stop()


def thread_states(pid: int) -> list[str]:
    """Return the states of the threads of a process, as letters of ``ps``."""
    found = []
    for number in os.listdir(f"/proc/{pid}/task"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            text = Path(f"/proc/{pid}/task/{number}/stat").read_text()
            found.append(text.rpartition(")")[2].split()[0])
    return found


def test_a_daemon_that_is_killed_leaves_nobody_waiting(
    server: EmbeddedServer, mounter: Mounter
) -> None:
    """While one of its threads waits in the kernel for a folder that a LOOKUP holds."""
    server.deploy(REPO, "f/a", b"content")
    mount = mounter(
        f"{server.url}/{REPO}", "--attr-ttl", "60", "--timeout", "600", JF_ACCESS_TOKEN=server.token
    )
    (mount.root / "f/a").stat()  # the kernel knows it
    slow = server.faults.add(Fault.stall("*/f/slow*"))
    for path in ("*/f?list*", f"/api/storage/{REPO}/f"):
        server.faults.add(Fault.stall(path))
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    look = subprocess.Popen(["stat", mount.root / "f/slow"], **quiet)
    slow.wait_hit()
    asked = subprocess.Popen(["getfattr", "-n", "user.jfs.refresh", mount.root], **quiet)
    seen = 0
    while seen < 20:  # looks in a row at which one of its threads could not be interrupted
        seen = seen + 1 if "D" in thread_states(mount.process.pid) else 0
    mount.process.kill()
    for waiting in (mount.process, look, asked):
        waiting.wait(30)
    with pytest.raises(OSError, match="not connected"):
        mount.root.stat()
