"""Credentials in files that are rotated in place, missing or half written for a moment."""

import json
import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from jfs.artifactory import Access, ArtifactoryClient, HttpRangeSource
from jfs.artifactory.auth import Authenticator
from jfs.config import Credentials, KeptIn, Secret
from jfs.credentials import credentials_for, credentials_from
from jfs.errors import AccessDenied, ConfigError
from jfs.extents import Extent
from jfs.metrics import Metrics
from jfs.model import ArtifactVersion, ContentKey, FileInfo, RepoPath
from jfs.server import EmbeddedServer
from jfs.sources import parse_source
from tests.component.composed import server_settings
from tests.component.test_ranges import Collector
from tests.conftest import REPO

URL = "https://art.example/artifactory"
WEB_TOKEN = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJhbm4ifQ.c2lnbmF0dXJl"
OLD_NS = 1_000_000_000_000_000_000


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def replaced_by_a_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


MOMENTS: dict[str, Callable[[Path], object]] = {
    "missing": lambda file: file.unlink(),
    "empty": lambda file: file.write_bytes(b""),
    "a blank": lambda file: file.write_bytes(b" \n"),
    "not readable": replaced_by_a_folder,
    "not text": lambda file: file.write_bytes(b"\xff\xfe\x00"),
    "half of the old one": lambda file: file.write_text(file.read_text()[:9]),
    "half of a web token": lambda file: file.write_text(WEB_TOKEN.rpartition(".")[0] + "."),
    "a third of a web token": lambda file: file.write_text(WEB_TOKEN[:20]),
}


@pytest.mark.parametrize("moment", MOMENTS)
async def test_the_last_good_one_serves_on(
    server: EmbeddedServer,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    expected_logs: list[str],
    moment: str,
) -> None:
    """On both planes; it is said once when it begins, and once when it ends."""
    caplog.set_level(logging.INFO, "jfs")
    expected_logs.append("what it held before serves on")
    file = tmp_path / "token"
    file.write_text(server.token + "\n")
    server.deploy(REPO, "f", b"content")
    settings = replace(server_settings(server), credentials=credentials_from({}, file))
    access = Access(settings, {})
    client = ArtifactoryClient(settings, Metrics(), access)
    source = HttpRangeSource(settings, Metrics(), access)
    info = await client.stat(RepoPath(REPO, "f"))
    assert isinstance(info, FileInfo)
    key = ContentKey(f"sha256:{info.checksums.sha256}", info.size)
    version = ArtifactVersion(info.path, key, info.checksums.sha1)

    MOMENTS[moment](file)
    for _ in range(3):
        await client.stat(RepoPath(REPO, "f"))
        sink = Collector(Extent(0, 7))
        await trio.to_thread.run_sync(source.fetch, version, Extent(0, 7), sink)
        assert sink.data == b"content"
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert str(file) in caplog.text
    assert server.token not in caplog.text

    if file.is_dir():
        file.rmdir()
    file.write_text("another")
    with pytest.raises(AccessDenied, match="401"):
        await client.stat(RepoPath(REPO, "f"))
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    file.write_text(server.token)
    await client.stat(RepoPath(REPO, "f"))
    source.close()
    await client.aclose()


def test_the_link_is_swapped_as_kubelet_does(tmp_path: Path) -> None:
    for number in (1, 2):
        (tmp_path / f"..{number}").mkdir()
        (tmp_path / f"..{number}" / "token").write_text(f"token-{number}")
        os.utime(tmp_path / f"..{number}" / "token", ns=(OLD_NS, OLD_NS))
    (tmp_path / "..data").symlink_to("..1")
    (tmp_path / "token").symlink_to("..data/token")
    authenticator = Authenticator(credentials_from({}, tmp_path / "token"))
    assert authenticator.headers() == bearer("token-1")
    (tmp_path / "..new").symlink_to("..2")
    (tmp_path / "..new").rename(tmp_path / "..data")
    assert authenticator.headers() == bearer("token-2")


