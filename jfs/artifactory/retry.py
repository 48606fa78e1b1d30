"""When to ask again: which failures, how often, how long apart. Pure except for jitter."""

import random
from collections.abc import Iterator
from typing import TypeVar

from jfs.errors import JfsError, RateLimited, RemoteError, Unavailable

# With full jitter the mean of the first five waits together is 1.5 s, and 1.5 s of each later one.
_FIRST_S, _LONGEST_S = 0.1, 3.0

_Error = TypeVar("_Error", bound=RemoteError)


def delays(rng: random.Random | None = None) -> Iterator[float]:
    """Yield seconds to wait before each retry: below a ceiling that doubles, without end.

    Full jitter (uniform between nothing and the ceiling) keeps a fleet of nodes from coming back to
    a restarted server all at once; AWS's "Exponential Backoff And Jitter" has the comparison.
    """
    rng = rng or random.Random()
    ceiling = _FIRST_S
    while True:
        yield rng.uniform(0.0, ceiling)
        ceiling = min(_LONGEST_S, ceiling * 2)


def after_s(error: JfsError) -> float | None:
    """Return the seconds for which the server wants not to be asked: its Retry-After."""
    return error.retry_after_s if isinstance(error, RateLimited | Unavailable) else None


def wait_before_retry(error: JfsError, delay: float, left: float) -> float | None:
    """Return the seconds to wait before asking again; None when it is of no use.

    Args:
        delay: of ``delays``; a server's Retry-After counts if it is longer.
        left: until the deadline.
    """
    if not error.retryable:
        return None
    delay = max(delay, after_s(error) or 0.0)
    return delay if delay < left else None


def still(error: _Error, left: float) -> _Error:
    """Return *error* anew, for a caller who comes while the server still wants not to be asked."""
    again = type(error)(error.message, status=error.status, method=error.method, url=error.url)
    if isinstance(again, RateLimited | Unavailable):
        again.retry_after_s = left
    return again
