"""Where a cache and a staging directory can be: file systems, open directories, full disks."""

import contextlib
import hashlib
import os
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path

import pytest

from jfs import directories
from jfs.cache import DiskBlockStore, inventory
from jfs.cache.content import DiskContent
from jfs.cache.filesystem import NOTHING, Abilities
from jfs.config import CacheSettings
from jfs.errors import CacheError, ConfigError
from jfs.extents import Extent, GiB, KiB, MiB
from jfs.metrics import Metrics
from jfs.model import ContentKey, RepoPath
from jfs.vfs.writing.journal import Journal
from jfs.vfs.writing.records import Record
from tests.weather.disks import Disk

NOBODY = 65534
BLOCK = 32 * KiB

Opener = Callable[..., DiskBlockStore]


def key(number: int, size: int) -> ContentKey:
    return ContentKey(f"sha256:{number:064x}", size)


def content_of(size: int) -> bytes:
    return random.Random(size).randbytes(size)


def read(cached: DiskContent, extent: Extent) -> bytes | None:
    buffer = memoryview(bytearray(extent.size))
    return bytes(buffer) if cached.read_into(extent, buffer) else None


@pytest.fixture
def open_store() -> Iterator[Opener]:
    stores: list[DiskBlockStore] = []

    def make(
        directory: Path,
        *,
        budget: int = GiB,
        floor: int | None = 0,
        abilities: Abilities | None = None,
    ) -> DiskBlockStore:
        settings = CacheSettings(directory, budget_bytes=budget, free_floor_bytes=floor)
        stores.append(DiskBlockStore(settings, Metrics(), abilities))
        return stores[-1]

    yield make
    for store in stores:
        store.close()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of 64 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(place)], check=True)
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.fixture
def overlay(disk: Path, tmp_path: Path) -> Iterator[Path]:
    """An overlayfs, as containers have it."""
    place = tmp_path / "overlay"
    for folder in (place, disk / "lower", disk / "upper", disk / "work"):
        folder.mkdir()
    layers = f"lowerdir={disk}/lower,upperdir={disk}/upper,workdir={disk}/work"
    subprocess.run(["mount", "-t", "overlay", "-o", layers, "overlay", str(place)], check=True)
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.fixture(params=["tmp_path", "disk", "overlay"])
def place(request: pytest.FixtureRequest) -> Path:
    found: Path = request.getfixturevalue(request.param)
    return found


def use(store: DiskBlockStore, other: DiskBlockStore, number: int = 1) -> None:
    """Do what a cache is for, in two processes' stores."""
    content = content_of(8 * MiB + 77)
    whole = Extent(0, len(content))
    one, two = store.open(key(number, len(content))), other.open(key(number, len(content)))
    for extent in whole.pieces(4 * MiB):
        claim = one.claim(extent)
        assert claim is not None
        with claim:
            assert one.publish(extent.start, memoryview(content)[extent.start : extent.stop])
        for cached in (one, two):
            assert read(cached, extent) == content[extent.start : extent.stop]
            resident = cached.read_resident(Extent(extent.start + 5, extent.start + 50))
            assert resident in (None, content[extent.start + 5 : extent.start + 50])
    assert one.missing(whole) == two.missing(whole) == []
    one.close()
    two.close()
    for each in (store, other):
        assert each.metrics.snapshot().get("cache_disk_errors", 0) == 0


@pytest.mark.fuse  # root, like every mount
def test_every_file_system_takes_a_cache(open_store: Opener, place: Path) -> None:
    first = open_store(place / "cache")
    assert first.abilities.locks
    assert first.abilities.claims
    use(first, open_store(place / "cache"))
    # What its probe did not find is noticed when it is used.
    everything = open_store(place / "cache", abilities=Abilities())
    use(everything, everything, 2)


