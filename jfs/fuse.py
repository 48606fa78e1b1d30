"""pyfuse3 adapter: convert, call the filesystem, one errno boundary around every handler.

Nothing is decided here. Trio thread only. What pyfuse3 demands:

- Only ``FUSEError`` may leave a handler; anything else ends the main loop and with it the mount.
- ``forget`` must never raise, and ``release``'s error reaches nobody.
- ``read`` may return any contiguous buffer; it is copied out before the task's next checkpoint,
  which is what lets ``Filesystem.read`` hand out views of buffers that are reused. A view instead
  of ``bytes`` halves the event loop's CPU time.
- Every ``readdir_reply`` that returns True raises the lookup count.
- A lookup that answers inode 0 is a negative dentry, cached for ``entry_timeout``; a FUSEError is
  not cached at all.

It has no handler for FALLOCATE (3.5): see ``jfs.mount.fallocate``.
"""

import functools
import logging
import os
import stat
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from functools import partial
from typing import Any, Concatenate, ParamSpec, TypeVar

import pyfuse3
import trio

from jfs.answers import Answer, Answers
from jfs.behind import Behind
from jfs.errors import (
    InvalidName,
    LetGo,
    MountEnding,
    NameTooLong,
    NoEntry,
    NotPermitted,
    Unasked,
    Unsupported,
    errno_of,
)
from jfs.extents import Extent, MiB, PiB
from jfs.vfs.filesystem import (
    REFRESH,
    UPLOAD,
    Attributes,
    Caller,
    Change,
    Filesystem,
    Opened,
)

log = logging.getLogger(__name__)

_NAME_MAX = 255  # bytes
_CAPABILITY = b"security.capability"
_NO_CAPABILITY = errno_of(Unsupported("only user. attributes are kept"))
_ENDING = errno_of(MountEnding())
_LET_GO = errno_of(LetGo())
_UNASKED = errno_of(Unasked())
_COPY_YOURSELF = errno_of(Unsupported("the kernel reads and writes what is to be copied"))

_P = ParamSpec("_P")
_R = TypeVar("_R")


