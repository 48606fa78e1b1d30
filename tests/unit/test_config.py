"""Where settings come from, and what a person is told when they are wrong."""

import json
from pathlib import Path

import pytest

from jfs.config import Credentials, Secret
from jfs.credentials import credentials_from
from jfs.errors import ConfigError
from jfs.model import RepoPath
from jfs.sources import parse_source, server_url_from, split_server_url


@pytest.mark.parametrize(
    ("url", "base", "rest"),
    [
        ("https://a.example/artifactory", "https://a.example/artifactory", ""),
        ("https://a.example/artifactory/r/p/", "https://a.example/artifactory", "r/p"),
        ("http://a:8081/x/artifactory/r", "http://a:8081/x/artifactory", "r"),
        ("https://a.example", "https://a.example/artifactory", ""),
        ("https://a.example/", "https://a.example/artifactory", ""),
        ("http://[::1]:80/artifactory/r", "http://[::1]:80/artifactory", "r"),
        ("http://h/artifactory/artifactory/x", "http://h/artifactory", "artifactory/x"),
        ("HTTPS://A.Example//artifactory//r/", "https://a.example/artifactory", "r"),
        ("https://a.example/tools/art#r/p/", "https://a.example/tools/art", "r/p"),
        (
            "https://a.example/tools/art/#/r/artifactory",
            "https://a.example/tools/art",
            "r/artifactory",
        ),
        ("https://a.example/#r", "https://a.example", "r"),
        ("https://a.example#", "https://a.example", ""),
        ("https://a.example/a%20b/artifactory/r%2B", "https://a.example/a%20b/artifactory", "r%2B"),
        (
            "https://a.example/x/artifactory#artifactory/p",
            "https://a.example/x/artifactory",
            "artifactory/p",
        ),
    ],
)
def test_a_url_is_split_at_the_service(url: str, base: str, rest: str) -> None:
    assert split_server_url(url) == (base, rest)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("ftp://a/r", "http"),
        ("https:///r", "http"),
        ("https://user:hunter2@a.example/artifactory/r", "--token-file"),
        ("https://a.example/artifactory/r?x=1", "query"),
        ("https://a.example:port/artifactory", "URL"),
        ("https://a.example:70000/artifactory", "URL"),
        ("https://[::1/artifactory", "URL"),
        ("https://a b/artifactory", "'a b' is not the name of a host"),
        ("https://[fe80::1%25eth0]/artifactory", "zone"),
        ("https://a.example/artifactory/r/C#.md", "%23"),
        ("https://user:hunter2@a.example#r", "--token-file"),
    ],
)
def test_a_bad_url_is_refused_with_the_reason(url: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason) as caught:
        split_server_url(url)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "url"),
    [
        ("JF_URL", "https://a.example", "https://a.example/artifactory"),
        ("JF_URL", "https://a.example/tools/", "https://a.example/tools/artifactory"),
        ("JF_URL", "https://a.example/tools#", "https://a.example/tools"),
        ("JFROG_URL", "https://a.example/artifactory/", "https://a.example/artifactory"),
        ("ARTIFACTORY_URL", "https://a.example/tools/art/", "https://a.example/tools/art"),
        ("ARTIFACTORY_URL", "https://a.example", "https://a.example/artifactory"),
    ],
)
def test_the_environment_names_a_platform_or_a_service(name: str, value: str, url: str) -> None:
    assert server_url_from({name: value}) == url


def test_a_bad_url_of_the_environment_is_named() -> None:
    with pytest.raises(ConfigError, match="JF_URL: ftp"):
        server_url_from({"JF_URL": "ftp://a.example"})


def test_the_first_credential_wins(tmp_path: Path) -> None:
    token_file = tmp_path / "token"
    token_file.write_text("from-file\n")
    environ = {"JF_ACCESS_TOKEN": "jf", "JFROG_TOKEN": "jfrog", "JF_USER": "u", "JF_PASSWORD": "p"}
    assert credentials_from(environ, token_file) == Credentials(token=Secret("from-file"))
    assert credentials_from(environ) == Credentials(token=Secret("jf"))
    del environ["JF_ACCESS_TOKEN"]
    assert credentials_from(environ) == Credentials(token=Secret("jfrog"))
    del environ["JFROG_TOKEN"]
    assert credentials_from(environ) == Credentials(user="u", password=Secret("p"))
    assert credentials_from({}) == Credentials()


@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe"])
def test_an_unusable_token_file_is_named(tmp_path: Path, content: bytes | None) -> None:
    token_file = tmp_path / "token"
    if content is not None:
        token_file.write_bytes(content)
    with pytest.raises(ConfigError, match=str(token_file)):
        credentials_from({}, token_file)


def test_secrets_do_not_show() -> None:
    credentials = Credentials(token=Secret("hunter2"), user="u", password=Secret("hunter3"))
    for text in (repr(credentials), str(credentials), f"{credentials.token}"):
        assert "hunter" not in text


def test_a_source_is_a_url_a_server_id_or_a_path(tmp_path: Path) -> None:
    source = parse_source("https://a.example/artifactory/r/my%20model/v1", {})
    assert (source.server_url, source.path) == (
        "https://a.example/artifactory",
        RepoPath("r", "my model/v1"),
    )
    source = parse_source("r/p", {"JF_URL": "https://a.example/"})
    assert (source.server_url, source.path) == ("https://a.example/artifactory", RepoPath("r", "p"))
    with pytest.raises(ConfigError, match="JF_URL"):
        parse_source("r/p", {})
    source = parse_source("https://a.example/art#r/my%20model%23", {})
    assert (source.server_url, source.path) == (
        "https://a.example/art",
        RepoPath("r", "my model#"),
    )

    document = {
        "version": "6",
        "servers": [
            {"serverId": "prod", "url": "https://p.example/", "accessToken": "hunter2"},
            {"serverId": "old", "artifactoryUrl": "https://o.example/artifactory/", "user": "u"},
            {
                "serverId": "own",
                "url": "https://p.example/",
                "artifactoryUrl": "https://o.example/tools/art/",
                "clientCertPath": "/c",
                "clientCertKeyPath": "/k",
            },
        ],
    }
    configuration = tmp_path / "jfrog-cli.conf.v6"
    configuration.write_text(json.dumps(document))
    environ = {"JFROG_CLI_HOME_DIR": str(tmp_path)}
    source = parse_source("prod:r/p", environ)
    assert source.server_url == "https://p.example/artifactory"
    assert source.credentials == Credentials(token=Secret("hunter2"))
    assert parse_source("old:r", environ).credentials == Credentials()
    source = parse_source("own:r", environ)
    assert source.server_url == "https://o.example/tools/art"
    assert (source.client_cert, source.client_key) == (Path("/c"), Path("/k"))
    with pytest.raises(ConfigError, match=r"stage.*old, own, prod"):
        parse_source("stage:r", environ)

    configuration.write_text(json.dumps({**document, "enc": True}))
    with pytest.raises(ConfigError, match="encrypted"):
        parse_source("prod:r", environ)
    configuration.write_text("[]")
    with pytest.raises(ConfigError, match="cannot be read"):
        parse_source("prod:r", environ)
