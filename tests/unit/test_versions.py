"""The order of versions."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jfs.vfs.namespace.versions import version_key


@pytest.mark.parametrize(
    "ordered",
    [
        ["v1", "v2", "v10"],
        ["1.0.0-alpha", "1.0.0-alpha.1", "1.0.0-beta.2", "1.0.0-beta.11", "1.0.0-rc.1", "1.0.0"],
        ["1.9.0", "1.10.0", "1.11.0", "2.0.0-rc1", "2.0.0-rc10", "2.0.0", "10"],
        ["release-1.2.3", "release-1.2.10"],
        ["2023-12-31", "2024-01-02", "2024-01-31", "20240201"],
        ["2024-01-31T10:20:30.123Z", "2024-01-31T11:00:00.000Z"],
        ["checkpoint-500", "checkpoint-1000"],
        ["latest", "2024-01-01", "v1"],  # what is no version at all is the oldest
        ["1.0.0+build5", "1.0.1"],
        ["20249999", "20250000"],  # numbers, no dates
    ],
)
def test_the_order(ordered: list[str]) -> None:
    shuffled = random.Random(1).sample(ordered, len(ordered))
    assert sorted(shuffled, key=lambda name: version_key(name, 7)) == ordered


def test_other_names_go_by_their_time() -> None:
    times = {"final": 3, "really-final": 9, "draft": 1}
    assert sorted(times, key=lambda name: version_key(name, times[name])) == [
        "draft",
        "final",
        "really-final",
    ]


def test_equal_versions_go_by_their_time() -> None:
    assert version_key("1.0", 5) < version_key("1.0.0", 6)


@given(
    st.lists(st.text(max_size=12) | st.from_regex(r"v?[0-9]{1,3}(\.[0-9]{1,3}){0,2}(-rc\.?[0-9])?"))
)
def test_any_names_can_be_compared(names: list[str]) -> None:
    keys = sorted(version_key(name, 0) for name in names)
    assert len(keys) == len(names)
