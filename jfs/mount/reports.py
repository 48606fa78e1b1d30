"""The texts of ``.jfs/``: figures of this mount as lines and as JSON, and its settings.

They are made while somebody waits, by the event loop: only from what the process knows, and from
``/proc/self``, which waits for nobody. A part that cannot be told never hides the others.
``stats.json`` keeps the names that it has: programs read it.
"""

import dataclasses
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from jfs import descriptors, words
from jfs.artifactory.breaker import Breakers
from jfs.config import MountSettings, Secret
from jfs.memory import Budget
from jfs.metrics import Metrics
from jfs.model import RepoPath
from jfs.mount.passthrough import Passthrough
from jfs.vfs.files.queue import QueueState
from jfs.vfs.namespace.reports import shown_lines
from jfs.vfs.writing.area import StagingArea

log = logging.getLogger(__name__)

Figures = Mapping[str, object]


class Stats:
    """Figures in sections, each by who owns them.

    Args:
        limit: bytes of memory that the process may have; None: no limit.
    """

    def __init__(
        self, settings: MountSettings, metrics: Metrics, budget: Budget, limit: int | None
    ) -> None:
        self._settings = settings
        self._since = time.time()
        self._sections: dict[str, Callable[[], Figures]] = {
            "mount": self._mount,
            "memory": lambda: _memory(budget, limit),
            "descriptors": _descriptors,
            "threads": lambda: {"running": threading.active_count()},
            "counters": lambda: dict(sorted(metrics.snapshot().items())),
        }

    def add(self, section: str, figures: Callable[[], Figures]) -> None:
        """Add a section; *figures* is called by the event loop, and must return at once."""
        self._sections[section] = figures

    def figures(self) -> dict[str, Figures]:
        """Return everything."""
        return {name: _told(name, figures) for name, figures in self._sections.items()}

    def text(self) -> str:
        """Return lines of a name and a value."""
        return shown_lines(self.figures())

    def json(self) -> str:
        """Return the same as JSON."""
        return json.dumps(self.figures(), indent=1, default=str) + "\n"

    def _mount(self) -> Figures:
        settings = self._settings
        return {
            "source": settings.shown_source,
            "server": settings.server.url,
            "mountpoint": str(settings.mountpoint),
            "pid": os.getpid(),
            "since": round(self._since, 3),
            "read_only": settings.write is None,
        }


def server(breakers: Breakers, metrics: Metrics, *, offline: bool = False) -> Figures:
    """Return whether the server answers, and since when what does not.

    ``state`` is ``up``, ``down``, or ``impaired``: a part of it, such as a repository, is down; or
    ``offline``: it is not asked.
    """
    outages = breakers.outages()
    whole = [outage for outage in outages if not outage.subject]
    state = "down" if whole else "impaired" if outages else "up"
    state = "offline" if offline else state
    stale_since = metrics.snapshot().get("stale_since")
    return {
        "state": state,
        "since": round(min(each.since for each in whole or outages), 3) if outages else None,
        "reason": words.clean((whole or outages)[0].reason) if outages else None,
        "stale_since": stale_since or None,
        "outages": [
            {
                "what": outage.subject or "server",
                "plane": str(outage.plane),
                "since": round(outage.since, 3),
                "refused": outage.refused,
                "reason": words.clean(outage.reason),
            }
            for outage in outages
        ],
    }


def uploads(state: QueueState, area: StagingArea | None = None) -> Figures:
    """Return what waits for its upload (``--write-back``, ``--settle``), and where it is staged."""
    return {
        "write_back": area is not None and area.settings.write_back,
        "staging": str(area.journal.directory) if area is not None else None,
        "pending": state.pending,
        "pending_bytes": state.size,
        "uploading": state.uploading,
        "oldest_since": None if state.oldest_ns is None else round(state.oldest_ns / 1e9, 3),
        "next_try_s": None if state.next_s is None else round(state.next_s, 1),
        "refused": state.refused,
        "error": None if state.error is None else words.clean(str(state.error)),
    }


def passthrough(used: Passthrough | None) -> Figures:
    """Return whether the kernel reads what is cached itself, and if not, why."""
    if used is None:
        return {"state": "off", "reason": None}
    return {"state": "on" if used.is_on else "off", "reason": used.reason}


def config(settings: MountSettings) -> str:
    """Return what counts, options, environment and files taken together; no secret."""
    return shown_lines(_plain(settings))


def _plain(value: object) -> dict[str, object]:
    assert dataclasses.is_dataclass(value)
    fields = (field for field in dataclasses.fields(value) if field.repr)
    return {field.name: _shown(getattr(value, field.name)) for field in fields}


def _shown(value: object) -> object:
    if isinstance(value, Secret):
        return "***"
    if dataclasses.is_dataclass(value) and not isinstance(value, RepoPath):
        return _plain(value)
    if isinstance(value, Mapping):
        return {str(key): _shown(each) for key, each in value.items()}
    if isinstance(value, frozenset | set | tuple | list):
        return " ".join(sorted(str(_shown(each)) for each in value))
    return None if value is None else words.clean(str(value), 1024)


def _told(name: str, figures: Callable[[], Figures]) -> Figures:
    try:
        return figures()
    except Exception as error:
        log.warning("%s: cannot be told", name, exc_info=error)
        return {"error": type(error).__name__}


def _memory(budget: Budget, limit: int | None) -> Figures:
    return {
        "resident_bytes": _status("VmRSS"),
        "peak_bytes": _status("VmHWM"),
        "limit_bytes": limit,
        "buffers_bytes": budget.held,
        "buffers_most_bytes": budget.most,
        "buffers_bound_bytes": budget.bound,
    }


def _status(field: str) -> int | None:
    """Read a size of ``/proc/self/status``, which has it in KiB."""
    for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").split("\n"):
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) * 1024
    return None


def _descriptors() -> Figures:
    return {"open": len(os.listdir("/proc/self/fd")), "limit": descriptors.limit()}
