"""Odd rows and refusals: what cannot be read hides itself, never what lies beside it."""

import contextlib
import errno
import hashlib
import json
import random
import socket
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from jfs.errors import AccessDenied, NoEntry, NotFound, ProtocolViolation
from jfs.extents import MiB
from jfs.model import Checksums, Criteria, Deployment, FileInfo, FolderInfo, RepoPath
from jfs.server import EmbeddedServer, Fault
from tests.component.composed import composed, find, names
from tests.component.test_client import client_of, settings_of
from tests.conftest import REPO

DATE = "2024-02-03T04:05:06.789Z"
GOOD = {"uri": "/good", "size": 3, "lastModified": DATE, "folder": False, "sha1": "a" * 40}
FOLDER = {"uri": "/folder", "size": -1, "lastModified": DATE, "folder": True}
ODD: list[object] = [
    {**GOOD, "size": None},
    {**GOOD, "size": -1},
    {**GOOD, "size": "many"},
    {**GOOD, "size": 1 << 70},
    {**GOOD, "size": True},
    {**GOOD, "lastModified": "yesterday"},
    {**GOOD, "lastModified": "9999-12-31T23:59:59-14:00"},
    {**GOOD, "lastModified": {}},
    {**GOOD, "folder": "perhaps"},
    {**GOOD, "folder": 7},
    {**GOOD, "uri": None},
    {**GOOD, "uri": "/a/b"},
    {**GOOD, "uri": "/.."},
    {"size": 1},
    None,
    "good",
    [1, 2],
    7,
]


def listing(*rows: object) -> bytes:
    return json.dumps({"uri": "x", "files": rows}).encode()


async def test_an_odd_row_hides_itself_alone(
    server: EmbeddedServer, expected_logs: list[str]
) -> None:
    expected_logs.append(f"{len(ODD)} names are hidden")
    rows: list[object] = []
    for number, row in enumerate(ODD):
        good_name = isinstance(row, dict) and row.get("uri") == "/good"
        rows.append({**row, "uri": f"/odd{number}"} if isinstance(row, dict) and good_name else row)
    server.faults.add(Fault.garbage(f"/api/storage/{REPO}", body=listing(GOOD, *rows, FOLDER)))
    async with client_of(settings_of(server)) as client:
        entries = {info.path.name: info for info in await client.list_children(RepoPath(REPO))}
    assert set(entries) == {"good", "folder"}
    assert isinstance(entries["good"], FileInfo)
    assert isinstance(entries["folder"], FolderInfo)
    assert (entries["good"].size, entries["good"].checksums.sha1) == (3, "a" * 40)


async def test_a_name_that_is_listed_twice_is_shown_once(
    server: EmbeddedServer, expected_logs: list[str]
) -> None:
    expected_logs.append("1 name is hidden: 'good' is there twice")
    twice = listing(GOOD, FOLDER, {**FOLDER, "uri": "/good"})
    server.faults.add(Fault.garbage(f"/api/storage/{REPO}", body=twice))
    async with composed(server, REPO) as fs:
        assert set(await names(fs, "")) == {"good", "folder"}


