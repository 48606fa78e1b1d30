"""Pushes into the page cache, against a store that can stand still."""

import threading

import trio
import trio.testing

from jfs.extents import MiB
from jfs.metrics import Metrics
from jfs.model import ContentKey
from jfs.vfs.pages import KernelPages

OLD, NEW = ContentKey("sha256:old", 4 * MiB), ContentKey("sha256:new", 4 * MiB)
INO = 7


class PageCache:
    """A page store that waits for ``go`` in every call."""

    def __init__(self) -> None:
        self.stored: list[tuple[int, int, int]] = []
        self.entered = threading.Semaphore(0)
        self.go = threading.Event()

    def __call__(self, ino: int, offset: int, data: memoryview) -> None:
        self.entered.release()
        assert self.go.wait(30)
        self.stored.append((ino, offset, len(data)))


async def test_the_same_content_keeps_its_pages() -> None:
    pages = KernelPages(None, Metrics())
    assert [await pages.admit(INO, OLD) for _ in range(3)] == [False, True, True]
    assert not await pages.admit(INO, NEW)
    pages.forget(INO)
    assert not await pages.admit(INO, NEW)


async def test_new_content_waits_until_pushes_of_the_old_have_ended() -> None:
    cache = PageCache()
    pages = KernelPages(cache, Metrics())
    await pages.admit(INO, OLD)
    order: list[str] = []

    async def push() -> None:
        await pages.push(INO, OLD, 0, memoryview(bytes(3 * MiB)))
        order.append("pushed")

    async def reopen() -> None:
        assert not await pages.admit(INO, NEW)
        order.append("opened")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(push)
        await trio.to_thread.run_sync(lambda: cache.entered.acquire(timeout=30))
        nursery.start_soon(reopen)
        await trio.testing.wait_all_tasks_blocked()
        assert order == []
        cache.go.set()
    assert set(order) == {"pushed", "opened"}
    # The piece under way was finished; the rest of the old content never came.
    assert cache.stored == [(INO, 0, MiB)]


async def test_old_content_is_not_pushed() -> None:
    cache = PageCache()
    cache.go.set()
    pages = KernelPages(cache, Metrics())
    await pages.admit(INO, OLD)
    await pages.admit(INO, NEW)
    await pages.push(INO, OLD, 0, memoryview(bytes(10)))
    await pages.push(INO + 1, NEW, 0, memoryview(bytes(10)))
    assert cache.stored == []


async def test_a_kernel_that_refuses_costs_nothing_but_speed() -> None:
    def refuse(ino: int, offset: int, data: memoryview) -> None:
        raise OSError(2, "gone")

    pages = KernelPages(refuse, Metrics())
    await pages.admit(INO, OLD)
    await pages.push(INO, OLD, 0, memoryview(bytes(10)))
    assert not await pages.admit(INO, NEW)
