"""Modes, owners and exact times that were set here, which the server has no place for.

They are kept in memory while the mount lives: tools such as ``cp -p``, ``tar``, ``rsync`` and
``git`` read back what they set, and call it an error when it differs. Times belong to the content
that they were set on: once the server has other content, its own time shows. Trio thread only.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from jfs.model import RepoPath
from jfs.vfs.namespace.inodes import Inode

# What the times of content belong to that is not on the server yet, or never will be.
STAGED = "staged"

# Entries that the table keeps. The largest trees that are copied or checked out in one go have that
# many files (Linux: 90,000), and are compared with their source right after; an entry takes about
# 550 bytes, so that a full table is 55 MB.
_MOST = 100_000


@dataclass(frozen=True, slots=True)
class LocalAttributes:
    """What was set here; None: nothing. *content* is that of the times: digest and size."""

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None
    ctime_ns: int | None = None
    content: str | None = None

    def of(self, content: str | None) -> "LocalAttributes":
        """Without times, if they belong to other content."""
        if self.content == content:
            return self
        return self.without_times()

    def without_times(self) -> "LocalAttributes":
        """Show the times that the server says."""
        return replace(self, atime_ns=None, mtime_ns=None, ctime_ns=None)


NOTHING = LocalAttributes()


class LocalAttributeTable:
    """What was set, by place: it outlives the inode, which the kernel may forget.

    An inode that has lost its place, and is open still, has an entry of its own: what is set on it
    says nothing about what is at the place now. What was set longest ago is forgotten when there
    are too many entries, but never what is in use.

    Args:
        in_use: tells which inodes are open.
    """

    def __init__(self, in_use: Callable[[], Iterable[Inode]], most: int = _MOST) -> None:
        self._in_use = in_use
        self._most = most
        self._room = most
        self._known: dict[RepoPath | int, LocalAttributes] = {}  # the oldest first

    def __len__(self) -> int:
        return len(self._known)

    def get(self, inode: Inode) -> LocalAttributes:
        return self._known.get(_key(inode), NOTHING)

    def knows(self, place: RepoPath) -> bool:
        """Whether something was set at a place."""
        return bool(self._known) and place in self._known

    def set(self, inode: Inode, **changes: int | str | None) -> None:
        """Change fields of one entry."""
        key = _key(inode)
        known = self._known.pop(key, NOTHING)
        self._known[key] = replace(known, **changes)  # type: ignore[arg-type]  # its fields
        if len(self._known) > self._room:
            self._trim()

    def names_changed(self, folder: Inode) -> None:
        """Note that a name was made or removed in a folder, or has come or gone by a rename.

        Caches that are keyed by a folder's mtime (Python's imports, make, backup tools) look for
        new files only when it has changed; Artifactory does not change it.
        """
        now = time.time_ns()
        self.set(folder, mtime_ns=now, ctime_ns=now)

    def forget(self, inode: Inode) -> None:
        """Show what the server says."""
        self._known.pop(_key(inode), None)

    def forget_number(self, ino: int) -> None:
        """Nobody has an inode any more that has lost its place."""
        self._known.pop(ino, None)

    def removed(self, inode: Inode, content: str | None) -> None:
        """Note that an inode has lost its place, which something else may take.

        Args:
            content: what it has, if somebody has it open still; else None.
        """
        known = self._known.pop(inode.path, NOTHING)
        if content is not None:
            self._known[inode.ino] = replace(
                known.of(content), ctime_ns=time.time_ns(), content=STAGED
            )

    def separated(self, inode: Inode) -> None:
        """Note that an inode has lost its place to one that is the same."""
        known = self._known.get(inode.path)
        if known is not None:
            self._known[inode.ino] = known

    def moved(self, source: RepoPath, inode: Inode) -> None:
        """Note that an inode, with all that is below, has come from *source* to its place."""
        target = inode.path
        self._known.pop(target, None)
        known = self._known.pop(source, None)
        if known is not None:
            self._known[target] = known
        if not inode.is_folder:
            return
        prefix = f"{source.path}/"
        below = [
            key
            for key in self._known
            if isinstance(key, RepoPath) and key.repo == source.repo and key.path.startswith(prefix)
        ]
        for key in below:
            place = RepoPath(target.repo, f"{target.path}/{key.path[len(prefix) :]}")
            self._known[place] = self._known.pop(key)

    def _trim(self) -> None:
        """Forget what is too much, and an eighth more, so that it is looked for now and then."""
        kept = {_key(inode) for inode in self._in_use()}
        left = len(self._known) - (self._most - self._most // 8)
        for key in [key for key in self._known if key not in kept][:left]:
            del self._known[key]
        self._room = max(self._most, len(self._known) + self._most // 8)


def _key(inode: Inode) -> RepoPath | int:
    return inode.path if inode.attached() else inode.ino
