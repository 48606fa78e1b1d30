"""Bodies through TLS: what is received, when it ends, and that nobody waits for ever."""

import os
import socket
import ssl
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from itertools import cycle

import httpx
import pytest

from jfs import native
from jfs.artifactory.access import Access
from jfs.artifactory.bodies import BodyStream
from jfs.artifactory.encrypted import TlsSocket
from jfs.artifactory.filebody import FileBody
from jfs.artifactory.transport import BulkTransport
from jfs.cache.blockmap import checksums
from jfs.config import ServerSettings
from jfs.extents import KiB, MiB
from jfs.native import receiving
from jfs.server import TlsFiles
from tests.component.proxy import forward_proxy

SIZE = 3 * MiB + 4321
BODY = os.urandom(SIZE)
HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n"

RECORDS = 16 * KiB
pytestmark = pytest.mark.usefixtures("road")

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


def begun(transport: BulkTransport, url: str, size: int) -> BodyStream:
    """Ask until so much of a body has come, of a server that is slower than the patience now."""
    while True:
        with suppress(httpx.ReadTimeout):
            body = get(transport, url)
            try:
                assert received(body, size) == BODY[:size]
            except httpx.ReadTimeout:
                body.close()
                raise
            return body


def put(transport: BulkTransport, url: str, file: int, size: int, answer_s: float = 30) -> int:
    """Upload a file; return the status."""
    headers = {"Host": "localhost", "Content-Length": str(size)}
    body = FileBody(file, size, answer_s=answer_s)
    response = transport.handle_request(httpx.Request("PUT", url, headers=headers, stream=body))
    response.close()
    return response.status_code


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
@pytest.mark.parametrize("piece", [10_000, 16 * KiB, MiB, 4 * MiB])
def test_a_body_is_received_as_it_was_sent(
    certificate: TlsFiles, version: ssl.TLSVersion, piece: int
) -> None:
    with serving(certificate, whole, version=version) as (transport, url):
        for _ in range(2):  # the second time by the same connection
            body = get(transport, url)
            assert received(body, piece=piece) == BODY
            body.close()


@pytest.mark.parametrize("want", [200_000, SIZE])
def test_a_run_is_received_and_summed(certificate: TlsFiles, road: str, want: int) -> None:
    """Up to a byte that somebody waits for, and on from there."""
    block = 32 * KiB
    place = memoryview(bytearray(SIZE))
    with serving(certificate, whole) as (transport, url):
        body = get(transport, url)
        filled = body.readinto(place[: 100 * KiB])
        filled += body.readinto(place[filled : 100 * KiB])
        assert body.takes_runs == (road == "native")
        if body.takes_runs:
            arrival = receiving.arrival(filled)
            run = receiving.run(place, 0, block, arrival)
            assert run is not None
            assert arrival is not None
            arrival.want(want)
            filled += body.receive(run, filled, SIZE, 64 * KiB)
            assert want <= filled == arrival.filled < want + 64 * KiB
            while filled < SIZE:
                filled += body.receive(run, filled, SIZE, 64 * KiB)
            assert place == BODY
            assert run.sums() == checksums(place, block, 0)
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
        body = begun(transport, f"{url}/body", 100_000)
        with pytest.raises(httpx.ReadTimeout):
            received(body)
        body.close()


def test_a_server_that_takes_nothing_is_given_up(certificate: TlsFiles) -> None:
    def serve(connection: ssl.SSLSocket, over: threading.Event) -> None:
        connection.recv(1)
        over.wait(30)

    with (
        serving(certificate, serve, idle_s=0.2) as (transport, url),
        file_of() as file,
        pytest.raises(httpx.WriteTimeout),
    ):
        put(transport, url, file, 64 * MiB, answer_s=0.2)


@contextmanager
def file_of(content: bytes = b"", size: int = 64 * MiB) -> Iterator[int]:
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


def test_the_native_part_moves_the_bytes(certificate: TlsFiles) -> None:
    access = Access(ServerSettings("https://localhost", ca_file=certificate.certificate), {})
    with serving(certificate, whole) as (_, url):
        address = ("127.0.0.1", httpx.URL(url).port)
        plain = socket.create_connection(address, 30)
        with access.trust.context(ours=True).wrap_socket(
            plain, server_hostname="localhost"
        ) as sock:
            assert isinstance(sock, TlsSocket)
            sock.hasten()
            assert sock.is_hasty == (native.library() is not None)


