"""A server with one folder of as many artifacts as somebody wants, none of which it holds.

It answers what a mount asks of Artifactory's storage API, makes each answer as it sends it, and
says of each artifact what can be computed from its name.
"""

import hashlib
import json
import math
import threading
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

REPO = "many-local"
_MODIFIED = "2024-05-06T07:08:09.012Z"
MODIFIED_NS = 1_714_979_289_012_000_000
_ROWS_AT_A_TIME = 500


def name_of(number: int) -> str:
    return f"model-{number:07}.safetensors"


def content_of(name: str) -> bytes:
    return f"the content of {name}".encode() * (1 + len(name) % 3)


class ManyServer:
    """The server, in threads of this process.

    Args:
        count: artifacts in the folder ``big``, all together.
        branches: how many folders there are in it, and in each of those, and so on; artifacts are
            in the last ones, as many in each.
    """

    def __init__(self, count: int, branches: Sequence[int] = ()) -> None:
        self.count = count
        self._branches = branches
        self._each = -(-count // math.prod(branches))
        self.gone: set[str] = set()  # names that are in no listing any more
        self.asked: list[str] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/artifactory"

    def __enter__(self) -> "ManyServer":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def info(self, parts: list[str]) -> dict[str, Any] | None:
        """Say what an item is; None: it is not there."""
        if self._is_folder(parts):
            return {"lastModified": _MODIFIED, "children": []}
        if not self._is_file(parts):
            return None
        content = content_of(parts[-1])
        return {"size": str(len(content)), "lastModified": _MODIFIED, "checksums": _sums(content)}

    def content(self, parts: list[str]) -> bytes | None:
        return content_of(parts[-1]) if self._is_file(parts) else None

    def listing(self, parts: list[str]) -> Iterator[bytes]:
        """Make the answer to ``?list`` in pieces."""
        yield b'{"uri":"","created":"","files":['
        rows = []
        mark = b""
        for row in self._rows(parts):
            rows.append(row)
            if len(rows) == _ROWS_AT_A_TIME:
                yield mark + ",".join(rows).encode()
                rows, mark = [], b","
        yield mark + ",".join(rows).encode() + b"]}" if rows else b"]}"

    def folder_of(self, number: int) -> str:
        """Return the path from ``big`` to the folder of an artifact."""
        index, names = number // self._each, []
        for branch in reversed(self._branches):
            index, place = divmod(index, branch)
            names.append(_folder_name(place))
        return "/".join(reversed(names))

    def _rows(self, parts: list[str]) -> Iterator[str]:
        if not parts:
            yield _folder_row("big")
        elif len(parts) <= len(self._branches):
            branch = self._branches[len(parts) - 1]
            yield from (_folder_row(_folder_name(place)) for place in range(branch))
        else:
            first = self._first(parts)
            for number in range(first, min(first + self._each, self.count)):
                name = name_of(number)
                if name in self.gone:
                    continue
                content = content_of(name)
                sums = _sums(content)
                yield (
                    f'{{"uri":"/{name}","size":{len(content)},"lastModified":"{_MODIFIED}",'
                    f'"folder":false,"sha1":"{sums["sha1"]}","sha2":"{sums["sha256"]}"}}'
                )

    def _first(self, parts: list[str]) -> int:
        """Return the first artifact of a folder that holds any."""
        index = 0
        for branch, name in zip(self._branches, parts[1:], strict=True):
            index = index * branch + int(name[1:])
        return index * self._each

    def _is_folder(self, parts: list[str]) -> bool:
        if len(parts) > len(self._branches) + 1 or parts[:1] not in ([], ["big"]):
            return False
        return all(
            name in map(_folder_name, range(branch))
            for branch, name in zip(self._branches, parts[1:], strict=False)
        )

    def _is_file(self, parts: list[str]) -> bool:
        if len(parts) != len(self._branches) + 2 or parts[-1] in self.gone:
            return False
        digits = parts[-1].removeprefix("model-").removesuffix(".safetensors")
        if not self._is_folder(parts[:-1]) or not digits.isdigit():
            return False
        number, first = int(digits), self._first(parts[:-1])
        is_here = first <= number < min(first + self._each, self.count)
        return is_here and parts[-1] == name_of(number)


def _folder_name(place: int) -> str:
    return f"d{place:05}"


def _folder_row(name: str) -> str:
    return f'{{"uri":"/{name}","size":-1,"lastModified":"{_MODIFIED}","folder":true}}'


def _sums(content: bytes) -> dict[str, str]:
    return {
        "sha256": hashlib.sha256(content).hexdigest(),
        "sha1": hashlib.sha1(content, usedforsecurity=False).hexdigest(),
    }


def _handler(server: ManyServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # else the last piece of an answer waits 40 ms

        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            split = urlsplit(self.path)
            path = unquote(split.path).removeprefix("/artifactory")
            server.asked.append(self.path)
            storage = f"/api/storage/{REPO}"
            if path == "/api/repositories":
                self._json([{"key": REPO, "type": "LOCAL", "packageType": "Generic"}])
            elif path == storage or path.startswith(f"{storage}/"):
                parts = [part for part in path.removeprefix(storage).split("/") if part]
                if split.query.startswith("list"):
                    self._pieces(server.listing(parts))
                elif split.query or (info := server.info(parts)) is None:
                    self._missing()
                else:
                    self._json(info)
            elif path.startswith(f"/{REPO}/"):
                self._content(path.removeprefix(f"/{REPO}/").split("/"))
            elif path == "/api/system/ping":
                self._answer(200, b"OK", "text/plain")
            elif path == "/api/system/version":
                self._json({"version": "7.90.0", "license": "Enterprise"})
            else:
                self._missing()

        do_HEAD = do_GET

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            server.asked.append(self.path)
            self._json({"results": [], "range": {"start_pos": 0, "end_pos": 0, "total": 0}})

        def _content(self, parts: list[str]) -> None:
            content = server.content(parts)
            if content is None:
                self._missing()
                return
            headers = {f"X-Checksum-{n.title()}": each for n, each in _sums(content).items()}
            headers |= {"ETag": _sums(content)["sha1"], "Accept-Ranges": "bytes"}
            status, wanted = 200, self.headers.get("Range")
            if wanted:
                first, _, last = wanted.removeprefix("bytes=").partition("-")
                start, stop = int(first), min(int(last or len(content)) + 1, len(content))
                headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(content)}"
                status, content = 206, content[start:stop]
            self._answer(status, content, "application/octet-stream", **headers)

        def _json(self, document: object) -> None:
            self._answer(200, json.dumps(document).encode(), "application/json")

        def _missing(self) -> None:
            error = {"errors": [{"status": 404, "message": "Unable to find item"}]}
            self._answer(404, json.dumps(error).encode(), "application/json")

        def _answer(self, status: int, body: bytes, kind: str, **headers: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def _pieces(self, body: Iterator[bytes]) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for piece in body:
                self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            self.wfile.write(b"0\r\n\r\n")

    return Handler
