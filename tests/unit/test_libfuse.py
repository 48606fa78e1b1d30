"""The place where pyfuse3 makes its session."""

import _ctypes
import ctypes
import errno
from collections.abc import Callable
from typing import Any

import pyfuse3
import pytest

from jfs.mount import copying, fallocate, libfuse


def test_the_entry_is_ours_for_a_while() -> None:
    entry = libfuse.entry(libfuse.library(), b"fuse_session_new", b"fuse_session_new_versioned")
    before = entry.value
    assert before
    with libfuse.table_changed_by([]) as kept:
        assert kept
        assert entry.value != before
    assert entry.value == before


def table_of(functions: int, *, without: str = "fallocate") -> ctypes.Array[ctypes.c_void_p]:
    """Make a table as pyfuse3 gives it to libfuse; nothing in it is ever called."""
    table = (ctypes.c_void_p * functions)(*range(1, functions + 1))
    for name in ("fallocate", without):
        if libfuse.PLACES[name][0] < functions:
            table[libfuse.PLACES[name][0]] = None
    return table


class Session:
    """What libfuse would be given."""

    def __init__(self) -> None:
        self.given: list[int | None] = []
        self.where: tuple[int, int] = (0, 0)

    def new(self, arguments: int, address: int, size: int, *rest: int) -> int:
        self.where = address, size
        self.given = list((ctypes.c_void_p * (size // 8)).from_address(address))
        return 42


def ask_for_a_session(
    table: ctypes.Array[ctypes.c_void_p], *changes: Callable[[libfuse.Table], object]
) -> tuple[Session, list[object]]:
    session, kept = Session(), list[object]()
    where = ctypes.addressof(table), ctypes.sizeof(table)
    assert libfuse._new_session(session.new, changes, kept, 1, *where, 2, 3) == 42
    return session, kept


def test_a_table_that_is_known_gets_one_function_more() -> None:
    table = table_of(44)
    session, kept = ask_for_a_session(table, fallocate.handled_by(lambda *_: None))
    places = list(table)
    (place, _), (handler,) = libfuse.PLACES["fallocate"], kept
    assert session.given[place] == ctypes.cast(handler, ctypes.c_void_p).value  # type: ignore[arg-type]
    assert session.given[:place] == places[:place]
    assert session.given[place + 1 :] == places[place + 1 :]
    assert places[place] is None  # pyfuse3's own stays as it is


@pytest.mark.parametrize("other", [{"functions": 40}, {"functions": 44, "without": "readdirplus"}])
def test_a_table_that_is_not_known_is_passed_on_as_it_is(other: dict[str, Any]) -> None:
    table = table_of(**other)
    session, kept = ask_for_a_session(table, fallocate.handled_by(lambda *_: None))
    assert session.where == (ctypes.addressof(table), ctypes.sizeof(table))
    assert kept == []


def test_a_handler_that_pyfuse3_has_by_now_is_left_alone() -> None:
    table = table_of(44)
    table[libfuse.PLACES["fallocate"][0]] = 7
    session, _ = ask_for_a_session(table, fallocate.handled_by(lambda *_: None))
    assert session.given == list(table)


def test_a_change_that_cannot_be_made_leaves_the_others() -> None:
    def fails(table: libfuse.Table) -> object:
        raise LookupError("no such function in this libfuse")

    session, kept = ask_for_a_session(table_of(44), fails, fallocate.handled_by(lambda *_: None))
    assert session.given[libfuse.PLACES["fallocate"][0]]
    assert len(kept) == 1


def test_a_pyfuse3_that_makes_its_session_otherwise_is_left_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Here: a module that does not know libfuse. The mount starts without what it would add."""
    monkeypatch.setattr(pyfuse3, "__file__", _ctypes.__file__)
    with libfuse.table_changed_by([fallocate.handled_by(lambda *_: None)]) as kept:
        assert kept == []


def test_a_request_is_answered_whatever_happens(expected_logs: list[str]) -> None:
    """Without an answer the kernel would wait for ever, and with it whoever asked."""
    expected_logs.append("FALLOCATE cannot be answered")
    answered: list[tuple[int, int]] = []

    def reply(request: int, code: int) -> int:
        answered.append((request, code))
        return 0

    def start(request: int, *_: object) -> None:
        raise OSError(errno.ENOSPC, "no room")

    info = (ctypes.c_uint64 * 8)()
    fallocate._request(start, reply, 5, 6, 0, 0, 10, ctypes.addressof(info))
    assert answered == [(5, errno.ENOSPC)]


def test_a_copy_is_answered_whatever_happens(expected_logs: list[str]) -> None:
    expected_logs.append("COPY_FILE_RANGE cannot be answered")
    asked: list[tuple[object, ...]] = []
    answered: list[tuple[int, int, int]] = []

    def reply(request: int, count: int, code: int) -> None:
        answered.append((request, count, code))

    def start(request: int, *rest: object) -> None:
        asked.append((request, *rest[:3]))
        raise OSError(errno.ENOSPC, "no room")

    source, target = (ctypes.c_uint64 * 8)(0, 0, 7), (ctypes.c_uint64 * 8)(0, 0, 8)
    infos = ctypes.addressof(source), ctypes.addressof(target)
    copying._request(start, reply, 5, 1, 100, infos[0], 2, 200, infos[1], 300, 0)
    assert asked == [(5, (7, 100), (8, 200), 300)]
    assert answered == [(5, 0, errno.ENOSPC)]


def test_a_copy_gets_a_handler_of_ours() -> None:
    place, _ = libfuse.PLACES["copy_file_range"]
    table = table_of(44, without="copy_file_range")
    session, (handler,) = ask_for_a_session(table, copying.copied_by(lambda *_: None))
    assert session.given[place] == ctypes.cast(handler, ctypes.c_void_p).value  # type: ignore[arg-type]
    table[place] = 7  # pyfuse3 has one by now
    session, _ = ask_for_a_session(table, copying.copied_by(lambda *_: None))
    assert session.given == list(table)
    session, kept = ask_for_a_session(table_of(42), copying.copied_by(lambda *_: None))
    assert kept == []  # a libfuse without such a place
