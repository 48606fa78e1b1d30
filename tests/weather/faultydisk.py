"""A disk that can be told to fail: ``python -m … BACKING MOUNTPOINT``.

A file system that passes everything on to the directory BACKING, but for what it was told to spoil.
It prints a line when it is mounted. Each line of its input is a JSON object, the faults from then
on; it answers with a line once they are in force, and ends at the end of its input.

A fault is what an operation does: the name of an errno (``{"read": "EIO"}``), ``hang`` (until other
faults come), ``slow`` (20 ms more), ``short`` (of ``read`` and ``write``: half of what was asked
for) or ``flip`` (of ``read``: the first byte is another). Groups of operations: ``changes`` all
that change something, opening for it included; ``all`` everything but the end of use.
``statfs: full`` says that no space is left.

As on a disk, locks, mappings, O_DIRECT, links and files without a name work, and nothing is kept in
pages that would hide a fault. The kernel's own locks serve: it is one machine.
"""

import errno
import json
import os
import stat
import sys
from collections import Counter
from typing import Any, cast

import pyfuse3
import trio

from jfs.answers import Answers
from jfs.mount import requests

_CHANGES = (
    *("write", "create", "mkdir", "unlink", "rmdir", "rename", "link", "symlink"),
    *("setattr", "fsync", "open for writing"),
)
_ALL = (*_CHANGES, "read", "open", "lookup", "getattr", "readdir", "statfs")
# Of the flags of an open; the kernel sees to the others. O_DIRECT would want aligned memory, which
# a request has not.
_KEPT = os.O_ACCMODE | os.O_TRUNC | os.O_EXCL
_SLOW_S = 0.02
_GROUPS = {"changes": _CHANGES, "all": _ALL}


class Faults:
    """What is spoilt at the moment; ``set`` may be called in any thread."""

    def __init__(self) -> None:
        self._now: dict[str, str] = {}
        self._changed = trio.Event()
        self._token = trio.lowlevel.current_trio_token()

    def set(self, wanted: dict[str, str]) -> None:
        """Put other faults in force."""
        found: dict[str, str] = {}
        for name, what in wanted.items():
            for each in _GROUPS.get(name, (name,)):
                found[each] = what
        trio.from_thread.run_sync(self._set, found, trio_token=self._token)

    def _set(self, found: dict[str, str]) -> None:
        self._now = found
        changed, self._changed = self._changed, trio.Event()
        changed.set()

    async def meet(self, operation: str) -> str:
        """Fail or hang, if that is what the operation does; else return what it does."""
        while (what := self._now.get(operation, "")) == "hang":
            await self._changed.wait()
        if what == "slow":
            await trio.sleep(_SLOW_S)
        if what.startswith("E"):
            raise pyfuse3.FUSEError(getattr(errno, what))
        return what


