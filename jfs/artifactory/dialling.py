"""Connections of the bulk transport: to a server, to a proxy, through a proxy. Blocking.

Names are asked for anew for each connection: a server may have moved. All addresses of a name are
tried as RFC 8305 says ("happy eyeballs"): one that swallows packets costs a quarter of a second.
"""

import contextlib
import errno
import ipaddress
import os
import select
import socket
import ssl
import threading
import time
from collections.abc import Sequence
from itertools import chain, zip_longest
from typing import Any

import h11
import httpx
import trio

from jfs import descriptors
from jfs.artifactory.proxies import Proxy
from jfs.errors import is_of_descriptors
from jfs.extents import KiB

# Before the next address is tried while the one before has not answered (RFC 8305 section 5).
_HEAD_START_S = 0.25
_RELAYED = 64 * KiB
# What says nothing about a server: this machine has no way to addresses of that family.
_NO_WAY = (errno.ENETUNREACH, errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)

Address = tuple[socket.AddressFamily, Any]


def connect(host: str, port: int, timeout_s: float) -> socket.socket:
    """Return a connection; its own timeout is the same.

    Raises:
        OSError: the most telling of what went wrong; TimeoutError, or a resolver's ``gaierror``.
    """
    deadline = time.monotonic() + timeout_s
    sock = descriptors.opening(
        lambda: first_of(_addresses(host, port, timeout_s), deadline), connects=True
    )
    sock.settimeout(timeout_s)
    return sock


def connect_to_proxy(
    proxy: Proxy, context: ssl.SSLContext | None, timeout_s: float
) -> socket.socket:
    """Return a connection to a proxy.

    Args:
        context: for TLS to the proxy; None: it is plain.
    Raises:
        httpx.ProxyError: it cannot be reached.
    """
    try:
        sock = connect(proxy.host, proxy.port, timeout_s)
        if context is not None:
            sock = wrapped(sock, context, proxy.host)
    except OSError as error:
        if is_of_descriptors(error):
            raise
        raise httpx.ProxyError(f"{proxy.url} cannot be reached") from error
    return sock


def wrapped(sock: socket.socket, context: ssl.SSLContext, host: str) -> ssl.SSLSocket:
    """Speak TLS on a connection; it is closed if that fails. Raises OSError."""
    try:
        if isinstance(sock, ssl.SSLSocket):  # which cannot be wrapped again
            sock = _relay(sock)
        return context.wrap_socket(sock, server_hostname=host)
    except BaseException:
        sock.close()
        raise


def tunnel(sock: socket.socket, host: str, port: int, proxy: Proxy, timeout_s: float) -> None:
    """Ask a proxy for a connection to a server (RFC 9110 section 9.3.6).

    Raises:
        httpx.ProxyError: what it answered instead.
        OSError: no answer, or none in time.
    """
    protocol = h11.Connection(h11.CLIENT)
    # A proxy that sends a byte now and then must not keep us for ever.
    deadline = time.monotonic() + timeout_s
    target = (f"[{host}]:{port}" if ":" in host else f"{host}:{port}").encode()
    headers = [(b"Host", target)]
    if authorization := proxy.authorization:
        headers.append((b"Proxy-Authorization", authorization))
    sock.sendall(
        protocol.send(h11.Request(method="CONNECT", target=target, headers=headers)) or b""
    )
    while True:
        event = protocol.next_event()
        if event is h11.NEED_DATA:
            if time.monotonic() > deadline:
                raise TimeoutError
            # Byte by byte: what follows the answer belongs to TLS.
            protocol.receive_data(sock.recv(1))
        elif isinstance(event, h11.Response):
            if not 200 <= event.status_code < 300:
                raise httpx.ProxyError(f"{event.status_code} {event.reason.decode('latin-1')}")
            return
        elif not isinstance(event, h11.InformationalResponse):
            raise httpx.ProxyError("closed the connection")