@pytest.mark.parametrize("lacking", [*(each.name for each in fields(Abilities)), "everything"])
def test_what_a_file_system_lacks_is_done_without(
    open_store: Opener, tmp_path: Path, lacking: str
) -> None:
    found = open_store(tmp_path / "cache").abilities
    abilities = NOTHING if lacking == "everything" else replace(found, **{lacking: False})
    one, two = (open_store(tmp_path / "cache", abilities=abilities) for _ in range(2))
    use(one, two)
    # Eviction too: the oldest goes, and what is open here stays.
    small = open_store(tmp_path / "small", budget=4 * MiB, abilities=abilities)
    content = content_of(MiB)
    opened = small.open(key(0, 2 * MiB))  # not complete, or the verifier would open them
    assert opened.publish(0, memoryview(content))
    for number in range(1, 12):
        cached = small.open(key(number, 2 * MiB))
        assert cached.publish(0, memoryview(content))
        cached.close()
    assert read(opened, Extent(0, MiB)) == content
    opened.close()
    used = sum(path.stat().st_blocks * 512 for path in tmp_path.glob("small/??/*"))
    assert used <= 4 * MiB


@pytest.mark.fuse
@pytest.mark.parametrize("locks", [True, False])
def test_what_the_kernel_reads_makes_room_once_it_is_let_go(
    open_store: Opener, disk: Path, locks: bool
) -> None:
    """It is not evicted. Where no lock says that it is in use, its name goes, and its space stays.

    Nobody writes there then, whatever the budget allows; and at once when the last has closed it.
    """
    abilities = None if locks else NOTHING
    one = open_store(disk / "cache", abilities=abilities)
    other = one if locks else open_store(disk / "cache", abilities=abilities)
    data = content_of(40 * MiB)
    first = ContentKey(f"sha256:{hashlib.sha256(data).hexdigest()}", len(data))
    opened = one.open(first)
    assert opened.publish(0, memoryview(data))
    assert one.verify(first)
    whole = opened.whole()
    assert whole is not None
    opened.close()
    second = other.open(key(2, 30 * MiB))
    more = memoryview(bytes(30 * MiB))
    assert not second.publish(0, more)
    assert (first in [entry.content for entry in inventory(disk / "cache")]) == locks
    assert os.pread(whole.file, len(data), 0) == data
    whole.close()
    if not locks:  # what another process closes is looked for every 2 s, or by the next one
        second = open_store(disk / "cache", abilities=abilities).open(second.key)
    assert second.publish(0, more)


def test_a_file_without_holes_is_charged_whole(open_store: Opener, tmp_path: Path) -> None:
    store = open_store(
        tmp_path / "cache", budget=4 * MiB, abilities=replace(Abilities(), sparse=False)
    )
    cached = store.open(key(1, 64 * MiB))
    block = memoryview(content_of(BLOCK))
    assert not cached.publish(60 * MiB, block)
    assert cached.publish(0, block)
    cached.close()


# directories


@pytest.mark.parametrize("mode", [0o777, 0o755, 0o1777, 0o2770])
def test_a_directory_that_others_can_look_into_gets_a_private_one_inside(
    open_store: Opener, tmp_path: Path, mode: int
) -> None:
    place = tmp_path / "volume"
    place.mkdir()
    place.chmod(mode)
    use(open_store(place), open_store(place))
    (inside,) = place.iterdir()
    assert inside.stat().st_mode & 0o777 == 0o700
    (entry,) = inventory(place)
    assert entry.complete
    journal = Journal(place)
    journal.create(Record("http://server", RepoPath("repo", "f"))).close()
    assert [sighting.size for sighting in Journal(place).survey()] == [0]
    assert place.stat().st_mode & 0o7777 == mode


def test_a_user_who_is_not_root_uses_a_volume_of_root(tmp_path: Path) -> None:
    """An emptyDir with ``runAsUser``."""
    place = Path("/tmp") / f"jfs-volume-{os.getpid()}"
    place.mkdir()
    place.chmod(0o777)
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            store = DiskBlockStore(CacheSettings(place, free_floor_bytes=0), Metrics())
            use(store, store)
            os._exit(0)
        finally:
            os._exit(1)
    try:
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        (inside,) = place.iterdir()
        assert (inside.stat().st_uid, inside.stat().st_mode & 0o777) == (NOBODY, 0o700)
    finally:
        shutil.rmtree(place)


