"""Every snippet of the README is run, in order, on one server, as a stranger pastes it.

One shell in a mount namespace of its own runs them all, so that what one exports the next one has,
and the system's cache and log directories are ours. What differs from the page: the server's
address and token, places outside of the test's folder, and the identifiers that a command printed.
"""

import contextlib
import hashlib
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from jfs.model import RepoPath
from jfs.server import EmbeddedServer
from jfs.vfs.writing.journal import Journal
from jfs.vfs.writing.records import Record, State
from tests.mount.mounting import clean_environ
from tests.readme import README, snippets

# Some forty commands, each the start of an interpreter: 15 s where nothing else runs.
pytestmark = [pytest.mark.fuse, pytest.mark.timeout(300)]

URL = "https://company.example/artifactory"
REPO = "ml-models-local"
REPOSITORIES = (REPO, "staging-local", "prod-local", "archive-local")
# Run elsewhere: the first by tests/mount/test_demo.py, the second is what runs this test.
ELSEWHERE = ("jfs demo --check", ".venv/bin/pytest")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@dataclass
class Page:
    """The shell that runs the page, and what stands for its placeholders."""

    server: EmbeddedServer
    home: Path
    shell: subprocess.Popen[str]
    replaced: dict[str, str] = field(default_factory=dict)
    namespace: str = ""

    def text(self, snippet: str) -> str:
        """Return a snippet with this test's places in it."""
        # In one pass, so that nothing is replaced in what was put there.
        words = "|".join(re.escape(word) for word in self.replaced)
        return re.sub(rf"(?<![\w/])({words})", lambda found: self.replaced[found[1]], snippet)

    def run(self, snippet: str) -> str:
        """Run a snippet to its end; return what it printed."""
        script = self.home / "snippet"
        script.write_text(snippet)
        assert self.shell.stdin is not None
        assert self.shell.stdout is not None
        try:
            self.shell.stdin.write(". ./snippet\necho END\n")
            self.shell.stdin.flush()
        except BrokenPipeError:
            raise AssertionError(f"the shell ended before\n{snippet}\n{self.errors()}") from None
        printed = []
        for line in self.shell.stdout:
            if line == "END\n":
                return "".join(printed)
            printed.append(line)
        raise AssertionError(f"failed:\n{snippet}\n{''.join(printed)}\n{self.errors()}")

    def errors(self) -> str:
        return (self.home / "errors").read_text()


@pytest.fixture
def page(server: EmbeddedServer, tmp_path: Path) -> Iterator[Page]:
    home = tmp_path / "home"
    for name in (
        "usr/local/bin",
        "models",
        "training",
        "srv",
        "etc",
        "units",
        "tmp",
        ".venv/bin",
        "var/lib",
    ):
        (home / name).mkdir(parents=True)
    for name in ("var/cache", "var/log"):
        (home / name).mkdir()
    command = home / ".venv/bin/jfs"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m jfs "$@"\n')
    command.chmod(0o755)
    (home / ".venv/bin/python").symlink_to(sys.executable)
    (home / "usr/local/bin/python3").symlink_to(sys.executable)
    save_file({"weights": np.zeros(8, np.float32)}, home / "model.safetensors")
    (home / "train.py").write_text(
        "import pathlib, sys\n"
        "place = pathlib.Path(sys.argv[2])\n"
        "place.mkdir()\n"
        "(place / 'model.safetensors').write_bytes(b'trained')\n"
    )
    for repository in REPOSITORIES[1:]:
        server.create_repository(repository)
    path = f"/usr/local/bin:{os.environ['PATH']}"
    with (home / "errors").open("w") as errors:
        shell = subprocess.Popen(
            [
                *("unshare", "--mount", "--propagation", "unchanged", "--", "sh", "-euc"),
                # In a chroot the root is no mount, and cannot be made private.
                "mount --make-rprivate / 2>/dev/null || true;"
                "for at in var/cache var/log usr/local/bin; do mount --bind $at /$at; done;"
                "exec sh -eu",
            ],
            cwd=home,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={**clean_environ(), "PATH": path, "PYTHONPATH": os.pathsep.join(sys.path)},
            start_new_session=True,
        )
    page = Page(server, home, shell)
    page.replaced = {
        URL: server.url,
        "JF_ACCESS_TOKEN=…": f"JF_ACCESS_TOKEN={server.token}",
        "/etc/systemd/system": str(home / "units"),
        "/etc/jfs": str(home / "etc"),
        "/srv": str(home / "srv"),
        "/tmp": str(home / "tmp"),
        "/training": str(home / "training"),
        "/models": str(home / "models"),
    }
    with started(page):
        page.run("true")
        page.namespace = os.readlink(f"/proc/{shell.pid}/ns/mnt")
        yield page