async def test_odd_rows_are_said_once(
    server: EmbeddedServer, expected_logs: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    expected_logs.append("hidden")
    fault = Fault.garbage(f"/api/storage/{REPO}", body=listing(GOOD, None))
    server.faults.add(fault)
    async with client_of(settings_of(server)) as client:
        for _ in range(5):
            await client.list_children(RepoPath(REPO))
        assert len([each for each in caplog.records if "hidden" in each.getMessage()]) == 1
        fault.body = listing(GOOD, None, 7)  # others are said again
        await client.list_children(RepoPath(REPO))
        assert len([each for each in caplog.records if "hidden" in each.getMessage()]) == 2


async def test_a_long_listing_is_read_anew_when_it_was_cut(server: EmbeddedServer) -> None:
    """One of several hundred kilobytes: read in pieces, by a thread."""
    for number in range(1500):
        server.deploy(REPO, f"shard-{number:04}", b"1")
    server.faults.add(Fault.drop(f"/api/storage/{REPO}", after_bytes=300_000, times=1))
    async with client_of(settings_of(server)) as client:
        names = [info.path.name for info in await client.list_children(RepoPath(REPO))]
    assert sorted(names) == [f"shard-{number:04}" for number in range(1500)]


async def test_an_answer_that_a_proxy_cut_off_is_asked_for_again(server: EmbeddedServer) -> None:
    """Valid HTTP, and the beginning of the JSON."""
    server.deploy(REPO, "d/file", b"content", properties={"env": ["production"]})
    path = RepoPath(REPO, "d/file")
    async with client_of(settings_of(server)) as client:
        for ask in (client.stat, client.properties, client.downloads):
            expected = await ask(path)
            for where in ("/api/*", "/api/search/*"):
                server.faults.add(Fault.short(where, size=40, times=1))
            assert await ask(path) == expected
        server.faults.add(Fault.short(f"/api/storage/{REPO}/d", size=60, times=1))
        assert [info.path for info in await client.list_children(RepoPath(REPO, "d"))] == [path]


FOUND = {"repo": REPO, "path": "d", "name": "good", "type": "file", "size": 3, "modified": DATE}


def results(*rows: object) -> bytes:
    span = {"start_pos": 0, "end_pos": len(rows), "total": len(rows)}
    return json.dumps({"results": rows, "range": span}).encode()


async def test_an_odd_row_of_a_query_hides_itself_alone(
    server: EmbeddedServer, expected_logs: list[str]
) -> None:
    expected_logs.append("10 names are hidden")
    odd = [
        *({**FOUND, "size": "x"}, {**FOUND, "type": "any"}, {**FOUND, "type": None}),
        *({**FOUND, "name": 'a"b'}, {**FOUND, "path": None}, {**FOUND, "modified": "soon"}),
        *({**FOUND, "properties": 7}, {**FOUND, "properties": [{"value": "x"}]}),
        *(None, "row"),
    ]
    plain = {**FOUND, "properties": [{"key": "a", "value": "1"}, {"key": "b"}]}
    server.faults.add(Fault.garbage("/api/search/aql", body=results(*odd[:5], plain, *odd[5:])))
    async with client_of(settings_of(server)) as client:
        (match,) = await client.search(Criteria(RepoPath(REPO)))
        assert match.properties == {"a": ("1",), "b": ("",)}
        with pytest.raises(ProtocolViolation, match="odd rows"):
            # What lacks here would be taken for an item without properties.
            await client.search(Criteria(RepoPath(REPO, "d"), direct=True, tagged=True))


async def test_properties_come_one_by_one_where_the_query_is_odd(server: EmbeddedServer) -> None:
    for name in ("a", "b"):
        server.deploy(REPO, f"d/{name}", b"1", {"n": [name]})
    odd = {**FOUND, "name": "a", "type": None, "properties": [{"key": "n", "value": "a"}]}
    server.faults.add(Fault.garbage("/api/search/aql", body=results(odd)))
    async with composed(server, REPO) as fs:
        for name, ino in (await names(fs, "d")).items():
            assert await fs.getxattr(ino, b"user.n") == name.encode()


async def test_an_odd_repository_hides_itself_alone(
    server: EmbeddedServer, expected_logs: list[str]
) -> None:
    expected_logs.append("3 names are hidden")
    good = {"key": REPO, "type": "LOCAL", "packageType": "Generic"}
    rows = [{"key": "x"}, good, None, {**good, "key": "a/b"}]
    server.faults.add(Fault.garbage("/api/repositories", body=json.dumps(rows).encode()))
    async with composed(server, "") as fs:
        assert set(await names(fs, "")) == {REPO}


# refusals


async def test_a_refused_name_that_is_not_listed_is_missing(server: EmbeddedServer) -> None:
    server.deploy(REPO, "d/there", b"1")
    server.faults.add(Fault.status(403, f"/api/storage/{REPO}/d/*"))
    async with client_of(settings_of(server)) as client:
        with pytest.raises(NotFound):
            await client.stat(RepoPath(REPO, "d/absent"))
        with pytest.raises(AccessDenied):
            await client.stat(RepoPath(REPO, "d/there"))
        with pytest.raises(NotFound):
            await client.list_children(RepoPath(REPO, "d/absent"))
    async with composed(server, REPO) as fs:
        folder = await find(fs, "d")
        with pytest.raises(NoEntry) as missing:
            await fs.lookup(folder, "absent")
        assert missing.value.errno == errno.ENOENT
        with pytest.raises(AccessDenied) as denied:
            await fs.lookup(folder, "there")
        assert denied.value.errno == errno.EACCES


async def test_where_the_folder_is_refused_too_nobody_can_tell(server: EmbeddedServer) -> None:
    server.deploy(REPO, "d/there", b"1")
    server.faults.add(Fault.status(403, f"/api/storage/{REPO}/d*"))
    async with client_of(settings_of(server)) as client:
        with pytest.raises(AccessDenied):
            await client.stat(RepoPath(REPO, "d/absent"))
        with pytest.raises(NotFound):
            await client.stat(RepoPath(REPO, "dx"))


async def test_a_repository_that_is_not_listed_is_missing(server: EmbeddedServer) -> None:
    server.faults.add(Fault.status(403, "/api/storage/*"))
    async with client_of(settings_of(server)) as client:
        with pytest.raises(NotFound):
            await client.stat(RepoPath("absent"))
        with pytest.raises(AccessDenied):
            await client.stat(RepoPath(REPO))
        server.faults.add(Fault.status(403, "/api/repositories"))
        with pytest.raises(AccessDenied):
            await client.stat(RepoPath("absent"))  # nobody can tell


async def test_one_refused_file_hides_no_other(
    server: EmbeddedServer, expected_logs: list[str]
) -> None:
    """Where listings are refused, and so each file is asked about by itself."""
    expected_logs.append("1 name is hidden: 'b'")
    for name in "abc":
        server.deploy(REPO, f"d/{name}", b"1")
    server.faults.add(Fault.status(403, f"/api/storage/{REPO}/d", times=1))
    server.faults.add(Fault.status(403, f"/api/storage/{REPO}/d/b"))
    async with client_of(settings_of(server)) as client:
        listed = await client.list_children(RepoPath(REPO, "d"))
    assert sorted(info.path.name for info in listed) == ["a", "c"]


async def test_a_refused_listing_says_nothing_about_other_folders(server: EmbeddedServer) -> None:
    for folder in "ab":
        server.deploy(REPO, f"{folder}/f", b"1")
    server.faults.add(Fault.status(403, f"/api/storage/{REPO}/a", times=1))
    async with client_of(settings_of(server)) as client:
        await client.list_children(RepoPath(REPO, "a"))
        server.stats.reset()
        await client.list_children(RepoPath(REPO, "b"))
        assert server.stats.requests == 1
        await client.list_children(RepoPath(REPO, "a"))
        assert server.stats.requests == 3  # the names, and the file


class Asking:
    """A way to a server that says 100 to every PUT, which nobody has asked for."""

    def __init__(self, server: EmbeddedServer) -> None:
        to = urlsplit(server.url)
        self._server = to.hostname, to.port
        self._sockets = [socket.create_server(("127.0.0.1", 0))]
        self.url = server.url.replace(to.netloc, f"127.0.0.1:{self._sockets[0].getsockname()[1]}")
        self._threads: list[threading.Thread] = []
        self._start(self._serve)

    def close(self) -> None:
        """Once its clients have gone."""
        self._sockets[0].shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for sock in self._sockets:
            sock.close()

    def _start(self, call: Callable[..., None], *args: object) -> None:
        self._threads.append(threading.Thread(target=call, args=args))
        self._threads[-1].start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._sockets[0].accept()
                server = socket.create_connection(self._server)
                self._sockets += [client, server]
                self._start(self._carry, client, server)
                self._start(self._carry, server, client)

    def _carry(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if data.startswith(b"PUT "):
                    source.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)


class Whole:
    """``Growing``, of what has its size."""

    def __init__(self, size: int) -> None:
        self._size = size

    def ready(self, sent: int, most: int, wait_s: float) -> int | None:
        return min(sent + most, self._size) if sent < self._size else None


async def test_who_says_100_unasked_refuses_nothing(server: EmbeddedServer, tmp_path: Path) -> None:
    """As IIS does; what comes before the end of a body is a refusal else."""
    data = random.Random(1).randbytes(10 * MiB)
    file = tmp_path / "f"
    file.write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    with contextlib.closing(Asking(server)) as way:
        async with client_of(replace(settings_of(server), url=way.url)) as client:
            deployment = Deployment(RepoPath(REPO, "f"), len(data), Checksums(sha256=digest))
            with file.open("rb") as opened:
                await client.deploy(deployment, opened.fileno())
            found = await client.stream(RepoPath(REPO, "g"), file, Whole(len(data)))
    assert found.checksums.sha256 == digest
    assert server.stats.bytes_received == 2 * len(data)
