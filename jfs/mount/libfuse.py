"""How jfs changes what pyfuse3 (3.5) gives libfuse: a table of functions, one for each request.

``struct fuse_lowlevel_ops`` is a public interface whose order never changes, with NULL for what is
not supported. pyfuse3 passes it on by ``fuse_session_new``, which it calls through an entry of its
global offset table. While ``table_changed_by`` lasts that entry leads to a function of ours, which
passes on a changed copy. Where anything is not as it is known to be (another libfuse, a 32-bit
machine), nothing is changed. Everything here runs in the thread that calls pyfuse3.

``entry`` finds such an entry for other functions too (``jfs.mount.passthrough``).
"""

import contextlib
import ctypes
import logging
import mmap
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import pyfuse3

log = logging.getLogger(__name__)

_RTLD_DI_LINKMAP = 2
_DT_NULL, _DT_PLTRELSZ, _DT_STRTAB, _DT_SYMTAB = 0, 2, 5, 6  # elf.h
_DT_RELA, _DT_RELASZ, _DT_JMPREL = 7, 8, 23
_PROT_READ, _PROT_WRITE = 1, 2
# Places in struct fuse_lowlevel_ops (fuse_lowlevel.h of libfuse 3), and the arguments of each, the
# request first. All are integers or pointers.
PLACES = {
    "lookup": (2, 3),
    "getattr": (4, 3),
    "setattr": (5, 5),
    "readlink": (6, 2),
    "mknod": (7, 5),
    "mkdir": (8, 4),
    "unlink": (9, 3),
    "rmdir": (10, 3),
    "symlink": (11, 4),
    "rename": (12, 6),
    "open": (14, 3),
    "read": (15, 5),
    "flush": (17, 3),
    "fsync": (19, 4),
    "opendir": (20, 3),
    "setxattr": (25, 6),
    "getxattr": (26, 4),
    "listxattr": (27, 3),
    "removexattr": (28, 3),
    "create": (30, 5),
    "write_buf": (36, 5),
    "forget_multi": (38, 3),
    "fallocate": (40, 6),
    "readdirplus": (41, 5),
    "copy_file_range": (42, 9),
}
_NOT_OF_PYFUSE3 = frozenset(["fallocate", "copy_file_range"])
_FH_OFFSET = 16  # of the handle in struct fuse_file_info (fuse_common.h)

_POINTER = ctypes.c_void_p
# The second has a version before the last argument (libfuse 3.17). What is passed on as a fifth to
# the first is whatever a register holds: nobody looks at it.
_NAMES = (b"fuse_session_new", b"fuse_session_new_versioned")
_NEW_SESSION = ctypes.CFUNCTYPE(_POINTER, _POINTER, _POINTER, ctypes.c_size_t, _POINTER, _POINTER)


class _LinkMap(ctypes.Structure):
    _fields_ = (
        ("address", ctypes.c_uint64),
        ("name", ctypes.c_char_p),
        ("dynamic", ctypes.c_void_p),
    )


