"""Run commands in this process: the whole command line but for the start of an interpreter."""

import contextlib
import io
import json
import sys
from typing import Any

import pytest

from jfs.cli.main import main
from jfs.server import EmbeddedServer
from tests.component.server_requests import Requests
from tests.mount.mounting import clean_environ


def run_here(
    server: EmbeddedServer, *arguments: str, code: int = 0, lines: int = 1, **environ: str
) -> str:
    """Run a command; return what it printed, or the *lines* of its failure on standard error."""
    given = {"JF_URL": server.url, "JF_ACCESS_TOKEN": server.token, **environ}
    out, err = io.StringIO(), io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        patch.setattr("os.environ", {**clean_environ(), **given})
        patch.setattr(sys, "argv", ["jfs", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
    assert ended.value.code == code, (arguments, out.getvalue(), err.getvalue())
    if code == 0:
        assert not err.getvalue()
        return out.getvalue()
    assert len(err.getvalue().splitlines()) == lines, err.getvalue()
    return err.getvalue()


class Content:
    """What a server holds, asked without jfs."""

    def __init__(self, server: EmbeddedServer) -> None:
        self._ask = Requests(server)

    def tree(self, place: str) -> list[str]:
        """Every file and folder below a place, relative to it."""
        reply = self._ask.get(f"/api/storage/{place}?list&deep=1&listFolders=1")
        if reply.status == 404:
            return []
        return sorted(str(row["uri"]).removeprefix("/") for row in reply.json()["files"])

    def properties(self, place: str) -> dict[str, list[str]]:
        reply = self._ask.get(f"/api/storage/{place}?properties")
        found: dict[str, list[str]] = {} if reply.status == 404 else reply.json()["properties"]
        return found

    def carriers(self, repo: str, key: str, value: str) -> list[str]:
        """What in a repository carries a property."""
        query = (
            f'items.find({{"type":"any","repo":"{repo}","@{key}":"{value}"}})'
            '.include("repo","path","name")'
        )
        rows: list[Any] = json.loads(self._ask("POST", "/api/search/aql", query.encode()).body)[
            "results"
        ]
        return sorted(f"{row['repo']}/{row['path']}/{row['name']}" for row in rows)

    def read(self, place: str) -> bytes:
        reply = self._ask.get(f"/{place}")
        assert reply.status == 200
        return reply.body

    def make_folder(self, place: str) -> None:
        assert self._ask.put(f"/{place}/").status == 201
