"""A machine that was suspended for hours: what was known is old, and connections are gone."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from socket import SHUT_RDWR, create_connection, create_server, socket

import httpx
import trio

from jfs.artifactory.access import Access
from jfs.artifactory.routed import Routed
from jfs.artifactory.transport import BulkTransport
from jfs.config import ServerSettings, WriteSettings
from jfs.server import EmbeddedServer, Fault
from jfs.vfs.attributes.stat import Caller
from jfs.vfs.namespace.inodes import ROOT
from tests.component.composed import composed, content, find
from tests.component.server_requests import REPO
from tests.component.test_write_back import until

ME = Caller(os.getuid(), os.getgid())


class Kernel:
    """Counts what it is told."""

    def __init__(self) -> None:
        self.told = 0

    def drop_entry(self, parent: int, name: str) -> bool:
        self.told += 1
        return True

    def drop_attributes(self, ino: int) -> bool:
        return True

    def drop_pages(self, ino: int) -> bool:
        return True


async def test_what_was_known_is_as_old_as_it_is(server: EmbeddedServer) -> None:
    """Neither the event loop's clock nor the kernel's has seen the time that has passed."""
    server.deploy(REPO, "f", b"before")
    suspended_s, kernel = 0.0, Kernel()

    async def suspend(seconds: float) -> None:
        nonlocal suspended_s
        told, suspended_s = kernel.told, suspended_s + seconds
        await until(lambda: kernel.told > told)

    async with composed(server, REPO, notifier=kernel) as fs, trio.open_nursery() as nursery:
        nursery.start_soon(partial(fs.sleeps.watch, lambda: suspended_s, look_every_s=0.01))
        assert await content(fs, "f") == b"before"
        server.deploy(REPO, "f", b"changed meanwhile")
        requests = server.stats.requests
        await suspend(30)  # of the 60 for which it is believed
        assert (await fs.getattr(await find(fs, "f"))).size == len(b"before")
        assert server.stats.requests == requests
        await suspend(40)
        assert await content(fs, "f") == b"changed meanwhile"
        requests = server.stats.requests
        assert (await fs.getattr(await find(fs, "f"))).size == len(b"changed meanwhile")
        assert server.stats.requests == requests
        nursery.cancel_scope.cancel()


async def test_what_waits_for_its_upload_is_tried_at_once(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    pause = {"settling_s": 0.0, "retry_s": (3600.0, 3600.0)}
    writes = WriteSettings(tmp_path / "staging", write_back=True, **pause)  # type: ignore[arg-type]
    suspended_s = 0.0
    server.faults.add(Fault.status(507, method="PUT", times=1))
    async with composed(server, REPO, writes=writes) as fs, trio.open_nursery() as nursery:
        nursery.start_soon(partial(fs.sleeps.watch, lambda: suspended_s, look_every_s=0.01))
        opened, _ = await fs.create(ROOT, "f", 0o644, os.O_WRONLY | os.O_CREAT, ME)
        await fs.flush(opened.handle)
        await fs.release(opened.handle)
        await until(lambda: "507" in fs.behind.state.error)
        suspended_s = 3600.0
        await until(lambda: not fs.behind.state.pending)
        nursery.cancel_scope.cancel()


@contextmanager
def answering(connections: list[socket]) -> Iterator[str]:
    """A server that keeps connections; return its URL."""
    with create_server(("127.0.0.1", 0)) as listener:

        def answer(connection: socket) -> None:
            with connection, suppress(OSError):
                while connection.recv(4096):
                    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nOK")

        def serve() -> None:
            while not ended:
                connection, _ = listener.accept()
                connections.append(connection)
                threads.append(threading.Thread(target=answer, args=(connection,)))
                threads[-1].start()

        ended = False
        threads = [threading.Thread(target=serve)]
        threads[0].start()
        host, port = listener.getsockname()
        yield f"http://{host}:{port}/"
        ended = True
        create_connection((host, port)).close()
        for each in connections:
            with suppress(OSError):
                each.shutdown(SHUT_RDWR)
        for thread in threads:
            thread.join()


async def test_no_connection_of_before_is_used(server: EmbeddedServer) -> None:
    """Servers and routers have forgotten it, and may not even say so."""
    connections: list[socket] = []
    suspended_s, now = 100.0, 5000.0
    with answering(connections) as url:
        access = Access(ServerSettings(url), {})
        asked = Routed(access, lambda: suspended_s)
        bulk = BulkTransport(access, connect_timeout_s=30, idle_timeout_s=30, now=lambda: now)
        async with httpx.AsyncClient(transport=asked) as client:
            with httpx.Client(transport=bulk) as bodies:
                for pause_s, asleep_s, expected in ((0, 0, 2), (20, 0, 2), (0, 3600, 4), (0, 0, 4)):
                    suspended_s, now = suspended_s + asleep_s, now + asleep_s + pause_s
                    assert (await client.get(url)).content == b"OK"
                    assert (await trio.to_thread.run_sync(bodies.get, url)).content == b"OK"
                    assert len(connections) == expected