def test_after_a_refusal_it_is_read_though_it_looks_unchanged(tmp_path: Path) -> None:
    """A new token of the same length, written within a tick of the file system's clock."""
    file = tmp_path / "token"
    file.write_text("token-1")
    os.utime(file, ns=(OLD_NS, OLD_NS))
    authenticator = Authenticator(credentials_from({}, file))
    sent = authenticator.headers()
    assert not authenticator.renewed(sent)
    file.write_text("token-2")
    os.utime(file, ns=(OLD_NS, OLD_NS))
    assert authenticator.headers() == sent
    assert authenticator.renewed(sent)
    assert authenticator.headers() == bearer("token-2")
    assert authenticator.renewed(sent)  # asked by another, who was refused at the same time
    assert not authenticator.renewed(authenticator.headers())


def test_a_signature_that_is_cut_short(tmp_path: Path, expected_logs: list[str]) -> None:
    expected_logs.append("only the beginning of a token: what it held before serves on")
    file = tmp_path / "token"
    file.write_text(WEB_TOKEN)
    authenticator = Authenticator(credentials_from({}, file))
    new = WEB_TOKEN.replace("hbm4", "ZXZl").replace("c2ln", "bmV3")
    assert new != WEB_TOKEN
    file.write_text(new[:-1])
    assert authenticator.headers() == bearer(WEB_TOKEN)
    file.write_text(new)
    assert authenticator.headers() == bearer(new)


async def test_what_never_changes_is_not_renewed() -> None:
    authenticator = Authenticator(Credentials(token=Secret("t")))
    assert not await authenticator.renewed_now(await authenticator.current())
    sent = authenticator.headers()
    authenticator.use(Credentials(token=Secret("u")))  # SIGHUP, meanwhile
    assert await authenticator.renewed_now(sent)
    assert not Authenticator(Credentials()).renewed({})


def test_a_file_that_was_never_good_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "token"
    authenticator = Authenticator(
        Credentials(kept_in=KeptIn(file, lambda: credentials_from({}, file)))
    )
    with pytest.raises(AccessDenied, match="token: No such file"):
        authenticator.headers()
    assert not authenticator.renewed({})
    file.write_text("t")
    assert authenticator.headers() == bearer("t")


@pytest.fixture
def hanging(tmp_path: Path) -> Iterator[Path]:
    """A file that whoever opens it hangs in: a pipe."""
    file = tmp_path / "token"
    os.mkfifo(file)
    os.link(file, tmp_path / "pipe")
    yield file
    (tmp_path / "good").write_text("t")
    (tmp_path / "good").replace(file)
    (tmp_path / "pipe").write_text("t")


async def test_a_file_that_hangs_holds_nothing_up(hanging: Path) -> None:
    """It is waited for once, in a thread, and for a second; then what was known is used at once."""
    kept = KeptIn(hanging, lambda: credentials_from({}, hanging))
    authenticator = Authenticator(Credentials(token=Secret("t"), kept_in=kept))
    order = []

    async def others() -> None:
        await trio.testing.wait_all_tasks_blocked()
        order.append("others")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(others)
        assert await authenticator.current() == bearer("t")
        order.append("credentials")
    assert order == ["others", "credentials"]
    threads = threading.active_count()
    for _ in range(100):
        assert authenticator.headers() == bearer("t")
    assert not authenticator.renewed(bearer("t"))
    assert threading.active_count() == threads


def test_a_file_that_hangs_from_the_start_is_an_error(hanging: Path) -> None:
    kept = KeptIn(hanging, lambda: credentials_from({}, hanging))
    with pytest.raises(AccessDenied, match="no answer in time"):
        Authenticator(Credentials(kept_in=kept)).headers()


def test_the_configuration_of_jf_is_followed(tmp_path: Path, expected_logs: list[str]) -> None:
    """The jf command renews its tokens there every hour."""
    expected_logs.append("what it held before serves on")
    file = tmp_path / "jfrog-cli.conf.v6"

    def write(token: str, url: str = "https://art.example/") -> None:
        server = {"serverId": "prod", "url": url, "accessToken": token}
        file.write_text(json.dumps({"servers": [server]}))

    write("one")
    source = parse_source("prod:r", {"JFROG_CLI_HOME_DIR": str(tmp_path)})
    assert source.server_url == URL
    authenticator = Authenticator(source.credentials)
    sent = authenticator.headers()
    assert sent == bearer("one")
    write("two")
    assert authenticator.renewed(sent)
    assert authenticator.headers() == bearer("two")
    file.write_text(file.read_text()[:40])
    assert authenticator.headers() == bearer("two")
    write("of another server", "https://other.example/")
    assert authenticator.headers() == bearer("two")


