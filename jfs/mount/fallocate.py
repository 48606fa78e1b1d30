"""FALLOCATE, for which pyfuse3 (3.5) has no handler.

Without an answer fallocate(2) says EOPNOTSUPP, and glibc's posix_fallocate(3) writes a byte to
every 4 KiB in turn: 100 MiB took 43 s on a loaded machine. Downloaders reserve their files so.

pyfuse3 gives libfuse a table of functions, ``struct fuse_lowlevel_ops``: a public interface whose
order never changes, with NULL for what is not supported. It does so by ``fuse_session_new``, which
it calls through an entry of its global offset table. While ``handled_by`` lasts that entry leads to
a function of ours, which passes on the table with one entry more. Where anything is not as it is
known to be (another libfuse, a 32-bit machine), nothing is changed, and FALLOCATE stays
unsupported. Everything here runs in the thread that calls pyfuse3.
"""

import contextlib
import ctypes
import logging
import mmap
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pyfuse3

from jfs.errors import errno_of

log = logging.getLogger(__name__)

Start = Callable[[tuple[int, int], int, int, int, Callable[[int], object]], None]

_RTLD_DI_LINKMAP = 2
_DT_NULL, _DT_PLTRELSZ, _DT_STRTAB, _DT_SYMTAB = 0, 2, 5, 6  # elf.h
_DT_RELA, _DT_RELASZ, _DT_JMPREL = 7, 8, 23
_PROT_READ, _PROT_WRITE = 1, 2
# Places in struct fuse_lowlevel_ops (fuse_lowlevel.h of libfuse 3).
_FORGET_MULTI, _FALLOCATE, _READDIRPLUS = 38, 40, 41
_FH_OFFSET = 16  # of the handle in struct fuse_file_info (fuse_common.h)

_POINTER = ctypes.c_void_p
# The second has a version before the last argument (libfuse 3.17). What is passed on as a fifth to
# the first is whatever a register holds: nobody looks at it.
_NAMES = (b"fuse_session_new", b"fuse_session_new_versioned")
_NEW_SESSION = ctypes.CFUNCTYPE(_POINTER, _POINTER, _POINTER, ctypes.c_size_t, _POINTER, _POINTER)
_HANDLER = ctypes.CFUNCTYPE(
    *(None, _POINTER, ctypes.c_uint64, ctypes.c_int, ctypes.c_int64, ctypes.c_int64, _POINTER)
)


class _LinkMap(ctypes.Structure):
    _fields_ = (
        ("address", ctypes.c_uint64),
        ("name", ctypes.c_char_p),
        ("dynamic", ctypes.c_void_p),
    )


class _Dynamic(ctypes.Structure):
    _fields_ = (("tag", ctypes.c_int64), ("value", ctypes.c_uint64))


class _Symbol(ctypes.Structure):
    _fields_ = (("name", ctypes.c_uint32), ("rest", ctypes.c_uint8 * 20))


class _Relocation(ctypes.Structure):
    _fields_ = (("offset", ctypes.c_uint64), ("info", ctypes.c_uint64), ("addend", ctypes.c_int64))


@contextlib.contextmanager
def handled_by(start: Start) -> Iterator[object]:
    """Have pyfuse3 register a handler of FALLOCATE, if it makes its session in the block.

    Args:
        start: called for each request with inode and handle, mode, offset, length, and what answers
            it by an errno, to be called exactly once. Must neither block nor raise.
    Returns:
        What must be kept as long as the session lives.
    """
    try:
        slot = _entry()
        before = slot.value
        module = ctypes.CDLL(pyfuse3.__file__)
        reply = module.fuse_reply_err  # of the libfuse that it is linked to
        reply.argtypes = (ctypes.c_void_p, ctypes.c_int)
        handler = _HANDLER(partial(_request, start, reply))
        ours = _NEW_SESSION(partial(_new_session, _NEW_SESSION(before or 0), handler))
        _put(slot, ctypes.cast(ours, ctypes.c_void_p).value)
    except (OSError, AttributeError, LookupError, ValueError) as error:
        log.debug("FALLOCATE is not supported: %s", error)
        yield None
        return
    try:
        yield handler, ours
    finally:
        _put(slot, before)


