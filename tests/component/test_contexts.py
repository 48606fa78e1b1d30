"""Services whose address does not end in /artifactory, and those that have moved."""

from dataclasses import replace
from pathlib import Path

import pytest

from jfs.artifactory import ArtifactoryClient
from jfs.errors import ConfigError, ProtocolViolation
from jfs.metrics import Metrics
from jfs.model import RepoPath
from jfs.server import EmbeddedServer
from jfs.sources import parse_source
from tests.component.composed import server_settings
from tests.component.proxy import reverse_proxy
from tests.component.test_proxies import PATH, use_everything
from tests.conftest import REPO
from tests.mount.commands import run_here


@pytest.mark.parametrize("context", ["/tools/art", "", "/my%20tools"])
async def test_a_service_at_any_place(server: EmbeddedServer, tmp_path: Path, context: str) -> None:
    """Both planes and uploads; what the server says about its own address is of no concern."""
    with reverse_proxy(server.port, context=context) as url:
        source = parse_source(f"{url}#{REPO}/m", {})
        settings = replace(server_settings(server), url=source.server_url)
        assert source.path == PATH.parent
        await use_everything(settings, tmp_path)


def test_commands_know_it_too(server: EmbeddedServer) -> None:
    server.deploy(REPO, "a", b"x")
    with reverse_proxy(server.port, context="/tools/art") as url:
        assert "a" in run_here(server, "ls", f"{url}#{REPO}").split()
        assert "a" in run_here(server, "ls", REPO, JF_URL=f"{url}#").split()


@pytest.mark.parametrize(
    ("context", "asked", "found"),
    [
        ("/tools/art", "/tools/art/r/my%20model", "/tools/art#r/my%20model"),
        ("", "/r", "#r"),
        ("", "", "#"),
    ],
)
async def test_the_start_says_where_it_is(
    server: EmbeddedServer, context: str, asked: str, found: str
) -> None:
    with reverse_proxy(server.port, context=context) as url:
        origin = url.removesuffix(context)
        source = parse_source(origin + asked, {})
        settings = replace(server_settings(server), url=source.server_url)
        client = ArtifactoryClient(settings, Metrics())
        with pytest.raises(ConfigError) as caught:
            await client.check(source.path)
        assert f": give {origin}{found}, where one is" in str(caught.value)
        await client.aclose()


async def test_a_service_that_has_moved(server: EmbeddedServer) -> None:
    """Credentials would not follow, nor would changes: its new address is named."""
    there = server.url.removesuffix("/artifactory")
    with reverse_proxy(moved_to=there) as url:
        settings = replace(server_settings(server), url=f"{url}/artifactory")
        client = ArtifactoryClient(settings, Metrics())
        with pytest.raises(ConfigError, match=f"redirects to {server.url}: give that address"):
            await client.check()
        with pytest.raises(ProtocolViolation, match=f"is redirected to {there}: give that"):
            await client.make_folder(RepoPath(REPO, "new"))
        await client.aclose()
