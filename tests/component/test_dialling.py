"""Names, addresses, and connections that lead nowhere any more."""

import errno
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress

import pytest

from jfs.artifactory import ArtifactoryClient, HttpRangeSource
from jfs.artifactory.dialling import Address, _relay, first_of
from jfs.artifactory.session import Session
from jfs.config import ServerSettings
from jfs.errors import ConfigError, Unavailable
from jfs.extents import Extent
from jfs.metrics import Metrics
from jfs.model import ArtifactVersion, ContentKey, RepoPath
from jfs.server import TlsFiles
from tests.component.test_ranges import Collector
from tests.conftest import REPO


def at(sock: socket.socket) -> Address:
    return socket.AF_INET, sock.getsockname()


@contextmanager
def black_hole() -> Iterator[Address]:
    """An address that answers nobody: a listener whose queue is full."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(8):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        yield at(listener)


@contextmanager
def refusing() -> Iterator[Address]:
    with socket.socket() as sock:  # bound, and not listening
        sock.bind(("127.0.0.1", 0))
        yield at(sock)


def test_an_address_that_swallows_packets_does_not_hold_the_others_up() -> None:
    with black_hole() as silent, socket.create_server(("127.0.0.1", 0)) as good:
        with first_of([silent, at(good)], time.monotonic() + 30) as sock:
            assert sock.getpeername() == good.getsockname()
        with refusing() as refused:
            places = [silent, refused, silent, at(good)]
            with first_of(places, time.monotonic() + 30) as sock:
                assert sock.getpeername() == good.getsockname()


def test_the_most_telling_failure_is_said() -> None:
    with refusing() as refused, pytest.raises(ConnectionRefusedError):
        first_of([refused, refused], time.monotonic() + 30)
    with black_hole() as silent, pytest.raises(TimeoutError):
        first_of([silent], time.monotonic() + 0.2)
    with pytest.raises(OSError, match="no address") as caught:
        first_of([], time.monotonic() + 30)
    assert caught.value.errno != errno.ENETUNREACH


@contextmanager
def forgetful(asked: list[bytes]) -> Iterator[int]:
    """A server that closes each connection as its second request comes, without an answer."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                connection, _ = listener.accept()
                with connection:
                    first = connection.recv(4096)
                    if not first:
                        return
                    asked.append(first.split()[1])
                    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nOK")
                    if second := connection.recv(4096):
                        asked.append(second.split()[1])

        thread = threading.Thread(target=serve)
        thread.start()
        port = listener.getsockname()[1]
        yield port
        socket.create_connection(("127.0.0.1", port)).close()
        thread.join()


async def test_a_connection_that_was_kept_and_is_closed_is_no_outage() -> None:
    """What was asked by it is asked anew at once: no failure, and nothing to wait for."""
    asked: list[bytes] = []
    metrics = Metrics()
    with forgetful(asked) as port:
        session = Session(ServerSettings(f"http://127.0.0.1:{port}"), metrics)
        assert await session.get("/1", retries=False) == b"OK"
        assert await session.get("/2", retries=False) == b"OK"
        with pytest.raises(Unavailable):  # a change may have been made: it is not repeated here
            await session.exchange("PUT", "/3", retries=False)
        await session.aclose()
    assert asked == [b"/1", b"/2", b"/2", b"/3"]


async def test_a_name_that_nobody_knows() -> None:
    """An outage as any other, since name servers fail for a moment, too; the reason is named."""
    settings = ServerSettings("https://art.invalid/artifactory", retries_s=0.1, jobs_retries_s=0.1)
    client = ArtifactoryClient(settings, Metrics())
    with pytest.raises(ConfigError, match=r"art.invalid.*: its name cannot be resolved"):
        await client.check()
    with pytest.raises(Unavailable, match="its name cannot be resolved"):
        await client.stat(RepoPath(REPO, "f"))
    await client.aclose()
    metrics = Metrics()
    source = HttpRangeSource(settings, metrics)
    version = ArtifactVersion(RepoPath(REPO, "f"), ContentKey("sha1:" + "0" * 40, 9), None)
    with pytest.raises(Unavailable, match="its name cannot be resolved"):
        source.fetch(version, Extent(0, 9), Collector(Extent(0, 9)))
    source.close()


def test_a_tunnel_ends_with_whoever_uses_it(certificate: TlsFiles) -> None:
    """Also while the proxy takes nothing: its thread was woken again and again, for ever."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate.certificate, certificate.key)
    trusting = ssl.create_default_context(cafile=str(certificate.certificate))
    ours, theirs = socket.socketpair()
    with ThreadPoolExecutor(1) as pool:
        proxy = pool.submit(context.wrap_socket, theirs, server_side=True)
        outer = trusting.wrap_socket(ours, server_hostname="localhost")
    before = set(threading.enumerate())
    with proxy.result(), _relay(outer) as near:
        [thread] = set(threading.enumerate()) - before
        near.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                near.send(bytes(1 << 16))
        near.close()
        thread.join(30)
        assert not thread.is_alive()
