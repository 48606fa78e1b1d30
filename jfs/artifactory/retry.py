"""When to ask again: which failures, how often, how long apart. Pure except for jitter."""

import random
from collections.abc import Iterator

from jfs.errors import JfsError, RateLimited

_FIRST_S, _LONGEST_S = 0.1, 5.0


def delays(rng: random.Random | None = None) -> Iterator[float]:
    """Yield seconds to wait before each retry: doubling, with full jitter, without end.

    Jitter keeps a fleet of nodes from coming back to a restarted server all at once.
    """
    rng = rng or random.Random()
    ceiling = _FIRST_S
    while True:
        yield rng.uniform(ceiling / 2, ceiling)
        ceiling = min(_LONGEST_S, ceiling * 2)


def wait_before_retry(error: JfsError, delay: float, left: float) -> float | None:
    """Return the seconds to wait before asking again; None when it is of no use.

    Args:
        delay: of ``delays``; a server's Retry-After counts if it is longer.
        left: until the deadline.
    """
    if not error.retryable:
        return None
    if isinstance(error, RateLimited) and error.retry_after_s is not None:
        delay = max(delay, error.retry_after_s)
    return delay if delay < left else None
