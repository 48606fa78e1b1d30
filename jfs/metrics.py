"""Counters of one process. Any thread: ``count`` is atomic under a lock that is never held long."""

import threading
from collections import Counter


class Metrics:
    """Named monotonic counters, such as ``requests`` or ``received_bytes``."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counters: Counter[str] = Counter()

    def count(self, name: str, amount: int = 1) -> None:
        with self._lock:
            self._counters[name] += amount

    def snapshot(self) -> dict[str, int]:
        with self._lock:
            return dict(self._counters)
