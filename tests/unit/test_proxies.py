"""Which proxy the environment names for a server, and which servers it exempts."""

import pytest

from jfs.artifactory.proxies import Proxies, Proxy
from jfs.errors import ConfigError

PROXY = {"HTTP_PROXY": "http://proxy:3128", "HTTPS_PROXY": "http://secure:3128"}


def exempt(no_proxy: str, scheme: str, host: str, port: int | None = None) -> bool:
    return Proxies({**PROXY, "NO_PROXY": no_proxy}).leading_to(scheme, host, port) is None


@pytest.mark.parametrize(
    ("no_proxy", "host"),
    [
        ("*", "anything.example"),
        ("localhost,127.0.0.1", "127.0.0.1"),
        ("localhost, 127.0.0.1 ,::1", "::1"),
        ("a b\tlocalhost", "LOCALHOST"),
        ("127.0.0.0/8", "127.1.2.3"),
        ("127.0.0.1/8", "127.1.2.3"),
        ("10.0.0.0/255.0.0.0", "10.9.8.7"),
        ("10.0.0.0/8", "::ffff:10.1.2.3"),
        ("fd07:b51a:cc66:f0::/64", "fd07:b51a:cc66:f0::1"),
        ("[fd07:b51a:cc66:f0::]/64", "[fd07:b51a:cc66:f0::1]"),
        ("fe80::/10", "fe80::1%eth0"),
        ("[::1]", "::1"),
        ("::1", "0:0:0:0:0:0:0:1"),
        ("[::1]:443", "::1"),
        ("[::1", "::1"),
        ("example.com", "example.com"),
        ("example.com", "EXAMPLE.com."),
        ("example.com", "art.example.com"),
        (".example.com", "art.example.com"),
        (".example.com", "example.com"),
        ("*.example.com", "art.example.com"),
        ("example.com:443", "art.example.com"),
        ("https://example.com", "example.com"),
        ("all://example.com", "example.com"),
        ("10.*", "10.1.2.3"),
        ("junk/99,:::,///,[,],%,example.com", "example.com"),
    ],
)
def test_what_needs_no_proxy(no_proxy: str, host: str) -> None:
    assert exempt(no_proxy, "https", host)


@pytest.mark.parametrize(
    ("no_proxy", "host"),
    [
        ("", "example.com"),
        ("example.com", "badexample.com"),
        ("example.com", "example.com.evil"),
        (".example.com", "badexample.com"),
        ("example.com:80", "example.com"),
        ("http://example.com", "example.com"),
        ("10.0.0.0/8", "11.0.0.1"),
        ("10.0.0.0/8", "10.example.com"),
        ("0.0.1", "10.0.0.1"),
        ("fd07::/64", "fd08::1"),
        ("[::1]:80", "::1"),
        ("junk/99,:::,///,[,],%", "example.com"),
    ],
)
def test_what_needs_one_all_the_same(no_proxy: str, host: str) -> None:
    assert not exempt(no_proxy, "https", host)


def test_the_port_may_be_said_or_not() -> None:
    assert exempt("example.com:8081", "https", "example.com", 8081)
    assert not exempt("example.com:8081", "https", "example.com", 8082)
    assert exempt("example.com:80", "http", "example.com")


@pytest.mark.parametrize(
    ("environ", "found"),
    [
        ({}, None),
        ({"HTTPS_PROXY": "http://p:1"}, Proxy("p", 1)),
        ({"HTTPS_PROXY": "http://upper:1", "https_proxy": "http://lower:1"}, Proxy("lower", 1)),
        ({"HTTPS_PROXY": "http://upper:1", "https_proxy": ""}, None),
        ({"HTTP_PROXY": "http://p:1"}, None),
        ({"ALL_PROXY": "http://p:1"}, Proxy("p", 1)),
        ({"all_proxy": "http://all:1", "HTTPS_PROXY": "http://p:1"}, Proxy("p", 1)),
        ({"HTTPS_PROXY": "proxy"}, Proxy("proxy", 80)),
        ({"HTTPS_PROXY": "proxy:3128/"}, Proxy("proxy", 3128)),
        ({"HTTPS_PROXY": "http://[fd07::1]:3128"}, Proxy("fd07::1", 3128)),
        ({"HTTPS_PROXY": "http://ann:a%3Ab%40c@p:1"}, Proxy("p", 1, "ann", "a:b@c")),
        ({"HTTPS_PROXY": "http://ann@p:1"}, Proxy("p", 1, "ann", "")),
        ({"HTTPS_PROXY": "http://p:1", "no_proxy": "", "NO_PROXY": "*"}, Proxy("p", 1)),
    ],
)
def test_the_proxy_that_counts(environ: dict[str, str], found: Proxy | None) -> None:
    assert Proxies(environ).leading_to("https", "art.example.com", None) == found


def test_credentials_are_sent_and_not_shown() -> None:
    proxy = Proxies({"HTTPS_PROXY": "http://ann:hunter2@[::1]:1"}).leading_to("https", "a", None)
    assert proxy is not None
    assert proxy.authorization == b"Basic YW5uOmh1bnRlcjI="
    assert proxy.url == "http://[::1]:1"
    assert "hunter2" not in repr(proxy)


def test_a_proxy_that_is_reached_by_tls() -> None:
    proxies = Proxies({"HTTPS_PROXY": "HTTPS://ann:hunter2@p", "HTTP_PROXY": "https://[::1]:3128"})
    proxy = proxies.leading_to("https", "a.example", None)
    assert proxy == Proxy("p", 443, "ann", "hunter2", "https")
    assert proxy.url == "https://p:443"
    proxy = proxies.leading_to("http", "a.example", None)
    assert proxy is not None
    assert proxy.url == "https://[::1]:3128"


@pytest.mark.parametrize(
    "value",
    [
        "http://ann:hunter2@[bad:1",
        "http://ann:hunter2@p:port",
        "http://ann:hunter2@p:99999",
        "http://ann:hunter2@",
        "http://",
        "://ann:hunter2@p",
        "http://ann:hunter2@pro xy:1",
        "socks5://ann:hunter2@p:1080",
        "socks5h://ann:hunter2@p:1080",
        "ftp://ann:hunter2@p",
    ],
)
def test_a_proxy_that_cannot_be_used_is_one_line(value: str) -> None:
    proxies = Proxies({"HTTPS_PROXY": value, "NO_PROXY": "near.example"})
    with pytest.raises(ConfigError, match=r"^HTTPS_PROXY: ") as caught:
        proxies.leading_to("https", "far.example", None)
    assert "hunter2" not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert proxies.leading_to("https", "near.example", None) is None
    assert proxies.leading_to("http", "far.example", None) is None
