"""Where settings come from, and what a person is told when they are wrong."""

import json
from pathlib import Path

import pytest

from jfs.config import (
    Credentials,
    Secret,
    credentials_from,
    parse_source,
    split_server_url,
)
from jfs.errors import ConfigError
from jfs.model import RepoPath


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
    ],
)
def test_a_bad_url_is_refused_with_the_reason(url: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason) as caught:
        split_server_url(url)
    assert "hunter2" not in str(caught.value)


def test_the_first_credential_wins(tmp_path: Path) -> None:
    token_file = tmp_path / "token"
    token_file.write_text("from-file\n")
    environ = {"JF_ACCESS_TOKEN": "jf", "JFROG_TOKEN": "jfrog", "JF_USER": "u", "JF_PASSWORD": "p"}
    assert credentials_from(environ, token_file) == Credentials(token_file=token_file)
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

    document = {
        "version": "6",
        "servers": [
            {"serverId": "prod", "url": "https://p.example/", "accessToken": "hunter2"},
            {"serverId": "old", "artifactoryUrl": "https://o.example/artifactory/", "user": "u"},
        ],
    }
    configuration = tmp_path / "jfrog-cli.conf.v6"
    configuration.write_text(json.dumps(document))
    environ = {"JFROG_CLI_HOME_DIR": str(tmp_path)}
    source = parse_source("prod:r/p", environ)
    assert source.server_url == "https://p.example/artifactory"
    assert source.credentials == Credentials(token=Secret("hunter2"))
    assert parse_source("old:r", environ).credentials == Credentials()
    with pytest.raises(ConfigError, match=r"stage.*old, prod"):
        parse_source("stage:r", environ)

    configuration.write_text(json.dumps({**document, "enc": True}))
    with pytest.raises(ConfigError, match="encrypted"):
        parse_source("prod:r", environ)
    configuration.write_text("[]")
    with pytest.raises(ConfigError, match="cannot be read"):
        parse_source("prod:r", environ)
