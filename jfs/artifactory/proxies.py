"""Which proxy leads to a server: the environment, read once by both planes. Pure otherwise.

``HTTPS_PROXY``, ``HTTP_PROXY``, ``ALL_PROXY`` and ``NO_PROXY``, each in lower case too, which is
preferred. There is no standard; what curl, Go, Python and requests understand in ``NO_PROXY`` is
understood, and what nobody does is passed over:

- ``*``: everything; ``example.com``, ``.example.com``, ``*.example.com``: the host and all below
  it; other wildcards (``10.*``) as in a shell;
- an address, an IPv6 one with or without brackets, or a network (``10.0.0.0/8``, ``fd07::/64``):
  for hosts that are written as addresses; names are not resolved for it;
- a port behind any host (``[::1]:8080``), a scheme before it (``http://example.com``): only that.

A proxy is reached by HTTP or by TLS (``https://``), whatever the server behind it speaks. SOCKS
would need a second implementation below the bulk transport: it is refused in one line.
"""

import base64
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from urllib.parse import unquote, urlsplit

from jfs.errors import ConfigError

_PORTS = {"http": 80, "https": 443}
_Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True)
class Proxy:
    """Where to connect to, and what to show there; its credentials are in no repr."""

    host: str
    port: int
    user: str | None = field(default=None, repr=False)
    password: str = field(default="", repr=False)
    scheme: str = "http"

    @property
    def authorization(self) -> bytes | None:
        """The value of ``Proxy-Authorization``, if it has credentials."""
        if self.user is None:
            return None
        return b"Basic " + base64.b64encode(f"{self.user}:{self.password}".encode())

    @property
    def url(self) -> str:
        """Its address, without credentials."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"


class Proxies:
    """What an environment says. Immutable: any thread."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._by_scheme = {}
        for scheme in _PORTS:
            name, value = _variable(environ, f"{scheme.upper()}_PROXY")
            if not value:
                name, value = _variable(environ, "ALL_PROXY")
            self._by_scheme[scheme] = (name, value)
        exceptions = _variable(environ, "NO_PROXY")[1]
        self._exceptions = [
            exception
            for entry in exceptions.replace(",", " ").split()
            if (exception := _Exception.parse(entry)) is not None
        ]

    def leading_to(self, scheme: str, host: str, port: int | None) -> Proxy | None:
        """Return the proxy for a server; None: go there directly.

        Raises:
            ConfigError: the proxy that is named for it cannot be used; one line.
        """
        name, value = self._by_scheme.get(scheme) or ("", "")
        if not value or self._is_exempt(scheme, host, port or _PORTS[scheme]):
            return None
        return _parse(name, value)

    def _is_exempt(self, scheme: str, host: str, port: int) -> bool:
        host = host.strip("[]").rstrip(".").lower()
        return any(each.covers(scheme, host, port) for each in self._exceptions)


@dataclass(frozen=True, slots=True)
class _Exception:
    """One entry of NO_PROXY."""

    pattern: str = ""
    network: _Network | None = None
    port: int | None = None
    scheme: str = ""

    @classmethod
    def parse(cls, entry: str) -> "_Exception | None":
        scheme, found, rest = entry.lower().rpartition("://")
        if not found or scheme == "all":
            scheme = ""
        rest, _, bits = rest.partition("/")
        host, port = _split_port(rest)
        try:
            # A network may be written by any address in it.
            network = ipaddress.ip_network(f"{host}/{bits}" if bits else host, strict=False)
            return cls(network=network, port=port, scheme=scheme)
        except ValueError:
            pass
        host = host.removeprefix("*.").strip(".") if host != "*" else host
        return cls(host, port=port, scheme=scheme) if host and not bits else None

    def covers(self, scheme: str, host: str, port: int) -> bool:
        if self.scheme not in ("", scheme) or self.port not in (None, port):
            return False
        address = _address(host)
        if self.network is not None:
            return address is not None and address in self.network
        if "*" in self.pattern:
            return fnmatchcase(host, self.pattern)
        return host == self.pattern or (address is None and host.endswith(f".{self.pattern}"))


def _split_port(text: str) -> tuple[str, int | None]:
    """Split ``host:port``; an IPv6 address has colons of its own, and brackets before a port."""
    if text.startswith("["):
        host, _, rest = text[1:].partition("]")
        port = rest.removeprefix(":")
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
    else:
        host, port = text, ""
    return host, int(port) if port.isascii() and port.isdigit() else None


def _address(host: str) -> _Address | None:
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def _variable(environ: Mapping[str, str], name: str) -> tuple[str, str]:
    """Return the variable that counts and its value: lower case wins, also when it is empty."""
    used = name.lower() if name.lower() in environ else name
    return used, environ.get(used, "").strip()


def _parse(name: str, value: str) -> Proxy:
    """Understand the URL of a proxy. Nothing of it is repeated: it may hold a password."""
    text = value if "://" in value else f"http://{value}"
    scheme = text.partition("://")[0].lower()
    try:
        parts = urlsplit(text)
        host, port, user = parts.hostname, parts.port, parts.username
    except ValueError:
        host = port = user = None
    if scheme not in _PORTS and scheme.isalnum():
        raise ConfigError(
            f"{name}: {scheme}:// proxies are not supported: "
            "give one that is reached by http:// or https://, or name the server in NO_PROXY"
        )
    if not host or any(letter.isspace() for letter in text):
        raise ConfigError(f"{name}: not the URL of a proxy: give one such as http://proxy:3128")
    return Proxy(
        host,
        port or _PORTS[scheme],
        None if user is None else unquote(user),
        unquote(parts.password or ""),
        scheme,
    )
