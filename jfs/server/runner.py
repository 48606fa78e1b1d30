"""The server as a value: started and stopped by any thread, served by a thread of its own."""

import asyncio
import contextlib
import ipaddress
import logging
import socket
import ssl
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from aiohttp import web

from jfs.errors import ConfigError
from jfs.extents import KiB, MiB
from jfs.model import Checksums, Properties, RepoPath
from jfs.server.http.access import Access, token_of
from jfs.server.http.faults import FaultPlan
from jfs.server.http.signed import SignedStorage
from jfs.server.http.stats import ServerStats
from jfs.server.routes.upstreams import check_upstream
from jfs.server.service import CONTEXT, Service
from jfs.server.store import placement
from jfs.server.store.catalogue import Item
from jfs.server.store.placement import Deployment
from jfs.server.store.rights import ADMIN, parse_users
from jfs.server.store.store import Store
from jfs.server.wire.answers import ApiError
from jfs.server.wire.paths import check_path, check_properties

log = logging.getLogger(__name__)

_START_S = 30.0
_DRAIN_S = 1.0  # for requests in flight when the server stops
_THREADS = 8
_HASHERS = 6  # two uploads at full speed: three hashes each
_BACKLOG = 1024
_KEEP_ALIVE_S = 75.0
_READ_BUFFER = 1 * MiB
_MAX_HEAD = 64 * KiB  # paths and matrix parameters may be long: 1 KiB of path, 4000 per value
_SEED_BYTES = 4 * MiB
# Turns of the loop from the end of a connection to its transport being closed: read, close, lost.
_TO_CLOSE = 5


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Certificate chain and key, PEM.

    Attributes:
        clients: who signs the certificates of clients; others are not let in. None: all are.
    """

    certificate: Path
    key: Path
    clients: Path | None = None


class EmbeddedServer:
    """An Artifactory-compatible server on a directory; a context manager.

    Args:
        directory: made if missing; holds content, database and ``admin.token``.
        port: 0 takes a free one, which is kept for later starts.
        anonymous: let requests without credentials read and write.
        faults: failures on demand; none by default.
        tls: makes it https.
        allow_remote: listen beyond loopback, and without TLS.
        durable: what was answered survives a loss of power, not only a kill.
        users: rights by name, beside the administrator: ``{"ann": "rw", "bob": ["r", "wnd@b-*"]}``,
            each ``RIGHTS[@REPO-GLOB]`` as ``store.rights`` has it. Each has a ``NAME.token``.
        quota_bytes: how much content may lie on disk; more is answered 413.
    Raises:
        ConfigError: from here and ``start``: directory, token, user, address or TLS cannot be used.
    """

    def __init__(
        self,
        directory: Path,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        anonymous: bool = False,
        faults: FaultPlan | None = None,
        tls: TlsFiles | None = None,
        allow_remote: bool = False,
        durable: bool = False,
        users: Mapping[str, str | Sequence[str]] | None = None,
        quota_bytes: int | None = None,
    ) -> None:
        if tls is None and not allow_remote and not _is_loopback(host):
            raise ConfigError(
                f"--host {host}: beyond this machine tokens would travel in the clear: "
                "give --tls-cert and --tls-key, or --allow-remote"
            )
        self.faults = FaultPlan() if faults is None else faults
        self.stats = ServerStats()
        self._directory = directory
        self._host = host
        self._port = port
        self._anonymous = anonymous
        self._tls = _tls_context(tls)
        self._durable = durable
        self._quota_bytes = quota_bytes
        self._users = [ADMIN, *parse_users(users or {})]
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Event | None = None
        self._store: Store | None = None
        self._hashers: ThreadPoolExecutor | None = None
        self._open()
        try:
            self._tokens = {user.name: token_of(directory, user.name) for user in self._users}
        except BaseException:
            self.stop()
            raise

    @property
    def token(self) -> str:
        """The administrator's."""
        return self._tokens[ADMIN.name]

    def token_of(self, name: str) -> str:
        """Return the token of a user. Raises KeyError."""
        return self._tokens[name]

    @property
    def url(self) -> str:
        """The service's URL, without a slash at the end; the port is known once started."""
        return f"{self._origin(self._port)}{CONTEXT}"

    @property
    def port(self) -> int:
        return self._port

    @property
    def running(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def start(self) -> None:
        """Listen; return when requests are answered. Raises ConfigError."""
        if self._thread is not None:
            raise RuntimeError("the server runs already")
        store = self._store or self._open()
        try:
            listener = _listen(self._host, self._port)
        except ConfigError:
            self.stop()
            raise
        self._port = listener.getsockname()[1]
        ready: Future[None] = Future()
        self._thread = threading.Thread(
            target=self._run, args=(store, listener, ready), name="jfs-server", daemon=True
        )
        self._thread.start()
        ready.result(_START_S)

    def stop(self) -> None:
        """End connections, after a moment for what is in flight; then close the store.

        Harmless when stopped already; ``start`` opens the same directory and port again.
        """
        thread, self._thread = self._thread, None
        if thread is not None:
            loop, stopping = self._loop, self._stopping
            if loop is not None and stopping is not None:
                with contextlib.suppress(RuntimeError):  # the loop has ended by itself
                    loop.call_soon_threadsafe(stopping.set)
            thread.join()
        store, self._store = self._store, None
        if store is not None:
            store.close()
        hashers, self._hashers = self._hashers, None
        if hashers is not None:
            hashers.shutdown()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def create_repository(self, key: str, *, upstream: str | None = None) -> None:
        """Make a local repository, or a remote one; harmless if it exists. Any thread.

        Raises:
            ConfigError: not a key, or not the URL of an upstream.
        """
        store = self._opened()
        if key in store.repositories.all():
            return
        try:
            remote = {"rclass": "remote", "url": check_upstream(upstream)} if upstream else None
            store.repositories.put(key, remote)
        except ApiError as error:
            raise ConfigError(error.message) from None

    def is_empty(self, key: str) -> bool:
        """Whether a repository holds nothing. Any thread."""
        return not self._opened().children(RepoPath(key))

    def deploy(
        self,
        repo: str,
        path: str,
        content: bytes | Path,
        properties: Properties | dict[str, list[str]] | None = None,
        *,
        sha256: str | None = None,
        checksums: Checksums | None = None,
    ) -> Item:
        """Make an artifact without HTTP. Any thread; blocks.

        Args:
            path: decoded.
            sha256, checksums: of a *content* that is a file, believed and not computed: for huge
                sparse files. The file may be hard-linked: do not change it in place. What is not
                given stays unknown.
        Raises:
            ApiError: what the same request would be answered.
        """
        store = self._opened()
        target = RepoPath(repo, check_path(path))
        stated = {key: tuple(values) for key, values in (properties or {}).items()}
        check_properties(stated)
        known = checksums or Checksums(sha256)
        if isinstance(content, Path) and known.sha256 is not None:
            return placement.adopt(store, target, content, known, stated)
        incoming = store.receive()
        try:
            if isinstance(content, Path):
                with content.open("rb", buffering=0) as file:
                    while data := file.read(_SEED_BYTES):
                        incoming.write(data)
            else:
                incoming.write(content)
            return placement.received(store, target, incoming, Deployment(ADMIN, stated))
        finally:
            incoming.discard()

    def delete(self, repo: str, path: str) -> None:
        """Remove an item and what is below it, without HTTP. Raises ApiError 404."""
        self._opened().delete(RepoPath(repo, check_path(path)))

    def set_properties(
        self, repo: str, path: str, properties: Properties | dict[str, list[str]]
    ) -> None:
        """Set keys of one item, without HTTP; a key without values is removed. Raises ApiError."""
        stated = {key: tuple(values) or None for key, values in properties.items()}
        check_properties({key: values or () for key, values in stated.items()})
        target = RepoPath(repo, check_path(path))
        self._opened().change_properties(target, stated, recursive=False)

    def limit_queries(self, rows: int | None) -> None:
        """Trim the result of every query to *rows*, until the server is stopped. Any thread.

        Only the ``range`` of an answer says so. With properties one item is several rows.
        """
        self._opened().query_limit = rows

    def _open(self) -> Store:
        self._hashers = ThreadPoolExecutor(_HASHERS, thread_name_prefix="jfs-server-hash")
        try:
            self._store = Store(
                self._directory, self._hashers, durable=self._durable, quota=self._quota_bytes
            )
        except BaseException:
            self._hashers.shutdown()
            raise
        return self._store

    def _opened(self) -> Store:
        if self._store is None:
            raise RuntimeError("the server is stopped")
        return self._store

    def _origin(self, port: int) -> str:
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"{'https' if self._tls else 'http'}://{host}:{port}"

    def _run(self, store: Store, listener: socket.socket, ready: "Future[None]") -> None:
        try:
            asyncio.run(self._serve(store, listener, ready))
        except BaseException as error:
            if ready.done():
                log.exception("the server ended")
            else:
                ready.set_exception(error)
        finally:
            listener.close()

    async def _serve(self, store: Store, listener: socket.socket, ready: "Future[None]") -> None:
        self._loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        servers: list[web.Server] = []
        left: list[socket.socket] = []
        with ThreadPoolExecutor(_THREADS, thread_name_prefix="jfs-server") as executor:
            async with contextlib.AsyncExitStack() as stack:

                async def listen(server: web.Server, on: socket.socket) -> None:
                    servers.append(server)
                    runner = web.ServerRunner(server, shutdown_timeout=_DRAIN_S)
                    await runner.setup()
                    stack.push_async_callback(runner.cleanup)
                    await web.SockSite(runner, on, ssl_context=self._tls, backlog=_BACKLOG).start()

                async def listen_signed(server: web.Server) -> str:
                    on = _listen(self._host, 0)
                    stack.callback(on.close)
                    await listen(server, on)
                    return self._origin(on.getsockname()[1])

                signed = SignedStorage(store, executor, self.stats, self.faults, listen_signed)
                tokens = [(user, self._tokens[user.name]) for user in self._users]
                access = Access(tokens, anonymous=self._anonymous)
                service = Service(store, executor, access, self.faults, self.stats, signed)
                stack.push_async_callback(service.aclose)
                server = web.Server(
                    service.handle,
                    access_log=None,
                    auto_decompress=False,  # a body is stored as it is sent
                    keepalive_timeout=_KEEP_ALIVE_S,
                    lingering_time=0,  # bodies are read to their end before the answer
                    read_bufsize=_READ_BUFFER,
                    max_line_size=_MAX_HEAD,
                    max_field_size=_MAX_HEAD,
                )
                await listen(server, listener)
                ready.set_result(None)
                await self._stopping.wait()
                service.end()
                self.faults.release_all()
                handlers = [each for server in servers for each in server.connections]
                transports = [each.transport for each in handlers if each.transport is not None]
                sockets = [each.get_extra_info("socket") for each in transports]
                left += [each for each in sockets if each is not None]  # None: closed by now
        if self._tls is not None:
            # TLS waits for clients to say that they close too, and the loop ends before that.
            for sock in left:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
            for _ in range(_TO_CLOSE if left else 0):
                await asyncio.sleep(0)


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {host}:{port}: {error.strerror}: give another --host or --port"
        ) from None


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _tls_context(tls: TlsFiles | None) -> ssl.SSLContext | None:
    if tls is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(tls.certificate, tls.key)
        if tls.clients is not None:
            context.load_verify_locations(tls.clients)
            context.verify_mode = ssl.CERT_REQUIRED
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"--tls-cert {tls.certificate}, --tls-key {tls.key}: {error.strerror or error}"
        ) from None
    return context