class FaultyDisk(pyfuse3.Operations):
    """See the module. Inodes are known by descriptors, so that names may come and go."""

    enable_writeback_cache = False

    def __init__(self, backing: str, faults: Faults) -> None:
        super().__init__()
        self._faults = faults
        root = os.open(backing, os.O_PATH)
        self._places: dict[int, int] = {pyfuse3.ROOT_INODE: root}
        self._lookups: Counter[int] = Counter({pyfuse3.ROOT_INODE: 1})
        self._root_number = os.fstat(root).st_ino
        self._listings: dict[int, tuple[int, list[tuple[str, int]]]] = {}
        self._numbers = iter(range(1, sys.maxsize))

    # names

    async def lookup(self, parent_inode: int, name: bytes, ctx: Any) -> pyfuse3.EntryAttributes:
        await self._faults.meet("lookup")
        return self._found(parent_inode, name)

    async def forget(self, inode_list: list[tuple[int, int]]) -> None:
        for ino, count in inode_list:
            self._lookups[ino] -= count
            if not self._lookups[ino]:
                del self._lookups[ino]
                os.close(self._places.pop(ino))

    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: Any
    ) -> tuple[pyfuse3.FileInfo, pyfuse3.EntryAttributes]:
        await self._faults.meet("create")
        with _errnos():
            place = self._places[parent_inode]
            file = os.open(name, flags & _KEPT | os.O_CREAT, mode, dir_fd=place)
        return _opened(file), self._found(parent_inode, name)

    async def mkdir(
        self, parent_inode: int, name: bytes, mode: int, ctx: Any
    ) -> pyfuse3.EntryAttributes:
        await self._faults.meet("mkdir")
        with _errnos():
            os.mkdir(name, mode, dir_fd=self._places[parent_inode])
        return self._found(parent_inode, name)

    async def link(
        self, inode: int, new_parent_inode: int, new_name: bytes, ctx: Any
    ) -> pyfuse3.EntryAttributes:
        await self._faults.meet("link")
        with _errnos():
            os.link(self._path(inode), new_name, dst_dir_fd=self._places[new_parent_inode])
        return self._found(new_parent_inode, new_name)

    async def unlink(self, parent_inode: int, name: bytes, ctx: Any) -> None:
        await self._faults.meet("unlink")
        with _errnos():
            os.unlink(name, dir_fd=self._places[parent_inode])

    async def rmdir(self, parent_inode: int, name: bytes, ctx: Any) -> None:
        await self._faults.meet("rmdir")
        with _errnos():
            os.rmdir(name, dir_fd=self._places[parent_inode])

    async def rename(
        self,
        parent_inode_old: int,
        name_old: str,
        parent_inode_new: int,
        name_new: str,
        flags: int,
        ctx: Any,
    ) -> None:
        await self._faults.meet("rename")
        with _errnos():
            os.rename(
                name_old,
                name_new,
                src_dir_fd=self._places[parent_inode_old],
                dst_dir_fd=self._places[parent_inode_new],
            )

    # attributes

    async def getattr(self, inode: int, ctx: Any) -> pyfuse3.EntryAttributes:
        await self._faults.meet("getattr")
        return self._attributes(inode)

    async def setattr(
        self, inode: int, attr: pyfuse3.EntryAttributes, fields: Any, fh: int | None, ctx: Any
    ) -> pyfuse3.EntryAttributes:
        await self._faults.meet("setattr")
        path = self._path(inode)
        with _errnos():
            if fields.update_size:
                os.truncate(path if fh is None else fh, attr.st_size)
            if fields.update_mode:
                os.chmod(path, stat.S_IMODE(attr.st_mode))
            if fields.update_uid or fields.update_gid:
                os.chown(
                    path,
                    attr.st_uid if fields.update_uid else -1,
                    attr.st_gid if fields.update_gid else -1,
                )
            if fields.update_atime or fields.update_mtime:
                before = os.stat(path)
                atime = attr.st_atime_ns if fields.update_atime else before.st_atime_ns
                mtime = attr.st_mtime_ns if fields.update_mtime else before.st_mtime_ns
                os.utime(path, ns=(atime, mtime))
        return self._attributes(inode)

    async def statfs(self, ctx: Any) -> pyfuse3.StatvfsData:
        is_full = await self._faults.meet("statfs") == "full"
        real = os.statvfs(self._path(pyfuse3.ROOT_INODE))
        data = pyfuse3.StatvfsData()
        for name in ("f_bsize", "f_frsize", "f_blocks", "f_files", "f_namemax"):
            setattr(data, name, getattr(real, name))
        for name in ("f_bfree", "f_bavail", "f_ffree", "f_favail"):
            setattr(data, name, 0 if is_full else getattr(real, name))
        return data

    # directories

    async def opendir(self, inode: int, ctx: Any) -> int:
        await self._faults.meet("readdir")
        with _errnos(), os.scandir(self._path(inode)) as found:
            names = [(each.name, each.inode()) for each in found]
        number = next(self._numbers)
        self._listings[number] = inode, names
        return number

    async def readdir(self, fh: int, start_id: int, token: Any) -> None:
        await self._faults.meet("readdir")
        inode, names = self._listings[fh]
        for number, (name, _) in enumerate(names[start_id:], start_id + 1):
            try:
                entry = self._found(inode, os.fsencode(name))
            except pyfuse3.FUSEError:
                continue  # it went meanwhile
            if not pyfuse3.readdir_reply(token, cast("Any", os.fsencode(name)), entry, number):
                await self.forget([(entry.st_ino, 1)])
                return

    async def releasedir(self, fh: int) -> None:
        del self._listings[fh]

    # bytes

    async def open(self, inode: int, flags: int, ctx: Any) -> pyfuse3.FileInfo:
        await self._faults.meet("open")
        if flags & os.O_ACCMODE != os.O_RDONLY:
            await self._faults.meet("open for writing")
        with _errnos():
            return _opened(os.open(self._path(inode), flags & _KEPT))

    async def read(self, fh: int, off: int, size: int) -> bytes:
        what = await self._faults.meet("read")
        with _errnos():
            data = os.pread(fh, size if what != "short" else max(1, size // 2), off)
        return bytes([data[0] ^ 0xFF]) + data[1:] if what == "flip" and data else data

    async def write(self, fh: int, off: int, buf: bytes) -> int:
        what = await self._faults.meet("write")
        with _errnos():
            return os.pwrite(fh, buf if what != "short" else buf[: max(1, len(buf) // 2)], off)

    async def flush(self, fh: int) -> None:
        await self._faults.meet("flush")

    async def release(self, fh: int) -> None:
        os.close(fh)

    async def fsync(self, fh: int, datasync: bool) -> None:
        await self._faults.meet("fsync")
        os.fdatasync(fh)

    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        await self._faults.meet("fsync")

    # inside

    def _found(self, parent: int, name: bytes) -> pyfuse3.EntryAttributes:
        """Return what a name is, looked up once more."""
        with _errnos():
            place = os.open(name, os.O_PATH | os.O_NOFOLLOW, dir_fd=self._places[parent])
        ino = os.fstat(place).st_ino
        if ino == self._root_number:
            ino = pyfuse3.ROOT_INODE
        if ino in self._places:
            os.close(place)
        else:
            self._places[ino] = place
        self._lookups[ino] += 1
        return self._attributes(ino)

    def _path(self, inode: int) -> str:
        return f"/proc/self/fd/{self._places[inode]}"

    def _attributes(self, inode: int) -> pyfuse3.EntryAttributes:
        status = os.fstat(self._places[inode])
        entry = pyfuse3.EntryAttributes()
        for name in (
            *("st_mode", "st_nlink", "st_uid", "st_gid", "st_size", "st_blocks", "st_blksize"),
            *("st_atime_ns", "st_mtime_ns", "st_ctime_ns"),
        ):
            setattr(entry, name, getattr(status, name))
        entry.st_ino = cast("Any", inode)
        entry.generation = 0
        entry.attr_timeout = entry.entry_timeout = 0
        return entry


class _errnos:
    """Turn an OSError into what pyfuse3 answers."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError):
            raise pyfuse3.FUSEError(error.errno or errno.EIO) from None


def _opened(file: int) -> pyfuse3.FileInfo:
    return pyfuse3.FileInfo(fh=cast("Any", file), direct_io=True)


def _obey(faults: Faults) -> None:
    """Do what the lines of the input say."""
    for line in sys.stdin:
        faults.set(json.loads(line))
        print("ok", flush=True)


async def _serve(backing: str, mountpoint: str) -> None:
    faults = Faults()
    # Else the first request that is withdrawn stops us for good: its thread was killed.
    requests.prepare()
    pyfuse3.trio = requests.Trio(Answers())  # type: ignore[attr-defined]  # as .asyncio
    pyfuse3.init(
        FaultyDisk(backing, faults), mountpoint, {*pyfuse3.default_options, "fsname=faulty"}
    )
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pyfuse3.main)
            print("mounted", flush=True)
            await trio.to_thread.run_sync(_obey, faults)
            nursery.cancel_scope.cancel()
    finally:
        requests.rest()
        pyfuse3.close(unmount=True)


if __name__ == "__main__":
    trio.run(_serve, *sys.argv[1:])
