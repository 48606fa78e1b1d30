"""Counters of one process. Any thread: ``count`` is atomic under a lock that is never held long."""

import threading
from collections import Counter


class Metrics:
    """Named numbers: monotonic counters, such as ``received_bytes``, and gauges (``set``)."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counters: Counter[str] = Counter()

    def count(self, name: str, amount: int = 1) -> None:
        with self._lock:
            self._counters[name] += amount

    def set(self, name: str, value: int) -> None:
        """Say what a gauge shows from now on."""
        with self._lock:
            self._counters[name] = value

    def snapshot(self) -> dict[str, int]:
        with self._lock:
            return dict(self._counters)
