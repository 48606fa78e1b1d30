"""What is mounted where: ``/proc/self/mountinfo``, see proc_pid_mountinfo(5). Any thread.

Mounts of others are odd: their places and sources hold any byte but NUL. So the table is read as
bytes, cut at newlines only, and a line that cannot be understood is no mount of ours.
"""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

FSTYPE = "fuse.jfs"
_MAX_LINKS = 40  # as the kernel: a path with more of them is ELOOP
_ESCAPE = re.compile(rb"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class MountEntry:
    """One line of ``/proc/self/mountinfo``. Bytes that are not UTF-8 are surrogates."""

    mountpoint: str
    fstype: str
    source: str
    device: str  # major:minor, the name of its bdi


def mounts() -> list[MountEntry]:
    """List what is mounted, the last one on a place being the one that is seen."""
    return list(parse(Path("/proc/self/mountinfo").read_bytes()))


def parse(table: bytes) -> Iterator[MountEntry]:
    """Understand the text of a mountinfo file."""
    for line in table.split(b"\n"):  # never splitlines(): a name may hold \r or \f
        before, _, after = line.partition(b" - ")
        fields, of_filesystem = before.split(b" "), after.split(b" ")
        if len(fields) >= 6 and len(of_filesystem) >= 2:
            yield MountEntry(
                mountpoint=_unescape(fields[4]),
                fstype=_unescape(of_filesystem[0]),
                source=_unescape(of_filesystem[1]),
                device=os.fsdecode(fields[2]),
            )


def mount_at(path: Path) -> MountEntry | None:
    """Return the mount whose root is *path*, which may lead there through links.

    Does not touch the mount itself, which may be dead or stuck.
    """
    entries = mounts()
    wanted = str(_walk(path, entries)[-1])
    return next((entry for entry in reversed(entries) if entry.mountpoint == wanted), None)


def mount_above(path: Path) -> tuple[MountEntry, tuple[str, ...]] | None:
    """Return the mount of jfs that *path* lies in, and the names from its root to *path*.

    The mount is not asked: it may be stuck. So links inside it are not followed.
    """
    entries = mounts()
    place = _walk(path, entries)[-1]
    for folder in (place, *place.parents):
        entry = next((e for e in reversed(entries) if e.mountpoint == str(folder)), None)
        if entry is not None:
            return (entry, place.relative_to(folder).parts) if entry.fstype == FSTYPE else None
    return None


def resolve(path: Path) -> Path:
    """Return *path* without links, as realpath(3), but without asking a mount of jfs."""
    return _walk(path, mounts())[-1]


def leads_through(path: Path, directory: Path) -> bool:
    """Whether *path* lies in *directory*, or a link on the way to it does."""
    entries = mounts()
    place = _walk(directory, entries)[-1]
    return any(step.is_relative_to(place) for step in _walk(path, entries))


def _walk(path: Path, entries: Sequence[MountEntry]) -> list[Path]:
    """Return every place on the way to *path*, the last one being where it leads."""
    fstypes = {entry.mountpoint: entry.fstype for entry in entries}  # the last one is seen
    here = Path("/")
    visited = [here]
    # Not Path.absolute() of the whole: what ".." means is known only once links are followed.
    todo = list(reversed((path if path.is_absolute() else Path.cwd() / path).parts[1:]))
    links = 0
    while todo:
        name = todo.pop()
        if name == "..":
            here = here.parent
            continue
        target = None
        below = here / name
        # The root of a mount is no link, and what is inside a mount of ours only it could tell.
        if str(below) not in fstypes and not _is_ours(here, fstypes) and links < _MAX_LINKS:
            try:
                target = os.readlink(below)
            except OSError:  # no link, nothing at all, or a dead mount of others above it
                target = None
        if target is None:
            here = below
        else:
            links += 1
            if target.startswith("/"):
                here = Path("/")
            todo.extend(reversed(Path(target.lstrip("/")).parts))
        visited.append(below if target is not None else here)
    if visited[-1] != here:
        visited.append(here)
    return visited


def _is_ours(place: Path, fstypes: dict[str, str]) -> bool:
    for folder in (place, *place.parents):
        fstype = fstypes.get(str(folder))
        if fstype is not None:
            return fstype == FSTYPE
    return False


def _unescape(field: bytes) -> str:
    r"""Decode the octal escapes of ``/proc`` (``\040`` is a space)."""
    return os.fsdecode(_ESCAPE.sub(lambda match: bytes([int(match[1], 8) & 0xFF]), field))
