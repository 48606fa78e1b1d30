"""What the kernel is told, and what waits for it: with a kernel that answers when it is told to."""

import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import trio
import trio.testing

from jfs.extents import Extent
from jfs.model import ContentKey
from jfs.server import EmbeddedServer
from jfs.vfs.attributes.stat import Caller
from jfs.vfs.kernel import KernelView, Remembered
from jfs.vfs.namespace.inodes import ROOT
from tests.component.composed import TREE, composed, find
from tests.component.server_requests import REPO

ME = Caller(os.getuid(), os.getgid())
CONTENT = ContentKey("sha256:0", 1)


class Kernel:
    """A ``Notifier`` that notes what it is told, and holds it up while ``busy``."""

    def __init__(self) -> None:
        self.told: list[object] = []
        self._free = threading.Event()
        self._free.set()

    @property
    def busy(self) -> bool:
        return not self._free.is_set()

    @busy.setter
    def busy(self, busy: bool) -> None:
        (self._free.clear if busy else self._free.set)()

    def drop_entry(self, parent: int, name: str) -> bool:
        return self._note((parent, name))

    def drop_attributes(self, ino: int) -> bool:
        return self._note(("attributes", ino))

    def drop_pages(self, ino: int) -> bool:
        return self._note(ino)

    def _note(self, what: object) -> bool:
        self.told.append(what)
        self._free.wait(30)
        return True


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    made = Kernel()
    yield made
    made.busy = False


async def test_a_write_that_passes_pages_by_drops_them_before_it_ends(
    server: EmbeddedServer, kernel: Kernel
) -> None:
    async with composed(server, REPO, notifier=kernel) as fs:
        opened, attributes = await fs.create(ROOT, "f", 0o644, os.O_WRONLY, ME)
        await fs.write(opened.handle, 0, b"one")
        reader = await fs.open(attributes.ino, os.O_RDONLY)
        await fs.write(opened.handle, 3, b"two")
        assert kernel.told == []  # nothing was read: there are no pages
        assert bytes(await fs.read(reader.handle, Extent(0, 6))) == b"onetwo"
        await fs.write(opened.handle, 0, b"ONE")
        assert kernel.told == [attributes.ino]
        await fs.write(opened.handle, 0, b"One")
        assert kernel.told == [attributes.ino]
        await fs.release(reader.handle)
        # Pages outlive the handle that they were read through.
        reader = await fs.open(attributes.ino, os.O_RDONLY)
        assert reader.keep_cache
        assert bytes(await fs.read(reader.handle, Extent(0, 6))) == b"Onetwo"
        await fs.release(reader.handle)
        await fs.write(opened.handle, 0, b"oNe")
        assert kernel.told == [attributes.ino] * 2
        await fs.release(opened.handle)


async def test_reads_and_other_files_do_not_wait_for_a_busy_kernel(
    server: EmbeddedServer, kernel: Kernel
) -> None:
    server.deploy(REPO, "other", b"x")
    async with composed(server, REPO, notifier=kernel) as fs, trio.open_nursery() as nursery:
        opened, attributes = await fs.create(ROOT, "f", 0o644, os.O_WRONLY, ME)
        await fs.write(opened.handle, 0, b"old")
        reader = await fs.open(attributes.ino, os.O_RDONLY)
        await fs.read(reader.handle, Extent(0, 3))
        kernel.busy = True
        for _ in range(5):
            nursery.start_soon(fs.write, opened.handle, 0, b"new")
        await trio.testing.wait_all_tasks_blocked(0.05)
        with trio.fail_after(20):
            assert bytes(await fs.read(reader.handle, Extent(0, 3))) == b"new"
            assert (await fs.getattr(attributes.ino)).size == 3
            handle = (await fs.open(await find(fs, "other"), 0)).handle
            assert bytes(await fs.read(handle, Extent(0, 1))) == b"x"
        kernel.busy = False
        await fs.release(handle)


