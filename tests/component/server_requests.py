"""Requests to the embedded server as they go over the wire: raw paths, raw headers, no library."""

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPMessage
from typing import Any
from urllib.parse import quote, urlsplit

from jfs.server import EmbeddedServer

REPO = "ml-models-local"
_DEADLINE_S = 30


@dataclass(frozen=True)
class Reply:
    status: int
    headers: HTTPMessage
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def message(self) -> str:
        """The text of an error, whose shape is checked."""
        document = self.json()
        (error,) = document["errors"]
        assert list(error) == ["status", "message"]
        assert error["status"] == self.status
        return str(error["message"])


@contextlib.contextmanager
def connected(url: str) -> Iterator[HTTPConnection]:
    parts = urlsplit(url)
    assert parts.hostname
    with contextlib.closing(
        HTTPConnection(parts.hostname, parts.port, timeout=_DEADLINE_S)
    ) as connection:
        yield connection


class Requests:
    """Ask one server; *path* is below ``/artifactory``, as it shall stand in the request line.

    Args:
        user: who asks; None: the administrator.
    """

    def __init__(self, server: EmbeddedServer, user: str | None = None) -> None:
        self.server = server
        token = server.token if user is None else server.token_of(user)
        self.authorization: dict[str, str] = {"Authorization": f"Bearer {token}"}

    def __call__(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Reply:
        with connected(self.server.url) as connection:
            connection.request(
                method, f"/artifactory{path}", body, {**self.authorization, **(headers or {})}
            )
            response = connection.getresponse()
            return Reply(response.status, response.headers, response.read())

    def get(self, path: str, **headers: str) -> Reply:
        return self("GET", path, headers=_named(headers))

    def head(self, path: str, **headers: str) -> Reply:
        return self("HEAD", path, headers=_named(headers))

    def put(self, path: str, body: bytes = b"", **headers: str) -> Reply:
        return self("PUT", path, body, _named(headers))

    def post(self, path: str, body: bytes = b"", **headers: str) -> Reply:
        return self("POST", path, body, _named(headers))

    def delete(self, path: str) -> Reply:
        return self("DELETE", path)

    def patch(self, path: str, document: object) -> Reply:
        return self("PATCH", path, json.dumps(document).encode())

    def sent(self) -> int:
        """Return the bytes that the server has sent so far.

        It counts those of a body a moment after its client has them. Not so late as to be counted
        after an answer to somebody who asks then.
        """
        assert self.get("/api/system/ping").status == 200
        return self.server.stats.bytes_sent

    def content(self, path: str) -> bytes | None:
        """Return the bytes of an artifact; None: there is none."""
        reply = self.get(f"/{REPO}/{quote(path)}")
        assert reply.status in (200, 404), (path, reply.status, reply.body)
        return reply.body if reply.status == 200 else None

    def properties(self, path: str) -> dict[str, list[str]]:
        """Return the properties of an item; none are none."""
        reply = self.get(f"/api/storage/{REPO}/{path}?properties")
        if reply.status == 404:
            assert reply.message == "No properties could be found."
            return {}
        document = reply.json()
        assert document["uri"].endswith(f"/artifactory/api/storage/{REPO}/{path}")
        found: dict[str, list[str]] = document["properties"]
        assert list(found) == sorted(found)
        return found

    def tree(self, path: str = "") -> dict[str, int]:
        """Return everything below a folder with its size; folders have -1."""
        reply = self.get(f"/api/storage/{REPO}{path}?list&deep=1&listFolders=1")
        assert reply.status == 200
        return {row["uri"]: row["size"] for row in reply.json()["files"]}


def _named(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.replace("_", "-"): value for name, value in headers.items()}
