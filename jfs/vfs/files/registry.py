"""Which inodes are open. Trio thread only; no checkpoint in it."""

from collections.abc import Iterator

from jfs.vfs.files.openfile import OpenFile
from jfs.vfs.namespace.inodes import Inode


class Registry:
    """The open file of each inode that is open, of one mount."""

    def __init__(self) -> None:
        self._files: dict[Inode, OpenFile] = {}
        self._ended: dict[Inode, OpenFile] = {}

    def __iter__(self) -> Iterator[OpenFile]:
        return iter(list(self._files.values()))

    def find(self, inode: Inode) -> OpenFile | None:
        """Return the open file of an inode, if it is open."""
        return self._files.get(inode)

    def find_ended(self, inode: Inode) -> OpenFile | None:
        """Return the file of handles through which nothing can be read any more."""
        return self._ended.get(inode)

    def add(self, file: OpenFile) -> None:
        """Note a file that is open now, instead of another of the same inode."""
        self._files[file.inode] = file

    def end(self, file: OpenFile) -> None:
        """Take a file out that has handles still: fstat of them goes on."""
        self.drop(file)
        self._ended[file.inode] = file

    def drop(self, file: OpenFile) -> bool:
        """Take a file out; False: another has taken its place."""
        if self._ended.get(file.inode) is file:
            del self._ended[file.inode]
        if self._files.get(file.inode) is not file:
            return False
        del self._files[file.inode]
        return True

    def inodes(self) -> list[Inode]:
        """Return every inode that is open."""
        return list(self._files)

    def below(self, folder: Inode) -> list[OpenFile]:
        """Return what is open at or below a folder."""
        return [file for file in self if file.inode is folder or _is_below(file.inode, folder)]


def _is_below(inode: Inode, folder: Inode) -> bool:
    parent = inode.parent if inode.attached() else None
    while parent is not None and parent is not folder:
        parent = parent.parent
    return parent is folder
