"""Cells and questions, with an asker that answers when the test says so."""

import logging
import math
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import outcome
import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from jfs.clocks import boot_time
from jfs.errors import AccessDenied, JfsError, MountEnding, NotFound, ServerDown, Unavailable
from jfs.metrics import Metrics
from jfs.vfs.freshness import NEVER, Answer, Asked, Cell
from jfs.vfs.questions import NotYet, Questions, StandsIn
from jfs.vfs.standing import Standing

DAY = 86400.0
SERVING = "r cannot be asked, serving what was known before"


@asynccontextmanager
async def questions(window_s: float = DAY) -> AsyncIterator[Questions]:
    async with trio.open_nursery() as nursery:
        asked = Questions(nursery, Standing(window_s, 2.0, Metrics()))
        yield asked
        asked.close()


class Server:
    """Answers question number n with n, once the test lets it; counts them."""

    def __init__(self) -> None:
        self.asked = 0
        self.waiting: list[tuple[trio.Event, list[Exception]]] = []

    async def ask(self, asked: Asked) -> int:
        self.asked += 1
        number, event, failure = self.asked, trio.Event(), list[Exception]()
        self.waiting.append((event, failure))
        await event.wait()
        if failure:
            raise failure[0]
        return number

    def answer(self, index: int = 0) -> None:
        self.waiting.pop(index)[0].set()

    def fail(self, error: Exception) -> None:
        event, failure = self.waiting.pop(0)
        failure.append(error)
        event.set()


Outcomes = list[Answer[int] | Exception]


async def listen(asked: Questions, cell: Cell[int], server: Server, outcomes: Outcomes) -> None:
    try:
        outcomes.append(await asked.answer(cell, server.ask, "r"))
    except Exception as error:
        outcomes.append(error)


@asynccontextmanager
async def askers(
    asked: Questions, cell: Cell[int], server: Server, count: int
) -> AsyncIterator[Outcomes]:
    outcomes: Outcomes = []
    async with trio.open_nursery() as nursery:
        for _ in range(count):
            nursery.start_soon(listen, asked, cell, server, outcomes)
        await trio.testing.wait_all_tasks_blocked()
        yield outcomes


async def test_one_question_answers_everybody_who_asks_meanwhile() -> None:
    server, cell = Server(), Cell[int]()
    async with questions() as asked:
        async with askers(asked, cell, server, 5) as outcomes:
            server.answer()
        assert [answer.value for answer in outcomes if isinstance(answer, Answer)] == [1] * 5
        assert server.asked == 1
        assert cell.value == 1
        async with askers(asked, cell, server, 1) as outcomes:  # whoever asks later asks anew
            server.answer()
        assert server.asked == cell.value == 2


async def test_a_failure_is_shared_by_those_who_waited_and_by_nobody_else() -> None:
    server, cell = Server(), Cell[int]()
    error = AccessDenied("no")
    async with questions() as asked:
        async with askers(asked, cell, server, 3) as outcomes:
            server.fail(error)
        assert outcomes == [error] * 3
        assert not cell.is_known
        async with askers(asked, cell, server, 1) as outcomes:
            server.answer()
        assert server.asked == 2
        assert cell.value == 2


@pytest.mark.parametrize("what", ["expire", "change", "later answer", "confirm", "drop"])
async def test_an_answer_from_before_something_newer_is_not_stored(what: str) -> None:
    server, cell = Server(), Cell[int]()
    cell.put(0, Asked.now())
    async with questions() as asked:
        async with askers(asked, cell, server, 2) as outcomes:
            newer: dict[str, Callable[[], object]] = {
                "expire": cell.expire,
                "change": lambda: cell.change(100),
                "later answer": lambda: cell.put(100, Asked.now()),
                "confirm": cell.confirm,
                "drop": cell.drop,
            }
            newer[what]()
            async with askers(asked, cell, server, 1) as later:
                assert server.asked == 2  # nobody joins a question from before
                server.answer()  # the first one
                await trio.testing.wait_all_tasks_blocked()
                assert [answer.stored for answer in outcomes if isinstance(answer, Answer)] == [
                    False,
                    False,
                ]
                known = cell.value if cell.is_known else None
                assert known == {"expire": 0, "confirm": 0, "drop": None}.get(what, 100)
                server.answer()
        assert [answer.stored for answer in later if isinstance(answer, Answer)] == [True]
        assert cell.value == 2


