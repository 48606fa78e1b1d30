"""What was set here: a bounded table, and what is in use stays in it."""

import gc
import tracemalloc

from jfs.model import Checksums, FileInfo, FolderInfo, RepoPath
from jfs.vfs.freshness import NEVER
from jfs.vfs.namespace.inodes import Inode
from jfs.vfs.namespace.inodetable import InodeTable
from jfs.vfs.namespace.local import LocalAttributeTable

_TOP = RepoPath("repo")


def _inodes(count: int) -> tuple[InodeTable, list[Inode]]:
    table = InodeTable(FolderInfo(_TOP, 0))
    paths = [_TOP.child(f"file-{number:06}") for number in range(count)]
    return table, [
        table.link(table.root, path.name, FileInfo(path, 1, Checksums(), 0), NEVER)
        for path in paths
    ]


def test_what_was_set_longest_ago_is_forgotten_first() -> None:
    _, inodes = _inodes(100)
    table = LocalAttributeTable(lambda: (), most=16)
    for number, inode in enumerate(inodes):
        table.set(inode, mode=number)
        table.set(inodes[0], uid=number)  # again and again: it stays
        assert len(table) <= 16
    assert table.get(inodes[0]).mode == 0
    assert [table.get(inode).mode for inode in inodes[-13:]] == list(range(87, 100))
    assert table.get(inodes[1]).mode is None


def test_what_is_open_is_never_forgotten() -> None:
    tree, inodes = _inodes(200)
    table = LocalAttributeTable(lambda: inodes[:40], most=16)
    for number, inode in enumerate(inodes[:40]):
        table.set(inode, mode=number)
    tree.unlink(inodes[3])  # open, and without a name
    table.removed(inodes[3], "content")
    for number, inode in enumerate(inodes[40:], 40):
        table.set(inode, mode=number)
        assert len(table) <= 40 + 16
    assert [table.get(inode).mode for inode in inodes[:40]] == list(range(40))
    table.forget_number(inodes[3].ino)
    assert table.get(inodes[3]).mode is None


def test_a_full_table_is_as_large_as_it_says() -> None:
    """About 55 MB for 100,000 entries, when the inodes are gone and the paths are its alone."""
    tracemalloc.start()
    try:
        tree, inodes = _inodes(5000)
        table = LocalAttributeTable(lambda: ())
        now = 1_700_000_000_000_000_000
        for number, inode in enumerate(inodes):
            owner = {"mode": 0o600, "uid": 1000 + number, "gid": 1000 + number}
            times = {f"{which}time_ns": now + number * 7 + len(which) for which in "amc"}
            table.set(inode, **owner, **times, content=f"sha256:{number:064}:{number}")
        del tree, inodes, inode
        gc.collect()
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert 300 < used / len(table) < 800
