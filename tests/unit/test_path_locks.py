"""One order of what changes at a path."""

import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from jfs.model import RepoPath
from jfs.vfs.namespace.locks import PathLocks


def at(text: str) -> RepoPath:
    return RepoPath.parse(text)


class Order:
    """Notes who holds claims, and lets each go when it is told to."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.locks = PathLocks()
        self.holding: list[str] = []
        self._nursery = nursery
        self._ends: dict[str, trio.CancelScope] = {}

    async def want(self, name: str, *paths: str, tree: bool = False) -> None:
        self._ends[name] = trio.CancelScope()
        self._nursery.start_soon(self._run, name, paths, tree)
        await trio.testing.wait_all_tasks_blocked()

    async def _run(self, name: str, paths: tuple[str, ...], tree: bool) -> None:
        with self._ends[name]:
            async with self.locks.held(*map(at, paths), tree=tree):
                self.holding.append(name)
                try:
                    await trio.sleep_forever()
                finally:
                    self.holding.remove(name)

    async def end(self, name: str) -> None:
        """Let go, or give up waiting."""
        self._ends[name].cancel()
        await trio.testing.wait_all_tasks_blocked()


@asynccontextmanager
async def order() -> AsyncIterator[Order]:
    async with trio.open_nursery() as nursery:
        made = Order(nursery)
        yield made
        nursery.cancel_scope.cancel()
    assert len(made.locks) == 0


async def test_one_path_one_holder_in_the_order_of_asking() -> None:
    async with order() as locks:
        for name in ("first", "second", "third"):
            await locks.want(name, "r/a")
        await locks.want("other", "r/b")
        assert locks.holding == ["first", "other"]
        await locks.end("first")
        assert locks.holding == ["other", "second"]
        await locks.end("third")  # gave up
        await locks.end("second")
        await locks.want("fourth", "r/a")
        assert locks.holding == ["other", "fourth"]


async def test_two_paths_are_granted_together() -> None:
    async with order() as locks:
        await locks.want("close b", "r/b")
        await locks.want("a to b", "r/a", "r/b")
        await locks.want("b to a", "r/b", "r/a")
        await locks.want("close a", "r/a")
        assert locks.holding == ["close b"]
        await locks.end("close b")
        assert locks.holding == ["a to b"]
        await locks.end("a to b")
        assert locks.holding == ["b to a"]
        await locks.end("b to a")
        assert locks.holding == ["close a"]


async def test_a_tree_is_all_that_lies_below() -> None:
    async with order() as locks:
        await locks.want("upload", "r/d/sub/f")
        await locks.want("neighbour", "r/d2/f")
        await locks.want("move", "r/d", "s/e", tree=True)
        await locks.want("upload below", "r/d/g")
        await locks.want("upload there", "s/e/x/y")
        await locks.want("beside", "s/eg")
        await locks.want("above", "r", tree=True)
        assert locks.holding == ["upload", "neighbour", "beside"]
        await locks.end("upload")
        assert locks.holding == ["neighbour", "beside", "move"]
        await locks.end("move")
        assert set(locks.holding) == {"neighbour", "beside", "upload below", "upload there"}
        for name in ("neighbour", "upload below"):
            await locks.end(name)
        assert locks.holding == ["beside", "upload there", "above"]


async def test_who_gives_up_lets_others_pass() -> None:
    async with order() as locks:
        await locks.want("holder", "r/a")
        await locks.want("waiting", "r/a", "r/b")
        await locks.want("behind", "r/b")
        assert locks.holding == ["holder"]
        await locks.end("waiting")
        assert locks.holding == ["holder", "behind"]


async def test_claims_under_claims_are_an_error() -> None:
    locks = PathLocks()
    async with locks.held(at("r/a")):
        with pytest.raises(RuntimeError, match="r/b"):
            async with locks.held(at("r/b")):
                raise AssertionError("granted")
    assert len(locks) == 0


async def test_many_tasks_that_want_many_paths_all_end() -> None:
    """Two claims that conflict are never held at a time, and nobody waits for ever."""
    choose = random.Random(1)
    locks = PathLocks()
    names = ["r/a", "r/a/b", "r/a/b/c", "r/a/d", "r/e", "s/a"]
    held: Counter[str] = Counter()
    granted = 0

    def blocks(one: str, tree: bool, other: str) -> bool:
        return other == one or (tree and other.startswith(one + "/"))

    async def work(wanted: list[str], tree: bool) -> None:
        nonlocal granted
        async with locks.held(*map(at, wanted), tree=tree):
            granted += 1
            for name in wanted:
                assert not any(blocks(name, tree, other) for other in held.elements())
            held.update(wanted)
            for _ in range(choose.randrange(4)):
                await trio.lowlevel.checkpoint()
            held.subtract(wanted)

    async with trio.open_nursery() as nursery:
        for _ in range(300):
            nursery.start_soon(
                work, choose.sample(names, choose.choice((1, 2))), choose.random() < 0.3
            )
    assert granted == 300
    assert len(locks) == 0
