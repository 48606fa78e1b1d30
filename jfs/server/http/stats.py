"""What the server did: requests and bytes, for tests, benchmarks and operators. Any thread."""

import threading
from collections import Counter


class ServerStats:
    """Counters since the start or the last ``reset``. Bodies only, never heads.

    ``bytes_sent`` counts what the socket took; what a lost connection left unsent does not count.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests = 0
        self._bytes_sent = 0
        self._bytes_received = 0
        self._by_route: Counter[str] = Counter()

    @property
    def requests(self) -> int:
        return self._requests

    @property
    def bytes_sent(self) -> int:
        return self._bytes_sent

    @property
    def bytes_received(self) -> int:
        return self._bytes_received

    @property
    def by_route(self) -> Counter[str]:
        """Requests by method and endpoint, such as ``GET content`` or ``GET api/storage?list``."""
        with self._lock:
            return Counter(self._by_route)

    def count_request(self, route: str) -> None:
        with self._lock:
            self._requests += 1
            self._by_route[route] += 1

    def count_sent(self, count: int) -> None:
        with self._lock:
            self._bytes_sent += count

    def count_received(self, count: int) -> None:
        with self._lock:
            self._bytes_received += count

    def reset(self) -> None:
        with self._lock:
            self._requests = self._bytes_sent = self._bytes_received = 0
            self._by_route.clear()

    def as_dict(self) -> dict[str, object]:
        with self._lock:
            return {
                "requests": self._requests,
                "bytes_sent": self._bytes_sent,
                "bytes_received": self._bytes_received,
                "by_route": dict(sorted(self._by_route.items())),
            }
