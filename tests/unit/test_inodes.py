"""Lookup counts and inode numbers."""

import gc
import tracemalloc

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from jfs.errors import NoEntry
from jfs.model import Checksums, FileInfo, FolderInfo, RepoPath
from jfs.vfs.freshness import NEVER
from jfs.vfs.namespace.inodes import ROOT, Inode
from jfs.vfs.namespace.inodetable import InodeTable

ROOT_INFO = FolderInfo(RepoPath("repo"), 0)


def file_info(path: RepoPath) -> FileInfo:
    return FileInfo(path, 1, Checksums(), 0)


def test_a_number_belongs_to_its_path() -> None:
    first, second = InodeTable(ROOT_INFO), InodeTable(ROOT_INFO)
    info = file_info(RepoPath("repo", "a"))
    one = first.link(first.root, "a", info, NEVER)
    other = second.link(second.root, "a", info, NEVER)
    assert one.ino == other.ino > ROOT


def test_a_name_that_becomes_a_folder_gets_another_number() -> None:
    table = InodeTable(ROOT_INFO)
    path = RepoPath("repo", "a")
    file = table.link(table.root, "a", file_info(path), NEVER)
    table.remember(file)
    folder = table.link(table.root, "a", FolderInfo(path, 0), NEVER)
    assert folder.ino != file.ino
    assert table.get(file.ino) is file
    table.forget(file.ino, 1)
    with pytest.raises(NoEntry):
        table.get(file.ino)
    assert table.get(folder.ino) is folder


def test_a_folder_kept_for_a_child_goes_with_it_when_the_child_is_unlinked_first() -> None:
    table = InodeTable(ROOT_INFO)
    path = RepoPath("repo", "a")
    folder = table.link(table.root, "a", FolderInfo(path, 0), NEVER)
    table.remember(folder)
    child = table.link(folder, "b", file_info(path.child("b")), NEVER)
    table.remember(child)
    table.forget(folder.ino, 1)
    table.unlink(child)
    table.forget(child.ino, 1)
    assert list(table) == [table.root]


def test_a_folder_that_took_the_name_of_a_file_goes_with_all_when_the_file_is_back() -> None:
    table = InodeTable(ROOT_INFO)
    path = RepoPath("repo", "a")
    file = table.link(table.root, "a", file_info(path), NEVER)
    table.remember(file)
    folder = table.link(table.root, "a", FolderInfo(path, 0), NEVER)
    table.link(folder, "b", file_info(path.child("b")), NEVER)
    table.attach_again(file)
    while table.tidy():
        pass
    assert list(table) == [table.root, file]


def folder_with(table: InodeTable, *names: str) -> Inode:
    """A folder that is held, whose listing is known, and its files."""
    path = RepoPath("repo", "a")
    folder = table.link(table.root, "a", FolderInfo(path, 0), NEVER)
    table.remember(folder)
    for name in names:
        table.link(folder, name, file_info(path.child(name)), NEVER)
    assert folder.below is not None
    folder.below.listing.put(True, NEVER._replace(serial=1))
    return folder


def test_a_folder_that_lost_its_entries_while_it_was_packed_stays_empty() -> None:
    table = InodeTable(ROOT_INFO)
    assert table.root.below is not None
    table.root.below.listing.put(True, NEVER)  # keeps the dentry of the folder
    folder = folder_with(table, "b", "c")
    names = list(folder.dentries)
    table.forget(folder.ino, 1)
    while table.tidy():
        pass
    assert table.lives(folder)
    table.pack(folder, names)
    assert folder.dentries == {}
    assert folder.child("b") is None


def test_a_listing_that_came_since_is_not_given_back() -> None:
    table = InodeTable(ROOT_INFO)
    folder = folder_with(table, "b")
    assert folder.below is not None
    chosen = folder.below.listing.asked.serial
    folder.below.listing.put(True, NEVER._replace(serial=chosen + 1))
    table.give_back(folder, chosen)
    assert list(folder.dentries) == ["b"]
    table.give_back(folder, chosen + 1)
    assert folder.dentries == {}


