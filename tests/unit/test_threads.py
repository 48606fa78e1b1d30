"""Whoever waits in a thread says for what: trio's default limiter is one pool for everything."""

import ast
import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest
import trio
import trio.testing

import jfs
from jfs import threads
from jfs.errors import ConfigError, NoThread
from jfs.vfs.kernel import KernelView, Remembered

SOURCE = Path(jfs.__file__).parent


def test_nothing_uses_the_default_limiter() -> None:
    # The server is asyncio's: it has executors of its own.
    found = [
        f"{path.relative_to(SOURCE)}:{node.lineno}"
        for path in SOURCE.rglob("*.py")
        if path != SOURCE / "threads.py" and SOURCE / "server" not in path.parents
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and node.attr == "to_thread"
    ]
    assert found == []
    calls = [
        node
        for node in ast.walk(ast.parse((SOURCE / "threads.py").read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "trio.to_thread.run_sync"
    ]
    assert calls
    assert all("limiter" in {each.arg for each in call.keywords} for call in calls)


async def test_a_kernel_that_does_not_answer_holds_up_no_disk() -> None:
    release = trio.Event()
    token = trio.lowlevel.current_trio_token()

    def hang() -> None:
        trio.from_thread.run(release.wait, trio_token=token)

    async with trio.open_nursery() as nursery:
        for _ in range(100):
            nursery.start_soon(threads.dropping_pages, hang)
        await trio.testing.wait_all_tasks_blocked()
        assert threads.notifications()
        assert await threads.notifying(lambda: "done") == "done"
        for _ in range(100):
            nursery.start_soon(threads.notifying, hang)
        await trio.testing.wait_all_tasks_blocked()
        assert await threads.on_disk(lambda: "done") == "done"
        assert await threads.own_mount(lambda: "done") == "done"
        release.set()


async def test_a_repository_that_hangs_holds_up_no_other() -> None:
    release = trio.Event()
    token = trio.lowlevel.current_trio_token()

    def hang() -> None:
        trio.from_thread.run(release.wait, trio_token=token)

    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(threads.in_turn, threads.asking("fetches", "bad", 2), hang)
        await trio.testing.wait_all_tasks_blocked()
        assert threads.asking("fetches", "bad", 2).available_tokens == 0
        assert await threads.in_turn(threads.asking("fetches", "good", 2), lambda: 1) == 1
        release.set()


@pytest.fixture
def no_thread_starts() -> Iterator[None]:
    """No new thread gets its stack: to whoever starts one that is as if no process were left."""
    before = threading.stack_size(1 << 46)
    yield
    threading.stack_size(before)


async def test_a_thread_that_cannot_be_started_is_waited_for(no_thread_starts: None) -> None:
    release = trio.Event()
    token = trio.lowlevel.current_trio_token()
    entered: list[int] = []
    count = threading.active_count() + 9  # more than earlier tests have left idle

    def hang() -> None:
        entered.append(1)
        trio.from_thread.run(release.wait, trio_token=token)

    async with trio.open_nursery() as nursery:
        for _ in range(count):
            nursery.start_soon(threads.in_turn, threads.asking("x", "r", count), hang)
        await trio.testing.wait_all_tasks_blocked()
        assert len(entered) < count
        threading.stack_size(0)
        while len(entered) < count:  # noqa: ASYNC110 - threads say it
            await trio.sleep(0.001)
        release.set()


async def test_where_none_can_be_started_for_long_that_is_said(
    no_thread_starts: None, autojump_clock: trio.testing.MockClock
) -> None:
    failed: list[NoThread] = []
    said = trio.Event()
    held = threading.Event()
    count = threading.active_count() + 9

    async def work() -> None:
        try:
            await threads.in_turn(threads.asking("x", "r", count), held.wait)
        except NoThread as error:
            failed.append(error)
            said.set()

    async with trio.open_nursery() as nursery:
        for _ in range(count):
            nursery.start_soon(work)
        await said.wait()
        held.set()
    assert "raise the limit of processes" in str(failed[0])


async def test_what_nobody_waits_for_is_told_once_there_is_a_thread(
    no_thread_starts: None, autojump_clock: trio.testing.MockClock, expected_logs: list[str]
) -> None:
    """It ends no mount, whose tasks these are."""
    expected_logs.append("believes what is not so any more: no thread can be started")
    held = threading.Event()
    count = threading.active_count() + 9

    class Kernel:
        told: ClassVar[set[str]] = set()

        def drop_entry(self, parent: int, name: str) -> bool:
            return self._note(name)

        def drop_attributes(self, ino: int) -> bool:
            return self._note("attributes")

        def drop_pages(self, ino: int) -> bool:
            return self._note("pages")

        def _note(self, what: str) -> bool:
            self.told.add(what)
            return True

    async def work() -> None:
        with contextlib.suppress(NoThread):
            await threads.in_turn(threads.asking("x", "r", count), held.wait)

    async with trio.open_nursery() as nursery:
        for _ in range(count):  # also those that earlier tests have left idle
            nursery.start_soon(work)
        await trio.sleep(40)
        view = KernelView(nursery, Kernel())
        try:
            view.drop_pages(7)
            view.drop_soon(Remembered([(1, "name")], []))
            await trio.sleep(70)
            assert Kernel.told == set()
            threading.stack_size(0)
        finally:
            held.set()
    assert Kernel.told == {"pages", "name"}


def test_threads_that_are_started_at_once_and_those_that_cannot_be() -> None:
    executor = threads.started(3, "jfs-test")
    before = threading.stack_size(1 << 46)
    try:
        assert [executor.submit(int).result() for _ in range(9)] == [0] * 9
        with pytest.raises(ConfigError, match="no thread can be started"):
            threads.started(2, "jfs-test")
    finally:
        threading.stack_size(before)
        executor.shutdown()
