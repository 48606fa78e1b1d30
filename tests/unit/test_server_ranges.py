"""Range and conditional requests (artifactory-rest 3.2, 3.3)."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jfs.extents import Extent
from jfs.server.wire.answers import http_date
from jfs.server.wire.ranges import Unsatisfiable, not_modified, requested

SHA1 = "a" * 40
AT_S = 1_700_000_000
BEFORE, AT, AFTER = (http_date((AT_S + each) * 1000) for each in (-1, 0, 1))


def ask(text: str, size: int = 100, **headers: str) -> list[Extent]:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return requested({"Range": text, **named}, size, SHA1, AT_S)


@pytest.mark.parametrize(
    ("text", "extents"),
    [
        ("bytes=0-9", [(0, 10)]),
        ("bytes=90-", [(90, 100)]),
        ("bytes=90-1000", [(90, 100)]),
        ("bytes=-10", [(90, 100)]),
        ("bytes=-1000", [(0, 100)]),
        ("bytes=0-1,5-6", [(0, 2), (5, 7)]),
        ("bytes=5-6, 0-4", [(0, 7)]),
        ("bytes=0-50,20-60,70-", [(0, 61), (70, 100)]),
        ("bytes=0-0,999-", [(0, 1)]),
        ("BYTES = 1 - 2", [(1, 3)]),
        ("bytes 0-9", []),
        ("items=0-9", []),
        ("bytes=a-b", []),
        ("bytes=-", []),
        ("bytes=0-9,", []),
        ("bytes=" + ",".join(f"{n}-{n}" for n in range(0, 300, 2)), []),
    ],
)
def test_ranges(text: str, extents: list[tuple[int, int]]) -> None:
    assert ask(text) == extents


@pytest.mark.parametrize("text", ["bytes=100-", "bytes=9-5", "bytes=-0", "bytes=500-600,700-"])
def test_what_lies_outside(text: str) -> None:
    with pytest.raises(Unsatisfiable):
        ask(text)


@pytest.mark.parametrize("text", ["bytes=0-", "bytes=0-0", "bytes=-5"])
def test_nothing_of_an_empty_file_can_be_had(text: str) -> None:
    with pytest.raises(Unsatisfiable):
        ask(text, 0)


@given(st.lists(st.tuples(st.integers(0, 120), st.integers(0, 120)), min_size=1, max_size=6))
def test_merged_ranges_cover_what_was_asked_for(pairs: list[tuple[int, int]]) -> None:
    wanted = {each for first, last in pairs for each in range(first, min(last, 99) + 1)}
    text = "bytes=" + ",".join(f"{first}-{last}" for first, last in pairs)
    try:
        extents = ask(text)
    except Unsatisfiable:
        assert not wanted
        return
    assert {each for start, stop in extents for each in range(start, stop)} == wanted
    assert all(one.stop < two.start for one, two in itertools.pairwise(extents))


@pytest.mark.parametrize(
    ("value", "honoured"),
    [
        (SHA1, True),
        (f'"{SHA1}"', False),  # a quoted ETag means "changed"
        ("b" * 40, False),
        (BEFORE, False),
        (AT, True),
        (AFTER, True),
    ],
)
def test_if_range(value: str, honoured: bool) -> None:
    assert ask("bytes=0-9", If_Range=value) == ([(0, 10)] if honoured else [])


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, False),
        ({"If-None-Match": SHA1}, True),
        ({"If-None-Match": f'"{SHA1}"'}, False),
        ({"If-None-Match": "*"}, False),
        ({"If-Modified-Since": BEFORE}, False),
        ({"If-Modified-Since": AT}, True),
        ({"If-Modified-Since": "yesterday"}, False),
        ({"If-Modified-Since": BEFORE, "Last-Modified": AFTER}, True),
        ({"If-None-Match": SHA1, "If-Modified-Since": BEFORE}, False),
        ({"If-None-Match": "b" * 40, "If-Modified-Since": AFTER}, False),
        ({"If-None-Match": SHA1, "If-Modified-Since": AT}, True),
    ],
)
def test_conditions(headers: dict[str, str], expected: bool) -> None:
    assert not_modified(headers, SHA1, AT_S) is expected
