"""A connection that finds no file descriptor is no outage: what can be closed is closed."""

import os
import resource
from collections.abc import Iterator
from contextlib import aclosing, contextmanager, suppress

import pytest

from jfs import descriptors
from jfs.artifactory import ArtifactoryClient, Breakers
from jfs.errors import NoDescriptor, is_of_descriptors
from jfs.metrics import Metrics
from jfs.model import RepoPath
from jfs.server import EmbeddedServer
from tests.component.composed import composed, content, server_settings
from tests.conftest import REPO


@contextmanager
def no_descriptor_left(given_back: int) -> Iterator[list[int]]:
    """Use up every descriptor; somebody gives some back when asked. Yields how many that were."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken: list[int] = []
    given: list[int] = []

    def give_back() -> int:
        for _ in range(min(given_back - len(given), len(taken))):
            given.append(taken[-1])
            os.close(taken.pop())
        return len(given)

    end = descriptors.add_holder(give_back)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(512, hard), hard))
    try:
        with suppress(OSError):
            while True:
                taken.append(os.dup(0))
        yield given
    finally:
        for file in taken:
            os.close(file)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        end()


def test_files_leave_some_to_connections() -> None:
    with no_descriptor_left(0) as _:
        with pytest.raises(OSError, match="Too many") as raised:
            descriptors.opening(lambda: os.open("/dev/null", os.O_RDONLY))
        assert is_of_descriptors(raised.value)
    with no_descriptor_left(20):
        with pytest.raises(OSError, match="Too many"):  # 20 are left, and connections want 64
            descriptors.opening(lambda: os.open("/dev/null", os.O_RDONLY))
        os.close(descriptors.opening(lambda: os.open("/dev/null", os.O_RDONLY), connects=True))
    with no_descriptor_left(100):
        os.close(descriptors.opening(lambda: os.open("/dev/null", os.O_RDONLY)))


async def test_a_read_goes_on_when_a_descriptor_was_given_back(server: EmbeddedServer) -> None:
    server.deploy(REPO, "f", b"content" * 1000)
    async with composed(server, REPO) as fs:
        await fs.lookup(1, "f")
        with no_descriptor_left(40) as given:
            found = await content(fs, "f")
        assert given
    assert found == b"content" * 1000


async def test_no_descriptor_for_a_connection_is_no_outage(server: EmbeddedServer) -> None:
    hasty, patient = (server_settings(server, deadline_s=seconds) for seconds in (0.2, 60))
    breakers = Breakers(server.url, Metrics())
    async with aclosing(ArtifactoryClient(hasty, Metrics(), breakers=breakers)) as client:
        with no_descriptor_left(0), pytest.raises(NoDescriptor, match="the limit of this process"):
            await client.stat(RepoPath(REPO))
    assert breakers.outages() == []
    async with aclosing(ArtifactoryClient(patient, Metrics(), breakers=breakers)) as client:
        await client.stat(RepoPath(REPO))
