"""What tests through the facade and at the server share."""

from pathlib import Path

import pytest

from jfs.server import EmbeddedServer
from tests.component.server_requests import Requests


@pytest.fixture
def ask(server: EmbeddedServer) -> Requests:
    """Requests over the wire to the server of the test."""
    return Requests(server)


@pytest.fixture
def staging(tmp_path: Path) -> Path:
    """Where what is written is staged; not there yet."""
    return tmp_path / "staging"
