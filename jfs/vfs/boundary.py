"""What the errno boundary of ``fuse.py`` tells: which request was refused, or answered; of what.

It knows by the name of a request which of its arguments say where. Trio thread only; no I/O.
"""

from collections.abc import Mapping, Sequence
from typing import Final

from jfs.errors import JfsError, errno_of
from jfs.model import RepoPath
from jfs.vfs.files.table import OpenFiles
from jfs.vfs.namespace.inodes import Inode
from jfs.vfs.namespace.tree import Tree
from jfs.vfs.refusals import Refusals

# What users know a request as, where that is not its own name. Requests of one name are one thing:
# the success of one ends what was said of another.
_NAMES: Final[Mapping[str, str]] = {
    "lookup": "stat",
    "getattr": "stat",
    "opendir": "list",
    "readdir": "list",
    "flush": "close",
    "release": "close",
    "listxattr": "getxattr",
    "removexattr": "setxattr",
    "mknod": "create",
    "copy_file_range": "write",
}
_BY_NAME = frozenset(["lookup", "create", "mknod", "mkdir", "symlink", "unlink", "rmdir", "rename"])
_BY_HANDLE = frozenset(["read", "write", "copy_file_range", "flush", "fsync", "release"])
_BY_INODE = frozenset(
    [
        *("getattr", "setattr", "open", "opendir", "readlink", "fallocate"),
        *("getxattr", "listxattr", "setxattr", "removexattr"),
    ]
)
_UPLOADS = frozenset(["flush", "fsync"])
_FACTS = b"user.jfs."  # reading one is no sign that properties can be read


class Boundary:
    """See the module."""

    def __init__(self, tree: Tree, files: OpenFiles, refusals: Refusals) -> None:
        self._tree = tree
        self._files = files
        self._refusals = refusals

    @property
    def expects(self) -> bool:
        """Whether ``answered`` must be called: something was refused that may succeed now."""
        return self._refusals.standing

    def refused(self, request: str, arguments: Sequence[object], error: Exception) -> int:
        """Note the error of a request. Returns the errno to answer."""
        self._refusals.note(_name(request), self._where(request, arguments), error)
        return errno_of(error)

    def answered(self, request: str, arguments: Sequence[object]) -> None:
        """Note that a request was answered without an error."""
        match arguments:
            case [_, bytes(name), *_] if request == "getxattr" and name.startswith(_FACTS):
                return
            case [int(handle), *_] if request in _UPLOADS:
                self._uploaded(handle)
                return
        self._refusals.succeeded(_name(request), self._where(request, arguments))

    def may_upload(self, handle: int) -> bool:
        """Whether closing a handle may take as long as an upload."""
        try:
            return self._files.writes(handle)
        except JfsError:
            return False

    def hold(self, request: str, arguments: Sequence[object]) -> list[int]:
        """Hold the inodes that a request is about, as a lookup does: ``Filesystem.forget``."""
        held: list[Inode] = []
        try:
            match arguments:
                case [int(handle), *_] if request in _BY_HANDLE:
                    held.append(self._files.inode_of(handle))
                case [int(parent), bytes(name), int(new_parent), bytes(new), *_] if (
                    request == "rename"
                ):
                    held += self._place(parent, name) + self._place(new_parent, new)
                case [int(parent), bytes(name), *_] if request in _BY_NAME:
                    held += self._place(parent, name)
                case [int(ino), *_]:
                    held.append(self._tree.find(ino))
        except JfsError:  # it is on its way to fail
            pass
        for inode in held:
            self._tree.inodes.remember(inode)
        return [inode.ino for inode in held]

    def _place(self, parent: int, name: bytes) -> list[Inode]:
        folder = self._tree.find(parent)
        inode = folder.child(name.decode("utf-8", "replace"))
        return [folder] if inode is None else [folder, inode]

    def _uploaded(self, handle: int) -> None:
        try:
            if not self._files.writes(handle):
                return  # who only reads has uploaded nothing
        except JfsError:
            return
        for operation in ("close", "fsync"):  # one is as good as the other
            self._refusals.succeeded(operation, self._files.inode_of(handle).path)

    def _where(self, request: str, arguments: Sequence[object]) -> RepoPath | None:
        """Return the place that a request is about; None: none, or it is not known any more."""
        try:
            match arguments:
                case [int(handle), *_] if request in _BY_HANDLE:
                    return self._files.inode_of(handle).path
                case [int(parent), bytes(name), *_] if request in _BY_NAME:
                    return self._tree.find(parent).path.child(name.decode("utf-8", "replace"))
                case [int(_), int(parent), bytes(name), *_] if request == "link":
                    return self._tree.find(parent).path.child(name.decode("utf-8", "replace"))
                case [int(ino), *_] if request in _BY_INODE:
                    return self._tree.find(ino).path
        except JfsError:
            pass
        return None


def _name(request: str) -> str:
    return _NAMES.get(request, request)
