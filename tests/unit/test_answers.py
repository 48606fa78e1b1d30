"""Requests that are let go while what they asked for goes on."""

import trio

from jfs.answers import Answer, Answers, Left


class _Kept(Left[str]):
    """Says what nobody has waited for."""

    def __init__(self, left: list[str]) -> None:
        self._left = left

    async def done(self, value: str) -> None:
        self._left.append(value)


async def test_what_ends_in_the_moment_it_is_let_go_is_not_lost() -> None:
    """Either whoever asked gets the answer, or it is given back: a handle would stay open."""
    answers, left, got = Answers(), list[str](), list[str]()

    async def work() -> str:
        await trio.lowlevel.checkpoint()
        (answer,) = answers.busy()
        answer.let_go()
        return "opened"  # no checkpoint: before the waiting task has heard of it

    def kept(answer: Answer) -> Left[str]:
        assert answer.is_let_go
        return _Kept(left)

    async with trio.open_nursery() as nursery:
        answers.nursery = nursery
        with answers.answering():
            answers.arrived = 1
            answers.begun("create", ())
            got.append(await answers.behind(work, kept))
    assert got + left == ["opened"]
