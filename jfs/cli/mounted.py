"""What running mounts say of themselves, and what they are told: never waited for without end."""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jfs.mount.mountpoint import bounded
from jfs.mount.table import FSTYPE, MountEntry, mounts
from jfs.vfs.filesystem import UPLOAD

PATIENCE_S = 5.0  # a report is made from memory, and a mount is asked nothing else


@dataclass(frozen=True, slots=True)
class Asked:
    """How a mount has answered.

    Attributes:
        state: ``answers``; ``dead``: its daemon has gone; ``does not answer``; ``too old``: of a
            version that makes no reports.
        figures: what ``.jfs/stats.json`` says, by section; nothing if it does not answer.
    """

    state: str
    figures: dict[str, dict[str, Any]] = field(default_factory=dict)

    def section(self, name: str) -> dict[str, Any]:
        """Return a section, empty if there is none."""
        found = self.figures.get(name)
        return found if isinstance(found, dict) else {}


def ours() -> list[MountEntry]:
    """List the mounts of jfs on this machine, each place once."""
    return list({entry.mountpoint: entry for entry in mounts() if entry.fstype == FSTYPE}.values())


def ask(mountpoint: str, patience_s: float = PATIENCE_S) -> Asked:
    """Read the figures of a mount."""
    place = Path(mountpoint) / ".jfs" / "stats.json"
    try:
        text = bounded(place.read_text, patience_s)
    except FileNotFoundError:
        return Asked("too old")
    except OSError:  # ENOTCONN
        return Asked("dead")
    if text is None:
        return Asked("does not answer")
    try:
        figures = json.loads(text)
    except ValueError:
        figures = {}
    return Asked("answers", figures if isinstance(figures, dict) else {})


def upload_now(mountpoint: str) -> None:
    """Have a mount look at what waits, and try it at once. Whether it does is not said."""
    try:
        bounded(lambda: os.getxattr(mountpoint, UPLOAD), PATIENCE_S)
    except OSError:
        return
