"""What every test has: a server of its own, the size of long proofs, and a watch on the log."""

import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from jfs.server import EmbeddedServer

REPO = "ml-models-local"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--whole", action="store_true", help="run long proofs whole, not a slice")


@pytest.fixture
def scale(request: pytest.FixtureRequest) -> Callable[[int, int], int]:
    """``scale(slice, whole)``: how much of a long proof to run."""
    whole = bool(request.config.getoption("--whole"))
    return lambda part, all_of_it: all_of_it if whole else part


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedServer]:
    """A server with an empty repository, ``ml-models-local``."""
    with EmbeddedServer(tmp_path / "server") as running:
        running.create_repository(REPO)
        yield running


@pytest.fixture
def expected_logs() -> list[str]:
    """Patterns of warnings that the test provokes; append to it."""
    return []


@pytest.fixture(autouse=True)
def _no_surprise_in_the_log(
    caplog: pytest.LogCaptureFixture, expected_logs: list[str]
) -> Iterator[None]:
    """Fail a test after which jfs has logged a warning that was not expected."""
    yield
    surprises = [
        record.getMessage()
        for when in ("setup", "call")
        for record in caplog.get_records(when)
        if record.name.startswith("jfs")
        and record.levelno >= logging.WARNING
        and not any(re.search(pattern, record.getMessage()) for pattern in expected_logs)
    ]
    assert not surprises, f"unexpected in the log: {surprises}"
