"""How long a mount has been silent, and where everything is when it is."""

import configparser
import dataclasses
import threading
from pathlib import Path

import pytest
import trio
import trio.testing

from jfs.config import MountSettings, WriteSettings
from jfs.mount import supervisor
from jfs.mount.serving import END_S
from jfs.mount.stacks import stacks
from jfs.mount.watchdog import Silence, Verdict


def test_a_third_of_the_limit_is_said_once_and_the_whole_ends_it() -> None:
    silence = Silence(limit_s=60, tick_s=5)
    silence.heard(100)
    verdicts = [silence.goes_on(100 + 5 * tick) for tick in range(1, 13)]
    assert verdicts == [
        *[Verdict.WAIT] * 3,
        Verdict.SAY,
        *[Verdict.WAIT] * 7,
        Verdict.END,
    ]


def test_an_answer_ends_the_silence() -> None:
    silence = Silence(limit_s=60, tick_s=5)
    assert not silence.heard(0)
    assert [silence.goes_on(5 * tick) for tick in range(1, 5)][-1] is Verdict.SAY
    assert silence.heard(30)
    assert not silence.heard(35)
    assert silence.goes_on(40) is Verdict.WAIT


def test_time_in_which_the_process_was_stopped_does_not_count() -> None:
    silence = Silence(limit_s=60, tick_s=5)
    silence.heard(0)
    assert silence.goes_on(3600) is Verdict.WAIT
    assert silence.lasted_s == 10


async def _sleeps_inside() -> None:
    await trio.sleep_forever()


async def test_stacks_name_every_thread_and_task() -> None:
    root = trio.lowlevel.current_root_task()
    assert root is not None
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(_sleeps_inside)
        await trio.testing.wait_all_tasks_blocked()
        text = stacks(root)
        nursery.cancel_scope.cancel()
    threads, _, tasks = text.partition("\nTask ")
    name = threading.current_thread().name
    assert f"Thread {name} (most recent call first):\n" in threads
    assert "in test_stacks_name_every_thread_and_task" in threads
    assert "and 2 more:" in tasks
    assert "in _sleeps_inside" in tasks


async def test_threads_that_could_not_be_started_hide_no_other() -> None:
    """Each leaves something behind in the interpreter, which has no stack."""
    before = threading.stack_size(1 << 46)
    try:
        for _ in range(120):
            with pytest.raises(RuntimeError):
                threading.Thread(target=print).start()
    finally:
        threading.stack_size(before)
    root = trio.lowlevel.current_root_task()
    assert root is not None
    assert "in test_threads_that_could_not_be_started_hide_no_other" in stacks(root)


def test_a_watchdog_of_another_process_is_not_ours() -> None:
    assert supervisor.watchdog_s({}) is None
    assert supervisor.watchdog_s({"WATCHDOG_USEC": "30000000"}) == 30
    assert supervisor.watchdog_s({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}) is None
    assert supervisor.watchdog_s({"WATCHDOG_USEC": "none"}) is None


def test_the_unit_is_more_patient_than_the_mount() -> None:
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(Path(__file__).parents[2] / "systemd" / "jfs@.service")
    service = unit["Service"]
    defaults = {field.name: field.default for field in dataclasses.fields(MountSettings)}
    drain_s = WriteSettings(Path()).drain_s
    assert service["Type"] == "notify"
    assert float(service["TimeoutStopSec"]) >= drain_s + END_S
    assert float(service["WatchdogSec"]) > defaults["watchdog_s"]
    assert service["RestartPreventExitStatus"] == "2"