async def test_a_time_to_live_counts_from_the_question(
    mock_clock: trio.testing.MockClock,
) -> None:
    server, cell = Server(), Cell[int]()
    async with questions() as asked, askers(asked, cell, server, 1):
        mock_clock.jump(4)
        server.answer()
    assert cell.left_s(10, 4, 1) == [pytest.approx(6), 0.0, 0.0]
    assert cell.is_fresh(10)
    assert not cell.is_fresh(4)
    assert not cell.is_fresh(0)
    mock_clock.jump(6)
    assert not cell.is_fresh(10)
    assert cell.value == 1


async def test_a_caller_that_is_cancelled_takes_the_question_from_nobody() -> None:
    server, cell = Server(), Cell[int]()
    async with questions() as asked, trio.open_nursery() as impatient:
        impatient.start_soon(asked.answer, cell, server.ask, "r")
        await trio.testing.wait_all_tasks_blocked()
        async with askers(asked, cell, server, 1) as outcomes:
            impatient.cancel_scope.cancel()
            await trio.testing.wait_all_tasks_blocked()
            server.answer()
        assert [answer.value for answer in outcomes if isinstance(answer, Answer)] == [1]
    assert server.asked == 1


async def test_the_answer_is_stored_even_if_nobody_waits_any_more() -> None:
    server, cell = Server(), Cell[int]()
    async with questions() as asked:
        with pytest.raises(NotYet):
            await asked.answer(cell, server.ask, "r", patience_s=0.0)
        await trio.testing.wait_all_tasks_blocked()
        server.answer()
        await trio.testing.wait_all_tasks_blocked()
    assert cell.value == 1


async def test_patience_counts_from_the_question(mock_clock: trio.testing.MockClock) -> None:
    server, cell = Server(), Cell[int]()
    async with questions() as asked, askers(asked, cell, server, 1):
        mock_clock.jump(2)
        before = trio.current_time()
        with pytest.raises(NotYet):
            await asked.answer(cell, server.ask, "r", patience_s=1.5)
        assert trio.current_time() == before
        server.answer()


async def test_a_closed_mount_asks_nothing_and_answers_whoever_waits() -> None:
    server, cell = Server(), Cell[int]()
    async with questions() as asked:
        async with askers(asked, cell, server, 2) as outcomes:
            asked.close()
        assert [type(outcome) for outcome in outcomes] == [MountEnding] * 2
        with pytest.raises(MountEnding):
            await asked.answer(cell, server.ask, "r")
        assert len(asked) == 0


async def known(asked: Questions, cell: Cell[int], server: Server) -> str | int:
    """Use a cell as the filesystem does: its answer, "stale" if it stands in, or the error."""
    if cell.is_fresh(60):
        return "still stale" if cell.is_stale(60) else cell.value
    try:
        return (await asked.answer(cell, server.ask, "r", stands=cell)).value
    except StandsIn as stands:
        cell.stand_in(stands.stand)
        return "stale"
    except JfsError as error:
        return str(error)


@asynccontextmanager
async def using(
    asked: Questions, cell: Cell[int], server: Server
) -> AsyncIterator[list[str | int]]:
    """Use a cell; what came of it is there at the end."""
    outcomes: list[str | int] = []

    async def use() -> None:
        outcomes.append(await known(asked, cell, server))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(use)
        await trio.testing.wait_all_tasks_blocked()
        yield outcomes


def expired(value: int = 100) -> Cell[int]:
    cell = Cell[int]()
    cell.put(value, Asked.restored(time.time() - 3600))
    return cell


async def test_what_was_known_stands_in_when_its_question_fails(
    mock_clock: trio.testing.MockClock, expected_logs: list[str]
) -> None:
    expected_logs.append(f"{SERVING}, up to 86400 s old: down")
    server, cell, nothing = Server(), expired(), Cell[int]()
    async with questions() as asked:
        for each, outcome in [(cell, "stale"), (nothing, "down")]:
            async with using(asked, each, server) as outcomes:
                server.fail(Unavailable("down"))
            assert outcomes == [outcome]
        assert await known(asked, cell, server) == "still stale"
        assert not cell.is_fresh(0)  # nothing is believed, not even then
        assert cell.left_s(60, 0.5, 0) == [1.0, 0.5, 0.0]  # what the kernel is told
        mock_clock.jump(5.1)
        async with using(asked, cell, server) as outcomes:  # asked again
            server.answer()
        assert outcomes == [3]
        assert not cell.is_stale(60)


