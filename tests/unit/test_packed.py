"""Very many entries in little memory: every fact comes back, and every row is found."""

import gc
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jfs.model import Checksums, EntryInfo, FileInfo, FolderInfo, RepoPath
from jfs.packed import DEAD, MANY, TAKEN, Changes, Gathered, Packed, number_of, prefix_of
from jfs.vfs.freshness import NEVER, Asked
from jfs.vfs.namespace.inodes import Inode
from jfs.vfs.namespace.inodetable import InodeTable

FOLDER = RepoPath("r", "big")


def info_of(number: int) -> FileInfo:
    sums = Checksums(sha256=f"{number:064x}", sha1=f"{number:040x}")
    return FileInfo(FOLDER.child(f"model-{number:07}.safetensors"), number, sums, number)


def filled(count: int) -> Packed:
    packed = Packed(FOLDER)
    for number in range(count):
        info = info_of(number)
        packed.add(info.path.name, info)
    return packed


_DIGESTS = st.text("0123456789abcdef", min_size=1, max_size=3).map(lambda text: text * 64)
_INFOS: st.SearchStrategy[EntryInfo] = st.one_of(
    st.builds(
        FileInfo,
        st.just(FOLDER.child("x")),
        st.integers(0, (1 << 63) - 1),
        st.builds(
            Checksums,
            sha256=st.none() | _DIGESTS.map(lambda text: text[:64]),
            sha1=st.none() | _DIGESTS.map(lambda text: text[:40]),
        ),
        st.integers(-(1 << 70), 1 << 70),
        link_target=st.none() | st.just("../there"),
    ),
    st.builds(
        FolderInfo,
        st.just(FOLDER.child("x")),
        st.integers(-(1 << 70), 1 << 70),
        listed=st.booleans(),
    ),
)


@given(infos=st.lists(_INFOS, min_size=2, max_size=4))
def test_what_a_listing_says_comes_back(infos: list[EntryInfo]) -> None:
    packed = Packed(FOLDER)
    for info in infos:
        row = packed.add("x", info)
        assert packed[row] == info
        assert packed.is_like(row, info)
    for info in infos:
        packed.put(0, info)
        assert packed[0] == info
    assert packed.folders == sum(isinstance(info, FolderInfo) for info in [infos[-1], *infos[1:]])


@pytest.mark.parametrize("name", ["a", "x" * 255, "é", "a b", "日本"])
def test_a_row_is_found_by_name_and_number(name: str) -> None:
    packed = filled(5000)
    row = packed.add(name, FileInfo(FOLDER.child(name), 1, Checksums(), 2))
    assert packed.name(row) == name
    assert packed.find(name) == row
    assert list(packed.numbered(number_of(f"{FOLDER}/{name}"))) == [row]
    assert prefix_of(packed.number(row)) == prefix_of(packed.number(0))
    assert packed.find("absent") == -1
    packed.mark(row, TAKEN)
    assert (packed.find(name), packed.find(name, TAKEN)) == (-1, row)
    packed.mark(row, DEAD)
    again = packed.add(name, FileInfo(FOLDER.child(name), 1, Checksums(), 2), 12345)
    assert packed.find(name) == again
    assert packed.number(again) == 12345
    for number in range(0, 5000, 777):
        assert packed[packed.find(info_of(number).path.name)] == info_of(number)


def test_an_entry_costs_at_most_150_bytes() -> None:
    """A million must fit beside everything else into a quarter of a gibibyte."""
    gc.collect()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        packed = filled(MANY)
        after, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (after - before) / len(packed) <= 150
    assert (most - before) / len(packed) <= 200


def test_a_small_folder_costs_little_more_than_its_records() -> None:
    gc.collect()
    infos = [info_of(number) for number in range(100)]
    names = [info.path.name for info in infos]
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        packed = Packed(FOLDER, count=100)
        for name, info in zip(names, infos, strict=True):
            packed.add(name, info)
        packed.trim()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert [packed[packed.find(name)] for name in names] == infos
    assert (after - before) / len(packed) <= 82 + 25 + 25


