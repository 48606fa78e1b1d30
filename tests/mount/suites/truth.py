"""What the server has, asked by HTTP and not through the mount, beside what a directory has."""

import os
from pathlib import Path
from urllib.parse import quote

from tests.component.server_requests import REPO, Requests

FOLDER = -1  # size of a folder in ``Requests.tree``


def on_server(ask: Requests, folder: str = "", repo: str = REPO) -> dict[str, bytes | None]:
    """Return every entry below a folder with its content; None: a folder. Links are empty files."""
    return {
        name: None if size == FOLDER else content(ask, f"{folder}/{name}".lstrip("/"), repo)
        for name, size in names_on_server(ask, folder, repo).items()
    }


def names_on_server(ask: Requests, folder: str = "", repo: str = REPO) -> dict[str, int]:
    """Return every entry below a folder with its size, and folders with ``FOLDER``."""
    place = f"/{quote(folder)}" if folder else ""
    reply = ask.get(f"/api/storage/{repo}{place}?list&deep=1&listFolders=1")
    assert reply.status == 200, reply.body
    return {row["uri"].removeprefix("/"): row["size"] for row in reply.json()["files"]}


def content(ask: Requests, path: str, repo: str = REPO) -> bytes:
    """Return the bytes of an artifact."""
    reply = ask.get(f"/{repo}/{quote(path)}")
    assert reply.status == 200, (path, reply.status, reply.body)
    return reply.body


def on_disk(folder: Path) -> dict[str, bytes | None]:
    """Return every entry of a local directory as ``on_server`` does."""
    found: dict[str, bytes | None] = {}
    for parent, folders, files in os.walk(folder):
        for name in [*folders, *files]:
            path = Path(parent, name)
            relative = str(path.relative_to(folder))
            if path.is_symlink():
                found[relative] = b""
            else:
                found[relative] = None if path.is_dir() else path.read_bytes()
    return found
