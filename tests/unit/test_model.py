"""Values that every part speaks of."""

import pytest

from jfs.model import Checksums, FileInfo, FolderInfo, RepoPath, same_content

PATH = RepoPath("r", "f")


@pytest.mark.parametrize(
    ("one", "other", "size", "time", "same"),
    [
        (Checksums("a", "1"), Checksums("a", "1"), 5, 7, True),
        (Checksums("a", "1"), Checksums("b", "1"), 5, 7, False),  # the strongest decides
        (Checksums("a", "1"), Checksums(None, "1"), 5, 9, True),  # a listing names less
        (Checksums("a", "1"), Checksums(None, "2"), 5, 7, False),
        (Checksums("a"), Checksums("a"), 6, 7, False),
        (Checksums("a"), Checksums(None, "1"), 5, 7, True),  # none in common: the time decides
        (Checksums("a"), Checksums(None, "1"), 5, 9, False),
        (Checksums(), Checksums(), 5, 7, True),
    ],
)
def test_contents_are_told_apart(
    one: Checksums, other: Checksums, size: int, time: int, same: bool
) -> None:
    here, there = FileInfo(PATH, 5, one, 7), FileInfo(PATH, size, other, time)
    assert same_content(here, there) is same
    assert same_content(there, here) is same
    assert not same_content(here, FolderInfo(PATH, 7))