def test_many_are_packed_and_few_are_not() -> None:
    gathered, infos = Gathered(FOLDER), [info_of(number) for number in range(MANY + 10)]
    for count, info in enumerate(infos, 1):
        assert gathered.add(info.path.name, info)
        assert gathered.is_packed == (count > MANY)
        if count in (MANY, MANY + 10):
            assert not gathered.add(info.path.name, infos[0])
            assert list(gathered.entries) == infos[:count]


def test_of_a_new_listing_only_changes_are_kept() -> None:
    known = filled(10)
    known.mark(9, DEAD)
    changes = Changes(FOLDER, known)
    other, empty = info_of(99), FileInfo(FOLDER.child("empty"), 0, Checksums(), 0)
    for number in range(2, 10):
        info = info_of(number)
        assert changes.take(info.path.name, other if number == 5 else info)
        assert not changes.take(info.path.name, info)
    assert changes.take("empty", empty)
    assert [changes.name(row) for row in range(len(changes))] == [
        info_of(5).path.name,
        info_of(9).path.name,
        "empty",
    ]
    assert list(changes.seen) == [0, 0, 1, 1, 1, 0, 1, 1, 1, 0]


def crowd(count: int) -> tuple[InodeTable, Inode]:
    table = InodeTable(FolderInfo(RepoPath("r"), 0))
    folder = table.link(table.root, "big", FolderInfo(FOLDER, 0), NEVER)
    table.remember(folder)
    assert folder.below is not None
    asked = Asked(5, 1.0)
    folder.below.listing.put(True, asked)
    table.gather(folder, filled(count), asked)
    return table, folder


def fold(folder: Inode) -> None:
    assert folder.below is not None
    assert folder.below.crowd is not None
    folder.below.crowd.fold(list(folder.dentries))


def test_an_object_is_made_on_demand_and_folded_when_nobody_has_it() -> None:
    table, folder = crowd(10)
    name = info_of(3).path.name
    inode = folder.child(name)
    assert inode is not None
    table.remember(inode)
    ino = inode.ino
    fold(folder)
    assert table.living[ino] is inode  # this test has it
    del inode
    fold(folder)
    assert ino not in table.living
    assert table.get(ino).lookup_count == 1
    assert table.get(ino).info == info_of(3)


def test_the_kernel_may_hold_every_row_any_number_of_times() -> None:
    table, folder = crowd(3)
    assert folder.below is not None
    ino = number_of(f"{FOLDER}/{info_of(1).path.name}")
    for _ in range(600):
        table.remember_number(ino)
    assert len(table) == 2
    assert table.get(ino).lookup_count == 600
    fold(folder)
    assert len(table) == 2
    assert not table.forget(ino, 599)
    table.forget(folder.ino, 1)
    assert folder.below.crowd is not None  # the kernel has an entry of it still
    assert table.forget(ino, 1)
    assert list(table) == [table.root]


def test_what_the_kernel_holds_does_not_change_under_its_number() -> None:
    table, folder = crowd(3)
    assert folder.below is not None
    rows = folder.below.crowd
    assert rows is not None
    name = info_of(1).path.name
    ino = number_of(f"{FOLDER}/{name}")
    table.remember_number(ino)
    rows.put(name, info_of(50))
    rows.put(info_of(2).path.name, info_of(50))
    now = folder.child(name)
    assert now is not None
    assert now.ino != ino
    assert now.info == FileInfo(FOLDER.child(name), 50, info_of(50).checksums, 50)
    before = table.get(ino)
    assert (before.info, before.attached()) == (info_of(1), False)
    unheld = folder.child(info_of(2).path.name)
    assert unheld is not None
    assert unheld.ino == number_of(f"{FOLDER}/{info_of(2).path.name}")