# netrc

NETRC = "machine Art.Example\n  login ann\n  password hunter2\nmachine other login x password y\n"
BASIC = {"Authorization": "Basic YW5uOmh1bnRlcjI="}  # ann:hunter2


def netrc(directory: Path, text: str, mode: int = 0o600) -> dict[str, str]:
    (directory / ".netrc").write_text(text)
    (directory / ".netrc").chmod(mode)
    return {"HOME": str(directory)}


def headers_of(url: str, environ: Mapping[str, str]) -> dict[str, str]:
    return Authenticator(credentials_for(url, environ)).headers()


def test_netrc_has_the_last_word(tmp_path: Path) -> None:
    environ = netrc(tmp_path, NETRC)
    assert headers_of(URL, environ) == BASIC
    assert headers_of("https://art.example:8443/artifactory", environ) == BASIC
    assert headers_of("https://elsewhere.example/artifactory", environ) == {}
    assert headers_of(URL, {**environ, "JF_ACCESS_TOKEN": "t"}) == bearer("t")
    (tmp_path / "token").write_text("f")
    found = parse_source(f"{URL}/r", environ, token_file=tmp_path / "token")
    assert found.credentials == Credentials(token=Secret("f"))
    assert parse_source("r", {**environ, "JF_URL": URL}).credentials.user == "ann"


def test_netrc_of_another_place_and_its_default(tmp_path: Path) -> None:
    environ = netrc(tmp_path, NETRC)
    named = tmp_path / "named"
    named.write_text("default login ben password p\n")
    named.chmod(0o644)  # a mounted secret; who names a file means it
    ben = credentials_for(URL, {**environ, "NETRC": str(named)})
    assert ben == Credentials(user="ben", password=Secret("p"))
    named.write_text("machine art.example password only-a-token\n")
    assert headers_of(URL, {"NETRC": str(named)}) == bearer("only-a-token")


def test_netrc_is_followed(tmp_path: Path, expected_logs: list[str]) -> None:
    expected_logs.append("what it held before serves on")
    authenticator = Authenticator(credentials_for(URL, netrc(tmp_path, NETRC)))
    sent = authenticator.headers()
    netrc(tmp_path, "machine other login x password y\n")
    assert authenticator.headers() == BASIC
    netrc(tmp_path, NETRC.replace("hunter2", "hunter3"))
    assert authenticator.renewed(sent)
    assert authenticator.headers() != BASIC


@pytest.mark.parametrize(
    ("text", "mode", "reason"),
    [
        (NETRC, 0o644, "others can read its passwords: chmod 600"),
        (NETRC, 0o620, "others can read its passwords: chmod 600"),
        ("machine art.example\nlogin ann hunter2\n", 0o600, "not in the form of netrc"),
        ("machine art.example password hunter2\N{SNOWMAN}", 0o600, "holds no token"),
    ],
)
def test_a_netrc_that_cannot_be_used(tmp_path: Path, text: str, mode: int, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason) as caught:
        credentials_for(URL, netrc(tmp_path, text, mode))
    assert "hunter" not in str(caught.value)
    assert ".netrc" in str(caught.value)


def test_netrc_that_is_of_no_concern(tmp_path: Path) -> None:
    nobody = credentials_for("https://b.example/artifactory", netrc(tmp_path, NETRC, 0o644))
    assert nobody == Credentials()
    with pytest.raises(ConfigError, match="absent: No such file"):
        credentials_for(URL, {"NETRC": str(tmp_path / "absent")})
    (tmp_path / ".netrc").unlink()
    assert credentials_for(URL, {"HOME": str(tmp_path)}) == Credentials()
