"""FUSE passthrough: the kernel reads files of the cache itself, and pyfuse3 hears nothing of it.

Linux has it since 6.9, for who has CAP_SYS_ADMIN: a file of ours is registered with the connection
(an ioctl of ``/dev/fuse`` returns its number), and the answer to OPEN names that number. What is
read or mapped through such a handle comes straight from that file and its page cache.

Neither libfuse 3.14 nor pyfuse3 3.5 speaks of it. Two answers differ from theirs:

- That to INIT has the flag FUSE_PASSTHROUGH and a depth. libfuse writes it in the middle of
  ``fuse_session_process_buf``: while it does so for INIT, its ``writev`` is ours.
- That to an OPEN or CREATE is ours if the handle has such a file: ``fuse_reply_buf``, which is
  public, takes any answer. So pyfuse3's ``fuse_reply_open`` is ours, for good: 1 µs for each open.

Nothing is compiled for it, and no structure of libfuse is looked into that is not of its interface.
Where anything is not as it is known to be, all is as without.

It could go away if libfuse had ``fuse_file_info.backing_id`` and FUSE_CAP_PASSTHROUGH (it does from
3.17 on), and pyfuse3 passed them on: ``FileInfo(backing_id=…)``, the capability among those that
``Operations`` may want, and ``fuse_passthrough_open`` and ``_close`` as functions of its own.

Numbers of the protocol: include/uapi/linux/fuse.h.
"""

import ctypes
import fcntl
import logging
import os
import struct
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

from jfs.mount.libfuse import entry, handle_of, library, library_of, put
from jfs.vfs.attributes.stat import Attributes

log = logging.getLogger(__name__)

_INIT = 26
_INIT_EXT, _PASSTHROUGH = 1 << 30, 1 << (37 - 32)  # of flags, of flags2
# Who has taken it is told of WRITEs by others than root, and keeps the setuid bits right itself
# (``vfs.attributes.privileges``). Without it the kernel asks for security.capability before every
# write: it remembers of no inode that there is none.
_KILLPRIV_V2 = 1 << 28
_FOPEN_DIRECT, _FOPEN_PASSTHROUGH = 1 << 0, 1 << 7
# struct fuse_in_header: length, opcode, …; struct fuse_init_in behind its 40 bytes.
_IN_FLAGS, _IN_FLAGS2, _IN_LEAST = 40 + 12, 40 + 16, 40 + 20
# struct fuse_init_out
_OUT_FLAGS, _OUT_FLAGS2, _OUT_DEPTH, _OUT_LEAST = 12, 32, 36, 40
_OPEN_OUT = struct.Struct("=QIi")  # handle, flags, number
# struct fuse_entry_out: inode, generation, how long it and the attributes are believed; struct
# fuse_attr: inode, size, blocks, times, mode, links, owner, device, size of a block, flags
_ENTRY_OUT = struct.Struct("=QQQQII6Q10I")
_BACKING_OPEN, _BACKING_CLOSE = 0x4010E501, 0x4004E502
_BACKING = struct.Struct("=iIQ")  # descriptor, and what must be 0
_BUFFER_MEM = 16  # in struct fuse_buf

# Kinds of file systems (linux/magic.h) on disks of this machine, or in its memory. Whoever reads
# from others would wait for a network, or get an error, which a READ here is answered in spite of.
_LOCAL = frozenset(
    [
        *(0xEF53, 0x58465342, 0x9123683E, 0xF2F52010),  # ext2 to ext4, xfs, btrfs, f2fs
        *(0x2FC12FC1, 0xCA451A4E, 0x01021994),  # zfs, bcachefs, tmpfs
    ]
)
_OVERLAY = 0x794C7630

_PROCESS = ctypes.PYFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p)
_REPLY = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
_REPLY_MADE = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)
_WRITEV = ctypes.CFUNCTYPE(
    ctypes.c_ssize_t, ctypes.c_int, ctypes.c_void_p, ctypes.c_int, use_errno=True
)


class _Piece(ctypes.Structure):
    """struct iovec."""

    _fields_ = (("base", ctypes.c_void_p), ("size", ctypes.c_size_t))


