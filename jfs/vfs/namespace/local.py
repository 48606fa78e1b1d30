"""Modes, owners and exact times that were set here, which the server has no place for.

They are kept in memory while the mount lives: tools such as ``cp -p``,
``tar``, ``rsync`` and ``git`` read back what they set, and call it an error when it differs. Times
belong to the content that they were set on: once the server has other content, its own time shows.
Trio thread only.
"""

from dataclasses import dataclass, replace

from jfs.model import RepoPath


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
        return replace(self, atime_ns=None, mtime_ns=None, ctime_ns=None)


_NOTHING = LocalAttributes()


class LocalAttributeTable:
    """What was set, by place: it outlives the inode, which the kernel may forget."""

    def __init__(self) -> None:
        self._known: dict[RepoPath, LocalAttributes] = {}

    def get(self, path: RepoPath) -> LocalAttributes:
        return self._known.get(path, _NOTHING)

    def set(self, path: RepoPath, **changes: int | str | None) -> None:
        """Change fields of one entry."""
        self._known[path] = replace(self.get(path), **changes)  # type: ignore[arg-type]  # fields

    def forget(self, path: RepoPath) -> None:
        """The entry is gone."""
        self._known.pop(path, None)

    def move(self, source: RepoPath, target: RepoPath, *, tree: bool) -> None:
        """An entry, and what is below a *tree*, has another place now."""
        self._known.pop(target, None)
        known = self._known.pop(source, None)
        if known is not None:
            self._known[target] = known
        if not tree:
            return
        prefix = f"{source.path}/"
        for path in [p for p in self._known if p.repo == source.repo and p.path.startswith(prefix)]:
            moved = RepoPath(target.repo, f"{target.path}/{path.path[len(prefix) :]}")
            self._known[moved] = self._known.pop(path)
