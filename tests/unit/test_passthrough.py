"""What is changed in libfuse so that the kernel reads files itself, and when it is not."""

import _ctypes
import ctypes
import struct
from pathlib import Path

import pyfuse3
import pytest

from jfs.mount import libfuse
from jfs.mount.passthrough import _KILLPRIV_V2, Passthrough, _agree, _offers, _Piece

_CHANGED = (b"fuse_session_process_buf", b"fuse_reply_open", b"fuse_reply_create")
_EXT, _PASSTHROUGH = 1 << 30, 1 << 5


def slots() -> list[int | None]:
    return [libfuse.entry(libfuse.library(), name).value for name in _CHANGED]


def test_what_is_changed_is_put_back(tmp_path: Path) -> None:
    before = slots()
    passthrough = Passthrough(tmp_path)
    passthrough.prepare(lambda handle: (0, False), lambda handle: None)
    assert passthrough.reason is None
    assert all(now != then for now, then in zip(slots(), before, strict=True))
    passthrough.end()
    assert slots() == before


def test_without_a_cache_nothing_is_changed() -> None:
    before = slots()
    passthrough = Passthrough(None)
    passthrough.prepare(lambda handle: (0, False), lambda handle: None)
    assert slots() == before
    passthrough.try_it()
    assert not passthrough.is_on
    assert passthrough.reason == "there is no disk cache"


def test_a_libfuse_that_is_not_known_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Here: a module that does not know libfuse."""
    monkeypatch.setattr(pyfuse3, "__file__", _ctypes.__file__)
    passthrough = Passthrough(tmp_path)
    passthrough.prepare(lambda handle: (0, False), lambda handle: None)
    passthrough.try_it()
    assert not passthrough.is_on
    assert passthrough.reason is not None
    assert passthrough.reason.startswith("this libfuse is not known: ")


def test_a_kernel_that_was_never_heard_of_it_is_given_no_file(tmp_path: Path) -> None:
    passthrough = Passthrough(tmp_path)
    passthrough.try_it()
    assert not passthrough.is_on
    with (tmp_path / "f").open("wb") as file:
        assert passthrough.open(file.fileno()) is None
    passthrough.close(1)


def request(
    opcode: int, flags: int, flags2: int, *, size: int = 104
) -> ctypes.Array[ctypes.c_char]:
    """Return a request as the kernel sends it, and struct fuse_buf of libfuse around it."""
    header = struct.pack("=IIQQIIII", size, opcode, 2, 0, 0, 0, 0, 0)
    body = header + struct.pack("=IIIII", 7, 45, 131072, flags, flags2)
    data = ctypes.create_string_buffer(body, 104)
    buffer = ctypes.create_string_buffer(
        struct.pack("@NiPiq", size, 0, ctypes.addressof(data), -1, 0)
    )
    buffer._data = data  # type: ignore[attr-defined]  # kept as long as the other
    return buffer


@pytest.mark.parametrize(
    ("opcode", "flags", "flags2", "size", "offers"),
    [
        (26, _EXT, _PASSTHROUGH, 104, True),
        (26, _EXT | 1, 0xFFFF, 104, True),
        (26, _EXT, 0, 104, False),  # a kernel that has none
        (26, 0, _PASSTHROUGH, 104, False),  # before Linux 5.17 there were no such flags
        (26, _EXT, _PASSTHROUGH, 56, False),
        (1, _EXT, _PASSTHROUGH, 104, False),
    ],
)
def test_what_the_kernel_offers(
    opcode: int, flags: int, flags2: int, size: int, offers: bool
) -> None:
    asked = request(opcode, flags, flags2, size=size)
    assert _offers(ctypes.addressof(asked)) == offers


def answer(error: int, size: int) -> tuple[bytes, bool]:
    """Return what becomes of an answer to INIT, and whether it accepts passthrough."""
    header = ctypes.create_string_buffer(struct.pack("=IiQ", 16 + size, error, 2), 16)
    body = ctypes.create_string_buffer(struct.pack("=IIII", 7, 38, 131072, 0x1001), 64)
    pieces = (_Piece * 2)(
        _Piece(ctypes.addressof(header), 16), _Piece(ctypes.addressof(body), size)
    )
    agreed = _agree(ctypes.addressof(pieces), 2, 2, privileges=True)
    return body.raw, agreed


def test_the_answer_to_init_accepts_it() -> None:
    body, agreed = answer(0, 64)
    assert agreed
    assert struct.unpack_from("=IIII", body) == (7, 38, 131072, 0x1001 | _EXT | _KILLPRIV_V2)
    assert struct.unpack_from("=II", body, 32) == (_PASSTHROUGH, 2)


@pytest.mark.parametrize(("error", "size"), [(-71, 64), (0, 24)])
def test_an_answer_that_is_not_as_known_is_left_alone(error: int, size: int) -> None:
    body, agreed = answer(error, size)
    assert not agreed
    assert body == struct.pack("=IIII", 7, 38, 131072, 0x1001).ljust(64, b"\0")


def test_a_cache_that_may_hang_is_never_passed_on() -> None:
    """Here a file system that is none of a disk; those of networks, and FUSE, are as well."""
    before = slots()
    passthrough = Passthrough(Path("/proc"))
    passthrough.prepare(lambda handle: (0, False), lambda handle: None)
    passthrough.try_it()
    assert slots() == before
    assert not passthrough.is_on
    assert passthrough.reason == "/proc: a file system of this kind may hang (0x9fa0)"
