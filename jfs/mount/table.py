"""What is mounted where: ``/proc/self/mountinfo``, see proc_pid_mountinfo(5)."""

import os
from dataclasses import dataclass
from pathlib import Path

FSTYPE = "fuse.jfs"


@dataclass(frozen=True, slots=True)
class MountEntry:
    """One line of ``/proc/self/mountinfo``."""

    mountpoint: str
    fstype: str
    source: str
    device: str  # major:minor, the name of its bdi


def mounts() -> list[MountEntry]:
    """List what is mounted, the last one on a place being the one that is seen."""
    entries = []
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines():
        before, _, after = line.partition(" - ")
        fields = before.split(" ")
        fstype, source, *_ = after.split(" ")
        entries.append(MountEntry(_unescape(fields[4]), fstype, _unescape(source), fields[2]))
    return entries


def mount_at(path: Path) -> MountEntry | None:
    """Return the mount whose root is *path*. Does not touch *path* itself, which may be dead."""
    wanted = os.path.realpath(path)  # not strict: a dead mount answers ENOTCONN
    return next((entry for entry in reversed(mounts()) if entry.mountpoint == wanted), None)


def _unescape(field: str) -> str:
    r"""Decode the octal escapes of ``/proc`` (``\040`` is a space)."""
    return (
        field.encode("utf-8", "surrogateescape")
        .decode("unicode_escape")
        .encode("latin-1", "surrogateescape")
        .decode("utf-8", "surrogateescape")
    )