@pytest.mark.parametrize("what", ["link", "folder", "open folder", "file"])
def test_what_another_user_has_planted_is_not_used(
    open_store: Opener, tmp_path: Path, what: str
) -> None:
    place, inside = tmp_path / "volume", tmp_path / "volume" / f"jfs-{os.geteuid()}"
    place.mkdir()
    place.chmod(0o1777)
    if what == "link":
        (tmp_path / "mine").mkdir(mode=0o700)
        inside.symlink_to(tmp_path / "mine")
    elif what == "file":
        inside.touch()
    else:
        inside.mkdir(mode=0o700)
        if what == "folder":
            os.chown(inside, NOBODY, NOBODY)
        else:
            inside.chmod(0o777)
    with pytest.raises(CacheError, match=f"{inside}: others can look in"):
        open_store(place)
    with pytest.raises(ConfigError, match=f"{inside}: others can look in"):
        Journal(place)


def test_a_link_is_followed_if_it_is_ours(open_store: Opener, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(mode=0o700)
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "real")
    use(open_store(link), open_store(tmp_path / "real"))
    os.chown(link, NOBODY, NOBODY, follow_symlinks=False)
    with pytest.raises(CacheError, match="symbolic link that another user has made"):
        open_store(link)


def test_a_directory_of_another_user_is_not_used(open_store: Opener, tmp_path: Path) -> None:
    place = tmp_path / "theirs"
    place.mkdir(mode=0o777)
    os.chown(place, NOBODY, NOBODY)
    with pytest.raises(CacheError, match="belongs to another user: give another"):
        open_store(place)
    (tmp_path / "file").touch()
    with pytest.raises(CacheError, match="is not a directory"):
        open_store(tmp_path / "file")
    assert directories.existing(place) == place


def test_files_of_another_user_are_not_believed(
    open_store: Opener, tmp_path: Path, expected_logs: list[str]
) -> None:
    expected_logs.append("belongs to another user")
    store = open_store(tmp_path / "cache")
    cached = store.open(key(1, MiB))
    assert cached.publish(0, memoryview(bytes(MiB)))
    cached.close()
    os.chown(cached.map_path, NOBODY, NOBODY)
    again = store.open(key(1, MiB))
    assert again.missing(Extent(0, MiB)) == [Extent(0, MiB)]
    again.close()
    os.chown(cached.map_path.with_suffix(".data"), NOBODY, NOBODY)
    with pytest.raises(CacheError, match="belongs to another user"):
        store.open(key(1, MiB))
    # Nor uploaded with our rights.
    journal = Journal(tmp_path / "staging")
    entry = journal.create(Record("http://server", RepoPath("repo", "f")))
    entry.close()
    for path in (tmp_path / "staging").iterdir():
        os.chown(path, NOBODY, NOBODY)
    assert journal.survey() == []
    assert list(journal.left_behind()) == []


def test_staged_files_are_not_hidden_by_a_change_of_mode(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "staging")
    journal.create(Record("http://server", RepoPath("repo", "f"))).close()
    (tmp_path / "staging").chmod(0o755)
    with pytest.raises(ConfigError, match=f"chmod 700 {tmp_path / 'staging'}"):
        Journal(tmp_path / "staging")


# removed, full: with contents that are not complete, or the verifier would open them meanwhile


def test_a_directory_that_was_removed_is_made_again(open_store: Opener, tmp_path: Path) -> None:
    content = content_of(MiB)
    whole = Extent(0, MiB)
    store = open_store(tmp_path / "a" / "cache")
    opened = store.open(key(1, 2 * MiB))
    assert opened.publish(0, memoryview(content))
    shutil.rmtree(tmp_path / "a")
    fresh = store.open(key(2, 2 * MiB))
    assert fresh.publish(0, memoryview(content))
    assert read(opened, whole) in (None, content)
    opened.publish(0, memoryview(content))  # finds out
    assert opened.publish(0, memoryview(content))
    seen = open_store(tmp_path / "a" / "cache")
    for number, cached in ((1, opened), (2, fresh)):
        other = seen.open(key(number, 2 * MiB))
        assert read(cached, whole) == read(other, whole) == content
        cached.close()
        other.close()
    assert (tmp_path / "a" / "cache").stat().st_mode & 0o777 == 0o700
    assert store.metrics.snapshot().get("cache_disk_errors", 0) == 0


