"""Servers that send, or take, a byte now and then: no thread waits for them for ever."""

import functools
import io
import socket
import threading
from collections.abc import Iterator
from contextlib import aclosing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
import trio
import trio.testing

from jfs.artifactory import ArtifactoryClient, HttpRangeSource
from jfs.artifactory.session import MOVED
from jfs.config import Credentials, Secret, ServerSettings
from jfs.errors import DeadlineExceeded
from jfs.extents import Extent, MiB
from jfs.metrics import Metrics
from jfs.model import ArtifactVersion, Checksums, ContentKey, Deployment, RepoPath
from jfs.server import EmbeddedServer
from tests.component.test_ranges import Collector

SIZE = MiB
PATH = RepoPath("r", "f")
VERSION = ArtifactVersion(PATH, ContentKey("sha1:" + "a" * 40, SIZE), "a" * 40)
HEAD = (
    b"HTTP/1.1 206 Partial Content\r\nETag: " + b"a" * 40 + b"\r\n"
    b"Content-Range: bytes 0-1048575/1048576\r\n"
)
WHOLE = HEAD + b"Content-Length: 1048576\r\n\r\n"
CHUNKED = HEAD.replace(b"206 Partial Content", b"200 OK") + b"Transfer-Encoding: chunked\r\n\r\n"


@contextmanager
def dripping(at_once: bytes, then: bytes) -> Iterator[ServerSettings]:
    """A server that answers *at_once*, and goes on with *then* again and again, slowly."""
    over = threading.Event()
    threads: list[threading.Thread] = []

    def answer(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            connection.settimeout(30)
            connection.recv(4096)
            connection.sendall(at_once)
            while not over.wait(0.02):  # its weather, not our waiting
                connection.sendall(then)

    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            while True:
                connection, _ = listener.accept()
                if over.is_set():
                    connection.close()
                    return
                threads.append(threading.Thread(target=answer, args=(connection,)))
                threads[-1].start()

        accepting = threading.Thread(target=accept)
        accepting.start()
        port = listener.getsockname()[1]
        try:
            yield ServerSettings(
                f"http://127.0.0.1:{port}/artifactory",
                idle_timeout_s=0.2,
                connect_timeout_s=5,
                request_deadline_s=0.2,
            )
        finally:
            over.set()
            socket.create_connection(("127.0.0.1", port)).close()
            for thread in (accepting, *threads):
                thread.join(30)


@pytest.mark.parametrize(
    ("at_once", "then"),
    [(b"HTTP/1.1 206 OK\r\nX-Slow: ", b"a"), (WHOLE, b"a"), (CHUNKED, b"1\r\na\r\n")],
    ids=["head", "body", "chunks"],
)
def test_a_download_that_drips_ends(at_once: bytes, then: bytes) -> None:
    with dripping(at_once, then) as settings:
        source = HttpRangeSource(settings, Metrics())
        with pytest.raises(DeadlineExceeded):
            source.fetch(VERSION, Extent(0, SIZE), Collector(Extent(0, SIZE)))
        source.close()


async def test_an_answer_that_drips_ends() -> None:
    with dripping(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n", b" ") as settings:
        client = ArtifactoryClient(settings, Metrics())
        with pytest.raises(DeadlineExceeded):
            await client.repositories()
        await client.aclose()


async def test_an_upload_whose_answer_drips_ends(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"1")
    with dripping(b"HTTP/1.1 201 ", b"C") as settings, io.FileIO(tmp_path / "f") as file:
        client = ArtifactoryClient(replace(settings, retries_s=0), Metrics())
        with pytest.raises(DeadlineExceeded):
            await client.deploy(Deployment(PATH, 1, Checksums("b" * 64)), file.fileno())
        await client.aclose()


@pytest.mark.parametrize("moves", [True, False])
async def test_an_answer_is_not_given_up_while_it_comes(
    server: EmbeddedServer, mock_clock: trio.testing.MockClock, moves: bool
) -> None:
    """A listing of a million takes longer than the deadline of a call; no piece of it does."""
    settings = ServerSettings(server.url, Credentials(token=Secret(server.token)))

    async def take(response: httpx.Response) -> int:
        for _ in range(5):
            mock_clock.jump(settings.request_deadline_s * 0.6)
            await trio.lowlevel.checkpoint()
            if moves:
                response.extensions[MOVED]()
        return len(await response.aread())

    async with aclosing(ArtifactoryClient(settings, Metrics())) as client:
        read = functools.partial(client._session.read, "GET", "/api/repositories", take, long=True)
        if moves:
            assert await read()
        else:
            with pytest.raises(DeadlineExceeded):
                await read()