class Passthrough:
    """The kernel's side of it, of one mount; the ``BackingFiles`` of ``jfs.vfs.kernel``.

    Args:
        directory: where the files lie that it will read; None: there is no cache.
    Attributes:
        reason: why it is not used; None: it is, or nobody knows yet.
    """

    def __init__(self, directory: Path | None) -> None:
        self._directory = directory
        self._changed: list[tuple[ctypes.c_void_p, int | None]] = []
        self._kept: list[object] = []  # what libfuse may call
        self._lock = threading.Lock()
        self._device: int | None = None
        self._is_agreed = self._takes_privileges = False
        self.is_on = False
        self.reason: str | None = None

    def prepare(
        self,
        backing_of: Callable[[int], tuple[int, bool]],
        made_of: Callable[[int], Attributes | None],
    ) -> None:
        """Change what pyfuse3 calls, before it is asked to mount. In the thread that calls it.

        Args:
            backing_of: returns the number that the answer to the OPEN of a handle shall name, 0:
                none; and whether READs and WRITEs come here all the same. Called by the event loop;
                must not raise.
            made_of: returns what the answer to CREATE shall say of a file. As *backing_of*.
        """
        if self._directory is None:
            self.reason = "there is no disk cache"
            return
        try:
            # How deep file systems are stacked below a file of the mount: 1, and 2 with overlayfs
            # in between, as in a container. Then no overlayfs can lie over the mount, since the
            # kernel allows 2 in all (FILESYSTEM_MAX_STACK_DEPTH).
            kind = _kind(self._directory)
            if kind in _LOCAL or kind == _OVERLAY:
                depth = 2 if kind == _OVERLAY else 1
                self._prepare(library(), backing_of, made_of, depth)
            else:
                self.reason = f"{self._directory}: a file system of this kind may hang ({kind:#x})"
        except (OSError, AttributeError, LookupError, ValueError) as error:
            self._restore()
            self.reason = f"this libfuse is not known: {error}"

    def try_it(self) -> None:
        """Find out whether the kernel takes files of ours, once it has the mount. Blocking."""
        if self.reason is None:
            self.reason = self._reason()
        self.is_on = self.reason is None
        if self.reason is not None:
            log.info("what is cached is read through this process, as ever: %s", self.reason)

    def open(self, file: int) -> int | None:
        """Register a file; see ``BackingFiles``."""
        try:
            return self._register(file)
        except OSError as error:
            log.debug("no passthrough: %s", error)
            return None

    def open_to_write(self, file: int) -> int | None:
        """Register a file that the kernel may write to; see ``BackingFiles``."""
        try:
            return self._register(file) if _kind(file) in {*_LOCAL, _OVERLAY} else None
        except OSError as error:
            log.debug("no passthrough of writes: %s", error)
            return None

    def close(self, number: int) -> None:
        """Take a registration back; handles that have it go on."""
        with self._lock:
            if self._device is None:
                return
            try:
                fcntl.ioctl(self._device, _BACKING_CLOSE, struct.pack("=I", number))
            except OSError as error:
                log.debug("a file stays with the kernel: %s", error)

    def end(self) -> None:
        """Touch the connection no more: it is about to be closed. In the thread of ``prepare``."""
        with self._lock:
            self._device, self.is_on = None, False
        self._restore()

    # the changes

    def _prepare(
        self,
        pyfuse3: ctypes.CDLL,
        backing_of: Callable[[int], tuple[int, bool]],
        made_of: Callable[[int], Attributes | None],
        depth: int,
    ) -> None:
        process = entry(pyfuse3, b"fuse_session_process_buf")
        reply, reply_made = entry(pyfuse3, b"fuse_reply_open"), entry(pyfuse3, b"fuse_reply_create")
        writev = entry(library_of(pyfuse3.fuse_reply_open), b"writev")
        descriptor, reply_buffer = pyfuse3.fuse_session_fd, pyfuse3.fuse_reply_buf
        descriptor.argtypes = (ctypes.c_void_p,)
        proceed, answer = _PROCESS(process.value or 0), _REPLY(reply.value or 0)
        answer_made = _REPLY_MADE(reply_made.value or 0)
        write = _WRITEV(writev.value or 0)

        def processed(session: int, buffer: int) -> None:
            is_offered = False
            try:
                put(process, before)  # the first request is INIT
                is_offered = _offers(buffer)
                self._takes_privileges = _offers_privileges(buffer)
                if is_offered:
                    put(writev, ctypes.cast(written, ctypes.c_void_p).value)
                else:
                    self.reason = "this kernel has none: Linux 6.9 has"
            except (OSError, LookupError, ValueError) as error:
                self.reason = f"this libfuse is not known: {error}"
            proceed(session, buffer)
            if is_offered:
                put(writev, writes)
                self._device = descriptor(session)

        def wrote(file: int, pieces: int, count: int) -> int:
            self._is_agreed |= _agree(pieces, count, depth, privileges=self._takes_privileges)
            return int(write(file, pieces, count))

        prototype = ctypes.PYFUNCTYPE(
            ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t
        )
        reply_with = prototype(ctypes.cast(reply_buffer, ctypes.c_void_p).value or 0)

        def opened(request: int, info: int) -> int:
            handle = handle_of(info)
            number, direct = backing_of(handle)
            if not number:
                return int(answer(request, info))
            flags = _FOPEN_PASSTHROUGH | (_FOPEN_DIRECT if direct else 0)
            data = _OPEN_OUT.pack(handle, flags, number)
            return int(reply_with(request, data, len(data)))

        def made(request: int, entered: int, info: int) -> int:
            handle = handle_of(info)
            attributes, (number, _) = made_of(handle), backing_of(handle)
            if attributes is None or not number:
                return int(answer_made(request, entered, info))
            data = _entry_out(attributes) + _OPEN_OUT.pack(handle, _FOPEN_PASSTHROUGH, number)
            return int(reply_with(request, data, len(data)))

        before, writes = process.value, writev.value
        written = _WRITEV(wrote)
        callbacks = (
            (process, _PROCESS(processed)),
            (reply, _REPLY(opened)),
            (reply_made, _REPLY_MADE(made)),
        )
        self._kept = [written, *callbacks, proceed, answer, answer_made, write, reply_with]
        for slot, callback in callbacks:
            self._changed.append((slot, slot.value))
            put(slot, ctypes.cast(callback, ctypes.c_void_p).value)

    def _restore(self) -> None:
        changed, self._changed = self._changed, []
        for slot, before in changed:
            put(slot, before)

    # the connection

    def _register(self, file: int) -> int:
        """Raises OSError."""
        with self._lock:
            if self._device is None:
                raise OSError("the mount has gone")
            asked = bytearray(_BACKING.pack(file, 0, 0))  # of bytes it would return the bytes
            return int(fcntl.ioctl(self._device, _BACKING_OPEN, asked))

    def _reason(self) -> str | None:
        if not self._is_agreed:
            return "libfuse did not answer the kernel as it is known to"
        try:
            with tempfile.TemporaryFile(dir=self._directory) as file:
                number = self._register(file.fileno())
        except PermissionError:
            return "it needs CAP_SYS_ADMIN"
        except OSError as error:
            return f"the kernel does not take files of {self._directory}: {error.strerror or error}"
        self.close(number)
        return None