def test_an_emptied_directory_is_filled_again(open_store: Opener, tmp_path: Path) -> None:
    """``rm -rf /var/cache/jfs/*`` under a mount."""
    content = content_of(MiB)
    store = open_store(tmp_path / "cache")
    for _ in range(2):
        cached = store.open(key(1, 2 * MiB))
        assert cached.publish(0, memoryview(content))
        cached.close()
        subprocess.run(f"rm -rf {tmp_path}/cache/*", shell=True, check=True)
    assert store.metrics.snapshot().get("cache_disk_errors", 0) == 0


def test_a_staging_directory_that_was_removed_is_made_again(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "a" / "staging")
    shutil.rmtree(tmp_path / "a")
    journal.create(Record("http://server", RepoPath("repo", "f"))).close()
    assert len(journal.survey()) == 1


@pytest.mark.fuse  # root, like every mount
def test_too_little_space_is_said_with_the_figures(open_store: Opener, disk: Path) -> None:
    content = content_of(8 * MiB)
    store = open_store(disk / "cache", floor=None)
    assert store.lack_of_space() is None  # a small disk gets a cache too
    cached = store.open(key(1, 2 * len(content)))
    assert cached.publish(0, memoryview(content))
    (disk / "others").write_bytes(bytes(50 * MiB))
    assert store.lack_of_space() is None  # what is cached can make room
    (disk / "others").write_bytes(bytes(55 * MiB))
    cached.close()
    cached = open_store(disk / "cache", floor=None).open(key(1, 2 * len(content)))
    assert read(cached, Extent(0, len(content))) == content  # what is cached is read all the same
    cached.close()
    shutil.rmtree(disk / "cache")
    (disk / "others").write_bytes(bytes(60 * MiB))
    full = open_store(disk / "cache", floor=None)
    said = full.lack_of_space()
    assert said is not None
    assert "4.0 MiB of 64.0 MiB are free, and 6.4 MiB are left to others" in said
    assert "--cache-dir" in said
    late = full.open(key(2, 2 * len(content)))
    assert not late.publish(0, memoryview(content))
    (disk / "others").unlink()
    late.close()
    late = full.open(key(2, 2 * len(content)))
    assert late.publish(0, memoryview(content))
    late.close()


@pytest.mark.fuse  # root, like every mount
def test_a_full_disk_is_said_once_and_what_is_cached_is_read(
    open_store: Opener, disk: Path, expected_logs: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    expected_logs.append("No space left on device: reading past the cache")
    content = content_of(MiB)
    cached = open_store(disk / "cache").open(key(1, 2 * MiB))
    assert cached.publish(0, memoryview(content))
    cached.close()
    # Neither a byte nor a file fits.
    subprocess.run(["mount", "-o", "remount,nr_inodes=20", str(disk)], check=True)
    (disk / "files").mkdir()
    with contextlib.suppress(OSError):
        for number in range(100):
            (disk / "files" / str(number)).touch()
    store = open_store(disk / "cache")
    for number in range(2, 5):
        with pytest.raises(CacheError):
            store.open(key(number, MiB))
        cached = store.open(key(1, 2 * MiB))
        assert read(cached, Extent(0, MiB)) == content
        cached.close()
    assert len([record for record in caplog.records if record.levelname == "WARNING"]) == 1


@pytest.mark.fuse  # the disk is one
def test_what_is_cached_on_a_disk_that_became_read_only_is_read(
    open_store: Opener, tmp_path: Path, expected_logs: list[str]
) -> None:
    expected_logs.append("reading past the cache while it fails: look why it is read-only")
    content = content_of(MiB)
    disk = Disk(tmp_path)
    try:
        store = open_store(disk.place / "cache")
        cached = store.open(key(1, 3 * MiB))
        assert cached.publish(0, memoryview(content))
        cached.close()
        disk.fail(changes="EROFS")
        cached = store.open(key(1, 3 * MiB))
        assert read(cached, Extent(0, MiB)) == content
        assert not cached.publish(MiB, memoryview(content))
        disk.fail()
        while not cached.publish(MiB, memoryview(content)):  # after the pause
            pass
        cached.close()
        store.close()  # before the disk goes
    finally:
        disk.end()