async def test_a_refresh_reaches_names_that_a_listing_had_no_more(
    server: EmbeddedServer, kernel: Kernel
) -> None:
    """The kernel believes in a name that it was told of, also when we know that it is gone."""
    for name in ("kept", "gone"):
        server.deploy(REPO, f"d/{name}", b"x")
    believed = replace(TREE, entry_ttl_s=0, attr_ttl_s=10)
    async with composed(server, REPO, tree=believed, notifier=kernel) as fs:
        folder = await find(fs, "d")
        await fs.lookup(folder, "gone")
        server.delete(REPO, "d/gone")
        handle = await fs.opendir(folder)
        assert [name for name, _, _ in fs.readdir(handle, 0)] == ["kept"]
        fs.releasedir(handle)
        await fs.refresh(folder)
        assert (folder, "gone") in kernel.told


async def test_notifications_of_one_inode_are_made_in_one(kernel: Kernel) -> None:
    async with trio.open_nursery() as nursery:
        view = KernelView(nursery, kernel)
        view.opened(7, CONTENT, 0, shared=False)
        view.filled(7)
        kernel.busy = True
        async with trio.open_nursery() as writers:
            writers.start_soon(view.passed_by, 7)
            await _until(lambda: kernel.told == [7])
            for _ in range(20):
                view.filled(7)
                writers.start_soon(view.passed_by, 7)
            await trio.testing.wait_all_tasks_blocked()
            assert kernel.told == [7]
            kernel.busy = False
        assert kernel.told == [7, 7]  # the second is for all who came after the first began


async def test_so_many_writes_wait_for_the_kernel_and_no_more(kernel: Kernel) -> None:
    """Each holds a task of the mount, and READs need tasks: or nothing would ever end."""
    ended = 0

    async def write(ino: int) -> None:
        nonlocal ended
        await view.passed_by(ino)
        ended += 1

    async with trio.open_nursery() as nursery:
        view = KernelView(nursery, kernel)
        kernel.busy = True
        async with trio.open_nursery() as writers:
            for ino in range(100):
                writers.start_soon(write, ino)
            await trio.testing.wait_all_tasks_blocked()
            assert ended == 36
            kernel.busy = False
    assert sorted(kernel.told) == list(range(100))  # type: ignore[type-var]  # numbers


async def test_a_write_does_not_wait_for_ever(
    kernel: Kernel, autojump_clock: trio.testing.MockClock
) -> None:
    """A page may be held by a READ that waits for a slow server."""
    async with trio.open_nursery() as nursery:
        view = KernelView(nursery, kernel)
        kernel.busy = True
        began = trio.current_time()
        await view.passed_by(1)
        assert trio.current_time() - began == pytest.approx(5.0)
        kernel.busy = False


async def test_the_end_of_a_mount_does_not_wait_for_the_kernel(kernel: Kernel) -> None:
    async with trio.open_nursery() as nursery:
        view = KernelView(nursery, kernel)
        kernel.busy = True
        view.drop_pages(1)
        view.drop_soon(Remembered([(1, "a"), (1, "b")], [2]))
        await _until(lambda: len(kernel.told) == 2)
        nursery.cancel_scope.cancel()
    kernel.busy = False
    assert sorted(map(str, kernel.told)) == ["(1, 'a')", "1"]  # the rest is left out


async def test_pages_are_kept_by_content(kernel: Kernel) -> None:
    async with trio.open_nursery() as nursery:
        view = KernelView(nursery, kernel)
        other = ContentKey("sha256:1", 1)
        assert not view.opened(1, CONTENT, 0, shared=False)
        assert view.opened(1, CONTENT, 0, shared=False)
        assert not view.opened(1, CONTENT, 1, shared=False)  # what was read was wrong
        assert view.opened(1, other, 0, shared=True)  # what is written goes into the pages
        view.closed(1, other, 0)
        assert view.opened(1, other, 0, shared=False)
        view.forget(1)
        assert not view.opened(1, other, 0, shared=False)


async def _until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(20):
        while not condition():
            await trio.lowlevel.checkpoint()