def _boundary(
    handler: Callable[Concatenate["Operations", _P], Coroutine[Any, Any, _R]],
) -> Callable[Concatenate["Operations", _P], Coroutine[Any, Any, _R]]:
    """Turn every exception into an errno, and have it noted why; see ``jfs.vfs.boundary``.

    A handler that is cancelled, because the mount ends, answers ENOTCONN, and one that is let go
    EINTR. Without an answer the kernel would wait for ever, and with it whoever holds a lock that a
    notification of ours waits for: then no signal ends the process. The task is cancelled again at
    its next checkpoint.
    """
    name = handler.__name__

    @functools.wraps(handler)
    async def guarded(self: "Operations", /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        if self.ended:
            raise pyfuse3.FUSEError(_ENDING)
        answer = self.answers.begun(name, args)
        try:
            result = await handler(self, *args, **kwargs)
        except pyfuse3.FUSEError:
            raise
        except Exception as error:
            number = self._filesystem.boundary.refused(name, args, error)
            raise pyfuse3.FUSEError(number) from error
        except trio.Cancelled:
            raise _cancelled(answer) from None
        except BaseExceptionGroup as group:  # of a nursery within the handler
            if group.split(trio.Cancelled)[1] is not None:
                raise
            raise _cancelled(answer) from None
        finally:
            if answer is not None:
                answer.end()
        if self._filesystem.boundary.expects:
            self._filesystem.boundary.answered(name, args)
        return result

    return guarded


def _cancelled(answer: Answer | None) -> pyfuse3.FUSEError:
    return pyfuse3.FUSEError(_LET_GO if answer is not None and answer.is_let_go else _ENDING)


def _silent(
    handler: Callable[Concatenate["Operations", _P], Coroutine[Any, Any, None]],
) -> Callable[Concatenate["Operations", _P], Coroutine[Any, Any, None]]:
    """Like ``_boundary`` for requests whose answer nobody hears."""

    @functools.wraps(handler)
    async def guarded(self: "Operations", /, *args: _P.args, **kwargs: _P.kwargs) -> None:
        if self.ended:
            return
        try:
            await handler(self, *args, **kwargs)
        except Exception:
            log.exception("%s failed", handler.__name__)

    return guarded


class Operations(pyfuse3.Operations):
    """The handlers that pyfuse3 calls; see the module."""

    supports_dot_lookup = False
    enable_writeback_cache = False
    enable_acl = False

    def __init__(self, filesystem: Filesystem) -> None:
        super().__init__()
        self._filesystem = filesystem
        self.answers = Answers()
        self._behind = Behind(self.answers, filesystem)
        self._made_passed: dict[int, Attributes] = {}
        self.ended = False  # True: every request is answered ENOTCONN

    @_boundary
    async def lookup(
        self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        try:
            return _entry(await self._filesystem.lookup(parent_inode, _decode(name), ctx.pid))
        except NoEntry:
            return self._negative(parent_inode, name)

    @_boundary
    async def create(
        self,
        parent_inode: int,
        name: bytes,
        mode: int,
        flags: int,
        ctx: pyfuse3.RequestContext,
    ) -> tuple[pyfuse3.FileInfo, pyfuse3.EntryAttributes]:
        create = self._filesystem.create
        opened, attributes = await self._behind.run(
            lambda: create(parent_inode, _new_name(name), mode, flags, _caller(ctx))
        )
        if self._filesystem.small_writes.passes(opened.handle, flags, mode, ctx.pid):
            self._made_passed[opened.handle] = attributes
        return _file_info(opened), _entry(attributes)

    @_boundary
    async def mknod(
        self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        make = self._filesystem.mknod
        return await self._made(lambda: make(parent_inode, _new_name(name), mode, _caller(ctx)))

    @_boundary
    async def mkdir(
        self, parent_inode: int, name: bytes, mode: int, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        make = self._filesystem.mkdir
        return await self._made(lambda: make(parent_inode, _new_name(name), mode, _caller(ctx)))

    @_boundary
    async def symlink(
        self, parent_inode: int, name: bytes, target: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        text = _new_name(target, what="the target")
        make = self._filesystem.symlink
        return await self._made(lambda: make(parent_inode, _new_name(name), text, _caller(ctx)))

    @_boundary
    async def link(
        self, inode: int, new_parent_inode: int, new_name: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        raise NotPermitted("an artifact has one name: there are no hard links")

    @_boundary
    async def unlink(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        await self._behind.run(partial(self._filesystem.unlink, parent_inode, _decode(name)))

    @_boundary
    async def rmdir(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        await self._behind.run(partial(self._filesystem.rmdir, parent_inode, _decode(name)))

    @_boundary
    async def rename(
        self,
        parent_inode_old: int,
        name_old: bytes,
        parent_inode_new: int,
        name_new: bytes,
        flags: int,
        ctx: pyfuse3.RequestContext,
    ) -> None:
        names = (parent_inode_old, _decode(name_old), parent_inode_new, _new_name(name_new))
        await self._behind.run(partial(self._filesystem.rename, *names, flags))

    @_boundary
    async def setattr(
        self,
        inode: int,
        attr: pyfuse3.EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: int | None,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        change = Change(
            size=attr.st_size if fields.update_size else None,
            mode=stat.S_IMODE(attr.st_mode) if fields.update_mode else None,
            uid=attr.st_uid if fields.update_uid else None,
            gid=attr.st_gid if fields.update_gid else None,
            atime_ns=attr.st_atime_ns if fields.update_atime else None,
            mtime_ns=attr.st_mtime_ns if fields.update_mtime else None,
        )
        work = partial(self._filesystem.setattr, inode, change, fh, ctx.pid, ctx.uid)
        if change.size is None:  # nothing that waits
            return _entry(await work())
        return _entry(await self._behind.run(work))

    @_silent
    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        for ino, count in inode_list:
            self._filesystem.forget(ino, count)

    @_boundary
    async def getattr(self, inode: int, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        return _entry(await self._filesystem.getattr(inode, ctx.pid))

    @_boundary
    async def open(self, inode: int, flags: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        work = partial(self._filesystem.open, inode, flags, ctx.pid, ctx.uid)
        return _file_info(await (self._behind.run(work) if flags & os.O_TRUNC else work()))

    @_boundary
    async def read(self, fh: int, off: int, size: int) -> bytes:
        try:
            data = await self._filesystem.read(fh, Extent(off, off + size))
        except Unasked:  # no refusal that anybody is told of
            raise pyfuse3.FUSEError(_UNASKED) from None
        return data  # type: ignore[return-value]  # any buffer will do: handlers.pxi, fuse_read

    def read_at_once(self, fh: int, off: int, size: int) -> memoryview | None:
        """As ``read``, of bytes that are in memory; None: ``read`` is to be asked."""
        if self.ended:
            return None
        return self._filesystem.read_at_once(fh, Extent(off, off + size))

    @_boundary
    async def write(self, fh: int, off: int, buf: bytes) -> int:
        return await self._filesystem.write(fh, off, buf)

    def write_at_once(
        self, fh: int, off: int, data: bytes, answer: Callable[[int], object]
    ) -> bool:
        """As ``write``; *answer* hears an errno, now or later. False: ``write`` is to be asked."""
        boundary = self._filesystem.boundary
        if self.ended or boundary.expects:
            return False

        def answered(error: Exception | None) -> None:
            answer(0 if error is None else boundary.refused("write", (fh, off), error))

        return self._filesystem.small_writes.write(fh, off, data, answered)

    @_boundary
    async def fallocate(self, inode: int, fh: int, mode: int, offset: int, length: int) -> None:
        """Keep room; called by ``jfs.mount.fallocate``, not by pyfuse3."""
        work = partial(self._filesystem.reserving.reserve, fh, mode, offset, length)
        await self._behind.run(work)

    @_boundary
    async def copy_file_range(
        self, fh: int, off: int, source: int, source_off: int, length: int
    ) -> int:
        """Copy to *fh*; called by ``jfs.mount.copying``, not by pyfuse3."""
        count = await self._filesystem.copies.copy(source, source_off, fh, off, length)
        if count is None:
            raise pyfuse3.FUSEError(_COPY_YOURSELF)
        return count

    @_boundary
    async def flush(self, fh: int) -> None:
        work = partial(self._filesystem.flush, fh)
        await (self._behind.run(work) if self._filesystem.boundary.may_upload(fh) else work())

    @_boundary
    async def fsync(self, fh: int, datasync: bool) -> None:
        await self._behind.run(partial(self._filesystem.fsync, fh))

    @_boundary
    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        """Names are on the server when they have changed: there is nothing to wait for."""

    @_silent
    async def release(self, fh: int) -> None:
        await self._filesystem.release(fh)

    @_boundary
    async def opendir(self, inode: int, ctx: pyfuse3.RequestContext) -> int:
        return await self._filesystem.opendir(inode)

    @_boundary
    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        while entries := self._filesystem.readdir(fh, start_id):
            for name, attributes, next_id in entries:
                encoded = name.encode("utf-8")
                if not pyfuse3.readdir_reply(token, encoded, _entry(attributes), next_id):
                    return
                self._filesystem.remember(attributes.ino)
                start_id = next_id

    @_silent
    async def releasedir(self, fh: int) -> None:
        self._filesystem.releasedir(fh)

    @_boundary
    async def readlink(self, inode: int, ctx: pyfuse3.RequestContext) -> bytes:
        return (await self._filesystem.readlink(inode)).encode("utf-8")

    @_boundary
    async def getxattr(self, inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> bytes:
        if name == _CAPABILITY:  # asked before every cached write: answered without ceremony
            # A new one each time: one that is raised again grows a traceback without end.
            raise pyfuse3.FUSEError(_NO_CAPABILITY)
        if name == REFRESH:
            # Reading an attribute, since GETXATTR holds no lock of the inode: the kernel takes the
            # folder's to forget a name, and SETXATTR would hold it.
            return str(await self._filesystem.refresh(inode)).encode()
        if name == UPLOAD:
            return str(await self._filesystem.behind.look()).encode()
        return await self._filesystem.getxattr(inode, name)

    @_boundary
    async def listxattr(self, inode: int, ctx: pyfuse3.RequestContext) -> Sequence[bytes]:
        return await self._filesystem.listxattr(inode)

    @_boundary
    async def setxattr(
        self, inode: int, name: bytes, value: bytes, ctx: pyfuse3.RequestContext
    ) -> None:
        # pyfuse3 itself asks getxattr first for XATTR_CREATE and XATTR_REPLACE.
        await self._behind.run(partial(self._filesystem.setxattr, inode, name, value))

    @_boundary
    async def removexattr(self, inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        await self._behind.run(partial(self._filesystem.removexattr, inode, name))

    @_boundary
    async def statfs(self, ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        # The server tells its free space to admins only, and `df` must not wait for it: plenty,
        # so that tools which look before they write do write.
        data = pyfuse3.StatvfsData()
        data.f_bsize = data.f_frsize = MiB
        data.f_blocks = data.f_bfree = data.f_bavail = PiB // MiB
        data.f_files = data.f_ffree = data.f_favail = 1 << 32
        data.f_namemax = _NAME_MAX
        return data

    @_boundary
    async def access(self, inode: int, mode: int, ctx: pyfuse3.RequestContext) -> bool:
        # Reached only without default_permissions, which jfs.mount.session always sets.
        raise Unsupported("access is the kernel's to decide")

    def made_of(self, handle: int) -> Attributes | None:
        """Return what the answer to CREATE says of what the kernel writes; see ``backing_of``."""
        return self._made_passed.pop(handle, None)

    def backing_of(self, handle: int) -> tuple[int, bool]:
        """Return what the answer to OPEN names; for ``jfs.mount.passthrough``, not for pyfuse3."""
        return self._filesystem.holdings.backing_of(handle)

    def _negative(self, parent: int, name: bytes) -> pyfuse3.EntryAttributes:
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = 0
        entry.entry_timeout = self._filesystem.missing_for_s(parent, _decode(name))
        return entry

    async def _made(self, make: Callable[[], Awaitable[Attributes]]) -> pyfuse3.EntryAttributes:
        return _entry(await self._behind.run(make))


def _file_info(opened: Opened) -> pyfuse3.FileInfo:
    return pyfuse3.FileInfo(fh=opened.handle, keep_cache=opened.keep_cache, direct_io=opened.direct)


def _new_name(name: bytes, *, what: str = "the name") -> str:
    """Decode a name that shall be made: the server's are Unicode."""
    try:
        return name.decode("utf-8")
    except UnicodeDecodeError:
        raise InvalidName(f"{what} {name!r} is not UTF-8") from None


def _caller(ctx: pyfuse3.RequestContext) -> Caller:
    return Caller(ctx.uid, ctx.gid, ctx.pid)


def _decode(name: bytes) -> str:
    """Names on the server are Unicode: one that is not cannot be there."""
    try:
        return name.decode("utf-8")
    except UnicodeDecodeError:
        error = NameTooLong if len(name) > _NAME_MAX else NoEntry
        raise error("the name is not UTF-8") from None


def _entry(attributes: Attributes) -> pyfuse3.EntryAttributes:
    entry = pyfuse3.EntryAttributes()
    entry.st_ino = attributes.ino
    entry.generation = 0
    entry.entry_timeout = attributes.entry_ttl_s
    entry.attr_timeout = attributes.attr_ttl_s
    entry.st_mode = attributes.mode
    entry.st_nlink = attributes.nlink
    entry.st_uid = attributes.uid
    entry.st_gid = attributes.gid
    entry.st_size = attributes.size
    entry.st_blksize = attributes.block
    entry.st_blocks = (attributes.size + 511) // 512
    entry.st_mtime_ns = attributes.mtime_ns
    entry.st_ctime_ns = attributes.ctime_ns
    entry.st_atime_ns = attributes.atime_ns
    return entry
