"""What ``stat`` shows of an entry: the server's facts, what was set here, what is being written.

Trio thread only.
"""

import math
import os
import stat
import time
from collections.abc import Mapping
from dataclasses import dataclass

from jfs.config import TreeSettings
from jfs.extents import KiB, MiB
from jfs.formats import describes_itself
from jfs.model import FileInfo
from jfs.vfs.files.openfile import content_of
from jfs.vfs.files.table import OpenFiles
from jfs.vfs.files.writer import Writing
from jfs.vfs.namespace.crowds import Row
from jfs.vfs.namespace.inodes import ROOT, Inode
from jfs.vfs.namespace.local import NOTHING, LocalAttributes
from jfs.vfs.namespace.selectors import Link

# What a reader of very many entries is told of one it may use for this long. To list and to read a
# million takes longer than they are believed: each would be asked for by itself right after.
_READ_S = 1.0
# What is written here is written in pieces of this size by cp and Python: one request each.
_PIECE = 1 * MiB
# What is read: Python's open() and C's fopen() fill a buffer of this size, also for 16 bytes of an
# archive. cp and cat read 128 KiB or more at a time whatever is said here, and the kernel asks for
# more than they do: files of 64 MiB came to 230 MB/s cold in pieces of 128 KiB, to 190 in 512 and
# to 153 in 1024 (dd; each call of 1 MiB is looked at, jfs.mount.faults), page-warm to 2.4 against
# 1.4 GB/s; 512 MiB to the same, with 1.64 against 1.88 CPU-s per GiB.
_PIECE_TO_READ = 128 * KiB
# The kernel reads ahead four times what is asked for if that is little, 2 MiB at most: a header of
# 64 KiB cost 2 MiB, and costs 128 KiB in pieces of 32.
_PIECE_OF_TENSORS = 32 * KiB
_PRIVILEGES = stat.S_ISUID | stat.S_ISGID


