"""What every test has: a server of its own, the size of long proofs, and a watch on the log."""

import logging
import os
import re
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest
from hypothesis import settings

from jfs import native
from jfs.mount.table import mounts
from jfs.server import EmbeddedServer, TlsFiles
from tests import compiling

REPO = "ml-models-local"
_T = TypeVar("_T")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--whole", action="store_true", help="run long proofs whole, not a slice")


def pytest_configure(config: pytest.Config) -> None:
    # The gate draws the same examples in every run; the whole proof draws new ones, and many more.
    settings.register_profile("gate", derandomize=True, deadline=None)
    settings.register_profile("whole", max_examples=2000, deadline=None)
    settings.load_profile("whole" if config.getoption("--whole") else "gate")
    if not hasattr(config, "workerinput"):  # once, before the workers of xdist start
        compiling.keep_built()


@pytest.fixture
def scale(request: pytest.FixtureRequest) -> Callable[[_T, _T], _T]:
    """``scale(slice, whole)``: how much of a long proof to run."""
    whole = bool(request.config.getoption("--whole"))
    return lambda part, everything: everything if whole else part


@pytest.fixture(params=["native", "python"])
def road(request: pytest.FixtureRequest) -> Iterator[str]:
    """The test runs twice: with the native part, and as where it was not built."""
    native.turn_off(request.param == "python")
    yield str(request.param)
    native.turn_off(False)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedServer]:
    """A server with an empty repository, ``ml-models-local``; its threads end with it."""
    before = set(threading.enumerate())
    with EmbeddedServer(tmp_path / "server") as running:
        running.create_repository(REPO)
        yield running
    left = [
        thread.name
        for thread in set(threading.enumerate()) - before
        if thread.name.startswith("jfs-server")
    ]
    assert not left, f"threads of the server that did not end: {left}"


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> TlsFiles:
    """A certificate for 127.0.0.1 and localhost, which is its own authority."""
    directory = tmp_path_factory.mktemp("tls")
    files = TlsFiles(directory / "cert.pem", directory / "key.pem")
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-nodes", "-days", "2", "-subj", "/CN=localhost"),
            *("-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"),
            *("-keyout", str(files.key), "-out", str(files.certificate)),
        ],
        check=True,
        capture_output=True,
    )
    return files


@pytest.fixture
def tls_server(tmp_path: Path, certificate: TlsFiles) -> Iterator[EmbeddedServer]:
    """As ``server``, by https."""
    with EmbeddedServer(tmp_path / "tls-server", tls=certificate) as running:
        running.create_repository(REPO)
        yield running


@pytest.fixture
def expected_logs() -> list[str]:
    """Patterns of warnings and errors that the test provokes; append to it."""
    return []


class _Warnings(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(f"{record.levelname} {record.name}: {record.getMessage()}")


@pytest.fixture(autouse=True)
def _no_surprise_in_the_log(expected_logs: list[str]) -> Iterator[None]:
    """Fail a test in which, or in whose fixtures, jfs logs a warning that was not expected."""
    # A handler of its own: jfs.logs.set_up replaces those of the root, caplog's with them.
    handler = _Warnings()
    logger = logging.getLogger("jfs")
    logger.addHandler(handler)
    yield
    logger.removeHandler(handler)
    surprises = [
        message
        for message in handler.messages
        if not any(re.search(pattern, message) for pattern in expected_logs)
    ]
    assert not surprises, f"unexpected in the log: {surprises}"


@pytest.fixture(autouse=True)
def _nothing_stays_mounted(request: pytest.FixtureRequest) -> Iterator[None]:
    """What a test leaves is its failure, and goes: a dead mount would end the next run, too."""
    own = request.getfixturevalue("tmp_path") if "tmp_path" in request.fixturenames else None
    yield
    lines = Path("/proc/self/mountinfo").read_bytes().splitlines()
    left = [line for line in lines if own is not None and os.fsencode(own) in line]
    if left:
        for entry in reversed(mounts()):
            if entry.mountpoint.startswith(f"{own}/"):
                subprocess.run(["umount", "--lazy", entry.mountpoint], check=False)
        pytest.fail(f"mounted still: {left}")