@pytest.mark.parametrize("is_cut", [False, True], ids=["close_notify", "ragged"])
def test_a_body_that_ends_early_is_no_body(certificate: TlsFiles, is_cut: bool) -> None:
    def serve(connection: ssl.SSLSocket, over: threading.Event) -> None:
        asked(connection)
        connection.sendall(HEAD % SIZE + BODY[:100_000])
        if not is_cut:
            with suppress(ssl.SSLError, OSError):
                connection.unwrap()

    with serving(certificate, serve) as (transport, url):
        body = get(transport, url)
        assert received(body, 100_000) == BODY[:100_000]
        with pytest.raises(httpx.RemoteProtocolError, match="too early"):
            received(body)
        body.close()


def test_a_body_of_unknown_length_ends_with_the_connection(certificate: TlsFiles) -> None:
    def serve(connection: ssl.SSLSocket, over: threading.Event) -> None:
        asked(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n" + BODY)

    with serving(certificate, serve) as (transport, url):
        body = get(transport, url)
        assert received(body, SIZE + 1) == BODY
        body.close()


def test_a_body_that_trickles_is_given_up(certificate: TlsFiles) -> None:
    def serve(connection: ssl.SSLSocket, over: threading.Event) -> None:
        asked(connection)
        connection.sendall(HEAD % SIZE + BODY[:KiB])
        while not over.wait(0.02):  # its weather, not our waiting
            connection.sendall(b"drop")

    with serving(certificate, serve, idle_s=0.1) as (transport, url):
        body = begun(transport, url, KiB)
        with pytest.raises(httpx.ReadTimeout):
            received(body)
        body.close()


def test_who_receives_is_woken_when_it_is_cut(certificate: TlsFiles) -> None:
    def serve(connection: ssl.SSLSocket, over: threading.Event) -> None:
        asked(connection)
        connection.sendall(HEAD % SIZE + BODY[:KiB])
        over.wait(30)

    with serving(certificate, serve) as (transport, url), ThreadPoolExecutor(1) as pool:
        body = get(transport, url)
        assert received(body, KiB) == BODY[:KiB]
        receiving = pool.submit(received, body)
        transport.close()
        assert isinstance(receiving.exception(30), httpx.TransportError)
        body.close()


def test_what_comes_after_an_answer_is_not_the_next(certificate: TlsFiles) -> None:
    """A connection that holds more than its answer is not used again."""
    sent = threading.Event()

    def serve(connection: ssl.SSLSocket, over: threading.Event) -> None:
        while asked(connection):
            connection.sendall(HEAD % len(BODY[:KiB]) + BODY[:KiB])
            connection.sendall(HEAD % 3 + b"bad")
            sent.set()

    with serving(certificate, serve) as (transport, url):
        for _ in range(3):
            body = get(transport, url)
            assert received(body) == BODY[:KiB]
            assert sent.wait(30)
            sent.clear()
            body.close()


def test_a_connection_is_used_again(certificate: TlsFiles) -> None:
    made = []

    def serve(connection: ssl.SSLSocket, over: threading.Event) -> None:
        made.append(connection)
        whole(connection, over)

    with serving(certificate, serve) as (transport, url):
        for _ in range(5):  # the tickets of TLS 1.3 are no surplus
            body = get(transport, url)
            assert received(body) == BODY
            body.close()
    assert len(made) == 1


@contextmanager
def by_records(certificate: TlsFiles, cut: Callable[[bytes], list[bytes]]) -> Iterator[str]:
    """A server that sends its encrypted answer in the pieces that *cut* makes of it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate.certificate, certificate.key)

    def serve(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        came, goes = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = context.wrap_bio(came, goes, server_side=True)
        with connection:
            request = b""
            while not request.endswith(b"\r\n\r\n"):
                try:
                    request += tls.read()
                except ssl.SSLWantReadError:
                    connection.sendall(goes.read())
                    came.write(connection.recv(MiB))
            connection.sendall(goes.read())
            tls.write(HEAD % SIZE)
            for at in range(0, SIZE, RECORDS):
                tls.write(BODY[at : at + RECORDS])
            with suppress(OSError):
                for piece in cut(goes.read()):
                    connection.sendall(piece)
                connection.recv(1)

    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as pool:
        serving = pool.submit(serve, listener)
        yield f"https://127.0.0.1:{listener.getsockname()[1]}"
        serving.result(30)


def trusting(certificate: TlsFiles, url: str, **environ: str) -> BulkTransport:
    access = Access(ServerSettings(url, ca_file=certificate.certificate), environ)
    return BulkTransport(access, connect_timeout_s=30, idle_timeout_s=30)


def test_records_may_come_in_any_pieces(certificate: TlsFiles) -> None:
    def cuts(data: bytes) -> list[bytes]:
        pieces, sizes = [], cycle([1, 4, 5, 6, 1000, 16 * KiB, 70_001, 300_000])
        while data:
            size = next(sizes)
            pieces.append(data[:size])
            data = data[size:]
        return pieces

    with by_records(certificate, cuts) as url:
        transport = trusting(certificate, url)
        body = get(transport, url)
        assert received(body) == BODY
        body.close()
        transport.close()


def test_a_damaged_record_ends_the_body(certificate: TlsFiles) -> None:
    """What came before it is right."""

    def damage(data: bytes) -> list[bytes]:
        at = 2 * MiB + RECORDS // 2
        return [data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]]

    with by_records(certificate, damage) as url:
        transport = trusting(certificate, url)
        body = get(transport, url)
        right = 2 * MiB - RECORDS
        assert received(body, right, piece=RECORDS) == BODY[:right]
        with pytest.raises((httpx.ReadError, httpx.RemoteProtocolError)):
            received(body)
        body.close()
        transport.close()


@pytest.mark.parametrize(("version", "command"), [("-tls1_3", b"K"), ("-tls1_2", b"r")])
def test_keys_may_change_in_a_body(certificate: TlsFiles, version: str, command: bytes) -> None:
    """A KeyUpdate that wants an answer, and a renegotiation: by the server that has them."""
    pieces = [b"%d" % number + BODY[number:RECORDS] for number in range(1, 5)]
    pieces = [piece.ljust(RECORDS, b".") for piece in pieces]
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nX-Rest: " % SIZE
    server = subprocess.Popen(
        [
            *("openssl", "s_server", "-accept", "127.0.0.1:0", version),
            *("-cert", str(certificate.certificate), "-key", str(certificate.key)),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,
    )
    assert server.stdin is not None
    assert server.stdout is not None

    def say(*chunks: bytes) -> None:
        """It reads that much at a time, and takes what begins with its command for one."""
        assert server.stdin is not None
        for chunk in chunks:
            assert server.stdin.write(chunk.ljust(RECORDS, b".")) == RECORDS

    with server, ExitStack() as stack:
        stack.callback(server.kill)
        while not (line := server.stdout.readline()).startswith(b"ACCEPT"):
            assert line
        url = f"https://localhost:{int(line.rpartition(b':')[2])}"
        transport = trusting(certificate, url)
        stack.callback(transport.close)
        say(head.ljust(RECORDS - 4, b".") + b"\r\n\r\n", pieces[0])
        body = get(transport, url)
        stack.callback(body.close)
        assert received(body, RECORDS) == pieces[0]
        say(command + b"\n", pieces[1])
        assert received(body, RECORDS) == pieces[1]
        say(command + b"\n", *pieces[2:])
        assert received(body, 2 * RECORDS) == pieces[2] + pieces[3]
        say(b"Q")
        with pytest.raises(httpx.TransportError):  # it answers what is left of the handshake
            received(body)
        assert server.stdout.read().count(b"SSL_do_handshake -> 1") == 2


def test_tls_inside_of_tls(certificate: TlsFiles) -> None:
    """By a proxy that is itself reached by TLS."""
    with (
        serving(certificate, whole) as (_, url),
        forward_proxy({"localhost": httpx.URL(url).port or 0}, tls=certificate) as proxy,
    ):
        url = url.replace("127.0.0.1", "localhost")
        transport = trusting(certificate, url, ALL_PROXY=f"https://127.0.0.1:{proxy.port}")
        for _ in range(2):
            body = get(transport, url)
            assert received(body) == BODY
            body.close()
        transport.close()


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_an_upload_is_sent_as_it_is(certificate: TlsFiles, version: ssl.TLSVersion) -> None:
    came = []

    def serve(connection: ssl.SSLSocket, over: threading.Event) -> None:
        while asked(connection):
            content = bytearray()
            while len(content) < SIZE:
                content += connection.recv(MiB)
            came.append(content)
            connection.sendall(HEAD % 0)

    with serving(certificate, serve, version=version) as (transport, url), file_of(BODY) as file:
        for _ in range(2):
            assert put(transport, url, file, SIZE) == 200
    assert came == [BODY, BODY]


def test_a_refused_upload_is_not_sent_to_its_end(certificate: TlsFiles) -> None:
    came = 0

    def serve(connection: ssl.SSLSocket, over: threading.Event) -> None:
        nonlocal came
        asked(connection)
        connection.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
        while data := connection.recv(MiB):
            came += len(data)

    size = 24 * MiB
    with serving(certificate, serve) as (transport, url), file_of(size=size) as file:
        assert put(transport, url, file, size) == 403
    assert came < size or native.library() is None  # Python cannot look for an answer