def first_of(addresses: Sequence[Address], deadline: float) -> socket.socket:
    """Return a connection to the first of several addresses that answers.

    Args:
        deadline: by ``time.monotonic``.
    Raises:
        OSError: none did.
    """
    waiting = list(reversed(_interleaved(addresses)))
    trying: dict[int, socket.socket] = {}
    failures: list[OSError] = []
    poll = select.poll()
    next_at = time.monotonic()
    try:
        while waiting or trying:
            now = time.monotonic()
            if now >= deadline:
                raise TimeoutError("no connection in time")
            if waiting and (now >= next_at or not trying):
                try:
                    sock = _begun(waiting.pop())
                except OSError as error:
                    if is_of_descriptors(error):
                        raise
                    failures.append(error)
                    continue
                trying[sock.fileno()] = sock
                poll.register(sock, select.POLLOUT)
                next_at = now + _HEAD_START_S
            until = min(deadline, next_at) if waiting else deadline
            for number, _ in poll.poll(max(0.0, until - now) * 1000):
                poll.unregister(number)
                failure = trying[number].getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if not failure:
                    return trying.pop(number)
                trying.pop(number).close()
                failures.append(OSError(failure, os.strerror(failure)))
                next_at = now
    finally:
        for sock in trying.values():
            sock.close()
    raise next(
        (each for each in failures if each.errno not in _NO_WAY),
        failures[0] if failures else OSError("no address"),
    )


def _begun(address: Address) -> socket.socket:
    """Begin to connect. Raises OSError."""
    family, place = address
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        failure = sock.connect_ex(place)
        if failure not in (0, errno.EINPROGRESS):
            raise OSError(failure, os.strerror(failure))
    except BaseException:
        sock.close()
        raise
    return sock


def _interleaved(addresses: Sequence[Address]) -> list[Address]:
    """Let families take turns, beginning with the resolver's favourite."""
    families = list(dict.fromkeys(family for family, _ in addresses))
    by_family = [[each for each in addresses if each[0] == family] for family in families]
    return [each for each in chain.from_iterable(zip_longest(*by_family)) if each is not None]


def _addresses(host: str, port: int, timeout_s: float) -> list[Address]:
    """Ask for the addresses of a host. Raises gaierror, TimeoutError."""
    with contextlib.suppress(ValueError):
        address = ipaddress.ip_address(host)
        return [(socket.AF_INET if address.version == 4 else socket.AF_INET6, (host, port))]
    found: list[Address] = []
    failures: list[BaseException] = []
    done = threading.Event()

    def ask() -> None:
        try:
            answers = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            found.extend((family, place) for family, _, _, _, place in answers)
        except (OSError, UnicodeError) as error:
            failures.append(error)
        done.set()

    # The resolver has timeouts of its own, for each name server and search domain: a thread that
    # was given up ends soon enough.
    trio.lowlevel.start_thread_soon(ask, lambda _: None)
    if not done.wait(timeout_s):
        raise socket.gaierror(socket.EAI_AGAIN, "no name server answers in time")
    if failures:
        failure = failures[0]
        raise failure if isinstance(failure, OSError) else OSError(str(failure))
    return found


def _relay(outer: ssl.SSLSocket) -> socket.socket:
    """Return a plain socket whose other end is relayed through *outer*, by a thread.

    TLS to a server inside of TLS to a proxy: Python cannot wrap an SSLSocket. The thread ends with
    either connection.
    """
    near, far = socket.socketpair()
    near.settimeout(outer.gettimeout())
    name = "relay through a proxy"
    threading.Thread(target=_carry, args=(far, outer), name=name, daemon=True).start()
    return near


def _carry(far: socket.socket, outer: ssl.SSLSocket) -> None:
    up = down = b""
    with far, outer, contextlib.suppress(OSError):
        far.setblocking(False)
        outer.setblocking(False)
        while True:
            poll = select.poll()
            poll.register(far, (0 if up else select.POLLIN) | (select.POLLOUT if down else 0))
            if wanted := (0 if down else select.POLLIN) | (select.POLLOUT if up else 0):
                poll.register(outer, wanted)  # else a proxy that hangs up would wake us for ever
            if down or not outer.pending():
                told = dict(poll.poll())
                if up and told.get(far.fileno(), 0) & select.POLLHUP:
                    return  # nobody wants an answer to what the proxy does not take
            with contextlib.suppress(ssl.SSLWantReadError, ssl.SSLWantWriteError):
                if not down:
                    down = outer.recv(_RELAYED)
                    if not down:
                        return
            with contextlib.suppress(BlockingIOError):
                if down:
                    down = down[far.send(down) :]
            with contextlib.suppress(BlockingIOError):
                if not up:
                    up = far.recv(_RELAYED)
                    if not up:
                        return
            with contextlib.suppress(ssl.SSLWantReadError, ssl.SSLWantWriteError):
                if up:
                    up = up[outer.send(up) :]
