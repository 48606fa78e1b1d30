"""Artifactory as a client sees it; the only package that knows httpx.

Where to look:

- both planes: ``access`` is what they share: ``auth``, ``trust`` (TLS) and ``proxies``, with
  ``watched`` (files that are replaced) and ``renewal`` (401); ``breaker``, ``circuits`` and
  ``retry`` (outages); ``exchange`` (httpx's errors, redirects), ``pace``, ``wire`` (addresses,
  JSON, errors), ``statements`` (checksums in heads);
- control plane, trio thread: ``client`` is the ``ArtifactStore``; it asks by ``session``.
  ``repositories``, ``listings``, ``heads`` and ``upstream`` tell what there is; ``searching`` and
  ``locating`` query, in the language of ``aql``; ``mutations``, ``uploads`` and ``builds`` change.
  ``pieces`` and ``rows`` read long answers;
- data plane, worker threads: ``ranges`` is the ``RangeSource``; ``opening`` finds where the bytes
  are, ``transport`` asks over kept ``connections``, ``bodies`` receive them, ``failures`` are those
  of httpx, ``whole`` shares a body that knows no ranges, ``parallelism`` says how many at a time.

Imports ``protocols`` and below. A request of the control plane holds a place in the limiter of its
repository while it waits for the server, and no lock.
"""

from jfs.artifactory.access import Access
from jfs.artifactory.breaker import Breakers
from jfs.artifactory.circuits import Outage, Plane, log_changes
from jfs.artifactory.client import ArtifactoryClient, explain
from jfs.artifactory.ranges import HttpRangeSource

__all__ = [
    "Access",
    "ArtifactoryClient",
    "Breakers",
    "HttpRangeSource",
    "Outage",
    "Plane",
    "explain",
    "log_changes",
]
