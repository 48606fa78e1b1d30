"""Whoever waits in a thread says for what: trio's default limiter is one pool for everything."""

import ast
from pathlib import Path

import trio
import trio.testing

import jfs
from jfs import threads

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