class _Info(ctypes.Structure):
    """Dl_info of dladdr(3)."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("base", ctypes.c_void_p),
        ("symbol", ctypes.c_char_p),
        ("address", ctypes.c_void_p),
    )


class _Dynamic(ctypes.Structure):
    _fields_ = (("tag", ctypes.c_int64), ("value", ctypes.c_uint64))


class _Symbol(ctypes.Structure):
    _fields_ = (("name", ctypes.c_uint32), ("rest", ctypes.c_uint8 * 20))


class _Relocation(ctypes.Structure):
    _fields_ = (("offset", ctypes.c_uint64), ("info", ctypes.c_uint64), ("addend", ctypes.c_int64))


class Table:
    """A copy of the table, to be changed before the session is made."""

    def __init__(self, address: int, size: int) -> None:
        self._places = (ctypes.c_void_p * (size // ctypes.sizeof(ctypes.c_void_p)))()
        ctypes.memmove(self._places, address, ctypes.sizeof(self._places))

    def get(self, name: str) -> int | None:
        """Return the address of a function; None: it is not supported."""
        return self._places[PLACES[name][0]]

    def put(self, name: str, function: object) -> None:
        """Have *function*, a ctypes callback that the caller keeps, called."""
        address = ctypes.cast(function, ctypes.c_void_p).value  # type: ignore[arg-type]
        self._places[PLACES[name][0]] = address

    @property
    def is_known(self) -> bool:
        """Whether it is as long as it has to be, and has what pyfuse3 has a handler for."""
        return len(self._places) > PLACES["readdirplus"][0] and all(
            self.get(name) for name in PLACES if name not in _NOT_OF_PYFUSE3
        )

    @property
    def where(self) -> tuple[int, int]:
        """Its address and size."""
        return ctypes.addressof(self._places), ctypes.sizeof(self._places)


def library() -> ctypes.CDLL:
    """Return the libfuse that pyfuse3 is linked to. Raises OSError."""
    return ctypes.CDLL(pyfuse3.__file__)


@contextlib.contextmanager
def table_changed_by(changes: Sequence[Callable[[Table], object]]) -> Iterator[list[object]]:
    """Have pyfuse3 register other handlers, if it makes its session in the block.

    Args:
        changes: called with the table. One that raises AttributeError, LookupError or ValueError
            changes nothing.
    Returns:
        What must be kept as long as the session lives: also what *changes* return, once it is made.
    """
    kept: list[object] = []
    try:
        slot = entry(library(), *_NAMES)
        before = slot.value
        ours = _NEW_SESSION(partial(_new_session, _NEW_SESSION(before or 0), changes, kept))
        kept.append(ours)
        put(slot, ctypes.cast(ours, ctypes.c_void_p).value)
    except (OSError, AttributeError, LookupError, ValueError) as error:
        log.debug("libfuse stays as it is: %s", error)
        yield kept
        return
    try:
        yield kept
    finally:
        put(slot, before)


def adding(name: str, make: Callable[[], object]) -> Callable[[Table], object]:
    """Return a change for ``table_changed_by``: a handler that pyfuse3 has not, unless it has.

    Args:
        make: returns the ctypes callback.
    """

    def change(table: Table) -> object:
        if table.get(name):
            return None
        handler = make()
        table.put(name, handler)
        return handler

    return change


def handle_of(info: int) -> int:
    """Return the handle that a ``struct fuse_file_info`` has, by the address of that."""
    return ctypes.c_uint64.from_address(info + _FH_OFFSET).value


def _new_session(
    proceed: Callable[..., int | None],
    changes: Sequence[Callable[[Table], object]],
    kept: list[object],
    arguments: int,
    address: int,
    size: int,
    *rest: int,
) -> int | None:
    """Make a session as pyfuse3 wants it, but for the changes."""
    table = Table(address, size)
    if not table.is_known:
        return proceed(arguments, address, size, *rest)
    for change in changes:
        try:
            kept.append(change(table))
        except (OSError, AttributeError, LookupError, ValueError) as error:
            log.debug("libfuse is not changed: %s", error)
    return proceed(arguments, *table.where, *rest)


def entry(module: ctypes.CDLL, *names: bytes) -> ctypes.c_void_p:
    """Return the entry of a library's global offset table for a function of another.

    Args:
        names: of the function; one of them.
    Raises:
        LookupError: it calls none of that name.
    """
    if ctypes.sizeof(ctypes.c_void_p) != 8:
        raise LookupError("not a 64-bit machine")
    found = ctypes.POINTER(_LinkMap)()
    dlinfo = ctypes.CDLL(None).dlinfo
    dlinfo.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)
    if dlinfo(module._handle, _RTLD_DI_LINKMAP, ctypes.byref(found)):
        raise LookupError("the module is not to be found in memory")
    base = found.contents.address
    known = {}
    at = found.contents.dynamic
    while (item := _Dynamic.from_address(at)).tag != _DT_NULL:
        known[item.tag] = item.value
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
            if ctypes.string_at(address(_DT_STRTAB) + symbol.name) in names:
                return ctypes.c_void_p.from_address(base + relocation.offset)
    raise LookupError(f"{module._name} does not call {names[0].decode()}")


def library_of(function: object) -> ctypes.CDLL:
    """Return the library that has a function. Raises OSError, LookupError."""
    found = _Info()
    dladdr = ctypes.CDLL(None).dladdr
    dladdr.argtypes = (ctypes.c_void_p, ctypes.c_void_p)
    if not dladdr(ctypes.cast(function, ctypes.c_void_p), ctypes.byref(found)):  # type: ignore[arg-type]
        raise LookupError("nobody has the function")
    return ctypes.CDLL(os.fsdecode(found.name))


def put(slot: ctypes.c_void_p, value: int | None) -> None:
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
