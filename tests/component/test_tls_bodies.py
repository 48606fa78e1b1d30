"""Bodies through TLS: what is received, when it ends, and that nobody waits for ever."""

import os
import socket
import ssl
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

import httpx
import pytest

from jfs.artifactory.access import Access
from jfs.artifactory.filebody import FileBody
from jfs.artifactory.transport import BodyStream, BulkTransport
from jfs.config import ServerSettings
from jfs.extents import KiB, MiB
from jfs.server import TlsFiles

SIZE = 3 * MiB + 4321
BODY = os.urandom(SIZE)
HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n"

# What a server does with a connection: (it, whether it was told to end).
Serve = Callable[[ssl.SSLSocket, threading.Event], None]


def asked(connection: ssl.SSLSocket) -> bytes:
    """Receive the head of a request; b"": there is none."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        data = connection.recv(1)
        if not data:
            return b""
        head += data
    return head


@contextmanager
def serving(
    certificate: TlsFiles, serve: Serve, idle_s: float = 30, version: ssl.TLSVersion | None = None
) -> Iterator[tuple[BulkTransport, str]]:
    """A server of TLS that does *serve* with each connection, and a transport that trusts it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate.certificate, certificate.key)
    if version is not None:
        context.maximum_version = version
    over = threading.Event()

    def answer(plain: socket.socket) -> None:
        plain.settimeout(30)
        with suppress(OSError), context.wrap_socket(plain, server_side=True) as connection:
            serve(connection, over)

    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(8) as pool:

        def accept() -> None:
            while True:
                plain, _ = listener.accept()
                if over.is_set():
                    plain.close()
                    return
                pool.submit(answer, plain)

        pool.submit(accept)
        port = listener.getsockname()[1]
        url = f"https://127.0.0.1:{port}"
        access = Access(ServerSettings(url, ca_file=certificate.certificate), {})
        transport = BulkTransport(access, connect_timeout_s=30, idle_timeout_s=idle_s)
        try:
            yield transport, url
        finally:
            transport.close()
            over.set()
            socket.create_connection(("127.0.0.1", port)).close()


def get(transport: BulkTransport, url: str) -> BodyStream:
    body = transport.handle_request(httpx.Request("GET", url)).extensions["body"]
    assert isinstance(body, BodyStream)
    return body


def put(url: str, body: FileBody) -> httpx.Request:
    headers = {"Host": "localhost", "Content-Length": str(body.size)}
    return httpx.Request("PUT", url, headers=headers, stream=body)


def received(body: BodyStream, size: int = SIZE, piece: int = MiB) -> bytes:
    """Receive that much, closing nothing."""
    place = memoryview(bytearray(size))
    filled = 0
    while filled < size and (count := body.readinto(place[filled : filled + piece])):
        filled += count
    return bytes(place[:filled])


def whole(connection: ssl.SSLSocket, over: threading.Event) -> None:
    """Answer every request with the body."""
    while asked(connection):
        connection.sendall(HEAD % SIZE + BODY)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("piece", [1000, 16 * KiB, MiB, 4 * MiB])
def test_a_body_is_received_as_it_was_sent(
    certificate: TlsFiles, version: ssl.TLSVersion, piece: int
) -> None:
    with serving(certificate, whole, version=version) as (transport, url):
        for _ in range(2):  # the second time by the same connection
            body = get(transport, url)
            assert received(body, piece=piece) == BODY
            body.close()


def test_a_silent_server_is_given_up(certificate: TlsFiles) -> None:
    """In a head and in a body. Python's TLS asks a blocking socket again, for ever."""

    def serve(connection: ssl.SSLSocket, over: threading.Event) -> None:
        if b"/body" in asked(connection):
            connection.sendall(HEAD % SIZE + BODY[:100_000])
        over.wait(30)

    with serving(certificate, serve, idle_s=0.2) as (transport, url):
        with pytest.raises(httpx.ReadTimeout):
            get(transport, url)
        body = get(transport, f"{url}/body")
        assert received(body, 100_000) == BODY[:100_000]
        with pytest.raises(httpx.ReadTimeout):
            received(body)
        body.close()


def test_a_server_that_takes_nothing_is_given_up(certificate: TlsFiles) -> None:
    def serve(connection: ssl.SSLSocket, over: threading.Event) -> None:
        connection.recv(1)
        over.wait(30)

    with serving(certificate, serve, idle_s=0.2) as (transport, url), whole_file() as file:
        body = FileBody(file, 64 * MiB, answer_s=0.2)
        with pytest.raises(httpx.WriteTimeout):
            transport.handle_request(put(url, body))


@contextmanager
def whole_file(content: bytes = b"", size: int = 64 * MiB) -> Iterator[int]:
    with tempfile.TemporaryFile() as file:
        file.write(content)
        file.flush()
        if not content:
            os.ftruncate(file.fileno(), size)
        yield file.fileno()


def test_a_connection_that_is_cut_brings_nothing_encrypted(certificate: TlsFiles) -> None:
    """Python forgets that a socket speaks TLS when another thread shuts it down."""
    sent = threading.Event()

    def serve(connection: ssl.SSLSocket, over: threading.Event) -> None:
        asked(connection)
        connection.sendall(HEAD % SIZE + BODY[: 64 * KiB])
        sent.set()
        over.wait(30)

    with serving(certificate, serve) as (transport, url):
        body = get(transport, url)
        assert sent.wait(30)
        begin = received(body, KiB)
        transport.close()  # as another thread does
        rest = b""
        with suppress(httpx.TransportError):
            while True:
                rest += received(body, KiB, piece=KiB)
        assert begin + rest == BODY[: len(begin + rest)]
        body.close()