@pytest.mark.parametrize("how", ["never", "too old", "refused", "a real answer"])
async def test_what_must_not_stand_in(how: str) -> None:
    server, cell = Server(), expired()
    errors: dict[str, Exception] = {"refused": AccessDenied("no"), "a real answer": NotFound("404")}
    error = errors.get(how, Unavailable("down"))
    async with questions({"never": 0, "too old": 3599}.get(how, DAY)) as asked:
        async with using(asked, cell, server) as outcomes:
            server.fail(error)
        assert outcomes == [str(error)]
        assert asked.standing.since is None


async def test_who_can_do_without_waits_for_a_moment_and_the_question_goes_on(
    mock_clock: trio.testing.MockClock, expected_logs: list[str]
) -> None:
    expected_logs.append(f"{SERVING}, up to 86400 s old: no answer for 2 s")
    server, cell, other, nothing = Server(), expired(), expired(), Cell[int]()
    mock_clock.autojump_threshold = 0.01
    async with questions() as asked:
        began = trio.current_time()
        assert await known(asked, cell, server) == "stale"
        assert trio.current_time() - began == pytest.approx(2)
        assert await known(asked, other, server) == "stale"  # nobody knows of the other yet
        assert trio.current_time() - began == pytest.approx(4)
        for _ in range(100):  # it is silent, and hardly asked
            assert await known(asked, expired(), server) == "stale"
        assert trio.current_time() - began == pytest.approx(4)
        await trio.testing.wait_all_tasks_blocked()
        assert server.asked == 3
        mock_clock.autojump_threshold = math.inf
        async with using(asked, nothing, server) as outcomes:  # who has nothing waits
            server.answer()
            await trio.testing.wait_all_tasks_blocked()
            assert cell.value == 1
            server.answer(2)
        assert outcomes == [4]
        # What answers is waited for again.
        async with using(asked, expired(), server) as outcomes:
            mock_clock.jump(1.9)
            server.answer(2)
        assert outcomes == [5]


async def test_a_slow_answer_is_waited_for_while_others_come(
    mock_clock: trio.testing.MockClock,
) -> None:
    """A large listing takes long on a server that is well: nothing stands in for it."""
    server, large = Server(), expired()
    async with questions() as asked, using(asked, large, server) as outcomes:
        for _ in range(10):
            async with using(asked, expired(), server) as others:
                server.answer(1)
            assert len(others) == 1
            mock_clock.jump(1.4)
            await trio.testing.wait_all_tasks_blocked()
        assert outcomes == []
        server.answer()
    assert outcomes == [1]


async def test_a_process_that_slept_does_not_take_it_for_the_servers(
    mock_clock: trio.testing.MockClock,
) -> None:
    server, cell = Server(), expired()
    async with questions() as asked, using(asked, cell, server) as outcomes:
        mock_clock.jump(1000)
        await trio.testing.wait_all_tasks_blocked()
        server.answer()
    assert outcomes == [1]


async def test_what_was_refreshed_is_waited_for(
    mock_clock: trio.testing.MockClock, expected_logs: list[str]
) -> None:
    expected_logs.append(SERVING)
    server, cell = Server(), expired()
    cell.expire()
    async with questions() as asked:
        async with using(asked, cell, server) as outcomes:
            for _ in range(4):
                mock_clock.jump(10)
                await trio.testing.wait_all_tasks_blocked()
            assert outcomes == []
            server.fail(Unavailable("down"))
        assert outcomes == ["stale"]


@pytest.mark.parametrize("subject", ["r", "", "another"])
async def test_once_it_is_up_everything_is_asked_anew(
    mock_clock: trio.testing.MockClock, expected_logs: list[str], subject: str
) -> None:
    """Also where a question of before still waits, on a connection that is dead."""
    expected_logs.append(SERVING)
    server, cell, hanging = Server(), expired(), expired()
    mock_clock.autojump_threshold = 0.01
    async with questions() as asked:
        for each in (hanging, cell):
            assert await known(asked, each, server) == "stale"
        mock_clock.autojump_threshold = math.inf
        asked.standing.up(subject)
        if subject == "another":
            assert await known(asked, cell, server) == "still stale"
            assert asked.standing.since is not None
            return
        assert asked.standing.since is None
        for each in (hanging, cell):
            assert not each.is_stale(60)
            async with using(asked, each, server) as outcomes:
                server.answer(2)
            assert outcomes == [server.asked]


