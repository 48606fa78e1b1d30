"""Run the server: its directory, its token, its thread and its socket."""

import asyncio
import fcntl
import ipaddress
import os
import secrets
import socket
import ssl
import threading
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from aiohttp import web

from jfs.errors import ConfigError
from jfs.server.answers import ApiError
from jfs.server.app import make_app
from jfs.server.auth import ADMIN
from jfs.server.context import ServerStats, Service
from jfs.server.faults import FaultPlan
from jfs.server.filestore import Blob, Filestore
from jfs.server.paths import ItemPath, PropertyMap
from jfs.server.repositories import configuration
from jfs.server.store import Deployment, Item, Store

_FLUSH_S = 1.0
_START_S = 30.0
_STOP_S = 5.0


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Certificate chain and key, PEM."""

    certificate: Path
    key: Path


class EmbeddedServer:
    """An Artifactory-compatible server on *directory*, in a thread with a loop of its own.

    Args:
        port: 0 takes any that is free.
        anonymous: let requests without credentials read and write.
        allow_remote: listen beyond loopback without TLS.
    Raises:
        ConfigError: the directory, the address or the TLS files cannot be used.
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
    ) -> None:
        if tls is None and not allow_remote and not _is_loopback(host):
            raise ConfigError(
                f"--host {host}: beyond this machine tokens would travel in the clear: "
                "give --tls-cert and --tls-key, or --allow-remote"
            )
        self._context = _tls_context(tls)
        self._lock = _lock(directory)
        self.faults = faults or FaultPlan()
        filestore = Filestore(directory)
        self._store = Store(directory, filestore)
        self.token = _token(directory)
        self._service = Service(
            self._store, filestore, self.faults, token=self.token, anonymous=anonymous
        )
        self._filestore = filestore
        try:
            self._socket = _listen(host, port)
        except ConfigError:
            self._store.close()
            os.close(self._lock)
            raise
        self._loop = asyncio.new_event_loop()
        self._stopping = asyncio.Event()
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run, name="jfs-serve", daemon=True)
        self._stopped = False
        shown = f"[{host}]" if ":" in host else host
        scheme = "https" if tls else "http"
        self.port: int = self._socket.getsockname()[1]
        self.url = f"{scheme}://{shown}:{self.port}/artifactory"

    @property
    def stats(self) -> ServerStats:
        """Requests and bytes as the server saw them."""
        return self._service.stats

    def start(self) -> None:
        """Return when requests are answered."""
        self._thread.start()
        if not self._started.wait(_START_S):
            raise ConfigError("the server did not start")

    def stop(self) -> None:
        """End within a few seconds; transfers under way are cut. Idempotent."""
        if self._stopped:
            return
        self._stopped = True
        self.faults.clear()
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stopping.set)
            self._thread.join()
        else:
            self._socket.close()
            self._loop.close()
        self._store.close()
        os.close(self._lock)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def create_repository(self, key: str) -> None:
        """Create a local generic repository; one that exists is left alone. Any thread."""
        if self._store.call(self._store.repository, key) is not None:
            return
        try:
            config = configuration(key, {})
        except ApiError as error:
            raise ConfigError(error.message) from None
        self._store.call(self._store.put_repository, config)

    def is_empty(self, key: str) -> bool:
        """Whether a repository has nothing in it. Any thread; blocking."""
        return not self._store.call(self._store.children, key, "")

    def deploy(
        self,
        repo: str,
        path: str,
        content: bytes | Path,
        properties: PropertyMap | None = None,
        *,
        sha256: str | None = None,
    ) -> Item:
        """Put a file in place without HTTP. Any thread; blocking.

        Args:
            path: decoded.
            sha256: declared for a *content* that is a file and is not read at all: for sparse
                files of many GiB. The other checksums are then made up from it.
        """
        at = ItemPath(repo, path, properties=properties or {})
        deployment = Deployment(at, ADMIN)
        if isinstance(content, Path) and sha256 is not None:
            blob = Blob(sha256, sha256[:40], sha256[:32], content.stat().st_size)
            self._filestore.link(content, sha256)
            return self._store.call(self._store.deploy, deployment, blob, None, True)
        upload = self._filestore.receive()
        try:
            if isinstance(content, Path):
                with content.open("rb", buffering=0) as file:
                    while piece := file.read(4 * 1024 * 1024):
                        upload.write(piece)
            else:
                upload.write(content)
            return self._store.call(self._store.deploy, deployment, upload.finish(), upload.path)
        finally:
            upload.close()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._serve())
        finally:
            self._loop.run_until_complete(self._loop.shutdown_default_executor())
            self._loop.close()

    async def _serve(self) -> None:
        runner = web.AppRunner(
            make_app(self._service),
            access_log=None,
            shutdown_timeout=_STOP_S,
            keepalive_timeout=75,
            read_bufsize=1024 * 1024,
        )
        await runner.setup()
        site = web.SockSite(runner, self._socket, ssl_context=self._context)
        await site.start()
        self._started.set()
        flusher = asyncio.create_task(self._flush())
        await self._stopping.wait()
        flusher.cancel()
        await site.stop()
        await self._service.flush_downloads()
        for connection in list(runner.server.connections if runner.server else []):
            connection.force_close()
        await runner.cleanup()

    async def _flush(self) -> None:
        while True:
            await asyncio.sleep(_FLUSH_S)
            await self._service.flush_downloads()


def _token(directory: Path) -> str:
    """Read the administrator's token; the first start makes it."""
    path = directory / "admin.token"
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        token = path.read_text(encoding="ascii").strip()
        if not token:
            raise ConfigError(f"{path}: is empty: remove it to have a new one made") from None
        return token
    with os.fdopen(handle, "w", encoding="ascii") as file:
        token = secrets.token_urlsafe(32)
        file.write(token + "\n")
        file.flush()
        os.fsync(file.fileno())
    return token


def _lock(directory: Path) -> int:
    """Take the directory for this process. Raises ConfigError."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        handle = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigError(f"{directory}: cannot be used: {error.strerror}") from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise ConfigError(f"{directory}: another jfs serve uses it") from None
    return handle


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=1024)
    except OSError as error:
        raise ConfigError(f"{host}:{port}: cannot listen there: {error.strerror}") from None


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
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"--tls-cert {tls.certificate}, --tls-key {tls.key}: {error.strerror or error}"
        ) from None
    return context
