"""Repeats in a log are counted, and their number is said: no outage floods it."""

import logging
from pathlib import Path

import pytest

from jfs import logs
from jfs.folding import WINDOW_S, Folding, fold_as


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def folding(clock: Clock) -> Folding:
    return Folding(clock)


def record(
    text: str, *args: object, level: int = logging.WARNING, fold: str = ""
) -> logging.LogRecord:
    extra = fold_as(fold) if fold else {}
    made = {"name": "jfs.x", "msg": text, "args": args, "levelno": level, "levelname": "WARNING"}
    return logging.makeLogRecord({**made, **extra})


def said(folding: Folding, *, now: bool = False) -> list[tuple[str, int, float]]:
    return [(last.getMessage(), count, s) for last, count, s in folding.due(now=now)]


def test_the_first_is_written_and_the_rest_counted(folding: Folding, clock: Clock) -> None:
    assert folding.takes(record("read %s: down", "a", fold="down"))
    for name in "bcd":
        assert not folding.takes(record("read %s: down", name, fold="down"))
    assert folding.takes(record("read %s: denied", "a", fold="denied"))
    clock.now += WINDOW_S - 1
    assert said(folding) == []
    clock.now += 1
    assert said(folding) == [("read d: down", 3, WINDOW_S)]


def test_what_goes_on_is_one_line_a_window(folding: Folding, clock: Clock) -> None:
    folding.takes(record("down", fold="down"))
    lines = 1
    for _ in range(600):  # ten minutes, once a second
        clock.now += 1
        lines += folding.takes(record("down", fold="down"))
        lines += len(said(folding))
    assert lines == 11
    clock.now += 2 * WINDOW_S  # it is over: the next one is news
    said(folding)
    clock.now += WINDOW_S
    assert said(folding) == []
    assert folding.takes(record("down", fold="down"))


@pytest.mark.parametrize("level", [logging.WARNING, logging.INFO])
def test_a_text_with_many_names_is_bounded_too(folding: Folding, clock: Clock, level: int) -> None:
    written = [folding.takes(record("%s: is odd", n, level=level)) for n in range(1000)]
    assert 10 <= sum(written) <= 30
    clock.now += WINDOW_S
    ((last, count, _),) = said(folding)
    assert (last, count) == ("999: is odd", 1000 - sum(written))


def test_kinds_without_end_are_bounded(folding: Folding, clock: Clock) -> None:
    written = sum(folding.takes(record("x", fold=f"reason {n}")) for n in range(10_000))
    assert written <= 150
    clock.now += WINDOW_S
    assert sum(count for _, count, _ in said(folding)) == 10_000 - written


def test_who_wants_to_know_everything_gets_it(folding: Folding) -> None:
    assert all(folding.takes(record("%s", n, level=logging.DEBUG)) for n in range(1000))


def test_what_is_counted_keeps_no_object_alive(folding: Folding) -> None:
    class Large:
        def __str__(self) -> str:
            return "large"

    held: list[object] = [Large()]
    for _ in range(2):
        folding.takes(record("%s", held[0], fold="x"))
    kind = folding._kinds["x",]
    assert kind.last is not None
    assert kind.last.args is None
    assert said(folding, now=True)[0][:2] == ("large", 1)


def test_the_log_says_how_often(tmp_path: Path) -> None:
    output = logs.Output(tmp_path / "log")
    for name in ("a", "b", "c"):
        output.emit(record("read %s: down", name, fold="down"))
    output.flush()
    output.close()
    assert (tmp_path / "log").read_text().splitlines() == [
        "read a: down",
        "read c: down (… 2 times in 1 s)",
    ]