@contextlib.contextmanager
def started(page: Page) -> Iterator[None]:
    """End the shell, and all that was started in its namespace: its mounts go with it."""
    shell = page.shell
    try:
        yield
    finally:
        shell.kill()
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if page.namespace and os.readlink(entry / "ns/mnt") == page.namespace:
                    os.kill(int(entry.name), signal.SIGKILL)
        shell.wait(30)
        for pipe in (shell.stdin, shell.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


def secret(page: Page) -> None:
    (page.home / "etc/models.token").write_text(page.server.token)


def models(page: Page) -> None:
    for version, env in (("1.0.0", "production"), ("2.0.0", "staging")):
        page.server.deploy(
            REPO,
            f"nlp/sentiment/{version}/model.onnx",
            version.encode(),
            {"env": [env], "approved-by": ["alice"]},
        )


def versions(page: Page) -> None:
    for repository, version in (("staging", "2.0.0"), ("staging", "rc1"), ("prod", "1.0.0")):
        path = f"nlp/bert/{version}/model.safetensors"
        page.server.deploy(f"{repository}-local", path, f"{repository} {version}".encode())
    page.server.deploy(REPO, "nlp/bert/2.0.0/model.safetensors", b"two")


def staged(page: Page, text: str) -> str:
    """Leave three files behind as a mount does that was killed while they were written."""
    journal = Journal(page.home / "var/cache/jfs/staging")
    names = []
    for number in range(3):
        path = RepoPath(REPO, f"left/{number}/model.safetensors")
        entry = journal.create(Record(page.server.url, path, State.WRITING))
        os.write(entry.file, b"left behind")
        names.append(entry.name)
        entry.close()
    shown = list(dict.fromkeys(re.findall(r"\b[0-9a-f]{6}\b", text)))
    assert len(shown) == len(names)
    for name, real in zip(shown, names, strict=True):
        text = text.replace(name, real)
    return text.replace("drop ", "drop --yes ")


def cached(page: Page, text: str) -> str:
    """Name a content that is in the cache once the folder is warm."""
    content = b"llama"
    page.server.deploy(REPO, "llm/llama3-8b/v1/model.safetensors", content)
    return text.replace("3f2a9c", hashlib.sha256(content).hexdigest()[:12])


def serving(page: Page, text: str) -> str:
    """Take free ports, and wait until every server has its token."""
    ports = [free_port() for _ in range(3)]
    text = text.replace("jfs serve /srv/models", f"jfs serve /srv/models --port {ports[0]}")
    for shown, port in zip(("8082", "8083"), ports[1:], strict=True):
        text = text.replace(f"--port {shown}", f"--port {port}")
    for port in ports:
        ping = f"http://127.0.0.1:{port}/artifactory/api/system/ping"
        text += f"until curl -s {ping} >/dev/null; do sleep 0.05; done\n"
    return text + "test -s /srv/models/admin.token\ntest -s /srv/prod/ci.token\n"


def unit(page: Page, text: str) -> str:
    """Stand in for systemd: run what the unit runs, with the environment that it names."""
    (page.home / "systemd").symlink_to(README.parent / "systemd")
    (page.home / "etc/models.env").write_text(
        page.text("JFS_SOURCE=https://company.example/artifactory/ml-models-local\n")
        + page.text("JFS_MOUNTPOINT=/models\n")
        + page.text("JFS_OPTIONS='--allow-other --token-file /etc/jfs/models.token'\n")
    )
    (page.home / "usr/local/bin/systemctl").write_text(
        page.text(
            "#!/bin/sh -eu\n"
            '[ "$1 $2 $3" = "enable --now jfs@models" ]\n'
            ". /etc/jfs/models.env\n"
            "run=$(sed -n 's/^ExecStart=//p' \"/etc/systemd/system/jfs@.service\")\n"
            'eval "$run" &\n'
            'until mountpoint -q "$JFS_MOUNTPOINT"; do sleep 0.05; done\n'
        )
    )
    (page.home / "usr/local/bin/systemctl").chmod(0o755)
    return f"jfs umount /models\n{text}ls /models/nlp\njfs umount /models\n"


def fstab(page: Page, text: str) -> str:
    (page.home / "fstab").write_text(page.text(text))
    return "mount -T ./fstab /models\nls /models/nlp\njfs umount /models\n"


def kubernetes(page: Page, text: str) -> str:
    """Run the sidecar's command, and its probe."""
    found = re.search(r"command: \[(.*?)\]\n", text, re.DOTALL)
    probe = re.search(r"exec: \{ command: \[(.*?)\] \}", text)
    assert found
    assert probe
    words = [" ".join(part.replace(",", " ").split()) for part in (found[1], probe[1])]
    command = words[0].replace("/token/token", "/etc/jfs/models.token")
    return f"{command} &\nuntil {words[1]} -q; do sleep 0.05; done\nls /models/nlp\n"


def benches(text: str) -> str:
    """Only whether they are there and understand their options: they take minutes, and peers."""
    lines = [line.partition("#")[0].rpartition("&&")[2].strip() for line in text.splitlines()]
    return "".join(f"{line} --help\n" for line in lines)


def test_every_snippet_works_in_order(page: Page) -> None:
    before = {
        "Mounting": lambda: secret(page),
        "Properties and queries": lambda: models(page),
        "Promoting, rolling back, builds": lambda: versions(page),
    }
    done = []
    for snippet in snippets():
        if any(each in snippet.text for each in ELSEWHERE):
            continue
        text = snippet.text
        if prepare := before.pop(snippet.section, None):
            prepare()
        if "jfs recover ls" in text:
            text = staged(page, text)
        elif "jfs cache ls" in text:
            text = cached(page, text)
        elif "jfs serve" in text:
            text = serving(page, text)
        elif "systemctl" in text:
            text = unit(page, text)
        elif snippet.language == "fstab":
            text = fstab(page, text)
        elif snippet.language == "yaml":
            text = kubernetes(page, text)
        elif "tests.bench" in text:
            text = benches(text)
        elif snippet.language != "sh":
            continue  # the drawing of the house: checked by import-linter
        page.run(page.text(text))
        done.append(snippet.section)
    assert not before
    assert "Kubernetes" in done[-2]
