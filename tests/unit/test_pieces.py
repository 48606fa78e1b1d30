"""Long objects read in pieces: the same as ``json.loads``, wherever they are cut."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jfs.artifactory.pieces import LongObject
from jfs.artifactory.wire import parse_json
from jfs.errors import ProtocolViolation, Unavailable

_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
_OBJECTS = st.fixed_dictionaries(
    {"files": st.lists(_VALUES, max_size=8)}, optional={"a": _VALUES, "range": _VALUES, "": _VALUES}
)


def read(pieces: list[bytes], *, required: bool = True) -> tuple[list[Any], dict[str, Any]]:
    rows: list[Any] = []
    reader = LongObject("files", rows.append, "it", required=required)
    for piece in pieces:
        reader.feed(piece)
    return rows, reader.end()


@given(_OBJECTS, st.integers(1, 40), st.sampled_from([None, 2]), st.booleans())
def test_it_is_what_json_loads_gives(
    document: dict[str, Any], size: int, indent: int | None, ascii_only: bool
) -> None:
    body = json.dumps(document, indent=indent, ensure_ascii=ascii_only).encode("utf-8")
    pieces = [body[start : start + size] for start in range(0, len(body), size)]
    rows, members = read(pieces)
    assert rows == document.pop("files")
    assert members.pop("files") is None
    assert members == document


@pytest.mark.parametrize("number", ["10.5", "1e+7", "-0.25E-3", "12", "-7"])
def test_a_number_may_be_cut_anywhere(number: str) -> None:
    body = f'{{"a": {number}, "files": [{number}, {number}], "b": {number}}}'.encode()
    for at in range(len(body)):
        rows, members = read([body[:at], body[at:]])
        assert rows == [float(number)] * 2
        assert members == {"a": float(number), "files": None, "b": float(number)}


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"[]", b"[1", b'"x"', b"7", b"<html>", b"nonsense", b"\xff\xfe"),
        *(b"{}", b'{"files": {}}', b'{"files": null}', b'{"files": 1}', b'{"results": []}'),
        *(b'{"files": [1,]}', b'{"files": [trulli', b'{"files": ["\\u12", 3]}', b'{"files": [+'),
        *(b'{"files": [] "a": 1}', b'{"files": []} x', b'{"files" []}', b"{7: 1}", b'{"a": }'),
        *(b'{"files": [tru]}', b'{"files": ["\xc3"]}', b"[" * 100_000, b'{"files": ' + b"[" * 9999),
    ],
)
def test_what_is_broken_is_a_protocol_violation(body: bytes) -> None:
    for pieces in ([body], [body[at : at + 1000] for at in range(0, len(body), 1000)]):
        with pytest.raises(ProtocolViolation):
            read(pieces)


@pytest.mark.parametrize(
    "document",
    [
        {"files": [{"a": "1"}, {"b": [1.5e30, -7, True]}, "ä", "\u0001", {}, False, None], "c": {}},
        {"uri": "x", "files": [], "range": {"n": 0}},
    ],
)
@pytest.mark.parametrize("ascii_only", [False, True])
def test_what_ends_too_early_can_be_asked_again(document: object, ascii_only: bool) -> None:
    body = json.dumps(document, ensure_ascii=ascii_only, indent=2).encode()
    for size in range(1, len(body)):
        with pytest.raises(Unavailable, match="too early"):
            read([body[:size]])
        with pytest.raises(Unavailable, match="too early"):
            parse_json(body[:size], "it")


def test_the_array_may_be_missing_where_it_may() -> None:
    assert read([b'{"size": "1"}'], required=False) == ([], {"size": "1"})
    assert read([b'{"files": {"x": 1}}'], required=False) == ([], {"files": {"x": 1}})


def test_a_number_is_not_cut() -> None:
    assert read([b'{"n": 12', b'34, "files": [5', b"6]}"]) == ([56], {"n": 1234, "files": None})


def test_a_byte_order_mark_and_lone_surrogates_are_read() -> None:
    assert read([b"\xef\xbb", b'\xbf{"files": ["\\ud800"]}'])[0] == ["\ud800"]


def test_one_endless_value_is_refused_in_linear_time() -> None:
    reader = LongObject("files", print, "it")

    def endless() -> None:
        reader.feed(b'{"files": ["')
        for _ in range(1000):
            reader.feed(b"x" * 65536)

    with pytest.raises(ProtocolViolation, match="longer than"):
        endless()


def test_rows_are_handed_over_as_they_come() -> None:
    rows: list[Any] = []
    reader = LongObject("files", rows.append, "it")
    reader.feed(b'{"uri": "x", "files": [{"a": 1}, {"a": 2},')
    assert rows == [{"a": 1}, {"a": 2}]
