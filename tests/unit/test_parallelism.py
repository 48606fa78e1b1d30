"""The gate for range requests."""

import threading

import pytest

from jfs.artifactory.parallelism import Parallelism
from jfs.errors import DeadlineExceeded, NotFound, RateLimited


def test_it_halves_when_the_server_pushes_back_and_recovers_step_by_step() -> None:
    gate = Parallelism(4)
    with pytest.raises(RateLimited), gate.request(30):
        raise RateLimited("slow down")
    assert gate.limit == 2
    for _ in range(2):
        with pytest.raises(RateLimited), gate.request(30):
            raise RateLimited("slow down")
    assert gate.limit == 1  # never nothing
    limits = []
    for _ in range(20):
        with gate.request(30):
            pass
        limits.append(gate.limit)
    assert limits == sorted(limits)
    assert limits[-1] == 4


def test_an_answer_that_is_no_congestion_changes_nothing() -> None:
    gate = Parallelism(4)
    with pytest.raises(NotFound), gate.request(30):
        raise NotFound("gone")
    assert gate.limit == 4


def test_no_more_than_the_limit_are_under_way() -> None:
    gate = Parallelism(2)
    inside = threading.Semaphore(0)
    leave = threading.Event()
    active, most, lock = 0, 0, threading.Lock()

    def one() -> None:
        nonlocal active, most
        with gate.request(30):
            with lock:
                active += 1
                most = max(most, active)
            inside.release()
            assert leave.wait(30)
            with lock:
                active -= 1

    threads = [threading.Thread(target=one) for _ in range(5)]
    for thread in threads:
        thread.start()
    for _ in range(2):
        assert inside.acquire(timeout=30)
    leave.set()
    for thread in threads:
        thread.join(30)
    assert most == 2


def test_closing_lets_everybody_through() -> None:
    gate = Parallelism(1)
    through = threading.Event()

    def one() -> None:
        with gate.request(30):
            through.set()

    with gate.request(30):
        thread = threading.Thread(target=one)
        thread.start()
        gate.close()
        assert through.wait(30)
        thread.join(30)


def test_nobody_waits_for_a_place_for_ever() -> None:
    gate = Parallelism(1)
    with gate.request(30), pytest.raises(DeadlineExceeded), gate.request(0.01):
        pass