@pytest.mark.parametrize("ends", ["a second", "up", "an answer"])
async def test_what_is_down_is_asked_once_a_second_for_who_can_do_without(
    mock_clock: trio.testing.MockClock, expected_logs: list[str], ends: str
) -> None:
    """A walk through 100,000 names asked for each: nobody was asked, but it took three times."""
    expected_logs.append(f"{SERVING}, up to 86400 s old: down")
    server, nothing = Server(), Cell[int]()
    async with questions() as asked:
        for count in (1, 2):
            async with using(asked, expired(), server) as outcomes:
                server.fail(ServerDown("down for 3 s"))
            assert outcomes == ["stale"]
            for _ in range(100):
                assert await known(asked, expired(), server) == "stale"
            with pytest.raises(NotYet):
                await asked.answer(Cell[int](), server.ask, "r", patience_s=60)
            assert server.asked == count
            mock_clock.jump(1.1)
        async with using(asked, expired(), server) as outcomes:
            server.fail(ServerDown("down for 3 s"))
        if ends == "a second":
            mock_clock.jump(1.1)
        elif ends == "up":
            asked.up("")
        else:
            async with using(asked, nothing, server) as outcomes:  # who has nothing always asks
                server.answer()
            assert outcomes == [4]
        asked_before = server.asked
        async with using(asked, expired(), server) as outcomes:
            server.answer()
        assert outcomes == [asked_before + 1]


@pytest.mark.parametrize("how", ["hangs", "fails"])
async def test_who_waits_while_it_comes_up_asks_anew(how: str) -> None:
    """What was asked in the outage says nothing any more; else it would be said to go on."""
    server, cell = Server(), expired()
    async with questions() as asked, using(asked, cell, server) as outcomes:
        asked.up("")
        if how == "fails":
            server.fail(Unavailable("cut"))
        await trio.testing.wait_all_tasks_blocked()
        assert server.asked == 2
        server.answer(-1)
        await trio.testing.wait_all_tasks_blocked()
        assert outcomes == [2]
        assert asked.standing.since is None


async def test_coming_up_while_somebody_is_turned_away_is_no_new_spell(
    mock_clock: trio.testing.MockClock, expected_logs: list[str]
) -> None:
    expected_logs.append(SERVING)
    server, cell = Server(), expired()
    mock_clock.autojump_threshold = 0.01
    async with questions() as asked:
        for _ in range(3):  # now it is silent, and was asked a moment ago
            assert await known(asked, expired(), server) == "stale"
        turned_away = asked.answer(cell, server.ask, "r", stands=cell)
        turned_away.send(None)  # up to its checkpoint
        asked.up("")
        with pytest.raises(StandsIn) as raised:
            turned_away.send(outcome.Value(None))
        assert raised.value.stand.is_over
        assert asked.standing.since is None


