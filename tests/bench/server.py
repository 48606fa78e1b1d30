"""The embedded server against nginx on one machine: ``python -m tests.bench.server``.

One large GET by curl; ranges of 4 and 8 MiB on a kept-alive connection, each piece received into
memory; the same through TLS; an upload. Everything is read from the page cache over loopback.
Needs curl, nginx and openssl.
"""

import hashlib
import http.client
import json
import os
import shutil
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import click

from jfs.server import EmbeddedServer
from tests.bench.machine import (
    Contender,
    Sample,
    Series,
    compete,
    cpu_of,
    patience,
    report,
    touch_memory,
)

MiB = 1024**2
_REPO = "bench"
_NGINX = """
daemon off; master_process off; error_log stderr; pid {directory}/nginx.pid;
events {{ }}
http {{
    access_log off; sendfile on; tcp_nopush on; keepalive_requests 1000000;
    client_body_temp_path {directory}; proxy_temp_path {directory}; fastcgi_temp_path {directory};
    uwsgi_temp_path {directory}; scgi_temp_path {directory};
    server {{ listen 127.0.0.1:{port}; root {root}; autoindex on; }}
    server {{
        listen 127.0.0.1:{tls_port} ssl; root {root}; autoindex on;
        ssl_certificate {directory}/cert.pem; ssl_certificate_key {directory}/key.pem;
    }}
}}
"""


@dataclass(frozen=True, slots=True)
class Target:
    """Where a file can be had, and which process serves it."""

    url: str
    pid: int
    headers: dict[str, str]

    def curl(self) -> list[str]:
        return [
            *("curl", "-sSfk", "-o", "/dev/null"),
            *(part for name, value in self.headers.items() for part in ("-H", f"{name}: {value}")),
            self.url,
        ]


@contextmanager
def serving(directory: Path, *options: str) -> Iterator[tuple[str, str, int]]:
    """Run ``jfs serve``; return URL, token and process."""
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "jfs", "serve", str(directory), "--port", "0"),
            *("--repo", _REPO, "--json", *options),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    with patience(process, "jfs serve"), process.stdout:
        ready = json.loads(process.stdout.readline())
        yield ready["url"], Path(ready["token_file"]).read_text().strip(), process.pid


@contextmanager
def nginx(directory: Path, root: Path, port: int, tls_port: int) -> Iterator[int]:
    """Run nginx with a configuration of its own; return its process."""
    config = directory / "nginx.conf"
    config.write_text(_NGINX.format(directory=directory, root=root, port=port, tls_port=tls_port))
    process = subprocess.Popen(
        ["nginx", "-c", str(config), "-p", str(directory)], text=True, stderr=subprocess.DEVNULL
    )
    with patience(process, "nginx"):
        subprocess.run(
            [
                *("curl", "-sSf", "-o", "/dev/null", "--retry", "20", "--retry-connrefused"),
                *("--retry-delay", "1", "-r", "0-0", f"http://127.0.0.1:{port}/big.bin"),
            ],
            check=True,
        )
        yield process.pid


def seed(directory: Path, big: Path) -> None:
    """Put a file in place as a hard link: every contender sends the same pages."""
    with big.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    with EmbeddedServer(directory) as server:
        server.create_repository(_REPO)
        server.deploy(_REPO, "big.bin", big, sha256=sha256)


def large_get(target: Target) -> Sample:
    before = cpu_of(target.pid)
    start = time.perf_counter()
    subprocess.run(target.curl(), check=True)
    return Sample(time.perf_counter() - start, cpu_of(target.pid) - before)


def ranges(target: Target, size: int, piece: int) -> Sample:
    """Read a file in pieces, one after the other, on one connection."""
    scheme, _, rest = target.url.partition("://")
    host, _, path = rest.partition("/")
    connection: http.client.HTTPConnection
    if scheme == "https":
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        connection = http.client.HTTPSConnection(host, context=context)
    else:
        connection = http.client.HTTPConnection(host)
    buffer = memoryview(bytearray(piece))
    before = cpu_of(target.pid)
    start = time.perf_counter()
    for offset in range(0, size, piece):
        wanted = {"Range": f"bytes={offset}-{min(offset + piece, size) - 1}", **target.headers}
        connection.request("GET", f"/{path}", headers=wanted)
        response = connection.getresponse()
        assert response.status == 206
        while response.readinto(buffer):
            pass
    seconds = time.perf_counter() - start
    connection.close()
    return Sample(seconds, cpu_of(target.pid) - before)