def test_a_number_is_of_one_row_where_a_folder_takes_the_name_of_one_that_has_moved() -> None:
    """As whoever rotates checkpoints does it, while memory is short."""
    table = InodeTable(ROOT_INFO)
    first = folder_with(table, "b", "c")
    table.pack(first, ["b", "c"])
    table.move(first, table.root, "old")
    second = folder_with(table, "b")
    number = second.dentries["b"].ino
    table.remember(second.dentries["b"])
    table.pack(second, ["b"])
    assert table.get(number).path == RepoPath("repo", "a/b")
    assert second.below is not None
    crowd = second.below.crowd
    assert crowd is not None
    crowd.put("c", file_info(RepoPath("repo", "a/c")))  # by a listing
    row = crowd.packed.find("c")
    table.remember_number(crowd.packed.number(row))
    assert crowd.lookups(row) == 1
    assert table.get(crowd.packed.number(row)).path == RepoPath("repo", "a/c")


class Lookups(RuleBasedStateMachine):
    """The kernel's side: it looks names up, remembers how often, and forgets."""

    def __init__(self) -> None:
        super().__init__()
        self.table = InodeTable(ROOT_INFO)
        self.counts: dict[Inode, int] = {}

    def folders(self) -> list[Inode]:
        held = [inode for inode, count in self.counts.items() if count and inode.is_folder]
        return [self.table.root, *held]

    @rule(data=st.data(), name=st.sampled_from("abc"), folder=st.booleans())
    def lookup(self, data: st.DataObject, name: str, folder: bool) -> None:
        parent = data.draw(st.sampled_from(self.folders()))
        path = parent.path.child(name)
        info = FolderInfo(path, 0) if folder else file_info(path)
        inode = self.table.link(parent, name, info, NEVER)
        self.table.remember(inode)
        self.counts[inode] = self.counts.get(inode, 0) + 1

    @rule(data=st.data(), complete=st.booleans())
    def forget(self, data: st.DataObject, complete: bool) -> None:
        held = [inode for inode, count in self.counts.items() if count]
        if not held:
            return
        inode = data.draw(st.sampled_from(held))
        count = data.draw(st.integers(1, self.counts[inode]))
        if complete and inode.parent is not None and inode.parent.below is not None:
            inode.parent.below.listing.put(True, NEVER)
        gone = self.table.forget(inode.ino, count)
        self.counts[inode] -= count
        assert gone == (self.counts[inode] == 0)

    @rule(data=st.data())
    def unlink(self, data: st.DataObject) -> None:
        held = [inode for inode, count in self.counts.items() if count]
        if held:
            self.table.unlink(data.draw(st.sampled_from(held)))

    @invariant()
    def what_the_kernel_holds_is_alive(self) -> None:
        numbers = set()
        for inode, count in self.counts.items():
            if count:
                assert self.table.get(inode.ino) is inode
                assert inode.lookup_count == count
                numbers.add(inode.ino)
        assert len(numbers) == sum(1 for count in self.counts.values() if count)

    @invariant()
    def memory_is_given_back(self) -> None:
        assert self.table.root.below is not None
        if not any(self.counts.values()) and not self.table.root.below.is_listed:
            # Unlinked folders may have held others: only dentries of the root can remain.
            assert all(inode.parent is None for inode in self.table)

    def teardown(self) -> None:
        for inode, count in self.counts.items():
            if count:
                self.table.forget(inode.ino, count)
        for inode in list(self.table.root.dentries.values()):
            self.table.unlink(inode)
        assert list(self.table) == [self.table.root]


TestLookups = Lookups.TestCase


def test_an_artifact_costs_at_most_1_kib_and_gives_it_back() -> None:
    """A walk of a million artifacts must fit into a gibibyte."""
    count = 20_000
    table = InodeTable(FolderInfo(RepoPath("r"), 0))
    gc.collect()
    tracemalloc.start()
    empty, _ = tracemalloc.get_traced_memory()
    inodes = []
    for number in range(count):
        name = f"model-{number:06}.safetensors"
        path = RepoPath("r", f"domain/model/{name}")
        sums = Checksums(sha256=f"{number:064x}", sha1=f"{number:040x}")
        inode = table.link(table.root, name, FileInfo(path, number, sums, number), NEVER)
        table.remember(inode)
        inodes.append(inode.ino)
    full, _ = tracemalloc.get_traced_memory()
    assert (full - empty) / count <= 1024
    for ino in inodes:
        table.forget(ino, 1)
    inodes.clear()
    del inode, path, sums, name
    gc.collect()
    left, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(table) == 1
    # The root's own dict of children keeps its room for as long as the root lives: 40 bytes each.
    assert left - empty < count * 50