@dataclass(slots=True)  # not frozen: that costs a microsecond, for every entry of every `ls -l`
class Attributes:
    """What ``stat`` shows. Times are ns, TTLs seconds; *block*: st_blksize, bytes."""

    ino: int
    mode: int
    nlink: int
    uid: int
    gid: int
    size: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    entry_ttl_s: float
    attr_ttl_s: float
    block: int = _PIECE


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks for a new entry: it is theirs."""

    uid: int
    gid: int
    pid: int = 0


@dataclass(frozen=True, slots=True)
class Change:
    """What ``setattr`` sets; None stays as it is. *mode* is permission bits."""

    size: int | None = None
    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None


class StatView:
    """See the module. *writing*: None if nothing can be set."""

    def __init__(self, settings: TreeSettings, files: OpenFiles, writing: Writing | None) -> None:
        self._settings = settings
        self._files = files
        self._local = writing.attributes if writing is not None else None

    def of(self, inode: Inode) -> Attributes:
        """Describe an inode as of now."""
        settings = self._settings
        file = self._files.shown(inode)
        if file is not None and file.passed is not None:
            self._files.passed.look(file)
        info = file.info if file is not None else inode.info
        is_attached = inode.attached()
        local = self._set_here(inode)
        # The kernel counts from its own receipt: it gets what is left of ours, so that a change
        # is seen within one TTL and not two.
        entry_ttl_s, attr_ttl_s = settings.entry_ttl_s, settings.attr_ttl_s
        if is_attached and inode.ino != ROOT and not inode.is_ours:
            entry_ttl_s, attr_ttl_s = inode.stat.left_s(entry_ttl_s, attr_ttl_s)
        mode, size, nlink = stat.S_IFDIR | 0o777 & ~settings.umask, 0, 2
        target = link_target(inode)
        if target is not None:
            mode, size, nlink = stat.S_IFLNK | 0o777, len(target.encode()), 1
        elif isinstance(info, FileInfo):
            size = file.size if file is not None else info.size
            mode, nlink = stat.S_IFREG | 0o666 & ~settings.umask, 1
            if inode.computed is not None:
                mode &= ~0o222  # a report
        elif inode.below is not None:
            nlink += inode.below.folders  # those that are known
            if inode.below.crowd is not None:
                nlink += inode.below.crowd.folders
        if local.mode is not None:
            mode = stat.S_IFMT(mode) | local.mode
        if not is_attached and inode.computed is None:
            nlink = 0
        mtime_ns = info.modified_ns if local.mtime_ns is None else local.mtime_ns
        return Attributes(
            ino=inode.ino,
            mode=mode,
            nlink=nlink,
            uid=settings.uid if local.uid is None else local.uid,
            gid=settings.gid if local.gid is None else local.gid,
            size=size,
            atime_ns=mtime_ns if local.atime_ns is None else local.atime_ns,
            mtime_ns=mtime_ns,
            ctime_ns=mtime_ns if local.ctime_ns is None else local.ctime_ns,
            entry_ttl_s=entry_ttl_s,
            attr_ttl_s=attr_ttl_s,
            block=_PIECE if inode.is_ours else _block(inode.name),
        )

    def of_entry(self, entry: Inode | Row) -> Attributes:
        """Describe what a folder lists as of now. No object is made of an entry that has none."""
        if not isinstance(entry, Row):
            return self.of(entry)
        settings, crowd = self._settings, entry.crowd
        if self._local is not None and self._local.knows(crowd.folder.path.child(entry.name)):
            return self.of(crowd.make(entry.row))
        ttls_s = settings.entry_ttl_s, settings.attr_ttl_s
        entry_ttl_s, attr_ttl_s = crowd.stat.left_s(*ttls_s)
        if crowd.stat.asked.at > -math.inf:
            entry_ttl_s, attr_ttl_s = (
                max(left_s, min(ttl_s, _READ_S))
                for left_s, ttl_s in zip((entry_ttl_s, attr_ttl_s), ttls_s, strict=True)
            )
        if entry.is_folder:
            mode, nlink = stat.S_IFDIR | 0o777 & ~settings.umask, 2
        else:
            mode, nlink = stat.S_IFREG | 0o666 & ~settings.umask, 1
        return Attributes(
            ino=entry.number,
            mode=mode,
            nlink=nlink,
            uid=settings.uid,
            gid=settings.gid,
            size=entry.size,
            atime_ns=entry.modified_ns,
            mtime_ns=entry.modified_ns,
            ctime_ns=entry.modified_ns,
            entry_ttl_s=entry_ttl_s,
            attr_ttl_s=attr_ttl_s,
            block=_block(entry.name),
        )

    def own(self, inode: Inode, mode: int, caller: Caller, folder: Inode) -> None:
        """Keep the mode and owner of a new entry, where they are not those of all entries.

        Below a folder with the setgid bit it has the folder's group, and a folder the bit too.
        """
        if self._local is None:
            return
        usual = (0o777 if inode.is_folder else 0o666) & ~self._settings.umask
        given: dict[str, int] = {}
        if (caller.uid, caller.gid) != (os.getuid(), os.getgid()):
            given |= {"uid": caller.uid, "gid": caller.gid}
        above = self.of(folder)
        if above.mode & stat.S_ISGID:
            given["gid"] = above.gid
            mode |= stat.S_ISGID if inode.is_folder else 0
        if stat.S_IMODE(mode) != usual and link_target(inode) is None:
            given["mode"] = stat.S_IMODE(mode)
        if given:
            self._local.set(inode, **given)

    def drop_privileges(self, inode: Inode) -> bool:
        """Take the setuid and setgid bits from a file that a user has changed.

        Returns:
            Whether there was anything to take.
        """
        local = self._local.get(inode) if self._local is not None else NOTHING
        if local.mode is None or not local.mode & _PRIVILEGES:
            return False
        self._note(inode, {"mode": local.mode & ~_PRIVILEGES})
        return True

    def has_privileges(self, inode: Inode) -> bool:
        """Whether a file has a setuid or setgid bit."""
        mode = self._local.get(inode).mode if self._local is not None else None
        return bool(mode and mode & _PRIVILEGES)

    def touch(self, inode: Inode) -> None:
        """Note that something else of an entry was changed than its content: its ctime is now."""
        if self._local is not None and inode.computed is None:
            self._note(inode, {})

    def change(self, inode: Inode, change: Change) -> None:
        """Keep what was set, but the size. A time that is set goes along with the next upload."""
        assert self._local is not None
        fields = ("mode", "uid", "gid", "atime_ns", "mtime_ns")
        given = {name: value for name in fields if (value := getattr(change, name)) is not None}
        if not given:
            return
        mode = self._local.get(inode).mode
        if given.keys() & {"uid", "gid"} and "mode" not in given and mode and inode.below is None:
            # chown(2), which the kernel leaves to who keeps these bits right.
            given["mode"] = mode & ~(stat.S_ISUID | (stat.S_ISGID if mode & stat.S_IXGRP else 0))
        file = self._files.find(inode)
        if file is not None:
            self._files.passed.look(file)  # what was written before is not newer than this
        self._note(inode, given)
        if file is not None and change.mtime_ns is not None:
            file.modified_ns = change.mtime_ns

    def _note(self, inode: Inode, given: Mapping[str, int]) -> None:
        """Set attributes, and the ctime to now."""
        assert self._local is not None
        tag = self._tag(inode)
        known = self._set_here(inode)
        times = {"atime_ns": known.atime_ns, "mtime_ns": known.mtime_ns}
        self._local.set(inode, **{**times, **given, "ctime_ns": time.time_ns(), "content": tag})

    def _set_here(self, inode: Inode) -> LocalAttributes:
        """Return what was set here and still counts."""
        if self._local is None or inode.computed is not None:
            return NOTHING
        local = self._local.get(inode)
        if local is NOTHING:
            return local
        if not inode.is_folder:
            return local.of(self._tag(inode))
        # Whatever the server has noted since was done elsewhere.
        is_newer = inode.info.modified_ns > (local.ctime_ns or 0)
        return local.without_times() if is_newer else local

    def _tag(self, inode: Inode) -> str | None:
        """Say what the times of an entry belong to: its content, if it has one."""
        file = self._files.find(inode)
        if file is not None:
            return file.tag
        return str(content_of(inode.info)) if isinstance(inode.info, FileInfo) else None


def link_target(inode: Inode) -> str | None:
    """Return what a link points to, computed or stored; None: it is no link."""
    if isinstance(inode.computed, Link):
        return inode.computed.target
    return inode.info.link_target if isinstance(inode.info, FileInfo) else None


def _block(name: str) -> int:
    """Return how much those who read a file of this name shall ask for at a time."""
    return _PIECE_OF_TENSORS if describes_itself(name) else _PIECE_TO_READ
