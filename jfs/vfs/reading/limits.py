"""Worker threads that receive at a time. Trio thread only."""

from dataclasses import dataclass

import trio

from jfs import threads


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one repository.

    Read-ahead never takes the last worker: a READ that somebody waits for is not queued behind
    bytes that nobody has asked for.
    """

    demand: trio.CapacityLimiter
    ahead: trio.CapacityLimiter

    @classmethod
    def of(cls, repo: str, fetches: int) -> "Limits":
        """Return the workers of a repository: one that hangs keeps only its own readers waiting."""
        return cls(
            threads.asking("fetches", repo, fetches),
            threads.asking("fetches ahead", repo, max(1, fetches - 1)),
        )
