"""``.jfs/`` at the root of the mount: what the mount says of itself, as text.

A report is made when it is looked at, from what the process knows: no network, no disk, no lock
that an outage holds. So it can be read when nothing else can. A handle shows what was true when it
was opened. Nobody lists the folder in its parent; a real entry of the name, once a listing has
shown it, wins: the server is not asked for one, since that would wait with everything else.

Trio thread only.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from jfs.errors import BadHandle, NoEntry, ReadOnly
from jfs.model import Checksums, FileInfo, FolderInfo, RepoPath
from jfs.vfs.freshness import NEVER, Asked
from jfs.vfs.namespace.inodes import Inode
from jfs.vfs.namespace.inodetable import InodeTable

NAME: Final = ".jfs"
_NO_SUMS = Checksums()


@dataclass(frozen=True, slots=True)
class ReportFolder:
    """The folder itself."""


@dataclass(slots=True)
class Report:
    """A file of it. *handles*: how many are open, which all show one size."""

    name: str
    handles: int = 0


class Reports:
    """See the module. *writers*: what makes the text of each."""

    def __init__(self, inodes: InodeTable) -> None:
        self._inodes = inodes
        self._writers: dict[str, Callable[[], str]] = {}
        self._opened: dict[int, tuple[Report, bytes]] = {}
        self._started_ns = time.time_ns()

    def add(self, name: str, write: Callable[[], str]) -> None:
        """Show one more; *write* returns its text at once."""
        self._writers[name] = write

    def __contains__(self, handle: int) -> bool:
        """Whether a handle is of a report."""
        return handle in self._opened

    def folder(self) -> Inode:
        """Return the inode of the folder."""
        info = FolderInfo(RepoPath(NAME), self._started_ns)
        return self._inodes.compute(f"{NAME}//", info, ReportFolder(), Asked.now())

    def lookup(self, name: str) -> Inode:
        """Resolve a name in it. Raises NoEntry."""
        if name not in self._writers:
            raise NoEntry(f"{NAME}/{name}: no such report: {', '.join(sorted(self._writers))}")
        known = self._inodes.computed(_key(name))
        report = known.computed if known is not None else None
        if isinstance(report, Report) and report.handles and known is not None:
            return known
        return self._shown(name, len(self._text(name)), Report(name))

    def listing(self) -> "ReportListing":
        """List it."""
        return ReportListing(self, sorted(self._writers))

    def refresh(self, inode: Inode) -> None:
        """Bring the size up to date, unless it is open."""
        if isinstance(inode.computed, Report) and not inode.computed.handles:
            self._shown(inode.computed.name, len(self._text(inode.computed.name)), inode.computed)

    def open(self, inode: Inode, handle: int, *, writes: bool) -> None:
        """Open one: the handle shows what is true now. Raises ReadOnly."""
        report = inode.computed
        assert isinstance(report, Report)
        if writes:
            raise ReadOnly(f"{inode.path}: is what the mount says of itself: read-only")
        text = self._text(report.name)
        self._shown(report.name, len(text), report)
        report.handles += 1
        self._opened[handle] = report, text

    def read(self, handle: int, start: int, stop: int) -> bytes:
        """Return a part of it. Raises BadHandle."""
        try:
            return self._opened[handle][1][start:stop]
        except KeyError:
            raise BadHandle(f"handle {handle} is not open") from None

    def release(self, handle: int) -> None:
        """Close a handle."""
        report, _ = self._opened.pop(handle)
        report.handles -= 1

    def settle(self, inode: Inode) -> None:
        """Drop an inode that was made and that nobody took."""
        self._inodes.settle(inode)

    def _text(self, name: str) -> bytes:
        return self._writers[name]().encode("utf-8", "backslashreplace")

    def _shown(self, name: str, size: int, report: Report) -> Inode:
        # Known as of never: the kernel asks for the size at each look. One time for all: tar says
        # that a file changes which has another one when it was read.
        info = FileInfo(RepoPath(NAME, name), size, _NO_SUMS, self._started_ns)
        return self._inodes.compute(_key(name), info, report, NEVER)


class ReportListing:
    """The entries of the folder; inodes are made as they are read."""

    def __init__(self, reports: Reports, names: list[str]) -> None:
        self._reports = reports
        self._names = names
        self._made: list[Inode] = []

    def read(self, start: int, count: int) -> list[tuple[str, Inode, int]]:
        """As ``Listing.read``; the inodes are there until the next call at least."""
        self.release()
        found = [
            (name, self._reports.lookup(name), position)
            for position, name in enumerate(self._names[start : start + count], start + 1)
        ]
        self._made = [inode for _, inode, _ in found]
        return found

    def release(self) -> bool:
        """Drop what was made for this reader and nobody took. Returns False: that was all."""
        for inode in self._made:
            self._reports.settle(inode)
        self._made = []
        return False


def _key(name: str) -> str:
    """By what the inode is known; no path of the server has two slashes."""
    return f"{NAME}//{name}"


def shown_lines(figures: Mapping[str, object], prefix: str = "") -> str:
    """Write nested figures as lines ``a.b value``; ``-``: there is none."""
    lines = []
    for name, value in figures.items():
        if isinstance(value, list | tuple):
            value = {str(number): each for number, each in enumerate(value)}
        if isinstance(value, Mapping):
            lines.append(shown_lines(value, f"{prefix}{name}."))
        else:
            lines.append(f"{prefix}{name} {'-' if value is None or value == '' else value}\n")
    return "".join(lines)
