"""Files that are read past the cache: only whole ones, as they were when they were verified."""

import errno
import hashlib
import os
import random
from pathlib import Path

import pytest

from jfs import descriptors
from jfs.cache import DiskBlockStore, check, inventory, remove
from jfs.cache.blockmap import stamp_of
from jfs.cache.content import DiskContent
from jfs.extents import Extent, MiB
from jfs.model import ContentKey
from tests.component.composed import block_store

DATA = random.Random(3).randbytes(MiB + 5)
KEY = ContentKey(f"sha256:{hashlib.sha256(DATA).hexdigest()}", len(DATA))
BLOCK = 32 * 1024


def store_with(directory: Path, *, without: int = 0) -> DiskBlockStore:
    """Return a store that verifies nothing by itself, and has all but the first bytes."""
    store = block_store(directory)
    store.close()
    opened = store.open(KEY)
    assert opened.publish(without, memoryview(DATA)[without:])
    opened.close()
    return store


def verify(directory: Path) -> bool:
    store = block_store(directory)
    try:
        return store.verify(KEY)
    finally:
        store.close()


def test_a_file_is_held_once_it_is_whole_and_verified(tmp_path: Path) -> None:
    store = store_with(tmp_path / "cache", without=BLOCK)
    opened = store.open(KEY)
    assert opened.whole() is None
    assert opened.publish(0, memoryview(DATA)[:BLOCK])
    assert opened.whole() is None
    assert verify(tmp_path / "cache")
    whole = opened.whole()
    assert whole is not None
    assert whole.is_right()
    assert os.pread(whole.file, len(DATA) + 1, 0) == DATA
    assert not opened.close_idle_files()
    opened.close()
    (entry,) = inventory(tmp_path / "cache")
    assert entry.in_use
    assert not remove(entry)
    assert os.pread(whole.file, 1, 0)
    whole.close()
    assert remove(entry)


def test_no_file_of_a_disk_that_fails_is_lent(tmp_path: Path, expected_logs: list[str]) -> None:
    """Whoever reads it himself is told what the disk says; here it is fetched instead."""
    expected_logs.append("reading past the cache while it fails")
    store = store_with(tmp_path / "cache")
    assert verify(tmp_path / "cache")
    opened = store.open(KEY)
    whole = opened.whole()
    assert whole is not None
    whole.close()
    store.failed(OSError(errno.EIO, "Input/output error"))
    assert opened.whole() is None
    opened.close()


def test_a_file_that_was_changed_is_verified_again_first(
    tmp_path: Path, expected_logs: list[str]
) -> None:
    """Also where its time of modification was set back, as by a tool that restores files."""
    expected_logs.append("block 0 does not match its checksum: fetching it again")
    store = store_with(tmp_path / "cache")
    assert verify(tmp_path / "cache")
    opened = store.open(KEY)
    whole = opened.whole()
    assert whole is not None
    status = os.fstat(whole.file)
    while os.fstat(whole.file).st_ctime_ns == status.st_ctime_ns:  # the clock of old kernels ticks
        os.pwrite(whole.file, b"damaged", 0)
    os.utime(whole.file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert not whole.is_right()
    _is_found_out(opened, tmp_path / "cache")
    assert opened.publish(0, memoryview(DATA)[:BLOCK])
    assert verify(tmp_path / "cache")
    assert whole.is_right()  # it is the same file
    whole.close()
    opened.close()


def test_what_was_verified_before_the_machine_started_is_verified_again_first(
    tmp_path: Path, expected_logs: list[str]
) -> None:
    """A loss of power keeps the time of change of a file whose bytes had not reached the disk."""
    expected_logs.append("block 0 does not match its checksum: fetching it again")
    store = store_with(tmp_path / "cache")
    assert verify(tmp_path / "cache")
    opened = store.open(KEY)
    with opened.map_path.with_suffix(".data").open("r+b", buffering=0) as data:
        data.write(bytes(BLOCK))
        opened.note_verified(stamp_of(data.fileno(), "an earlier start"))
    _is_found_out(opened, tmp_path / "cache")
    opened.close()


def _is_found_out(opened: DiskContent, directory: Path) -> None:
    """It is lent to nobody, is verified again, and its first block is missing then."""
    assert opened.whole() is None
    assert not opened.verified
    assert not verify(directory)
    assert opened.missing(Extent(0, KEY.size)) == [Extent(0, BLOCK)]


def test_an_eviction_that_ends_in_the_middle_leaves_nothing_verified(tmp_path: Path) -> None:
    """What is fetched into the same map again is held against its digest again."""
    store = store_with(tmp_path / "cache")
    assert verify(tmp_path / "cache")
    (entry,) = inventory(tmp_path / "cache")
    data = entry.files.data_path
    data.unlink()
    data.mkdir()  # what cannot be removed as a file is
    with pytest.raises(OSError, match=data.name):
        remove(entry)
    data.rmdir()
    opened = store.open(KEY)
    assert opened.missing(Extent(0, KEY.size)) == [Extent(0, KEY.size)]
    assert not opened.verified
    opened.close()


def test_whatever_verifies_a_content_makes_its_file_fit(tmp_path: Path) -> None:
    store = store_with(tmp_path / "checked")
    (entry,) = inventory(tmp_path / "checked")
    assert check(store, entry).damaged_bytes == 0
    staged = tmp_path / "staged"
    staged.write_bytes(DATA)
    taken = block_store(tmp_path / "taken")
    assert taken.adopt(KEY, staged)
    for each in (store, taken):
        opened = each.open(KEY)
        whole = opened.whole()
        assert whole is not None
        whole.close()
        opened.close()
    taken.close()


def test_no_more_files_are_held_than_there_are_descriptors_for(tmp_path: Path) -> None:
    store = store_with(tmp_path / "cache")
    assert verify(tmp_path / "cache")
    opened = store.open(KEY)
    most = descriptors.limit() // 8
    assert store.may_hold(most)
    assert opened.whole() is None
    assert store.may_hold(-1)
    whole = opened.whole()
    assert whole is not None
    assert opened.whole() is None
    whole.close()
    opened.close()