def _offers(buffer: int) -> bool:
    """Whether a request is INIT, and the kernel offers passthrough."""
    size = ctypes.c_size_t.from_address(buffer).value
    data = ctypes.c_void_p.from_address(buffer + _BUFFER_MEM).value
    if not data or size < _IN_LEAST or _word(data + 4).value != _INIT:
        return False
    return bool(
        _word(data + _IN_FLAGS).value & _INIT_EXT and _word(data + _IN_FLAGS2).value & _PASSTHROUGH
    )


def _offers_privileges(buffer: int) -> bool:
    """Whether the kernel leaves setuid bits to who wants to keep them right. Of INIT."""
    data = ctypes.c_void_p.from_address(buffer + _BUFFER_MEM).value or 0
    return bool(_word(data + _IN_FLAGS).value & _KILLPRIV_V2)


def _agree(pieces: int, count: int, depth: int, *, privileges: bool) -> bool:
    """Have libfuse's answer to INIT accept passthrough; False: it is not that."""
    if count < 2:
        return False  # an error
    header, body = _Piece.from_address(pieces), _Piece.from_address(pieces + ctypes.sizeof(_Piece))
    if not header.base or not body.base or body.size < _OUT_LEAST:
        return False
    if _word(header.base + 4).value:
        return False
    _word(body.base + _OUT_FLAGS).value |= _INIT_EXT | (_KILLPRIV_V2 if privileges else 0)
    _word(body.base + _OUT_FLAGS2).value |= _PASSTHROUGH
    _word(body.base + _OUT_DEPTH).value = depth
    return True


def _word(address: int) -> ctypes.c_uint32:
    return ctypes.c_uint32.from_address(address)


def _entry_out(of: Attributes) -> bytes:
    """Say what CREATE has made, as libfuse does."""
    times = (of.atime_ns, of.mtime_ns, of.ctime_ns)
    ttls = (of.entry_ttl_s, of.attr_ttl_s)
    return _ENTRY_OUT.pack(
        *(of.ino, 0),
        *(int(each) for each in ttls),
        *(int(each % 1 * 1e9) for each in ttls),
        *(of.ino, of.size, (of.size + 511) // 512),
        *(each // 10**9 for each in times),
        *(each % 10**9 for each in times),
        *(of.mode, of.nlink, of.uid, of.gid, 0, of.block, 0),
    )


def _kind(where: Path | int) -> int:
    """Return the number of a file system's kind, f_type of statfs(2). Raises OSError.

    Args:
        where: a path, or an open file.
    """
    status = ctypes.create_string_buffer(256)  # struct statfs has less than half of it
    libc = ctypes.CDLL(None, use_errno=True)
    libc.statfs.argtypes = (ctypes.c_char_p, ctypes.c_void_p)
    libc.fstatfs.argtypes = (ctypes.c_int, ctypes.c_void_p)
    if isinstance(where, int):
        failure = libc.fstatfs(where, status)
    else:
        failure = libc.statfs(os.fsencode(where), status)
    if failure:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return _word(ctypes.addressof(status)).value