def upload(target: Target, source: Path, turn: Iterator[int]) -> Sample:
    before = cpu_of(target.pid)
    start = time.perf_counter()
    with source.open("r+b") as file:  # other bytes every time: known content is not written
        file.write(str(next(turn)).encode())
    subprocess.run([*target.curl(), "-T", str(source), "-H", "Expect:"], check=True)
    return Sample(time.perf_counter() - start, cpu_of(target.pid) - before)


def requests(target: Target, count: int) -> Sample:
    """Ask *count* times for something small."""
    host, _, path = target.url.partition("://")[2].partition("/")
    connection = http.client.HTTPConnection(host)
    before = cpu_of(target.pid)
    start = time.perf_counter()
    for _ in range(count):
        connection.request("GET", f"/{path}", headers=target.headers)
        assert connection.getresponse().read()
    seconds = time.perf_counter() - start
    connection.close()
    return Sample(seconds, cpu_of(target.pid) - before)


@click.command()
@click.option("--mib", default=2048, show_default=True, help="Size of the file.")
@click.option("--rounds", default=5, show_default=True)
@click.option("--port", default=18300, show_default=True, help="nginx takes it and the next one.")
def main(mib: int, rounds: int, port: int) -> None:
    size = mib * MiB
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="jfs-bench-")))
        root = work / "root"
        root.mkdir()
        big = root / "big.bin"
        with big.open("wb") as file:
            block = os.urandom(MiB)
            for number in range(mib):
                file.write(number.to_bytes(8, "big") + block[8:])
        subprocess.run(
            [
                *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
                *("-subj", "/CN=localhost", "-keyout", str(work / "key.pem")),
                *("-out", str(work / "cert.pem")),
            ],
            check=True,
            capture_output=True,
        )
        certificate = ("--tls-cert", str(work / "cert.pem"), "--tls-key", str(work / "key.pem"))
        proxy = stack.enter_context(nginx(work, root, port, port + 1))
        targets = {
            "nginx": Target(f"http://127.0.0.1:{port}/big.bin", proxy, {}),
            "nginx, TLS": Target(f"https://127.0.0.1:{port + 1}/big.bin", proxy, {}),
        }
        for name, options in (("jfs serve", ()), ("jfs serve, TLS", certificate)):
            seed(work / name[-3:], big)
            url, token, pid = stack.enter_context(serving(work / name[-3:], *options))
            headers = {"Authorization": f"Bearer {token}"}
            targets[name] = Target(f"{url}/{_REPO}/big.bin", pid, headers)
        touch_memory(size)

        def race(title: str, what: str, run: "dict[str, Contender]") -> None:
            report(f"{title}, {what}", compete(size, rounds, run), next(iter(run)))

        plain = {name: each for name, each in targets.items() if "TLS" not in name}
        secure = {name: each for name, each in targets.items() if "TLS" in name}
        for group in (plain, secure):
            race(
                "one GET by curl",
                f"{mib} MiB",
                {name: lambda each=each: large_get(each) for name, each in group.items()},
            )
            for piece in (4 * MiB, 8 * MiB):
                race(
                    f"ranges of {piece // MiB} MiB",
                    "one connection",
                    {
                        name: lambda each=each, piece=piece: ranges(each, size, piece)
                        for name, each in group.items()
                    },
                )
        served = targets["jfs serve"]
        source = work / "source"
        shutil.copyfile(big, source)  # written to: the linked one must not be
        turns = iter(range(1, 1000))
        sent = Target(f"{served.url}.up", served.pid, served.headers)
        report(
            "upload by curl",
            compete(size, rounds, {"jfs serve": lambda: upload(sent, source, turns)}),
            "",
        )
        info = Target(
            served.url.replace("/artifactory/", "/artifactory/api/storage/"),
            served.pid,
            served.headers,
        )
        series = [Series("api/storage, one connection", 2000)]
        series[0].samples += [requests(info, 2000) for _ in range(rounds)]
        click.echo(f"{series[0].name}: {series[0].rate:.0f} requests a second")


if __name__ == "__main__":
    main()