def _request(
    start: Start,
    reply: Callable[[int, int], int],
    request: int,
    ino: int,
    mode: int,
    offset: int,
    length: int,
    info: int,
) -> None:
    """Take a request from libfuse."""
    handle = ctypes.c_uint64.from_address(info + _FH_OFFSET).value
    try:
        start((ino, handle), mode, offset, length, lambda code: reply(request, code))
    except Exception as error:  # without an answer the kernel would wait for ever
        log.exception("FALLOCATE cannot be answered")
        reply(request, errno_of(error))


def _new_session(
    proceed: Callable[..., int | None],
    handler: object,
    arguments: int,
    table: int,
    size: int,
    *rest: int,
) -> int | None:
    """Make a session as pyfuse3 wants it, with one more handler if there is none."""
    places = (ctypes.c_void_p * (size // ctypes.sizeof(ctypes.c_void_p)))()
    ctypes.memmove(places, table, ctypes.sizeof(places))
    if (
        len(places) > _READDIRPLUS
        and places[_FORGET_MULTI]
        and places[_READDIRPLUS]
        and not places[_FALLOCATE]
    ):
        places[_FALLOCATE] = ctypes.cast(handler, ctypes.c_void_p).value  # type: ignore[arg-type]
    return proceed(arguments, ctypes.addressof(places), ctypes.sizeof(places), *rest)


def _entry() -> ctypes.c_void_p:
    """Return the entry of pyfuse3's global offset table for ``_NAMES``. Raises LookupError."""
    if ctypes.sizeof(ctypes.c_void_p) != 8:
        raise LookupError("not a 64-bit machine")
    module = ctypes.CDLL(pyfuse3.__file__)
    found = ctypes.POINTER(_LinkMap)()
    dlinfo = ctypes.CDLL(None).dlinfo
    dlinfo.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)
    if dlinfo(module._handle, _RTLD_DI_LINKMAP, ctypes.byref(found)):
        raise LookupError("the module is not to be found in memory")
    base = found.contents.address
    known = {}
    at = found.contents.dynamic
    while (entry := _Dynamic.from_address(at)).tag != _DT_NULL:
        known[entry.tag] = entry.value
        at += ctypes.sizeof(_Dynamic)

    def address(tag: int) -> int:
        value = int(known[tag])
        return value if value >= base else base + value  # glibc has added the base, others have not

    for table, length in ((_DT_JMPREL, _DT_PLTRELSZ), (_DT_RELA, _DT_RELASZ)):
        if table not in known:
            continue
        for number in range(known[length] // ctypes.sizeof(_Relocation)):
            relocation = _Relocation.from_address(
                address(table) + number * ctypes.sizeof(_Relocation)
            )
            symbol = _Symbol.from_address(
                address(_DT_SYMTAB) + (relocation.info >> 32) * ctypes.sizeof(_Symbol)
            )
            if ctypes.string_at(address(_DT_STRTAB) + symbol.name) in _NAMES:
                return ctypes.c_void_p.from_address(base + relocation.offset)
    raise LookupError("pyfuse3 makes its session in some other way")


def _put(slot: ctypes.c_void_p, value: int | None) -> None:
    """Write an entry, which the dynamic linker may have made read-only. Raises OSError."""
    at = ctypes.addressof(slot)
    page = at & -mmap.PAGESIZE
    protect = ctypes.CDLL(None, use_errno=True).mprotect
    protect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    locked = not _is_writable(at)
    if locked and protect(page, mmap.PAGESIZE, _PROT_READ | _PROT_WRITE):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    slot.value = value
    if locked:
        protect(page, mmap.PAGESIZE, _PROT_READ)


def _is_writable(address: int) -> bool:
    for line in Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines():
        bounds, rights = line.split(" ", 2)[:2]
        start, end = (int(bound, 16) for bound in bounds.split("-"))
        if start <= address < end:
            return "w" in rights
    raise LookupError("the entry is not mapped")