async def test_one_path_that_fails_on_a_server_that_is_well_fills_no_log(
    mock_clock: trio.testing.MockClock, expected_logs: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    expected_logs.append(SERVING)
    caplog.set_level(logging.INFO, "jfs")
    server, cell = Server(), expired()
    async with questions() as asked:
        for number in range(20):
            async with using(asked, cell if number % 2 else expired(), server):
                server.fail(Unavailable("down")) if number % 2 else server.answer()
            mock_clock.jump(2.6)
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        mock_clock.jump(6)
        async with using(asked, expired(), server):
            server.answer()
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert "can be asked again: for" in caplog.text


async def test_an_answer_of_an_earlier_process_is_known_and_not_believed() -> None:
    """It is as old as it was there, whatever the wall clock did; and never newer than now."""
    before, cell = Asked.now(), Cell[int]()
    for wall, age_s in [(time.time() - 3600, 3600.0), (time.time() + 10 * DAY, 0.0)]:
        cell = Cell[int]()
        assert cell.put(1, restored := Asked.restored(wall))
        assert cell.is_known
        assert not cell.is_answered(1000 * DAY)
        assert restored.at > NEVER.at  # by its time alone
        assert boot_time() - restored.confirmed == pytest.approx(age_s, abs=60)
        assert time.time() - restored.confirmed_at == pytest.approx(age_s, abs=60)
    cell.put(3, before)
    assert not cell.put(4, Asked.restored(time.time()))  # what this process asked is newer
    assert cell.value == 3


async def test_how_old_an_answer_is_outlives_a_refresh() -> None:
    cell = Cell[int]()
    cell.put(1, Asked.restored(time.time() - DAY))
    age = cell.asked.confirmed
    cell.confirm()
    cell.expire()
    cell.expire(Asked.now())
    assert cell.asked.confirmed == age
    assert cell.asked.as_hint().confirmed == age
    cell.change(2)
    assert cell.asked.confirmed > age


@settings(max_examples=50)
@given(st.lists(st.sampled_from(["ask", "put", "change", "expire", "confirm"]), max_size=12))
def test_the_newest_wins_whatever_the_order(events: list[str]) -> None:
    """Answers may arrive in any order: the cell ends with what the newest event says."""

    async def check() -> None:
        cell = Cell[int]()
        asked: list[tuple[int, Asked]] = []
        newest: int | None = None
        for number, event in enumerate(events):
            if event == "ask":
                asked.append((number, Asked.now()))
            elif event == "put":
                cell.put(number, Asked.now())
                newest = number
            elif event == "change":
                cell.change(number)
                newest = number
            elif event == "expire":
                cell.expire()
            else:
                cell.confirm()
        after = asked[-1] if asked and asked[-1][1].serial > cell.asked.serial else None
        for number, moment in reversed(asked):
            assert cell.put(number, moment) == (after is not None and moment == after[1])
        if after is not None:
            newest = after[0]
        assert (cell.value if cell.is_known else None) == newest

    trio.run(check)


class Company(RuleBasedStateMachine):
    """Several who ask, change and refresh one thing at a server that takes its time.

    What is stored was true at the server when it was asked, or was made so here, and nothing that
    was known later is ever overwritten by what was known earlier.
    """

    def __init__(self) -> None:
        super().__init__()
        self.cell = Cell[int]()
        self.time = 0  # of the model: every event has its own
        self.pending: list[tuple[int, Asked]] = []
        self.newest = -1  # when what the cell says was true
        self.barrier = -1  # of the last refresh

    def tick(self) -> int:
        self.time += 1
        return self.time

    async def _now(self) -> Asked:
        return Asked.now()

    @rule()
    def ask(self) -> None:
        self.pending.append((self.tick(), trio.run(self._now)))

    @precondition(lambda self: self.pending)
    @rule(data=st.data())
    def arrive(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.pending) - 1))
        moment, asked = self.pending.pop(index)
        stored = self.cell.put(moment, asked)
        assert stored == (moment > max(self.newest, self.barrier))
        if stored:
            self.newest = moment

    @rule()
    def change(self) -> None:
        async def change() -> None:
            self.cell.change(self.tick())

        trio.run(change)
        self.newest = self.time

    @rule()
    def refresh(self) -> None:
        self.cell.expire()
        self.barrier = self.tick()

    @invariant()
    def it_says_the_newest(self) -> None:
        assert (self.cell.value if self.cell.is_known else -1) == self.newest

    @invariant()
    def a_refresh_is_believed_over_all_before_it(self) -> None:
        assert (self.cell.asked.at == -math.inf) == (self.barrier >= self.newest)


TestCompany = Company.TestCase
TestCompany.settings = settings(max_examples=30, stateful_step_count=20)


async def test_a_change_made_here_during_a_refresh_keeps_nothing_from_before_it() -> None:
    """A refresh of a large tree comes to some of it only after a while."""
    cell = Cell[int]()
    cell.put(1, Asked.now())
    refreshed = Asked.now()
    cell.confirm(2)
    cell.expire(refreshed)
    assert not cell.is_answered(DAY)
    assert not cell.accepts(refreshed)
    cell.change(3)
    cell.expire(refreshed)
    assert cell.is_answered(DAY)


def test_never_is_older_than_everything() -> None:
    assert Cell[int]().asked is NEVER
    assert NEVER.serial < trio.run(_serial)


async def _serial() -> int:
    return Asked.now().serial


async def test_work_that_has_not_begun_ends_with_the_mount_too() -> None:
    async with trio.open_nursery() as nursery:
        questions = Questions(nursery, Standing(0, 2.0, Metrics()))
        questions.run(trio.sleep_forever)
        questions.close()
